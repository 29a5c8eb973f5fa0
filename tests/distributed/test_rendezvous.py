"""Ranks that start together, and some of which do not come."""

from __future__ import annotations

import datetime
import os
import socket
import time
from unittest import mock

import pytest
import torch.distributed as dist

from growclip_ds.distributed import rendezvous
from growclip_ds.errors import InputError
from tests.ranks import free_port


@pytest.mark.parametrize("agent", ["False", "True"], ids=["rank 0 has the store", "torchrun's agent has it"])
def test_others_are_waited_for_for_minutes_not_hours(agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in (place | {"TORCHELASTIC_USE_AGENT_STORE": agent}).items():
        monkeypatch.setenv(name, value)
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False) if agent == "True" else None
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(rendezvous, "JOIN_MINUTES", 0.005)
    start = time.monotonic()
    with (
        mock.patch.object(rendezvous.deepspeed, "init_distributed") as made,
        pytest.raises(InputError, match=r"not all 2 ranks connected within 0\.005 minutes"),
    ):
        rendezvous.init_distributed()
    assert time.monotonic() - start < 20
    assert not made.called
    del store


@pytest.mark.parametrize("other", ["cuda node2", "cpu node2"])
def test_a_machine_whose_gpus_are_not_found(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There DeepSpeed takes the CPU, and the backends of the two kinds of ranks would wait for each other for a day."""
    port = free_port()
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in (place | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    store.set("growclip/joined/1", other)
    monkeypatch.setattr(rendezvous, "JOIN_MINUTES", 0.1)
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(rendezvous.socket, "gethostname", lambda: "node1")
    with mock.patch.object(rendezvous.deepspeed, "init_distributed") as made:
        if other.startswith("cpu"):
            rendezvous.init_distributed()
        else:
            with pytest.raises(InputError, match=r"torch sees GPUs on other machines, but none on node1: check"):
                rendezvous.init_distributed()
    assert made.called == other.startswith("cpu")


@pytest.mark.parametrize("size", ["1", "2"])
def test_a_port_in_use(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another run on the same machine, as launchers always use the same port; not taken for ranks that are late."""
    with socket.create_server(("", 0)) as other:
        port = str(other.getsockname()[1])
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(dist, "is_initialized", lambda: False)
        monkeypatch.setattr(rendezvous.deepspeed, "init_distributed", lambda **_: dist.init_process_group("gloo"))
        with pytest.raises(InputError, match=rf"port {port} \(MASTER_PORT\) is in use on .*: pass another as"):
            rendezvous.init_distributed()


def test_one_of_many_has_to_know_which(monkeypatch: pytest.MonkeyPatch) -> None:
    """What srun starts is; the one process of a job that may start many is not."""
    joined = []
    monkeypatch.setattr(rendezvous.deepspeed, "init_distributed", lambda **_: joined.append(dict(os.environ)))
    monkeypatch.setattr(os, "environ", {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"})
    with pytest.raises(InputError, match="SLURM_STEP_NUM_TASKS says that this is one of 8 processes"):
        rendezvous.init_distributed()
    monkeypatch.setattr(os, "environ", {"SLURM_NTASKS": "8"})
    rendezvous.init_distributed()
    assert [environment["WORLD_SIZE"] for environment in joined] == ["1"]


def test_ranks_may_be_suspended_overnight(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a collective, whose timeout goes on."""
    monkeypatch.delenv("DEEPSPEED_TIMEOUT", raising=False)
    assert rendezvous.collective_limit() >= datetime.timedelta(hours=12)


@pytest.mark.parametrize("variable", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
@pytest.mark.parametrize("local_rank", ["0", "3"])
def test_a_machine_with_fewer_gpus_than_ranks(variable: str, local_rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said alike by all of its ranks, of which the first one prints it."""
    place = {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": "8", variable: "4"}
    monkeypatch.setattr(os, "environ", place)
    gpus = mock.Mock(**{"device_name.return_value": "cuda", "device_count.return_value": 2})
    monkeypatch.setattr(rendezvous, "get_accelerator", lambda: gpus)
    with pytest.raises(InputError, match=r"has 4 ranks, but torch 2\.\S+ sees 2 GPUs there: start one rank per GPU"):
        rendezvous.init_distributed()
    assert not gpus.set_device.called


def test_the_deepspeed_launchers_ranks_share_their_machine_as_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them took itself for the only one there, and all processors for its own."""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "4"}
    monkeypatch.setattr(os, "environ", place)
    monkeypatch.setattr(rendezvous.deepspeed, "init_distributed", lambda **_: None)
    rendezvous.init_distributed()
    assert place["LOCAL_WORLD_SIZE"] == "4"
