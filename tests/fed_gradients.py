"""A model whose gradients are whatever a test wants them to be, and what an optimiser should make of them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from growclip_ds.architecture import Shape
from growclip_ds.optim import OPTIMIZERS
from growclip_ds.training.engine import Engine

# Sizes that no number of ranks divides, more dimensions than two, and tensors of one dimension.
SHAPES: dict[str, Shape] = {
    "logit_scale": (1,),
    "layers.0.weight": (7, 5),
    "layers.0.bias": (7,),
    "layers.1.weight": (6, 4, 3, 3),
    "layers.1.bias": (9,),
    "layers.2.weight": (29, 17),
    "layers.2.bias": (29,),
    "layers.3.weight": (11, 13),
    "layers.3.bias": (3,),
}
BOUND = 2.7  # of the temperature


class Layer(nn.Module):
    def __init__(self, weight: Shape, bias: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(weight))
        self.bias = nn.Parameter(torch.empty(bias))

    def forward(self, gradients: dict[str, Tensor]) -> Tensor:
        return sum(dot(self.get_parameter(name), gradient) for name, gradient in gradients.items())


class Fed(nn.Module):
    """Its output's gradient in each parameter's leading slice is the tensor given for it; other layers are not run."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.empty(SHAPES["logit_scale"]))
        self.layers = nn.ModuleList(
            Layer(SHAPES[f"layers.{i}.weight"], SHAPES[f"layers.{i}.bias"]) for i in range(len(SHAPES) // 2)
        )

    def forward(self, gradients: dict[str, Tensor]) -> Tensor:
        total = dot(self.logit_scale, gradients["logit_scale"])
        for index, layer in enumerate(self.layers):
            prefix = f"layers.{index}."
            own = {name.removeprefix(prefix): g for name, g in gradients.items() if name.startswith(prefix)}
            if own:
                total = total + layer(own)
        return total


def dot(parameter: Tensor, gradient: Tensor) -> Tensor:
    return (leading(parameter, gradient.shape) * gradient.to(parameter.dtype)).float().sum()


def leading(tensor: Tensor, shape: Shape) -> Tensor:
    return tensor[tuple(slice(size) for size in shape)]


@dataclass(frozen=True)
class Scenario:
    """A training run on fed gradients.

    Attributes:
        stage: of ZeRO.
        optimizer: "lamb" or "adamw".
        dtype: "fp32", "bf16" or "fp16".
        subnets: whether every iteration samples one.
        clipping: of the gradient norm; 0 for none.
        iterations: updates.
        observed: of how many of these, from the first on, the state is kept; beside that, the last one's.
        zero: more of DeepSpeed's zero_optimization section.
        config: more of DeepSpeed's configuration.
    """

    stage: int
    optimizer: str = "lamb"
    dtype: str = "fp32"
    subnets: bool = False
    clipping: float = 0.0
    iterations: int = 6
    observed: int = 6
    zero: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def ds_config(self) -> dict[str, Any]:
        precision = {"bf16": {"bf16": {"enabled": True}}, "fp16": {"fp16": {"enabled": True, "initial_scale_power": 8}}}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": self.clipping,
            "zero_optimization": {"stage": self.stage, **self.zero},
            **precision.get(self.dtype, {}),
            **self.config,
        }

    def active(self, iteration: int) -> dict[str, Shape] | None:
        """What the iteration's subnet uses."""
        if not self.subnets:
            return None
        draw = random.Random(iteration)
        names = [name for name in SHAPES if name == "logit_scale" or draw.random() < 0.6]
        return {name: tuple(draw.choice((size, draw.randint(1, size))) for size in SHAPES[name]) for name in names}

    def gradients(self, iteration: int, rank: int) -> dict[str, Tensor]:
        """What a rank is fed. In low precision, numbers of few digits, so that averages over ranks are exact."""
        generator = torch.Generator().manual_seed(1000 * iteration + rank)
        fed = {}
        for name, shape in (self.active(iteration) or SHAPES).items():
            fed[name] = torch.randn(shape, generator=generator)
            if self.dtype != "fp32":
                fed[name] = (fed[name] * 2).round().clamp(-8, 8) / 4
        fed["logit_scale"] = -fed["logit_scale"].abs() - 0.25  # always up, against its bound
        return fed


