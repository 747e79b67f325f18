"""Any folder, any names: ids, labels and the clashes that are refused."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcam.data.dataset import build_class_set
from adcam.data.folder import load_folder, load_images
from adcam.data.images import ImageError
from adcam.data.png import voc_palette, write_mask

FILES = ("b.png", "a.JPG", "holidays/dog 1.jpeg", "holidays/Ærø/v1.2.png", "日本.bmp")
IDS = ("a", "b", "holidays/dog 1", "holidays/Ærø/v1.2", "日本")


def write_image(path: Path, hw: tuple[int, int] = (3, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else None
    Image.fromarray(np.zeros((*hw, 3), np.uint8)).save(path, kind)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "my photos"
    for name in FILES:
        write_image(root / name)
    for name in (".hidden.png", ".cache/x.png", "._a.jpg", "notes.txt"):
        write_image(root / name) if name.endswith(".png") else (root / name).touch()
    return root


def labels(path: Path, text: str) -> Path:
    path.write_text("image_id,labels\n" + text, encoding="utf-8")
    return path


def test_ids_are_paths_without_suffix(photos: Path) -> None:
    dataset = load_folder(photos)
    assert tuple(r.img_id for r in dataset.records) == IDS
    assert dataset.split == "my photos"
    assert dataset.class_set.classes == ()
    assert {r.class_ids for r in dataset.records} == {None}
    assert [s.ori_hw for s in dataset] == [(3, 5)] * 5
    assert dataset.records[2].img_path == photos / "holidays" / "dog 1.jpeg"


def test_labels_with_and_without_suffix(photos: Path, tmp_path: Path) -> None:
    csv = labels(tmp_path / "l.csv", "a.JPG,tabby cat;dog\nholidays/dog 1,dog\n日本.bmp,\n")
    dataset = load_folder(photos, labels=csv)
    assert dataset.class_set == build_class_set("my photos", ["dog", "tabby cat"])
    assert [r.class_ids for r in dataset.records] == [(0, 1), None, (0,), None, ()]
    given = load_folder(photos, labels=csv, classes=["tabby cat", "cow", "dog"])
    assert given.class_set.mask_values == (1, 2, 3)
    assert [r.class_ids for r in given.records] == [(0, 2), None, (2,), None, ()]
    class_set = build_class_set("mine", ["dog", "tabby cat", "cow"])
    assert load_folder(photos, labels=csv, classes=class_set).class_set is class_set
    with pytest.raises(
        ValueError, match=r"l\.csv, line 2: unknown class 'dog'; legal are tabby cat"
    ):
        load_folder(photos, labels=csv, classes=["tabby cat"])


def test_labels_of_other_images_are_left_out_and_told(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    csv = labels(tmp_path / "l.csv", "a,dog\ngone,cat\ndog 1,dog\n")
    found = load_folder(photos, labels=csv)
    assert {r.img_id: r.class_ids for r in found.records}["a"] == (1,)
    assert "2 of 3 labelled ids have no image in" in caplog.text and "gone, dog 1" in caplog.text


def test_labels_of_other_images_alone_are_an_error(photos: Path, tmp_path: Path) -> None:
    csv = labels(tmp_path / "l.csv", "gone,dog\ndog 1,dog\n")
    with pytest.raises(ValueError, match=r"l\.csv: none of the 2 labelled .*my photos: got gone, "):
        load_folder(photos, labels=csv)


def test_decomposed_file_names_match_composed_ids(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "café")
    write_image(tmp_path / "x" / f"{name}.png")
    csv = labels(tmp_path / "l.csv", "café,dog\n")
    dataset = load_folder(tmp_path / "x", labels=csv)
    assert [(r.img_id, r.class_ids) for r in dataset.records] == [("café", (0,))]
    assert dataset[0].ori_hw == (3, 5)


def test_wanted_ids_keep_their_order(photos: Path) -> None:
    dataset = load_folder(photos, ids=["日本", "a.JPG", "holidays/dog 1"])
    assert [r.img_id for r in dataset.records] == ["日本", "a", "holidays/dog 1"]
    with pytest.raises(ValueError, match=r"1 ids are not in my photos/my photos .*: nope"):
        load_folder(photos, ids=["a", "nope"])
    with pytest.raises(ValueError, match="1 image ids are given twice: a"):
        load_folder(photos, ids=["a", "a.JPG"])


def test_two_files_that_differ_in_suffix_alone_are_refused(photos: Path) -> None:
    write_image(photos / "b.jpg")
    with pytest.raises(ValueError, match=r"b\.(png|jpg) and .*b\.(png|jpg) have the same id 'b'"):
        load_folder(photos)


def test_masks_inside_the_folder_are_not_images(photos: Path) -> None:
    for img_id in IDS[1:]:
        write_mask(photos / "masks" / f"{img_id}.png", np.ones((3, 5), np.uint8), voc_palette())
    dataset = load_folder(photos, mask_dir=photos / "masks", classes=["dog"])
    assert tuple(r.img_id for r in dataset.records) == IDS
    assert dataset.missing_files() == [photos / "masks" / "a.png"]
    mask = dataset[3].mask
    assert mask is not None
    assert mask.shape == (3, 5)
    with pytest.raises(ImageError, match=r"masks/a\.png: there is no such file"):
        dataset[0]


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no images in this folder"):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match="there is no such folder"):
        load_folder(tmp_path / "none")


@pytest.mark.skipif(sys.platform != "linux", reason="only here may names be any bytes")
def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", os.fsencode(tmp_path) + b"/\xff.png")  # noqa: PTH104
    with pytest.raises(ValueError, match="not valid UTF-8"):
        load_folder(tmp_path)


def test_single_images_and_lists(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = load_images(photos / "holidays" / "dog 1.jpeg", classes=["dog"])
    assert [r.img_id for r in one.records] == ["dog 1"]
    assert one.class_set.classes == ("dog",)
    many = load_images([photos / "holidays/dog 1.jpeg", photos / "b.png"])
    assert [r.img_id for r in many.records] == ["holidays/dog 1", "b"]
    assert many[1].ori_hw == (3, 5)
    monkeypatch.chdir(photos / "holidays")
    relative = load_images(["dog 1.jpeg", "../a.JPG"])
    assert [r.img_id for r in relative.records] == ["holidays/dog 1", "a"]
    relative.check_files()


def test_lists_with_faults(photos: Path) -> None:
    with pytest.raises(ValueError, match="no image is given"):
        load_images([])
    with pytest.raises(ValueError, match="have the same id 'b'"):
        load_images([photos / "b.png", photos / "b.jpg"])
    absent = load_images([photos / "none.png", photos / "holidays", photos / "a.JPG"])
    assert absent.missing_files() == [photos / "none.png", photos / "holidays"]
