"""Stored maps: what comes back, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adcam.data.sources import build_classes
from adcam.errors import AdcamError
from adcam.labeling.maps_file import encode_maps, load_maps
from adcam.labeling.mask_maker import resize_maps
from adcam.structures import ClassMaps

CLASSES = build_classes(["cat", "dog", "horse"])


def make_maps(hw: tuple[int, int], class_ids: tuple[int, ...] = (0, 2)) -> ClassMaps:
    """Smooth maps, as a ViT gives them: interpolated from a grid of 16-pixel patches."""
    grid_hw = (-(-hw[0] // 16), -(-hw[1] // 16))
    grid = np.random.default_rng(1).random((len(class_ids), *grid_hw), dtype=np.float32)
    return ClassMaps(class_ids, resize_maps(grid, hw))


@pytest.mark.parametrize("hw", [(1, 1), (17, 33), (48, 32), (375, 500), (500, 334)])
@pytest.mark.parametrize(("dtype", "step"), [("uint8", 1 / 510), ("float16", 2**-11)])
def test_round_trip(tmp_path: Path, hw: tuple[int, int], dtype: str, step: float) -> None:
    maps = make_maps(hw)
    (tmp_path / "a.npz").write_bytes(encode_maps(maps, CLASSES, hw, dtype=dtype))
    stored = load_maps(tmp_path / "a.npz")
    assert stored.ori_hw == hw
    assert stored.classes == CLASSES.classes and stored.mask_values == (8, 12, 13)
    assert stored.class_maps.class_ids == (0, 2)
    small = resize_maps(maps.score_maps, (-(-hw[0] // 16), -(-hw[1] // 16)))
    assert stored.class_maps.score_maps.shape == small.shape
    np.testing.assert_allclose(stored.class_maps.score_maps, small, atol=step + 1e-6)
    upsampled = stored.upsample()
    assert upsampled.class_ids == (0, 2) and upsampled.score_maps.shape == (2, *hw)
    assert upsampled.score_maps.dtype == np.float32


def test_maps_on_the_stored_grid_come_back_nearly_whole(tmp_path: Path) -> None:
    maps = make_maps((96, 160))
    (tmp_path / "a.npz").write_bytes(encode_maps(maps, CLASSES, (96, 160)))
    difference = load_maps(tmp_path / "a.npz").upsample().score_maps - maps.score_maps
    # Sampling between two grid points of a piecewise linear map: small, not nothing.
    assert np.abs(difference).mean() < 0.01 and np.abs(difference).max() < 0.06


def test_no_class_is_an_empty_map(tmp_path: Path) -> None:
    maps = ClassMaps((), np.zeros((0, 20, 40), np.float32))
    (tmp_path / "a.npz").write_bytes(encode_maps(maps, CLASSES, (20, 40)))
    stored = load_maps(tmp_path / "a.npz")
    assert stored.class_maps.class_ids == () and stored.upsample().score_maps.shape == (0, 20, 40)


def test_a_map_is_small() -> None:
    assert len(encode_maps(make_maps((375, 500)), CLASSES, (375, 500))) < 5000


def write(path: Path, **changes: Any) -> Path:
    arrays: dict[str, Any] = {
        "score_maps": np.zeros((1, 2, 3), np.uint8),
        "class_ids": np.array([1]),
        "classes": np.array(["cat", "dog"]),
        "mask_values": np.array([8, 12], np.uint8),
        "ori_hw": np.array([20, 40]),
    }
    arrays.update(changes)
    arrays = {name: array for name, array in arrays.items() if array is not None}
    np.savez_compressed(path, **arrays)
    return path


def test_the_written_form_of_these_tests_is_legal(tmp_path: Path) -> None:
    assert load_maps(write(tmp_path / "a.npz")).class_maps.class_ids == (1,)


@pytest.mark.parametrize(
    "changes",
    [
        {"ori_hw": None},
        {"extra": np.zeros(1)},
        {"class_ids": np.array([2])},
        {"class_ids": np.array([-1])},
        {"class_ids": np.array([1.0])},
        {"class_ids": np.array([0, 1])},
        {"class_ids": np.array([1, 1]), "score_maps": np.zeros((2, 2, 3), np.uint8)},
        {"mask_values": np.array([8], np.uint8)},
        {"score_maps": np.zeros((1, 3, 2), np.uint8)},
        {"score_maps": np.zeros((2, 3), np.uint8)},
        {"score_maps": np.full((1, 2, 3), 1.5, np.float16)},
        {"score_maps": np.full((1, 2, 3), np.nan, np.float16)},
        {"ori_hw": np.array([20, 40, 3])},
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a\.npz"):
        load_maps(write(tmp_path / "a.npz", **changes))


def test_pickles_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", classes=np.array(["cat", {}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read as maps"):
        load_maps(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz"):
        load_maps(tmp_path / "a.npz")


def test_truncated_and_plain_arrays_are_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (tmp_path / "b.npz").write_bytes(buffer.getvalue())
    for name in ("a.npz", "b.npz", "missing.npz"):
        with pytest.raises(ValueError, match=name):
            load_maps(tmp_path / name)


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="'float32'"):
        encode_maps(make_maps((20, 40)), CLASSES, (20, 40), dtype="float32")


def test_a_finer_stride_keeps_what_follows_colours(tmp_path: Path) -> None:
    maps = make_maps((61, 90))
    (tmp_path / "a.npz").write_bytes(encode_maps(maps, CLASSES, (61, 90), stride=4))
    stored = load_maps(tmp_path / "a.npz")
    assert stored.class_maps.score_maps.shape[1:] == (16, 23)
    assert stored.upsample().score_maps.shape[1:] == (61, 90)
    with pytest.raises(AdcamError, match="stride of \\(16, 4\\), got 8"):
        encode_maps(maps, CLASSES, (61, 90), stride=8)
