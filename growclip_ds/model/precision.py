"""The precision of fp32 on GPUs."""

from __future__ import annotations

import torch


def use_full_fp32() -> None:
    """Turns TF32 off for this process's matrix multiplications and convolutions; bf16 and fp16 are unaffected.

    PyTorch's default for convolutions is TF32, and in NVIDIA's containers (`TORCH_ALLOW_TF32_CUBLAS_OVERRIDE`) also for
    matrix multiplications.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
