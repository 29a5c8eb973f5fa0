"""The watch over the ranks at the level of its store; whole runs that fail are in tests/faults."""

from __future__ import annotations

import time
from unittest import mock

import pytest
import torch.distributed as dist

from growclip_ds.distributed import watchdog
from growclip_ds.distributed.watchdog import StoreWatchdog
from growclip_ds.errors import InputError


class Ended(BaseException):
    pass


def test_a_failure_ends_with_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `torchrun --max-restarts` the ranks find the store of the last start."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(watchdog, "PERIOD", 0.05)
    monkeypatch.setattr(watchdog, "LINGER", 0.2)
    with mock.patch.object(watchdog, "_exit", side_effect=Ended) as ended:
        first = StoreWatchdog(60.0)
        with pytest.raises(Ended):
            first.fail(InputError("a reason"))
        assert ended.called
    with mock.patch.object(watchdog, "_exit") as ended:
        first.close()
        ended.reset_mock()
        again = StoreWatchdog(60.0)
        time.sleep(0.5)
        again.close()
        assert not ended.called
