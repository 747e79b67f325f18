"""VOC layout: lists, labels and masks in every form in which they are passed around."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import annotation, write_list
from PIL import Image

from adcam.data.annotation_labels import read_object_names
from adcam.data.dataset import build_class_set
from adcam.data.png import voc_palette, write_mask
from adcam.data.voc import (
    EXPECTED_COUNTS,
    VOC_CLASSES,
    load_voc,
    voc_class_set,
)
from adcam.errors import AdcamError

ANIMALS = ("cat", "cow", "dog", "horse", "person", "sheep")
IDS = ("2007_000032", "2007_000039", "2008_000008")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of 3×5 with cat and person; dog (difficult) and person; aeroplane."""
    root = tmp_path / "VOC 2012"
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True)
    present = (("cat", "person"), ("person", "dog", "person"), ("aeroplane",))
    for img_id, names in zip(IDS, present, strict=True):
        Image.new("RGB", (5, 3)).save(root / "JPEGImages" / f"{img_id}.jpg")
        (root / "Annotations" / f"{img_id}.xml").write_text(annotation(*names))
        mask = np.zeros((3, 5), np.uint8)
        for column, name in enumerate(names):
            mask[1, column] = VOC_CLASSES.index(name) + 1
        mask[2] = 255
        write_mask(root / "SegmentationClass" / f"{img_id}.png", mask, voc_palette())
    write_list(root / "ImageSets" / "Segmentation" / "train.txt", reversed(IDS))
    return root


def class_names(dataset: Any) -> list[tuple[str, ...]]:
    return [tuple(dataset.class_set.classes[i] for i in r.class_ids) for r in dataset.records]


ALL_NAMES = [("aeroplane",), ("dog", "person"), ("cat", "person")]
ANIMAL_NAMES = [(), ("dog", "person"), ("cat", "person")]


def test_the_class_set() -> None:
    full = voc_class_set()
    assert full.num_fg_classes == 20
    assert full.num_classes == 21
    assert full.mask_values == tuple(range(1, 21))
    some = voc_class_set(ANIMALS)
    assert some.mask_values == (8, 10, 12, 13, 15, 17)
    assert some.palette[8] == full.palette[8] == (64, 0, 0)
    with pytest.raises(ValueError, match="unknown class 'kitten'; legal are aeroplane, bicycle"):
        voc_class_set(["cat", "kitten"])


def xml_in(encoding: str, declared: str) -> bytes:
    objects = "".join(f"<object><name>{name}</name></object>" for name in ("Hund", "Mädchen"))
    text = f'<?xml version="1.0" encoding="{declared}"?>\n<annotation>{objects}</annotation>'
    return text.encode(encoding)


@pytest.mark.parametrize("labels", ["xml", "mask"])
def test_annotations_and_masks_give_the_same_labels(root: Path, labels: str) -> None:
    dataset = load_voc(root, "train", labels=labels)
    assert [r.img_id for r in dataset.records] == list(reversed(IDS))
    assert class_names(dataset) == ALL_NAMES
    dataset.check_files()
    assert class_names(load_voc(root, "train", labels=labels, classes=ANIMALS)) == ANIMAL_NAMES


def test_a_subset_keeps_values_and_ignores_the_other_classes(root: Path) -> None:
    dataset = load_voc(root, "train", classes=ANIMALS)
    aeroplane, dog = dataset.load_mask(0), dataset.load_mask(1)
    assert aeroplane is not None
    assert dog is not None
    assert aeroplane[1].tolist() == [255, 0, 0, 0, 0]
    assert dog[1].tolist() == [15, 12, 15, 0, 0]
    whole = load_voc(root, "train").load_mask(0)
    assert whole is not None
    assert whole[1, 0] == 1


