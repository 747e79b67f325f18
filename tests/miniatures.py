"""Miniature copies of published data sets in their exact layouts: names, lists, XML, mat, json.

Heights and widths differ everywhere, so that nothing can swap them unseen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from adcam.data.coco import COCO_CATEGORY_IDS, COCO_CLASSES
from adcam.data.png import voc_palette, write_mask
from adcam.data.voc import VOC_CLASSES

HW = (7, 11)

VOC_TRAIN = ("2007_000032", "2007_000039")
VOC_VAL = ("2007_000033", "2007_000042")
SBD_TRAIN = ("2007_000032", "2008_000008")
SBD_VAL = ("2007_000033", "2008_000015")
TRAIN_AUG = ("2007_000032", "2007_000039", "2008_000008", "2008_000015")


def write_list(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_image(path: Path, hw: tuple[int, int] = HW, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def annotation(*names: str) -> str:
    objects = "".join(
        f"<object><name>{name}</name><difficult>{i % 2}</difficult>"
        "<part><name>head</name></part></object>"
        for i, name in enumerate(names)
    )
    return f"<annotation><folder>VOC2012</folder>{objects}</annotation>"


def voc_mask(img_id: str) -> np.ndarray:
    """VOC's own mask of an image: a class, void around it."""
    mask = np.zeros(HW, np.uint8)
    mask[1:4, 2:9] = 255
    mask[2, 3:8] = 1 + int(img_id[-2:]) % 20
    return mask


def sbd_mask(img_id: str) -> np.ndarray:
    """SBD's mask of an image: another shape, no void."""
    mask = np.zeros(HW, np.uint8)
    mask[3:6, 1:5] = 1 + int(img_id[-2:]) % 20
    mask[0, 10] = 20
    return mask


def write_voc(root: Path) -> None:
    """VOC 2012: four images of Segmentation, two more that SBD alone has masks of."""
    lists = root / "ImageSets" / "Segmentation"
    write_list(lists / "train.txt", VOC_TRAIN)
    write_list(lists / "val.txt", VOC_VAL)
    for seed, img_id in enumerate(sorted({*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL})):
        write_image(root / "JPEGImages" / f"{img_id}.jpg", seed=seed)
        name = VOC_CLASSES[int(img_id[-2:]) % 20]
        path = root / "Annotations" / f"{img_id}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(annotation(name, "person", name))
        if img_id in (*VOC_TRAIN, *VOC_VAL):
            path = root / "SegmentationClass" / f"{img_id}.png"
            write_mask(path, voc_mask(img_id), voc_palette())


def write_mat(path: Path, mask: np.ndarray, name: str = "GTcls") -> None:
    """A class file as MATLAB wrote it: a 1×1 structure of three fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.empty((20, 1), dtype=object)
    for i in range(20):
        boundaries[i, 0] = np.zeros(mask.shape, np.uint8)
    present = np.setdiff1d(np.unique(mask), [0])[:, None].astype(np.uint8)
    content = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": present}
    savemat(path, {name: content}, do_compression=True)


def write_sbd(root: Path) -> None:
    """SBD as ``benchmark_RELEASE``."""
    dataset = root / "dataset"
    write_list(dataset / "train.txt", SBD_TRAIN)
    write_list(dataset / "val.txt", SBD_VAL)
    for img_id in (*SBD_TRAIN, *SBD_VAL):
        write_mat(dataset / "cls" / f"{img_id}.mat", sbd_mask(img_id))


def category(name: str) -> int:
    return COCO_CATEGORY_IDS[COCO_CLASSES.index(name)]


def coco_json(split: str) -> dict[str, Any]:
    """An instances file: overlaps, a crowd, a tiny object, an image without objects.

    Image 9, 7×11: a large cat, a dog inside it, a crowd of people over the right half. Image 25,
    7×11: nothing. Image 30, 11×7: an apple that covers no pixel, a toothbrush in the first column.
    """
    folder = f"COCO_{split}_" if split.endswith("2014") else ""
    sizes = {9: HW, 25: HW, 30: HW[::-1]}
    images = [
        {"id": i, "file_name": f"{folder}{i:012d}.jpg", "height": h, "width": w, "license": 1}
        for i, (h, w) in reversed(sizes.items())
    ]
    crowd = [7 * 6, 7 * 5]  # columns 6 to 10, down the columns
    annotations = [
        (9, "dog", [[2, 2, 5, 2, 5, 4, 2, 4]], 0),
        (9, "cat", [[1, 1, 8, 1, 8, 6, 1, 6]], 0),
        (9, "person", {"size": list(HW), "counts": crowd}, 1),
        (30, "apple", [[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]], 0),
        (30, "toothbrush", [[0, 0, 1, 0, 1, 11, 0, 11]], 0),
    ]
    return {
        "info": {"year": int(split[-4:])},
        "licenses": [{"id": 1, "name": "x"}],
        "images": images,
        "annotations": [
            {
                "id": 100 + number,
                "image_id": image_id,
                "category_id": category(name),
                "segmentation": segmentation,
                "iscrowd": iscrowd,
                "area": 1.0,
                "bbox": [0, 0, 1, 1],
            }
            for number, (image_id, name, segmentation, iscrowd) in enumerate(annotations)
        ],
        "categories": [
            {"supercategory": "x", "id": i, "name": name}
            for i, name in zip(COCO_CATEGORY_IDS, COCO_CLASSES, strict=True)
        ],
    }


def write_coco(root: Path, *splits: str) -> None:
    """COCO: images and ``annotations/instances_<split>.json``."""
    for split in splits:
        content = coco_json(split)
        for image in content["images"]:
            hw = (image["height"], image["width"])
            write_image(root / split / image["file_name"], hw, seed=image["id"])
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def coco_mask_of_9(*, crowd: str = "ignore", overlap: str = "small") -> np.ndarray:
    """Image 9 as it should be drawn, by hand."""
    values = {name: COCO_CLASSES.index(name) + 1 for name in ("cat", "dog")}
    mask = np.zeros(HW, np.uint8)
    if crowd == "ignore":
        mask[:, 6:] = 255
    mask[1:6, 1:8] = values["cat"]
    mask[2:4, 2:5] = values["dog"]
    return mask
