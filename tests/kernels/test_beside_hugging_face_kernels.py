"""The folder `kernels/` must not be taken for Hugging Face's package of that name, which transformers looks for.

A folder with an `__init__.py` would be: the checkout comes before site-packages on the path of whatever runs in it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
METADATA = "Metadata-Version: 2.4\nName: kernels\nVersion: 0.18.2\n"

# Whatever transformers imports from it, leaving as they are the layers and functions that could be replaced.
PACKAGE = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    def stand_in(*arguments, **options):
        return lambda decorated: decorated
    return stand_in
"""

SCRIPT = """
from transformers import CLIPConfig, CLIPModel
from transformers.utils import is_kernels_available
assert is_kernels_available()
model = CLIPModel(CLIPConfig(
    text_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=50),
    vision_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32),
))
import growclip_ds, growclip_kernels
import kernels
print(type(model).__name__, kernels.__file__)
"""


def test_transformers_clip_is_imported_from_the_checkout(tmp_path):
    """With a package of the name and the metadata of 0.18.2 on the path, and the checkout before it."""
    (tmp_path / "kernels").mkdir()
    package = tmp_path / "kernels" / "__init__.py"
    package.write_text(PACKAGE)
    distribution = tmp_path / "kernels-0.18.2.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text(METADATA)
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{SCRIPT}"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split() == ["CLIPModel", str(package)], result.stderr
