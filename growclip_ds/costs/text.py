"""A plan as people read it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table

from growclip_ds.architecture import Architecture
from growclip_ds.costs.hardware import GIB
from growclip_ds.costs.plan import RESERVED, Plan, total_or_none
from growclip_ds.costs.steps import Path
from growclip_ds.monitor.tables import NONE, plain_table
from growclip_ds.monitor.words import LEGEND, SYMBOLS, grown, millions

_EXTREMES = 3  # candidates shown at each end, where not all are


def plan_text(plan: Plan, all_candidates: bool = False) -> Iterator[RenderableType]:
    """Tables and notes.

    Args:
        plan: to show.
        all_candidates: of every growth step, instead of the smallest and the largest.
    """
    yield _paragraph(*_assumptions(plan))
    if not plan.config.has_fixed_model:
        steps_of: dict[Architecture, list[int]] = {}
        for step in range(2, plan.steps.count + 1):
            for base in plan.bases(step):
                steps_of.setdefault(base, []).append(step)
        for base, steps in steps_of.items():
            yield _candidates(plan, steps, base, all_candidates)
    if plan.models_memory:
        shown: set[Architecture] = set()
        for step in range(1, plan.steps.count + 1):
            for path in (plan.cheapest, plan.dearest):
                model = plan.largest_model(step, path)
                if model not in shown:
                    shown.add(model)
                    yield _stages(plan, step, model)
    yield _path(plan, "Cheapest path", plan.cheapest)
    if plan.dearest != plan.cheapest:
        yield _path(plan, "Dearest path", plan.dearest)
    yield _paragraph(*_notes(plan))


def _assumptions(plan: Plan) -> Iterator[str]:
    training, ds = plan.config.training, plan.deepspeed
    gpu = plan.hardware.name if plan.hardware else "GPU"
    yield (
        f"{plan.ranks} × {gpu}: {training.global_batch_size:,} pairs an iteration, on a rank {ds.accumulation_steps} × "
        f"{ds.micro_batch_size:,}, in {ds.precision} at ZeRO stage {ds.stage}; activation checkpointing "
        f"{training.activation_checkpointing}; {plan.text_tokens:g} tokens a caption (--caption-tokens)."
    )
    if plan.known_samples is None:
        missing = next(index for index, count in enumerate(plan.samples) if count is None)
        yield (
            f"Pairs are not counted yet, so there are no hours, and paths are compared as if all subsets were equal: "
            f"append data.subsets.{missing}.samples=NUMBER, and so on."
        )
    else:
        yield f"Pairs of the subsets: {', '.join(f'{count:,}' for count in plan.known_samples)}."
    if plan.speed is None:
        yield "No speed is known, so there are no hours: give --throughput, --utilisation or --measured."
    else:
        yield f"Speed of a GPU: {plan.speed.flops / 1e12:.4g} TFLOP/s, {plan.speed.source}."


def _candidates(plan: Plan, steps: Sequence[int], base: Architecture, all_of_them: bool) -> Table:
    rows = plan.candidates(base)
    beyond = sum(not row.within_limit for row in rows)
    numbers = ", ".join(map(str, steps))
    title = f"Growth step{'s' * (len(steps) > 1)} {numbers}: {len(rows)} candidates from {base}"
    if beyond:
        title += f", {beyond} beyond max_parameters {plan.config.growth.max_parameters:,}"
    table = plain_table(title)
    for name, justify in (("candidate", "left"), ("grows", "left"), ("parameters", "right"), ("GFLOP a pair", "right")):
        table.add_column(name, justify=justify, no_wrap=True)
    if beyond:
        table.add_column("", no_wrap=True)
    for place, row in enumerate(rows):
        if not all_of_them and len(rows) > 2 * _EXTREMES and _EXTREMES <= place < len(rows) - _EXTREMES:
            if place == _EXTREMES:
                table.add_row(f"{len(rows) - 2 * _EXTREMES} more (--candidates)")
            continue
        cells = [str(row.architecture), grown(row.architecture, base), millions(row.parameters)]
        cells.append(f"{row.flops / 1e9:.2f}")
        table.add_row(*cells, *([""] if row.within_limit else ["too large"] * bool(beyond)))
    return table


def _stages(plan: Plan, step: int, model: Architecture) -> Table:
    parameters = millions(plan.steps.parameters(model))
    table = plain_table(f"GiB a rank: {model}, {parameters}, the largest of growth step {step}")
    table.add_column("ZeRO", no_wrap=True)
    for name in ("states", "gradients", "buckets", "gathered", "activations", "update", "peak", "sent"):
        table.add_column(name, justify="right", no_wrap=True)
    if plan.hardware:
        table.add_column("pairs fit", justify="right", no_wrap=True)
    for stage in plan.stages(model):
        needs = stage.memory
        figures = (needs.states, needs.gradients, needs.buckets, needs.gathered, needs.activations, needs.update)
        cells = [str(stage.stage), *map(_gib, figures), _gib(needs.peak), _gib(stage.communication.total)]
        table.add_row(*cells, *([f"{stage.largest_micro_batch:,}"] if plan.hardware else []))
    return table


def _path(plan: Plan, title: str, path: Path) -> Table:
    table = plain_table(title)
    table.add_column("step", justify="right")
    table.add_column("phase")
    table.add_column("model", no_wrap=True)
    for name in ("parameters", "epochs", "EFLOP", "device hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for phase in path.phases:
        pairs = plan.pairs(phase)
        table.add_row(
            str(phase.step),
            str(phase.phase),
            str(phase.architecture),
            millions(plan.steps.parameters(phase.architecture)) if plan.models_memory else NONE,
            str(phase.epochs),
            _exa(None if pairs is None else pairs * phase.flops),
            _hours(plan.device_hours(phase)),
        )
    table.add_section()
    operations = [None if (n := plan.pairs(phase)) is None else n * phase.flops for phase in path.phases]
    hours = [plan.device_hours(phase) for phase in path.phases]
    totals = _exa(total_or_none(operations)), _hours(total_or_none(hours))
    table.add_row("", "all", "", "", "", *totals, style="bold")
    return table


def _notes(plan: Plan) -> Iterator[str]:
    yield f"Architectures are ({', '.join(SYMBOLS)}): {LEGEND}."
    if plan.models_memory:
        yield (
            "States: working copies, fp32 masters and moments. Update: gradients once more, in fp32. Not everything is "
            "there at once: the peak is what counts. Sent: by a rank in an iteration."
        )
        if plan.hardware:
            yield (
                f"Pairs fit: the largest micro-batch that leaves {RESERVED:.0%} of the memory to CUDA, NCCL and "
                "fragmentation, of those that divide a rank's share of the batch; 0: not even one pair does."
            )
    else:
        yield "Memory of transformers' CLIP is not modelled; its padding is not counted in its operations."


def _paragraph(*lines: str) -> Padding:
    return Padding("\n".join(lines), (0, 1, 1, 1))


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size < 100 * GIB else f"{size / GIB:,.0f}"


def _exa(operations: float | None) -> str:
    return NONE if operations is None else f"{operations / 1e18:,.4g}"


def _hours(hours: float | None) -> str:
    return NONE if hours is None else f"{hours:,.1f}" if hours >= 1 else f"{hours:.3f}"
