"""Every layout of images that the command line takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcam.data.open_images import open_images, read_id_list
from adcam.data.sources import build_classes

CLASSES = build_classes(["cat", "dog"])


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    for name in ("x", "y"):
        make(root / "JPEGImages" / f"{name}.jpg")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("y\nx\n")
    (lists / "val.txt").write_text("x\n")
    return root


def test_a_folder_finds_the_labels_beside_its_images(tmp_path: Path) -> None:
    make(tmp_path / "sub" / "b.png"), make(tmp_path / "a.jpg")
    assert [r.class_ids for r in open_images(tmp_path, CLASSES).records] == [None, None]
    (tmp_path / "labels.csv").write_text("image_id,labels\na,dog\nsub/b,\n")
    images = open_images(tmp_path, CLASSES)
    assert [(r.img_id, r.class_ids) for r in images.records] == [("a", (1,)), ("sub/b", ())]
    assert open_images(tmp_path, CLASSES, labels=None).records[0].class_ids is None
    assert len(open_images(tmp_path, CLASSES, ids=["sub/b"])) == 1


def test_one_image_and_a_list_relative_to_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = make(tmp_path / "pics" / "a b.jpg"), make(tmp_path / "pics" / "c" / "d.png")
    assert [r.img_id for r in open_images(first, CLASSES).records] == ["a b"]
    (tmp_path / "list.txt").write_text(f"\ufeffpics/a b.jpg\r\n\r\n{second}\r\n", "utf-8")
    (tmp_path / "l.csv").write_text("image_id,labels\nc/d,cat\na b,\nmoon,\n")
    images = open_images(tmp_path / "list.txt", CLASSES, labels=tmp_path / "l.csv")
    assert [(r.img_id, r.class_ids) for r in images.records] == [("a b", ()), ("c/d", (0,))]
    assert "l.csv: 1 of 3 labelled ids have no image in images and are left out" in caplog.text
    (tmp_path / "list.txt").write_text("2007_000032\n")
    with pytest.raises(ValueError, match="is no image path"):
        open_images(tmp_path / "list.txt", CLASSES)
    (tmp_path / "list.txt").write_text("a.HEIC\n")
    with pytest.raises(ValueError, match=r"is no image path.* \(export HEIC .* as JPEG\)"):
        open_images(tmp_path / "list.txt", CLASSES)


def test_a_list_takes_its_labels_from_folders(tmp_path: Path) -> None:
    make(tmp_path / "cat" / "1.jpg"), make(tmp_path / "dog" / "1.jpg")
    (tmp_path / "list.txt").write_text("dog/1.jpg\ncat/1.jpg\n")
    images = open_images(tmp_path / "list.txt", CLASSES, labels="folders")
    assert [(r.img_id, r.class_ids) for r in images.records] == [("dog/1", (1,)), ("cat/1", (0,))]


def test_a_voc_root_needs_a_split_and_prefers_annotations(voc: Path) -> None:
    with pytest.raises(ValueError, match=r"--voc-split, one of train, val"):
        open_images(voc, CLASSES)
    (voc / "labels.csv").write_text("image_id,labels\nx,cat\ny,dog\n")
    images = open_images(voc, CLASSES, voc_split="train")
    assert [(r.img_id, r.class_ids) for r in images.records] == [("y", (1,)), ("x", (0,))]
    (voc / "Annotations").mkdir()
    for name in ("x", "y"):
        xml = "<annotation><object><name>dog</name></object></annotation>"
        (voc / "Annotations" / f"{name}.xml").write_text(xml)
    images = open_images(voc, CLASSES, voc_split="train", ids=["x"])
    assert [(r.img_id, r.class_ids) for r in images.records] == [("x", (1,))]


def test_what_is_not_there(tmp_path: Path) -> None:
    photo = make(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="no such image, list or folder"):
        open_images(tmp_path / "nothing", CLASSES)
    with pytest.raises(ValueError, match="is no VOC root"):
        open_images(tmp_path, CLASSES, voc_split="train")
    with pytest.raises(
        ValueError, match=r"must be a \.csv, .* file, .* or 'folders' .*, got 'xml'$"
    ):
        open_images(photo, CLASSES, labels="xml")
    with pytest.raises(ValueError, match="did you mean 'predicted'"):
        open_images(photo, CLASSES, labels="predictd")


def test_other_labels_beside_the_images(tmp_path: Path) -> None:
    make(tmp_path / "a.jpg"), make(tmp_path / "dog" / "b.jpg")
    (tmp_path / "L.CSV").write_text("filename;label\na.jpg;Dog\n")
    labels = tmp_path / "L.CSV"
    assert [r.class_ids for r in open_images(tmp_path, CLASSES, labels=labels).records] == [
        (1,),
        None,
    ]
    (tmp_path / "Labels.CSV").write_text("image_id,labels\na,cat\n")
    assert open_images(tmp_path, CLASSES).records[0].class_ids == (0,)
    (tmp_path / "labels.json").write_text('{"a": "dog"}')
    with pytest.raises(ValueError, match=r"holds Labels\.CSV and labels\.json"):
        open_images(tmp_path, CLASSES)


def test_one_folder_a_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "Cat" / "a.jpg"), make(tmp_path / "dog" / "b.jpg")
    images = open_images(tmp_path, CLASSES, labels="folders")
    assert [(r.img_id, r.class_ids) for r in images.records] == [("Cat/a", (0,)), ("dog/b", (1,))]
    assert "labels of folders are read as one folder a class: cat, dog" in caplog.text


def test_lists_from_windows(tmp_path: Path) -> None:
    make(tmp_path / "pics" / "sub" / "a.jpg")
    (tmp_path / "list.TXT").write_text("pics\\sub\\a.jpg\r\n")
    (image,) = open_images(tmp_path / "list.TXT", CLASSES).records
    assert image.img_id == "a" and image.img_path.is_file()
    (tmp_path / "ids.txt").write_text("sub\\a.jpg\n")
    ids = read_id_list(tmp_path / "ids.txt")
    assert [r.img_id for r in open_images(tmp_path / "pics", CLASSES, ids=ids).records] == ["sub/a"]


def test_an_id_that_looks_like_a_file_name(tmp_path: Path) -> None:
    make(tmp_path / "a.jpg.png"), make(tmp_path / "a.png")
    assert [r.img_id for r in open_images(tmp_path, CLASSES).records] == ["a", "a.jpg"]
    assert [r.img_id for r in open_images(tmp_path, CLASSES, ids=["a.jpg"]).records] == ["a.jpg"]


def test_id_lists(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes("\ufeffa\r\n\r\n sub/b.jpg \r\n".encode())
    assert read_id_list(path) == ["a", "sub/b"]
    path.write_text("a\nb\na.png\n")
    with pytest.raises(ValueError, match=r"ids\.txt, line 3: image id 'a' is already on line 1"):
        read_id_list(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        read_id_list(path)
    with pytest.raises(ValueError, match=r"nothing\.txt: cannot be read"):
        read_id_list(tmp_path / "nothing.txt")
