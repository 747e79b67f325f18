"""The data sets that a config or a command names, opened from what it says of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from adcam.data.coco import coco_class_set, load_coco
from adcam.data.converted import read_converted_classes, refuse_other_numbers
from adcam.data.cub import load_cub
from adcam.data.dataset import ImageDataset, build_class_set
from adcam.data.folder import load_folder
from adcam.data.imagenet import load_ilsvrc
from adcam.data.open_images import read_id_list
from adcam.data.shapes import shapes_class_set
from adcam.data.voc import VOC_CLASSES, load_voc, voc_class_set
from adcam.data.wsol import load_wsol
from adcam.errors import AdcamError
from adcam.options import check_choice, from_section
from adcam.settings import DataSettings
from adcam.structures import ClassSet

logger = logging.getLogger(__name__)

DataSource: TypeAlias = Callable[[DataSettings, str, bool], ImageDataset]
"""Opens one split: called with the ``data`` section, the name of the split, and whether image-level
labels are wanted; if they are not, what it attaches is dropped."""

CLASS_SETS = {"voc": voc_class_set, "coco": coco_class_set, "shapes": shapes_class_set}
"""The class sets that a config or a command may name."""


def register_data_source(name: str, source: DataSource) -> None:
    """Add a data source, which configs then name as ``data.source``.

    Args:
        name: The name that ``data.source`` then gives.
        source: The function that opens a split.

    Raises:
        AdcamError: The name is taken.

    Example:
        >>> from adcam.data.folder import load_folder
        >>> register_data_source("photos", lambda data, split, labels: load_folder(data.root))
    """
    if name in SOURCES:
        raise AdcamError(f"there is a data source {name!r} already; choose another name")
    SOURCES[name] = source


def build_dataset(
    data: Mapping[str, Any] | DataSettings, split: str, *, labels: bool = True
) -> ImageDataset:
    """Open the images of one split of a config's ``data`` section.

    Args:
        data: The section. ``source`` is one of :data:`SOURCES`: ``"voc"``, ``"coco14"`` (COCO of
            any year, as ``adcam convert coco`` lays it out), ``"folder"``, ``"cub"``, ``"ilsvrc"``,
            ``"wsol"``. ``labels`` is ``"xml"`` or ``"mask"`` (for VOC), ``"folders"`` (for a folder
            whose sub-folders are named after the classes), or a file relative to ``root``.
        split: The name of the split; for a folder a list of ids ``<split>.txt`` in it, or
            ``"all"``.
        labels: Whether image-level labels are attached.

    Raises:
        AdcamError: The section, or a file in it, is wrong.
    """
    keys = from_section(DataSettings, data, "data")
    check_choice("data.source", keys.source, SOURCES)
    if not _root_of(keys).is_dir():
        raise AdcamError(
            f"data.root {_root_of(keys)} is no folder; set ADCAM_DATA_ROOT or --cfg-options "
            "data.root=…"
        )
    if keys.mask_dir is not None:
        masks = _root_of(keys) / keys.mask_dir
        refuse_other_numbers(masks, read_converted_classes(masks), find_class_set(keys))
    images = SOURCES[keys.source](keys, split, labels)
    return images if labels else images.with_labels({})


def find_class_set(data: Mapping[str, Any] | DataSettings) -> ClassSet:
    """The classes and mask values of a ``data`` section, without opening a split.

    Class names of a folder get the values 1..K. In VOC's layout, names that are all VOC's keep
    VOC's values.

    Raises:
        AdcamError: The classes are not legal.
    """
    keys = from_section(DataSettings, data, "data")
    if keys.source == "coco14":
        return coco_class_set()
    own_name = _images_of(keys).resolve().name
    return build_classes(keys.classes or "voc", name=own_name, voc_values=keys.source != "folder")


def build_classes(
    classes: str | Sequence[str], *, name: str = "custom", voc_values: bool = True
) -> ClassSet:
    """The class set that a config names.

    Args:
        classes: The classes: ``"voc"`` (all 20), ``"coco"`` (all 80), ``"shapes"``, or names.
        name: The name of a class set that is made of names.
        voc_values: Whether names that are all VOC's get VOC's mask values; other names are always
            numbered from 1. Names that are VOC's in part are logged as a warning: they may be a
            typing error.

    Raises:
        AdcamError: A name is given twice, or the text is none of those above.
    """
    if isinstance(classes, str):
        if classes not in CLASS_SETS:
            raise AdcamError(
                f"classes must be 'voc', 'coco', 'shapes' or a list of names, got {classes!r}"
            )
        return CLASS_SETS[classes]()
    if not voc_values:
        return build_class_set(name, classes)
    if set(classes) <= set(VOC_CLASSES):
        return voc_class_set(classes)
    if set(classes) & set(VOC_CLASSES):
        logger.warning(
            "%s: not all VOC classes, so mask values are 1 to %d in this order instead of VOC's",
            [name for name in classes if name not in VOC_CLASSES],
            len(classes),
        )
    return build_class_set(name, classes)


def parse_classes(text: str | Sequence[str]) -> ClassSet:
    """The class set that a command line names.

    Args:
        text: The classes: ``voc``, ``coco`` or ``shapes``; names ``A,B,…`` (or a list of them),
            which get the mask values 1..K; or ``voc:A,B,…``, which keep VOC's values.

    Raises:
        AdcamError: A name is empty, given twice, or after ``voc:`` none of VOC's.

    Example:
        >>> parse_classes("cat,dog").mask_values
        (1, 2)
        >>> parse_classes("voc:cat,dog").mask_values
        (8, 12)
    """
    words = [text] if isinstance(text, str) else list(text)
    if len(words) == 1 and words[0] in CLASS_SETS:
        return CLASS_SETS[words[0]]()
    joined = ",".join(words)
    is_voc = joined.startswith("voc:")
    names = [name.strip() for name in joined.removeprefix("voc:").split(",")]
    if not all(names):
        raise AdcamError(
            f"classes must be voc, coco, shapes, names A,B,… or voc:A,B,…, got {joined!r}"
        )
    return voc_class_set(names) if is_voc else build_class_set("custom", names)


def _root_of(data: DataSettings) -> Path:
    return Path(data.root).expanduser()


def _images_of(data: DataSettings) -> Path:
    return _root_of(data) if data.images is None else Path(data.images).expanduser()


def _build_voc(data: DataSettings, split: str, labels: bool) -> ImageDataset:
    return load_voc(
        _root_of(data),
        split,
        classes=find_class_set(data),
        labels=_find_labels(data) if labels else None,
        mask_dir=data.mask_dir or "auto",
        expected_counts=data.expected_counts,
    )


def _build_coco(data: DataSettings, split: str, labels: bool) -> ImageDataset:
    return load_coco(
        _root_of(data),
        split,
        labels=labels,
        mask_dir=data.mask_dir or "masks",
        expected_counts=data.expected_counts,
    )


def _build_folder(data: DataSettings, split: str, labels: bool) -> ImageDataset:
    root = _root_of(data)
    if labels and data.labels in ("xml", "mask"):
        raise AdcamError(
            f"data.labels {data.labels!r} needs source='voc'; a folder's labels are in a file such "
            "as labels.csv, or in the names of its sub-folders (labels='folders')"
        )
    return load_folder(
        _images_of(data),
        labels=_find_labels(data) if labels else None,
        classes=find_class_set(data),
        mask_dir=None if data.mask_dir is None else root / data.mask_dir,
        ids=None if split == "all" else read_id_list(root / f"{split}.txt"),
        split=split,
    )


def _build_cub(data: DataSettings, split: str, _labels: bool) -> ImageDataset:
    return load_cub(_root_of(data), split, expected_counts=data.expected_counts)


def _build_ilsvrc(data: DataSettings, split: str, _labels: bool) -> ImageDataset:
    return load_ilsvrc(_root_of(data), split, expected_counts=data.expected_counts)


def _build_wsol(data: DataSettings, split: str, _labels: bool) -> ImageDataset:
    if data.metadata is None:
        raise AdcamError("data.metadata must name the folder of the splits for source 'wsol'")
    root, classes = _root_of(data), data.classes
    if isinstance(classes, str):
        classes = build_classes(classes).classes
    return load_wsol(
        root, root / data.metadata, split, classes=classes, expected_counts=data.expected_counts
    )


def _find_labels(data: DataSettings) -> str | Path:
    if data.labels in ("xml", "mask", "folders"):
        return data.labels
    path = _root_of(data) / data.labels
    if not path.exists():
        raise AdcamError(f"data.labels: there is no file {path}")
    return path


SOURCES: dict[str, DataSource] = {
    "voc": _build_voc,
    "coco14": _build_coco,
    "folder": _build_folder,
    "cub": _build_cub,
    "ilsvrc": _build_ilsvrc,
    "wsol": _build_wsol,
}
"""The sources by the name that ``data.source`` gives; :func:`register_data_source` adds to them."""
