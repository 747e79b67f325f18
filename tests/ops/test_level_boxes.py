"""Boxes of all level sets: hand cases, OpenCV at every level on random maps, refusals."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from adcam.ops import level_boxes as package
from adcam.ops.level_boxes import (
    CONTOURS,
    LevelBoxes,
    available_backends,
    level_boxes,
)

BACKENDS = ("numba", "reference")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if reason := available_backends()[request.param]:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


def at(found: LevelBoxes, level: int) -> list[tuple[int, ...]]:
    return sorted(map(tuple, found.at(level).tolist()))


def make_map(generator: np.random.Generator) -> np.ndarray:
    """A small map: of few levels, plateaus, smooth, constant, or one pixel wide."""
    height, width = (int(side) for side in generator.integers(1, 15, size=2))
    kind = generator.integers(6)
    if kind == 0:
        return np.full((height, width), generator.integers(256), dtype=np.uint8)
    if kind == 1:
        noise = generator.random((3 * height, 2 * width))
        smooth = gaussian_filter(noise, float(generator.uniform(0.5, 3)))
        span = np.ptp(smooth) or 1.0
        return ((smooth - smooth.min()) / span * 255).astype(np.uint8)
    num_levels = int(generator.integers(2, 7))
    steps = generator.integers(num_levels, size=(height, width))
    if kind == 2:  # plateaus
        steps = np.kron(steps, np.ones((2, 3), dtype=np.int64))
    if kind == 3:
        steps = steps[:1]
    return (steps * generator.choice([1, 9])).astype(np.uint8)


def test_a_ring_with_something_inside(backend: str) -> None:
    levels = np.zeros((9, 11), dtype=np.uint8)
    levels[1:8, 1:10] = 100
    levels[2:7, 2:9] = 0
    levels[4, 5:7] = 200
    found = level_boxes(levels, backend=backend)
    # outer border, hole (through the ring's own pixels), and the island in the hole
    assert at(found, 0) == at(found, 99) == [(1, 1, 10, 8), (1, 1, 10, 8), (5, 4, 7, 5)]
    assert at(found, 100) == at(found, 199) == [(5, 4, 7, 5)]
    assert at(found, 200) == []
    largest = level_boxes(levels, contours="largest", backend=backend)
    assert at(largest, 50) == [(1, 1, 10, 8)]
    assert at(largest, 150) == [(5, 4, 7, 5)]


def test_diagonals_join_objects_and_not_holes(backend: str) -> None:
    levels = np.array([[0, 9, 0], [9, 0, 9], [0, 9, 0]], dtype=np.uint8)
    assert at(level_boxes(levels, backend=backend), 3) == [(0, 0, 3, 3), (0, 0, 3, 3)]
    open_corner = np.array([[9, 9, 9], [9, 0, 9], [9, 9, 0]], dtype=np.uint8)
    assert at(level_boxes(open_corner, backend=backend), 3) == [(0, 0, 3, 3), (0, 0, 3, 3)]


def test_area_is_the_polygons_and_the_last_of_equals_wins(backend: str) -> None:
    levels = np.zeros((7, 12), dtype=np.uint8)
    levels[0, :9] = 5  # nine pixels in a line: a polygon of area 0
    levels[2:4, 0:2] = 5  # four pixels: area 1
    levels[5:7, 4:6] = 5  # the same, begins later
    found = level_boxes(levels, contours="largest", backend=backend)
    assert at(found, 4) == [(4, 5, 6, 7)]
    levels[5:7, 4:6] = 0
    assert at(level_boxes(levels, contours="largest", backend=backend), 4) == [(0, 2, 2, 4)]
    levels[2:4, 0:2] = 0
    levels[4, 3] = 5
    assert at(level_boxes(levels, contours="largest", backend=backend), 4) == [(3, 4, 4, 5)]


@pytest.mark.parametrize("value", [0, 1, 255])
def test_constant_maps(backend: str, value: int) -> None:
    for contours in CONTOURS:
        found = level_boxes(np.full((3, 5), value, np.uint8), contours=contours, backend=backend)
        for level in range(256):
            assert at(found, level) == ([(0, 0, 5, 3)] if level < value else [])


def test_equals_opencv_on_1000_random_maps() -> None:
    if reason := available_backends()["numba"]:
        pytest.skip(reason)
    generator = np.random.default_rng(7)
    for number in range(1000):
        levels = make_map(generator)
        for contours in CONTOURS:
            fast = level_boxes(levels, contours=contours, backend="numba")
            plain = level_boxes(levels, contours=contours, backend="reference")
            # Both cover the same levels, and a map has few: compare at each that occurs.
            for level in {0, *np.unique(levels).tolist(), *(np.unique(levels) - 1).tolist()}:
                assert Counter(at(fast, level)) == Counter(at(plain, level)), (
                    f"map {number}, {contours}, above {level}:\n{levels}"
                )


def test_equals_opencv_on_larger_maps() -> None:
    if reason := available_backends()["numba"]:
        pytest.skip(reason)
    generator = np.random.default_rng(8)
    for sigma in (0.0, 0.7, 1.5):
        noise = gaussian_filter(generator.random((47, 62)), sigma)
        levels = ((noise - noise.min()) / np.ptp(noise) * 30).astype(np.uint8)
        for contours in CONTOURS:
            fast = level_boxes(levels, contours=contours, backend="numba")
            plain = level_boxes(levels, contours=contours, backend="reference")
            assert all(at(fast, level) == at(plain, level) for level in range(31))


def test_equals_opencv_on_real_maps(shared_dir) -> None:
    if reason := available_backends()["numba"]:
        pytest.skip(reason)
    stored = np.load(shared_dir / "golden" / "wsol_boxes.npz", allow_pickle=False)
    for levels in stored["score_maps_u8"][:6]:
        for contours in CONTOURS:
            fast = level_boxes(levels, contours=contours, backend="numba")
            plain = level_boxes(levels, contours=contours, backend="reference")
            assert all(at(fast, level) == at(plain, level) for level in range(256))


def test_ranges_are_within_the_levels(backend: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        levels = make_map(generator)
        found = level_boxes(levels, backend=backend)
        assert found.boxes.dtype == found.start.dtype == found.stop.dtype == np.int64
        assert (found.start >= 0).all() and (found.start < found.stop).all()
        assert (found.stop <= int(levels.max())).all()
        height, width = levels.shape
        assert (found.boxes >= 0).all() and (found.boxes[:, 2:] <= [width, height]).all()


def test_input_is_not_changed_and_may_be_a_view(backend: str) -> None:
    whole = np.random.default_rng(1).integers(0, 4, (8, 10), dtype=np.uint8)
    before = whole.copy()
    whole.setflags(write=False)
    view = level_boxes(whole[::2, ::-1], backend=backend)
    assert np.array_equal(whole, before)
    copy = level_boxes(before[::2, ::-1].copy(), backend=backend)
    assert all(at(view, level) == at(copy, level) for level in range(4))


@pytest.mark.parametrize(
    "levels", [np.zeros((2, 2)), np.zeros(4, np.uint8), np.zeros((0, 3), np.uint8)]
)
def test_other_arrays_are_refused(levels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"levels must be uint8 \(H, W\), got"):
        level_boxes(levels)


def test_unknown_choices_are_refused() -> None:
    levels = np.zeros((2, 2), np.uint8)
    with pytest.raises(
        ValueError, match=r"contours must be one of .*'all', 'largest'.*got 'outer'"
    ):
        level_boxes(levels, contours="outer")
    with pytest.raises(ValueError, match=r"backend must be one of .*got 'cuda'"):
        level_boxes(levels, backend="cuda")


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"numba": ["no numba here"], "reference": []}
    monkeypatch.setattr(package, "_not_supported_reasons", lambda: reasons)
    assert available_backends() == {"numba": "no numba here", "reference": None}
    levels = np.array([[0, 3]], dtype=np.uint8)
    assert at(level_boxes(levels), 0) == [(1, 0, 2, 1)]
    with pytest.raises(RuntimeError, match="backend 'numba' cannot run: no numba here"):
        level_boxes(levels, backend="numba")


def test_the_reason_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adcam.ops.level_boxes.numba_component_tree", None)
    reason = package._not_supported_reasons.__wrapped__()["numba"]
    assert "pip install numba" in reason[0]
