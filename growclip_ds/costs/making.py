"""Makes a plan from the user's request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from growclip_ds.architecture import ModelSizes
from growclip_ds.config.config import Config
from growclip_ds.config.deepspeed import DeepSpeedFile, ResolvedDeepSpeed, load_deepspeed_config, resolve
from growclip_ds.costs.hardware import Hardware, load_hardware
from growclip_ds.costs.plan import Plan, all_known
from growclip_ds.costs.speed import Speed
from growclip_ds.costs.steps import Begun, GrowthSteps
from growclip_ds.data.order import require_rest
from growclip_ds.errors import InputError
from growclip_ds.growth.space import require_base_within_limit

if TYPE_CHECKING:
    from growclip_ds.costs.begun import BegunRun

_ENDS = 2  # tokens of an empty caption
_CAPTION_TOKENS = 25.0  # roughly the mean of English captions, including start and end of text
_DEFAULT = DeepSpeedFile(
    "the DeepSpeed configuration",
    {"gradient_clipping": 0.0, "zero_optimization": {"stage": 2, "reduce_bucket_size": 25_000_000}},
)


@dataclass(frozen=True)
class Request:
    """What to plan.

    Attributes:
        deepspeed: path of the DeepSpeed file; None: stage 2 in fp32, or in the precision of the run that is planned.
        hardware: path of the file that describes the GPU; None if it is not known.
        gpus: number of GPUs; None: as many as the planned run used last, or one.
        throughput: pairs per second over all GPUs, with the model of growth step 1.
        utilisation: fraction of the GPU's peak throughput.
        measured: folder of a run whose speed to use. At most one of `throughput`, `utilisation` and `measured` is
            given; if all are None, the speed is that of the planned run so far.
        caption_tokens: mean tokens per caption, start and end of text included; None: the mean of the planned run so
            far, or 25.
    """

    deepspeed: str | None = None
    hardware: str | None = None
    gpus: int | None = None
    throughput: float | None = None
    utilisation: float | None = None
    measured: Path | None = None
    caption_tokens: float | None = None


def make_plan(config: Config, request: Request, run: BegunRun | None = None) -> Plan:
    """Plans a run, or the rest of one.

    Args:
        config: the run's configuration.
        request: what to plan.
        run: the run whose rest is planned; None for a new run.

    Raises:
        InputError: a file cannot be used, or a number makes no sense; the message names it.
    """
    _check(config, request)
    sizes = config.model.sizes(_vocabulary(config, run))
    begun = _begun(config, sizes, run)
    base, name = config.model.base, "model.base"
    if begun.architectures:
        base, name = begun.architectures[-1], f"{begun.name}'s model"
    require_base_within_limit(config, base, sizes.parameters_of, name)
    gpus = _gpus(config, request, begun)
    deepspeed = resolve(_deepspeed_file(request, run), config, gpus)
    hardware = None if request.hardware is None else load_hardware(request.hardware)
    if hardware is not None:
        hardware.flops(deepspeed.precision)  # raises if the GPU lacks the precision
    tokens = min(_caption_tokens(config, request, run), config.model.context_length)
    steps = GrowthSteps(config, sizes, tokens, deepspeed.accumulation_steps, begun)
    subsets = (config.data.subsets if run is None else run.subsets(config))[: config.num_growth_steps]
    for subset in subsets:
        if subset.samples is not None:
            require_rest(subset.samples, config.held_out_pairs, subset.name)
    samples = tuple(subset.samples for subset in subsets)
    known = all_known(samples)
    speed = _speed(request, gpus, steps, hardware, deepspeed)
    return Plan(
        config=config,
        deepspeed=deepspeed,
        ranks=gpus,
        hardware=hardware,
        speed=_speed_so_far(run, steps) if speed is None else speed,
        text_tokens=tokens,
        sizes=sizes,
        samples=samples,
        steps=steps,
        cheapest=steps.cheapest(known),
        dearest=steps.dearest(known),
    )


def _check(config: Config, request: Request) -> None:
    for name, value in (
        ("--gpus", request.gpus),
        ("--throughput", request.throughput),
        ("--utilisation", request.utilisation),
        ("--caption-tokens", request.caption_tokens),
    ):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} must be a number greater than 0, not {value:g}")
    if request.caption_tokens is not None and request.caption_tokens < _ENDS:
        raise InputError(
            f"--caption-tokens includes start and end of text, so it is at least {_ENDS}, not "
            f"{request.caption_tokens:g}"
        )
    if request.utilisation is not None and request.utilisation > 1:
        raise InputError(f"--utilisation is a fraction of the peak, at most 1, not {request.utilisation:g}; 0.3 is 30%")
    if request.utilisation is not None and request.hardware is None:
        raise InputError("--utilisation is a fraction of a GPU's peak: name the GPU with --hardware configs/hardware/…")
    if config.has_fixed_model and config.baselines.start is not None:
        raise InputError(
            f"baselines.start is {config.baselines.start}, which defines its own sizes; plan with --config, "
            "baselines.start=null and those sizes as baselines.architecture"
        )


def _gpus(config: Config, request: Request, begun: Begun) -> int:
    gpus = (begun.ranks or 1) if request.gpus is None else request.gpus
    batch = config.training.global_batch_size
    if gpus > batch:
        raise InputError(f"--gpus {gpus} exceeds the {batch} pairs of a global batch; use fewer")
    return gpus


def _caption_tokens(config: Config, request: Request, run: BegunRun | None) -> float:
    if request.caption_tokens is not None:
        return request.caption_tokens
    return (None if run is None else run.caption_tokens(config)) or _CAPTION_TOKENS


def _begun(config: Config, sizes: ModelSizes, run: BegunRun | None) -> Begun:
    begun = Begun() if run is None else run.progress(config)
    if config.model.start is None or begun.finished:  # a run with a finished growth step no longer needs it
        return begun
    from growclip_ds.costs.begun import begun_by_model

    return begun_by_model(config.model.start, sizes)


def _deepspeed_file(request: Request, run: BegunRun | None) -> DeepSpeedFile:
    if request.deepspeed is not None:
        return load_deepspeed_config(request.deepspeed)
    return _DEFAULT if run is None else run.deepspeed(_DEFAULT)


def _vocabulary(config: Config, run: BegunRun | None) -> int:
    if run is not None and (there := run.vocabulary(config)) is not None:
        return there
    section = config.data.tokenizer
    if section.vocab_size is not None:
        return section.vocab_size
    from growclip_ds.data.tokens import load_tokenizer

    assert section.name_or_path is not None  # the configuration ensures it
    return load_tokenizer(section.name_or_path, config.model.context_length).vocab_size


def _speed(
    request: Request, gpus: int, steps: GrowthSteps, hardware: Hardware | None, deepspeed: ResolvedDeepSpeed
) -> Speed | None:
    if request.throughput is not None:
        each = request.throughput / gpus
        source = f"from the given {request.throughput:,g} pairs/s on {gpus} GPUs with {steps.base}"
        return Speed(each * steps.pair_flops(steps.base), source)
    if request.utilisation is not None:
        assert hardware is not None  # checked before
        share, precision = request.utilisation, deepspeed.precision
        source = f"assumed: {share:.0%} of {hardware.name}'s peak in {precision}"
        return Speed(share * hardware.flops(precision), source)
    if request.measured is not None:
        from growclip_ds.costs.measured import measured_speed

        return measured_speed(request.measured, steps)
    return None


def _speed_so_far(run: BegunRun | None, steps: GrowthSteps) -> Speed | None:
    if run is None:
        return None
    from growclip_ds.costs.measured import speed_so_far

    return speed_so_far(run.folder.path, steps)
