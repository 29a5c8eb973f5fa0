"""Every key of a DeepSpeed 0.19 configuration: its valid values if it is honoured, or the reason why it is refused.

DeepSpeed silently ignores unknown keys, and known ones that have no effect with a client optimizer, at another ZeRO
stage or in another precision. Here, all of these are errors. Which keys have an effect is taken from DeepSpeed's
source, and tested on two ranks: at each stage, each option against the default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of value: its description, and the check whether a value is of this kind."""

    words: str
    holds: Callable[[Any], bool]


class Key(NamedTuple):
    """A key that is honoured.

    Attributes:
        kind: the kind of its value.
        stages: the ZeRO stages at which DeepSpeed uses it.
    """

    kind: Kind
    stages: tuple[int, ...] = (1, 2, 3)


class Refused(NamedTuple):
    """A key that is refused.

    Attributes:
        reason: why it is refused, or what to do instead.
        harmless: values that match what happens anyway, and are accepted.
    """

    reason: str
    harmless: tuple[Any, ...] = ()

    def lets_pass(self, value: Any) -> bool:
        if isinstance(value, dict) and value.get("enabled") is False:
            value = {"enabled": False}
        return any(type(value) is type(other) and value == other for other in self.harmless)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == value // 1  # 5e8 is commonly written for 500000000


def one_of(*values: str) -> Kind:
    return Kind(f"one of {', '.join(values)}", lambda value: value in values)


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("an integer greater than 0", lambda value: _is_whole(value) and value > 0)
SIZE = Kind("an integer of at least 0", lambda value: _is_whole(value) and value >= 0)
EVEN = Kind("an even integer greater than 0", lambda value: _is_whole(value) and value > 0 and value % 2 == 0)
AMOUNT = Kind("a number of at least 0", lambda value: _is_number(value) and value >= 0)
FACTOR = Kind("a number greater than 0", lambda value: _is_number(value) and value > 0)
BATCH = Kind('an integer greater than 0, or "auto"', lambda value: value == "auto" or COUNT.holds(value))
STAGE = Kind("1, 2 or 3", lambda value: value in (1, 2, 3) and not isinstance(value, bool))
SECTION = Kind("a section in braces", lambda value: isinstance(value, dict))

_OWN_OPTIMIZER = (
    "the optimizer must know the layers and the sampled subnet; set training.optimizer, training.learning_rate, "
    "training.weight_decay, training.betas and training.eps in the run's configuration"
)
_CPU_ADAM = "it needs DeepSpeed's own CPU Adam, which knows neither the layers nor the sampled subnet"
_NVME = "weights and moments are copied from engine to engine in memory, tensor by tensor; offload to the cpu"
_CHECKPOINTS = "runs have their own checkpoint format, independent of ranks and stage; DeepSpeed's is not used"
_OWN_DATA = "the data stream decides which samples make up a batch; see data and training in the run's configuration"
_REMOVED = "DeepSpeed 0.19 has removed it"
_UNREAD = "DeepSpeed 0.19 never reads it"
_SUBNETS = "it does not support sampled subnets, which run slices of layers"
_ROUNDS = "it rounds what ranks exchange, so the result would depend on the number of ranks"
_SURROGATE = "DeepSpeed would log the second pass's surrogate loss; the run folder has its own TensorBoard files"
_ONLY_BF16_OPTIMIZER = "only DeepSpeed's BF16_Optimizer reads it, and that is not used"
_OFF = ({"enabled": False}, False)

