"""Prints what dispatch launches for a GPU generation, and what the table of resources lists for it: `launches.py 9`.

Triton believes here in a GPU and compiles for it as at a launch, but launches nothing.
"""

from __future__ import annotations

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from growclip_kernels import attention, contrastive_loss, dispatch, resources, sigmoid_loss
from growclip_kernels.contrastive import triton_path as losses
from growclip_kernels.optimizer import Buffers, Region, Regions, Span
from growclip_kernels.optimizer import triton_path as updates
from growclip_kernels.packed_attention import SequenceGroup, Sequences, attend
from growclip_kernels.packed_attention import triton_path as of_attention

CAPABILITY = (int(sys.argv[1]), 0)
TARGET = GPUTarget("cuda", 10 * CAPABILITY[0], 32)


class StandIn:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=None: 0)
    get_current_target = staticmethod(lambda: TARGET)


launched, listed, grids = set(), set(), []
run, compile_source = JITFunction.run, triton.compile


def compile_only(self, *arguments, grid, warmup, **options):
    compiled = run(self, *arguments, grid=grid, warmup=True, **options)
    launched.add(compiled.asm["ptx"])
    grids.append((self.__name__, *grid))
    return compiled


def listing(*arguments, **options):
    compiled = compile_source(*arguments, **options)
    listed.add(compiled.asm["ptx"])
    return compiled


def boundaries(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


driver.set_active(StandIn())
JITFunction.run = compile_only
dispatch._obstacle = lambda device: None
of_attention.capability_of = losses.capability_of = lambda device: CAPABILITY
mixed = (5, 1, 300, 100, 197, 16), torch.tensor([True, False] * 3)
batches = [((197, 197), False), ((77, 77), True), mixed, ((1,), True)]
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    for heads in (1, 3, 16):
        for lengths, causal in batches:
            qkv = torch.randn(sum(lengths), heads, 3, 64).to(dtype).requires_grad_()
            attention(qkv, boundaries(lengths), max(lengths), causal).sum().backward()
    for n, d in ((1, 64), (130, 80), (16, 512)):
        images, texts = (torch.randn(n, d).to(dtype).requires_grad_() for _ in range(2))
        scale = torch.tensor([10.0], requires_grad=True)
        (contrastive_loss(images, texts, scale) + sigmoid_loss(images, texts, scale, -scale)).backward()
shared_encoder = Sequences(
    boundaries((197, 197, 0, 5, 60, 77)), (SequenceGroup(2, 394, 197, False), SequenceGroup(4, 142, 77, True))
)
grids.clear()
attend(torch.randn(536, 3, 3, 64).bfloat16().requires_grad_(), shared_encoder).sum().backward()
of_groups = list(grids)
for tensors in (1, 15, 16, 40):
    regions = Regions([Region((Span(20 * tensor, 1, 17, 17),), True) for tensor in range(tensors)])
    buffers, steps = Buffers(*torch.randn(4, 1000)), [1] * tensors
    updates.adamw(buffers, regions, steps, 1e-3, (0.9, 0.98), 1e-6, 0.2)
    updates.lamb_direction(buffers, regions, steps, (0.9, 0.98), 1e-6, 0.2)
    updates.lamb_apply(buffers, regions, torch.ones(tensors), 1.0)

resources.triton.compile = listing
for configuration in resources.configurations(CAPABILITY):
    resources.compile_for(configuration, CAPABILITY)
programs = {"listed": len(listed), "launched": len(launched), "both": len(listed & launched)}
print(json.dumps(programs | {"of groups": of_groups}))
