from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import deepspeed.runtime.config
import deepspeed.runtime.constants
import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig

from growclip_ds.config.config import Config
from growclip_ds.config.deepspeed import DeepSpeedFile, load_deepspeed_config, resolve
from growclip_ds.config.deepspeed_keys import BF16, FP16, OFFLOAD_OPTIMIZER, OFFLOAD_PARAM, TOP, ZERO, Key, Refused
from growclip_ds.errors import InputError

FOLDER = Path(__file__).parents[2] / "ds_configs"
SHIPPED = sorted(FOLDER.glob("*.json"))


def run(batch: int = 1536, micro: int | None = None) -> Config:
    data = {"subsets": [{"name": "one", "shards": "one"}], "tokenizer": {"vocab_size": 1000}}
    return Config.model_validate({"data": data, "training": {"global_batch_size": batch, "micro_batch_size": micro}})


def changed(stage: int = 2, /, **changes: Any) -> DeepSpeedFile:
    """A sound file with changes; `zero__key` and the like stand for a key in a section."""
    values: dict[str, Any] = {"gradient_clipping": 0.0, "zero_optimization": {"stage": stage}}
    for name, value in changes.items():
        *sections, key = name.replace("zero__", "zero_optimization__").split("__")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return DeepSpeedFile("ds.json", values)


def refusal(file: DeepSpeedFile, config: Config | None = None, world_size: int = 1) -> str:
    with pytest.raises(InputError) as caught:
        resolve(file, config or run(), world_size)
    assert all(line.startswith("ds.json: ") for line in str(caught.value).splitlines())
    return str(caught.value)


