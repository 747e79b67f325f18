"""Image-level labels of any source -> ``labels.csv``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from adcam.convert.mask_source import find_masks
from adcam.convert.per_image import make_each, refuse_existing
from adcam.convert.summary import ClassCounts, Converted
from adcam.data.annotation_labels import read_object_names
from adcam.data.labels import read_cls_labels_npy, read_labels, write_labels_csv
from adcam.data.png import count_values, voc_palette
from adcam.data.voc import EXPECTED_COUNTS, ids_of_names, load_voc, voc_class_set
from adcam.structures import ClassSet


def convert_voc_labels(
    voc: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    split: str,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Labels of the images in VOC's list ``split``: names of all objects, difficult ones included.

    Where ``class_set`` has VOC's classes, those outside it are skipped.

    Raises:
        AdcamError: There is no such root or list, or ``out`` exists.
        OSError: ``out`` cannot be written.
    """
    classes = class_set or voc_class_set()
    images = load_voc(voc, split, classes=classes, labels=None, mask_dir=None)

    def find(img_id: str) -> Sequence[int]:
        path = Path(voc) / "Annotations" / f"{img_id}.xml"
        return ids_of_names(read_object_names(path), classes, path)

    img_ids = [record.img_id for record in images.records]
    expected = EXPECTED_COUNTS.get(split)
    note = f"{split}: {len(img_ids)} images"
    if expected is not None:
        note += f"; the full data set has {expected}"
    return _write("voc-labels", out, classes, img_ids, find, overwrite, progress, note)


def convert_mask_labels(
    masks: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    values: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Labels of masks: the classes that have at least one pixel.

    A value of no class in a mask is that image's failure.

    Raises:
        AdcamError: There are no masks, or ``out`` exists.
        OSError: ``out`` cannot be written.
    """
    source = find_masks(masks, class_set, values=values)
    classes = source.class_set

    def find(img_id: str) -> Sequence[int]:
        counts = count_values(source.read(img_id), classes.mask_values)
        return np.flatnonzero(counts[list(classes.mask_values)]).tolist()

    made = _write("mask-labels", out, classes, source.paths, find, overwrite, progress)
    return replace(made, notes=tuple(source.describe()))


def convert_irn_labels(
    npy: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Labels of a ``cls_labels.npy`` (:func:`adcam.data.labels.read_cls_labels_npy`).

    The classes are in the order of the file's vectors.

    Raises:
        AdcamError: The file is missing or no such file, or ``out`` exists.
        OSError: ``out`` cannot be written.
    """
    classes = class_set or voc_class_set()
    table = read_cls_labels_npy(npy, classes.num_fg_classes)
    return _write("irn-labels", out, classes, table, table.__getitem__, overwrite, progress)


def convert_label_table(
    table: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Labels of any file, or folder, that :func:`adcam.data.labels.read_labels` understands.

    Without ``class_set``, the classes are those that it says.

    Raises:
        AdcamError: The file cannot be understood, or ``out`` exists.
        OSError: ``out`` cannot be written.
    """
    labels = read_labels(table, None if class_set is None else class_set.classes)
    classes = class_set or ClassSet("custom", labels.classes, (), voc_palette())
    find = labels.class_ids.__getitem__
    note = f"read as {labels.understood or 'image_id,labels'}"
    return _write("label-table", out, classes, labels, find, overwrite, progress, note)


def _write(
    what: str,
    out: str | Path,
    class_set: ClassSet,
    img_ids: Iterable[str],
    find: Callable[[str], Sequence[int]],
    overwrite: bool,
    progress: bool,
    *notes: str,
) -> Converted:
    """Write one CSV file of labels and count what is in it."""
    refuse_existing(Path(out), overwrite)
    counts = ClassCounts(class_set)
    labels: dict[str, list[str]] = {}

    def add(img_id: str) -> None:
        class_ids = find(img_id)
        counts.add_labels(img_id, class_ids)
        labels[img_id] = [class_set.classes[i] for i in class_ids]

    for _ in make_each(sorted(img_ids), add, counts.failed, progress):
        pass
    write_labels_csv(out, labels, class_set.classes)
    return counts.finish(what, Path(out), notes)