TOP: dict[str, Key | Refused] = {
    "train_batch_size": Key(BATCH),
    "train_micro_batch_size_per_gpu": Key(BATCH),
    "gradient_accumulation_steps": Key(BATCH),
    "gradient_clipping": Key(AMOUNT),
    "zero_optimization": Key(SECTION),
    "bf16": Key(SECTION),
    "fp16": Key(SECTION),
    "data_types": Key(SECTION),
    "communication_data_type": Key(one_of("fp32", "bf16", "fp16")),
    "prescale_gradients": Key(FLAG),
    "gradient_predivide_factor": Key(FACTOR),
    "wall_clock_breakdown": Key(FLAG),
    "memory_breakdown": Key(FLAG),
    "log_level": Key(one_of("debug", "info", "warning", "error", "critical")),
    "disable_python_gc": Key(FLAG),
    "optimizer": Refused(_OWN_OPTIMIZER),
    "zero_allow_untested_optimizer": Refused(_OWN_OPTIMIZER, (True,)),
    "zero_force_ds_cpu_optimizer": Refused(_OWN_OPTIMIZER, (False,)),
    "scheduler": Refused(
        "every phase has its own warm-up and cosine; set training.learning_rate and training.warmup_iterations in the "
        "run's configuration"
    ),
    "managed_gradient_accumulation": Refused("a batch takes two passes through the model, which the trainer counts"),
    "gradient_allreduce_op": Refused("the contrastive loss of the global batch requires the mean", ("mean",)),
    "activation_checkpointing": Refused("set training.activation_checkpointing in the run's configuration"),
    "steps_per_print": Refused(
        "the trainer reports progress; set monitoring.log_every in the run's configuration", (None,)
    ),
    "dump_state": Refused("it prints the engine's attributes once; the run folder has config.yaml", (False,)),
    "timers": Refused("throughput is in TensorBoard, as speed/samples_per_second"),
    "tensorboard": Refused(_SURROGATE, _OFF),
    "wandb": Refused(_SURROGATE, _OFF),
    "csv_monitor": Refused(_SURROGATE, _OFF),
    "comet": Refused(_SURROGATE, _OFF),
    "flops_profiler": Refused("it supports neither packed attention nor the two passes of a batch", _OFF),
    "comms_logger": Refused("only a script that calls deepspeed.comm.log_summary() would see its figures", _OFF),
    "torch_autocast": Refused(
        "selection and evaluation run outside the engine, where it has no effect; set bf16", _OFF
    ),
    "bfloat16": Refused("write bf16"),
    "checkpoint": Refused(_CHECKPOINTS),
    "datastates_ckpt": Refused(_CHECKPOINTS),
    "checkpoint_serialization": Refused(_CHECKPOINTS),
    "checkpoint_writer": Refused(_CHECKPOINTS),
    "checkpoint_tag_validation": Refused(_CHECKPOINTS),
    "dataloader_drop_last": Refused(_OWN_DATA, (False,)),
    "data_efficiency": Refused(_OWN_DATA, _OFF),
    "aio": Refused(_NVME),
    "compile": Refused(
        "the sampled subnet changes with every iteration, and with it the graph", ({"deepcompile": False},)
    ),
    "hybrid_engine": Refused("it is for text generation", _OFF),
    "weight_quantization": Refused("it is for inference"),
    "autotuning": Refused("it restarts the script with other batch sizes, which train other models", _OFF),
    "tensor_parallel": Refused("layers are not divided between ranks; use ZeRO 3"),
    "expert_parallel": Refused("the model has no experts", _OFF),
    "use_data_before_expert_parallelism": Refused("the model has no experts", (False,)),
    "pipeline": Refused("layers are not divided between ranks; use ZeRO 3"),
    "sequence_parallel_size": Refused("captions and images are too short to divide", (1,)),
    "data_parallel_size": Refused("every rank is data-parallel", ()),
    "seq_parallel_communication_data_type": Refused("captions and images are too short to divide"),
    "disable_allgather": Refused(_UNREAD, (False,)),
    "vocabulary_size": Refused("the tokenizer decides; set data.tokenizer in the run's configuration"),
    **dict.fromkeys(
        (
            "amp",
            "nebula",
            "compression_training",
            "quantize_training",
            "sparse_gradients",
            "eigenvalue",
            "sparse_attention",
            "elasticity",
            "graph_harvesting",
            "curriculum_learning",
            "progressive_layer_drop",
        ),
        Refused(_REMOVED),
    ),
}

_1_2, _3 = (1, 2), (3,)

