"""An image's orientation: the one EXIF tag that affects its pixels."""

from __future__ import annotations

import struct

import numpy as np

_TAG = 0x0112
_FORMATS = {3: "H", 4: "I"}  # the TIFF types SHORT and LONG


def orientation(exif: bytes) -> int:
    """The orientation that an image's EXIF block states, 1 to 8; 1 if it states none or is damaged.

    Not read by Pillow, whose parser reads all tags and warns about damaged ones; such warnings could be silenced only
    for all threads at once.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for place in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, place)
            if tag == _TAG and kind in _FORMATS:
                (value,) = struct.unpack_from(order + _FORMATS[kind], tiff, place + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # truncated
    return 1


def upright(pixels: np.ndarray, stated: int) -> np.ndarray:
    """A view of the pixels, (height, width, 3), rotated and mirrored to be upright.

    Args:
        stated: the orientation, 1 to 8.
    """
    if stated >= 5:  # rows are stored as columns
        pixels = pixels.transpose(1, 0, 2)
    if stated in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if stated in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
