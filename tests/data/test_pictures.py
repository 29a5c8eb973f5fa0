from __future__ import annotations

import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from growclip_ds.data.faults import BrokenSample, Cause
from growclip_ds.data.pictures import decode_picture, normalise

SIZE = 32


def pixels_of(width: int, height: int, channels: int = 3) -> np.ndarray:
    """Smooth, away from black and white: no bicubic overshoot is clipped, so the order of two passes is no matter."""
    coarse = np.random.default_rng(width * height).integers(60, 196, (6, 7, channels), dtype=np.uint8)
    smooth = [Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR) for plane in coarse.T]
    pixels = np.stack([np.asarray(plane) for plane in smooth], axis=-1)
    return pixels[..., 0] if channels == 1 else pixels


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reference(upright: Image.Image, size: int = SIZE) -> np.ndarray:
    """CLIP's preprocessing in its plain form: resize the whole picture, then crop."""
    width, height = upright.size
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = upright.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def decoded(data: bytes, size: int = SIZE) -> np.ndarray:
    picture = decode_picture(data, size)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, size, size)
    assert picture.is_contiguous()
    return picture.permute(1, 2, 0).numpy()


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual.astype(int), expected.astype(int), atol=1)  # one rounding of a byte


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("shape", [(50, 40), (40, 51), (32, 32), (33, 32), (31, 97), (9, 7), (224, 640)])
def test_every_format_and_shape_as_resize_then_crop(kind: str, shape: tuple[int, int]) -> None:
    data = encode(Image.fromarray(pixels_of(*shape)), kind)
    assert_same(decoded(data), reference(Image.open(BytesIO(data)).convert("RGB")))


def test_the_order_of_the_passes_changes_little_even_where_overshoots_are_clipped() -> None:
    sharp = Image.fromarray(np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), (300, 200, 3)))
    difference = decoded(encode(sharp)).astype(float) - reference(sharp)
    assert np.abs(difference).mean() < 1


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    pixels = pixels_of(SIZE, SIZE)
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(pixels))), pixels)


def test_greyscale() -> None:
    grey = pixels_of(50, 40, 1)
    expected = reference(Image.fromarray(np.stack([grey] * 3, axis=-1)))
    assert_same(decoded(encode(Image.fromarray(grey))), expected)


def test_sixteen_bit_greyscale_keeps_its_contrast() -> None:
    grey = pixels_of(50, 40, 1)
    data = encode(Image.fromarray(grey.astype(np.uint16) * 257))
    assert_same(decoded(data), reference(Image.fromarray(np.stack([grey] * 3, axis=-1))))


def test_palette() -> None:
    palette = Image.fromarray(pixels_of(50, 40)).quantize(16)
    assert_same(decoded(encode(palette)), reference(palette.convert("RGB")))


def test_cmyk() -> None:
    inks = pixels_of(50, 40, 4)
    data = encode(Image.fromarray(inks, mode="CMYK"), "JPEG", quality=100)
    stored = np.asarray(Image.open(BytesIO(data))).astype(int)
    light = (255 - stored[..., :3]) * (255 - stored[..., 3:]) / 255
    assert_same(decoded(data), reference(Image.fromarray(light.round().astype(np.uint8))))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_is_white(kind: str) -> None:
    pixels = pixels_of(50, 40, 4)
    pixels[:20, :, 3] = 0
    pixels[20:, :, 3] = 255
    expected = pixels[..., :3].copy()
    expected[:20] = 255
    data = encode(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert_same(decoded(data), reference(Image.fromarray(expected)))


def test_transparent_palette_entry_is_white() -> None:
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.paste(1, (0, 0, 40, 20))
    expected = np.full((40, 40, 3), 255, dtype=np.uint8)
    expected[:20] = (200, 10, 10)
    assert_same(decoded(encode(palette, transparency=0)), reference(Image.fromarray(expected)))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_exif_orientation(orientation: int, upright) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = pixels_of(50, 41)
    data = encode(Image.fromarray(stored), "PNG", exif=exif)
    assert_same(decoded(data), reference(Image.fromarray(np.ascontiguousarray(upright(stored)))))


def test_damaged_exif_does_not_cost_the_picture(recwarn: pytest.WarningsRecorder) -> None:
    data = encode(Image.fromarray(pixels_of(50, 40)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff")
    picture = decoded(data)
    assert not recwarn.list
    assert_same(picture, reference(Image.open(BytesIO(data)).convert("RGB")))


def test_one_pixel() -> None:
    np.testing.assert_array_equal(
        decoded(encode(Image.new("RGB", (1, 1), (7, 8, 9)))), np.broadcast_to([7, 8, 9], (SIZE, SIZE, 3))
    )


@pytest.mark.parametrize("shape", [(20000, 1), (1, 20000), (3, 5000)])
def test_extreme_aspect_ratio(shape: tuple[int, int]) -> None:
    image = Image.fromarray(pixels_of(*shape))
    assert_same(decoded(encode(image)), reference(image))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        encode(Image.fromarray(pixels_of(50, 40)), "JPEG")[:-200],
        encode(Image.fromarray(pixels_of(50, 40)), "PNG")[:500],
        encode(Image.fromarray(pixels_of(50, 40)), "GIF"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "GIF", "PostScript"],
)
def test_undecodable(data: bytes) -> None:
    with pytest.raises(BrokenSample) as error:
        decode_picture(data, SIZE)
    assert error.value.cause is Cause.BROKEN_PICTURE


@pytest.mark.parametrize("side", [10_000, 20_000], ids=["warned about by Pillow", "refused by Pillow"])
def test_decompression_bomb(side: int) -> None:
    header = bytearray(encode(Image.new("1", (8, 8))))
    header[16:24] = side.to_bytes(4, "big") * 2  # width and height in the PNG header
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(BrokenSample) as error:
        decode_picture(bytes(header), SIZE)
    assert error.value.cause is Cause.DECOMPRESSION_BOMB


def test_normalise_gives_the_mean_picture_zero_mean_and_scales_by_the_deviation() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 1)[..., None].expand(2, 3, 256, 256)
    out = normalise(images)
    assert out.dtype == torch.float32
    assert out.shape == images.shape
    for channel, (mean, std) in enumerate(
        zip((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), strict=True)
    ):
        for value in (0, 100, 255):
            assert out[1, channel, value, 5].item() == pytest.approx((value / 255 - mean) / std, abs=1e-6)
    assert normalise(images[:0]).shape == (0, 3, 256, 256)


def test_normalise_rounds_once_to_a_lower_precision() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(1, 3, 1)[..., None]
    assert torch.equal(normalise(images, torch.bfloat16), normalise(images).bfloat16())
