"""`transformers` knows GrowCLIP whichever is imported first; `import growclip_ds` waits for neither it nor torch."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

KNOWN = """
from transformers import AutoConfig, AutoModel
config = AutoConfig.for_model("growclip", vocab_size=30, image_size=16, image_blocks=1, text_blocks=1)
model = AutoModel.from_config(config)
assert type(model).__module__ == "growclip_ds.hub.modeling_growclip", type(model)
"""


FIRST = {
    "growclip_ds": "import growclip_ds, sys\nassert not {'torch', 'transformers'} & set(sys.modules)",
    "transformers": "from transformers import AutoConfig, AutoModel\nimport growclip_ds",
    # whose imports import the Auto classes
    "the model": "from growclip_ds.hub.modeling_growclip import GrowCLIPModel",
    # which imports them from within a model
    "a CLIP": "import growclip_ds\nfrom transformers import CLIPTextModel",
    "layers": "import growclip_ds\nimport transformers.modeling_layers",
    "the rest": "import growclip_ds\nfrom transformers import AutoImageProcessor, pipeline",
}


def run(first: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", first + KNOWN], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def done() -> dict[str, subprocess.CompletedProcess[str]]:
    """All of them in interpreters of their own, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(FIRST, pool.map(run, FIRST.values()), strict=True))


@pytest.mark.parametrize("name", FIRST)
def test_in_any_order(done: dict[str, subprocess.CompletedProcess[str]], name: str) -> None:
    assert done[name].returncode == 0, done[name].stderr
