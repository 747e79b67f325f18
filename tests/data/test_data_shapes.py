"""The generated data set: reproducible, exact, and readable as VOC."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adcam.data.png import read_mask
from adcam.data.shapes import (
    CLASSES,
    make_shape_boxes,
    make_shapes,
    render,
    render_single,
    shapes_class_set,
)
from adcam.data.voc import load_voc
from adcam.data.wsol import load_wsol, read_wsol_mask, read_wsol_metadata


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
    with pytest.raises(ValueError, match=r"must (not be negative|be at least 0)"):
        make_shapes(tmp_path, **{"num_train": 1, "num_val": 1, **bad})
    assert not (tmp_path / "meta.json").exists()


def test_single_scenes_show_one_animal_of_any_class_and_size() -> None:
    scenes = [render_single(np.random.default_rng((5, i)), size_hw=(64, 80)) for i in range(90)]
    for img, is_animal, _ in scenes:
        assert img.shape == (64, 80, 3) and img.dtype == np.uint8
        assert is_animal.shape == (64, 80) and is_animal.dtype == bool
    areas = np.array([is_animal.mean() for _, is_animal, _ in scenes])
    assert areas.min() >= 0.01 and areas.max() > 3 * areas.min()
    assert np.bincount([class_id for *_, class_id in scenes]).min() >= 5  # 15 expected of each
    again = render_single(np.random.default_rng((5, 0)), size_hw=(64, 80))
    np.testing.assert_array_equal(again[0], scenes[0][0])
    np.testing.assert_array_equal(again[1], scenes[0][1])


def test_box_set_is_read_as_wsolevaluations_metadata(tmp_path: Path) -> None:
    make_shape_boxes(tmp_path, num_train=4, num_val=2, num_test=3, size_hw=(48, 64), seed=1)
    metadata_root = tmp_path / "metadata"
    for split, count in (("train-weaksup", 4), ("train-fullsup", 2), ("test", 3)):
        images = load_wsol(tmp_path, metadata_root / "shapes", split, classes=CLASSES)
        assert len(images) == count
        for sample in images:
            ((x0, y0, x1, y1),) = sample.boxes
            mask = read_mask(tmp_path / "masks" / f"{sample.img_id}.png")
            inside = np.zeros((48, 64), dtype=bool)
            inside[y0:y1, x0:x1] = True
            assert set(np.unique(mask)) == {0, 255} and not mask[~inside].any()
            for line in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]):
                assert line.any()  # no smaller box holds the animal
    masks = read_wsol_metadata(metadata_root / "shapes_masks" / "test").masks
    found = read_wsol_mask(tmp_path, *masks["test/00001.png"], hw=(48, 64))
    expected = read_mask(tmp_path / "masks" / "test" / "00001.png") // 255
    np.testing.assert_array_equal(found, expected)


def test_box_set_depends_on_seed_split_and_number_alone(tmp_path: Path) -> None:
    for name, seed, num_test in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1)):
        make_shape_boxes(
            tmp_path / name, num_train=1, num_val=1, num_test=num_test, size_hw=(32, 32), seed=seed
        )
    first, longer, other = (tmp_path / name / "test" / "00000.png" for name in "abc")
    assert first.read_bytes() == longer.read_bytes() != other.read_bytes()
    assert first.read_bytes() != (tmp_path / "a" / "val" / "00000.png").read_bytes()


@pytest.mark.parametrize("bad", [{"num_val": 0}, {"seed": -1}, {"size_hw": (96, 20)}])
def test_impossible_box_sets_are_refused(tmp_path: Path, bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"at least|negative"):
        make_shape_boxes(tmp_path, **{"num_train": 1, "num_val": 1, "num_test": 1, **bad})
