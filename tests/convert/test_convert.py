"""Converters on miniature copies of the published layouts, and on bad input of every kind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import signal
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import (
    HW,
    TRAIN_AUG,
    VOC_TRAIN,
    coco_json,
    coco_mask_of_9,
    sbd_mask,
    voc_mask,
    write_coco,
    write_image,
    write_mat,
    write_sbd,
    write_voc,
)
from PIL import Image
from scipy.io import savemat

from adcam.cli import main
from adcam.convert import CONVERTERS, Converted, register_converter
from adcam.convert.cams import convert_cams
from adcam.convert.data_sets import convert_coco, convert_sbd
from adcam.convert.exchange import (
    convert_coco_to_masks,
    convert_masks_to_coco,
    convert_masks_to_yolo,
    convert_yolo_to_masks,
)
from adcam.convert.export_cams import encode_cam_file
from adcam.convert.labels import (
    convert_irn_labels,
    convert_mask_labels,
    convert_voc_labels,
)
from adcam.convert.mask_source import find_masks
from adcam.convert.recode import convert_recode_masks
from adcam.data.coco import COCO_CATEGORY_IDS, COCO_CLASSES, coco_class_set, load_coco
from adcam.data.converted import read_converted_classes, refuse_other_numbers
from adcam.data.dataset import build_class_set
from adcam.data.labels import read_labels
from adcam.data.png import read_mask, voc_palette, write_mask
from adcam.data.sbd import read_sbd_mask
from adcam.data.voc import load_voc, voc_class_set
from adcam.errors import AdcamError
from adcam.evaluation.masks_on_disk import evaluate_maps, evaluate_masks
from adcam.labeling.maps_file import load_maps
from adcam.labeling.mask_maker import resize_maps
from adcam.structures import ClassMaps, ClassSet

ROOT = Path(__file__).resolve().parents[2]
VOC = voc_class_set()
COCO = coco_class_set()


def needs_pycocotools() -> None:
    pytest.importorskip("pycocotools")


def hash_folder(folder: Path) -> str:
    """Of all files and their names."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC beside SBD."""
    write_voc(tmp_path / "VOC2012")
    write_sbd(tmp_path / "benchmark_RELEASE")
    return tmp_path / "VOC2012"


def random_masks(folder: Path, values: tuple[int, ...] = (0, 8, 12, 15, 255)) -> None:
    rng = np.random.default_rng(0)
    for img_id, hw in (("a", (5, 9)), ("sub/b 1", (9, 5)), ("sub/ü", (1, 7))):
        mask = rng.choice(np.array(values, np.uint8), hw)
        write_mask(folder / f"{img_id}.png", mask, voc_palette())
    write_mask(folder / "void.png", np.zeros((3, 4), np.uint8), voc_palette())


MASK_IDS = ["a", "sub/b 1", "sub/ü", "void"]


def same_masks(found: Path, expected: Path, ignore_as: int = 255) -> None:
    for img_id in MASK_IDS:
        mask = read_mask(expected / f"{img_id}.png")
        np.testing.assert_array_equal(
            read_mask(found / f"{img_id}.png"), np.where(mask == 255, ignore_as, mask)
        )


# SBD


def test_sbd_makes_train_aug_that_the_loader_reads(voc: Path) -> None:
    result = convert_sbd(voc.parent / "benchmark_RELEASE", voc, partial=True)
    assert (result.num_images, result.kept, result.failed) == (4, 0, {})
    dataset = load_voc(voc, "train_aug")
    dataset.check_files()
    assert [record.img_id for record in dataset.records] == list(TRAIN_AUG)
    for i, img_id in enumerate(TRAIN_AUG):
        own = img_id in VOC_TRAIN
        expected = voc_mask(img_id) if own else sbd_mask(img_id)
        np.testing.assert_array_equal(dataset.load_mask(i), expected)
        with Image.open(voc / "SegmentationClassAug" / f"{img_id}.png") as img:
            assert img.mode == "P"
    assert result.class_pixels["ignore"] == sum((voc_mask(i) == 255).sum() for i in VOC_TRAIN)
    assert result.class_pixels["tvmonitor"] == sum(
        np.count_nonzero(m == 20)
        for i in TRAIN_AUG
        for m in [voc_mask(i) if i in VOC_TRAIN else sbd_mask(i)]
    )
    assert sum(result.class_pixels.values()) == 4 * HW[0] * HW[1]
    assert "2 masks are VOC's own, 2 SBD's" in result.notes
    said = read_converted_classes(voc / "SegmentationClassAug")
    assert said is not None and said.value_of == dataset.class_set.value_of
    path = voc / "SegmentationClassAug" / "convert.json"
    written = path.read_text()
    path.write_text('{"converter": "sbd"}')  # as by older versions
    assert convert_sbd(voc.parent / "benchmark_RELEASE", voc, partial=True).kept == 4
    assert path.read_text() == written


def test_sbd_checks_its_10582_images(voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="4 images, but train_aug has 10582; --partial"):
        convert_sbd(voc.parent / "benchmark_RELEASE", voc)
    assert not (voc / "SegmentationClassAug").exists()
    counts = {"train_aug": 4}
    monkeypatch.setattr("adcam.convert.data_sets.VOC_COUNTS", counts)
    result = convert_sbd(voc.parent / "benchmark_RELEASE" / "dataset", voc)
    assert "train_aug: 4 images, all that there are" in result.notes


