"""A plan as text and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table

from growclip_ds.architecture import Architecture
from growclip_ds.costs.hardware import GIB
from growclip_ds.costs.plan import RESERVED, Plan
from growclip_ds.costs.steps import Path, PhaseCost
from growclip_ds.growth.phases import Phase
from growclip_ds.monitor.tables import plain_table
from growclip_ds.monitor.words import LEGEND, NONE, SYMBOLS, grown, millions

_EXTREMES = 3  # candidates shown at each end, unless all are


def plan_text(plan: Plan, all_candidates: bool = False) -> Iterator[RenderableType]:
    """Renders a plan as tables and notes.

    Args:
        plan: the plan to show.
        all_candidates: whether to show all candidates of a growth step, not only the smallest and the largest.
    """
    yield _paragraph(*_assumptions(plan))
    steps_of: dict[Architecture, list[int]] = {}
    for step in plan.steps_open:
        for base in plan.bases(step):
            steps_of.setdefault(base, []).append(step)
    for base, steps in steps_of.items():
        yield _candidates(plan, steps, base, all_candidates)
    if plan.models_memory:
        shown: set[Architecture] = set()
        for step in plan.steps_left:
            for path in (plan.cheapest, plan.dearest):
                model = plan.largest_model(step, path)
                if model not in shown:
                    shown.add(model)
                    yield _stages(plan, step, model)
    yield _path(plan, "Cheapest path", plan.cheapest)
    if plan.dearest != plan.cheapest:
        yield _path(plan, "Most expensive path", plan.dearest)
    yield _paragraph(*_notes(plan))


def nothing_left(plan: Plan) -> str:
    """The message in place of a plan, for a run that has trained all of its phases."""
    begun, growth, subsets = plan.steps.begun, plan.config.growth, len(plan.config.data.subsets)
    if begun.finished < plan.steps.count:
        return f"{begun.name}: all phases are trained; the last is still to be evaluated, which is not planned."
    needs = ["another subset in data.subsets"] if plan.steps.count == subsets else []
    needs += [] if growth.steps is None else [f"growth.steps more than {growth.steps}"]
    return (
        f"{begun.name}: nothing is left, as growth step {plan.steps.count}, the last, is finished; another one needs "
        f"{' and '.join(needs)}."
    )


def _behind(plan: Plan) -> Iterator[str]:
    """Says which part of the run is done and therefore not planned."""
    begun = plan.steps.begun
    if not begun.name:
        return
    done = [f"growth step{'s 1 to' * (begun.finished > 1)} {begun.finished}"] if begun.finished else []
    done += [f"{phase} of step {begun.finished + 1}" for phase in Phase if phase in begun.over]
    done += [f"{n:,} iterations of step {begun.finished + 1}'s {phase}" for phase, n in begun.iterations.items()]
    yield (
        f"{begun.name}: the rest, after {', '.join(done)}."
        if done
        else f"{begun.name}: the whole run, as nothing is finished."
    )


def _assumptions(plan: Plan) -> Iterator[str]:
    yield from _behind(plan)
    training, ds = plan.config.training, plan.deepspeed
    gpu = plan.hardware.name if plan.hardware else "GPU"
    yield (
        f"{plan.ranks} × {gpu}: {training.global_batch_size:,} pairs per iteration, {ds.accumulation_steps} × "
        f"{ds.micro_batch_size:,} per rank, in {ds.precision} at ZeRO stage {ds.stage}; activation checkpointing "
        f"{training.activation_checkpointing}; {plan.text_tokens:.4g} tokens per caption (--caption-tokens)."
    )
    if plan.known_samples is None:
        missing = next(index for index, count in enumerate(plan.samples) if count is None)
        yield (
            f"Pairs are not counted yet, so no hours are given, and paths are compared as if all subsets were equal: "
            f"append data.subsets.{missing}.samples=NUMBER, and so on."
        )
    else:
        yield f"Pairs per subset: {', '.join(f'{count:,}' for count in plan.known_samples)}."
    if plan.speed is None:
        yield "No speed is known, so no hours are given: use --throughput, --utilisation or --measured."
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
    for name in ("candidate", "grows"):
        table.add_column(name, no_wrap=True)
    for name in ("parameters", "GFLOP per pair"):
        table.add_column(name, justify="right", no_wrap=True)
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
    table = plain_table(f"GiB per rank: {model}, {parameters}, the largest of growth step {step}")
    table.add_column("ZeRO", no_wrap=True)
    for name in ("states", "gradients", "buckets", "gathered", "activations", "update", "peak", "sent"):
        table.add_column(name, justify="right", no_wrap=True)
    if plan.offloads:
        table.add_column("host", justify="right", no_wrap=True)
    if plan.hardware:
        table.add_column("pairs\nfit", justify="right", no_wrap=True)
    for stage in plan.stages(model):
        needs = stage.memory
        figures = (needs.states, needs.gradients, needs.buckets, needs.gathered, needs.activations, needs.update)
        cells = [str(stage.stage), *map(_gib, figures), _gib(needs.peak), _gib(stage.communication.total)]
        cells += [_gib(needs.host)] if plan.offloads else []
        table.add_row(*cells, *([f"{stage.largest_micro_batch:,}"] if plan.hardware else []))
    return table


def _path(plan: Plan, title: str, path: Path) -> Table:
    table = plain_table(title)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("phase", no_wrap=True)
    table.add_column("model", no_wrap=True)
    for name in ("parameters", "epochs", "EFLOP", "device\nhours", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for step in plan.steps_left:
        phases = path.of_step(step)
        for phase in phases:
            parameters = millions(plan.steps.parameters(phase.architecture)) if plan.models_memory else NONE
            cells = [str(step), str(phase.phase), str(phase.architecture), parameters, f"{plan.epochs(phase):.3g}"]
            table.add_row(*cells, *_costs(plan, phase))
        if len(phases) > 1:
            table.add_row(str(step), "all", "", "", "", *_costs(plan, *phases))
    table.add_section()
    table.add_row("", "all", "", "", "", *_costs(plan, *path.phases), style="bold")
    return table


def _costs(plan: Plan, *phases: PhaseCost) -> tuple[str, str, str]:
    return _exa(plan.flops(*phases)), _hours(plan.device_hours(*phases)), _hours(plan.hours(*phases))


def _notes(plan: Plan) -> Iterator[str]:
    yield f"Architectures are ({', '.join(SYMBOLS)}): {LEGEND}."
    yield f"Device hours: over all GPUs together. Hours: wall-clock time, on {plan.ranks} of them."
    if plan.models_memory:
        yield _disk(plan)
        yield (
            "States: working copies, fp32 masters and moments. Update: fp32 copies of the gradients. They do not all "
            "exist at the same time; the peak is what counts. Sent: per rank and iteration."
        )
        if plan.offloads:
            yield (
                "Host: main memory per rank for what the DeepSpeed file offloads; a node needs it as many times as it "
                "has ranks."
            )
        if plan.hardware:
            yield (
                f"Pairs fit: the largest micro-batch that leaves {RESERVED:.0%} of the memory to CUDA, NCCL and "
                "fragmentation, of those that divide a rank's share of the batch; 0: not even one pair fits."
            )
    else:
        yield "Memory of transformers' CLIP is not modelled, nor its disk usage; padding is not counted in its FLOPs."


def _disk(plan: Plan) -> str:
    need, keep = plan.disk(plan.dearest), plan.config.checkpoint.keep_last
    more = " more" if plan.steps.begun.name else ""
    return (
        f"Disk, on the most expensive path: {_gib(need.weights)} GiB{more} of weights, which finished phases keep, and "
        f"while a phase runs up to {_gib(need.checkpoints * need.checkpoint)} GiB of checkpoints, {need.checkpoints} "
        f"of {_gib(need.checkpoint)} GiB (checkpoint.keep_last {keep}, and the one that is being written)."
    )


def _paragraph(*lines: str) -> Padding:
    return Padding("\n".join(lines), (0, 1, 1, 1))


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size < 100 * GIB else f"{size / GIB:,.0f}"


def _exa(operations: float | None) -> str:
    return NONE if operations is None else f"{operations / 1e18:,.4g}"


def _hours(hours: float | None) -> str:
    return NONE if hours is None else f"{hours:,.1f}" if hours >= 1 else f"{hours:.3f}"
