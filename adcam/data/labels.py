"""Image-level labels: the CSV anyone can write, and the ``cls_labels.npy`` of other projects."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adcam.data.object_npy import load_object_npy
from adcam.errors import AdcamError
from adcam.files import img_id_of, spell_img_id, write_csv

CSV_HEADER = ("image_id", "labels")


class LabelTable(Mapping[str, tuple[str, ...]]):
    """Class names by image id, in the order of the file; iterates and indexes like a dict.

    Attributes:
        classes: The legal class names: those given, or else those found, sorted.
        class_ids: Ascending 0-based positions in ``classes`` by image id.
    """

    def __init__(self, names: Mapping[str, tuple[str, ...]], classes: Sequence[str]) -> None:
        """Keep ``names``, each of which must be one of ``classes``."""
        self._names = dict(names)
        self.classes = tuple(classes)
        position = {name: i for i, name in enumerate(self.classes)}
        self.class_ids: dict[str, tuple[int, ...]] = {
            img_id: tuple(sorted({position[name] for name in row}))
            for img_id, row in self._names.items()
        }

    def __getitem__(self, img_id: str) -> tuple[str, ...]:
        return self._names[img_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_labels_csv(path: str | Path, classes: Sequence[str] | None = None) -> LabelTable:
    """Read ``image_id,labels``.

    The file is UTF-8 with or without BOM, with any line ends; blank lines are skipped. An image id
    is a path relative to the image folder, with or without its suffix. An empty label means "none
    of the classes". Where a ``;`` stands in any label cell, labels are separated by ``;`` in the
    whole file, so that names may contain spaces (``tabby cat;dog``, alone: ``tabby cat;``).
    Otherwise a cell that is itself one of ``classes`` is that class, and other cells are split at
    white space. A label repeated in its cell counts once.

    Args:
        path: The CSV file.
        classes: The legal class names, in classifier order; ``None`` takes those found, sorted.

    Returns:
        Names by image id (:func:`adcam.files.img_id_of`), with ``.classes`` and ``.class_ids``.

    Raises:
        AdcamError: Another header or number of columns, an empty or repeated id, a label that is
            not in ``classes``, or text that is no UTF-8 CSV. The message names file, line, value
            and what is legal.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
    legal = None if classes is None else tuple(unicodedata.normalize("NFC", c) for c in classes)
    rows = _read_rows(path)
    split_at_semicolon = any(";" in row.cell for row in rows)

    names: dict[str, tuple[str, ...]] = {}
    line_of: dict[str, int] = {}
    for row in rows:
        where = f"{path}, line {row.line}"
        if row.img_id in names:
            raise AdcamError(
                f"{where}: image id {row.img_id!r} is already on line {line_of[row.img_id]}"
            )
        labels = _split_cell(row.cell, legal or (), split_at_semicolon)
        unknown = [label for label in labels if legal is not None and label not in legal]
        if unknown:
            hint = "" if split_at_semicolon else _semicolon_hint(row.cell)
            raise AdcamError(
                f"{where}: unknown class {unknown[0]!r}; legal are {', '.join(legal or ())}{hint}"
            )
        names[row.img_id] = labels
        line_of[row.img_id] = row.line
    found = sorted({label for labels in names.values() for label in labels})
    return LabelTable(names, found if legal is None else legal)


def infer_classes(path: str | Path) -> tuple[str, ...]:
    """The class names that a label CSV uses, sorted.

    Raises:
        AdcamError: As :func:`read_labels_csv`.
    """
    return read_labels_csv(path).classes


def write_labels_csv(
    path: str | Path, labels: Mapping[str, Iterable[str]], classes: Sequence[str]
) -> None:
    """Write a CSV that :func:`read_labels_csv` reads back, atomically.

    Labels are separated by spaces, or by semicolons where a class name contains a space.

    Args:
        path: File to write.
        labels: Class names by image id; an empty row means "none of the classes".
        classes: The legal class names; the labels of an image are written in this order.

    Raises:
        AdcamError: A label is not in ``classes``, a class name cannot be written (empty, with a
            semicolon or line break, or with spaces around it), or two ids have one normal form.
    """
    for name in classes:
        if not name or name != name.strip() or ";" in name or len(name.splitlines()) > 1:
            raise AdcamError(f"{path}: a label file cannot hold the class name {name!r}")
    with_semicolons = any(len(name.split()) > 1 for name in classes)

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
    IRN, ReCAM and LPCAM, the id's digits as a number (2007000032).

    Args:
        path: The ``.npy`` file.
        num_fg_classes: Length that each vector must have.

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
        raise AdcamError(f"{path}: expected a dict of class vectors, got {_kind(content)}")
    class_ids: dict[str, tuple[int, ...]] = {}
    for key, value in content.items():
        img_id = _img_id_of_key(path, key)
        if img_id in class_ids:
            raise AdcamError(f"{path}: two keys name image {img_id!r}, the second is {key!r}")
        if not isinstance(value, np.ndarray | list | tuple):
            raise AdcamError(f"{path}: image {img_id!r} has {_kind(value)} for a class vector")
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


class _Row(NamedTuple):
    line: int
    img_id: str
    cell: str


def _read_rows(path: Path) -> list[_Row]:
    """The rows below the header, ids normalised, cells as they are but for NFC."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise AdcamError(f"{path}: not UTF-8 text ({err}); save it as CSV UTF-8") from err
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[_Row] = []
    header_seen = False
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells) and len(cells) < 2:
                continue
            if not header_seen:
                if tuple(cell.strip() for cell in cells) != CSV_HEADER:
                    raise AdcamError(
                        f"{where}: the header must be {','.join(CSV_HEADER)!r}, "
                        f"got {','.join(cells)!r}"
                    )
                header_seen = True
                continue
            if len(cells) != len(CSV_HEADER):
                raise AdcamError(
                    f"{where}: expected 2 columns, got {len(cells)} ({','.join(cells)!r}); "
                    "separate labels by spaces or semicolons, and quote ids that contain commas"
                )
            if not cells[0].strip():
                raise AdcamError(f"{where}: the image id is empty")
            cell = unicodedata.normalize("NFC", cells[1])
            rows.append(_Row(reader.line_num, img_id_of(cells[0]), cell))
    except csv.Error as err:
        raise AdcamError(f"{path}, line {reader.line_num}: not a CSV file ({err})") from err
    if not header_seen:
        raise AdcamError(f"{path}: empty; the header must be {','.join(CSV_HEADER)!r}")
    return rows


def _split_cell(cell: str, legal: Collection[str], split_at_semicolon: bool) -> tuple[str, ...]:
    if split_at_semicolon:
        labels = [label.strip() for label in cell.split(";")]
    elif cell.strip() in legal:
        labels = [cell.strip()]
    else:
        labels = cell.split()
    return tuple(dict.fromkeys(label for label in labels if label))


def _semicolon_hint(cell: str) -> str:
    names = len(cell.split())
    return " (separate labels by semicolons where names contain spaces)" if names > 1 else ""


def _img_id_of_key(path: str | Path, key: object) -> str:
    if isinstance(key, str):
        return img_id_of(key)
    if isinstance(key, int) and not isinstance(key, bool) and 10**9 <= key < 10**10:
        return f"{key // 10**6}_{key % 10**6:06d}"
    raise AdcamError(
        f"{path}: key {key!r} is neither an image id nor ten digits such as 2007000032"
    )


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
