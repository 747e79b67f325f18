"""PASCAL VOC 2012 and data sets in its layout.

Everingham et al., The PASCAL Visual Object Classes Challenge (IJCV 2010, 2015); layout and class
order as in the development kit. ``train_aug`` adds the SBD masks (Hariharan et al., ICCV 2011).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from adcam.data.annotation_labels import read_object_names
from adcam.data.dataset import ImageDataset, Record
from adcam.data.labels import read_cls_labels_npy, read_labels
from adcam.data.png import voc_palette
from adcam.data.text_tables import check_complete, check_count, check_relative
from adcam.errors import AdcamError, join_some
from adcam.files import IMAGE_SUFFIXES, is_file, is_folder, is_image_path, read_text
from adcam.structures import ClassSet

logger = logging.getLogger(__name__)

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle"),
    *("bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The 20 classes; a class' value in masks is its position + 1."""

EXPECTED_COUNTS = {"train": 1464, "val": 1449, "trainval": 2913, "train_aug": 10582}
"""Images in the segmentation lists of the full data set."""

_SPLIT_NAMES = {
    "train_aug": ("train_aug", "trainaug"),
    "trainaug": ("train_aug", "trainaug"),
}


def voc_class_set(classes: Sequence[str] | None = None) -> ClassSet:
    """The VOC classes, or some of them in the order given, with VOC's mask values and colours.

    Values of a subset have gaps (``("cat", "cow")`` -> 8, 10), so its masks compare with VOC's.

    Raises:
        AdcamError: A name is no VOC class, or given twice.
    """
    chosen = VOC_CLASSES if classes is None else tuple(classes)
    if unknown := [name for name in chosen if name not in VOC_CLASSES]:
        raise AdcamError(f"unknown class {unknown[0]!r}; legal are {', '.join(VOC_CLASSES)}")
    values = tuple(VOC_CLASSES.index(name) + 1 for name in chosen)
    return ClassSet("voc12", chosen, values, voc_palette())


def load_voc(
    root: str | Path,
    split: str,
    *,
    classes: Sequence[str] | ClassSet | None = None,
    labels: str | Path | None = "xml",
    mask_dir: str | None = "auto",
    expected_counts: Mapping[str, int] | None = None,
) -> ImageDataset:
    """Load a split of a data set in VOC layout.

    The list is ``ImageSets/Segmentation/<split>.txt``, or else ``ImageSets/Main/<split>.txt``. Its
    lines are ids, file names, ids with 1, 0 or -1 behind them (all are taken), or an image path and
    a mask path below ``root`` (``/JPEGImages/x.jpg /SegmentationClassAug/x.png``). Images lie in
    ``JPEGImages``, as ``.jpg`` or another image suffix. Every image of a Segmentation list should
    have a mask, as long as the mask folder exists; of images in other lists those have one whose
    file exists. With a subset of the VOC classes, mask values of the other classes become 255.

    Args:
        root: The folder that holds ``JPEGImages``, often called ``VOC2012``.
        split: The name of the list; ``"train_aug"`` is also found as ``trainaug.txt``.
        classes: The names of VOC classes, or any class set; ``None`` takes all 20.
        labels: Where image-level labels come from; classes of VOC outside ``classes`` are skipped.
            ``"xml"``: names of the objects in ``Annotations``, those marked difficult included, as
            PSA and IRN do; an image whose annotation is missing or damaged is left out, with a
            warning. ``"mask"``: the values in the masks. A path to a table (:func:`read_labels`) or
            to a ``.npy`` (:func:`read_cls_labels_npy`, 20 classes). ``None``: not known.
        mask_dir: The folder of masks below ``root``. ``"auto"`` is ``SegmentationClassAug`` for
            ``train_aug`` and ``SegmentationClass`` for other splits; a mask named in the list goes
            first. ``None``: no masks.
        expected_counts: The number of images that a split must have, e.g. :data:`EXPECTED_COUNTS`;
            ``None`` or none check nothing.

    Raises:
        AdcamError: A list is missing, empty, malformed, repeats an id or has another length than
            expected; a label file is malformed or lacks images of the list; a class is unknown.
    """
    root = Path(root)
    if not root.is_dir():
        raise AdcamError(f"{root}: there is no such folder")
    class_set = classes if isinstance(classes, ClassSet) else voc_class_set(classes)
    list_file = _find_list(root, split)
    promised = list_file.parent.name != "Main"
    records = [
        Record(
            entry.img_id,
            _img_path(root, entry),
            mask_path=_mask_path(root, entry, split, mask_dir, promised),
        )
        for entry in _read_list(list_file)
    ]
    _check_count(list_file, split, len(records), expected_counts)
    other_values: Literal["ignore", "refuse"] = "ignore" if _is_voc(class_set) else "refuse"
    dataset = ImageDataset(class_set, split, records, other_values=other_values)
    if labels is None:
        return dataset
    if labels == "xml":
        return _attach_xml_labels(root, dataset)
    return dataset.with_labels(_read_class_ids(root, dataset, labels))


