"""CLIP's resize and centre crop: the short side is scaled to a given size, then the central square is cut out.

Sizes and positions are rounded as in torchvision's Resize and CenterCrop.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# Pillow resizes the whole image if its long side is at most this many times its short side.
_LONGEST = 4

# Tolerated distance of a rough crop's start from a pixel's edge, in pixels of the coarser image.
_OFF = 1 / 32


def centre_by_pillow(pixels: np.ndarray, size: int) -> Tensor:
    """Resizes with Pillow (bicubic, antialiased), then crops.

    Of an image more than 4 times as long as wide, only the part to keep is resized, which bounds the cost. Pillow may
    then resize rows and columns in the other order, which changes pixels where a bicubic overshoot is clipped in
    between.

    Args:
        pixels: (h, w, 3) uint8.

    Returns:
        (size, size, 3) uint8.
    """
    height, width, _ = pixels.shape
    wide, left = _resized(width, min(width, height), size)
    high, top = _resized(height, min(width, height), size)
    picture = Image.fromarray(pixels)
    if max(wide, high) <= _LONGEST * size:
        resized = np.array(picture.resize((wide, high), Image.Resampling.BICUBIC))
        return torch.from_numpy(resized)[top : top + size, left : left + size]
    x, y = width / wide, height / high
    box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
    return torch.from_numpy(np.array(picture.resize((size, size), Image.Resampling.BICUBIC, box)))


def centre(pixels: np.ndarray, extent: tuple[float, float], size: int) -> Tensor:
    """Crops roughly, resizes with torch (bicubic, antialiased), then crops to the pixel.

    Args:
        pixels: (h, w, 3) uint8.
        extent: the image's width and height in these pixels; the last row and column may extend beyond it.

    Returns:
        (size, size, 3) uint8.
    """
    columns, across, left = _along(extent[0], min(extent), size)
    rows, down, top = _along(extent[1], min(extent), size)
    planes = torch.from_numpy(pixels[rows, columns]).permute(2, 0, 1)[None]
    planes = F.interpolate(planes, scale_factor=(down, across), mode="bicubic", antialias=True)
    return planes[0, :, top : top + size, left : left + size].permute(1, 2, 0)


def _resized(side: float, short: float, size: int) -> tuple[int, int]:
    """A side's length after the resize, and the crop's start on it."""
    length = size if side == short else int(size * side / short)
    return length, round((length - size) / 2)


def _along(side: float, short: float, size: int) -> tuple[slice, float, int]:
    """What to resize along a side: the range of pixels, the scale factor, and the crop's start in the result."""
    length, start = _resized(side, short, size)
    ratio = side / length
    reach = math.ceil(2 * max(1.0, 1 / ratio))  # of the bicubic filter, in resized pixels
    # The rough crop starts where pixel edges coincide before and after the resize, or the image would be shifted.
    tolerance = _OFF * min(1.0, ratio)
    cut = next(p for p in range(max(0, start - reach), -1, -1) if abs(p * ratio - round(p * ratio)) <= tolerance)
    pixels = slice(round(cut * ratio), min(math.ceil((start + size + reach) * ratio), math.ceil(side)))
    # Torch rounds the output size down: without the extra 1e-4, rounding of the factor could lose a pixel.
    return pixels, (length + 1e-4) / side, start - cut
