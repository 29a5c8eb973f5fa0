"""GrowCLIP-DS: contrastive language-image models that grow with their data, trained on DeepSpeed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from growclip_ds.hub.registration import register

if TYPE_CHECKING:
    from growclip_ds.architecture import Architecture
    from growclip_ds.growth.inheritance import inherit
    from growclip_ds.growth.selection import composite_metric
    from growclip_ds.growth.space import GrowthSpace
    from growclip_ds.model.growclip import GrowCLIP

_HOMES = {
    "Architecture": "architecture",
    "GrowCLIP": "model.growclip",
    "GrowthSpace": "growth.space",
    "composite_metric": "growth.selection",
    "inherit": "growth.inheritance",
}

__all__ = ["Architecture", "GrowCLIP", "GrowthSpace", "composite_metric", "inherit"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `growclip --help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


register()  # with `transformers`' Auto classes
