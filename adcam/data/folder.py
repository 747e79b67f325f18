"""Any folder of images with their labels, or any list of image files."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from adcam.data.dataset import ImageDataset, Record, build_class_set
from adcam.data.labels import LabelTable, read_any_labels
from adcam.errors import AdcamError
from adcam.files import file_of_id, find_images, img_id_of, index_by_id
from adcam.structures import ClassSet

logger = logging.getLogger(__name__)


def load_folder(
    path: str | Path,
    *,
    labels: str | Path | None = None,
    classes: Sequence[str] | ClassSet | None = None,
    mask_dir: str | Path | None = None,
    ids: Iterable[str] | None = None,
    leave_out: Iterable[Path] = (),
    split: str | None = None,
) -> ImageDataset:
    """All images below a folder (:func:`adcam.files.find_images`).

    An image's id is its path below ``path`` without suffix (:func:`adcam.files.img_id_of`). What is
    written for it later is named after the id, so two files that differ in their suffix alone are
    refused.

    Args:
        path: The folder; symbolic links to folders inside it are not followed.
        labels: A file of labels (:func:`adcam.data.labels.read_labels`), or ``"folders"`` where
            images lie in one sub-folder a class. Images without a label get ``class_ids=None``;
            labels of images that are not here are left out with a warning, so that one table can
            serve several folders.
        classes: The class names, which get the mask values 1..K, or a class set. ``None`` takes the
            names found in ``labels``, sorted; without one there are no classes.
        mask_dir: The folder of masks ``<img_id>.png``; every image should then have one. It may lie
            inside ``path``: it is not searched for images.
        ids: The images wanted, with or without suffix, in this order; ``None`` takes all, sorted
            by id.
        leave_out: The folders inside ``path`` that are not searched, such as the one that results
            are written to.
        split: What the images are called in reports; ``None`` takes the folder's name.

    Raises:
        AdcamError: No such folder, no image in it, ids that clash, are unknown or given twice,
            labels of none of the images, or a bad label file.
    """
    root = Path(path)
    masks = None if mask_dir is None else Path(mask_dir)
    skipped = (*leave_out, *(() if masks is None else (masks,)))
    path_of = find_images(root, leave_out=skipped)
    name = root.resolve().name or "images"
    class_set = None if classes is None else _make_class_set(name, classes)
    table = None
    if labels is not None:
        names = None if class_set is None else class_set.classes
        table = read_labels_with_note(labels, path_of, names)
    if class_set is None:
        class_set = _make_class_set(name, () if table is None else table.classes)
    records = [
        Record(
            img_id,
            path_of[img_id],
            mask_path=None if masks is None else file_of_id(masks, img_id, ".png"),
        )
        for img_id in path_of
    ]
    dataset = ImageDataset(class_set, name if split is None else split, records)
    if table is not None:
        dataset = dataset.with_labels(table.class_ids, table=labels)
    return dataset if ids is None else dataset.subset(ids)


def load_images(
    paths: str | Path | Iterable[str | Path],
    *,
    classes: Sequence[str] | ClassSet | None = None,
) -> ImageDataset:
    """One image file, or several, in the order given and without labels.

    Ids are paths without suffix below the deepest folder that holds all of them; of a single file,
    its name. The files need not exist yet: see :meth:`ImageDataset.check_files`.

    Args:
        paths: The image file, or several, with any suffix.
        classes: The class names, which get the mask values 1..K, or a class set.

    Raises:
        AdcamError: No path, or two with the same id.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(p) for p in paths]
    if not files:
        raise AdcamError("no image is given")
    absolute = [Path(os.path.abspath(file)) for file in files]  # noqa: PTH100 - keeps links
    top = Path(os.path.commonpath([file.parent for file in absolute]))
    path_of = index_by_id(
        (img_id_of(full.relative_to(top).as_posix()), file)
        for full, file in zip(absolute, files, strict=True)
    )
    records = [Record(img_id, file) for img_id, file in path_of.items()]
    return ImageDataset(_make_class_set("images", classes or ()), "images", records)


def read_labels_with_note(
    labels: str | Path, img_ids: Iterable[str], classes: Sequence[str] | None
) -> LabelTable:
    """Read labels (:func:`adcam.data.labels.read_any_labels`), and log how they are understood."""
    table = read_any_labels(labels, img_ids, classes)
    if table.understood:
        logger.warning("labels of %s are read as %s", labels, table.understood)
    return table


def _make_class_set(name: str, classes: Sequence[str] | ClassSet) -> ClassSet:
    if isinstance(classes, ClassSet):
        return classes
    return build_class_set(name, [unicodedata.normalize("NFC", n) for n in classes])
