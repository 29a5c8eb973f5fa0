"""Small runs of the whole pipeline, for tests: scenes, a configuration, and a function that ranks can be given."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.config.config import load_config
from growclip_ds.config.deepspeed import load_deepspeed_config, resolve
from growclip_ds.data.scenes.write import write_scenes
from growclip_ds.distributed import rank, world_size
from growclip_ds.growth.phases import Phase
from growclip_ds.pipeline.pipeline import prepare_growth
from growclip_ds.run.folder import RunFolder
from growclip_ds.signals import Stopped, StopRequest

SUBSET = 48  # pairs of a subset
STEPS = 2


def phases(step: int) -> list[Phase]:
    """The phases of a growth step, where nothing is left out."""
    return [Phase.TRAIN] if step == 1 else [Phase.FINETUNE, Phase.SELECTION, Phase.TRAIN]


PHASES = [(step, phase) for step in range(1, STEPS + 1) for phase in phases(step)]
TIMES = {"seconds": 0.0, "device_seconds": 0.0}  # what of a phase's record differs from run to run


def read_weights(run: RunFolder, step: int, phase: Phase) -> dict[str, Tensor]:
    checkpoint = Checkpoint(run.weights(step, phase))
    return {name: checkpoint.read(name) for name in checkpoint.names}


def assert_same_weights(run: RunFolder, other: RunFolder, phases: Sequence[tuple[int, Phase]] = PHASES) -> None:
    """To the bit."""
    for place in phases:
        ours, theirs = read_weights(run, *place), read_weights(other, *place)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), place


def write_data(folder: Path, steps: int = STEPS) -> Path:
    """Subsets and three evaluation sets of scenes, and DeepSpeed files and a configuration for them."""
    write_scenes(folder / "scenes", samples=SUBSET * steps, subsets=steps, seed=0, size=32, eval_samples=64)
    config = {
        "model": {
            "base": {"conv_layers": 0, "image_blocks": 1, "image_heads": 1, "text_blocks": 1, "text_heads": 1},
            "image_size": 32,
            "context_length": 16,
            "embed_dim": 16,
        },
        "growth": {"conv_step": 1, "block_step": 1, "head_step": 1},
        "epochs": {"first": 2, "supernet": 1, "selection": 1, "selected": 2},
        "data": {
            "subsets": [
                {"name": f"s{step}", "shards": str(folder / f"scenes/train/subset_{step}")}
                for step in range(1, steps + 1)
            ],
            "tokenizer": {"vocab_size": 300},
            "workers": 0,
        },
        "training": {"global_batch_size": 16, "learning_rate": 0.005},
        "selection": {"dataset": str(folder / "scenes/eval/scenes_selection")},
        "evaluation": {
            "datasets": [str(folder / "scenes/eval/scenes_objects"), str(folder / "scenes/eval/scenes_retrieval")]
        },
        "monitoring": {"log_every": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for stage in (1, 2, 3):
        (folder / f"zero{stage}.json").write_text(
            json.dumps({"gradient_clipping": 0.0, "zero_optimization": {"stage": stage}})
        )
    return folder


def grow(data: Path, run: Path, stage: int | str = 2, step: int | None = None, overrides: tuple[str, ...] = ()) -> Any:
    """Runs growth steps; for all ranks of a group."""
    config = load_config(data / "config.yaml", overrides)
    deepspeed = resolve(load_deepspeed_config(data / f"zero{stage}.json"), config, world_size())
    prepare_growth(config, deepspeed, run, step).run()


class StopAfter(StopRequest):
    """One rank alone is asked to stop, after the ranks have agreed so many times."""

    def __init__(self, looks: int, only_rank: int) -> None:
        self._looks, self._only_rank = looks, only_rank

    @property
    def requested(self) -> bool:
        self._looks -= 1
        return self._looks < 0 and rank() == self._only_rank


def grow_until(
    data: Path, run: Path, looks: int, stage: int | str = 2, step: int | None = None, overrides: tuple[str, ...] = ()
) -> bool:
    """Runs growth steps until asked to stop; returns whether the run is done."""
    config = load_config(data / "config.yaml", overrides)
    deepspeed = resolve(load_deepspeed_config(data / f"zero{stage}.json"), config, world_size())
    torch.manual_seed(rank() + looks)  # what is drawn from torch's own generator decides nothing
    stop = StopAfter(looks, only_rank=world_size() - 1)
    # TensorBoard sorts its files by name: by second, then by a number without zeros.
    if list(run.glob(f"tensorboard/*/events.out.tfevents.{int(time.time())}.*")):
        time.sleep(1 - time.time() % 1)
    try:
        prepare_growth(config, deepspeed, run, step, stop=stop).run()
    except Stopped:
        return False
    return True
