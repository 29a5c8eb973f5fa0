"""Checkpoints within a phase: when they are due, how they are written, which one to resume from.

A checkpoint holds the fp32 masters under the parameters' names, the moments as `exp_avg/NAME` and `exp_avg_sq/NAME`,
and the rest of the training state in its description, under `resume`. Learning rates, sampled subnets and the order of
the data are functions of the configuration and the iteration, so there is no random state to save.
"""

from __future__ import annotations

import copy
import math
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from growclip_ds.architecture import Shape
from growclip_ds.checkpoint.checkpoint import Checkpoint, DamagedError, owners
from growclip_ds.checkpoint.writing import CheckpointWriting
from growclip_ds.config.sections import CheckpointSection
from growclip_ds.distributed import all_gather_object, is_main, on_every_rank, on_main, rank, world_size
from growclip_ds.errors import InputError
from growclip_ds.monitor import CheckpointCost, Monitor
from growclip_ds.optim.subnet import MOMENTS
from growclip_ds.training.engine import Engine
from growclip_ds.training.free_memory import available_memory

MOST_OF_MEMORY = 0.5  # share of the available memory for the copies that are written in the background
SECOND_TRY = 2.0  # seconds before a checkpoint that could not be read is retried, once


def newest_good(folder: Path, note: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint of a phase that is intact to the last byte; None if the phase has none. Collective.

    Checkpoints that prove damaged are reported and renamed to `damaged_…`.

    Raises:
        InputError: on every rank, if a checkpoint cannot be read or is of another version (which is not damage), or if
            all are damaged. Nothing is removed.
    """
    for path in on_main(lambda: _listed(folder, "iteration_")):
        checkpoint, damage = on_every_rank(partial(_verified, path))
        damages = [found for found in all_gather_object(damage) if found is not None]
        if not damages:
            return checkpoint
        note(f"skipping a damaged checkpoint: {damages[0]}")
        on_main(partial(_rename_damaged, path))
    if damaged := on_main(lambda: _listed(folder, "damaged_")):
        raise InputError(
            f"{folder}: all checkpoints are damaged ({', '.join(path.name for path in damaged)}), so the phase would "
            "restart from its beginning; restore an intact one as iteration_…, or, to restart the phase, remove this "
            "folder or move it out of the run"
        )
    return None


def load_engine(engine: Engine, checkpoint: Checkpoint) -> None:
    """Restores the optimizer state and loss scale; the masters are loaded already. Collective."""
    resume = checkpoint.description["resume"]
    for moment in MOMENTS:
        engine.load_moments(moment, ((name, checkpoint.read(f"{moment}/{name}")) for name in resume["steps"]))
    engine.optimizer.steps.update(resume["steps"])
    if engine.loss_scale is not None and resume["loss_scale"] is not None:
        engine.loss_scale = resume["loss_scale"]


class CheckpointKeeper:
    """Writes the checkpoints of a phase during its training. Methods are collective unless they say otherwise.

    In the background, a thread writes a copy of the tensors that this rank owns. The ranks exchange `is_written` in the
    trainer's all-reduce, so that a checkpoint is published at the same iteration on all of them.

    Args:
        folder: folder of the phase's checkpoints.
        section: the `checkpoint` section of the configuration.
        engine: the engine that trains the model.
        shapes: shape of every parameter by name.
        describe: makes the description of a checkpoint taken now, without the engine's state; collective.
        monitor: receives the time that checkpoints cost.
    """

    def __init__(
        self,
        folder: Path,
        section: CheckpointSection,
        engine: Engine,
        shapes: Mapping[str, Shape],
        describe: Callable[[], dict[str, Any]],
        monitor: Monitor,
    ) -> None:
        self.folder, self.section, self.engine, self.monitor = folder, section, engine, monitor
        self._describe = describe
        self._shapes = {
            name if kind is None else f"{kind}/{name}": shape
            for kind in (None, *MOMENTS)
            for name, shape in shapes.items()
        }
        self._owners = owners(self._shapes, world_size())
        self._writing: CheckpointWriting | None = None
        self._iteration = 0
        self._start = self._last = time.monotonic()
        self._waited = self._waited_before = 0.0
        self._background = section.background and self._is_room()

    @property
    def is_due_by_clock(self) -> bool:
        """Whether `every_minutes` have passed by rank 0's clock; False on other ranks. Not collective."""
        minutes = self.section.every_minutes
        return is_main() and minutes is not None and time.monotonic() - self._last >= 60 * minutes

    def is_due(self, iteration: int) -> bool:
        """Whether a checkpoint is due after this many iterations, by `every_iterations`. Not collective."""
        return self.section.every_iterations is not None and iteration % self.section.every_iterations == 0

    @property
    def is_written(self) -> bool:
        """Whether this rank has written its part of a checkpoint that is not published yet. Not collective."""
        return self._writing is not None and self._writing.is_written

    def write(self, iteration: int, now: bool = False) -> None:
        """Writes a checkpoint, in the background if possible.

        Args:
            iteration: number of finished iterations of the phase.
            now: whether the checkpoint must be on disk when this returns.

        Raises:
            InputError: on every rank, if this checkpoint or the one before it cannot be written.
        """
        self.publish()
        start = self._last = time.monotonic()
        self._iteration = iteration
        self.monitor.flush()  # the resumed phase continues these curves
        description = copy.deepcopy(self._describe())  # training continues before it is on disk
        description["resume"] |= {
            "iteration": iteration,
            "steps": dict(self.engine.optimizer.steps),
            "loss_scale": self.engine.loss_scale,
        }
        self._writing = CheckpointWriting(
            self.folder / f"iteration_{iteration:09d}", self._shapes, self._owners.__getitem__, description
        )
        if self._background and not now:
            self._writing.start(_taken([(name, tensor) for name, tensor in self._tensors() if tensor is not None]))
        else:
            self._writing.write(self._tensors())
        self._waited += time.monotonic() - start
        if not self._background or now:
            self.publish()

    def publish(self) -> None:
        """Publishes the checkpoint that is being written, if any, after waiting for its files.

        Raises:
            InputError: on every rank, if it cannot be written.
        """
        if self._writing is None:
            return
        start = time.monotonic()
        writing, self._writing = self._writing, None
        writing.publish()
        on_main(self._prune)
        now = time.monotonic()
        self._waited += now - start
        waited = self._waited - self._waited_before
        self._waited_before = self._waited
        share = self._waited / (now - self._start)
        self.monitor.checkpoint(CheckpointCost(self._iteration, waited, writing.seconds, share))

    def _tensors(self) -> Iterator[tuple[str, Tensor | None]]:
        """Yields all tensors of a checkpoint, one at a time: the full tensor on its owner, None elsewhere."""
        yield from self.engine.masters(self._owners.__getitem__)
        for moment in MOMENTS:
            for name, tensor in self.engine.moments(moment, partial(self._owner_of_moment, moment)):
                yield f"{moment}/{name}", tensor

    def _owner_of_moment(self, moment: str, name: str) -> int:
        return self._owners[f"{moment}/{name}"]

    def _is_room(self) -> bool:
        """Whether every machine has enough free memory for its ranks' copies."""
        mine = sum(4 * math.prod(shape) for name, shape in self._shapes.items() if self._owners[name] == rank())
        needed: Counter[str] = Counter()
        available: dict[str, int] = {}
        for machine, need, there in all_gather_object((socket.gethostname(), mine, available_memory())):
            needed[machine] += need
            available[machine] = there
        return all(need <= MOST_OF_MEMORY * available[machine] for machine, need in needed.items())

    def _prune(self) -> None:
        """Removes old checkpoints, and those that interrupted runs left half removed or half written.

        Damaged checkpoints are kept until there are `keep_last` good ones.
        """
        good = sorted(self.folder.glob("iteration_*"), reverse=True)
        for path in good[self.section.keep_last :]:
            path.replace(path.with_name(f".{path.name}.removed"))  # half removed, it is no checkpoint
        for pattern in (".iteration_*", *["damaged_*"] * (len(good) >= self.section.keep_last)):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)


