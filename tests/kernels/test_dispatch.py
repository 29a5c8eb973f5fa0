"""Which path computes, who decides, and that it is said once."""

from __future__ import annotations

import logging

import pytest
import torch

from growclip_kernels import dispatch

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def _undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch._choose.cache_clear()
    monkeypatch.delenv("GROWCLIP_KERNELS", raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked about a GPU, torch tells of an A100, and Triton of nothing that is missing."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(dispatch, "_require_launcher", lambda: None)


def test_the_cpu_takes_pytorch():
    assert not dispatch.uses_triton(CPU)


@pytest.mark.usefixtures("nvidia")
def test_a_gpu_takes_triton_unless_told_otherwise(monkeypatch):
    assert dispatch.uses_triton(GPU)
    monkeypatch.setenv("GROWCLIP_KERNELS", "torch")
    assert not dispatch.uses_triton(GPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton finds a GPU here")
def test_what_triton_lacks_is_said_before_the_first_launch(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(RuntimeError, match=r"cannot launch kernels on this machine: .*GROWCLIP_KERNELS=torch"):
        dispatch.uses_triton(GPU)
    monkeypatch.setenv("GROWCLIP_KERNELS", "torch")
    assert not dispatch.uses_triton(GPU)


@pytest.mark.usefixtures("nvidia")
def test_the_interpreter_is_not_for_a_gpu(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not dispatch.uses_triton(GPU)


@pytest.mark.usefixtures("nvidia")
def test_a_gpu_too_old_takes_pytorch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not dispatch.uses_triton(GPU)
    monkeypatch.setenv("GROWCLIP_KERNELS", "triton")
    with pytest.raises(ValueError, match=r"cuda:0 has compute capability 7.5, and the kernels need 8.0; unset it"):
        dispatch.uses_triton(GPU)


def test_other_devices_take_pytorch(monkeypatch):
    assert not dispatch.uses_triton(torch.device("mps"))
    monkeypatch.setattr(torch.version, "cuda", None)  # as in ROCm's build, whose devices are called cuda too
    assert not dispatch.uses_triton(GPU)


def test_forced_on_the_cpu_wants_the_interpreter(monkeypatch):
    monkeypatch.setenv("GROWCLIP_KERNELS", "triton")
    with pytest.raises(ValueError, match="GROWCLIP_KERNELS=triton, but the tensors are on the CPU"):
        dispatch.uses_triton(CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.uses_triton(CPU)


def test_the_interpreter_is_never_chosen(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not dispatch.uses_triton(CPU)


def test_a_word_it_does_not_know(monkeypatch):
    monkeypatch.setenv("GROWCLIP_KERNELS", "cuda")
    with pytest.raises(ValueError, match="GROWCLIP_KERNELS is 'cuda': set it to 'torch' or 'triton'"):
        dispatch.uses_triton(CPU)


def test_logged_once(caplog):
    with caplog.at_level(logging.INFO, "growclip_kernels"):
        for _ in range(3):
            dispatch.uses_triton(CPU)
    assert [record.getMessage() for record in caplog.records] == [
        "kernels on cpu: PyTorch (the tensors are on the CPU)"
    ]


def test_without_triton_installed(monkeypatch):
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert not dispatch.uses_triton(CPU)
    monkeypatch.setenv("GROWCLIP_KERNELS", "triton")
    with pytest.raises(ValueError, match="Triton is not installed"):
        dispatch.uses_triton(CPU)
