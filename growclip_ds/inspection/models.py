"""The contents of a checkpoint, or of a model in Hugging Face format, as plain values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from growclip_ds.architecture import Architecture, ModelSizes, Shape
from growclip_ds.checkpoint.checkpoint import Checkpoint
from growclip_ds.checkpoint.exported import ExportedModel
from growclip_ds.model.spec import ModelSpec
from growclip_ds.run.records import record_so_far


@dataclass(frozen=True)
class Model:
    """A model, as described next to its weights.

    Attributes:
        kind: `growclip` or `clip`.
        architecture: the model's architecture.
        sizes: sizes of its input and embedding space.
        widths: channels of its image and text encoders.
        parts: number of parameters of each part of the model, without the temperature.
    """

    kind: str
    architecture: Architecture
    sizes: ModelSizes
    widths: tuple[int, int]
    parts: dict[str, int]

    @classmethod
    def of(cls, spec: ModelSpec) -> Model:
        architecture, shapes = spec.architecture, dict(spec.shapes)
        widths = (architecture.image_width, architecture.text_width)
        if spec.kind == "clip":  # heads of other CLIPs need not have 64 channels
            widths = (shapes["visual_projection.weight"][1], shapes["text_projection.weight"][1])
        return cls(spec.kind, architecture, spec.sizes, widths, _parts(shapes))

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "architecture": asdict(self.architecture),
            "sizes": asdict(self.sizes),
            "parameters": self.parameters,
            "parts": self.parts,
        }


@dataclass(frozen=True)
class Inspected:
    """A checkpoint, or a model in Hugging Face format.

    Attributes:
        folder: its folder.
        model: the model whose weights it holds.
        growth_step, phase: the growth step and phase that wrote it; None if it does not say.
        iterations: iterations of the phase that were done; None if no phase wrote it.
        tensors: number of tensors, optimizer moments included.
        bytes: size of the tensor files.
        has_checksums: whether the format has checksums.
        verified: whether every tensor was read and, where there are checksums, compared with its own.
    """

    folder: Path
    model: Model
    growth_step: int | None
    phase: str | None
    iterations: int | None
    tensors: int
    bytes: int
    has_checksums: bool
    verified: bool

    def to_json(self) -> dict[str, Any]:
        values = {"folder": str(self.folder), "model": self.model.to_json(), "growth_step": self.growth_step}
        values |= {"phase": self.phase, "iterations": self.iterations, "tensors": self.tensors}
        return values | {"bytes": self.bytes, "has_checksums": self.has_checksums, "verified": self.verified}


def inspect_checkpoint(folder: Path, verify: bool) -> Inspected:
    """Inspects a checkpoint. Raises what `Checkpoint` does."""
    checkpoint = Checkpoint(folder)
    spec = checkpoint.spec
    if verify:
        checkpoint.verify()
    description = checkpoint.description
    return Inspected(
        folder=folder,
        model=Model.of(spec),
        growth_step=description.get("growth_step"),
        phase=description.get("phase"),
        iterations=iterations_of(checkpoint),
        tensors=len(checkpoint.names),
        bytes=_bytes(folder),
        has_checksums=True,
        verified=verify,
    )


def inspect_exported(folder: Path, verify: bool) -> Inspected:
    """Inspects an exported GrowCLIP. Raises what `ExportedModel` does."""
    model = ExportedModel(folder)
    for name in model.names if verify else ():
        model.read(name)
    step = model.description.get("growth_step")
    return _hugging_face(folder, model.spec, step, verify)


def inspect_clip(folder: Path, verify: bool) -> Inspected:
    """Inspects a CLIP in Hugging Face format. Raises what `load_clip` does."""
    from growclip_ds.baselines.clip_checkpoint import load_clip, outline_clip  # `transformers` is slow to import
    from growclip_ds.baselines.spec import CLIPSpec

    return _hugging_face(folder, CLIPSpec((load_clip if verify else outline_clip)(folder).config), None, verify)


def _hugging_face(folder: Path, spec: ModelSpec, step: int | None, verify: bool) -> Inspected:
    return Inspected(
        folder=folder,
        model=Model.of(spec),
        growth_step=step,
        phase=None,
        iterations=None,
        tensors=len(spec.shapes),
        bytes=_bytes(folder),
        has_checksums=False,
        verified=verify,
    )


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.suffix == ".safetensors")


def _parts(shapes: dict[str, Shape]) -> dict[str, int]:
    """Counts parameters by part of a model, in its order, without the temperature.

    The layers of a stack are one part; other parts go by the beginning of their names.
    """
    counts: dict[str, int] = {}
    for name, shape in shapes.items():
        if name != "logit_scale":
            part = _part(name)
            counts[part] = counts.get(part, 0) + math.prod(shape)
    return counts


def _part(name: str) -> str:
    pieces = name.split(".")
    for place, piece in enumerate(pieces):
        if piece.isdecimal():  # a layer of this stack
            stack = pieces[:place]
            return ".".join(stack[:2] if stack[1:2] == ["stem"] else stack)
    return ".".join(pieces[: 1 if len(pieces) <= 2 or pieces[0].endswith("head") else 2])


def iterations_of(checkpoint: Checkpoint) -> int | None:
    """Iterations that the phase of a checkpoint had done; None for weights that no phase wrote."""
    if "resume" in checkpoint.description:
        return checkpoint.description["resume"]["iteration"]
    record = record_so_far(checkpoint)
    return None if record is None else record.iterations