def built(config: dict[str, Any], world_size: int, monkeypatch: pytest.MonkeyPatch) -> DeepSpeedConfig:
    """DeepSpeed's own reading of a configuration, in a world of so many ranks."""
    monkeypatch.setattr(deepspeed.runtime.config.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(deepspeed.runtime.config.dist, "get_world_size", lambda: world_size)
    return DeepSpeedConfig(copy.deepcopy(config))


def test_the_shipped_files():
    stages = {file.stem: json.loads(file.read_text())["zero_optimization"]["stage"] for file in SHIPPED}
    assert stages == {"cpu": 2, "fp16": 2, "zero1": 1, "zero2": 2, "zero3": 3, "zero3_offload": 3}


@pytest.mark.parametrize("world_size", [1, 2, 16])
@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
@pytest.mark.parametrize("micro", [None, 32])
def test_deepspeed_takes_the_shipped_files(file: Path, world_size: int, micro: int | None, monkeypatch):
    resolved = resolve(load_deepspeed_config(file), run(micro=micro), world_size)
    taken = built(resolved.config, world_size, monkeypatch)
    assert taken.train_batch_size == 1536
    assert taken.train_micro_batch_size_per_gpu == resolved.micro_batch_size == (micro or 1536 // world_size)
    assert taken.gradient_accumulation_steps == resolved.accumulation_steps
    assert resolved.micro_batch_size * resolved.accumulation_steps * world_size == 1536
    assert taken.gradient_clipping == 0.0
    assert taken.zero_optimization_stage == resolved.stage
    precision = "bf16" if taken.bfloat16_config.enabled else "fp16" if taken.float16_config.enabled else "fp32"
    assert resolved.precision == precision == {"cpu": "fp32", "fp16": "fp16"}.get(file.stem, "bf16")
    offload = taken.zero_config.offload_optimizer
    assert (offload is not None and offload.device == "cpu") == (file.stem == "zero3_offload")


def test_the_file_itself_stays_as_it_was():
    file = load_deepspeed_config(FOLDER / "zero2.json")
    before = copy.deepcopy(file.values)
    resolve(file, run(), 4)
    assert file.values == before


def test_the_dtype_and_the_scaling_of_reduced_gradients_bear_on_the_weights():
    keys = ["communication_data_type", "prescale_gradients", "gradient_predivide_factor"]
    numerics = resolve(changed(), run(), 2).numerics
    assert [numerics[key] for key in keys] == [None, None, None]  # stated, so that a later change is noticed
    numerics = resolve(changed(communication_data_type="fp32"), run(), 2).numerics
    assert [numerics[key] for key in keys] == ["fp32", None, None]


def test_no_key_of_deepspeed_is_unknown():
    """Every key of the installed DeepSpeed is honoured or refused by name."""

    def names(model: Any) -> set[str]:
        return {field.alias or name for name, field in model.model_fields.items()}

    assert names(DeepSpeedZeroConfig) - set(ZERO) == set()
    assert names(DeepSpeedZeroOffloadOptimizerConfig) == set(OFFLOAD_OPTIMIZER)
    assert names(DeepSpeedZeroOffloadParamConfig) == set(OFFLOAD_PARAM)
    assert names(DeepSpeedBF16Config) == set(BF16)
    assert names(DeepSpeedFP16Config) == set(FP16)
    assert set(deepspeed.runtime.config._REMOVED_TOP_LEVEL_CONFIG_KEYS) - set(TOP) == set()
    assert set(deepspeed.runtime.config._REMOVED_ZERO_CONFIG_KEYS) - set(ZERO) == set()


def test_every_honoured_key_is_one_of_deepspeed():
    zero = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert {name for name, key in ZERO.items() if isinstance(key, Key)} <= zero
    top = {value for value in vars(deepspeed.runtime.constants).values() if isinstance(value, str)}
    assert {name for name, key in TOP.items() if isinstance(key, Key)} <= top | {"zero_optimization"}


@pytest.mark.parametrize(
    "stated",
    [
        {"communication_data_type": "fp32", "wall_clock_breakdown": True, "log_level": "info"},
        {"prescale_gradients": True, "gradient_predivide_factor": 2.0, "zero__reduce_scatter": False},
        {"zero__parameter_alignment": True, "zero__use_multi_rank_bucket_allreduce": False},
        {"zero__offload_optimizer": {"device": "cpu", "pin_memory": False}},
        {"zero__reduce_bucket_size": 5e8, "zero__allgather_bucket_size": 5e8},
        {"bf16": {"enabled": True, "check_grad_overflow": True}, "data_types": {"grad_accum_dtype": "bf16"}},
        {"fp16": {"enabled": True, "loss_scale": 128}},
        {"fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 100}, "gradient_clipping": 1.0},
    ],
)
def test_what_is_honoured_reaches_deepspeed_unchanged(stated: dict[str, Any], monkeypatch):
    file = changed(**stated)
    resolved = resolve(file, run(), 2).config
    for name, value in file.values.items():
        assert resolved[name] == value
    built(resolved, 2, monkeypatch)


@pytest.mark.parametrize(
    "harmless",
    [
        {
            "zero__round_robin_gradients": False,
            "zero__allgather_partitions": True,
            "zero__ignore_unused_parameters": True,
        },
        {"tensorboard": {"enabled": False, "output_path": "x"}, "wandb": {"enabled": False}},
        {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, "steps_per_print": None},
        {"zero__stage3_gather_16bit_weights_on_model_save": False},
    ],
)
def test_what_happens_anyway_may_be_stated(harmless: dict[str, Any]):
    plain, stated = resolve(changed(), run(), 1), resolve(changed(**harmless), run(), 1)
    assert (stated.stage, stated.precision) == (plain.stage, plain.precision)
    assert plain.config.items() <= {**stated.config, "zero_optimization": plain.config["zero_optimization"]}.items()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (changed(0), "zero_optimization.stage is 0; expected 1, 2 or 3 (instead of 0, use stage 1)"),
        (changed(4), "zero_optimization.stage is 4; expected 1, 2 or 3"),
        (DeepSpeedFile("ds.json", {}), "zero_optimization.stage is missing"),
        (DeepSpeedFile("ds.json", {"zero_optimization": True}), "zero_optimization.stage is missing"),
        (
            DeepSpeedFile("ds.json", {"zero_optimization": {"stage": 2}}),
            "gradient_clipping is not stated, and DeepSpeed would silently clip at 1.0; state 0.0 for no clipping",
        ),
        (changed(gradient_clipping="auto"), "gradient_clipping is 'auto'; expected a number of at least 0"),
        (changed(gradient_clip=1.0), "there is no key gradient_clip; did you mean gradient_clipping?"),
        (
            changed(reduce_bucket_size=100),
            "no key reduce_bucket_size; did you mean zero_optimization.reduce_bucket_size?",
        ),
        (
            changed(zero__overlap_com=True),
            "no key zero_optimization.overlap_com; did you mean zero_optimization.overlap_c",
        ),
        (changed(bf16__wombat=1), "there is no key bf16.wombat; bf16 may have enabled"),
        (changed(zero__overlap_comm="yes"), "zero_optimization.overlap_comm is 'yes'; expected true or false"),
        (
            changed(zero__reduce_bucket_size="auto"),
            "reduce_bucket_size is 'auto'; expected an integer greater than 0",
        ),
        (changed(zero__allgather_bucket_size=5), "allgather_bucket_size is 5; expected an even integer"),
        (changed(bf16=True), "bf16 is True; expected a section in braces"),
        (changed(train_batch_size=0), 'train_batch_size is 0; expected an integer greater than 0, or "auto"'),
        (changed(optimizer={"type": "Adam"}), "optimizer is not supported: the optimizer must know the layers"),
        (
            changed(scheduler={"type": "WarmupLR"}),
            "scheduler is not supported: every phase has its own warm-up and cosine",
        ),
        (changed(activation_checkpointing={}), "set training.activation_checkpointing in the run's configuration"),
        (changed(amp={"enabled": True}), "amp is not supported: DeepSpeed 0.19 has removed it"),
        (
            changed(wandb={"enabled": True}),
            "wandb is not supported: DeepSpeed would log the second pass's surrogate loss",
        ),
        (changed(steps_per_print=10), "steps_per_print is not supported: the trainer reports progress"),
        (
            changed(zero__round_robin_gradients=True),
            "round_robin_gradients is not supported: DeepSpeed 0.19 then mixes up",
        ),
        (changed(zero__ignore_unused_parameters=False), "a sampled subnet always leaves some unused"),
        (
            changed(zero__offload_optimizer={"device": "nvme"}),
            "offload_optimizer.device is 'nvme'; expected one of cpu",
        ),
        (
            changed(zero__offload_optimizer={"device": "cpu", "nvme_path": "/x"}),
            "nvme_path is not supported: weights and",
        ),
        (
            changed(3, zero__offload_optimizer={"device": "cpu", "ratio": 0.5}),
            "ratio is not supported: it needs DeepSpeed",
        ),
        (
            changed(zero__offload_param={"device": "cpu"}),
            "offload_param has no effect at ZeRO stage 2, only at 3; remove it",
        ),
        (
            changed(zero__stage3_max_live_parameters=10),
            "stage3_max_live_parameters has no effect at ZeRO stage 2, only at 3",
        ),
        (
            changed(3, zero__allgather_bucket_size=10),
            "allgather_bucket_size has no effect at ZeRO stage 3, only at 1 and 2",
        ),
        (
            changed(bf16={"enabled": True, "check_grad_overflow": False}),
            "bf16.check_grad_overflow is not supported: an update by gradients that are not finite would ruin",
        ),
        (changed(bf16={"enabled": True}, fp16={"enabled": True}), "bf16 and fp16 are both enabled; choose one"),
        (
            changed(fp16={"enabled": True, "loss_scale": 8, "hysteresis": 2}),
            "fp16.hysteresis has no effect with a fixed fp16.loss_scale",
        ),
        (
            changed(1, bf16={"enabled": True}, data_types={"grad_accum_dtype": "fp32"}),
            "at ZeRO stage 1 makes DeepSpeed switch to an optimizer that ignores bucket sizes and overlap_comm; use",
        ),
        (changed(data_types={"grad_accum_dtype": "bf16"}), "grad_accum_dtype is 'bf16'; expected fp32"),
        (changed(prescale_gradients=True), "prescale_gradients needs zero_optimization.reduce_scatter false"),
        (
            changed(zero__contiguous_gradients=False, zero__offload_optimizer={"device": "cpu"}),
            "contiguous_gradients false has no effect with offload_optimizer",
        ),
        (
            changed(3, zero__contiguous_gradients=False),
            "contiguous_gradients false needs overlap_comm false at ZeRO stage 3: DeepSpeed frees a gradient",
        ),
    ],
)
def test_what_is_refused(file: DeepSpeedFile, message: str):
    shown = refusal(file)
    assert message in shown
    assert "\n" not in shown


def test_all_problems_at_once():
    assert len(refusal(changed(optimizer={}, zero__wombat=1, bf16__enabled=1)).splitlines()) == 3


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_refused_key_is_refused_unless_harmless(stage: int):
    for name, key in TOP.items():
        if isinstance(key, Refused):
            assert f"{name} is not supported: {key.reason}" in refusal(changed(stage, **{name: "wombat"}))
    for name, key in ZERO.items():
        if isinstance(key, Refused):
            assert f"{name} is not supported: {key.reason}" in refusal(changed(stage, **{f"zero__{name}": "wombat"}))
            for value in key.harmless:
                resolve(changed(stage, **{f"zero__{name}": value}), run(), 1)


@pytest.mark.parametrize(
    ("stated", "batch", "micro", "ranks", "expected"),
    [
        ({}, 1536, None, 16, (96, 1)),
        ({}, 1536, 24, 16, (24, 4)),
        ({"train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto"}, 1536, 96, 16, (96, 1)),
        ({"train_micro_batch_size_per_gpu": 24}, 1536, None, 16, (24, 4)),
        ({"gradient_accumulation_steps": 4}, 1536, None, 16, (24, 4)),
        ({"train_batch_size": 1536, "train_micro_batch_size_per_gpu": 24}, 1536, 24, 16, (24, 4)),
        ({"gradient_accumulation_steps": 2, "train_micro_batch_size_per_gpu": 3}, 12, None, 2, (3, 2)),
    ],
)
def test_the_batch_is_divided(stated, batch, micro, ranks, expected, monkeypatch):
    resolved = resolve(changed(**stated), run(batch, micro), ranks)
    assert (resolved.micro_batch_size, resolved.accumulation_steps) == expected
    built(resolved.config, ranks, monkeypatch)


@pytest.mark.parametrize(
    ("stated", "batch", "micro", "ranks", "message"),
    [
        (
            {"train_batch_size": 512},
            1536,
            None,
            16,
            'train_batch_size is 512, but the run\'s training.global_batch_size is 1536; write "auto" here',
        ),
        ({"train_micro_batch_size_per_gpu": 8}, 1536, 24, 16, "the run's training.micro_batch_size is 24; write"),
        (
            {"gradient_accumulation_steps": 2},
            1536,
            24,
            16,
            "gradient_accumulation_steps is 2, but training.global_batch_size 1536 over 16 ranks in micro-batches of "
            "24 (training.micro_batch_size) makes 4",
        ),
        ({}, 100, None, 16, "16 ranks cannot divide training.global_batch_size 100; take 96 or 112, or 10 ranks"),
        ({}, 4, None, 16, "16 ranks cannot divide training.global_batch_size 4; take 16, or 4 ranks"),
        (
            {},
            1536,
            40,
            16,
            "training.micro_batch_size 40 does not divide a rank's share of the batch, 96 (training.global_batch_size "
            "1536 over 16 ranks); take 32 or 48, or a global batch of 1280 or 1920",
        ),
        ({"train_micro_batch_size_per_gpu": 97}, 1536, None, 16, "train_micro_batch_size_per_gpu 97 does not divide"),
        (
            {"gradient_accumulation_steps": 5},
            1536,
            None,
            16,
            "does not divide a rank's share of the batch, 96; take 4 or 6",
        ),
    ],
)
def test_batches_that_do_not_divide(stated, batch, micro, ranks, message):
    assert message in refusal(changed(**stated), run(batch, micro), ranks)


def test_unreadable_files(tmp_path: Path):
    file = tmp_path / "ds.json"
    with pytest.raises(InputError, match=r"there is no DeepSpeed file .*; ds_configs/ holds some"):
        load_deepspeed_config(file)
    for text, message in (
        ('{"a": 1,\n // why\n}', r"line 2, column 2 is not valid JSON, which has no comments"),
        ('{"a": {"b": 1, "b": 2}}', r"gives the key 'b' twice"),
        ("[1]", r"must hold a JSON object"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            load_deepspeed_config(file)
    with pytest.raises(InputError, match="cannot be read"):
        load_deepspeed_config(tmp_path)
