"""What a user calls "my images": a folder, a VOC root, a list or one file, as a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from adcam.data.dataset import ImageDataset, Record
from adcam.data.folder import load_folder, load_images, read_labels_with_note
from adcam.data.packed_images import Found, find_packed, is_packed, list_packed
from adcam.data.voc import load_voc
from adcam.errors import AdcamError
from adcam.files import (
    HEIC_CURE,
    HEIC_SUFFIXES,
    img_id_of,
    is_image_path,
    read_text,
    spell_img_id,
    write_text,
)
from adcam.remote_files import is_url
from adcam.structures import ClassSet

LABEL_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".xlsx", ".xml")
"""Kinds of files that labels are read from (:func:`adcam.data.labels.read_labels`)."""

LABEL_FILES = ("labels.csv", "labels.tsv", "labels.json", "labels.xlsx")
"""Labels that lie beside the images are found under one of these names, in any case."""


def open_images(
    path: str | Path,
    class_set: ClassSet,
    *,
    labels: str | Path | None = "auto",
    ids: Sequence[str] | None = None,
    voc_split: str | None = None,
    leave_out: Iterable[Path] = (),
) -> ImageDataset:
    """Open images of any of the supported layouts.

    Args:
        path: One image; a ``.txt`` list of image paths, relative to the list's own folder; a VOC
            root (with ``JPEGImages`` and ``ImageSets``); or a folder of images. Also tar archives
            and Parquet files of images (:mod:`adcam.data.packed_images`): one, a folder, a list or
            a pattern (``data/*.tar``); and URLs of these, or of a folder of images.
        class_set: The classes that labels may name.
        labels: The labels: a file (:func:`adcam.data.labels.read_labels`), ``"folders"`` for one
            sub-folder a class, or, for VOC, a ``.npy`` file, ``"xml"`` or ``"mask"``; ``None`` for
            none. ``"auto"`` takes VOC's ``Annotations`` if there are any, else a file
            (:data:`LABEL_FILES`) beside the images, else none.
        ids: The images wanted, with or without suffix; ``None`` takes all.
        voc_split: The name of the list of a VOC root.
        leave_out: The folders inside ``path`` that are not searched, such as the one that results
            are written to.

    Raises:
        AdcamError: There are no such images, ids or labels.
    """
    if files := _find_packed_files(path):
        images = _open_packed(files, class_set, labels)
        return images if ids is None else images.subset(ids)
    path = Path(path)
    if not path.exists():
        raise AdcamError(f"{path}: there is no such image, list or folder")
    if voc_split is not None and not _is_voc_root(path):
        raise AdcamError(
            f"{path} is no VOC root (it lacks JPEGImages or ImageSets), so that it has no split "
            f"{voc_split!r}"
        )
    if path.is_dir():
        source = _find_labels(path) if labels == "auto" else labels
        if _is_voc_root(path):
            return _open_voc(path, class_set, source, ids, voc_split)
        return load_folder(
            path, labels=_check_labels(source), classes=class_set, ids=ids, leave_out=leave_out
        )
    is_list = path.suffix.lower() == ".txt"
    if not is_list and path.suffix.lower() in LABEL_SUFFIXES:
        raise AdcamError(
            f"{path} is a table, no image; name the folder of the images, and the table with "
            f"--labels {path}"
        )
    images = load_images(_read_list(path) if is_list else path, classes=class_set)
    images = _with_labels(images, labels)
    return images if ids is None else images.subset(ids)


def _find_packed_files(path: str | Path) -> list[str]:
    """Tar archives, Parquet files or URLs that a user names; empty if it is none of these."""
    if not is_url(path) and Path(path).suffix.lower() == ".txt":
        return _find_packed_lines(Path(path))
    found = list_packed(path)
    if not found and (is_url(path) or "*" in str(path)):
        raise AdcamError(f"{path}: there are no images, .tar or .parquet files")
    return found


def _find_packed_lines(path: Path) -> list[str]:
    """The archives and URLs of a list; empty where it names images of this machine."""
    lines = [line.strip() for line in read_text(path, "a list of image paths").splitlines()]
    packed = [line for line in lines if is_url(line) or is_packed(line)]
    if packed and (stray := [line for line in lines if line and line not in packed]):
        raise AdcamError(
            f"{path}: a list names either images of this machine, or archives and URLs; "
            f"{stray[0]} is of another kind than {packed[0]}"
        )
    return [line if is_url(line) else str(path.parent / line) for line in packed]


def _open_packed(
    files: Sequence[str], class_set: ClassSet, labels: str | Path | None
) -> ImageDataset:
    found = list(find_packed(files))
    if not found:
        raise AdcamError(f"{files[0]}: there are no images in it")
    records = [
        Record(
            item.img_id,
            Path(item.image.name or item.image.file),
            _stored_class_ids(item, class_set) if labels == "auto" else None,
            packed=item.image,
        )
        for item in found
    ]
    images = ImageDataset(class_set, "images", records)
    return _with_labels(images, labels)


def _with_labels(images: ImageDataset, labels: str | Path | None) -> ImageDataset:
    """The same images with the labels of a file, or of the folders in their ids, if named."""
    if labels == "auto" or (source := _check_labels(labels)) is None:
        return images
    img_ids = [record.img_id for record in images.records]
    table = read_labels_with_note(source, img_ids, images.class_set.classes)
    return images.with_labels(table.class_ids, table=source)


def _stored_class_ids(item: Found, class_set: ClassSet) -> tuple[int, ...] | None:
    """Class ids of labels that stand beside an image, by name or by number."""
    if item.labels is None:
        return None
    count = len(class_set.classes)
    if 2 < count == len(item.labels) and set(item.labels) <= {0, 1}:
        raise AdcamError(
            f"{item.image.file}#{item.image.name}: the labels {list(item.labels)} could be "
            f"numbers of classes or a flag for each of the {count} classes; list the number of "
            "each class that the image shows once, or give --labels FILE.csv"
        )
    position = {name: i for i, name in enumerate(class_set.classes)}
    ids = {label if isinstance(label, int) else position.get(label, -1) for label in item.labels}
    if any(not 0 <= i < len(class_set.classes) for i in ids):
        raise AdcamError(
            f"{item.image.file}#{item.image.name}: unknown class in {list(item.labels)}; classes "
            f"are {', '.join(class_set.classes)}, or their numbers from 0 on. Labels of your own "
            "can be given with --labels FILE.csv"
        )
    return tuple(sorted(ids))


def read_id_list(path: str | Path) -> list[str]:
    """Image ids, one a line; blank lines are skipped.

    Raises:
        AdcamError: The file is missing, no UTF-8 text, empty, or names an id twice.
    """
    path = Path(path)
    line_of: dict[str, int] = {}
    lines = read_text(path, "a list of image ids").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        img_id = img_id_of(line)
        if img_id in line_of:
            raise AdcamError(
                f"{path}, line {number}: image id {img_id!r} is already on line {line_of[img_id]}"
            )
        line_of[img_id] = number
    if not line_of:
        raise AdcamError(f"{path}: the list is empty")
    return list(line_of)


def write_id_list(path: str | Path, img_ids: Iterable[str]) -> None:
    """Write a list that :func:`read_id_list` reads, atomically.

    Raises:
        OSError: The file cannot be written.
    """
    write_text(path, "".join(f"{spell_img_id(img_id)}\n" for img_id in img_ids))


def _open_voc(
    root: Path,
    class_set: ClassSet,
    labels: str | Path | None,
    ids: Sequence[str] | None,
    voc_split: str | None,
) -> ImageDataset:
    if voc_split is None:
        found = sorted({file.stem for file in (root / "ImageSets").glob("*/*.txt")})
        raise AdcamError(
            f"{root} is a VOC root: choose a list with --voc-split, one of {', '.join(found)}"
        )
    images = load_voc(root, voc_split, classes=class_set, labels=labels)
    return images if ids is None else images.subset(ids)


def _is_voc_root(path: Path) -> bool:
    return (path / "JPEGImages").is_dir() and (path / "ImageSets").is_dir()


def _find_labels(folder: Path) -> str | Path | None:
    if _is_voc_root(folder) and (folder / "Annotations").is_dir():
        return "xml"
    return find_label_file(folder)


def find_label_file(folder: Path) -> Path | None:
    """The one of :data:`LABEL_FILES` that lies in a folder, if any.

    Raises:
        AdcamError: There are several.
    """
    found = sorted(p for p in folder.iterdir() if p.name.lower() in LABEL_FILES and p.is_file())
    return take_one(folder, found)


def take_one(folder: Path, found: Sequence[Path]) -> Path | None:
    """The only file of labels that was found in a folder, ``None`` where there is none.

    Raises:
        AdcamError: There are several.
    """
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise AdcamError(f"{folder} holds {names}; say with --labels which one counts")
    return found[0] if found else None


def _check_labels(labels: str | Path | None) -> str | Path | None:
    if labels in (None, "folders") or Path(labels).suffix.lower() in LABEL_SUFFIXES:
        return labels
    if Path(labels).is_dir():  # VOC's XML or YOLO's text files
        return labels
    near = get_close_matches(str(labels), ("predicted", "folders"), 1)
    raise AdcamError(
        f"labels of these images must be a {', '.join(LABEL_SUFFIXES)} file, a folder of VOC's or "
        f"YOLO's annotations, or 'folders' for one sub-folder a class, got {str(labels)!r}"
        + (f"; did you mean {near[0]!r}?" if near else "")
    )


def _read_list(path: Path) -> list[Path]:
    lines = read_text(path, "a list of image paths").replace("\\", "/").splitlines()
    files = [path.parent / line.strip() for line in lines if line.strip()]
    if stray := [file for file in files if not is_image_path(file)]:
        cure = HEIC_CURE if stray[0].suffix.lower() in HEIC_SUFFIXES else ""
        raise AdcamError(f"{path}: {stray[0]} is no image path; one path a line is expected{cure}")
    return files