def test_one_bad_mat_is_listed_and_mended_by_the_next_run(voc: Path) -> None:
    sbd = voc.parent / "benchmark_RELEASE"
    bad = sbd / "dataset" / "cls" / "2008_000008.mat"
    whole = bad.read_bytes()
    for content, message in (
        (whole[:200], "cannot be read as a MATLAB file"),
        (b"", "cannot be read as a MATLAB file"),
        (None, "there is no such file"),
    ):
        bad.unlink(missing_ok=True)
        if content is not None:
            bad.write_bytes(content)
        result = convert_sbd(sbd, voc, partial=True)
        assert list(result.failed) == ["2008_000008"] and message in result.failed["2008_000008"]
        assert result.num_images == 3
    write_mat(bad, sbd_mask("2008_000008"), name="GTinst")
    assert "holds no GTcls" in convert_sbd(sbd, voc, partial=True).failed["2008_000008"]
    write_mat(bad, sbd_mask("2008_000008").T)
    assert "11×7 pixels" in convert_sbd(sbd, voc, partial=True).failed["2008_000008"]
    bad.write_bytes(whole)
    result = convert_sbd(sbd, voc, partial=True)
    assert (result.num_images, result.kept, result.failed) == (4, 3, {})


def test_an_rgb_mask_of_voc_is_listed(voc: Path) -> None:
    path = voc / "SegmentationClass" / f"{VOC_TRAIN[0]}.png"
    Image.fromarray(np.full((*HW, 3), (1, 2, 3), np.uint8)).save(path)
    result = convert_sbd(voc.parent / "benchmark_RELEASE", voc, partial=True)
    assert "a colour mask (mode RGB)" in result.failed[VOC_TRAIN[0]]


