from __future__ import annotations

import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from growclip_ds.data.faults import BrokenSample, Cause
from growclip_ds.data.jpeg import MARGIN, decode_scaled, scale_for
from growclip_ds.data.orientation import orientation
from growclip_ds.data.pictures import MAX_PIXELS, MEAN, STD, decode_picture, normalise

SIZE = 32
MODES = pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])


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


def detailed(width: int, height: int) -> Image.Image:
    """As a photograph: large shapes with edges, texture, and noise in all colours."""
    rng = np.random.default_rng(width + height)
    y, x = np.mgrid[:height, :width]
    shapes = 60 * np.sign(np.sin(x / 23) + np.cos(y / 31)) + 30 * np.sin((x + y) / 3)
    pixels = 120 + shapes[..., None] * [1, 0.6, -0.8] + rng.normal(0, 12, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def decoded(data: bytes, size: int = SIZE, exact: bool = False) -> np.ndarray:
    picture = decode_picture(data, size, exact)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, size, size)
    assert picture.is_contiguous()
    return picture.permute(1, 2, 0).numpy()


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual.astype(int), expected.astype(int), atol=1)  # one rounding of a byte


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("shape", [(50, 40), (40, 51), (32, 32), (33, 32), (31, 97), (9, 7), (224, 640)])
@MODES
def test_every_format_and_shape_as_resize_then_crop(kind: str, shape: tuple[int, int], exact: bool) -> None:
    data = encode(Image.fromarray(pixels_of(*shape)), kind)
    actual = decoded(data, exact=exact)
    expected = reference(Image.open(BytesIO(data)).convert("RGB"))
    if exact:
        np.testing.assert_array_equal(actual, expected)
    elif kind == "JPEG" and min(shape) >= 2 * MARGIN * SIZE:  # decoded at a fraction of its size
        assert np.abs(actual.astype(int) - expected).mean() < 1
    else:
        assert_same(actual, expected)


@pytest.mark.parametrize("shape", [(512, 384), (1024, 768), (768, 1023), (673, 1344), (1792, 1792)])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}], ids=["420", "444", "progressive"])
def test_fast_differs_little_from_exact(shape: tuple[int, int], options: dict[str, object]) -> None:
    data = encode(detailed(*shape), "JPEG", quality=90, **options)
    exact = decoded(data, 224, exact=True).astype(int)
    np.testing.assert_array_equal(exact, reference(Image.open(BytesIO(data)), 224))
    assert np.abs(decoded(data, 224) - exact).mean() < 3


@pytest.mark.parametrize(
    ("size", "scale"), [(257, 1), (128, 1 / 2), (96, 3 / 8), (95, 3 / 8), (64, 1 / 4), (32, 1 / 8)]
)
def test_jpeg_is_decoded_no_smaller_than_the_margin(size: int, scale: float) -> None:
    data = encode(detailed(511, 384), "JPEG")
    assert scale_for(384, size) == scale
    pixels = decode_scaled(data, 511, 384, scale)
    assert pixels is not None
    assert min(pixels.shape[:2]) >= min(384, MARGIN * size)
    assert pixels.shape == (np.ceil(384 * scale), np.ceil(511 * scale), 3)


@pytest.mark.parametrize("stated", [1, 3, 6, 8])
def test_a_scaled_jpeg_lies_where_the_whole_one_does(stated: int) -> None:
    """Its last column and row are mostly not of the picture: taken for pictures, they shift the rest."""
    rows = np.linspace(0, 1, 8 * 200 + 1)[:, None, None]
    columns = np.linspace(0, 1, 8 * 250 + 1)[None, :, None]
    waves = 127 + 100 * np.sin(100 * rows) * np.sin(125 * columns) * np.ones(3)
    exif = Image.Exif()
    exif[0x0112] = stated
    data = encode(Image.fromarray(waves.astype(np.uint8)), "JPEG", quality=95, exif=exif)
    exact = decoded(data, 130, exact=True).astype(int)
    assert np.abs(exact - 127).mean() > 30
    assert np.abs(decoded(data, 130) - exact).mean() < 1.5


