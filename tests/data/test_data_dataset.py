"""A list of records becomes samples; what does not fit together is refused with both names."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcam.data.dataset import ImageDataset, Record, build_class_set
from adcam.data.images import ImageError
from adcam.data.png import voc_palette, write_mask
from adcam.structures import ClassSet, Sample

CLASSES = build_class_set("toys", ["car", "ball", "doll"])
HW = (4, 7)


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    """Three images of 4×7: one with a mask and labels, one with labels, one with nothing."""
    for i, name in enumerate("abc"):
        Image.fromarray(np.full((*HW, 3), i, np.uint8)).save(tmp_path / f"{name}.png")
    mask = np.zeros(HW, np.uint8)
    mask[1, 2:5] = [1, 3, 255]
    write_mask(tmp_path / "masks" / "a.png", mask, voc_palette())
    records = [
        Record("a", tmp_path / "a.png", (0, 2), tmp_path / "masks" / "a.png"),
        Record("b", tmp_path / "b.png", ()),
        Record("c", tmp_path / "c.png"),
    ]
    return ImageDataset(CLASSES, "train", records)


def test_samples(dataset: ImageDataset) -> None:
    samples = list(dataset)
    assert [s.img_id for s in samples] == ["a", "b", "c"]
    assert [s.class_ids for s in samples] == [(0, 2), (), None]
    assert [s.img[0, 0].tolist() for s in samples] == [[0] * 3, [1] * 3, [2] * 3]
    assert all(s.ori_hw == HW for s in samples)
    assert samples[0].mask is not None
    assert samples[0].mask[1].tolist() == [0, 0, 1, 3, 255, 0, 0]
    assert samples[1].mask is None
    assert samples[2].img_path == dataset.records[2].img_path
    last = dataset[-1]
    assert isinstance(last, Sample)
    assert last.img_id == "c"
    with pytest.raises(IndexError):
        dataset[3]


def test_slices_and_subsets_are_data_sets(dataset: ImageDataset) -> None:
    assert [s.img_id for s in dataset[1:]] == ["b", "c"]
    picked = dataset.subset(["c", "a"])
    assert [r.img_id for r in picked.records] == ["c", "a"]
    assert (picked.split, picked.class_set) == ("train", CLASSES)
    assert picked.index_of("a") == 1
    with pytest.raises(ValueError, match=r"2 ids are not in toys/train \(3 images\): d, e"):
        dataset.subset(["a", "d", "e"])
    with pytest.raises(ValueError, match="1 image ids are given twice: a"):
        dataset.subset(["a", "a"])
    with pytest.raises(ValueError, match="no image 'z' in toys/train"):
        dataset.index_of("z")


def test_with_labels(dataset: ImageDataset) -> None:
    labelled = dataset.with_labels({"c": [2, 0, 2], "b": [], "elsewhere": [1]})
    assert [r.class_ids for r in labelled.records] == [None, (), (0, 2)]
    assert [r.mask_path for r in labelled.records] == [r.mask_path for r in dataset.records]
    assert [r.class_ids for r in dataset.with_labels({}).records] == [None] * 3
    with pytest.raises(ValueError, match=r"image 'a': class ids .* in 0\.\.2, got \(3,\)"):
        dataset.with_labels({"a": [3]})
    with pytest.raises(ValueError, match=r"^none of the 1 labelled ids .* got x; .* such as 'a'"):
        dataset.with_labels({"x": [0]})


@pytest.mark.parametrize("class_ids", [(3,), (-1,), (1, 0), (1, 1)])
def test_class_ids_must_be_ascending_and_known(class_ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image 'a': class ids must be ascending"):
        ImageDataset(CLASSES, "x", [Record("a", Path("a.png"), class_ids)])


def test_duplicate_ids_are_refused() -> None:
    records = [Record(str(i % 20), Path("x")) for i in range(40)]
    with pytest.raises(ValueError, match=r"20 image ids are given twice: 0, 1, .*\(10 more\)"):
        ImageDataset(CLASSES, "x", records)


def test_a_mask_of_another_size_names_both_files_and_sizes(dataset: ImageDataset) -> None:
    mask_path = dataset.records[0].mask_path
    assert mask_path is not None
    write_mask(mask_path, np.zeros(HW[::-1], np.uint8), voc_palette())
    with pytest.raises(ValueError, match=r"masks/a\.png has 7×4 .*image .*/a\.png has 4×7"):
        dataset[0]


def test_mask_values_outside_the_class_set(dataset: ImageDataset) -> None:
    mask = np.array([[0, 1, 4], [200, 255, 3]], np.uint8)
    mask_path = dataset.records[0].mask_path
    assert mask_path is not None
    write_mask(mask_path, mask, voc_palette())
    with pytest.raises(ValueError, match=r"a\.png: .* values \[4, 200\]; legal are 0, 1, 2, 3 and"):
        dataset.load_mask(0)
    lenient = ImageDataset(CLASSES, "x", dataset.records, other_values="ignore")
    for data in (lenient, lenient[:1], lenient.subset(["a"])):
        read = data.load_mask(0)
        assert read is not None
        assert read.dtype == np.uint8
        assert read.tolist() == [[0, 1, 255], [255, 255, 3]]


def test_missing_files_are_found_without_reading(dataset: ImageDataset) -> None:
    assert dataset.missing_files() == []
    dataset.check_files()
    img_path, mask_path = dataset.records[1].img_path, dataset.records[0].mask_path
    assert mask_path is not None
    img_path.unlink()
    mask_path.unlink()
    assert dataset.missing_files() == [mask_path, img_path]
    assert dataset.missing_files(masks=False) == [img_path]
    with pytest.raises(ValueError, match=r"2 files of toys/train .*masks/a\.png, .*/b\.png"):
        dataset.check_files()
    with pytest.raises(ValueError, match=r"1 files of toys/train .*/b\.png"):
        dataset.check_files(masks=False)
    with pytest.raises(ImageError, match=r"b\.png: there is no such file"):
        dataset[1]
    with pytest.raises(ImageError, match=r"masks/a\.png: there is no such file"):
        dataset[0]


def test_one_bad_image_leaves_the_others_readable(dataset: ImageDataset) -> None:
    path = dataset.records[1].img_path
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(ImageError, match=r"b\.png"):
        dataset[1]
    assert [dataset.load_image(i).shape for i in (0, 2)] == [(*HW, 3)] * 2


def test_it_can_be_sent_to_workers(dataset: ImageDataset) -> None:
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.records == dataset.records
    assert copy[0].img_id == "a"


def test_build_class_set() -> None:
    built = build_class_set("toys", ["car", "ball"])
    assert built == ClassSet("toys", ("car", "ball"), (1, 2), voc_palette())
    assert build_class_set("many", [str(i) for i in range(254)]).mask_values[-1] == 254
    with pytest.raises(ValueError, match="at most 254 classes, got 255"):
        build_class_set("many", [str(i) for i in range(255)])
    with pytest.raises(ValueError, match="given twice"):
        build_class_set("twice", ["a", "a"])


def test_more_classes_than_masks_can_show() -> None:
    names = [f"n{i}" for i in range(1000)]
    class_set = build_class_set("ilsvrc", names, masks=False)
    assert (class_set.num_fg_classes, class_set.mask_values) == (1000, ())
    with pytest.raises(ValueError, match="at most 254 classes, got 1000"):
        build_class_set("ilsvrc", names)
