"""Registers GrowCLIP with `transformers`' Auto classes, whichever of `growclip_ds` and `transformers` comes first.

`transformers` and torch take seconds to import, so nothing here imports them. The configuration is registered when
`AutoConfig` is imported, or at once if it already is; the model and the image processor when the first configuration is
created, which the other Auto classes need before anything else. They cannot be registered on import: `transformers`'
models import the Auto classes, and would be only partially imported.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def register() -> None:
    """Registers GrowCLIP with `AutoConfig`, `AutoModel`, `AutoModelForZeroShotImageClassification` and
    `AutoImageProcessor`.
    """
    if _AUTO_CONFIG in sys.modules:
        _register_config()
    else:
        sys.meta_path.insert(0, _AfterImport(_AUTO_CONFIG, _register_config))


def _register_config() -> None:
    from growclip_ds.hub.configuration_growclip import GrowCLIPConfig

    GrowCLIPConfig.register_for_auto_class()  # saved models include their code
    sys.modules[_AUTO_CONFIG].AutoConfig.register(GrowCLIPConfig.model_type, GrowCLIPConfig)
    make = GrowCLIPConfig.__init__

    @functools.wraps(make)
    def make_and_register(*args: object, **options: object) -> None:
        make(*args, **options)
        _register_classes()

    GrowCLIPConfig.__init__ = make_and_register


@functools.cache
def _register_classes() -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoModelForZeroShotImageClassification

    from growclip_ds.hub.configuration_growclip import GrowCLIPConfig
    from growclip_ds.hub.image_processing_growclip import GrowCLIPImageProcessor
    from growclip_ds.hub.modeling_growclip import GrowCLIPModel

    GrowCLIPModel.register_for_auto_class()
    for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
        auto_class.register(GrowCLIPConfig, GrowCLIPModel)
    GrowCLIPImageProcessor.register_for_auto_class()
    AutoImageProcessor.register(GrowCLIPConfig, slow_image_processor_class=GrowCLIPImageProcessor)


class _AfterImport(MetaPathFinder):
    """An import hook that calls a function once, after a module is imported.

    Args:
        name: name of the module.
        act: the function to call.
    """

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self._name, self._act = name, act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec from Python's own finder, with a loader that calls the function after it has loaded."""
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_act(module: ModuleType) -> None:
            load(module)
            self._act()

        spec.loader.exec_module = load_and_act  # type: ignore[method-assign]
        return spec