def initial_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    weights = {name: torch.randn(shape, generator=generator) / 3 for name, shape in SHAPES.items()}
    return weights | {"logit_scale": torch.tensor([2.6945])}


@dataclass
class State:
    """Weights, moments and numbers of updates by name; gradient norms by iteration; the model's working copies."""

    weights: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    steps: dict[str, int]
    gradient_norms: list[float] = field(default_factory=list)
    working: dict[str, Tensor] = field(default_factory=dict)

    def copy(self) -> State:
        moments = [{n: t.clone() for n, t in ts.items()} for ts in (self.weights, self.exp_avg, self.exp_avg_sq)]
        return State(*moments, dict(self.steps), list(self.gradient_norms))


def build(scenario: Scenario) -> Engine:
    make = OPTIMIZERS[scenario.optimizer]
    engine = Engine(
        Fed,
        lambda names: make([p for _, p in names], lr=0.0, weight_decay=0.1, upper_bounds={"logit_scale": BOUND}),
        scenario.ds_config,
    )
    engine.load_masters(initial_weights().items())
    return engine


def collect(engine: Engine) -> State:
    """The engine's state on rank 0; elsewhere tensors are missing."""
    moments = [dict(engine.moments(key, owner=rank0)) for key in ("exp_avg", "exp_avg_sq")]
    return State(dict(engine.masters(owner=rank0)), *moments, dict(engine.optimizer.steps))


def rank0(name: str) -> int:
    return 0


def learning_rate(iteration: int) -> float:
    return 0.02 / (1 + iteration)


def train(scenario: Scenario) -> list[State]:
    """Trains under DeepSpeed; the state at first, after each observed iteration, and after the last."""
    engine = build(scenario)
    states = [collect(engine)]
    norms = []
    for iteration in range(scenario.iterations):
        fed = scenario.gradients(iteration, dist.get_rank())
        engine.backward(engine(fed))
        engine.step(learning_rate(iteration), scenario.active(iteration))
        assert not engine.skipped
        norms.append(engine.gradient_norm)
        if iteration < scenario.observed or iteration + 1 == scenario.iterations:
            states.append(collect(engine))
    states[-1].gradient_norms = norms
    states[-1].working = working_copies(engine)
    engine.destroy()
    return states


def working_copies(engine: Engine) -> dict[str, Tensor]:
    """What the model computes with, whole on every rank."""
    copies = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            copies[name] = parameter.detach().clone()
    return copies


def reference(scenario: Scenario, ranks: int) -> State:
    """The same in float64, a tensor at a time, by the book."""
    weights = {name: tensor.double() for name, tensor in initial_weights().items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    state = State(weights, zeros, zeros, dict.fromkeys(weights, 0)).copy()
    options = OPTIMIZERS[scenario.optimizer]([nn.Parameter(torch.empty(1))]).defaults
    beta1, beta2, eps, decay = *options["betas"], options["eps"], 0.1
    for iteration in range(scenario.iterations):
        lr = learning_rate(iteration)
        fed = [scenario.gradients(iteration, rank) for rank in range(ranks)]
        gradients = {name: sum(f[name].double() for f in fed) / ranks for name in fed[0]}
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        state.gradient_norms.append(norm)
        for name, gradient in gradients.items():
            if scenario.clipping:
                gradient = gradient * min(1.0, scenario.clipping / (norm + 1e-6))
            w, m, v = (leading(t[name], gradient.shape) for t in (state.weights, state.exp_avg, state.exp_avg_sq))
            state.steps[name] += 1
            step = state.steps[name]
            m.copy_(beta1 * m + (1 - beta1) * gradient)
            v.copy_(beta2 * v + (1 - beta2) * gradient**2)
            update = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps)
            if w.dim() > 1:
                update = update + decay * w
                if scenario.optimizer == "lamb":
                    update = update * (w.norm() / update.norm())
            w -= lr * update
            if name == "logit_scale":
                w.clamp_(max=BOUND)
    return state


def relative_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest over the tensors, of the L2 norm of the difference by that of the expected."""
    assert found.keys() == expected.keys()
    return max(float((found[n].double() - e.double()).norm() / e.double().norm()) for n, e in expected.items())
