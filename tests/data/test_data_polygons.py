"""Outlines that fill to the same pixels, and Ultralytics' text files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from adcam.data.polygons import (
    YoloObject,
    draw_yolo,
    encode_yolo,
    fill_polygon,
    read_yolo,
    trace_regions,
)

VALUES = (15, 8, 12)

regions = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9))
masks = arrays(
    np.uint8,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, *VALUES, 255]),
)


def as_region(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in text.split()])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("... .#. ...", [[(1, 1), (2, 1), (2, 2), (1, 2)]]),
        ("##. ..#", [[(0, 0), (2, 0), (2, 1), (0, 1)], [(2, 1), (3, 1), (3, 2), (2, 2)]]),
        ("##. .##", [[(0, 0), (2, 0), (2, 1), (3, 1), (3, 2), (1, 2), (1, 1), (0, 1)]]),
        ("... ...", []),
    ],
)
def test_outlines_run_along_pixel_borders(text: str, expected: list[list[tuple[int, int]]]) -> None:
    found = [list(map(tuple, outline.tolist())) for outline in trace_regions(as_region(text))]
    assert found == expected


def test_a_hole_is_joined_by_a_seam() -> None:
    (outline,) = trace_regions(as_region("#### #..# ####"))
    corners = list(map(tuple, outline.tolist()))
    assert corners[:5] == [(0, 0), (4, 0), (4, 3), (0, 3), (0, 0)]
    assert corners[5] == corners[9] and corners[10] == (0, 0)
    assert set(corners[5:9]) == {(1, 1), (1, 2), (3, 2), (3, 1)}


@given(regions)
def test_filling_the_outlines_gives_the_region_back(region: np.ndarray) -> None:
    outlines = trace_regions(region)
    filled = [fill_polygon(outline, region.shape) for outline in outlines]
    assert (np.sum(filled, axis=0) == region).all() if filled else not region.any()
    height, width = region.shape
    for outline in outlines:
        assert (outline >= 0).all() and (outline <= (width, height)).all()


def test_filling_takes_pixels_by_their_centres() -> None:
    triangle = np.array([[0, 0], [4, 0], [0, 4]])
    expected = as_region("###. ##.. #... ....")
    # On the slanted side itself lie the centres (3, 0), (2, 1), …: a right end is outside.
    np.testing.assert_array_equal(fill_polygon(triangle, (4, 4)), expected)
    np.testing.assert_array_equal(fill_polygon(triangle[::-1], (4, 4)), expected)
    outside = np.array([[-5, -5], [20, -5], [20, 2.4], [-5, 2.4]])
    np.testing.assert_array_equal(fill_polygon(outside, (4, 3)), as_region("### ### ... ..."))


@given(masks)
def test_masks_come_back_without_their_ignored_pixels(
    tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("yolo") / "x.txt"
    path.write_text(encode_yolo(mask, VALUES))
    back = draw_yolo(read_yolo(path, len(VALUES)), mask.shape, VALUES)
    np.testing.assert_array_equal(back, np.where(mask == 255, 0, mask))


def test_a_large_mask_comes_back(tmp_path: Path) -> None:
    mask = np.zeros((1, 65_537), np.uint8)
    mask[0, 40_001:65_536] = 8
    path = tmp_path / "x.txt"
    path.write_text(encode_yolo(mask, VALUES))
    np.testing.assert_array_equal(draw_yolo(read_yolo(path, 3), mask.shape, VALUES), mask)


def test_lines_are_class_and_shares() -> None:
    mask = np.zeros((4, 8), np.uint8)
    mask[1:3, 2:6] = 12
    mask[0, 7] = 15
    assert encode_yolo(mask, VALUES) == "0 0.875 0 1 0 1 0.25 0.875 0.25\n" + (
        "2 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n"
    )
    assert encode_yolo(np.zeros((2, 2), np.uint8), VALUES) == ""
    with pytest.raises(ValueError, match=r"values \[7\]; legal are 0, 8, 12, 15 and 255"):
        encode_yolo(np.full((2, 2), 7, np.uint8), VALUES)


def test_the_smaller_object_is_on_top_and_of_two_alike_the_first() -> None:
    def square(low: float, high: float) -> np.ndarray:
        return np.array([[low, low], [high, low], [high, high], [low, high]])

    large, small, same = square(0, 1), square(0.25, 0.75), square(0.25, 0.75)
    objects = [YoloObject(0, small), YoloObject(1, same), YoloObject(2, large)]
    mask = draw_yolo(objects, (4, 4), VALUES)
    assert mask[0, 0] == VALUES[2] and mask[1, 1] == VALUES[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n", "line 1: expected"),
        ("0 0 0 1 0 1 1\n3 0 0 1 0 1 1\n", r"line 2: class must be 0\.\.2, got 3"),
        ("cat 0 0 1 0 1 1\n", "line 1: expected a class and numbers"),
        ("0 0 0 1 0\n", "line 1: a polygon needs x and y of at least three points, got 4"),
        ("0 0 0 1 0 1 1 0\n", "got 7 numbers"),
        ("0 0 0 2 0 1 1\n", r"shares in 0\.\.1"),
        ("0 0 0 nan 0 1 1\n", r"shares in 0\.\.1"),
    ],
)
def test_refusals_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"x\.txt, .*{message}"):
        read_yolo(path, 3)


def test_an_empty_file_has_no_objects_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("\n")
    assert read_yolo(tmp_path / "x.txt", 3) == []
    with pytest.raises(ValueError, match=r"y\.txt: cannot be read"):
        read_yolo(tmp_path / "y.txt", 3)
