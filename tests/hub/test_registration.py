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


ALONE = "growclip_ds"  # which must not find torch imported
# Runs scripts, all at once, in forks of one interpreter that has imported what takes them the longest.
FORKS = """
import os, runpy, sys
import tokenizers, torch._dynamo
assert not {"growclip_ds", "transformers"} & set(sys.modules)
children = []
for script in sys.argv[1:]:
    child = os.fork()
    if not child:
        runpy.run_path(script)
        sys.exit()
    children.append(child)
print(*(os.waitpid(child, 0)[1] for child in children))
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """How each of them ended: a status that is 0 if well, and what was printed to standard error."""
    folder = tmp_path_factory.mktemp("scripts")
    others = [name for name in FIRST if name != ALONE]
    for number, name in enumerate(others):
        (folder / f"{number}.py").write_text(FIRST[name] + KNOWN)
    with ThreadPoolExecutor(2) as pool:
        forks = pool.submit(python, FORKS, *(str(folder / f"{number}.py") for number in range(len(others))))
        alone = python(FIRST[ALONE] + KNOWN)
    of_forks = forks.result()
    found = {name: (int(status), of_forks.stderr) for name, status in zip(others, of_forks.stdout.split(), strict=True)}
    return found | {ALONE: (alone.returncode, alone.stderr)}


@pytest.mark.parametrize("name", FIRST)
def test_in_any_order(ended: dict[str, tuple[int, str]], name: str) -> None:
    status, errors = ended[name]
    assert status == 0, errors
