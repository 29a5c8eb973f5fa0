"""JPEG decoded at a fraction of its size.

A JPEG is 8 × 8 blocks of frequencies. Decoding them to 4 × 4, 3 × 3, 2 × 2 or 1 pixel leaves out the frequencies that a
smaller picture cannot hold, and the work on them.
"""

from __future__ import annotations

import math

import numpy as np
import simplejpeg

# Those that save time. What libjpeg-turbo has between 1/2 and 1 takes as long as 1.
_SCALES = (1 / 8, 1 / 4, 3 / 8, 1 / 2)

# A decoded picture's short side is at least this many times the size wanted, so that the resize after it, and not the
# coarse filter of the blocks, decides what is kept.
MARGIN = 1.5


def scale_for(short: int, size: int) -> float:
    """The scale to decode at, of which a picture of `size` is then made; 1 if there is no smaller one.

    Args:
        short: the JPEG's shorter side in pixels.
        size: of the shorter side of the picture wanted.
    """
    return next((scale for scale in _SCALES if scale * short >= MARGIN * size), 1.0)


def decode_scaled(data: bytes, width: int, height: int, scale: float) -> np.ndarray | None:
    """Decodes a greyscale or colour JPEG.

    Args:
        data: the file.
        width, height: what its header states.
        scale: from `scale_for`, or 1.

    Returns:
        (⌈scale · height⌉, ⌈scale · width⌉, 3) uint8, RGB: where the sides are no multiples of 1 / scale, the last row
        or column reaches beyond the picture. None if libjpeg-turbo does not take the file or has a warning about it.
    """
    rows, columns = math.ceil(scale * height), math.ceil(scale * width)
    try:  # the smallest scale that gives so much, from 1/2 down
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=rows, min_width=columns, min_factor=2, strict=True)
    except ValueError:
        return None
    return pixels if pixels.shape == (rows, columns, 3) else None
