"""A small trained-looking model in a run's folder, with its tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from growclip_ds.architecture import Architecture
from growclip_ds.checkpoint.checkpoint import save_model
from growclip_ds.data.tokens import Tokenizer, train_tokenizer
from growclip_ds.model.growclip import GrowCLIP
from tests.evaluation import sets

TEXTS = [template.replace("{c}", name) for template in sets.TEMPLATES for name in sets.CLASS_NAMES]


def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300, 24)


def write_model(folder: Path, seed: int = 0, **description: int) -> Path:
    """A checkpoint of random weights, which depend on the seed."""
    words = tokenizer()
    torch.manual_seed(seed)
    model = GrowCLIP(
        Architecture(1, 1, 1, 1, 2, 1),
        vocab_size=words.vocab_size,
        context_length=24,
        image_size=16,
        embed_dim=32,
        end_of_text=words.end_of_text,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_model(model, folder, **description)
    return folder


def write_run(folder: Path, steps: int) -> Path:
    """A run as far as evaluation looks at it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(
        "data: {subsets: [{name: s, shards: x}], tokenizer: {vocab_size: 300}}\n"
        f"evaluation: {{datasets: ['{folder}/../things']}}\n"
    )
    tokenizer().save(folder / "tokenizer")
    for step in range(1, steps + 1):
        write_model(folder / f"step_{step}" / "train" / "weights", seed=step, growth_step=step)
    return folder
