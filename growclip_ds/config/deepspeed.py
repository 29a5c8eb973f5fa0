"""Reads and checks the DeepSpeed file: every key is either honoured, or refused with a reason."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from growclip_ds.config.config import Config
from growclip_ds.config.deepspeed_keys import DYNAMIC_LOSS_SCALE, SECTIONS, STAGE, Key, Refused
from growclip_ds.errors import InputError

Precision = Literal["fp32", "bf16", "fp16"]

# How gradients are reduced: always part of `ResolvedDeepSpeed.numerics`, but not recorded by older versions.
REDUCTION = ("communication_data_type", "prescale_gradients", "gradient_predivide_factor")


class DeepSpeedFile(NamedTuple):
    """A DeepSpeed file as read.

    Attributes:
        path: its path, for messages.
        values: its contents.
    """

    path: str | Path
    values: dict[str, Any]


@dataclass(frozen=True)
class ResolvedDeepSpeed:
    """A DeepSpeed file with the run's batch sizes filled in.

    Attributes:
        config: the configuration for `deepspeed.initialize`, without "auto".
        micro_batch_size: pairs per forward pass of a rank.
        accumulation_steps: gradient accumulation steps: micro-batches per rank and iteration.
        stage: the ZeRO stage.
        precision: dtype of weights and activations; master weights are always fp32.
    """

    config: dict[str, Any]
    micro_batch_size: int
    accumulation_steps: int
    stage: int
    precision: Precision

    @property
    def numerics(self) -> dict[str, Any]:
        """The settings that affect the weights, not only speed and memory."""
        scaling = self.config.get("fp16", {}) if self.precision == "fp16" else {}
        return {
            "precision": self.precision,
            **{key: self.config[key] for key in ("gradient_clipping", "data_types") if key in self.config},
            **{key: self.config.get(key) for key in REDUCTION},
            **{f"fp16.{key}": value for key, value in scaling.items() if key != "enabled"},
        }


def load_deepspeed_config(path: str | Path) -> DeepSpeedFile:
    """Reads a DeepSpeed file.

    Raises:
        InputError: the file does not exist, cannot be read, is not a JSON object, or gives a key twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise InputError(f"{path} gives the key {min(twice)!r} twice")
        return dict(pairs)

    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=once)
    except FileNotFoundError:
        raise InputError(f"there is no DeepSpeed file {path}; ds_configs/ holds some to start from") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{path}, {where} is not valid JSON, which has no comments: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a JSON object, but holds {values!r}")
    return DeepSpeedFile(path, values)


def resolve(file: DeepSpeedFile, config: Config, world_size: int) -> ResolvedDeepSpeed:
    """Checks a DeepSpeed file, and fills in what it leaves to the run's configuration.

    Args:
        file: the result of `load_deepspeed_config`.
        config: the run's configuration.
        world_size: number of ranks.

    Raises:
        InputError: keys are not supported, or values are invalid or contradict the run's configuration; one line per
            problem.
    """
    path, values = file
    if problems := list(_problems(values)):
        raise InputError("\n".join(f"{path}: {problem}" for problem in problems))
    try:
        micro_batch_size, accumulation_steps = _divide_batch(values, config, world_size)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    resolved = copy.deepcopy(values)
    resolved["train_batch_size"] = config.training.global_batch_size
    resolved["train_micro_batch_size_per_gpu"] = micro_batch_size
    resolved["gradient_accumulation_steps"] = accumulation_steps
    resolved["timers"] = {"throughput": {"enabled": False}}  # unused, but it synchronises twice per iteration
    return ResolvedDeepSpeed(resolved, micro_batch_size, accumulation_steps, _stage(values), _precision(values))


def _stage(ds: dict[str, Any]) -> int:
    return int(ds["zero_optimization"]["stage"])


def _precision(ds: dict[str, Any]) -> Precision:
    for name in ("bf16", "fp16"):
        if ds.get(name, {}).get("enabled"):
            return name
    return "fp32"


def _problems(ds: dict[str, Any]) -> Iterator[str]:
    """Yields the problems of a file that do not depend on the run."""
    zero = ds.get("zero_optimization")
    stage: Any = zero.get("stage") if isinstance(zero, dict) else None
    if not STAGE.holds(stage):
        shown = "missing" if stage is None else f"{stage!r}"
        yield f"zero_optimization.stage is {shown}; expected {STAGE.words} (instead of 0, use stage 1)"
        return
    found = list(_key_problems(ds, "", stage))
    yield from found
    if "gradient_clipping" not in ds:
        yield "gradient_clipping is not stated, and DeepSpeed would silently clip at 1.0; state 0.0 for no clipping"
    if not found:
        yield from _contradictions(ds, stage)


def _key_problems(values: dict[str, Any], path: str, stage: int) -> Iterator[str]:
    """Yields the problems of single keys and values."""
    known = SECTIONS[path]
    for name, value in values.items():
        key = f"{path}.{name}" if path else name
        match known.get(name):
            case None:
                yield f"there is no key {key}; {_nearest(name, path)}"
            case Refused() as refused:
                if not refused.lets_pass(value):
                    yield f"{key} is not supported: {refused.reason}"
            case Key(kind, stages):
                if stage not in stages:
                    where = " and ".join(map(str, stages))
                    yield f"{key} has no effect at ZeRO stage {stage}, only at {where}; remove it"
                elif not kind.holds(value):
                    yield f"{key} is {value!r}; expected {kind.words}"
                elif isinstance(value, dict):
                    yield from _key_problems(value, key, stage)


