"""Image-level labels: tables that people have, and the ``cls_labels.npy`` of other projects."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from adcam.data.annotation_labels import LabelRow
from adcam.data.label_tables import CSV_HEADER, read_label_table
from adcam.data.object_npy import load_object_npy
from adcam.errors import AdcamError
from adcam.files import img_id_of, spell_img_id, write_csv
from adcam.structures import check_class_name

# What pandas, Excel, R, databases and people write into a cell that has no value.
_NO_VALUE = ("nan", "na", "n/a", "<na>", "none", "null", "#n/a", "#ref!", "#value!", "-", "?")


class LabelTable(dict[str, tuple[str, ...]]):
    """Class names by image id, in the order of the file.

    Attributes:
        classes: The legal class names: those given, or those that the file lists in its order
            (columns, categories), or else those found, sorted.
        class_ids: The positions in ``classes`` by image id, from 0 and ascending.
        understood: How the file was read, in words; empty for the documented form.
    """

    def __init__(
        self, names: Mapping[str, tuple[str, ...]], classes: Iterable[str], understood: str = ""
    ) -> None:
        """Keep ``names``, each of which must be one of ``classes``."""
        super().__init__(names)
        self.understood = understood
        self.classes = tuple(classes)
        position = {name: i for i, name in enumerate(self.classes)}
        self.class_ids: dict[str, tuple[int, ...]] = {
            img_id: tuple(sorted({position[name] for name in row})) for img_id, row in self.items()
        }


def read_labels(path: str | Path, classes: Sequence[str] | None = None) -> LabelTable:
    """Read the image-level labels of a file, in whichever form people have them.

    The documented form is CSV with the header ``image_id,labels``, where labels are separated by
    ``;`` in the whole file as soon as one stands in any label cell (``tabby cat;dog``, alone:
    ``tabby cat;``); otherwise a cell that is itself one of ``classes`` is that class, and other
    cells are split at white space.

    Read are also: cells separated by semicolons or tabs; other names of the two columns
    (``filename,label``) among further columns; no header, if the first column holds image files;
    one column a class with 0 and 1; one row an object, with columns of boxes; JSON (labels by
    image, a list of entries, COCO's json, Label Studio's); the first sheet of an Excel workbook;
    "CVAT for images" (``.xml``); and a folder of VOC's XML or YOLO's text files
    (:mod:`adcam.data.annotation_labels`). Empty rows and empty cells at the end are skipped. Text
    is UTF-8, or UTF-16 with a byte-order mark. An image is named by its path relative to the image
    folder, with or without its suffix; no label means "none of the classes". Names that differ from
    a class in upper and lower case alone are that class.

    Args:
        path: The file, or a folder of annotations; ``.json``, ``.xlsx`` and ``.xml`` are
            recognised by their suffix.
        classes: The legal class names, in classifier order; ``None`` takes those that the
            file lists, in its order (its columns, COCO's categories), or else those found, sorted.

    Returns:
        Names by image id (:func:`adcam.files.img_id_of`), with ``.classes`` and ``.class_ids``;
        ``.understood`` says how the file was read.

    Raises:
        AdcamError: What the columns mean cannot be told, an id is empty or repeated, a label is not
            in ``classes``, or without ``classes`` says that a value is missing (``NaN``, ``none``)
            or is "background", or the file is damaged. The message names file, line, value and
            what is legal.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    legal = _normalize(classes)
    rows, understood, listed = read_label_table(path)
    separator = _find_separator(rows, legal, is_documented=not understood)
    split = [(row, _split_labels(row, legal or (), separator)) for row in rows]
    found = [label for _, labels in split for label in labels]
    spelling = _find_spelling(found if legal is None else legal)
    if legal is None:
        spelling |= {name.casefold(): name for name in reversed(listed)}
    names: dict[str, tuple[str, ...]] = {}
    for row, labels in split:
        if unknown := [label for label in labels if label.casefold() not in spelling]:
            hint = "" if separator == ";" else _semicolon_hint(row)
            raise AdcamError(
                f"{row.where}: unknown class {unknown[0]!r}; legal are {', '.join(legal or ())}"
                f"{hint}"
            )
        unsaid = [label for label in labels if label.casefold() in _NO_VALUE]
        if unsaid and legal is None and unsaid[0] not in listed:
            raise AdcamError(
                f"{row.where}: {unsaid[0]!r} usually says that a value is missing; leave the cell "
                "empty if the image shows none of the classes, and the row out if nobody knows "
                "what it shows; or, if this is a class, name all classes (--classes)"
            )
        spelt = (n if n in (legal or listed) else spelling[n.casefold()] for n in labels)
        names[row.img_id] = tuple(dict.fromkeys(spelt))
    used = sorted({label for labels in names.values() for label in labels})
    for name in used:
        check_class_name(name, str(path))
    # What a file lists may lack a class that it uses, and have a background that no image has.
    every = (name for name in (*listed, *used) if name.casefold() != "background")
    return LabelTable(names, dict.fromkeys(every) if legal is None else legal, understood)


def read_folder_labels(img_ids: Iterable[str], classes: Sequence[str] | None = None) -> LabelTable:
    """Labels of images that lie in one folder a class: ``cat/1.jpg`` shows a cat.

    Without ``classes`` these are the folders' names, sorted.

    Raises:
        AdcamError: An image lies in no folder, or in one that is not named after a class or is
            called "background".
    """
    classes = _normalize(classes)
    folder_of = {img_id: img_id.rpartition("/")[0].partition("/")[0] for img_id in img_ids}
    if outside := [img_id for img_id, folder in folder_of.items() if not folder]:
        raise AdcamError(f"image {outside[0]!r} lies in no folder that could name its class")
    spelling = _find_spelling(list(folder_of.values()) if classes is None else classes)
    if unknown := [folder for folder in folder_of.values() if folder.casefold() not in spelling]:
        raise AdcamError(
            f"the folder {unknown[0]!r} is not named after a class; legal are "
            f"{', '.join(classes or ())}"
        )
    names = {img_id: (spelling[folder.casefold()],) for img_id, folder in folder_of.items()}
    legal = sorted({name for (name,) in names.values()}) if classes is None else classes
    for name in legal:
        check_class_name(name, "one folder a class")
    return LabelTable(names, legal, f"one folder a class: {', '.join(legal)}")


def _normalize(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if classes is None else tuple(unicodedata.normalize("NFC", c) for c in classes)


def read_any_labels(
    labels: str | Path, img_ids: Iterable[str], classes: Sequence[str] | None = None
) -> LabelTable:
    """Read the labels of images: of a file (:func:`read_labels`), or, with ``"folders"``, by the
    folders that the images lie in (:func:`read_folder_labels`).

    Raises:
        AdcamError: The labels cannot be read, or name another class.
    """
    if labels == "folders":
        return read_folder_labels(img_ids, classes)
    return read_labels(labels, classes)


def write_labels_csv(
    path: str | Path, labels: Mapping[str, Iterable[str]], classes: Sequence[str]
) -> None:
    """Write a CSV that :func:`read_labels` reads back, atomically.

    Labels are separated by spaces, or by semicolons where a class name contains a space or comma.

    Args:
        path: The file to write.
        labels: The class names of each image id; an empty row means "none of the classes".
        classes: The legal class names; the labels of an image are written in this order.

    Raises:
        AdcamError: A label is not in ``classes``, a class name cannot be written (empty, with a
            semicolon or line break, or with spaces around it), or two ids have one normal form.
    """
    for name in classes:
        if not name or name != name.strip() or ";" in name or len(name.splitlines()) > 1:
            raise AdcamError(f"{path}: a label file cannot hold the class name {name!r}")
    with_semicolons = any(len(name.split()) > 1 or "," in name for name in classes)

    rows = []
    written: set[str] = set()
    for img_id, given in labels.items():
        row = set(given)
        if unknown := sorted(row.difference(classes)):
            raise AdcamError(
                f"{path}: image {img_id!r} has the unknown class {unknown[0]!r}; "
                f"legal are {', '.join(classes)}"
            )
        name = spell_img_id(img_id)
        if (normal := img_id_of(name)) in written:
            raise AdcamError(f"{path}: image id {img_id!r} is given twice")
        written.add(normal)
        names = [name for name in classes if name in row]
        # A lone label gets a semicolon too, or "tabby cat" would read as two labels.
        cell = "".join(f"{name};" for name in names) if with_semicolons else " ".join(names)
        rows.append((name, cell))
    write_csv(path, CSV_HEADER, rows)


def read_cls_labels_npy(path: str | Path, num_fg_classes: int = 20) -> dict[str, tuple[int, ...]]:
    """Read the ``cls_labels.npy`` that IRN, PSA, MCTformer and many others ship.

    The file is a pickled dict from image to a 0/1 vector without background. Nothing in it is run:
    see :func:`adcam.data.object_npy.load_object_npy`. Keys are ids (``"2007_000032"``) or, in
    IRN, ReCAM and LPCAM, the id's digits as a number (2007000032). Each vector must have the length
    ``num_fg_classes``.

    Returns:
        Ascending 0-based class ids by image id.

    Raises:
        AdcamError: The file holds something else, or something that may not be unpickled; a vector
            has another length or values other than 0 and 1; a key is of another kind, or two keys
            name one image.
        FileNotFoundError: There is no such file.
    """
    content = load_object_npy(path)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise AdcamError(f"{path}: expected a dict of class vectors, got a {kind}")
    class_ids: dict[str, tuple[int, ...]] = {}
    for key, value in content.items():
        img_id = _img_id_of_key(path, key)
        if img_id in class_ids:
            raise AdcamError(f"{path}: two keys name image {img_id!r}, the second is {key!r}")
        if not isinstance(value, np.ndarray | list | tuple):
            kind = type(value).__name__
            raise AdcamError(f"{path}: image {img_id!r} has a {kind} for a class vector")
        vector = np.asarray(value)
        if vector.shape != (num_fg_classes,):
            raise AdcamError(
                f"{path}: the class vector of image {img_id!r} has shape {vector.shape}, "
                f"expected ({num_fg_classes},)"
            )
        if not np.isin(vector, (0, 1)).all():
            raise AdcamError(
                f"{path}: the class vector of image {img_id!r} holds values other than 0 and 1"
            )
        class_ids[img_id] = tuple(int(i) for i in np.flatnonzero(vector))
    return class_ids


def _find_separator(
    rows: Sequence[LabelRow], legal: Sequence[str] | None, *, is_documented: bool
) -> str | None:
    """What separates labels in all cells of a file; ``None`` is white space."""
    cells = [row.labels[0] for row in rows if row.form != "names"]
    if any(";" in cell for cell in cells):
        return ";"
    if is_documented and legal is not None:
        return None
    if is_documented:  # no class that a command can name has a comma in it
        return "," if any("," in cell for cell in cells) else None
    known = " ".join(legal or ())
    return next((s for s in "|," if s not in known and any(s in c for c in cells)), None)


def _split_labels(row: LabelRow, legal: Sequence[str], separator: str | None) -> tuple[str, ...]:
    if row.form == "names":
        return row.labels
    cell = row.labels[0].strip()
    known = {name.casefold() for name in legal}
    if separator is not None:
        labels = [label.strip() for label in cell.split(separator)]
    elif cell.casefold() in known or row.form == "label":
        labels = [cell]
    else:
        labels = cell.split()
        # `"cat,dog"` in quotes: where its parts are classes, and its words are not.
        commas = [label.strip() for label in cell.split(",")]
        if known.issuperset(map(str.casefold, commas)):
            labels = labels if known.issuperset(map(str.casefold, labels)) else commas
    return tuple(dict.fromkeys(label for label in labels if label))


def _find_spelling(names: Sequence[str]) -> dict[str, str]:
    """The spelling of each name by its lower-case form: the one that stands most often."""
    counts = Counter(names)
    return {name.casefold(): name for name, _ in reversed(counts.most_common())}


def _semicolon_hint(row: LabelRow) -> str:
    is_phrase = row.form == "cell" and len(row.labels[0].split()) > 1
    return " (separate labels by semicolons where names contain spaces)" if is_phrase else ""


def _img_id_of_key(path: str | Path, key: object) -> str:
    if isinstance(key, str):
        return img_id_of(key)
    if isinstance(key, int) and not isinstance(key, bool) and 10**9 <= key < 10**10:
        return f"{key // 10**6}_{key % 10**6:06d}"
    raise AdcamError(
        f"{path}: key {key!r} is neither an image id nor ten digits such as 2007000032"
    )