def _listed(folder: Path, prefix: str) -> list[Path]:
    """The folder's entries with this prefix, last first. Not by `glob`, which takes errors for an empty folder."""
    try:
        found = list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}; check its disk") from error
    return sorted((path for path in found if path.name.startswith(prefix)), reverse=True)


def _verified(path: Path) -> tuple[Checkpoint | None, str | None]:
    """The checkpoint, after this rank has read its share of the tensors, or None and a description of the damage."""
    try:
        try:
            return _read_share(path), None
        except InputError as error:
            if not isinstance(error.__cause__, OSError):
                raise
        time.sleep(SECOND_TRY)  # the retry opens a new file handle, in case the old one was stale
        return _read_share(path), None
    except DamagedError as error:
        return None, str(error)


def _read_share(path: Path) -> Checkpoint:
    checkpoint = Checkpoint(path)
    for name in checkpoint.names[rank() :: world_size()]:
        checkpoint.read(name)
    if "resume" not in checkpoint.description:
        raise InputError(f"{path} holds only weights, without the training state to resume from; move it elsewhere")
    return checkpoint


def _rename_damaged(path: Path) -> None:
    damaged = path.with_name(f"damaged_{path.name}")
    shutil.rmtree(damaged, ignore_errors=True)
    path.replace(damaged)


def _taken(tensors: list[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors from the end of the list, each freed when the next one is requested."""
    while tensors:
        yield tensors.pop()
