from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from growclip_ds.data.centre import centre, centre_by_pillow


def noise(width: int, height: int) -> np.ndarray:
    """Away from black and white, so that no overshoot is clipped."""
    return np.random.default_rng(width * height).integers(90, 166, (height, width, 3), dtype=np.uint8)


def whole(pixels: np.ndarray, size: int) -> np.ndarray:
    """All of the picture resized by Pillow, then cropped."""
    height, width, _ = pixels.shape
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)[top : top + size, left : left + size].astype(int)


@pytest.mark.parametrize("shape", [(128, 64), (64, 128), (288, 96), (32, 100), (90, 32), (16, 64), (64, 1), (1, 64)])
def test_a_cut_on_the_edges_of_pixels_changes_nothing(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    np.testing.assert_allclose(centre(pixels, shape, 32).numpy(), whole(pixels, 32), atol=1)


@pytest.mark.parametrize("shape", [(512, 384), (384, 513), (100, 99), (31, 97), (3000, 40)])
def test_a_cut_elsewhere_shifts_by_no_more_than_a_32nd_of_a_pixel(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    expected = whole(pixels, 32)
    slopes = [np.abs(np.diff(expected, axis=axis)).mean() for axis in (0, 1)]
    assert np.abs(centre(pixels, shape, 32).numpy() - expected).mean() < sum(slopes) / 32 + 0.1  # for rounding


@pytest.mark.parametrize("size", [32, 33, 224])
def test_every_size_comes_out_whole(size: int) -> None:
    pixels = np.zeros((600, 600, 3), dtype=np.uint8)
    for short in range(1, 400):
        for long in (short, short + 1, 3 * short // 2):
            assert centre(pixels[:short, :long], (long, short), size).shape == (size, size, 3)
            assert centre(pixels[:long, :short], (short, long), size).shape == (size, size, 3)


@pytest.mark.parametrize("shape", [(40, 50), (128, 33), (32, 32)])
def test_pillow_to_the_bit(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    np.testing.assert_array_equal(centre_by_pillow(pixels, 32).numpy(), whole(pixels, 32))


@pytest.mark.parametrize("shape", [(500, 40), (40, 500), (3, 400)])
def test_pillow_of_a_long_picture(shape: tuple[int, int]) -> None:
    pixels = noise(*shape)
    np.testing.assert_allclose(centre_by_pillow(pixels, 32).numpy(), whole(pixels, 32), atol=1)
