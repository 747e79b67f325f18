"""Masks keep their values; what could change them unseen is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.extra import numpy as hnp
from PIL import Image

from adcam.data.images import ImageError
from adcam.data.png import map_values, parse_values, read_mask, voc_palette, write_mask
from adcam.errors import AdcamError

PngWriter: TypeAlias = Callable[[tuple[int, int], int, int, bytes], bytes]
PALETTE = voc_palette()


def test_voc_palette_has_the_known_colours() -> None:
    # From the VOC 2012 development kit's colour chart.
    assert PALETTE[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert PALETTE[8] == (64, 0, 0)  # cat
    assert PALETTE[15] == (192, 128, 128)  # person
    assert PALETTE[20] == (0, 64, 128)  # tvmonitor
    assert PALETTE[255] == (224, 224, 192)  # void
    assert len(set(PALETTE)) == 256


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_round_trip_with_deterministic_bytes(tmp_path: Path, mask: np.ndarray) -> None:
    first, second = tmp_path / "m" / "a.png", tmp_path / "m" / "b.png"
    write_mask(first, mask, PALETTE)
    read = read_mask(first)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, mask)
    write_mask(second, np.asfortranarray(mask), PALETTE)
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as stored:
        colors = np.asarray(stored.convert("RGB"))
    np.testing.assert_array_equal(colors, np.array(PALETTE, np.uint8)[mask])


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((3, 4), np.int64),
        np.zeros((3, 4), bool),
        np.zeros((3, 4, 1), np.uint8),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_only_uint8_planes_are_written(tmp_path: Path, mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"m\.png: a mask must be uint8 \(H, W\)"):
        write_mask(tmp_path / "m.png", mask, PALETTE)
    assert not list(tmp_path.iterdir())


def test_a_short_palette_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="256 colours, got 21"):
        write_mask(tmp_path / "m.png", np.zeros((1, 1), np.uint8), PALETTE[:21])


def test_grayscale_values_are_kept(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 20], [8, 254, 255]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_palettes_give_indices(tmp_path: Path, bits: int) -> None:
    mask = np.arange(2**bits, dtype=np.uint8).reshape(2, -1)
    img = Image.fromarray(mask)
    img.putpalette([200 - i for i in range(3 * 2**bits)])
    img.save(tmp_path / "m.png", bits=bits)
    with Image.open(tmp_path / "m.png") as stored:
        assert stored.tile[0].args == f"P;{bits}"
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)


def test_grayscale_of_4_bits_is_refused_since_it_would_be_scaled(
    tmp_path: Path, encode_png: PngWriter
) -> None:
    (tmp_path / "m.png").write_bytes(encode_png((1, 2), 0, 4, b"\x12"))
    with Image.open(tmp_path / "m.png") as stored:
        assert np.asarray(stored).tolist() == [
            [17, 34]
        ]  # 1 and 2 were stored: why it cannot be taken
    with pytest.raises(ImageError, match=r"m\.png: .*8-bit.*got mode L;4"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (np.ones((2, 3), np.uint16), "I;16B"),
        (np.ones((2, 3), bool), "1"),
    ],
)
def test_other_modes_are_refused(tmp_path: Path, pixels: Any, mode: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=rf"m\.png: .* got mode {mode}"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_equal_channels_are_values(tmp_path: Path, mode: str) -> None:
    mask = np.array([[0, 1, 20], [8, 254, 255]], np.uint8)
    Image.fromarray(mask).convert(mode).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)


def test_colour_masks_name_the_way_out(tmp_path: Path) -> None:
    rgb = np.array([[(1, 1, 1), (1, 2, 1)]], np.uint8)
    Image.fromarray(rgb).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png: .*`adcam convert recode-masks --colors TABLE`"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize(
    ("text", "expected"), [("255=1", {255: 1}), (" 1=0, 2 = 1", {1: 0, 2: 1}), (None, {})]
)
def test_values_can_be_mapped(text: str | None, expected: dict[int, int]) -> None:
    assert parse_values(text) == expected
    mask = np.array([[0, 1, 2, 255]], np.uint8)
    wanted = [[expected.get(value, value) for value in mask[0].tolist()]]
    assert map_values(mask, parse_values(text)).tolist() == wanted


@pytest.mark.parametrize("text", ["255", "255=", "a=1", "256=1", "1=256", "1=2,1=3", "-1=2", ","])
def test_bad_mappings_of_values(text: str) -> None:
    with pytest.raises(AdcamError, match="values"):
        parse_values(text)


COLORS = dict(enumerate(PALETTE))


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_are_decoded_by_the_palette(tmp_path: Path, channels: int) -> None:
    mask = np.array([[0, 8, 15, 255], [20, 1, 2, 3], [0, 0, 8, 8]], np.uint8)
    rgb = np.full((*mask.shape, channels), 255, np.uint8)
    rgb[..., :3] = np.array(PALETTE, np.uint8)[mask]
    Image.fromarray(rgb).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", colors=COLORS), mask)


def test_palette_files_are_decoded_by_the_colours_they_show(tmp_path: Path) -> None:
    img = Image.fromarray(np.array([[0, 1]], np.uint8))
    img.putpalette([9, 9, 9, 128, 0, 0])
    img.save(tmp_path / "m.png")
    colors = {0: (9, 9, 9), 5: (128, 0, 0)}
    assert read_mask(tmp_path / "m.png", colors=colors).tolist() == [[0, 5]]


def test_of_equal_colours_the_lowest_value_counts(tmp_path: Path) -> None:
    colors = {2: (0, 0, 0), 1: (9, 9, 9), 0: (0, 0, 0)}
    Image.fromarray(np.zeros((1, 2, 3), np.uint8)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", colors=colors), [[0, 0]])


def test_unknown_colours_are_named(tmp_path: Path) -> None:
    rgb = np.zeros((1, 3, 3), np.uint8)
    rgb[0, 1] = (1, 2, 3)
    Image.fromarray(rgb).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png: 1 colours are not in the table .*: \(1, 2, 3\)"):
        read_mask(tmp_path / "m.png", colors=COLORS)


def test_jpeg_masks_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "m.png", "JPEG")
    with pytest.raises(ImageError, match="must be a PNG file, got JPEG"):
        read_mask(tmp_path / "m.png")


def test_a_missing_mask(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"m\.png: there is no such file"):
        read_mask(tmp_path / "m.png")


def test_a_truncated_mask(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    write_mask(path, np.random.default_rng(0).integers(0, 256, (50, 60), dtype=np.uint8), PALETTE)
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(ImageError, match=r"m\.png: cannot be decoded"):
        read_mask(path)