def ids_of_names(names: Iterable[str], class_set: ClassSet, path: Path) -> tuple[int, ...]:
    """Class ids of names that stand in a file, ascending.

    Where all classes of the set are VOC's, VOC's other names are skipped.

    Raises:
        AdcamError: A name is unknown; the message names the file and the legal names.
    """
    known = _known_names(class_set)
    present = set(names)
    if unknown := sorted(present.difference(known)):
        raise AdcamError(f"{path}: unknown class {unknown[0]!r}; legal are {', '.join(known)}")
    return tuple(i for i, name in enumerate(class_set.classes) if name in present)


class _Entry(NamedTuple):
    img_id: str
    img_file: str | None
    mask_file: str | None


def _find_list(root: Path, split: str) -> Path:
    names = _SPLIT_NAMES.get(split, (split,))
    folders = (root / "ImageSets" / "Segmentation", root / "ImageSets" / "Main")
    candidates = [folder / f"{name}.txt" for folder in folders for name in names]
    for path in candidates:
        if path.is_file():
            return path
    found = sorted({path.stem for folder in folders for path in folder.glob("*.txt")})
    raise AdcamError(
        f"no list for split {split!r}: looked for {', '.join(map(str, candidates))}; "
        f"the lists there are {', '.join(found) or 'none'}"
    )


def _read_list(path: Path) -> list[_Entry]:
    entries: list[_Entry] = []
    line_of: dict[str, int] = {}
    is_class_list = False
    lines = read_text(path, "a list of images").replace("\\", "/").splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) == 2 and words[1] in ("-1", "0", "1"):
            words, is_class_list = words[:1], True
        files = [word.lstrip("/") for word in words if is_image_path(word)]
        if not (len(words) == 1 or (len(words) == 2 and len(files) == 2)):
            raise AdcamError(
                f"{where}: expected an id, or an image path and a mask path, got {line!r}"
            )
        img_id = Path(files[0]).stem if files else words[0]
        for name in (img_id, *files):
            check_relative(Path(where), name)
        if img_id in line_of:
            raise AdcamError(f"{where}: image id {img_id!r} is already on line {line_of[img_id]}")
        line_of[img_id] = number
        img_file, mask_file, *_ = [*files, None, None]
        entries.append(_Entry(img_id, img_file, mask_file))
    if not entries:
        raise AdcamError(f"{path}: the list is empty")
    if is_class_list:
        logger.warning("%s lists 1, 0 or -1 behind ids; all its images are taken", path)
    return entries


def _check_count(
    list_file: Path, split: str, count: int, expected_counts: Mapping[str, int] | None
) -> None:
    if not expected_counts:
        return
    names = _SPLIT_NAMES.get(split, (split,))
    expected = next((expected_counts[name] for name in names if name in expected_counts), None)
    if expected is None:
        raise AdcamError(
            f"no count is expected for split {split!r}; known are {', '.join(expected_counts)}"
        )
    check_count(list_file, split, count, {split: expected})


