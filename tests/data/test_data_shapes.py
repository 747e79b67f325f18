"""The generated data set: reproducible, exact, and readable as VOC."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adcam.data.shapes import CLASSES, make_shapes, render, shapes_class_set
from adcam.data.voc import load_voc


def _scenes(num: int, size_hw: tuple[int, int] = (96, 96)):
    return [render(np.random.default_rng((11, i)), size_hw=size_hw) for i in range(num)]


@pytest.mark.parametrize("size_hw", [(96, 96), (64, 112), (112, 64), (33, 47)])
def test_mask_and_image_have_the_size_asked_for(size_hw: tuple[int, int]) -> None:
    for img, mask, _ in _scenes(8, size_hw):
        assert img.shape == (*size_hw, 3)
        assert img.dtype == np.uint8
        assert mask.shape == size_hw
        assert mask.dtype == np.uint8


def test_same_state_of_the_generator_gives_the_same_scene() -> None:
    for (img, mask, ids), (again_img, again_mask, again_ids) in zip(
        _scenes(6), _scenes(6), strict=True
    ):
        np.testing.assert_array_equal(img, again_img)
        np.testing.assert_array_equal(mask, again_mask)
        assert ids == again_ids
    first, second = _scenes(2)
    assert (first[0] != second[0]).any()


def test_labels_are_exactly_the_classes_in_the_mask() -> None:
    for _, mask, class_ids in _scenes(60):
        assert class_ids == tuple(int(v) - 1 for v in np.unique(mask) if v > 0)


def test_every_class_empty_scenes_and_several_classes_occur() -> None:
    scenes = _scenes(150)
    counts = [len(class_ids) for _, _, class_ids in scenes]
    assert set(counts) == {0, 1, 2, 3}
    present = np.bincount([c for _, _, ids in scenes for c in ids], minlength=len(CLASSES))
    assert present.min() >= 20  # about 41 expected of each
    share = np.mean([(mask > 0).mean() for _, mask, _ in scenes])
    assert 0.15 < share < 0.4


def test_mask_follows_the_animal_and_not_the_clutter() -> None:
    """An animal's pixels differ from its surroundings more across the border than along it."""
    for img, mask, class_ids in _scenes(40):
        if len(class_ids) != 1:
            continue
        grey = img.astype(np.float64).sum(axis=2)
        step = np.abs(np.diff(grey, axis=1))
        border = (mask[:, 1:] > 0) != (mask[:, :-1] > 0)
        background = (mask[:, 1:] == 0) & (mask[:, :-1] == 0)
        assert step[border].mean() > 3 * step[background].mean()


@pytest.mark.parametrize("size_hw", [(31, 96), (96, 0), (-96, 96)])
def test_too_small_a_picture_is_refused(size_hw: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least 32"):
        render(np.random.default_rng(0), size_hw=size_hw)


def test_class_set_has_consecutive_values() -> None:
    class_set = shapes_class_set()
    assert class_set.classes == CLASSES
    assert class_set.mask_values == (1, 2, 3, 4, 5, 6)
    assert class_set.num_classes == 7
    assert class_set.palette[1] == (128, 0, 0)


def test_written_set_reads_back_as_voc(tmp_path: Path) -> None:
    make_shapes(tmp_path, num_train=5, num_val=3, size_hw=(48, 64), seed=4)
    for split, split_index, count in (("train", 0, 5), ("val", 1, 3)):
        dataset = load_voc(
            tmp_path, split, classes=shapes_class_set(), labels=tmp_path / "labels.csv"
        )
        assert len(dataset) == count
        for i in range(count):
            sample = dataset[i]
            img, mask, class_ids = render(
                np.random.default_rng((4, split_index, i)), size_hw=(48, 64)
            )
            assert sample.img_id == f"{split}_{i:05d}"
            np.testing.assert_array_equal(sample.img, img)
            assert sample.mask is not None
            np.testing.assert_array_equal(sample.mask, mask)
            assert sample.class_ids == class_ids
    meta = json.loads((tmp_path / "meta.json").read_text(encoding="utf-8"))
    assert meta["classes"] == list(CLASSES)
    assert (meta["seed"], meta["size_hw"], meta["num_train"], meta["num_val"]) == (
        4,
        [48, 64],
        5,
        3,
    )


def test_a_longer_split_begins_with_the_shorter_one(tmp_path: Path) -> None:
    make_shapes(tmp_path / "short", num_train=2, num_val=1, seed=7)
    make_shapes(tmp_path / "long", num_train=3, num_val=2, seed=7)
    names = sorted(p.relative_to(tmp_path / "short") for p in (tmp_path / "short").rglob("*.png"))
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "short" / name).read_bytes() == (tmp_path / "long" / name).read_bytes()


def test_another_seed_gives_other_pictures(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_shapes(tmp_path / str(seed), num_train=1, num_val=0, seed=seed)
    name = Path("JPEGImages") / "train_00000.png"
    assert (tmp_path / "0" / name).read_bytes() != (tmp_path / "1" / name).read_bytes()


@pytest.mark.parametrize("bad", [{"num_train": -1}, {"num_val": -2}, {"seed": -3}])
def test_negative_counts_and_seeds_are_refused(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        make_shapes(tmp_path, **{"num_train": 1, "num_val": 1, **bad})
    assert not (tmp_path / "meta.json").exists()
