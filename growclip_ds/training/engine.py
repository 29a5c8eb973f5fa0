"""A model under DeepSpeed: build, load, step, tear down. The engine's workarounds for DeepSpeed are kept here.

An engine serves one module for the whole life of both: when the model changes, the masters are read out, the engine is
destroyed and a new one is built. A module must not be passed to a second engine, as DeepSpeed's hooks stay on it.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils import groups
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.nn import functional

from growclip_ds.architecture import Shape
from growclip_ds.data.worker_processes import share_of_processors
from growclip_ds.distributed.rendezvous import collective_limit, init_distributed
from growclip_ds.model.precision import use_full_fp32
from growclip_ds.optim import SubnetOptimizer
from growclip_ds.optim.zero_shards import FlatShard, gather, refresh_weights, scatter

_LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # what DeepSpeed's scaler changes


class Engine:
    """A module trained by DeepSpeed with ZeRO stage 1, 2 or 3, with or without optimizer or parameter offload.

    Every method is collective: all ranks make the same calls.

    Args:
        build_model: builds the module. Stage 3 shards parameters as they are created, so values that the module writes
            after its submodules are complete may be lost: call `load_masters`.
        make_optimizer: builds the optimizer from the module's named parameters.
        ds_config: a complete DeepSpeed configuration, without "auto" values.

    Attributes:
        module: the module; its parameters are the working copies of the fp32 masters.
        optimizer: the optimizer wrapped by ZeRO's.
        device: the device that batches must be on.
        dtype: dtype of the working copies.
        loss_scale_before: fp16's `loss_scale` before the last step, which may have changed it.
    """

    def __init__(
        self,
        build_model: Callable[[], nn.Module],
        make_optimizer: Callable[[list[tuple[str, nn.Parameter]]], SubnetOptimizer],
        ds_config: Mapping[str, Any],
    ) -> None:
        init_distributed()
        use_full_fp32()
        config = _complete(ds_config)
        warnings.filterwarnings("ignore", r"`torch.distributed.\w+` is deprecated", FutureWarning)  # DeepSpeed's calls
        stage3 = config["zero_optimization"]["stage"] == 3
        with deepspeed.zero.Init(config_dict_or_path=config) if stage3 else contextlib.nullcontext():
            module = build_model()
        parameters = list(module.named_parameters())
        self.optimizer = make_optimizer(parameters)
        self._deepspeed, *_ = deepspeed.initialize(model=module, optimizer=self.optimizer, config=config)
        # DeepSpeed creates its own group with torch's default timeout (10 minutes for NCCL), not that of ours.
        distributed_c10d._set_pg_timeout(collective_limit(), groups._get_data_parallel_group())
        self._zero = self._deepspeed.optimizer
        if config["zero_optimization"]["stage"] < 3 and getattr(self._zero, "overlap_comm", False):
            # A gradient larger than a bucket is reduced in place on a side stream. Some ranks free it before that is
            # done, so its memory could be overwritten: at stage 2 those that own no part of it, at stage 1 without
            # reduce_scatter those that own one. Make buckets hold every gradient.
            largest = max(parameter.numel() for _, parameter in parameters)
            self._zero.reduce_bucket_size = max(self._zero.reduce_bucket_size, largest)
        # DeepSpeed's BF16_Optimizer has no loss scaler.
        self._loss_scaler = getattr(self._zero, "loss_scaler", None)
        if self._loss_scaler is not None:
            self._loss_scaler.raise_error_at_min_scale = False  # `Health` limits failed updates
        self.optimizer.attach(self._zero, {parameter: name for name, parameter in parameters})
        _use_processors(self.optimizer.shards)
        self.module: nn.Module = module
        self.device = torch.device(self._deepspeed.device)
        self.dtype = parameters[0][1].dtype
        self.loss_scale_before = self.loss_scale

    def __call__(self, *inputs: Any) -> Any:
        """Runs the module's forward pass."""
        return self._deepspeed(*inputs)

    def backward(self, loss: Tensor, final: bool = True) -> None:
        """Accumulates the gradients of a loss.

        Gradients are averaged over ranks and summed over the calls of an iteration. All ranks and all calls of an
        iteration must reach the same parameters; otherwise DeepSpeed mixes in older gradients, or hangs.

        Args:
            loss: scalar tensor.
            final: whether this is the last call before `step` (the gradient accumulation boundary).
        """
        self._deepspeed.set_gradient_accumulation_boundary(final)
        self._deepspeed.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float, active: Mapping[str, Shape] | None = None) -> None:
        """Updates the masters and the working copies; skips the update if gradients are not finite.

        Args:
            learning_rate: learning rate of this iteration.
            active: the slices to which the update is confined; see `SubnetOptimizer.set_active`.
        """
        self.optimizer.set_active(active)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.loss_scale_before = self.loss_scale
        with _scale_changed_afterwards(self._zero):
            self._deepspeed.step()
        if self.skipped and getattr(self._zero, "averaged_gradients", None):
            # With optimizer offload at stages 1 and 2, a skipped step keeps the fp32 sums over micro-batches, and the
            # next gradients would be added to them.
            self._zero.averaged_gradients = dict.fromkeys(self._zero.averaged_gradients)
        if hasattr(self._zero, "grad_partitions_flat_buffer"):
            # Stage 3 overwrites the last iteration's gradients, so a parameter that gets none this time would keep its
            # old one, which would enter the next gradient norm.
            self._zero.grad_partitions_flat_buffer.zero_()

    @property
    def gradient_norm(self) -> float:
        """Global norm of the last step's gradients, before clipping; infinite if the step was skipped."""
        return float(self._zero._global_grad_norm)

    @property
    def skipped(self) -> bool:
        """Whether the last step was skipped because its gradients were not finite."""
        return not self._deepspeed.was_step_applied()

    def load_masters(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Sets all fp32 masters, and the working copies from them.

        Args:
            tensors: name and full tensor of every parameter, in any order that is the same on every rank; consumed one
                at a time.

        Raises:
            ValueError: a name or shape does not match the module's, or a parameter is missing.
        """
        self._load(tensors, lambda shard: shard.flat)
        refresh_weights(self._zero)

    def load_moments(self, key: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Sets the optimizer's `exp_avg` or `exp_avg_sq`, as `load_masters` sets the weights."""
        self._load(tensors, lambda shard: self.optimizer.state[shard.flat][key])

    def masters(self, owner: Callable[[str], int]) -> Iterator[tuple[str, Tensor | None]]:
        """Yields the fp32 masters one at a time: the full tensor on the CPU of rank `owner(name)`, None on the others.

        Every rank must exhaust the iterator.
        """
        return gather(self.optimizer.shards, owner)

    def moments(self, key: str, owner: Callable[[str], int]) -> Iterator[tuple[str, Tensor | None]]:
        """Yields the optimizer's `exp_avg` or `exp_avg_sq`, as `masters` yields the weights."""
        return gather(self.optimizer.shards, owner, lambda shard: self.optimizer.state[shard.flat][key])

    @property
    def loss_scale(self) -> dict[str, float] | None:
        """State of the dynamic fp16 loss scale; None without one."""
        scaler = self._loss_scaler
        return {name: getattr(scaler, name) for name in _LOSS_SCALE} if scaler and scaler.dynamic else None

    @loss_scale.setter
    def loss_scale(self, state: Mapping[str, float]) -> None:
        for name in _LOSS_SCALE:
            setattr(self._loss_scaler, name, state[name])

    @property
    def searches_loss_scale(self) -> bool:
        """Whether the loss scale can still be lowered, in which case non-finite gradients are part of its search."""
        scaler = self._loss_scaler
        return scaler is not None and scaler.dynamic and scaler.cur_scale > scaler.min_scale

    def destroy(self) -> None:
        """Frees everything that the engine holds, including the module's parameters. The engine is unusable afterwards.

        DeepSpeed 0.19 leaks some of it. At stage 3, modules stay in a global stack, everything else stays in the
        `functools.lru_cache` of a method (hidden by a decorator without `__wrapped__`), and
        `torch.nn.functional.linear` stays patched. At any stage, objects refer to each other in cycles, glibc keeps
        freed heap memory, and torch keeps freed pinned and device memory: the latter for the stream that allocated it,
        and every engine has new streams.
        """
        self._deepspeed.destroy()
        parameter_offload.FWD_MODULE_STACK.clear()
        _clear_cache(PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release)
        functional.linear = getattr(deepspeed.zero.Init, "linear_bk", functional.linear)
        del self._deepspeed, self._zero, self._loss_scaler, self.optimizer, self.module
        gc.collect()
        get_accelerator().empty_cache()
        if torch.accelerator.is_available() and hasattr(torch.accelerator, "empty_host_cache"):  # torch 2.11 may not
            torch.accelerator.empty_host_cache()
        with contextlib.suppress(OSError, AttributeError):  # the C library is not glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)

    def _load(self, tensors: Iterable[tuple[str, Tensor]], destination: Callable[[FlatShard], Tensor]) -> None:
        places = {segment.name: (shard, segment) for shard in self.optimizer.shards for segment in shard.segments}
        for name, tensor in tensors:
            if name not in places:
                raise ValueError(f"the model has no parameter {name!r}, or it was given twice")
            shard, segment = places.pop(name)
            if tuple(tensor.shape) != segment.shape:
                raise ValueError(f"parameter {name!r} has shape {segment.shape}, not {tuple(tensor.shape)}")
            scatter(shard, segment, tensor, destination(shard))
            del tensor  # free it before the next one is created
        if places:
            raise ValueError(f"no value was given for {len(places)} parameters, such as {next(iter(places))!r}")


def _use_processors(shards: Iterable[FlatShard]) -> None:
    """Gives torch this rank's share of the processors if the update of a GPU's weights is offloaded to them.

    The GPU waits for the update, and ranks are started with one thread (torchrun, `slurm/`), or each with a thread for
    every processor of the machine (deepspeed).
    """
    if any(shard.flat.device.type != shard.device.type for shard in shards):
        torch.set_num_threads(share_of_processors())


def _complete(ds_config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration completed with the settings that every engine needs."""
    config: dict[str, Any] = copy.deepcopy(dict(ds_config))
    config["zero_allow_untested_optimizer"] = True
    config["zero_force_ds_cpu_optimizer"] = False
    config["steps_per_print"] = None
    config.setdefault("log_level", "error")
    return config


@contextlib.contextmanager
def _scale_changed_afterwards(zero_optimizer: Any) -> Iterator[None]:
    """Delays the update of fp16's loss scale to the end of the step.

    DeepSpeed raises the scale first and unscales by the new value, so whenever it rises, gradients would be halved, at
    stage 3 their norm as well.
    """
    overflows: list[bool] = []
    change = getattr(zero_optimizer, "_update_scale", None)
    if change is None:  # DeepSpeed's BF16_Optimizer
        yield
        return
    zero_optimizer._update_scale = overflows.append
    try:
        yield
    finally:
        del zero_optimizer._update_scale
    for overflow in overflows:
        change(overflow)


def _clear_cache(function: Any) -> None:
    """Clears the `functools.lru_cache` somewhere beneath a function's decorators."""
    layers = [function]
    while layers:
        layer = layers.pop()
        if hasattr(layer, "cache_clear"):
            layer.cache_clear()
            return
        cells = getattr(layer, "__closure__", None) or ()
        layers += [cell.cell_contents for cell in cells if callable(cell.cell_contents)]
        layers += [layer.__wrapped__] if hasattr(layer, "__wrapped__") else []
