"""MS COCO as a data set for segmentation: 80 classes, masks of 81 values.

Lin et al., "Microsoft COCO: Common Objects in Context" (ECCV 2014, arXiv 1405.0312). COCO gives
instances, not masks; ``adcam convert coco`` draws them (:mod:`adcam.data.coco_json` has the rules).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adcam.data.dataset import ImageDataset, Record, build_class_set
from adcam.data.labels import read_labels
from adcam.data.text_tables import check_complete, check_count, check_relative, read_rows
from adcam.errors import AdcamError
from adcam.files import img_id_of
from adcam.structures import ClassSet

COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench"),
    *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    *("backpack", "umbrella", "handbag", "tie", "suitcase"),
    *("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove"),
    *("skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    *("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza"),
    *("donut", "cake"),
    *("chair", "couch", "potted plant", "bed", "dining table", "toilet"),
    *("tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator"),
    *("book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""The 80 classes in the order of ``categories`` in ``instances_*.json``; a class' value in masks is
its position + 1."""

_UNUSED_IDS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})

COCO_CATEGORY_IDS = tuple(i for i in range(1, 92) if i not in _UNUSED_IDS)
"""``category_id`` of each class in the json files. The paper names 91 categories; the 11 that were
never annotated with instances have no entry in ``categories``, and their ids stay unused."""

EXPECTED_COUNTS = {
    "train2014": 82_783,
    "val2014": 40_504,
    "train2014_objects": 82_081,
    "val2014_objects": 40_137,
    "train2017": 118_287,
    "val2017": 5_000,
    "train2017_objects": 117_266,
    "val2017_objects": 4_952,
}
"""Images of each official split, and of those with at least one annotation, crowds included. Both
years share their images, so train and val add up to the same numbers: 123,287 and 122,218."""


def coco_class_set() -> ClassSet:
    """The 80 classes with mask values 1..80 and VOC's colours for these values."""
    return build_class_set("coco", COCO_CLASSES)


def load_coco(
    root: str | Path,
    split: str,
    *,
    labels: bool = True,
    mask_dir: str | Path | None = "masks",
    expected_counts: Mapping[str, int] | None = None,
) -> ImageDataset:
    """Load a split as ``adcam convert coco`` lays it out.

    ::

        <folder>/<id>.jpg              the official images, <folder> is train2014, val2014, …
        lists/<split>.txt              ids; <split> is <folder>, or <folder>_objects without the
                                       images that show none of the classes
        masks/<folder>/<id>.png        0, 1..80, 255
        labels/<folder>.csv

    Args:
        root: The folder that holds all of these.
        split: The name of the list, e.g. ``"train2014_objects"``; what stands before the first
            ``_`` is the folder of its images.
        labels: Whether the image-level labels are read.
        mask_dir: The folder of the masks' folders, below ``root``; images have no masks where
            ``<mask_dir>/<folder>`` does not exist. ``None``: no masks.
        expected_counts: The number of images that a split must have, e.g. :data:`EXPECTED_COUNTS`.

    Returns:
        The images in the order of the list; an id is the file's name without suffix.

    Raises:
        AdcamError: A list or label file is missing or malformed, repeats an id, lacks images of the
            list, or its length is another than expected.
    """
    root = Path(root)
    folder = split.partition("_")[0]
    list_file = _find_list(root, split)
    img_ids = [
        img_id_of(check_relative(list_file, row.cells[0]))
        for row in read_rows(list_file, ("id",), None)
    ]
    check_count(list_file, split, len(img_ids), expected_counts)
    masks = None if mask_dir is None else root / mask_dir / folder
    if masks is not None and not masks.is_dir():
        masks = None
    records = [
        Record(
            img_id,
            root / folder / f"{img_id}.jpg",
            mask_path=None if masks is None else masks / f"{img_id}.png",
        )
        for img_id in img_ids
    ]
    dataset = ImageDataset(coco_class_set(), split, records)
    if not labels:
        return dataset
    return dataset.with_labels(_read_class_ids(root / "labels" / f"{folder}.csv", dataset))


def _find_list(root: Path, split: str) -> Path:
    path = root / "lists" / f"{split}.txt"
    if not path.is_file():
        found = sorted(path.stem for path in (root / "lists").glob("*.txt"))
        raise AdcamError(
            f"{path}: there is no such list (made by `adcam convert coco`); "
            f"the lists there are {', '.join(found) or 'none'}"
        )
    return path


def _read_class_ids(path: Path, dataset: ImageDataset) -> dict[str, tuple[int, ...]]:
    if not path.is_file():
        raise AdcamError(f"{path}: there is no such label file")
    table = read_labels(path, COCO_CLASSES).class_ids
    check_complete(path, (r.img_id for r in dataset.records), table, f"split {dataset.split!r}")
    return table
