from __future__ import annotations

import pytest
import torch

from growclip_ds.errors import InputError
from growclip_ds.evaluation.subject import choose_device


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("name", "accelerator", "expected"),
    [
        ("auto", "", "cuda:1"),
        ("auto", "cpu", "cpu"),  # the ranks' process group is gloo's, which cannot reduce a GPU's tensors
        ("cuda", "cpu", "cuda:1"),
        ("cpu", "", "cpu"),
    ],
)
def test_the_device(name: str, accelerator: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    assert choose_device(name, local_rank=1) == torch.device(expected)


def test_more_ranks_than_gpus() -> None:
    with pytest.raises(InputError, match="no GPU for rank 2 of this machine, which has 2: start fewer ranks"):
        choose_device("cuda", local_rank=2)
