"""Metadata folders of wsolevaluation: splits, labels, boxes and masks of its three data sets.

Choe et al. (CVPR 2020, arXiv 2001.07437), ``data_loaders.py`` and ``README.md`` of
clovaai/wsolevaluation. ``metadata/<set>/<split>/`` holds, one line an image or a box::

    image_ids.txt       path
    class_labels.txt    path,class             from 0
    image_sizes.txt     path,width,height
    localization.txt    path,x0,y0,x1,y1       or, for OpenImages: path,mask,ignore mask
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from adcam.data.dataset import ImageDataset, Record, build_class_set
from adcam.data.images import open_image
from adcam.data.text_tables import (
    Box,
    check_box,
    check_complete,
    check_count,
    check_relative,
    parse_int,
    read_pairs,
    read_rows,
)
from adcam.errors import AdcamError
from adcam.files import img_id_of, read_text
from adcam.structures import IGNORE_INDEX

logger = logging.getLogger(__name__)

SPLITS = {"train-weaksup": "train", "train-fullsup": "val", "test": "test"}
"""Folder of each split of the protocol: train on the first, choose thresholds and settings on the
second, report the third."""

EXPECTED_COUNTS = {
    "CUB": {"train-weaksup": 5994, "train-fullsup": 1000, "test": 5794},
    "ILSVRC": {"train-weaksup": 1_281_167, "train-fullsup": 10_000, "test": 50_000},
    "OpenImages": {"train-weaksup": 29_819, "train-fullsup": 2500, "test": 5000},
}
"""Images of each split by data set (README of clovaai/wsolevaluation)."""

T = TypeVar("T")


@dataclass(frozen=True)
class WsolMetadata:
    """What a metadata folder says. Images go by their path below the data root, suffix included.

    Attributes:
        folder: The folder that the metadata was read from.
        image_ids: The images in their order.
        class_labels: The class of each image, from 0.
        image_sizes: The height and width of each image; empty where there is no such table.
        boxes: The true boxes of each image in pixels of ``image_sizes``; empty where there are
            none.
        masks: The mask files of each image and its ignore mask, below the mask root; empty where
            there are none.
    """

    folder: Path
    image_ids: tuple[str, ...]
    class_labels: Mapping[str, int]
    image_sizes: Mapping[str, tuple[int, int]]
    boxes: Mapping[str, tuple[Box, ...]]
    masks: Mapping[str, tuple[tuple[str, ...], str]]


def read_wsol_metadata(folder: str | Path) -> WsolMetadata:
    """Read one split's folder.

    ``image_sizes.txt`` and ``localization.txt`` may be absent, as for training images; lines for
    images that ``image_ids.txt`` does not list are skipped.

    Raises:
        AdcamError: A file is missing or malformed, an image lacks its label, size, box or mask, or
            a path leaves its folder.
    """
    folder = Path(folder)
    image_ids = tuple(read_pairs(folder / "image_ids.txt", ("path",), ","))
    for image_id in image_ids:
        check_relative(folder / "image_ids.txt", image_id)
    labels = read_pairs(folder / "class_labels.txt", ("path", "class"), ",")
    class_labels = {i: parse_int(row, 1, "the class", 0) for i, row in labels.items()}

    sizes: dict[str, tuple[int, int]] = {}
    if (folder / "image_sizes.txt").is_file():
        for row in read_rows(folder / "image_sizes.txt", ("path", "width", "height"), ","):
            width, height = parse_int(row, 1, "the width", 1), parse_int(row, 2, "the height", 1)
            sizes[row.cells[0]] = (height, width)
        sizes = _only(sizes, image_ids, folder / "image_sizes.txt")

    localization = folder / "localization.txt"
    boxes: dict[str, tuple[Box, ...]] = {}
    masks: dict[str, tuple[tuple[str, ...], str]] = {}
    if localization.is_file():
        first_line = read_text(localization, "a table").lstrip().splitlines()[:1]
        if [line.count(",") for line in first_line] == [2]:
            masks = _only(_read_masks(localization), image_ids, localization)
        else:
            boxes = _only(_read_boxes(localization), image_ids, localization)
            _warn_of_boxes_outside(localization, boxes, sizes)
    return WsolMetadata(
        folder,
        image_ids,
        _only(class_labels, image_ids, folder / "class_labels.txt"),
        sizes,
        boxes,
        masks,
    )


def load_wsol(
    image_root: str | Path,
    metadata_root: str | Path,
    split: str,
    *,
    classes: Sequence[str] | None = None,
    expected_counts: Mapping[str, int] | None = None,
) -> ImageDataset:
    """Load a split with labels, and with boxes where there are any.

    Args:
        image_root: The folder that the paths of the images begin in.
        metadata_root: The folder of the splits, ``metadata/<set>``.
        split: The split: one of the protocol (:data:`SPLITS`) or the name of a folder.
        classes: The class names in the order of the labels; ``None`` calls them ``"0"``, ``"1"``, …
            up to the highest label of this split.
        expected_counts: The number of images that a split must have, such as
            ``EXPECTED_COUNTS["CUB"]``.

    Returns:
        The images in the order of ``image_ids.txt``; ids are paths without suffix.

    Raises:
        AdcamError: As :func:`read_wsol_metadata`, no such split, a label without a class name, or
            another count.
    """
    metadata_root = Path(metadata_root)
    folder = metadata_root / SPLITS.get(split, split)
    if not folder.is_dir():
        there = sorted(path.name for path in metadata_root.glob("*") if path.is_dir())
        raise AdcamError(
            f"{metadata_root}: there is no folder {folder.name!r} for split {split!r}; legal are "
            f"{', '.join(SPLITS)} and the folders there: {', '.join(there) or 'none'}"
        )
    metadata = read_wsol_metadata(folder)
    check_count(folder / "image_ids.txt", split, len(metadata.image_ids), expected_counts)
    highest = max(metadata.class_labels.values())
    names = [str(i) for i in range(highest + 1)] if classes is None else list(classes)
    if highest >= len(names):
        raise AdcamError(
            f"{folder / 'class_labels.txt'}: class {highest} has no name; {len(names)} are given"
        )
    records = [
        Record(
            img_id_of(image_id),
            Path(image_root) / image_id,
            (metadata.class_labels[image_id],),
            boxes=metadata.boxes.get(image_id),
            as_stored=True,
            boxes_hw=metadata.image_sizes.get(image_id),
        )
        for image_id in metadata.image_ids
    ]
    # metadata/<set>/<split> is the layout; a folder of one data set may leave out <set>.
    named = metadata_root if metadata_root.name != "metadata" else Path(image_root)
    class_set = build_class_set(named.resolve().name, names, masks=False)
    return ImageDataset(class_set, split, records)


def read_wsol_mask(
    mask_root: str | Path,
    masks: Sequence[str],
    ignore: str,
    *,
    hw: tuple[int, int] = (224, 224),
) -> np.ndarray:
    """The mask that :class:`adcam.metrics.localization.PixelAveragePrecision` scores against.

    As ``get_mask`` of wsolevaluation: masks of all instances joined, each resized to the map's
    size by the nearest pixel (``floor(i * size / map size)``, OpenCV's ``INTER_NEAREST``), and what
    the ignore mask adds to them becomes 255.

    Args:
        mask_root: The folder that the paths begin in.
        masks: The files of the instances, at least one; what is not black belongs to the object.
        ignore: The file of the ignore mask.
        hw: The height and width of the score maps.

    Returns:
        uint8 (H, W): 1 = object, 0 = background, 255 = not scored.

    Raises:
        ImageError: A file is missing or no image.
    """
    root = Path(mask_root)
    is_object = np.zeros(hw, dtype=bool)
    for mask in masks:
        is_object |= _read_nonzero(root / mask, hw)
    is_ignored = _read_nonzero(root / ignore, hw) & ~is_object
    return is_object.astype(np.uint8) + IGNORE_INDEX * is_ignored.astype(np.uint8)


def _read_nonzero(path: Path, hw: tuple[int, int]) -> np.ndarray:
    with open_image(path) as img:
        pixels = np.asarray(img.convert("L"))
    rows = np.arange(hw[0]) * pixels.shape[0] // hw[0]
    columns = np.arange(hw[1]) * pixels.shape[1] // hw[1]
    return pixels[rows[:, None], columns] > 0


def _read_boxes(path: Path) -> dict[str, tuple[Box, ...]]:
    boxes: dict[str, list[Box]] = {}
    for row in read_rows(path, ("path", "x0", "y0", "x1", "y1"), ","):
        x0, y0, x1, y1 = (parse_int(row, i, "a coordinate", 0) for i in range(1, 5))
        boxes.setdefault(row.cells[0], []).append(check_box(row.where, (x0, y0, x1, y1)))
    return {image_id: tuple(found) for image_id, found in boxes.items()}


def _warn_of_boxes_outside(
    path: Path, boxes: Mapping[str, tuple[Box, ...]], sizes: Mapping[str, tuple[int, int]]
) -> None:
    """Say which boxes no map can match; the protocol scales them without a look."""
    outside = [
        f"{image_id} of {width}x{height} pixels has {box}"
        for image_id, (height, width) in sizes.items()
        for box in boxes[image_id]
        if box[2] > width or box[3] > height
    ]
    if outside:
        logger.warning(
            "%s: %d boxes x0, y0, x1, y1 reach out of their images, such as %s; image_sizes.txt "
            "must hold path,width,height",
            path,
            len(outside),
            outside[0],
        )


def _read_masks(path: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    found: dict[str, tuple[list[str], str]] = {}
    for row in read_rows(path, ("path", "mask", "ignore mask"), ","):
        image_id, mask, ignore = row.cells
        check_relative(path, mask)
        if (image_id in found) == bool(ignore):
            raise AdcamError(
                f"{row.where}: the first mask of an image comes with its ignore mask, the others "
                f"without, got {ignore!r}"
            )
        if ignore:
            check_relative(path, ignore)
        found.setdefault(image_id, ([], ignore))[0].append(mask)
    return {image_id: (tuple(masks), ignore) for image_id, (masks, ignore) in found.items()}


def _only(table: Mapping[str, T], image_ids: Sequence[str], path: Path) -> dict[str, T]:
    """The images wanted, all of which must be there."""
    check_complete(path, image_ids, table, "image_ids.txt")
    return {image_id: table[image_id] for image_id in image_ids}
