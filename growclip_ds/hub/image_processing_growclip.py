"""GrowCLIP's image processor: the same pixels as in evaluation, using only Pillow and NumPy."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import make_flat_list_of_images

_ORIENTATION = 0x0112  # EXIF tag
_FORMATS = {3: "H", 4: "I"}  # `struct` formats of the TIFF types SHORT and LONG
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LONGEST = 4  # beyond this aspect ratio, only the part of an image that is kept is resized


class GrowCLIPImageProcessor(BaseImageProcessor):
    """CLIP's preprocessing: resize the short side to the model's size (bicubic, antialiased), centre crop, normalise.

    Sizes and positions are rounded as in torchvision. EXIF orientation is applied; transparent areas become white.

    Args:
        size: `{"shortest_edge": side of the square in pixels}`.
        image_mean, image_std: mean and standard deviation per channel, of pixels in [0, 1].
    """

    def __init__(
        self,
        size: Mapping[str, int] | None = None,
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = {"shortest_edge": 224} if size is None else dict(size)
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(self, images: Any, return_tensors: str | None = None) -> BatchFeature:
        """One or several images -> `pixel_values`, (n, 3, S, S) float32.

        Args:
            images: Pillow images; uint8 arrays or tensors, (h, w), (h, w, 3) or (3, h, w); or paths or URLs of files,
                whose transparency `transformers` ignores.
            return_tensors: "pt" or "np"; a list of arrays if None.

        Raises:
            ValueError: an array does not have the type or the shape of an image.
        """
        size = self.size["shortest_edge"]
        squares = [_square(_picture(image), size) for image in make_flat_list_of_images(self.fetch_images(images))]
        mean = 255 * np.array(self.image_mean, dtype=np.float32)
        deviation = 255 * np.array(self.image_std, dtype=np.float32)
        values = [((square - mean) / deviation).transpose(2, 0, 1) for square in squares]
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)


def _picture(image: Any) -> Image.Image:
    """Converts an input to an upright RGB image."""
    if isinstance(image, Image.Image):
        return _rgb(image)
    array = image.cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(
            f"an array of {array.dtype} {array.shape} is not an image: give uint8 (h, w), (h, w, 3) or (3, h, w)"
        )
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _rgb(image: Image.Image) -> Image.Image:
    image.load()  # a PNG may state its transparency, like its orientation, after the pixels
    stated = _orientation(image.info.get("exif") or b"")
    if image.mode.startswith("I"):  # 16-bit greyscale, which Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return image.transpose(_UPRIGHT[stated]) if stated in _UPRIGHT else image


def _orientation(exif: bytes) -> int:
    """The orientation in EXIF alone, as in training; Pillow's `getexif` also reads XMP, and raises on damaged EXIF."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for place in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, place)
            if tag == _ORIENTATION and kind in _FORMATS:
                return struct.unpack_from(order + _FORMATS[kind], tiff, place + 8)[0]
    except struct.error:
        pass  # truncated EXIF
    return 1


def _square(image: Image.Image, size: int) -> np.ndarray:
    """The resized centre crop of an image, (size, size, 3) uint8."""
    width, height = image.size
    wide, left = _resized(width, min(width, height), size)
    high, top = _resized(height, min(width, height), size)
    if max(wide, high) <= _LONGEST * size:
        resized = np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC))
        return resized[top : top + size, left : left + size]
    x, y = width / wide, height / high
    box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))


def _resized(side: int, short: int, size: int) -> tuple[int, int]:
    """The length of a side after resizing, and the crop's offset along it."""
    length = size if side == short else int(size * side / short)
    return length, round((length - size) / 2)
