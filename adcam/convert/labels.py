"""Image-level labels of any source -> ``labels.csv``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from adcam.convert.per_image import refuse_existing
from adcam.convert.summary import Converted, Tally
from adcam.data.labels import read_cls_labels_npy, write_labels_csv
from adcam.data.png import read_mask
from adcam.data.voc import EXPECTED_COUNTS, ids_of_names, load_voc, read_object_names
from adcam.errors import AdcamError
from adcam.files import find_files
from adcam.labeling.output_folder import masks_folder
from adcam.progress import track
from adcam.structures import IGNORE_INDEX, ClassSet


def convert_voc_labels(
    voc: str | Path,
    out: str | Path,
    class_set: ClassSet,
    *,
    split: str,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Labels of VOC's XML annotations: names of all objects, difficult ones included.

    Args:
        voc: VOC root.
        out: CSV file.
        class_set: The classes; of VOC's own, those outside it are passed over.
        split: Name of the list.
        overwrite: Replace ``out``.
        progress: Show progress on standard error.

    Raises:
        AdcamError: There is no such root or list, or ``out`` exists.
        OSError: ``out`` cannot be written.
    """
    images = load_voc(voc, split, classes=class_set, labels=None, mask_dir=None)

    def find(img_id: str) -> Sequence[int]:
        path = Path(voc) / "Annotations" / f"{img_id}.xml"
        return ids_of_names(read_object_names(path), class_set, path)

    img_ids = [record.img_id for record in images.records]
    expected = EXPECTED_COUNTS.get(split)
    note = f"{split}: {len(img_ids)} images"
    if expected is not None:
        note += f"; the full data set has {expected}"
    return _write("voc-labels", out, class_set, img_ids, find, overwrite, progress, note)


def convert_mask_labels(
    masks: str | Path,
    out: str | Path,
    class_set: ClassSet,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Labels of masks: the classes that have at least one pixel.

    Args:
        masks: Folder of ``<id>.png``, or of ``adcam generate``.
        out: CSV file.
        class_set: The classes; another value in a mask is that image's failure.
        overwrite: Replace ``out``.
        progress: Show progress on standard error.

    Raises:
        AdcamError: There are no masks, or ``out`` exists.
        OSError: ``out`` cannot be written.
    """
    paths = find_files(masks_folder(masks), ".png").paths
    legal = [0, *class_set.mask_values, IGNORE_INDEX]

    def find(img_id: str) -> list[int]:
        path = paths[img_id]
        values = np.unique(read_mask(path)).tolist()
        if other := [value for value in values if value not in legal]:
            raise AdcamError(f"{path}: the mask holds the values {other}; legal are {legal}")
        return [i for i, value in enumerate(class_set.mask_values) if value in values]

    return _write("mask-labels", out, class_set, list(paths), find, overwrite, progress)


def convert_irn_labels(
    npy: str | Path,
    out: str | Path,
    class_set: ClassSet,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Labels of a ``cls_labels.npy`` (:func:`adcam.data.labels.read_cls_labels_npy`).

    Args:
        npy: The file; numbers (2007000032) and text (``"2007_000032"``) name images.
        out: CSV file.
        class_set: The classes, in the order of the file's vectors.
        overwrite: Replace ``out``.
        progress: Show progress on standard error.

    Raises:
        AdcamError: The file is missing or no such file, or ``out`` exists.
        OSError: ``out`` cannot be written.
    """
    table = read_cls_labels_npy(npy, class_set.num_fg_classes)
    find = table.__getitem__
    return _write("irn-labels", out, class_set, sorted(table), find, overwrite, progress)


def _write(
    what: str,
    out: str | Path,
    class_set: ClassSet,
    img_ids: Sequence[str],
    find: Callable[[str], Sequence[int]],
    overwrite: bool,
    progress: bool,
    *notes: str,
) -> Converted:
    out = Path(out)
    refuse_existing([out], overwrite)
    tally = Tally(class_set)
    labels: dict[str, list[str]] = {}
    failed: dict[str, str] = {}
    img_ids = sorted(img_ids)
    for img_id in track(img_ids, "convert", len(img_ids)) if progress else img_ids:
        try:
            class_ids = find(img_id)
        except (ValueError, OSError) as error:
            failed[img_id] = str(error)
            continue
        tally.add_labels(img_id, class_ids)
        labels[img_id] = [class_set.classes[i] for i in class_ids]
    write_labels_csv(out, labels, class_set.classes)
    return tally.finish(what, out, num_images=len(labels), failed=failed, notes=notes)
