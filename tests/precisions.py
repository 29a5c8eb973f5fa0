"""Precisions that DeepSpeed trains in on this machine: not every CPU has fp16."""

from __future__ import annotations

import pytest
import torch
from deepspeed.accelerator import get_accelerator

HAS_FP16 = torch.float16 in get_accelerator().supported_dtypes()
LOW_PRECISIONS = ["bf16"] + ["fp16"] * HAS_FP16
needs_fp16 = pytest.mark.skipif(not HAS_FP16, reason="this CPU has no fp16 in PyTorch")
