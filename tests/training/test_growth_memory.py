"""What growing takes beyond the engine it ends in, with the paper's largest model at ZeRO 3. Slow: a minute."""

from __future__ import annotations

import math
import re
import threading
import time
from pathlib import Path

import pytest

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.checkpoint.checkpoint import Checkpoint, owners, write_checkpoint
from growclip_ds.distributed import rank, world_size
from growclip_ds.growth.inheritance import PIM, inherited_tensors
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.model.initial import initial_tensor
from growclip_ds.model.spec import GrowCLIPSpec
from growclip_ds.optim import Lamb
from growclip_ds.training.engine import Engine
from tests.group import Groups

# The largest tensor, the token embedding, does not grow: its old and new form are as large as can be.
OLD, S4 = Architecture(4, 14, 9, 9, 8, 6), Architecture(6, 18, 10, 10, 8, 8)
CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_clipping": 0.0,
    "zero_optimization": {"stage": 3},
}


def resident() -> int:
    """Bytes of memory of this process's own: not of mapped files, whose pages the system takes back when it likes."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


class Peak:
    """The most resident memory while the context is open, looked at every half a millisecond."""

    def __enter__(self) -> Peak:
        self.bytes = resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            self.bytes = max(self.bytes, resident())
            time.sleep(0.0005)


def write_old(folder: str) -> None:
    shapes = OLD.parameter_shapes(ModelSizes())
    owner = owners(shapes, world_size())
    tensors = ((n, initial_tensor(n, s, OLD, 0) if owner[n] == rank() else None) for n, s in shapes.items())
    write_checkpoint(folder, tensors, shapes, owner.__getitem__, GrowCLIPSpec(OLD, ModelSizes(), 49407).describe())


def grow(folder: str) -> dict[str, float]:
    """Builds S4's engine and fills it with what it inherits; memory in units of its largest tensor."""
    shapes = S4.parameter_shapes(ModelSizes())
    largest = 4 * max(map(math.prod, shapes.values()))
    before = resident()
    with Peak() as build:
        engine = Engine(lambda: GrowCLIP(S4, initialise=False), lambda named: Lamb([p for _, p in named]), CONFIG)
    checkpoint = Checkpoint(folder)

    def weights():
        return inherited_tensors(OLD, S4, ModelSizes(), checkpoint.read, PIM(), seed=0)

    with Peak() as first:
        engine.load_masters(weights())
    filled = resident()
    with Peak() as second:  # when all of the engine's memory has been written once
        engine.load_masters(weights())
    engine.destroy()
    return {
        "engine": (filled - before) / largest,
        "build": (build.bytes - filled) / largest,
        "first": (first.bytes - filled) / largest,
        "second": (second.bytes - filled) / largest,
        "largest_mib": largest / 2**20,
    }


@pytest.mark.slow
def test_growing_takes_two_tensors_beyond_the_engine(group: Groups, tmp_path: Path) -> None:
    group(2).run(write_old, str(tmp_path / "old"))
    group(2).close()  # new processes: nothing that they freed is used again
    for of_rank, result in enumerate(group(2).run(grow, str(tmp_path / "old"), limit=600)):
        print(f"\nrank {of_rank}: " + ", ".join(f"{name} {value:.2f}" for name, value in result.items()))
        for phase in ("build", "first", "second"):
            assert result[phase] < 2.05, phase  # blending takes a quarter of a million elements more
        assert result["second"] > 1.5  # which it would not be if it were not seen
