"""Kernels need torch and Triton alone, and so do their tests, but for the one that trains with them."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("deepspeed") and find_spec("fairscale") else ["test_in_training.py"]
