"""The convolutional stem of the image encoder, which turns images into patch tokens at a total stride of 16."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growclip_ds.architecture import PATCH_SIZE, STEM_CHANNELS
from growclip_ds.model.layers import leading_slice

NORM_GROUPS = 8  # group norm has no running statistics, which subnets could not share


class ConvNorm(nn.Module):
    """GELU(norm(3 × 3 convolution)), with no bias in the convolution."""

    def __init__(self, channels_in: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, STEM_CHANNELS, 3, stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(NORM_GROUPS, STEM_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x)))


class PatchEmbedding(nn.Module):
    """8 × 8 convolution of stride 8, without bias, to any width up to `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, STEM_CHANNELS, PATCH_SIZE, PATCH_SIZE))

    def forward(self, x: Tensor, width: int) -> Tensor:
        """(n, 64, s, s) -> (n, patches, width)."""
        weight = leading_slice(self.weight, (width,))
        return F.conv2d(x, weight, stride=PATCH_SIZE).flatten(2).transpose(1, 2)


class Stem(nn.Module):
    """A convolution of stride 2, `conv_layers` residual convolutions, and the patch embedding."""

    def __init__(self, conv_layers: int, width: int) -> None:
        super().__init__()
        self.first = ConvNorm(3, stride=2)
        self.layers = nn.ModuleList(ConvNorm(STEM_CHANNELS, stride=1) for _ in range(conv_layers))
        self.patches = PatchEmbedding(width)

    def forward(self, images: Tensor, conv_layers: int, width: int) -> Tensor:
        """(n, 3, S, S) -> (n, patches, width)."""
        x = self.first(images)
        for layer in self.layers[:conv_layers]:
            x = x + layer(x)  # residual: one layer more or less keeps the features
        return self.patches(x, width)
