"""Checkpoints and runs as text: drawings of architectures, and tables of growth."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from growclip_ds.architecture import HEAD_WIDTH, STEM_CHANNELS
from growclip_ds.errors import InputError
from growclip_ds.files import write_bytes
from growclip_ds.inspection.models import Inspected, Model
from growclip_ds.inspection.runs import Growth, InspectedRun
from growclip_ds.monitor.tables import plain_table
from growclip_ds.monitor.words import LEGEND, NONE, SYMBOLS, duration, millions

_WIDEST = 36  # characters of the widest layer's bar
_SHOWN = 6  # tensors listed per kind


def draw(model: Model) -> str:
    """Draws a model with its inputs at the bottom: one bar per stack of layers, as wide as it has channels."""
    architecture, sizes = model.architecture, model.sizes
    image_width, text_width = model.widths
    is_clip = model.kind == "clip"

    def blocks(count: int, heads: int) -> str:
        return f"{count} block{'s' * (count != 1)}, {heads} head{'s' * (heads != 1)}"

    image = [(blocks(architecture.image_blocks, architecture.image_heads), image_width)]
    if is_clip:
        image.append((f"patches, {sizes.image_size} px", image_width))
    else:
        image.append((f"patches, {sizes.image_tokens} tokens", image_width))
        image.append((f"{architecture.conv_layers + 1} convolutions, {sizes.image_size} px", STEM_CHANNELS))
    text = [
        (blocks(architecture.text_blocks, architecture.text_heads), text_width),
        (f"{sizes.vocab_size:,} tokens, {sizes.context_length} positions", text_width),
    ]
    widest = max(image_width, text_width, STEM_CHANNELS)

    def bar(width: int) -> str:
        return ("█" * max(1, round(_WIDEST * width / widest))).center(_WIDEST)

    lines = [f"{f'features, {sizes.embed_dim} channels':^{2 * _WIDEST + 2}}"]
    if architecture.shared_blocks:
        heads = architecture.shared_width // HEAD_WIDTH
        caption = f"shared: {blocks(architecture.shared_blocks, heads)}, {architecture.shared_width} channels"
        lines += [f"{bar(architecture.shared_width):^{2 * _WIDEST + 2}}", f"{caption:^{2 * _WIDEST + 2}}"]
    for row in range(max(len(image), len(text))):
        cells = [tower[row] if row < len(tower) else None for tower in (image, text)]
        lines.append("  ".join(" " * _WIDEST if cell is None else bar(cell[1]) for cell in cells))
        lines.append("  ".join(" " * _WIDEST if c is None else f"{f'{c[0]}, {c[1]} wide':^{_WIDEST}}" for c in cells))
    lines.append("  ".join(f"{name:^{_WIDEST}}" for name in ("images", "captions")))
    return "\n".join(line.rstrip() for line in lines)


def checkpoint_text(inspected: Inspected) -> Iterator[RenderableType]:
    """Describes a checkpoint."""
    model = inspected.model
    kind = "GrowCLIP" if model.kind == "growclip" else "fixed CLIP (transformers' layout)"
    written = [f"growth step {inspected.growth_step}" if inspected.growth_step else "", inspected.phase or ""]
    if inspected.iterations is not None:
        written.append(f"{inspected.iterations:,} iterations")
    if inspected.has_checksums:
        checked = "all checksums verified" if inspected.verified else "checksums not verified (--verify)"
    else:
        checked = "all tensors read" if inspected.verified else "tensors not read (--verify)"
        checked += "; the Hugging Face format has no checksums"
    yield Padding(
        "\n".join(
            (
                f"{kind} {model.architecture}, {millions(model.parameters)} parameters",
                ", ".join(word for word in written if word) or "growth step not stated",
                f"{inspected.tensors:,} tensors, {inspected.bytes / 2**20:,.1f} MiB, {checked}",
            )
        ),
        (0, 1, 1, 1),
    )
    yield Text(draw(model), no_wrap=True)
    yield _parts(model)
    yield Padding(f"Architectures are ({', '.join(SYMBOLS)}): {LEGEND}.", (0, 1, 1, 1))


def run_text(run: InspectedRun) -> Iterator[RenderableType]:
    """Describes the progress of a run, its models, and what changed between them."""
    if run.running is not None:
        yield Padding(f"Running now: {run.running}", (0, 1, 1, 1))
    yield _phases(run)
    if run.models:
        yield _path(run)
    for step, growth in run.growth.items():
        yield _growth(step, growth)
    for step in run.without_weights:
        yield Padding(f"Growth step {step} is finished, but its weights are not here.", (0, 1, 1, 1))
    if run.newest is not None:
        yield Padding(f"The newest model, of growth step {max(run.models)}, {run.newest.folder}:", (0, 1, 1, 1))
        yield from checkpoint_text(run.newest)
    elif not run.without_weights:
        yield Padding("No growth step has a trained model yet.", (0, 1, 1, 1))


def save_png(model: Model, path: Path) -> None:
    """Saves the drawing of a GrowCLIP that TensorBoard shows.

    Raises:
        InputError: the model is a fixed CLIP, or the file cannot be written.
    """
    if model.kind != "growclip":
        raise InputError("--png draws GrowCLIPs only, but this is a fixed CLIP; leave it out")
    from growclip_ds.monitor.figures import architecture_figure

    stream = io.BytesIO()
    architecture_figure(model.architecture).savefig(stream, format="png", dpi=120)
    try:
        write_bytes(path, stream.getvalue())
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); name another place") from error


def _parts(model: Model) -> Table:
    table = plain_table("Parameters")
    table.add_column("part")
    for name in ("parameters", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, count in model.parts.items():
        table.add_row(name, f"{count:,}", f"{count / model.parameters:.1%}")
    table.add_section()
    table.add_row("total (without the temperature)", f"{model.parameters:,}", "", style="bold")
    return table


def _phases(run: InspectedRun) -> Table:
    table = plain_table(f"{run.folder}: method {run.method}")
    for name in ("step", "phase", "state", "iterations", "time"):
        table.add_column(name, justify="left" if name in ("phase", "state") else "right", no_wrap=True)
    for phase in run.phases:
        iterations = NONE if phase.iterations is None else f"{phase.iterations:,}"
        if phase.total not in (None, phase.iterations):
            iterations += f" of {phase.total:,}"
        time = NONE if phase.seconds is None else duration(phase.seconds)
        table.add_row(str(phase.step), str(phase.phase), phase.state, iterations, time)
    return table


def _path(run: InspectedRun) -> Table:
    table = plain_table("Growth path")
    for name in ("step", "architecture", "parameters"):
        table.add_column(name, justify="left" if name == "architecture" else "right", no_wrap=True)
    table.add_column("grew")
    for step, inspected in run.models.items():
        growth = run.growth.get(step)
        grew = NONE if growth is None else ", ".join(_dimensions(growth)) or "nothing"
        table.add_row(str(step), str(inspected.model.architecture), millions(inspected.model.parameters), grew)
    return table


def _growth(step: int, growth: Growth) -> Table:
    title = f"Growth step {step}: {growth.parameters:+,} parameters, {growth.kept} tensors of the same shape"
    table = plain_table(title)
    table.add_column("tensors")
    for name in ("from", "to"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, rows in (
        ("widened", [(name, _shape(old), _shape(new)) for name, (old, new) in growth.widened.items()]),
        ("new", [(name, "", _shape(shape)) for name, shape in growth.new.items()]),
    ):
        for row in rows[:_SHOWN]:
            table.add_row(*row)
        if len(rows) > _SHOWN:
            table.add_row(f"{len(rows) - _SHOWN} more {kind}")
        elif not rows:
            table.add_row(f"none {kind}")
        table.add_section()
    return table


def _dimensions(growth: Growth) -> list[str]:
    return [f"{name} {old} → {new}" for name, (old, new) in growth.dimensions.items()]


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
