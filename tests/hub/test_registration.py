"""`transformers` knows GrowCLIP whichever is imported first; `import growclip_ds` waits for neither it nor torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

KNOWN = """
from transformers import AutoConfig, AutoModel
config = AutoConfig.for_model("growclip", vocab_size=30, image_size=16, image_blocks=1, text_blocks=1)
model = AutoModel.from_config(config)
assert type(model).__module__ == "growclip_ds.hub.modeling_growclip", type(model)
"""


@pytest.mark.parametrize(
    "first",
    [
        "import growclip_ds, sys\nassert not {'torch', 'transformers'} & set(sys.modules)",
        "from transformers import AutoConfig, AutoModel\nimport growclip_ds",
        "from growclip_ds.hub.modeling_growclip import GrowCLIPModel",  # whose imports import the Auto classes
        "import growclip_ds\nfrom transformers import CLIPTextModel",  # which imports them from within a model
        "import growclip_ds\nimport transformers.modeling_layers",
        "import growclip_ds\nfrom transformers import AutoImageProcessor, pipeline",
    ],
    ids=["growclip_ds", "transformers", "the model", "a CLIP", "layers", "the rest"],
)
def test_in_any_order(first: str) -> None:
    done = subprocess.run([sys.executable, "-c", first + KNOWN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
