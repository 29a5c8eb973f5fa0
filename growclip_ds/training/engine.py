"""A model under DeepSpeed: built, loaded, stepped, torn down. All workarounds for DeepSpeed are here.

An engine is made for one module and lives as long as it: where the model changes, the masters are taken out, the engine
is destroyed and another one is built. A module must not be given to a second engine (DeepSpeed's hooks stay in it).
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
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils import groups
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.nn import functional

from growclip_ds.architecture import Shape
from growclip_ds.distributed.rendezvous import collective_limit, init_distributed
from growclip_ds.optim import SubnetOptimizer
from growclip_ds.optim.zero_shards import FlatShard, gather, refresh_weights, scatter

_LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # what DeepSpeed's scaler changes


class Engine:
    """A module that DeepSpeed trains with ZeRO stage 1, 2 or 3, with optimiser or parameters offloaded or not.

    Every method is collective: all ranks make the same calls.

    Args:
        build_model: makes the module. At stage 3 parameters are cut up as they are made, so values that the module
            writes after its submodules are complete may be lost: call `load_masters`.
        make_optimizer: makes the optimiser for the module's parameters, given with their names.
        ds_config: a complete DeepSpeed configuration, without "auto".

    Attributes:
        module: the module; its parameters are the working copies.
        optimizer: the optimiser inside ZeRO's.
        device: where batches have to be.
        dtype: of the working copies.
        loss_scale_before: fp16's `loss_scale` before the last step, which changes it.
    """

    def __init__(
        self,
        build_model: Callable[[], nn.Module],
        make_optimizer: Callable[[list[tuple[str, nn.Parameter]]], SubnetOptimizer],
        ds_config: Mapping[str, Any],
    ) -> None:
        init_distributed()
        torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32, as for products; bf16 and fp16 do not mind
        config = _complete(ds_config)
        warnings.filterwarnings("ignore", r"`torch.distributed.\w+` is deprecated", FutureWarning)  # DeepSpeed's calls
        stage3 = config["zero_optimization"]["stage"] == 3
        with deepspeed.zero.Init(config_dict_or_path=config) if stage3 else contextlib.nullcontext():
            module = build_model()
        parameters = list(module.named_parameters())
        self.optimizer = make_optimizer(parameters)
        self._deepspeed, *_ = deepspeed.initialize(model=module, optimizer=self.optimizer, config=config)
        # The group that DeepSpeed makes for itself has not the default group's limit, but torch's: 10 minutes of NCCL.
        distributed_c10d._set_pg_timeout(collective_limit(), groups._get_data_parallel_group())
        self._zero = self._deepspeed.optimizer
        if config["zero_optimization"]["stage"] == 2 and self._zero.overlap_comm:
            # Larger gradients than a bucket are reduced where they lie, on a stream of their own, and DeepSpeed frees
            # them before that is done, on ranks to which nothing of them belongs: others would write to the memory.
            largest = max(parameter.numel() for _, parameter in parameters)
            self._zero.reduce_bucket_size = max(self._zero.reduce_bucket_size, largest)
        # DeepSpeed's BF16_Optimizer has none.
        self._loss_scaler = getattr(self._zero, "loss_scaler", None)
        if self._loss_scaler is not None:
            self._loss_scaler.raise_error_at_min_scale = False  # how many updates may fail is not for it to say
        self.optimizer.attach(self._zero, {parameter: name for name, parameter in parameters})
        self.module: nn.Module = module
        self.device = torch.device(self._deepspeed.device)
        self.dtype = parameters[0][1].dtype
        self.loss_scale_before = self.loss_scale

    def __call__(self, *inputs: Any) -> Any:
        """The module's forward pass."""
        return self._deepspeed(*inputs)

    def backward(self, loss: Tensor, final: bool = True) -> None:
        """Adds the loss's gradients to those of this iteration.

        Over the ranks they are averaged, over calls of `backward` added up. All ranks, and all calls of an iteration,
        must reach the same parameters (DeepSpeed mixes in older gradients otherwise, or hangs).

        Args:
            loss: of one element.
            final: whether this is the iteration's last call before `step`.
        """
        self._deepspeed.set_gradient_accumulation_boundary(final)
        self._deepspeed.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float, active: Mapping[str, Shape] | None = None) -> None:
        """Updates the masters and the working copies, unless gradients are not finite.

        Args:
            learning_rate: of this iteration.
            active: what the update is confined to, see `SubnetOptimizer.set_active`.
        """
        self.optimizer.set_active(active)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.loss_scale_before = self.loss_scale
        with _scale_changed_afterwards(self._zero):
            self._deepspeed.step()
        if self.skipped and getattr(self._zero, "averaged_gradients", None):
            # With the optimiser offloaded, sums of micro-batches in fp32 are kept after a skipped step (stages 1 and
            # 2), and the next gradients would be added to them.
            self._zero.averaged_gradients = dict.fromkeys(self._zero.averaged_gradients)
        if hasattr(self._zero, "grad_partitions_flat_buffer"):
            # Stage 3 writes gradients over last iteration's, so what a parameter without a gradient had stays, and
            # would enter the next gradient norm.
            self._zero.grad_partitions_flat_buffer.zero_()

    @property
    def gradient_norm(self) -> float:
        """Of the last step's gradients, before clipping; infinite if it was skipped."""
        return float(self._zero._global_grad_norm)

    @property
    def skipped(self) -> bool:
        """Whether the last step changed nothing, its gradients not being finite."""
        return not self._deepspeed.was_step_applied()

    def load_masters(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Sets every fp32 master, and with them the working copies.

        Args:
            tensors: name and full tensor of every parameter, in any order, the same on every rank; taken one at a time.

        Raises:
            ValueError: a name or shape that the module does not have, or a parameter left out.
        """
        self._load(tensors, lambda shard: shard.flat)
        refresh_weights(self._zero)

    def load_moments(self, key: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Sets the optimiser's `exp_avg` or `exp_avg_sq`, as `load_masters` sets the weights."""
        self._load(tensors, lambda shard: self.optimizer.state[shard.flat][key])

    def masters(self, owner: Callable[[str], int]) -> Iterator[tuple[str, Tensor | None]]:
        """The fp32 masters, one at a time: each on the rank that `owner` names for it, on the CPU; None on the others.

        Every rank must run through the whole iterator.
        """
        return gather(self.optimizer.shards, owner)

    def moments(self, key: str, owner: Callable[[str], int]) -> Iterator[tuple[str, Tensor | None]]:
        """The optimiser's `exp_avg` or `exp_avg_sq`, as `masters` gives the weights."""
        return gather(self.optimizer.shards, owner, lambda shard: self.optimizer.state[shard.flat][key])

    @property
    def loss_scale(self) -> dict[str, float] | None:
        """The state of fp16's dynamic loss scale; None where there is none."""
        scaler = self._loss_scaler
        return {name: getattr(scaler, name) for name in _LOSS_SCALE} if scaler and scaler.dynamic else None

    @loss_scale.setter
    def loss_scale(self, state: Mapping[str, float]) -> None:
        for name in _LOSS_SCALE:
            setattr(self._loss_scaler, name, state[name])

    @property
    def searches_loss_scale(self) -> bool:
        """Whether the loss scale may still fall, so that gradients which are not finite are part of the search."""
        scaler = self._loss_scaler
        return scaler is not None and scaler.dynamic and scaler.cur_scale > scaler.min_scale

    def destroy(self) -> None:
        """Frees all that the engine holds, the module's parameters among it. The engine cannot be used afterwards.

        DeepSpeed 0.19 forgets some of it. This is all that was found: at stage 3 modules stay in a global stack,
        everything else in the cache of a method under `functools.lru_cache`, which a decorator without `__wrapped__`
        hides, and its own `torch.nn.functional.linear` stays in place; at any stage objects refer to each other in
        cycles, and glibc keeps what was freed in pieces, as torch does what was page-locked.
        """
        self._deepspeed.destroy()
        parameter_offload.FWD_MODULE_STACK.clear()
        _clear_cache(PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release)
        functional.linear = getattr(deepspeed.zero.Init, "linear_bk", functional.linear)
        del self._deepspeed, self._zero, self._loss_scaler, self.optimizer, self.module
        gc.collect()
        if torch.accelerator.is_available() and hasattr(torch.accelerator, "empty_host_cache"):  # torch 2.11 may not
            torch.accelerator.empty_host_cache()
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)

    def _load(self, tensors: Iterable[tuple[str, Tensor]], destination: Callable[[FlatShard], Tensor]) -> None:
        places = {segment.name: (shard, segment) for shard in self.optimizer.shards for segment in shard.segments}
        for name, tensor in tensors:
            if name not in places:
                raise ValueError(f"the model has no parameter {name!r}, or was given it twice")
            shard, segment = places.pop(name)
            if tuple(tensor.shape) != segment.shape:
                raise ValueError(f"parameter {name!r} has shape {segment.shape}, not {tuple(tensor.shape)}")
            scatter(shard, segment, tensor, destination(shard))
            del tensor  # before the next one is made
        if places:
            raise ValueError(f"no value was given for {len(places)} parameters, such as {next(iter(places))!r}")


def _complete(ds_config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with what every engine needs."""
    config: dict[str, Any] = copy.deepcopy(dict(ds_config))
    config["zero_allow_untested_optimizer"] = True
    config["zero_force_ds_cpu_optimizer"] = False
    config["steps_per_print"] = None
    config.setdefault("log_level", "error")
    return config


@contextlib.contextmanager
def _scale_changed_afterwards(zero_optimizer: Any) -> Iterator[None]:
    """Has fp16's loss scale change when the step is over: DeepSpeed raises it first and divides by the new one.

    The gradients of such an iteration would be half as large, at stage 3 their norm too.
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
    """Clears the `functools.lru_cache` that lies somewhere under a function's decorators."""
    layers = [function]
    while layers:
        layer = layers.pop()
        if hasattr(layer, "cache_clear"):
            layer.cache_clear()
            return
        cells = getattr(layer, "__closure__", None) or ()
        layers += [cell.cell_contents for cell in cells if callable(cell.cell_contents)]
        layers += [layer.__wrapped__] if hasattr(layer, "__wrapped__") else []
