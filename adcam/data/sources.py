"""The data sets that a config or a command names, opened from what it says of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adcam.data.coco import coco_class_set, load_coco
from adcam.data.cub import load_cub
from adcam.data.dataset import ImageDataset, build_class_set
from adcam.data.folder import load_folder
from adcam.data.imagenet import load_ilsvrc
from adcam.data.open_images import read_id_list
from adcam.data.shapes import shapes_class_set
from adcam.data.voc import VOC_CLASSES, load_voc, voc_class_set
from adcam.data.wsol import load_wsol
from adcam.errors import AdcamError
from adcam.structures import ClassSet

logger = logging.getLogger(__name__)

SOURCES = ("voc", "coco14", "folder", "cub", "ilsvrc", "wsol")


def build_dataset(data: Mapping[str, Any], split: str, *, labels: bool = True) -> ImageDataset:
    """The images of one split of a config's ``data`` section.

    Args:
        data: ``source`` (of :data:`SOURCES`), ``root``, ``classes`` (names, or "voc",
            "coco", "shapes"), ``labels`` ("xml", "mask", or a file relative to ``root``; a folder
            needs a CSV file), ``mask_dir`` (below ``root``), ``expected_counts`` (images by split,
            not for a folder). "coco14" is COCO, of any year, as `adcam convert coco` lays it out;
            of these it takes ``mask_dir`` and ``expected_counts``.
            "cub", "ilsvrc" and "wsol" bring their own labels and boxes; "wsol" takes ``metadata``,
            the folder of the splits, below ``root`` or absolute, and ``classes`` names its labels.
        split: Name of the split; for a folder a list of ids ``<split>.txt`` in it, or ``"all"``.
        labels: Whether image-level labels are attached.

    Raises:
        AdcamError: If the section or a file in it is wrong.
    """
    source = data.get("source", "voc")
    if source not in SOURCES:
        raise AdcamError(f"data.source must be one of {SOURCES}, got {source!r}")
    root = Path(data["root"]).expanduser()
    if not root.is_dir():
        raise AdcamError(
            f"data.root {root} is no folder; set ADCAM_DATA_ROOT or --cfg-options data.root=…"
        )
    if source in ("cub", "ilsvrc", "wsol"):
        images = _build_localization(source, root, data, split)
        return images if labels else images.with_labels({})
    if source == "coco14":
        options = {key: data[key] for key in ("mask_dir", "expected_counts") if key in data}
        return load_coco(root, split, labels="csv" if labels else None, **options)
    class_set = build_classes(data.get("classes", "voc"))
    label_source = data.get("labels", "xml") if labels else None
    if source == "folder" and label_source in ("xml", "mask"):
        raise AdcamError(
            f"data.labels {label_source!r} needs source='voc'; a folder's labels are in a CSV file"
        )
    if label_source not in (None, "xml", "mask"):
        label_source = root / str(label_source)
        if not label_source.is_file():
            raise AdcamError(f"data.labels: there is no file {label_source}")
    if source == "voc":
        return load_voc(
            root,
            split,
            classes=class_set,
            labels=label_source,
            mask_dir=data.get("mask_dir", "auto"),
            expected_counts=data.get("expected_counts"),
        )
    mask_dir = data.get("mask_dir")
    return load_folder(
        root,
        labels_csv=label_source,
        classes=class_set,
        mask_dir=None if mask_dir is None else root / mask_dir,
        ids=None if split == "all" else read_id_list(root / f"{split}.txt"),
    )


def _build_localization(
    source: str, root: Path, data: Mapping[str, Any], split: str
) -> ImageDataset:
    # Without the key, CUB and ILSVRC are counted as the whole data sets that they are.
    counts = {key: data[key] for key in ("expected_counts",) if key in data}
    if source == "cub":
        return load_cub(root, split, **counts)
    if source == "ilsvrc":
        return load_ilsvrc(root, split, **counts)
    if "metadata" not in data:
        raise AdcamError("data.metadata must name the folder of the splits for source 'wsol'")
    classes = data.get("classes")
    if isinstance(classes, str):
        classes = build_classes(classes).classes
    return load_wsol(root, root / data["metadata"], split, classes=classes, **counts)


def build_classes(classes: str | Sequence[str]) -> ClassSet:
    """The class set a config names.

    Args:
        classes: ``"voc"`` (all 20), ``"coco"`` (all 80), ``"shapes"``, or names; names that are all
            VOC's keep VOC's mask values, others are numbered from 1. Names that are VOC's in part
            are logged as a warning: they may be a typing error.
    """
    if classes == "voc":
        return voc_class_set()
    if classes == "coco":
        return coco_class_set()
    if classes == "shapes":
        return shapes_class_set()
    if isinstance(classes, str):
        raise AdcamError(
            f"classes must be 'voc', 'coco', 'shapes' or a list of names, got {classes!r}"
        )
    if set(classes) <= set(VOC_CLASSES):
        return voc_class_set(classes)
    if set(classes) & set(VOC_CLASSES):
        logger.warning(
            "%s: not all VOC classes, so mask values are 1 to %d in this order instead of VOC's",
            [name for name in classes if name not in VOC_CLASSES],
            len(classes),
        )
    return build_class_set("custom", classes)


def parse_classes(text: str) -> ClassSet:
    """The class set that a command line names: ``voc``, ``coco``, ``shapes`` or ``A,B,…``.

    Raises:
        AdcamError: A name is empty or given twice.
    """
    if text in ("voc", "coco", "shapes"):
        return build_classes(text)
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise AdcamError(f"classes must be voc, coco, shapes or names A,B,…, got {text!r}")
    return build_classes(names)
