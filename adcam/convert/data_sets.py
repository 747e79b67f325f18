"""SBD and COCO as they are published -> masks, lists and labels that the loaders read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adcam.convert.exchange import CocoDrawer
from adcam.convert.per_image import LoopOptions, convert_each, masks_of
from adcam.convert.summary import Converted
from adcam.data.coco import COCO_CLASSES, coco_class_set
from adcam.data.coco import EXPECTED_COUNTS as COCO_COUNTS
from adcam.data.coco_json import find_values, import_pycocotools, match_categories, read_coco_json
from adcam.data.images import check_same_hw, read_image_hw
from adcam.data.labels import write_labels_csv
from adcam.data.open_images import read_id_list, write_id_list
from adcam.data.png import read_mask
from adcam.data.sbd import compute_train_aug, is_checksummed, read_sbd_mask
from adcam.data.voc import EXPECTED_COUNTS as VOC_COUNTS
from adcam.data.voc import voc_class_set
from adcam.errors import AdcamError
from adcam.files import hash_file
from adcam.labeling.executor import WorkerCrash, WorkerPool


def convert_sbd(
    sbd: str | Path,
    voc: str | Path,
    *,
    out: str | Path | None = None,
    partial: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Make ``SegmentationClassAug`` and ``train_aug.txt`` of SBD and VOC 2012.

    Where VOC has a mask of its own (its train), it is taken: it is finer, and marks void as 255.

    Args:
        sbd: The folder with ``cls``, ``train.txt`` and ``val.txt``, or ``benchmark_RELEASE`` above
            it.
        voc: VOC root.
        out: Root to write into; ``None`` is the VOC root itself.
        partial: Take lists of any length, of a part of the data sets.
        overwrite: Whether masks that are there are made again.
        progress: Whether progress is shown on standard error.

    Raises:
        AdcamError: A list is missing, or the ids are not the 10,582 of train_aug.
        OSError: A file cannot be written.
    """
    sbd, voc = _find_sbd(Path(sbd)), Path(voc)
    root = voc if out is None else Path(out)
    lists = voc / "ImageSets" / "Segmentation"
    voc_train, voc_val = (read_id_list(lists / f"{split}.txt") for split in ("train", "val"))
    sbd_ids = {i for split in ("train", "val") for i in read_id_list(sbd / f"{split}.txt")}
    img_ids = compute_train_aug(sbd_ids, voc_train, voc_val)
    note = _check_count("train_aug", len(img_ids), VOC_COUNTS["train_aug"], partial)
    own = frozenset(voc_train)
    folder = root / "SegmentationClassAug"
    class_set = voc_class_set()
    settings = {"converter": "sbd", "mask_values": class_set.value_of}
    options = LoopOptions(settings, overwrite, progress)
    # scipy's reader can crash on damaged files: without a checksum they go to another process.
    with WorkerPool(read_sbd_mask, 1, on_crash=_refuse_crash) as pool:

        def make(img_id: str) -> np.ndarray:
            if img_id in own:
                mask = read_mask(voc / "SegmentationClass" / f"{img_id}.png")
            else:
                path = sbd / "cls" / f"{img_id}.mat"
                is_safe = is_checksummed(path)
                mask = read_sbd_mask(path) if is_safe else pool.submit(path).result()
            image = voc / "JPEGImages" / f"{img_id}.jpg"
            if image.is_file():
                check_same_hw("the mask", mask.shape, f"its image {image}", read_image_hw(image))
            return mask

        counts = convert_each(img_ids, make, folder, masks_of(class_set), options)
    list_path = root / "ImageSets" / "Segmentation" / "train_aug.txt"
    write_id_list(list_path, img_ids)
    num_own = len(own & set(img_ids))
    notes = (note, f"{num_own} masks are VOC's own, {len(img_ids) - num_own} SBD's", str(list_path))
    return counts.finish("sbd", folder, notes)


def _refuse_crash(path: Path, crash: WorkerCrash, _again: Callable[[Path], np.ndarray]) -> Any:
    raise AdcamError(f"{path}: the file is damaged; reading it crashed ({crash})")


def convert_coco(
    annotations: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    crowd: str = "ignore",
    overlap: str = "small",
    partial: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Make 81-class masks, lists and image-level labels of COCO's instances.

    Writes what :func:`adcam.data.coco.load_coco` reads: ``masks/<split>/<id>.png``,
    ``lists/<split>.txt`` (all images), ``lists/<split>_objects.txt`` (those with an annotation) and
    ``labels/<split>.csv`` (all annotated classes, those of crowds and of objects too small for a
    pixel included). :mod:`adcam.data.coco_json` has the rules of drawing.

    Args:
        annotations: ``instances_<split>.json``.
        out: Root to write into, as a rule the folder that holds the images' folders.
        split: ``"train2014"``, …; ``None`` takes it from the file's name.
        crowd: ``"ignore"`` (255) or ``"skip"`` (background).
        overlap: ``"small"`` or ``"first"``: which object is on top.
        partial: Take files of any number of images.
        overwrite: Whether masks that are there are made again.
        progress: Whether progress is shown on standard error.

    Raises:
        AdcamError: The file is no instances file, its annotations have categories outside COCO's
            80, it has another number of images than the split, or pycocotools is missing.
        OSError: A file cannot be written.
    """
    import_pycocotools()  # without it every single image would fail
    path, root = Path(annotations), Path(out)
    if split is None:
        split = path.stem.removeprefix("instances_")
    if not split or "_" in split or "/" in split:
        raise AdcamError(f"a split is named such as 'train2014', without '_', got {split!r}")
    file = read_coco_json(path)
    class_set = coco_class_set()
    value_of = match_categories(file, class_set)
    with_objects = [image.img_id for image in file.images if image.annotations]
    totals = {split: len(file.images), f"{split}_objects": len(with_objects)}
    notes = [_check_count(name, n, COCO_COUNTS.get(name), partial) for name, n in totals.items()]
    drawer = CocoDrawer(file.images, value_of, crowd, overlap)
    settings = {
        "converter": "coco",
        "annotations": hash_file(path),
        "mask_values": class_set.value_of,
        **drawer.rules,
    }
    folder = root / "masks" / split
    options = LoopOptions(settings, overwrite, progress)
    counts = convert_each(drawer.images, drawer, folder, masks_of(class_set), options)
    write_id_list(root / "lists" / f"{split}.txt", drawer.images)
    write_id_list(root / "lists" / f"{split}_objects.txt", with_objects)
    labels = {
        image.img_id: [COCO_CLASSES[value - 1] for value in find_values(image, value_of)]
        for image in file.images
        if image.img_id not in counts.failed
    }
    write_labels_csv(root / "labels" / f"{split}.csv", labels, COCO_CLASSES)
    notes += drawer.describe()
    return counts.finish("coco", folder, notes)


def _find_sbd(root: Path) -> Path:
    candidates = (root, root / "dataset", root / "benchmark_RELEASE" / "dataset")
    for folder in candidates:
        if (folder / "cls").is_dir():
            return folder
    raise AdcamError(f"{root}: no folder cls with SBD's .mat files in it or in dataset below it")


def _check_count(split: str, count: int, expected: int | None, partial: bool) -> str:
    if expected is None or (partial and count != expected):
        return f"{split}: {count} images, not compared with a known number"
    if count != expected:
        raise AdcamError(
            f"{count} images, but {split} has {expected}; --partial takes a part of the data set"
        )
    return f"{split}: {count} images, all that there are"
