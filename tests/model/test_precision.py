from __future__ import annotations

import os
import subprocess
import sys


def test_fp32_is_not_tf32_where_containers_turn_it_on() -> None:
    """As in NVIDIA's; in a process of its own, as torch reads the variable once. Warnings are errors."""
    script = (
        "import torch\n"
        "before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32\n"
        "from growclip_ds.model.precision import use_full_fp32\n"
        "use_full_fp32()\n"
        "print(*before, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)"
    )
    alone = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script], env=alone, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "True", "False", "False"], done.stderr
