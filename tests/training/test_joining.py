"""Ranks that start together, and some of which do not come."""

from __future__ import annotations

import socket
import time
from unittest import mock

import pytest
import torch.distributed as dist

from growclip_ds.errors import InputError
from growclip_ds.training import engine, joining


@pytest.mark.parametrize("agent", ["False", "True"], ids=["rank 0 has the store", "torchrun's agent has it"])
def test_others_are_waited_for_for_minutes_not_hours(agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in (place | {"TORCHELASTIC_USE_AGENT_STORE": agent}).items():
        monkeypatch.setenv(name, value)
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False) if agent == "True" else None
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(joining, "JOIN_MINUTES", 0.005)
    start = time.monotonic()
    with (
        mock.patch.object(engine.deepspeed, "init_distributed") as made,
        pytest.raises(InputError, match=r"the 2 ranks did not all come within 0\.005 minutes"),
    ):
        engine.init_distributed()
    assert time.monotonic() - start < 20
    assert not made.called
    del store