@MODES
@pytest.mark.parametrize("shape", [(300, 200), (900, 200)], ids=["whole", "cropped first"])
def test_little_changes_even_where_overshoots_are_clipped(shape: tuple[int, int], exact: bool) -> None:
    sharp = Image.fromarray(np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), (*shape, 3)))
    difference = decoded(encode(sharp), exact=exact).astype(float) - reference(sharp)
    assert np.abs(difference).mean() < 1


@MODES
def test_a_picture_of_the_right_size_is_not_touched(exact: bool) -> None:
    pixels = pixels_of(SIZE, SIZE)
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(pixels)), exact=exact), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_greyscale(kind: str) -> None:
    data = encode(Image.fromarray(pixels_of(50, 40, 1)), kind)
    stored = np.asarray(Image.open(BytesIO(data)))
    assert_same(decoded(data), reference(Image.fromarray(np.stack([stored] * 3, axis=-1))))


def test_jpeg_whose_channels_are_red_green_and_blue() -> None:
    data = encode(Image.fromarray(pixels_of(50, 40)), "JPEG", quality=100, keep_rgb=True)
    assert_same(decoded(data), reference(Image.fromarray(pixels_of(50, 40))))


def test_sixteen_bit_greyscale_keeps_its_contrast() -> None:
    grey = pixels_of(50, 40, 1)
    data = encode(Image.fromarray(grey.astype(np.uint16) * 257))
    assert_same(decoded(data), reference(Image.fromarray(np.stack([grey] * 3, axis=-1))))


def test_palette() -> None:
    palette = Image.fromarray(pixels_of(50, 40)).quantize(16)
    assert_same(decoded(encode(palette)), reference(palette.convert("RGB")))


@MODES
def test_cmyk(exact: bool) -> None:
    inks = pixels_of(50, 40, 4)
    data = encode(Image.fromarray(inks, mode="CMYK"), "JPEG", quality=100)
    stored = np.asarray(Image.open(BytesIO(data))).astype(int)
    light = (255 - stored[..., :3]) * (255 - stored[..., 3:]) / 255
    assert_same(decoded(data, exact=exact), reference(Image.fromarray(light.round().astype(np.uint8))))


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
    ("stated", "upright"),
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
@MODES
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(stated: int, upright, kind: str, exact: bool) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker, so that the orientation is not the first tag"
    exif[0x0112] = stated
    data = encode(Image.fromarray(pixels_of(50, 41)), kind, exif=exif, quality=100)
    stored = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    assert_same(decoded(data, exact=exact), reference(Image.fromarray(np.ascontiguousarray(upright(stored)))))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "value", "stated"),
    [(3, 6, 6), (4, 8, 8), (3, 0, 1), (3, 9, 1), (2, 6, 1)],
    ids=["short", "long", "0", "9", "text"],
)
def test_orientation_tag(order: str, kind: int, value: int, stated: int) -> None:
    number = struct.pack(order + ("I" if kind == 4 else "Hxx"), value)
    directory = struct.pack(order + "H", 2) + struct.pack(order + "HHII", 0x0100, 3, 1, 7)
    directory += struct.pack(order + "HHI", 0x0112, kind, 1) + number
    block = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8) + directory
    assert orientation(block) == stated
    assert orientation(b"Exif\0\0" + block) == stated
    for length in range(len(block) - 4):
        assert orientation(block[:length]) == 1


