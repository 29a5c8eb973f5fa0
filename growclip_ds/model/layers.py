"""Layers that run at the size of their input: a narrower stream uses leading slices of the weights.

A stream of width d uses d/64 heads, an MLP of width 4d and norms of width d. Slices are taken inside the module that
owns the weight, since ZeRO 3 gathers a module's weights around its forward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growclip_ds.architecture import HEAD_WIDTH, MLP_RATIO, Shape
from growclip_kernels.packed_attention import Sequences, attend


def leading_slice(tensor: Tensor, shape: Shape) -> Tensor:
    """The leading slice of a tensor with the given shape, as a view; the tensor itself if the shape is its own.

    Args:
        tensor: the tensor to slice.
        shape: sizes of the leading dimensions; further dimensions stay whole.
    """
    for dim, size in enumerate(shape):
        if tensor.shape[dim] != size:
            tensor = tensor.narrow(dim, 0, size)
    return tensor


class ElasticLinear(nn.Module):
    """x Wᵀ + b for x of any width up to `width_in`, to any width up to `width_out`."""

    def __init__(self, width_in: int, width_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        self.bias = nn.Parameter(torch.empty(width_out)) if bias else None

    def forward(self, x: Tensor, width_out: int) -> Tensor:
        """(..., width_in') -> (..., width_out)."""
        bias = None if self.bias is None else leading_slice(self.bias, (width_out,))
        return F.linear(x, leading_slice(self.weight, (width_out, x.shape[-1])), bias)


class ElasticLayerNorm(nn.Module):
    """Layer norm over the channels of the input, up to `width` of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1:]
        return F.layer_norm(x, width, leading_slice(self.weight, width), leading_slice(self.bias, width))


class Attention(nn.Module):
    """Self-attention of packed sequences; rows of the projection are head-major, (heads, 3, 64)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = ElasticLinear(width, 3 * width)
        self.out = ElasticLinear(width, width)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """(T, d) -> (T, d)."""
        tokens, width = x.shape
        qkv = self.qkv(x, 3 * width).view(tokens, width // HEAD_WIDTH, 3, HEAD_WIDTH)
        out = attend(qkv, sequences)  # (T, H, 64)
        return self.out(out.reshape(tokens, width), width)


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = ElasticLinear(width, MLP_RATIO * width)
        self.contract = ElasticLinear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(T, d) -> (T, d)."""
        return self.contract(F.gelu(self.expand(x, MLP_RATIO * x.shape[-1])), x.shape[-1])


class Block(nn.Module):
    """CLIP's transformer block: pre-norm, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = ElasticLayerNorm(width)
        self.attention = Attention(width)
        self.mlp = MLP(width)
        self.mlp_norm = ElasticLayerNorm(width)

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        """(T, d) -> (T, d)."""
        x = x + self.attention(self.attention_norm(x), sequences)
        return x + self.mlp(self.mlp_norm(x))