def _nearest(name: str, path: str) -> str:
    honoured = {section: [n for n, key in keys.items() if isinstance(key, Key)] for section, keys in SECTIONS.items()}
    if close := difflib.get_close_matches(name, SECTIONS[path], n=1):
        return f"did you mean {f'{path}.' if path else ''}{close[0]}?"
    for section, names in honoured.items():
        if close := difflib.get_close_matches(name, names, n=1, cutoff=0.8):
            return f"did you mean {f'{section}.' if section else ''}{close[0]}?"
    return f"{path or 'the file'} may have {', '.join(honoured[path])}"


def _contradictions(ds: dict[str, Any], stage: int) -> Iterator[str]:
    """Yields the contradictions between values that are valid by themselves."""
    zero, fp16 = ds["zero_optimization"], ds.get("fp16", {})
    precision = _precision(ds)
    offloads = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    accumulation = ds.get("data_types", {}).get("grad_accum_dtype")
    if precision == "bf16" and fp16.get("enabled"):
        yield "bf16 and fp16 are both enabled; choose one"
    if fp16.get("loss_scale") and (without_effect := [name for name in DYNAMIC_LOSS_SCALE if name in fp16]):
        yield f"fp16.{without_effect[0]} has no effect with a fixed fp16.loss_scale; remove one of them"
    if accumulation not in (None, "fp32", precision):
        yield f"data_types.grad_accum_dtype is {accumulation!r}; expected fp32" + f" or {precision}" * (
            precision != "fp32"
        )
    if stage == 1 and precision == "bf16" and accumulation == "fp32" and not offloads:
        yield (
            "data_types.grad_accum_dtype fp32 with bf16 at ZeRO stage 1 makes DeepSpeed switch to an optimizer that "
            "ignores bucket sizes and overlap_comm; use stage 2, or leave it out"
        )
    for name, default in (("prescale_gradients", False), ("gradient_predivide_factor", 1.0)):
        if ds.get(name, default) != default and zero.get("reduce_scatter", True):
            yield f"{name} needs zero_optimization.reduce_scatter false; DeepSpeed's reduce-scatter ignores it"
    if stage < 3 and offloads and zero.get("contiguous_gradients") is False:
        yield "zero_optimization.contiguous_gradients false has no effect with offload_optimizer; remove it"
    if stage == 3 and zero.get("contiguous_gradients") is False and zero.get("overlap_comm", True):
        yield (
            "zero_optimization.contiguous_gradients false needs overlap_comm false at ZeRO stage 3: DeepSpeed frees a "
            "gradient of which a rank holds no part while it is being reduced on another stream"
        )


def _divide_batch(ds: dict[str, Any], config: Config, world_size: int) -> tuple[int, int]:
    """Micro-batch size and accumulation steps, where global batch = ranks · micro-batch · steps.

    Raises:
        InputError: the file contradicts the run, or a size does not divide.
    """
    stated = {name: value for name, value in ds.items() if value != "auto"}
    batch = config.training.global_batch_size
    if stated.get("train_batch_size", batch) != batch:
        raise InputError(
            f"train_batch_size is {stated['train_batch_size']}, but the run's training.global_batch_size is {batch}; "
            'write "auto" here'
        )
    if batch % world_size:
        fewer = max(ranks for ranks in range(1, world_size) if batch % ranks == 0)
        raise InputError(
            f"{world_size} ranks cannot divide training.global_batch_size {batch}; "
            f"take {_multiples(batch, world_size)}, or {fewer} ranks"
        )
    share = batch // world_size
    micro, source = _micro_batch(stated, config, share)
    if share % micro:
        raise InputError(
            f"{source} {micro} does not divide a rank's share of the batch, {share} "
            f"(training.global_batch_size {batch} over {world_size} ranks); "
            f"take {_divisors(share, micro)}, or a global batch of {_multiples(batch, world_size * micro)}"
        )
    steps = share // micro
    if stated.get("gradient_accumulation_steps", steps) != steps:
        raise InputError(
            f"gradient_accumulation_steps is {stated['gradient_accumulation_steps']}, but training.global_batch_size "
            f'{batch} over {world_size} ranks in micro-batches of {micro} ({source}) makes {steps}; write "auto" here'
        )
    return micro, steps


def _micro_batch(stated: dict[str, Any], config: Config, share: int) -> tuple[int, str]:
    """The micro-batch size and the key that determines it.

    In order of precedence: the run's, the file's, the one from the file's accumulation steps, the rank's whole share.
    """
    ours, theirs = config.training.micro_batch_size, stated.get("train_micro_batch_size_per_gpu")
    if None not in (ours, theirs) and ours != theirs:
        raise InputError(
            f"train_micro_batch_size_per_gpu is {theirs}, but the run's training.micro_batch_size is {ours}; "
            'write "auto" here'
        )
    if ours is not None:
        return ours, "training.micro_batch_size"
    if theirs is not None:
        return int(theirs), "train_micro_batch_size_per_gpu"
    if (steps := stated.get("gradient_accumulation_steps")) is not None:
        if share % steps:
            raise InputError(
                f"gradient_accumulation_steps {steps} does not divide a rank's share of the batch, {share}; "
                f"take {_divisors(share, int(steps))}"
            )
        return share // int(steps), "gradient_accumulation_steps"
    return share, "the whole share"


def _multiples(value: int, of: int) -> str:
    """The nearest multiples of `of` below and above a value, in words."""
    below = value // of * of
    return " or ".join(str(multiple) for multiple in (below, below + of) if multiple)


def _divisors(value: int, near: int) -> str:
    """The divisors of a value nearest to `near`, below and above it, in words."""
    divisors = [divisor for divisor in range(1, value + 1) if value % divisor == 0]
    below = [divisor for divisor in divisors if divisor < near][-1:]
    above = [divisor for divisor in divisors if divisor > near][:1]
    return " or ".join(map(str, below + above))