def test_labels_from_a_csv(root: Path) -> None:
    csv = root / "labels.csv"
    csv.write_text(
        f"image_id,labels\n{IDS[2]},aeroplane\n{IDS[1]}.jpg,person dog\nx,cow\n{IDS[0]},\n"
    )
    assert class_names(load_voc(root, "train", labels=csv)) == [
        ("aeroplane",),
        ("dog", "person"),
        (),
    ]
    csv.write_text(f"image_id,labels\n{IDS[2]},cat\n")
    with pytest.raises(ValueError, match=r"labels\.csv: 2 images of split 'train' have no entry"):
        load_voc(root, "train", labels=str(csv))
    csv.write_text(f"image_id,labels\n{IDS[2]},kitten\n")
    with pytest.raises(ValueError, match=r"labels\.csv, line 2: unknown class 'kitten'"):
        load_voc(root, "train", labels=csv)


def test_labels_from_npy(root: Path) -> None:
    hot = np.eye(20, dtype=np.float32)
    rows = {
        2007000032: hot[7] + hot[14],
        2007000039: hot[11] + hot[14],
        2008000008: hot[0],
        2009000001: hot[3],
    }
    path = root / "cls_labels.npy"
    np.save(path, np.array(rows, dtype=object), allow_pickle=True)
    assert class_names(load_voc(root, "train", labels=path)) == ALL_NAMES
    assert class_names(load_voc(root, "train", labels=path, classes=ANIMALS)) == ANIMAL_NAMES


def test_labels_not_known(root: Path) -> None:
    assert [r.class_ids for r in load_voc(root, "train", labels=None).records] == [None] * 3
    with pytest.raises(ValueError, match=r"labels must be 'xml', 'mask', None or a \.npy"):
        load_voc(root, "train", labels="jpeg")


def test_bad_annotations_name_file_and_value(root: Path) -> None:
    path = root / "Annotations" / f"{IDS[0]}.xml"
    path.write_text(annotation("cat", "unicorn"))
    with pytest.raises(
        ValueError, match=rf"{IDS[0]}\.xml: unknown class 'unicorn'; legal are aero"
    ):
        load_voc(root, "train")


def test_a_damaged_or_missing_annotation_costs_its_image_alone(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "Annotations" / f"{IDS[0]}.xml").write_text("<annotation><object>")
    (root / "Annotations" / f"{IDS[2]}.xml").unlink()
    assert [r.img_id for r in load_voc(root, "train").records] == [IDS[1]]
    assert "2 of the 3 images of split 'train' are left out" in caplog.text
    assert f"{IDS[0]}.xml: not an XML file" in caplog.text
    assert f"{IDS[2]}.xml: there is no such annotation" in caplog.text
    (root / "Annotations" / f"{IDS[1]}.xml").unlink()
    with pytest.raises(AdcamError, match=r"no annotation of split 'train' can be read: .*xml"):
        load_voc(root, "train")


NAMES = ("Hund", "Mädchen")


@pytest.mark.parametrize(
    "content",
    [
        xml_in("utf-8", "utf8"),
        xml_in("utf-8", "UTF-8"),
        xml_in("latin-1", "iso-8859-1"),
        xml_in("utf-16", "utf-16"),
        xml_in("utf-8", "utf-16"),
        xml_in("gb18030", "gb2312"),
        xml_in("utf-8-sig", "utf-8"),
        xml_in("utf-8", "utf-8").replace(b"<annotation>", b'<annotation xmlns="urn:x">'),
        xml_in("utf-8", "utf-8").replace(b"object>", b"v:object>"),
    ],
)
def test_annotations_in_every_encoding_and_namespace(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.xml").write_bytes(content)
    assert read_object_names(tmp_path / "a.xml") == list(NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (xml_in("utf-8", "klingon"), "declares the unknown encoding 'klingon'"),
        (xml_in("utf-8", "hex"), "declares the unknown encoding 'hex'"),
        (xml_in("latin-1", "utf-8"), "not an XML file in utf-8"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "declares entities"),
        (b"<a>" * 1000, "nested more than 100 levels deep"),
        (b"", "not an XML file"),
        (b"\x00\xff", "not an XML file"),
    ],
)
def test_bad_xml_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(AdcamError, match=rf"a\.xml: .*{message}"):
        read_object_names(tmp_path / "a.xml")


