"""Small runs of the whole pipeline, for tests: scenes, a configuration, and a function that ranks can be given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from growclip_ds.config import load_config
from growclip_ds.data.scenes.write import write_scenes
from growclip_ds.deepspeed_config import load_deepspeed_config, resolve
from growclip_ds.distributed import world_size
from growclip_ds.pipeline import prepare_growth

SUBSET = 48  # pairs of a subset
STEPS = 2


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


def grow(data: Path, run: Path, stage: int = 2, step: int | None = None, overrides: tuple[str, ...] = ()) -> Any:
    """Runs growth steps; for all ranks of a group."""
    config = load_config(data / "config.yaml", overrides)
    deepspeed = resolve(load_deepspeed_config(data / f"zero{stage}.json"), config, world_size())
    prepare_growth(config, deepspeed, run, step).run()
