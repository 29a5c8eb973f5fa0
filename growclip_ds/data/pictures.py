"""Encoded pictures to square RGB bytes, and those to what the model takes."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from growclip_ds.data.faults import BrokenSample, Cause

# What may be decoded: Pillow's other readers are rarely used, and one of them starts a PostScript interpreter.
FORMATS = ("JPEG", "PNG", "WEBP")

# CLIP's mean and standard deviation a channel (Radford et al. 2021), of pictures in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def decode_picture(data: bytes, size: int) -> Tensor:
    """Decodes a picture, scales its short side to `size` (bicubic) and cuts out the centre.

    The pixels are those of CLIP's preprocessing (resize, then centre crop, positions rounded as in torchvision), but
    only the part that is kept is resized, so that a 1 × 10,000 picture costs no more than a square one. Pillow may then
    take rows and columns in the other order, which shows where a bicubic overshoot is clipped between the two (mean
    absolute difference over photographs and diagrams 0.003 of 255). EXIF orientation is applied; what is transparent
    becomes white.

    Returns:
        (3, size, size) uint8, RGB.

    Raises:
        BrokenSample: the data are no JPEG, PNG or WebP, are damaged, or have more pixels than Pillow's limit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata, which the pixels do without
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(BytesIO(data), formats=FORMATS) as picture:
                square = _resize_and_crop(_to_rgb(ImageOps.exif_transpose(picture)), size)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise BrokenSample(Cause.DECOMPRESSION_BOMB, str(error)) from error
        except Exception as error:  # Pillow's parsers raise whatever they stumble over
            raise BrokenSample(Cause.BROKEN_PICTURE, f"{type(error).__name__}: {error}") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def normalise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes to the model's input, on whatever device they are: (pixel / 255 - mean) / std, in float32, then `dtype`.

    Args:
        images: (n, 3, S, S) uint8.
    """
    mean = torch.tensor(MEAN, device=images.device).mul_(255).view(3, 1, 1)
    std = torch.tensor(STD, device=images.device).mul_(255).view(3, 1, 1)
    return ((images - mean) / std).to(dtype)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit greyscale, which Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _resize_and_crop(picture: Image.Image, size: int) -> Image.Image:
    short = min(picture.size)
    # In the coordinates of the resized picture: its width and height, and where the centre crop begins and ends.
    resized = [size if side == short else int(size * side / short) for side in picture.size]
    start = [round((side - size) / 2) for side in resized]
    scale = [old / new for old, new in zip(picture.size, resized, strict=True)]
    left, top = (s * f for s, f in zip(start, scale, strict=True))
    right, bottom = (min((s + size) * f, side) for s, f, side in zip(start, scale, picture.size, strict=True))
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