@MODES
def test_damaged_exif_does_not_cost_the_picture(exact: bool, recwarn: pytest.WarningsRecorder) -> None:
    data = encode(Image.fromarray(pixels_of(50, 40)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff")
    picture = decoded(data, exact=exact)
    assert not recwarn.list
    assert_same(picture, reference(Image.open(BytesIO(data)).convert("RGB")))


def test_one_pixel() -> None:
    np.testing.assert_array_equal(
        decoded(encode(Image.new("RGB", (1, 1), (7, 8, 9)))), np.broadcast_to([7, 8, 9], (SIZE, SIZE, 3))
    )


@MODES
@pytest.mark.parametrize("shape", [(20000, 1), (1, 20000), (3, 5000)])
def test_extreme_aspect_ratio(shape: tuple[int, int], exact: bool) -> None:
    image = Image.fromarray(pixels_of(*shape))
    assert_same(decoded(encode(image), exact=exact), reference(image))


@pytest.mark.parametrize("shape", [(2000, 200), (200, 2000)])
def test_extreme_aspect_ratio_of_a_scaled_jpeg(shape: tuple[int, int]) -> None:
    data = encode(Image.fromarray(pixels_of(*shape)), "JPEG", quality=95)
    assert np.abs(decoded(data).astype(int) - reference(Image.open(BytesIO(data)))).mean() < 1


LARGE = encode(detailed(401, 320), "JPEG")


@MODES
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        encode(Image.fromarray(pixels_of(50, 40)), "JPEG")[:-200],
        LARGE[: len(LARGE) // 2],
        LARGE[:-1000],
        LARGE[:2],
        LARGE[:600],
        LARGE[:100] + bytes(500),
        encode(Image.fromarray(pixels_of(50, 40)), "PNG")[:500],
        encode(Image.fromarray(pixels_of(50, 40)), "WEBP")[:100],
        encode(Image.fromarray(pixels_of(50, 40)), "GIF"),
        encode(Image.fromarray(pixels_of(50, 40)), "PPM"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    ],
    ids=str.split("empty text cut-JPEG half-JPEG large-cut-JPEG start header zeroed-JPEG PNG WebP GIF PPM PostScript"),
)
def test_undecodable(data: bytes, exact: bool) -> None:
    with pytest.raises(BrokenSample) as error:
        decode_picture(data, SIZE, exact)
    assert error.value.cause is Cause.BROKEN_PICTURE


def test_what_cannot_be_used_is_the_same_in_both_modes() -> None:
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(150):
        data = np.frombuffer(LARGE, dtype=np.uint8).copy()
        data[rng.integers(len(data), size=4)] = rng.integers(256, size=4)
        outcomes = []
        for exact in (False, True):
            try:
                decode_picture(data.tobytes(), SIZE, exact)
                outcomes.append(None)
            except BrokenSample as error:
                outcomes.append(error.cause)
        assert outcomes[0] == outcomes[1]
        broken += outcomes[0] is not None
    assert 0 < broken < 150


def png_bomb(side: int) -> bytes:
    header = bytearray(encode(Image.new("1", (8, 8))))
    header[16:24] = side.to_bytes(4, "big") * 2  # width and height in the PNG header
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    return bytes(header)


def jpeg_bomb(side: int) -> bytes:
    data = bytearray(encode(Image.new("L", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = side.to_bytes(2, "big") * 2
    return bytes(data)


@MODES
@pytest.mark.parametrize("bomb", [png_bomb, jpeg_bomb])
@pytest.mark.parametrize("side", [10_000, 20_000], ids=["warned about by Pillow", "refused by Pillow"])
def test_decompression_bomb(side: int, bomb, exact: bool, recwarn: pytest.WarningsRecorder) -> None:
    assert side**2 > MAX_PIXELS == Image.MAX_IMAGE_PIXELS
    with pytest.raises(BrokenSample) as error:
        decode_picture(bomb(side), SIZE, exact)
    assert error.value.cause is Cause.DECOMPRESSION_BOMB
    assert not recwarn.list


def test_threads_decode_without_touching_the_warning_filters() -> None:
    data = [encode(detailed(100 + number, 90), kind) for number in range(8) for kind in ("JPEG", "PNG")]
    data.append(encode(Image.fromarray(pixels_of(50, 40)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff"))
    filters = warnings.filters.copy()
    with ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(lambda one: decode_picture(one, SIZE, exact=True), data * 5))
    assert warnings.filters == filters
    for picture, one in zip(pictures, data * 5, strict=True):
        assert torch.equal(picture, decode_picture(one, SIZE, exact=True))


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
    mean, std = (torch.tensor(values).mul(255).view(3, 1, 1) for values in (MEAN, STD))
    assert torch.equal(normalise(images), (images - mean) / std)


def test_normalise_rounds_once_to_a_lower_precision() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(1, 3, 1)[..., None]
    assert torch.equal(normalise(images, torch.bfloat16), normalise(images).bfloat16())
