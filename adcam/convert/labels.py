"""Image-level labels of any source -> ``labels.csv``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adcam.convert.mask_source import find_masks
from adcam.convert.per_image import refuse_existing
from adcam.convert.summary import ClassCounts, Converted
from adcam.data.labels import read_cls_labels_npy, read_labels, write_labels_csv
from adcam.data.voc import EXPECTED_COUNTS, ids_of_names, load_voc, read_object_names, voc_class_set
from adcam.errors import AdcamError
from adcam.progress import track
from adcam.structures import IGNORE_INDEX, ClassSet


def convert_voc_labels(
    voc: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    split: str,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Labels of VOC's XML annotations: names of all objects, difficult ones included.

    Args:
        voc: VOC root.
        out: The CSV file to write.
        class_set: The classes, ``None`` for VOC's; of VOC's own, those outside it are skipped.
        split: Name of the list.
        overwrite: Whether ``out`` may be replaced.
        progress: Whether progress is shown on standard error.

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
    writer = _LabelWriter("voc-labels", Path(out), classes, overwrite, progress)
    return writer.write(img_ids, find, [note])


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

    Args:
        masks: Folder of ``<id>.png``, or an output folder of this project.
        out: The CSV file to write.
        class_set: The classes; ``None`` takes those of the output folder, else VOC's. Another value
            in a mask is that image's failure.
        values: What mask values are read as, e.g. ``"255=1"``.
        overwrite: Whether ``out`` may be replaced.
        progress: Whether progress is shown on standard error.

    Raises:
        AdcamError: There are no masks, or ``out`` exists.
        OSError: ``out`` cannot be written.
    """
    source = find_masks(masks, class_set, values=values)
    legal = [0, *source.class_set.mask_values, IGNORE_INDEX]
    pixels = np.zeros(256, dtype=np.int64)

    def find(img_id: str) -> list[int]:
        nonlocal pixels
        counts = np.bincount(source.read(img_id).ravel(), minlength=256)
        found = np.flatnonzero(counts).tolist()
        if other := [value for value in found if value not in legal]:
            raise AdcamError(
                f"{source.paths[img_id]}: the mask holds the values {other}; legal are {legal}"
            )
        pixels += counts
        return [i for i, value in enumerate(source.class_set.mask_values) if value in found]

    writer = _LabelWriter("mask-labels", Path(out), source.class_set, overwrite, progress)
    notes: list[str] = []
    return writer.write(list(source.paths), find, notes, lambda: source.describe(pixels))


def convert_irn_labels(
    npy: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Labels of a ``cls_labels.npy`` (:func:`adcam.data.labels.read_cls_labels_npy`).

    Args:
        npy: The file; numbers (2007000032) and text (``"2007_000032"``) name images.
        out: The CSV file to write.
        class_set: The classes, in the order of the file's vectors; ``None`` for VOC's.
        overwrite: Whether ``out`` may be replaced.
        progress: Whether progress is shown on standard error.

    Raises:
        AdcamError: The file is missing or no such file, or ``out`` exists.
        OSError: ``out`` cannot be written.
    """
    classes = class_set or voc_class_set()
    table = read_cls_labels_npy(npy, classes.num_fg_classes)
    writer = _LabelWriter("irn-labels", Path(out), classes, overwrite, progress)
    return writer.write(sorted(table), table.__getitem__, [])


def convert_label_table(
    table: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Labels of any file that :func:`adcam.data.labels.read_labels` understands.

    Args:
        table: The file: CSV of any dialect, JSON, COCO's json, an Excel workbook.
        out: The CSV file to write.
        class_set: The classes; ``None`` takes the names that the file uses, sorted.
        overwrite: Whether ``out`` may be replaced.
        progress: Whether progress is shown on standard error.

    Raises:
        AdcamError: The file cannot be understood, or ``out`` exists.
        OSError: ``out`` cannot be written.
    """
    labels = read_labels(table, None if class_set is None else class_set.classes)
    classes = class_set or ClassSet("custom", labels.classes, (), voc_class_set().palette)
    writer = _LabelWriter("label-table", Path(out), classes, overwrite, progress)
    notes = [f"read as {labels.understood or 'image_id,labels'}"]
    return writer.write(sorted(labels), labels.class_ids.__getitem__, notes)


@dataclass(frozen=True)
class _LabelWriter:
    """Writes one CSV file of labels and counts what is in it."""

    what: str
    out: Path
    class_set: ClassSet
    overwrite: bool
    progress: bool

    def write(
        self,
        img_ids: Sequence[str],
        find: Callable[[str], Sequence[int]],
        notes: Sequence[str],
        find_notes: Callable[[], Sequence[str]] = list,
    ) -> Converted:
        refuse_existing([self.out], self.overwrite)
        counts = ClassCounts(self.class_set)
        labels: dict[str, list[str]] = {}
        failed: dict[str, str] = {}
        img_ids = sorted(img_ids)
        for img_id in track(img_ids, "convert", len(img_ids)) if self.progress else img_ids:
            try:
                class_ids = find(img_id)
            except (AdcamError, OSError) as error:
                failed[img_id] = str(error)
                continue
            counts.add_labels(img_id, class_ids)
            labels[img_id] = [self.class_set.classes[i] for i in class_ids]
        write_labels_csv(self.out, labels, self.class_set.classes)
        all_notes = (*notes, *find_notes())
        return counts.finish(
            self.what, self.out, num_images=len(labels), failed=failed, notes=all_notes
        )