def test_lists_of_one_class_and_of_file_names(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists = root / "ImageSets" / "Main"
    lists.mkdir(exist_ok=True)
    write_list(lists / "cat_train.txt", [f"{IDS[0]} -1", f"{IDS[1]}  1", f"{IDS[2]}  0"])
    assert [r.img_id for r in load_voc(root, "cat_train").records] == list(IDS)
    assert "lists 1, 0 or -1 behind ids; all its images are taken" in caplog.text
    write_list(lists / "files.txt", [f"{i}.jpg" for i in IDS])
    dataset = load_voc(root, "files")
    assert [r.img_id for r in dataset.records] == list(IDS)
    dataset.check_files(masks=False)
    write_list(lists / "sub.txt", ["some_folder/x"])
    (record,) = load_voc(root, "sub", labels=None).records
    assert record.img_path == root / "JPEGImages" / "some_folder" / "x.jpg"
    write_list(lists / "odd.txt", [IDS[0], "9" * 300, "a\0b"])
    assert len(load_voc(root, "odd", labels=None).missing_files(masks=False)) == 2
    write_list(lists / "windows.txt", [f"JPEGImages\\{IDS[0]}.jpg"])
    load_voc(root, "windows").check_files(masks=False)


@pytest.mark.parametrize("name", ["train_aug", "trainaug"])
@pytest.mark.parametrize("split", ["train_aug", "trainaug"])
def test_train_aug_by_either_name(root: Path, name: str, split: str) -> None:
    write_list(root / "ImageSets" / "Segmentation" / f"{name}.txt", IDS)
    assert [r.mask_path for r in load_voc(root, split).records] == [None] * 3
    folder = root / "SegmentationClassAug"
    folder.mkdir()
    dataset = load_voc(root, split)
    assert [r.mask_path for r in dataset.records] == [folder / f"{i}.png" for i in IDS]
    assert len(dataset.missing_files()) == 3
    other = load_voc(root, split, mask_dir="SegmentationClass")
    assert other.missing_files() == []


def test_pair_lists(root: Path) -> None:
    pairs = root / "ImageSets" / "Segmentation" / "anything.txt"
    write_list(pairs, [f"/JPEGImages/{i}.jpg /SegmentationClass/{i}.png" for i in IDS])
    dataset = load_voc(root, "anything")
    assert [r.img_id for r in dataset.records] == list(IDS)
    assert dataset.split == "anything"
    dataset.check_files()
    assert dataset[0].mask is not None
    (root / "SegmentationClass").rename(root / "Own")
    write_list(pairs, [f"/JPEGImages/{i}.jpg /Own/{i}.png" for i in IDS])
    own = load_voc(root, "anything")
    assert [r.mask_path for r in own.records] == [root / "Own" / f"{i}.png" for i in IDS]
    (root / "Own").rename(root / "SegmentationClass")
    without = load_voc(root, "anything", mask_dir=None)
    assert [r.mask_path for r in without.records] == [None] * 3
    write_list(pairs, [f"JPEGImages/{i}.jpg" for i in IDS])
    assert load_voc(root, "anything")[0].mask is not None


def test_a_list_with_bom_crlf_and_blank_lines(root: Path) -> None:
    path = root / "ImageSets" / "Segmentation" / "train.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(IDS).encode() + b"\r\n")
    assert [r.img_id for r in load_voc(root, "train").records] == list(IDS)


def test_main_lists_promise_no_masks(root: Path) -> None:
    write_list(root / "ImageSets" / "Main" / "aux.txt", IDS)
    gone = root / "SegmentationClass" / f"{IDS[1]}.png"
    gone.unlink()
    assert [r.mask_path is not None for r in load_voc(root, "aux").records] == [True, False, True]
    assert load_voc(root, "train").missing_files() == [gone]
    with pytest.raises(ValueError, match=rf"labels='mask', but image '{IDS[1]}' has no mask"):
        load_voc(root, "aux", labels="mask")


def test_segmentation_lists_come_before_main(root: Path) -> None:
    write_list(root / "ImageSets" / "Main" / "train.txt", IDS[:1])
    assert len(load_voc(root, "train")) == 3


def test_images_with_other_suffixes(root: Path) -> None:
    old = root / "JPEGImages" / f"{IDS[0]}.jpg"
    with Image.open(old) as img:
        img.save(old.with_suffix(".png"))
    old.unlink()
    dataset = load_voc(root, "train")
    dataset.check_files()
    assert dataset.records[2].img_path == old.with_suffix(".png")
    old.with_suffix(".png").unlink()
    assert load_voc(root, "train").missing_files() == [old]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([IDS[0], IDS[1], "", IDS[0]], rf"line 4: image id '{IDS[0]}' is already on line 1"),
        ([f"{IDS[0]} 2"], r"line 1: expected an id, or an image path and a mask path"),
        (["../a"], r"line 1: paths must stay below their folder, got '\.\./a'"),
        (["a.jpg b.png c"], r"line 1: expected an id, or an image path and a mask path"),
        ([], r"the list is empty"),
    ],
)
def test_bad_lists_name_file_line_and_value(root: Path, lines: list[str], message: str) -> None:
    write_list(root / "ImageSets" / "Segmentation" / "train.txt", lines)
    with pytest.raises(ValueError, match=r"train\.txt.*" + message):
        load_voc(root, "train")


