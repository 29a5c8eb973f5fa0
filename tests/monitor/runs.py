"""What a monitor is told of a small run, phase by phase, as the pipeline tells it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace

from growclip_ds import Architecture, GrowthSpace
from growclip_ds.architecture import ModelSizes
from growclip_ds.config.config import Config
from growclip_ds.growth.phases import Phase
from growclip_ds.growth.selection import Candidate
from growclip_ds.model.spec import GrowCLIPSpec
from growclip_ds.monitor import Monitor, reports
from growclip_ds.run.folder import RunFolder
from tests.records import classified, phase_record, retrieved

SIZES = ModelSizes(vocab_size=1000, context_length=77, image_size=64, embed_dim=64)
BASE = Architecture(0, 1, 1, 1, 1, 0)
SPEC = GrowCLIPSpec(BASE, SIZES, 999)
SETS = ("scenes_objects", "scenes_retrieval")


@dataclass(frozen=True)
class Progress(reports.Progress):
    loss: float = 3.2142
    learning_rate: float = 0.01
    logit_scale: float = 14.3
    gradient_norm: float = 1.5
    skipped: int = 0
    loss_scale: float | None = None
    samples: int = 5123
    seconds: float = 10.0
    data_wait_share: float = 0.02


def config(steps: int = 2) -> Config:
    subsets = [{"name": f"s{i}", "shards": f"shards/{i}"} for i in range(steps)]
    return Config.model_validate(
        {
            "model": {"base": dict(BASE.items()), "image_size": 64, "embed_dim": 64},
            "growth": {"conv_step": 1, "block_step": 1, "head_step": 1},
            "data": {"subsets": subsets, "tokenizer": {"vocab_size": 1000}},
            "selection": {"dataset": "eval/scenes_selection"},
        }
    )


def candidates(base: Architecture = BASE) -> list[Candidate]:
    """All 64, best first: the one that grows in image blocks and text heads."""
    chance = random.Random(0)
    rows = []
    for architecture in GrowthSpace(base, 1, 1, 1):
        parameters, accuracy = SIZES.parameters_of(architecture), 30 + 5 * chance.random()
        rows.append(Candidate(architecture, parameters, accuracy, accuracy + 0.4))
    best = Candidate(Architecture(0, 2, 1, 1, 2, 0), 1_234_567, 41.234, 41.987)
    others = [row for row in rows if row.architecture != best.architecture]
    return [best, *sorted(others, key=lambda row: -row.metric)]


def run_phase(
    monitor: Monitor, folder: RunFolder, step: int, phase: Phase, architecture: Architecture, stop: int = 40
) -> None:
    """A phase of 40 iterations, reported every 10, as the pipeline tells it; interrupted after `stop`."""
    first = folder.iterations_before(step, phase)
    monitor.start_phase(step, phase, GrowCLIPSpec(architecture, SIZES, 999), 40, first)
    for done in range(10, stop + 1, 10):
        monitor.progress(Progress(done, 40, loss=5 - (first + done) / 100))
    if stop < 40:
        return
    record = phase_record(step, phase, samples=3000 * step, architecture=architecture, iterations=40)
    if phase is Phase.SELECTION:
        ranked = candidates()
        monitor.selection(step, ranked)
        record = replace(record, selection_set="scenes_selection", candidates=ranked)
    if phase is Phase.TRAIN:
        accuracy = 20.0 + 10 * step
        results = (classified(SETS[0], accuracy), retrieved(SETS[1], accuracy))
        monitor.evaluation(step, results)
        record = replace(record, evaluation=results)
    folder.finish(record)


def wait_for_the_next_second() -> None:
    """Event files are read in the order of their names, which tell the second."""
    time.sleep(1.01 - time.time() % 1)