ZERO: dict[str, Key | Refused] = {
    "stage": Key(STAGE),
    "contiguous_gradients": Key(FLAG),
    "reduce_scatter": Key(FLAG),
    "reduce_bucket_size": Key(COUNT),
    "overlap_comm": Key(FLAG),
    "offload_optimizer": Key(SECTION),
    "use_multi_rank_bucket_allreduce": Key(FLAG, _1_2),
    "allgather_bucket_size": Key(EVEN, _1_2),
    "parameter_alignment": Key(FLAG, _1_2),
    "offload_param": Key(SECTION, _3),
    "sub_group_size": Key(COUNT, _3),
    "stage3_prefetch_bucket_size": Key(SIZE, _3),
    "stage3_param_persistence_threshold": Key(SIZE, _3),
    "stage3_model_persistence_threshold": Key(SIZE, _3),
    "stage3_max_live_parameters": Key(SIZE, _3),
    "stage3_max_reuse_distance": Key(SIZE, _3),
    "stage3_use_all_reduce_for_fetch_params": Key(FLAG, _3),
    "stage3_allgather_sequential": Key(FLAG, _3),
    "memory_efficient_linear": Key(FLAG, _3),
    "log_trace_cache_warnings": Key(FLAG, _3),
    "enable_sanity_checks": Key(FLAG, _3),
    "round_robin_gradients": Refused(
        "DeepSpeed 0.19 then mixes up which weights lie where when they are read or written by name", (False,)
    ),
    "compute_grad_norm": Refused("the gradient norm is monitored", (True,)),
    "ignore_unused_parameters": Refused("a sampled subnet always leaves some unused", (True,)),
    "allgather_partitions": Refused(_UNREAD, (True,)),
    "legacy_stage1": Refused(_REMOVED, (False,)),
    "load_from_fp32_weights": Refused(_CHECKPOINTS, (True,)),
    "elastic_checkpoint": Refused(_CHECKPOINTS, (False,)),
    "pipeline_loading_checkpoint": Refused(_CHECKPOINTS, (False,)),
    "stage3_gather_16bit_weights_on_model_save": Refused(_CHECKPOINTS, (False,)),
    "stage3_gather_fp16_weights_on_model_save": Refused(_CHECKPOINTS, (False,)),
    "stage3_module_granularity_threshold": Refused(_SUBNETS, (0,)),
    "leaf_module": Refused(_SUBNETS),
    "override_module_apply": Refused("models are built by their constructor, in which nothing is applied", (True,)),
    "zero_hpz_partition_size": Refused("ZeRO++ is untested with weights that are written into a new engine", (1,)),
    "zero_quantized_weights": Refused(_ROUNDS, (False,)),
    "zero_quantized_nontrainable_weights": Refused(_ROUNDS, (False,)),
    "zero_quantized_gradients": Refused(_ROUNDS, (False,)),
    "zenflow": Refused(_CPU_ADAM, (None,)),
    "save_muon_momentum_buffer_in_memory": Refused("it concerns the Muon optimizer", (False,)),
    "cpu_offload": Refused('write "offload_optimizer": {"device": "cpu"}'),
    "cpu_offload_param": Refused('write "offload_param": {"device": "cpu"}'),
    "cpu_offload_use_pin_memory": Refused("write pin_memory into offload_optimizer or offload_param"),
    **dict.fromkeys(("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param"), Refused(_REMOVED)),
}

OFFLOAD_OPTIMIZER: dict[str, Key | Refused] = {
    "device": Key(one_of("cpu", "none")),
    "pin_memory": Key(FLAG),
    "ratio": Refused(_CPU_ADAM, (1, 1.0)),
    "super_offload": Refused(_CPU_ADAM, (False,)),
    "cpuadam_cores_perc": Refused(_CPU_ADAM),
    "nvme_path": Refused(_NVME, (None,)),
    "buffer_count": Refused(_NVME),
    "pipeline_read": Refused(_NVME, (False,)),
    "pipeline_write": Refused(_NVME, (False,)),
    "fast_init": Refused(_NVME, (False,)),
}

OFFLOAD_PARAM: dict[str, Key | Refused] = {
    "device": Key(one_of("cpu", "none")),
    "pin_memory": Key(FLAG),
    **{name: Refused(_NVME) for name in ("buffer_count", "buffer_size", "max_in_cpu")},
    "nvme_path": Refused(_NVME, (None,)),
}

BF16: dict[str, Key | Refused] = {
    "enabled": Key(FLAG),
    "check_grad_overflow": Refused("an update by gradients that are not finite would ruin the weights", (True,)),
    "immediate_grad_update": Refused(_ONLY_BF16_OPTIMIZER, (False,)),
    "bf16_master_weights_and_grads": Refused("growing copies fp32 master weights, never rounded ones", (False,)),
    "bf16_optimizer_states": Refused("growing copies fp32 master weights, never rounded ones", (False,)),
}

DYNAMIC_LOSS_SCALE = (
    "initial_scale_power",
    "loss_scale_window",
    "hysteresis",
    "consecutive_hysteresis",
    "min_loss_scale",
)

FP16: dict[str, Key | Refused] = {
    "enabled": Key(FLAG),
    "loss_scale": Key(AMOUNT),
    "initial_scale_power": Key(SIZE),
    "loss_scale_window": Key(COUNT),
    "hysteresis": Key(COUNT),
    "consecutive_hysteresis": Key(FLAG),
    "min_loss_scale": Key(COUNT),
    "auto_cast": Refused("images already have the weights' precision", (False,)),
    "fp16_master_weights_and_grads": Refused("growing copies fp32 master weights, never rounded ones", (False,)),
}

DATA_TYPES: dict[str, Key | Refused] = {
    "grad_accum_dtype": Key(one_of("fp32", "bf16", "fp16")),
    "param_dtype": Refused("bf16 and fp16 decide", (None,)),
    "buffer_dtype": Refused("the model has no buffers", (None,)),
    "keep_in_fp32_modules": Refused("the model has no buffers", ("auto", [])),
}

SECTIONS: dict[str, dict[str, Key | Refused]] = {
    "": TOP,
    "zero_optimization": ZERO,
    "zero_optimization.offload_optimizer": OFFLOAD_OPTIMIZER,
    "zero_optimization.offload_param": OFFLOAD_PARAM,
    "bf16": BF16,
    "fp16": FP16,
    "data_types": DATA_TYPES,
}