def test_absent_lists_and_roots(root: Path) -> None:
    with pytest.raises(
        ValueError, match=r"split 'train_aug': .*train_aug\.txt.*trainaug\.txt.*train"
    ):
        load_voc(root, "train_aug")
    with pytest.raises(ValueError, match="there is no such folder"):
        load_voc(root / "none", "train")
    (root / "ImageSets" / "Segmentation" / "latin.txt").write_bytes("ä\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt: .*not UTF-8"):
        load_voc(root, "latin")


def test_counts_are_checked_when_asked(root: Path) -> None:
    assert EXPECTED_COUNTS == {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582}
    with pytest.raises(ValueError, match=r"train\.txt: 3 images, but train has 1464"):
        load_voc(root, "train", expected_counts=EXPECTED_COUNTS)
    assert len(load_voc(root, "train", expected_counts={"train": 3})) == 3
    write_list(root / "ImageSets" / "Segmentation" / "trainaug.txt", IDS)
    with pytest.raises(ValueError, match="3 images, but trainaug has 10582"):
        load_voc(root, "trainaug", expected_counts=EXPECTED_COUNTS)
    with pytest.raises(ValueError, match="no count is expected for split 'train'; known are val"):
        load_voc(root, "train", expected_counts={"val": 3})


def test_classes_of_another_set_in_voc_layout(root: Path) -> None:
    toys = build_class_set("toys", ["car", "ball"])
    for img_id in IDS:
        (root / "Annotations" / f"{img_id}.xml").write_text(annotation("ball"))
    dataset = load_voc(root, "train", classes=toys)
    assert dataset.class_set is toys
    assert class_names(dataset) == [("ball",)] * 3
    with pytest.raises(
        ValueError, match=r"the mask holds the values \[12, 15\]; legal are 0, 1, 2"
    ):
        dataset.load_mask(1)
    (root / "Annotations" / f"{IDS[0]}.xml").write_text(annotation("cat"))
    with pytest.raises(ValueError, match="unknown class 'cat'; legal are car, ball"):
        load_voc(root, "train", classes=toys)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("split", "count", "masks"), [("train", 446, 446), ("val", 200, 200), ("aux", 800, 0)]
)
def test_voc_animals(voc_animals: Path, split: str, count: int, masks: int) -> None:
    dataset = load_voc(
        voc_animals,
        split,
        classes=ANIMALS,
        labels=voc_animals / "labels.csv",
        expected_counts={split: count},
    )
    dataset.check_files()
    assert sum(r.mask_path is not None for r in dataset.records) == masks
    sample = dataset[count // 2]
    assert min(sample.ori_hw) > 1
    assert (sample.mask is not None) == (masks > 0)


@pytest.mark.shared
def test_voc_animals_labels_are_what_the_masks_show(voc_animals: Path) -> None:
    csv = load_voc(voc_animals, "val", classes=ANIMALS, labels=voc_animals / "labels.csv")
    masks = load_voc(voc_animals, "val", classes=ANIMALS, labels="mask")
    assert [r.class_ids for r in csv.records] == [r.class_ids for r in masks.records]
