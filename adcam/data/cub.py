"""CUB-200-2011 in its official files.

Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset" (CNS-TR-2011-001): 200 classes, one bird and
one box an image. ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` and
``bounding_boxes.txt`` have a line an image that begins with its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adcam.data.dataset import ImageDataset, Record, build_class_set
from adcam.data.text_tables import (
    Box,
    TextLine,
    check_box,
    check_complete,
    check_count,
    parse_int,
    read_pairs,
    read_rows,
)
from adcam.errors import AdcamError
from adcam.files import img_id_of

EXPECTED_COUNTS = {"train": 5994, "test": 5794}
"""Images of the two official splits (README of the data set)."""

SPLITS = {"train": "train", "test": "test", "train-weaksup": "train"}
"""Names of splits, with those of wsolevaluation; its train-fullsup, CUBV2, is another data set."""


def load_cub(
    root: str | Path,
    split: str,
    *,
    expected_counts: Mapping[str, int] | None = None,
) -> ImageDataset:
    """Load a split with labels and boxes.

    Boxes are stored as x, y, width, height in pixels and floating point. As in TS-CAM
    (``lib/datasets/cub.py``) each is truncated first, and x1 = x + width.

    Args:
        root: The folder ``CUB_200_2011``, with ``images`` in it.
        split: The split, one of :data:`SPLITS`.
        expected_counts: The number of images that a split must have; ``None`` takes
            :data:`EXPECTED_COUNTS`, ``{}`` checks nothing.

    Returns:
        The images in the order of ``images.txt``; ids such as
        ``001.Black_footed_Albatross/Black_Footed_Albatross_0046_18``.

    Raises:
        AdcamError: Unknown split, a file is missing or malformed, a table lacks an image, or the
            count is another one.
    """
    root = Path(root)
    if split not in SPLITS:
        raise AdcamError(f"CUB has the splits {', '.join(SPLITS)}, got {split!r}")
    rows = read_rows(root / "classes.txt", ("class", "name"), None)
    for number, row in enumerate(rows, start=1):
        if row.cells[0] != str(number):
            raise AdcamError(f"{row.where}: expected class {number}, got {row.cells[0]!r}")
    classes = [row.cells[1] for row in rows]
    images = read_pairs(root / "images.txt", ("image", "path"), None)
    labels = _read_table(root / "image_class_labels.txt", ("image", "class"), images)
    in_train = _read_table(root / "train_test_split.txt", ("image", "is_train"), images)
    boxes = _read_table(root / "bounding_boxes.txt", ("image", "x y width height"), images)

    wanted = int(SPLITS[split] == "train")
    records = [
        Record(
            img_id_of(row.cells[1]),
            root / "images" / row.cells[1],
            (parse_int(labels[number], 1, "the class", 1, len(classes)) - 1,),
            boxes=(_parse_box(boxes[number]),),
            as_stored=True,
        )
        for number, row in images.items()
        if parse_int(in_train[number], 1, "is_train", 0, 1) == wanted
    ]
    counts = EXPECTED_COUNTS if expected_counts is None else expected_counts
    check_count(root / "train_test_split.txt", SPLITS[split], len(records), counts)
    return ImageDataset(build_class_set("cub", classes), split, records)


def _read_table(
    path: Path, columns: tuple[str, str], images: Mapping[str, TextLine]
) -> dict[str, TextLine]:
    table = read_pairs(path, columns, None)
    check_complete(path, images, table, "images.txt")
    return table


def _parse_box(row: TextLine) -> Box:
    try:
        x, y, width, height = (int(float(cell)) for cell in row.cells[1].split())
    except (ValueError, OverflowError) as err:
        raise AdcamError(
            f"{row.where}: a box must be four numbers 'x y width height', got {row.cells[1]!r}"
        ) from err
    return check_box(row.where, (x, y, x + width, y + height))
