"""Decodes JPEG at a fraction of its size.

A JPEG stores 8 × 8 blocks of DCT coefficients. Decoding a block to 4 × 4, 3 × 3, 2 × 2 or 1 pixel skips the frequencies
that a smaller image cannot hold.
"""

from __future__ import annotations

import math

import numpy as np
import simplejpeg

# The scales that save time; those of libjpeg-turbo between 1/2 and 1 take as long as 1.
_SCALES = (1 / 8, 1 / 4, 3 / 8, 1 / 2)

# The decoded short side is at least this many times the final size, so that the resize that follows, and not the coarse
# filter of the blocks, determines the result.
MARGIN = 1.5


def scale_for(short: int, size: int) -> float:
    """The smallest scale to decode at for a final short side of `size`; 1 if no smaller scale suffices.

    Args:
        short: the JPEG's short side in pixels.
        size: the final image's short side in pixels.
    """
    return next((scale for scale in _SCALES if scale * short >= MARGIN * size), 1.0)


def decode_scaled(data: bytes, width: int, height: int, scale: float) -> np.ndarray | None:
    """Decodes a greyscale or colour JPEG.

    Args:
        data: the encoded file.
        width, height: size in pixels, from its header.
        scale: a result of `scale_for`.

    Returns:
        (⌈scale · height⌉, ⌈scale · width⌉, 3) uint8, RGB: if a side is not a multiple of 1 / scale, the last row or
        column extends beyond the image. None if libjpeg-turbo rejects the file or warns about it.
    """
    rows, columns = math.ceil(scale * height), math.ceil(scale * width)
    try:  # uses the smallest scale of at least this size, from 1/2 down
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=rows, min_width=columns, min_factor=2, strict=True)
    except ValueError:
        return None
    return pixels if pixels.shape == (rows, columns, 3) else None
