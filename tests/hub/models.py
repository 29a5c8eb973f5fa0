"""Models and a run to export, and the models that must have the same features."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.data.subsets import Subset, write_subsets
from growclip_ds.model.growclip import GrowCLIP
from growclip_ds.results import ClassificationResult, RetrievalResult
from tests.evaluation.models import tokenizer, write_run
from tests.records import phase_record

ARCHITECTURES = [
    Architecture(0, 1, 1, 1, 1, 0),
    Architecture(2, 2, 2, 1, 1, 2),  # the image stream is the wider one, with a shared encoder,
    Architecture(1, 1, 1, 2, 2, 1),  # the text stream,
    Architecture(1, 0, 3, 1, 2, 0),  # and without one
]
CONTEXT = 12


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights in which no norm or bias is at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def growclip(architecture: Architecture, image_size: int = 32) -> GrowCLIP:
    """A model of the small tokenizer's captions."""
    words = tokenizer()
    torch.manual_seed(0)
    sizes = ModelSizes(words.vocab_size, CONTEXT, image_size, embed_dim=24)
    model = GrowCLIP(architecture, **asdict(sizes), end_of_text=words.end_of_text)
    return randomised(model)


def pictures(count: int, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def captions_of_all_lengths(end_of_text: int, width: int = CONTEXT) -> Tensor:
    """(width, width) ids: row i ends at i, and has anything after that, another end of text too."""
    rows = torch.randint(0, end_of_text, (width, width), generator=torch.Generator().manual_seed(2))
    rows[torch.arange(width), torch.arange(width)] = end_of_text
    rows[0, width - 1] = end_of_text
    return rows


RESULTS = [
    ClassificationResult("things", samples=27, top1=31.4159, top5=71.0, mean_per_class=29.5),
    ClassificationResult("others", samples=1500, top1=11.0, top5=31.0, mean_per_class=12.0),
    RetrievalResult("pairs", 11, 22, {1: 9.1, 5: 45.5, 10: 90.9}, {1: 4.5, 5: 22.7, 10: 45.5}),
]


def write_recorded_run(folder: Path, steps: int = 2) -> Path:
    """A run whose growth steps are trained and evaluated, with its data."""
    write_run(folder, steps)
    write_subsets(
        [Subset(f"subset {n}", f"secret/place/{n}", 1000 * n) for n in range(1, steps + 2)], folder / "data.yaml"
    )
    for step in range(1, steps + 1):
        architecture = Architecture(1, 1, 1, 1, step, 1)
        samples, parameters = 1000 * step * (step + 1) // 2, 100_000 * step
        record = phase_record(
            step, samples=samples, parameters=parameters, architecture=architecture, evaluation=RESULTS
        )
        (folder / f"step_{step}" / "train" / "phase.json").write_text(json.dumps(record.to_json()))
    return folder
