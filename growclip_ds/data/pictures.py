"""Decodes images to square RGB bytes, and converts those to the model's input."""

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

# Width × height of the largest picture that is decoded: Pillow's limit, 256 MiB of RGB.
MAX_PIXELS = 2**28 // 3

# CLIP's mean and standard deviation a channel (Radford et al. 2021), of pictures in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def decode_picture(data: bytes, size: int, exact: bool = False) -> Tensor:
    """Decodes a picture, scales its short side to `size` (bicubic, antialiased) and cuts out the centre.

    This is CLIP's preprocessing, sizes and positions rounded as in torchvision. JPEG is decoded at a fraction of its
    size where that leaves 1.5 times what is wanted, and the resize is torch's. With `exact` all is Pillow's, and so are
    the pixels, to the bit (those of a picture 4 times as long as wide, see `centre_by_pillow`).

    EXIF orientation is applied; what is transparent becomes white. Safe to call from several threads.

    Returns:
        (3, size, size) uint8, RGB.

    Raises:
        BrokenSample: the data are no JPEG, PNG or WebP, are damaged, or have more than `MAX_PIXELS` pixels.
    """
    try:
        with open_picture(data) as picture:
            square = _square(data, picture, size, exact)
    except BrokenSample:
        raise
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        raise BrokenSample(Cause.BROKEN_PICTURE, f"{type(error).__name__}: {error}") from error
    return square.permute(2, 0, 1).contiguous()


def normalise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes to the model's input, on whatever device they are: (pixel / 255 - mean) / std, in float32, then `dtype`.

    Args:
        images: (n, 3, S, S) uint8.
    """
    mean, std = _mean_and_std(images.device)
    return (images - mean).div_(std).to(dtype)


@functools.cache
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Of bytes, (3, 1, 1) each, float32. Once a device: a copy from unpinned memory waits for all that goes there."""
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    return mean.mul_(255).view(3, 1, 1), std.mul_(255).view(3, 1, 1)


class _JpegPixels(JpegImageFile):
    """A JPEG whose EXIF Pillow does not parse when it opens the file; see `orientation`."""

    def getexif(self) -> Image.Exif:
        return Image.Exif()


def open_picture(data: bytes) -> ImageFile:
    """Reads a picture's header.

    These three readers alone: Pillow's others are rarely used, and one of them starts a PostScript interpreter. Not by
    `Image.open`, which only warns of pictures up to twice its limit, and of what is damaged beside the pixels.

    Raises:
        BrokenSample: the data begin as no JPEG, PNG or WebP does. Of damaged ones, whatever Pillow's reader raises.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _JpegPixels(BytesIO(data))
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(BytesIO(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile(BytesIO(data))
    raise BrokenSample(Cause.BROKEN_PICTURE, "it begins as no JPEG, PNG or WebP does")


def _square(data: bytes, picture: ImageFile, size: int, exact: bool) -> Tensor:
    """The picture as (size, size, 3) uint8."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BrokenSample(Cause.DECOMPRESSION_BOMB, f"{width} × {height} pixels, more than {MAX_PIXELS:,}")
    if picture.format == "JPEG" and picture.mode in ("L", "RGB") and not exact:
        stated = _orientation(picture)
        # Not scaled if it has to be turned: what a scaled one's last row and column reach beyond it would come first.
        scale = scale_for(min(width, height), size) if stated == 1 else 1.0
        pixels = decode_scaled(data, width, height, scale)
        if pixels is not None:
            extent = scale * width, scale * height
            return centre(_turned(pixels, stated), extent if stated < 5 else extent[::-1], size)
    pixels = np.array(_to_rgb(picture))  # Pillow says whether the picture is broken
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