def test_folders_that_are_no_sbd_or_voc(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder cls with SBD's"):
        convert_sbd(voc, voc)
    (voc / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(ValueError, match=r"val\.txt: cannot be read as a list"):
        convert_sbd(tmp_path / "benchmark_RELEASE", voc)


# COCO


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    needs_pycocotools()
    write_coco(tmp_path / "coco", "train2014", "val2014")
    return tmp_path / "coco"


@pytest.mark.parametrize("crowd", ["ignore", "skip"])
def test_coco_makes_what_its_loader_reads(coco: Path, crowd: str) -> None:
    path = coco / "annotations" / "instances_train2014.json"
    result = convert_coco(path, coco, crowd=crowd, partial=True)
    assert (result.num_images, result.failed) == (3, {})
    everything = load_coco(coco, "train2014", expected_counts={"train2014": 3})
    everything.check_files()
    names = [tuple(COCO_CLASSES[i] for i in r.class_ids or ()) for r in everything.records]
    assert names == [("person", "cat", "dog"), (), ("apple", "toothbrush")]
    np.testing.assert_array_equal(everything[0].mask, coco_mask_of_9(crowd=crowd))
    assert everything[2].ori_hw == HW[::-1]
    objects = load_coco(coco, "train2014_objects")
    assert [r.img_id[-2:] for r in objects.records] == ["09", "30"]
    assert (result.class_pixels["ignore"] > 0) == (crowd == "ignore")
    assert result.class_images["cat"] == 1 and result.class_images["person"] == 0
    assert f"crowds: {crowd}; on top where objects overlap: small" in result.notes
    said = read_converted_classes(coco / "masks" / "train2014")
    assert said is not None and said.value_of == everything.class_set.value_of


def test_coco_checks_its_counts(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = coco / "annotations" / "instances_val2014.json"
    with pytest.raises(ValueError, match="3 images, but val2014 has 40504"):
        convert_coco(path, coco)
    monkeypatch.setattr("adcam.convert.data_sets.COCO_COUNTS", {"val2014": 3, "val2014_objects": 1})
    with pytest.raises(ValueError, match="2 images, but val2014_objects has 1"):
        convert_coco(path, coco)
    assert not (coco / "masks").exists()
    result = convert_coco(path, coco, split="mini")
    assert "mini: 3 images, not compared with a known number" in result.notes


def test_coco_of_2017_has_other_file_names(tmp_path: Path) -> None:
    needs_pycocotools()
    write_coco(tmp_path, "val2017")
    convert_coco(tmp_path / "annotations" / "instances_val2017.json", tmp_path, partial=True)
    dataset = load_coco(tmp_path, "val2017")
    dataset.check_files()
    assert dataset.records[0].img_id == "000000000009"


def test_one_bad_annotation_is_one_image(coco: Path) -> None:
    path = coco / "annotations" / "instances_train2014.json"
    content = coco_json("train2014")
    content["annotations"][0]["category_id"] = 12
    path.write_text(json.dumps(content))
    result = convert_coco(path, coco, partial=True)
    (img_id,) = result.failed
    assert img_id.endswith("09") and "category 12 is unknown" in result.failed[img_id]
    assert len(read_labels(coco / "labels" / "train2014.csv", COCO_CLASSES)) == 2


def test_a_json_file_cut_short_ends_the_run(coco: Path) -> None:
    path = coco / "annotations" / "instances_train2014.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="one that was cut short"):
        convert_coco(path, coco, partial=True)
    with pytest.raises(ValueError, match="cannot be read"):
        convert_coco(coco / "none.json", coco, partial=True)
    with pytest.raises(ValueError, match="a split is named such as 'train2014'"):
        convert_coco(path, coco, split="../x", partial=True)


# Labels


def test_labels_of_voc_xml_masks_and_irn_agree(voc: Path, tmp_path: Path) -> None:
    from_xml = tmp_path / "xml.csv"
    result = convert_voc_labels(voc, from_xml, VOC, split="val")
    assert result.notes == ("val: 2 images; the full data set has 1449",)
    table = read_labels(from_xml, VOC.classes)
    assert dict(table) == {
        "2007_000033": ("motorbike", "person"),
        "2007_000042": ("bird", "person"),
    }

    from_masks = tmp_path / "masks.csv"
    masks = tmp_path / "masks"
    for img_id, ids in table.class_ids.items():
        mask = np.zeros(HW, np.uint8)
        mask[0, : len(ids)] = [i + 1 for i in ids]
        mask[-1] = 255
        write_mask(masks / f"{img_id}.png", mask, voc_palette())
    by_mask = convert_mask_labels(masks, from_masks, VOC)
    assert from_masks.read_text() == from_xml.read_text()

    hot = {key: np.zeros(20, np.float32) for key in (2007000033, "2007_000042")}
    for vector, ids in zip(hot.values(), table.class_ids.values(), strict=True):
        vector[list(ids)] = 1
    np.save(tmp_path / "cls_labels.npy", np.array(hot, dtype=object), allow_pickle=True)
    from_irn = tmp_path / "irn.csv"
    by_irn = convert_irn_labels(tmp_path / "cls_labels.npy", from_irn, VOC)
    assert from_irn.read_text() == from_xml.read_text()
    assert result.sha256 == by_mask.sha256 == by_irn.sha256
    assert by_irn.class_images["person"] == 2 and by_irn.class_pixels == {}


def test_a_bad_annotation_is_listed(voc: Path, tmp_path: Path) -> None:
    (voc / "Annotations" / "2007_000033.xml").write_text("<annotation>")
    result = convert_voc_labels(voc, tmp_path / "x.csv", VOC, split="val")
    assert "not an XML file" in result.failed["2007_000033"] and result.num_images == 1
    (voc / "Annotations" / "2007_000033.xml").unlink()
    result = convert_voc_labels(voc, tmp_path / "x.csv", VOC, split="val", overwrite=True)
    assert "no such annotation" in result.failed["2007_000033"]
    path = voc / "Annotations" / "2007_000033.xml"
    path.write_text("<annotation><object><name>unicorn</name></object></annotation>")
    result = convert_voc_labels(voc, tmp_path / "x.csv", VOC, split="val", overwrite=True)
    assert "unknown class 'unicorn'" in result.failed["2007_000033"]
    with pytest.raises(ValueError, match="no list for split 'test'"):
        convert_voc_labels(voc, tmp_path / "y.csv", VOC, split="test")


def test_bad_masks_are_listed(tmp_path: Path) -> None:
    random_masks(tmp_path / "masks")
    Image.fromarray(np.full((2, 3, 3), (1, 2, 3), np.uint8)).save(tmp_path / "masks" / "rgb.png")
    Image.fromarray(np.full((2, 3), 300, np.uint16)).save(tmp_path / "masks" / "deep.png")
    write_mask(tmp_path / "masks" / "class.png", np.full((2, 3), 77, np.uint8), voc_palette())
    (tmp_path / "masks" / "text.png").write_text("no picture")
    reasons = {"rgb": "mode RGB", "deep": "mode I;16", "class": "77", "text": "not an image"}
    needs_pycocotools()
    for result in (
        convert_mask_labels(tmp_path / "masks", tmp_path / "labels.csv", VOC),
        convert_masks_to_coco(tmp_path / "masks", tmp_path / "masks.json", VOC),
        convert_masks_to_yolo(tmp_path / "masks", tmp_path / "yolo", VOC),
    ):
        assert set(result.failed) == set(reasons), result.what
        for img_id, reason in reasons.items():
            assert reason in result.failed[img_id]
        assert result.num_images == 4


def test_files_of_labels_that_are_none(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match="expected one pickled object"):
        convert_irn_labels(tmp_path / "x.npy", tmp_path / "x.csv", VOC)
    with pytest.raises(FileNotFoundError):
        convert_irn_labels(tmp_path / "none.npy", tmp_path / "x.csv", VOC)
    with pytest.raises(ValueError, match="there is no such folder"):
        convert_mask_labels(tmp_path / "none", tmp_path / "x.csv", VOC)
    with pytest.raises(ValueError, match=r"there are no \.png files"):
        convert_mask_labels(tmp_path, tmp_path / "x.csv", VOC)


# Masks in other formats


def test_exported_maps_number_classes_as_each_project_does() -> None:
    """IRN and CLIP-ES count classes from 0; PuzzleCAM puts background first, as 0."""
    maps = ClassMaps((3, 14), np.full((2, 8, 12), 0.5, np.float32))
    for cam_format, keys in (("irn", [3, 14]), ("clip_es", [3, 14]), ("puzzlecam", [0, 4, 15])):
        data = encode_cam_file(maps, cam_format)
        # allow_pickle: these are the bytes of the line above, in the form that others read.
        content = np.load(io.BytesIO(data), allow_pickle=True).item()
        assert content["keys"].tolist() == keys


def test_some_of_vocs_categories_come_back_with_vocs_values(tmp_path: Path) -> None:
    needs_pycocotools()
    mask = np.array([[0, 8, 8], [10, 10, 0]], np.uint8)  # cat and cow
    write_mask(tmp_path / "masks" / "a.png", mask, voc_palette())
    convert_masks_to_coco(tmp_path / "masks", tmp_path / "a.json", voc_class_set(["cat", "cow"]))
    convert_coco_to_masks(tmp_path / "a.json", tmp_path / "back")
    np.testing.assert_array_equal(read_mask(tmp_path / "back" / "a.png"), mask)


@pytest.mark.parametrize("class_set", [VOC, COCO], ids=lambda s: s.name)
def test_masks_to_coco_and_back(tmp_path: Path, class_set: ClassSet) -> None:
    needs_pycocotools()
    random_masks(tmp_path / "run" / "masks")
    out = tmp_path / "masks.json"
    there = convert_masks_to_coco(tmp_path / "run", out, class_set)  # a folder of `generate`
    back = convert_coco_to_masks(out, tmp_path / "back", class_set)
    same_masks(tmp_path / "back", tmp_path / "run" / "masks")
    assert there.sha256 == back.sha256
    assert there.class_pixels == back.class_pixels and there.class_images == back.class_images
    content = json.loads(out.read_text())
    assert [image["file_name"] for image in content["images"]] == [f"{i}.jpg" for i in MASK_IDS]
    ids = [category["id"] for category in content["categories"]]
    expected = COCO_CATEGORY_IDS if class_set is COCO else class_set.mask_values
    assert ids == [*expected, 255]


def test_masks_to_yolo_and_back(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    random_masks(masks)
    convert_masks_to_yolo(masks, tmp_path / "yolo", VOC)
    labels = tmp_path / "yolo" / "labels" / "train"
    for img_id in (*MASK_IDS, "no objects"):
        hw = (3, 4) if img_id == "no objects" else read_mask(masks / f"{img_id}.png").shape
        write_image(tmp_path / "images" / f"{img_id}.jpg", hw)
    images = tmp_path / "images"
    result = convert_yolo_to_masks(labels, tmp_path / "back", VOC, images=images)
    same_masks(tmp_path / "back", masks, ignore_as=0)
    assert result.num_images == 5
    assert not read_mask(tmp_path / "back" / "no objects.png").any()
    (labels / "a.txt").write_text("20 0 0 1 0 1 1\n")
    (tmp_path / "images" / "void.jpg").write_text("no picture")
    result = convert_yolo_to_masks(labels, tmp_path / "back", VOC, images=images, overwrite=True)
    assert set(result.failed) == {"a", "void"}
    assert "line 1: class must be 0..19, got 20" in result.failed["a"]
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(ValueError, match="1 text files have no image, such as 'a'"):
        convert_yolo_to_masks(labels, tmp_path / "back", VOC, images=images)


# Class maps of other projects


def write_cams(folder: Path) -> dict[str, tuple[tuple[int, ...], np.ndarray]]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    stored = {}
    for img_id, hw, ids in (("a", (33, 50), (7, 11)), ("b", (50, 33), (14,)), ("c", (8, 9), ())):
        coarse = rng.random((len(ids), 3, 4), dtype=np.float32)
        maps = resize_maps(coarse, hw)
        maps = maps.clip(0, 1).astype(np.float32)
        stored[img_id] = (ids, maps)
        content = {"keys": np.array(ids, dtype=np.int64), "attn_highres": maps.astype(np.float16)}
        np.save(folder / f"{img_id}.npy", np.array(content, dtype=object), allow_pickle=True)
    return stored


def test_cams_become_maps_that_can_be_scored(tmp_path: Path) -> None:
    stored = write_cams(tmp_path / "cams")
    result = convert_cams(tmp_path / "cams", tmp_path / "out", VOC)
    assert result.notes == ("format clip_es",) and result.num_images == 3
    assert result.class_images["cat"] == result.class_images["person"] == 1
    for img_id, (ids, maps) in stored.items():
        found = load_maps(tmp_path / "out" / "maps" / f"{img_id}.npz")
        assert (found.class_maps.class_ids, found.ori_hw) == (ids, maps.shape[1:])
        coarse_hw = tuple(-(-side // 16) for side in maps.shape[1:])
        coarse = resize_maps(maps, coarse_hw)
        assert np.abs(found.class_maps.score_maps - coarse).max(initial=0) < 1 / 255

    masks = convert_cams(tmp_path / "cams", tmp_path / "masks", VOC, threshold="0.4")
    for img_id, (ids, maps) in stored.items():
        winner = np.vstack([np.full((1, *maps.shape[1:]), 0.4, np.float32), maps]).argmax(axis=0)
        expected = np.array([0, *(i + 1 for i in ids)])[winner]
        found_mask = read_mask(tmp_path / "masks" / "masks" / f"{img_id}.png")
        assert (found_mask != expected).mean() < 0.005  # float16
    same = convert_cams(tmp_path / "cams", tmp_path / "masks", VOC, threshold=0.4)
    assert same.class_pixels == masks.class_pixels
    for wrong in (1.5, (0.3, 0.4)):
        with pytest.raises(AdcamError, match="background rule must be a number in"):
            convert_cams(tmp_path / "cams", tmp_path / "other", VOC, threshold=wrong)  # type: ignore[arg-type]
    assert (
        sum(masks.class_pixels.values())
        == sum(maps[0].size for _, maps in stored.values() if len(maps)) + 72
    )

    # Their classes are known wherever they are read.
    source = find_masks(tmp_path / "masks")
    assert source.class_set.value_of == VOC.value_of
    convert_cams(tmp_path / "cams", tmp_path / "coco", coco_class_set(), threshold="0.4")
    assert find_masks(tmp_path / "coco").class_set.value_of == coco_class_set().value_of

    # The .npy files are scored as they are, and agree with the masks made of them.
    curve = evaluate_maps(
        tmp_path / "cams", tmp_path / "masks" / "masks", thresholds=(0.2, 0.4), class_set=VOC
    )
    assert curve["miou"][1] == 100 and curve["miou"][0] < 100
    scores = evaluate_masks(tmp_path / "masks", tmp_path / "masks" / "masks")
    assert scores["miou"] == 100


def test_probabilities_become_masks(tmp_path: Path) -> None:
    (tmp_path / "crf").mkdir()
    prob = np.array([[[0.5, 0.2]], [[0.3, 0.1]], [[0.2, 0.7]]], np.float32)
    content = dict(zip((0, 1, 15), prob, strict=True))
    np.save(tmp_path / "crf" / "a.npy", np.array(content, dtype=object), allow_pickle=True)
    convert_cams(tmp_path / "crf", tmp_path / "out", VOC)
    assert read_mask(tmp_path / "out" / "masks" / "a.png").tolist() == [[0, 15]]
    with pytest.raises(ValueError, match="take no threshold"):
        convert_cams(tmp_path / "crf", tmp_path / "out2", VOC, threshold="0.3")
    truth = tmp_path / "out" / "masks"
    with pytest.raises(ValueError, match="probabilities after a CRF have no threshold"):
        evaluate_maps(tmp_path / "crf", truth)


def test_bad_maps_are_listed(tmp_path: Path) -> None:
    write_cams(tmp_path / "cams")
    (tmp_path / "cams" / "a.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "cams" / "d.npy", np.array({"keys": 1}, dtype=object), allow_pickle=True)
    result = convert_cams(tmp_path / "cams", tmp_path / "out", VOC)
    assert set(result.failed) == {"a", "d"} and result.num_images == 2
    for name in "bc":
        (tmp_path / "cams" / f"{name}.npy").unlink()
    with pytest.raises(ValueError, match=r"[ad]\.npy: "):
        convert_cams(tmp_path / "cams", tmp_path / "out3", VOC)
    with pytest.raises(ValueError, match="the format must be 'auto', 'irn'"):
        convert_cams(tmp_path / "cams", tmp_path / "out4", VOC, cam_format="sem")


# What holds for all that write a file an image


def runs(tmp_path: Path) -> dict[str, Callable[..., Any]]:
    random_masks(tmp_path / "masks")
    write_voc(tmp_path / "VOC2012")
    write_sbd(tmp_path / "benchmark_RELEASE")
    write_cams(tmp_path / "cams")
    write_coco(tmp_path / "coco", "val2014")
    instances = tmp_path / "coco" / "annotations" / "instances_val2014.json"
    return {
        "sbd": lambda out, **more: convert_sbd(
            tmp_path / "benchmark_RELEASE", tmp_path / "VOC2012", out=out, partial=True, **more
        ),
        "coco": lambda out, **more: convert_coco(instances, out, partial=True, **more),
        "masks-to-yolo": lambda out, **more: convert_masks_to_yolo(
            tmp_path / "masks", out, VOC, **more
        ),
        "cams": lambda out, **more: convert_cams(tmp_path / "cams", out, VOC, **more),
    }


KINDS = {"sbd": ".png", "coco": ".png", "masks-to-yolo": ".txt", "cams": ".npz"}


def results_below(folder: Path, suffix: str) -> list[Path]:
    lists = ("Segmentation", "lists")
    return sorted(p for p in folder.rglob(f"*{suffix}") if p.parent.name not in lists)


@pytest.mark.parametrize("what", KINDS)
def test_runs_are_reproducible_and_go_on_where_they_stopped(tmp_path: Path, what: str) -> None:
    if what == "coco":
        needs_pycocotools()
    run = runs(tmp_path)[what]
    first = run(tmp_path / "one")
    whole = hash_folder(tmp_path / "one")
    assert first.kept == 0
    again = run(tmp_path / "one")
    assert (again.kept, again.sha256) == (first.num_images, first.sha256)
    assert again.class_images == first.class_images and again.class_pixels == first.class_pixels

    # As a run killed half-way leaves it: files missing, one that another program cut short.
    files = results_below(tmp_path / "one", KINDS[what])
    assert len(files) == first.num_images
    files[0].unlink()
    if what != "masks-to-yolo":  # any text is a text file
        files[-1].write_bytes(files[-1].read_bytes()[:20])
    rest = run(tmp_path / "one")
    assert rest.sha256 == first.sha256 and rest.kept < first.num_images
    assert hash_folder(tmp_path / "one") == whole
    other = run(tmp_path / "two")
    assert other.sha256 == first.sha256
    assert hash_folder(tmp_path / "two") == whole


@pytest.mark.parametrize("what", KINDS)
def test_files_of_other_settings_or_origin_are_not_mixed(tmp_path: Path, what: str) -> None:
    if what == "coco":
        needs_pycocotools()
    run = runs(tmp_path)[what]
    run(tmp_path / "out")
    (settings,) = (tmp_path / "out").rglob("convert.json")
    whole = hash_folder(tmp_path / "out")
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "converter": "old"}))
    with pytest.raises(ValueError, match=f"converter: 'old' there, {what!r} now.*--overwrite"):
        run(tmp_path / "out")
    settings.write_text("{")
    with pytest.raises(ValueError, match=r"convert\.json: not a JSON file"):
        run(tmp_path / "out")
    settings.unlink()
    with pytest.raises(ValueError, match="unknown origin"):
        run(tmp_path / "out")
    result = run(tmp_path / "out", overwrite=True)
    assert result.kept == 0 and hash_folder(tmp_path / "out") == whole


def test_an_overwritten_run_that_stops_leaves_nothing_of_the_old_one(coco: Path) -> None:
    path = coco / "annotations" / "instances_val2014.json"
    convert_coco(path, coco, crowd="skip", partial=True)
    with pytest.raises(ValueError, match="crowd: 'skip' there, 'ignore' now"):
        convert_coco(path, coco, partial=True)

    def stop(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adcam.convert.exchange.draw_objects", stop)
        with pytest.raises(KeyboardInterrupt):
            convert_coco(path, coco, partial=True, overwrite=True)
    result = convert_coco(path, coco, partial=True)
    assert result.kept == 0
    np.testing.assert_array_equal(load_coco(coco, "val2014")[0].mask, coco_mask_of_9())


def test_single_files_are_not_overwritten_unasked(tmp_path: Path) -> None:
    random_masks(tmp_path / "masks")
    out = tmp_path / "out"
    out.write_text("mine")
    for convert in (convert_mask_labels, convert_masks_to_coco):
        with pytest.raises(ValueError, match="is there already; --overwrite"):
            convert(tmp_path / "masks", out, VOC)
    assert out.read_text() == "mine"
    convert_mask_labels(tmp_path / "masks", out, VOC, overwrite=True)
    assert out.read_text() != "mine"


def test_a_folder_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    random_masks(tmp_path / "masks")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match="cannot write into the folder"):
        convert_masks_to_yolo(tmp_path / "masks", tmp_path / "out", VOC)


def test_without_pycocotools_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_masks(tmp_path / "masks")
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ValueError, match=r"pip install 'adcam\[coco\]'"):
        convert_masks_to_coco(tmp_path / "masks", tmp_path / "x.json", VOC)
    write_coco(tmp_path / "coco", "val2014")
    path = tmp_path / "coco" / "annotations" / "instances_val2014.json"
    with pytest.raises(ValueError, match=r"pip install 'adcam\[coco\]'"):
        convert_coco(path, tmp_path / "coco", partial=True)


# The command line


def test_exit_codes_and_output(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", "sbd", str(tmp_path / "benchmark_RELEASE"), str(voc)]
    assert main(words) == 2
    assert "but train_aug has 10582" in capsys.readouterr().err
    assert main([*words, "--partial", "--json", str(tmp_path / "x.json")]) == 0
    captured = capsys.readouterr()
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["sha256"] in captured.out and "tvmonitor" in captured.out
    assert "4 images, 0 of them were there; 0 failed" in captured.err
    assert captured.out.strip().endswith("SegmentationClassAug")
    (tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / "2008_000008.mat").write_text("x")
    assert main([*words, "--partial", "--overwrite"]) == 1
    captured = capsys.readouterr()
    assert "2008_000008: " in captured.err and "1 failed" in captured.err
    with pytest.raises(SystemExit) as stop:
        main(["convert", "nothing", "x"])
    assert stop.value.code == 2


def test_maps_of_other_projects_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cams(tmp_path / "cams")
    assert main(["convert", "cams", str(tmp_path / "cams"), "--out", str(tmp_path / "maps")]) == 0
    printed = capsys.readouterr().out
    assert "images" in printed and "pixels" not in printed  # maps have none to count
    convert_cams(tmp_path / "cams", tmp_path / "out", VOC, threshold="0.4")
    words = ["evaluate", str(tmp_path / "cams"), "--gt", str(tmp_path / "out" / "masks"), "--sweep"]
    assert main([*words, "--format", "clip_es", "--json", str(tmp_path / "x.json")]) == 0
    curve = json.loads((tmp_path / "x.json").read_text())
    assert (curve["best_threshold"], curve["best_miou"]) == (0.4, 100)
    assert set(curve["best"]["iou_per_class"]) == {"background", "cat", "dog", "person"}
    assert main([*words, "--format", "irn"]) == 2
    assert "a file of format clip_es, not irn" in capsys.readouterr().err
    assert main([*words, "--classes", "cat,dog"]) == 2
    assert "class 7 is not in 0..1" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        for i in range(count):
            path = tmp_path / str(count) / f"{i:03}.png"
            write_mask(path, np.full((150, 200), i % 3, np.uint8), voc_palette())
        tracemalloc.start()
        convert_masks_to_yolo(tmp_path / str(count), tmp_path / f"out{count}", VOC)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(3)
    assert peak(24) < 1.3 * peak(4)


def test_classes_are_named_on_the_command_line(tmp_path: Path) -> None:
    random_masks(tmp_path / "masks", (0, 1, 2))
    words = ["convert", "mask-labels", str(tmp_path / "masks"), "--out", str(tmp_path / "x.csv")]
    assert main([*words, "--classes", "red fox, hare"]) == 0
    assert read_labels(tmp_path / "x.csv").classes == ("hare", "red fox")
    assert main([*words, "--classes", "fox,", "--overwrite"]) == 2


@pytest.mark.parametrize("what", CONVERTERS)
def test_every_converter_explains_itself(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["convert", what, "--help"])
    assert stop.value.code == 0
    assert f"usage: adcam convert {what}" in capsys.readouterr().out


def test_a_converter_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("adcam.convert.CONVERTERS", dict(CONVERTERS))
    with pytest.raises(AdcamError, match="there is a converter 'sbd' already"):
        register_converter("sbd", convert_sbd)
    register_converter(
        "mine",
        lambda source, out, overwrite, progress: Converted("mine", out, 3, 0, {}, {}, {}, ""),
    )
    assert main(["convert", "mine", str(tmp_path), "--out", str(tmp_path / "x")]) == 0
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    assert re.search(r"^ *mine +added by adcam\.register_con", capsys.readouterr().out, re.M)


# Our own output folders


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """An output folder of `adcam generate` with a tabby cat, and its photographs."""
    out, tabby = tmp_path / "out", np.zeros((6, 8), np.uint8)
    tabby[1:3, 1:3] = tabby[4:, 5:] = 1
    palette = [(0, 0, 0), (200, 10, 20), *voc_palette()[2:]]
    lines = []
    for name in ("a.JPG", "trip/b.png"):
        img_id = name.rpartition(".")[0]
        write_mask(out / "masks" / f"{img_id}.png", tabby, palette)
        write_image(tmp_path / "photos" / name, (6, 8))
        lines.append({"id": img_id, "image": f"../photos/{name}", "status": "ok"})
    labeler = {"classes": ["tabby cat"], "mask_values": [1]}
    (out / "config.json").write_text(json.dumps({"adcam": "0", "labeler": labeler}))
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


@pytest.mark.parametrize("below", ["", "masks"])
def test_coco_takes_classes_and_names_from_our_output(
    own: Path, tmp_path: Path, below: str
) -> None:
    needs_pycocotools()
    command = f"convert masks-to-coco {own / below} --out {tmp_path}/c.json --polygons"
    assert main([*command.split(), "--objects", "component"]) == 0
    content = json.loads((tmp_path / "c.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["tabby cat"]
    assert [image["file_name"] for image in content["images"]] == ["a.JPG", "trip/b.png"]
    assert [a["area"] for a in content["annotations"]] == [4, 6, 4, 6]
    assert content["annotations"][0]["segmentation"] == [[1, 1, 3, 1, 3, 3, 1, 3]]
    assert main(["convert", "coco-to-masks", f"{tmp_path}/c.json", "--out", f"{tmp_path}/m"]) == 0
    np.testing.assert_array_equal(read_mask(tmp_path / "m/a.png"), read_mask(own / "masks/a.png"))


def test_yolo_gets_a_folder_that_trains_at_once(own: Path, tmp_path: Path) -> None:
    root = tmp_path / "yolo"
    assert main(["convert", "masks-to-yolo", str(own), "--out", str(root)]) == 0
    assert (root / "data.yaml").read_text() == (
        "train: images/train\nval: images/train  # the images that are trained on\n"
        'names:\n  0: "tabby cat"\n'
    )
    assert len((root / "labels" / "train" / "trip" / "b.txt").read_text().splitlines()) == 2
    photo = root / "images" / "train" / "trip" / "b.png"
    assert photo.read_bytes() == (tmp_path / "photos" / "trip" / "b.png").read_bytes()
    (tmp_path / "photos" / "a.JPG").unlink()
    result = convert_masks_to_yolo(own, root, split="val")
    assert "train: images/train\nval: images/val\n" in (root / "data.yaml").read_text()
    assert result.notes == ("1 images are not known or not there; put them in images/val",)


def test_an_output_folder_is_found_through_a_link(own: Path, tmp_path: Path) -> None:
    link = tmp_path / "links" / "there" / "out"
    link.parent.mkdir(parents=True)
    link.symlink_to(own)
    result = convert_masks_to_yolo(link, tmp_path / "yolo")
    assert result.notes == ()
    assert (tmp_path / "yolo" / "images" / "train" / "a.JPG").is_file()


def test_labels_and_classes_given_by_hand(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "l.csv"
    assert convert_mask_labels(own, out).class_images == {"tabby cat": 2}
    own_classes = build_class_set("mine", ["dog"])
    assert convert_mask_labels(own, out, own_classes, overwrite=True).class_images == {"dog": 2}


# Masks as people have them


def test_masks_of_0_and_255_are_named_and_can_be_read(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[1:3] = 255
    for name in ("a", "b"):
        write_mask(tmp_path / "masks" / f"{name}.png", mask, voc_palette())
    needs_pycocotools()
    classes = build_class_set("mine", ["thing"])
    hint = "all masks hold only 0 and 255, which means 'ignored'; if it means the object, --values"
    for convert in (convert_mask_labels, convert_masks_to_coco, convert_masks_to_yolo):
        name = convert.__name__
        result = convert(tmp_path / "masks", tmp_path / name, classes)
        assert any(hint in note for note in result.notes), name
        assert result.class_images == {"thing": 0}
        result = convert(
            tmp_path / "masks", tmp_path / f"{name}2", classes, values="255=1", overwrite=True
        )
        assert result.class_images == {"thing": 2}
        assert not any("255" in note for note in result.notes)


TABLE = "name,r,g,b\nbackground,0,0,0\ncat,200,0,10\nred fox,#00ff80\nvoid,255,255,255\n"


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:200,0,10::\n"
        "red fox:0,255,128::\nvoid:255,255,255::\n",
        "200 0 10\tcat\n0 255 128\tred fox\n255 255 255\tVoid\n",
        "cat;200;0;10\nred fox;0;255;128\nignore;255;255;255\n",
    ],
)
def test_colour_masks_by_a_table(tmp_path: Path, table: str) -> None:
    colors = np.array([(0, 0, 0), (200, 0, 10), (0, 255, 128), (255, 255, 255)], np.uint8)
    Image.fromarray(colors[None]).save(tmp_path / "a.png")
    (tmp_path / "m").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "m" / "a.png")
    (tmp_path / "t.csv").write_text(table)
    command = f"convert recode-masks {tmp_path}/m --colors {tmp_path}/t.csv --out {tmp_path}/o"
    assert main(command.split()) == 0
    assert read_mask(tmp_path / "o" / "a.png").tolist() == [[0, 1, 2, 255]]
    with Image.open(tmp_path / "o" / "a.png") as img:
        assert (img.getpalette() or [])[3:9] == [200, 0, 10, 0, 255, 128]
    found = read_converted_classes(tmp_path / "o")
    assert found is not None and 1 in found.value_of.values()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("cat,1,2\n", "line 1: expected name,R,G,B"),
        ("cat,1,2,300\n", "line 1: colours lie in 0..255"),
        ("cat,1,2,3\ndog,1,2,3\n", "line 2: 'dog' and 'cat' share name or colour"),
        ("name,r,g,b\n", "names no class"),
        ("c\0t,1,2,3\n", "holds a control character"),
    ],
)
def test_bad_tables_of_colours(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(AdcamError, match=rf"t\.csv.*{message}"):
        convert_recode_masks(tmp_path, tmp_path / "o", colors=tmp_path / "t.csv")
    with pytest.raises(AdcamError, match="say what the masks hold"):
        convert_recode_masks(tmp_path, tmp_path / "o")


@pytest.mark.parametrize("wanted", [["dog", "bird"], ["hare", "dog"], ["dog", "hare", "cat"]])
def test_the_advice_of_other_numbers_merges_no_classes(tmp_path: Path, wanted: list[str]) -> None:
    values = {"cat": 1, "dog": 2, "hare": 3}
    write_mask(tmp_path / "m" / "a.png", np.array([[0, 1, 2, 3, 255]], np.uint8), voc_palette())
    found, class_set = build_class_set("m", [*values]), build_class_set("x", wanted)
    with pytest.raises(AdcamError, match="recode-masks") as told:
        refuse_other_numbers(tmp_path / "m", found, class_set)
    advice, _, note = str(told.value).partition("masks of adcam ")[2].partition("--out DIR")
    assert main([*shlex.split(advice), "--out", str(tmp_path / "o")]) == 0
    new = [class_set.value_of.get(name, 255) for name in values]
    assert read_mask(tmp_path / "o" / "a.png").tolist() == [[0, *new, 255]]
    assert all((name in note) == (name not in wanted) for name in values)


def test_recoded_masks_keep_the_classes_of_their_conversion(tmp_path: Path) -> None:
    write_mask(tmp_path / "m" / "a.png", np.array([[0, 75, 255]], np.uint8), voc_palette())
    said = {"converter": "coco", "mask_values": {"cat": 16, "clock": 75}}
    (tmp_path / "m" / "convert.json").write_text(json.dumps(said))
    assert convert_recode_masks(tmp_path / "m", tmp_path / "o", values="255=0").failed == {}
    found = read_converted_classes(tmp_path / "o")
    assert found is not None and found.value_of == {"cat": 16, "clock": 75}
    # What is numbered anew is no longer the class of that number.
    with pytest.raises(AdcamError, match="--values makes pixels 1; say with --classes which class"):
        convert_recode_masks(tmp_path / "m", tmp_path / "new", values="75=1,255=0")
    pets = build_class_set("pets", ["clock"])
    convert_recode_masks(tmp_path / "m", tmp_path / "new", pets, values="75=1,255=0")
    assert read_mask(tmp_path / "new" / "a.png").tolist() == [[0, 1, 0]]


def test_label_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("filename;label\na.jpg;cat\nb.jpg;dog\n")
    command = f"convert label-table {tmp_path}/t.csv --out {tmp_path}/labels.csv"
    assert main(command.split()) == 0
    assert (tmp_path / "labels.csv").read_text() == "image_id,labels\na,cat\nb,dog\n"
    assert "read as cells are separated by semicolons; images are in" in capsys.readouterr().out


# COCO as people export it


def coco_of(tmp_path: Path, segmentations: list[Any], **image: Any) -> Path:
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "segmentation": s, "iscrowd": 0}
        for i, s in enumerate(segmentations)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9, **image}],
        "annotations": annotations,
        "categories": [{"id": 0, "name": "animals"}, {"id": 1, "name": "cat"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    return tmp_path / "c.json"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([[1, 1], [5, 1], [5, 5]], "a polygon of points"),
        ([[1, 1, 5, 5]], "none of its 1 objects has a polygon of three points"),
        ([], "none of its 1 objects has a polygon of three points"),
    ],
)
def test_shapes_that_leave_no_pixel_are_that_images_failure(
    tmp_path: Path, shape: list[Any], message: str
) -> None:
    needs_pycocotools()
    result = convert_coco_to_masks(coco_of(tmp_path, [shape]), tmp_path / "o")
    assert message in result.failed["a"] and not (tmp_path / "o" / "a.png").exists()


def test_objects_that_leave_no_pixel_are_counted(tmp_path: Path) -> None:
    needs_pycocotools()
    path = coco_of(tmp_path, [[], [[1, 1, 5, 1, 5, 5, 1, 5]]])
    result = convert_coco_to_masks(path, tmp_path / "o")
    assert "1 of 2 objects leave no pixel" in result.notes
    assert result.class_pixels["cat"] == 16


# CRF on stored maps


def test_the_crf_refines_maps_of_others_and_ours(tmp_path: Path) -> None:
    write_cams(tmp_path / "cams")
    for img_id, hw in (("a", (33, 50)), ("b", (50, 33)), ("c", (8, 9))):
        write_image(tmp_path / "photos" / f"{img_id}.jpg", hw)
    command = f"convert cams {tmp_path}/cams --threshold 0.2 --images {tmp_path}/photos --crf"
    assert main([*command.split(), "--out", f"{tmp_path}/crf"]) == 0
    plain = convert_cams(tmp_path / "cams", tmp_path / "plain", VOC, threshold="0.2")
    refined = read_mask(tmp_path / "crf" / "masks" / "a.png")
    assert (refined != read_mask(plain.out / "a.png")).any()
    assert set(np.unique(refined)) <= {0, 8, 12}
    convert_cams(tmp_path / "cams", tmp_path / "ours", VOC)
    ours = tmp_path / "ours"
    result = convert_cams(
        ours, tmp_path / "o", threshold="0.2", crf="toco", images=tmp_path / "photos"
    )
    assert result.num_images == 3 and result.class_images["cat"] == 1
    for more, message in (
        ({"threshold": "0.2", "crf": "toco"}, "name their folder with --images"),
        ({"crf": "toco"}, "--threshold says"),
        ({"threshold": "0.2", "crf": "lattice"}, "crf must be 'none', 'psa'"),
    ):
        with pytest.raises(AdcamError, match=message):
            convert_cams(tmp_path / "cams", tmp_path / "x", VOC, **more)
    with pytest.raises(AdcamError, match="these are maps of adcam already"):
        convert_cams(ours, tmp_path / "x")


# Files that crash their reader


def test_a_mat_file_that_kills_its_reader_costs_one_image(
    voc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = voc.parent / "benchmark_RELEASE" / "dataset" / "cls" / f"{DEADLY}.mat"
    savemat(path, {"GTcls": {"Segmentation": sbd_mask(DEADLY)}})  # no compression, no checksum
    monkeypatch.setattr("adcam.convert.data_sets.read_sbd_mask", die_on_one_file)
    result = convert_sbd(voc.parent / "benchmark_RELEASE", voc, partial=True)
    (message,) = result.failed.values()
    assert (
        "the file is damaged; reading it crashed (it cost two worker processes, killed by SIG"
        in message
    )
    assert result.num_images == len(TRAIN_AUG) - 1


def die_on_one_file(path: Path) -> np.ndarray:
    if path.stem == DEADLY:
        os.kill(os.getpid(), signal.SIGSEGV)
    return read_sbd_mask(path)


DEADLY = next(i for i in TRAIN_AUG if i not in VOC_TRAIN)


def test_names_that_no_file_can_have_cost_their_image_alone(tmp_path: Path) -> None:
    names = ["fine", "nul\0", "half\ud800", "é" * 200]
    content = {
        "images": [
            {"id": i, "file_name": f"{name}.jpg", "height": 4, "width": 5}
            for i, name in enumerate(names)
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    for overwrite in (False, True):
        result = convert_coco_to_masks(
            tmp_path / "x.json", out=tmp_path / "out", overwrite=overwrite
        )
        assert result.num_images == 1 and sorted(result.failed) == sorted(names[1:])
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["fine.png"]
