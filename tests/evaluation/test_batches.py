"""How a rank decodes its share, and what it reports meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from growclip_ds.data import worker_processes
from growclip_ds.evaluation import batches, load_evaluation_set
from tests.evaluation import sets


@pytest.mark.parametrize(("processors", "ranks", "threads"), [(1, 1, 4), (48, 1, 16), (64, 8, 8), (8, 8, 4)])
def test_threads_follow_the_processors(
    processors: int, ranks: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_processes, "processors", lambda: processors)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    pools, pool = [], batches.ThreadPoolExecutor
    monkeypatch.setattr(batches, "ThreadPoolExecutor", lambda threads: pools.append(threads) or pool(threads))
    dataset = load_evaluation_set(sets.write_classification_set(tmp_path / "things", [0, 1], [2]))
    list(batches.batches(dataset, sets.SIZE, 2))
    assert pools == [threads]
