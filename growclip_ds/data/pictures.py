"""Decodes images to square uint8 RGB, and normalises these for the model."""

from __future__ import annotations

import functools
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from growclip_ds.data.centre import centre, centre_by_pillow
from growclip_ds.data.faults import BrokenSample, Cause
from growclip_ds.data.jpeg import decode_scaled, scale_for
from growclip_ds.data.orientation import orientation, upright

# Maximum width × height of an image to decode: Pillow's limit, 256 MiB of RGB.
MAX_PIXELS = 2**28 // 3

# CLIP's mean and standard deviation per channel (Radford et al. 2021), of pixels in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def decode_picture(data: bytes, size: int, exact: bool = False) -> Tensor:
    """Decodes an image, resizes its short side to `size` (bicubic, antialiased) and crops the centre.

    This is CLIP's preprocessing, with sizes and positions rounded as in torchvision. A JPEG is decoded at a fraction of
    its size if its short side is then still at least 1.5 `size`, and resized by torch. With `exact`, decoding and
    resizing are Pillow's, and so the pixels are bit-identical to Pillow's (but see `centre_by_pillow` for images more
    than 4 times as long as wide).

    EXIF orientation is applied, and transparency is composited onto white. Thread-safe.

    Returns:
        (3, size, size) uint8, RGB.

    Raises:
        BrokenSample: the data is not a JPEG, PNG or WebP, is damaged, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with open_picture(data) as picture:
            square = _square(data, picture, size, exact)
    except BrokenSample:
        raise
    except Exception as error:  # Pillow's parsers raise all kinds of exceptions
        raise BrokenSample(Cause.BROKEN_PICTURE, f"{type(error).__name__}: {error}") from error
    return square.permute(2, 0, 1).contiguous()


def normalise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Converts pixels to the model's input on their device: (pixel / 255 - mean) / std in float32, then to `dtype`.

    Args:
        images: (n, 3, S, S) uint8.
    """
    mean, std = _mean_and_std(images.device)
    return (images - mean).div_(std).to(dtype)


@functools.cache
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of uint8 pixels, (3, 1, 1) float32 each.

    Cached per device, as a copy from unpinned memory synchronises with the device.
    """
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    return mean.mul_(255).view(3, 1, 1), std.mul_(255).view(3, 1, 1)


class _JpegPixels(JpegImageFile):
    """A JPEG whose EXIF is not parsed by Pillow when the file is opened; see `orientation`."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


def open_picture(data: bytes) -> ImageFile:
    """Reads an image's header.

    Only three of Pillow's readers are used: the others are rare, and one of them starts a PostScript interpreter.
    `Image.open` is avoided because it only warns of images up to twice its limit, and of damage outside the pixels.

    Raises:
        BrokenSample: the data does not start like a JPEG, PNG or WebP.
        Exception: whatever Pillow's reader raises for damaged data.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _JpegPixels(BytesIO(data))
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(BytesIO(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile(BytesIO(data))
    raise BrokenSample(Cause.BROKEN_PICTURE, "it does not start like a JPEG, PNG or WebP")


def _square(data: bytes, picture: ImageFile, size: int, exact: bool) -> Tensor:
    """The preprocessed image, (size, size, 3) uint8."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BrokenSample(Cause.DECOMPRESSION_BOMB, f"{width} × {height} pixels, more than {MAX_PIXELS:,}")
    if picture.format == "JPEG" and picture.mode in ("L", "RGB") and not exact:
        stated = _orientation(picture)
        # Not scaled if it has to be rotated: the excess of a scaled image's last row and column would then come first.
        scale = scale_for(min(width, height), size) if stated == 1 else 1.0
        pixels = decode_scaled(data, width, height, scale)
        if pixels is not None:
            extent = scale * width, scale * height
            return centre(_turned(pixels, stated), extent if stated < 5 else extent[::-1], size)
    pixels = np.array(_to_rgb(picture))  # if the image is broken, Pillow raises here
    pixels = _turned(pixels, _orientation(picture))
    return centre_by_pillow(pixels, size) if exact else centre(pixels, pixels.shape[1::-1], size)


def _turned(pixels: np.ndarray, stated: int) -> np.ndarray:
    return np.ascontiguousarray(upright(pixels, stated))


def _orientation(picture: ImageFile) -> int:
    return orientation(picture.info.get("exif", b""))


def _to_rgb(picture: Image.Image) -> Image.Image:
    picture.load()  # a PNG may state its transparency, like its orientation, after the pixels
    if picture.mode.startswith("I"):  # 16-bit greyscale, which Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")