def _img_path(root: Path, entry: _Entry) -> Path:
    if entry.img_file is not None:
        folder = root if "/" in entry.img_file else root / "JPEGImages"
        return folder / entry.img_file
    folder = root / "JPEGImages"
    usual = folder / f"{entry.img_id}.jpg"
    if is_file(usual):
        return usual
    others = (folder / f"{entry.img_id}{suffix}" for suffix in sorted(IMAGE_SUFFIXES))
    return next((path for path in others if is_file(path)), usual)


def _mask_path(
    root: Path, entry: _Entry, split: str, mask_dir: str | None, promised: bool
) -> Path | None:
    if mask_dir is None:
        return None
    if mask_dir == "auto" and entry.mask_file is not None:
        path = root / entry.mask_file
    else:
        usual = "SegmentationClassAug" if split in _SPLIT_NAMES else "SegmentationClass"
        path = root / (usual if mask_dir == "auto" else mask_dir) / f"{entry.img_id}.png"
    exists = is_folder(path.parent) if promised else is_file(path)
    return path if exists else None


def _attach_xml_labels(root: Path, dataset: ImageDataset) -> ImageDataset:
    """The images whose annotation can be read, with its labels; the others are named and left out.

    Raises:
        AdcamError: No annotation can be read, or one names an unknown class.
    """
    class_ids: dict[str, tuple[int, ...]] = {}
    errors: list[AdcamError] = []
    for record in dataset.records:
        path = root / "Annotations" / f"{record.img_id}.xml"
        try:
            names = read_object_names(path)
        except AdcamError as error:
            errors.append(error)
            continue
        class_ids[record.img_id] = ids_of_names(names, dataset.class_set, path)
    if not errors:
        return dataset.with_labels(class_ids)
    if not class_ids:
        raise AdcamError(f"no annotation of split {dataset.split!r} can be read: {errors[0]}")
    logger.warning(
        "%d of the %d images of split %r are left out, since their annotations cannot be read: %s",
        len(errors),
        len(dataset),
        dataset.split,
        join_some(errors, separator="; "),
    )
    return dataset.subset(class_ids).with_labels(class_ids)


def _read_class_ids(
    root: Path, dataset: ImageDataset, labels: str | Path
) -> dict[str, tuple[int, ...]]:
    """Class ids of every image of ``dataset``."""
    class_set = dataset.class_set
    if labels == "mask":
        return {record.img_id: _ids_of_mask(dataset, i) for i, record in enumerate(dataset.records)}
    path = Path(labels)
    if path.suffix.lower() == ".npy":
        table = {
            img_id: ids_of_names((VOC_CLASSES[i] for i in class_ids), class_set, path)
            for img_id, class_ids in read_cls_labels_npy(path, len(VOC_CLASSES)).items()
        }
    elif path.suffix.lower() in (".csv", ".tsv", ".txt", ".json", ".xlsx"):
        rows = read_labels(path, _known_names(class_set))
        table = {img_id: ids_of_names(row, class_set, path) for img_id, row in rows.items()}
    else:
        raise AdcamError(
            "labels must be 'xml', 'mask', None or a .npy, .csv, .tsv, .txt, .json or .xlsx file, "
            f"got {labels!r}"
        )
    check_complete(path, (r.img_id for r in dataset.records), table, f"split {dataset.split!r}")
    return table


def _is_voc(class_set: ClassSet) -> bool:
    """Whether these are VOC classes with VOC's values, all or some."""
    pairs = zip(class_set.classes, class_set.mask_values, strict=True)
    return set(pairs) <= {(name, i + 1) for i, name in enumerate(VOC_CLASSES)}


def _known_names(class_set: ClassSet) -> tuple[str, ...]:
    """Names that annotations may hold: for a subset of VOC all of VOC's, else the set's own."""
    return VOC_CLASSES if _is_voc(class_set) else class_set.classes


def _ids_of_mask(dataset: ImageDataset, index: int) -> tuple[int, ...]:
    mask = dataset.load_mask(index)
    if mask is None:
        img_id = dataset.records[index].img_id
        raise AdcamError(f"labels='mask', but image {img_id!r} has no mask")
    values = set(np.unique(mask).tolist())
    return tuple(i for i, v in enumerate(dataset.class_set.mask_values) if v in values)
