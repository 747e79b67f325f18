"""Tables of image-level labels: their form is recognised, or refused where it is ambiguous.

A table says for each image which classes it shows. Spreadsheets separate cells by commas,
semicolons or tabs; programs write one column of labels, one column a class, one row an object, or
JSON. :func:`read_label_table` finds out which it is; :mod:`adcam.data.labels` makes classes of it.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adcam.data.annotation_labels import (
    LabelRow,
    LabelRows,
    clean_names,
    is_label_studio,
    read_annotation_folder,
    read_cvat_labels,
    read_label_studio_labels,
)
from adcam.data.coco_json import IGNORE_CATEGORY, read_coco_json
from adcam.data.label_studio import refuse_json_min
from adcam.data.spreadsheet import read_xlsx
from adcam.errors import AdcamError
from adcam.files import check_characters, decode_text, img_id_of, is_image_path, read_json
from adcam.limits import check_file_bytes

CSV_HEADER = ("image_id", "labels")

_IMAGE_COLUMNS = frozenset(
    {"imageid", "image", "img", "imgid", "id", "file", "filename", "filepath", "name", "path"}
    | {"imagename", "imagepath", "imagefile", "imagefilename"}
)
_LABEL_COLUMNS = frozenset({"labels", "classes", "categories", "tags", "classnames", "classlabels"})
_ONE_LABEL_COLUMNS = frozenset({"label", "class", "category", "tag", "classname", "target"})
_BOX_COLUMNS = frozenset({"xmin", "x0", "x1", "bbox", "bboxx"})
# Open Images writes 0 under "Confidence" for a class that people looked for and did not find:
# https://storage.googleapis.com/openimages/web/download_v7.html
_PRESENCE_COLUMNS = frozenset({"confidence", "present", "presence", "value", "score"})
_YES = frozenset({"1", "1.0", "true", "yes", "x"})
_NO = frozenset({"0", "0.0", "false", "no", ""})

Grid = Sequence[tuple[int, Sequence[str]]]
"""Rows that are not empty: the number of the line, and its cells."""


def read_label_table(path: Path) -> LabelRows:
    """Read a label file, or a folder of annotations, of any kind.

    :func:`adcam.data.labels.read_labels` has the kinds.

    Raises:
        AdcamError: The file cannot be read, or what it says is ambiguous.
        FileNotFoundError: There is no such file.
    """
    if path.is_dir():
        return read_annotation_folder(path)
    if path.suffix.lower() == ".xml":
        return read_cvat_labels(path)
    if path.suffix.lower() == ".json":
        return _read_json(path)
    if path.suffix.lower() == ".xlsx":
        return _read_grid(path, read_xlsx(path), "an Excel workbook")
    text = _read_text(path)
    delimiter = _find_delimiter(text)
    kind = {";": "cells are separated by semicolons", "\t": "cells are separated by tabs"}
    return _read_grid(path, _parse_csv(path, text, delimiter), kind.get(delimiter, ""))


def _read_text(path: Path) -> str:
    check_file_bytes(path, "a table of labels")
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Excel's "Unicode text"
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as err:
            raise AdcamError(f"{path}: cannot be read as UTF-16 text ({err})") from err
    try:
        return decode_text(data, str(path), "a label file")
    except AdcamError as err:
        raise AdcamError(f"{err}; save it as CSV UTF-8") from err


def _find_delimiter(text: str) -> str:
    """The separator under which the first line makes sense, or that it has most of."""
    first = next((line for line in text.splitlines() if line.strip(" \t,;")), "")
    if re.fullmatch(r"sep=[,;\t]", first.strip(" ")):  # Excel's own hint
        return first.strip(" ")[-1]
    best = max(",;\t", key=first.count)
    for delimiter in ",;\t":
        cells = [_plain_name(cell.strip('" ')) for cell in first.split(delimiter)]
        if len(cells) > 1 and cells[0] in _IMAGE_COLUMNS:
            return delimiter
    return best if first.count(best) else ","


def _parse_csv(path: Path, text: str, delimiter: str) -> Grid:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, Sequence[str]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) and not (
                not rows and len(cells) <= 2 and cells[0].strip().startswith("sep=")
            ):
                rows.append((reader.line_num, cells))
    except csv.Error as err:
        raise AdcamError(f"{path}, line {reader.line_num}: not a CSV file ({err})") from err
    return rows


def _read_grid(path: Path, grid: Grid, kind: str) -> LabelRows:
    if not grid:
        raise AdcamError(f"{path}: empty; the header must be {','.join(CSV_HEADER)!r}")
    header = _strip_end(grid[0][1])
    names = [_plain_name(cell) for cell in header]
    if len(header) == 2 and is_image_path(header[0]):
        note = "there is no header: the first column names images, the second their labels"
        return _read_pairs(path, grid, (0, 1), 2, "cell", [kind, note])
    images = [i for i, name in enumerate(names) if name in _IMAGE_COLUMNS]
    if not images or len(header) < 2:
        raise _refuse_header(path, grid[0][0], header)
    first = {i: cells[i] for _, cells in grid[1:2] for i in images if i < len(cells)}
    image = min(images, key=lambda i: _rank_image_column(names[i], first.get(i, "")))
    labels = [
        i
        for i, name in enumerate(names)
        if i != image and name in _LABEL_COLUMNS | _ONE_LABEL_COLUMNS
    ]
    if not labels:
        return _read_flags(path, grid, image, kind)
    if len(labels) > 1:
        shown = " and ".join(repr(header[i]) for i in labels)
        raise AdcamError(
            f"{path}, line {grid[0][0]}: the columns {shown} could all hold the labels; leave one "
            "of them, or give the others names of another kind"
        )
    for i in (i for i, name in enumerate(names) if name in _PRESENCE_COLUMNS and i != image):
        for line, cells in grid[1:]:
            _refuse_absent(f"{path}, line {line}", header[i], "".join(cells[i : i + 1]))
    notes = [kind]
    if tuple(header) != CSV_HEADER:
        notes.append(f"images are in column {header[image]!r}, labels in {header[labels[0]]!r}")
    form = "cell" if names[labels[0]] in _LABEL_COLUMNS else "label"
    if _BOX_COLUMNS & set(names):
        form = "object"
        notes.append("a row is an object, and an image shows the classes of all its rows")
    elif form == "label" and _is_a_label_a_row(grid[1:], image, labels[0]):
        form = "object"
        notes.append("a row is a label, and an image shows those of all its rows")
    return _read_pairs(path, grid[1:], (image, labels[0]), len(header), form, notes)


def _rank_image_column(name: str, value: object) -> tuple[bool, ...]:
    """Rank a column that may name the images by its name and first value; the least is it.

    A number beside a name is somebody's own: ``id,file_name``.
    """
    text = str(value).strip()
    is_number = text.isdecimal() or not text
    return is_number, name != "imageid", not is_image_path(text), "file" not in name


def _refuse_absent(where: str, column: str, value: object) -> None:
    if (text := str(value).strip()) and text.lower() in _NO:
        raise AdcamError(
            f"{where}: {text} under {column!r} says that the image does not show the class; leave "
            f"such rows out, or the column {column!r} if it means something else"
        )


def _is_a_label_a_row(grid: Grid, image: int, label: int) -> bool:
    """Whether images have several rows, of which each names one class."""
    rows = [cells for _, cells in grid if len(cells) > max(image, label)]
    is_repeated = len({img_id_of(cells[image]) for cells in rows}) < len(rows)
    return is_repeated and not any(set(";|,") & set(cells[label]) for cells in rows)


def _read_pairs(
    path: Path, grid: Grid, columns: tuple[int, int], width: int, form: str, notes: Sequence[str]
) -> LabelRows:
    """Rows of an image and its labels; ``"object"`` rows of one image are joined."""
    found: dict[str, LabelRow] = {}
    line_of: dict[str, int] = {}
    for line, cells in grid:
        row = _cut(path, line, cells, width)
        where, img_id = f"{path}, line {line}", _read_id(path, line, row[columns[0]])
        text = unicodedata.normalize("NFC", row[columns[1]])
        if re.fullmatch(r"\[.*\]|\{.*\}", text.strip()):
            raise AdcamError(
                f"{where}: the labels are a list as a program prints it ({text.strip():.60}); "
                "write the names alone, with semicolons between them"
            )
        labels: tuple[str, ...] = (text,)
        if form == "object":
            earlier = found[img_id].labels if img_id in found else ()
            labels = tuple(dict.fromkeys(filter(None, (*earlier, text.strip()))))
        elif img_id in found:
            raise AdcamError(f"{where}: image id {img_id!r} is already on line {line_of[img_id]}")
        found[img_id] = LabelRow(where, img_id, labels, "names" if form == "object" else form)
        line_of[img_id] = line
    return LabelRows(list(found.values()), "; ".join(filter(None, notes)))


def _read_flags(path: Path, grid: Grid, image: int, kind: str) -> LabelRows:
    """One column a class, with 1 where the image shows it."""
    header = [unicodedata.normalize("NFC", cell.strip()) for cell in _strip_end(grid[0][1])]
    classes = [i for i in range(len(header)) if i != image]
    rows = [(line, _cut(path, line, cells, len(header))) for line, cells in grid[1:]]
    flags = {cells[i].strip().lower() for _, cells in rows for i in classes}
    if not rows or not flags <= _YES | _NO:
        raise _refuse_header(path, grid[0][0], header)
    if len(set(header)) < len(header) or not all(header):
        raise AdcamError(f"{path}, line {grid[0][0]}: a class has no name, or two columns have one")
    found: dict[str, LabelRow] = {}
    for line, cells in rows:
        where, img_id = f"{path}, line {line}", _read_id(path, line, cells[image])
        if img_id in found:
            raise AdcamError(f"{where}: image id {img_id!r} is given twice")
        names = tuple(header[i] for i in classes if cells[i].strip().lower() in _YES)
        found[img_id] = LabelRow(where, img_id, names)
    names = tuple(header[i] for i in classes)
    note = f"one column a class: {', '.join(names)}"
    return LabelRows(list(found.values()), "; ".join(filter(None, (kind, note))), names)


def _read_id(path: Path, line: int, text: str) -> str:
    if not text.strip():
        raise AdcamError(f"{path}, line {line}: the image id is empty")
    return _check_id(f"{path}, line {line}", img_id_of(text))


def _check_id(where: str, img_id: str) -> str:
    try:
        return check_characters(img_id)
    except AdcamError as err:
        raise AdcamError(f"{where}: {err}") from err


def _cut(path: Path, line: int, cells: Sequence[str], width: int) -> Sequence[str]:
    """The row with as many cells as the header has, empty ones at the end left out."""
    cells = [*_strip_end(cells, width)]
    if len(cells) != width:
        shown = ",".join(cells)
        raise AdcamError(
            f"{path}, line {line}: expected {width} columns, got {len(cells)} ({shown!r}); "
            "separate labels by spaces or semicolons, and quote ids that contain commas"
        )
    return cells


def _strip_end(cells: Sequence[str], width: int = 1) -> Sequence[str]:
    """The cells without empty ones at the end, but at least ``width`` if there are as many."""
    end = len(cells)
    while end > width and not cells[end - 1].strip():
        end -= 1
    return cells[:end]


def _plain_name(cell: str) -> str:
    return re.sub(r"[\s_.-]+", "", cell).lower()


def _refuse_header(path: Path, line: int, header: Sequence[str]) -> AdcamError:
    return AdcamError(
        f"{path}, line {line}: the header must be {','.join(CSV_HEADER)!r}, or name a column of "
        f"images and one column a class with 0 and 1, got {','.join(header)!r}; rename the column "
        "of images to 'filename' and that of their classes to 'labels', others may stay"
    )


def _read_json(path: Path) -> LabelRows:
    content = read_json(path, kind=object, what="a label file", unique_keys=True)
    if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
        return _read_coco(path)
    if is_label_studio(content):
        return read_label_studio_labels(path, content)
    refuse_json_min(path, content)
    pairs: list[tuple[Any, Any]]
    if isinstance(content, dict):
        pairs, note = list(content.items()), "JSON with labels by image"
    elif isinstance(content, list) and all(isinstance(item, dict) for item in content):
        pairs, note = [_find_pair(path, item) for item in content], "JSON with a list of images"
    else:
        raise AdcamError(f"{path}: expected labels by image, or a list with an entry an image")
    found: dict[str, LabelRow] = {}
    for name, value in pairs:
        where = f"{path}, image {name!r}"
        if not isinstance(name, str) or not name.strip():
            raise AdcamError(f"{where}: an image is named by its file or id")
        if (img_id := _check_id(where, img_id_of(name))) in found:
            raise AdcamError(f"{where}: image id {img_id!r} is given twice")
        found[img_id] = LabelRow(where, img_id, _read_names(where, value))
    return LabelRows(list(found.values()), note)


def _find_pair(path: Path, item: dict[str, Any]) -> tuple[Any, Any]:
    """The name of an image and its labels, from an entry of a list."""
    columns = {_plain_name(key): key for key in item}
    images = sorted(_IMAGE_COLUMNS & columns.keys())
    labels = sorted((_LABEL_COLUMNS | _ONE_LABEL_COLUMNS) & columns.keys())
    if len(labels) != 1 or not images:
        raise AdcamError(
            f"{path}: an entry needs an image and its labels, such as "
            f'{{"image_id": …, "labels": […]}}, got the keys {sorted(item)}'
        )
    for name in sorted(_PRESENCE_COLUMNS & columns.keys()):
        _refuse_absent(f"{path}, {item!r:.80}", columns[name], item[columns[name]])
    image = min(images, key=lambda name: _rank_image_column(name, item[columns[name]]))
    return item[columns[image]], item[columns[labels[0]]]


def _read_names(where: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, dict) and all(
        isinstance(v, bool | int | float) and v in (0, 1) for v in value.values()
    ):
        value = [name for name, flag in value.items() if flag]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AdcamError(f"{where}: labels are a list of class names, got {value!r:.60}")
    return clean_names(names)


def _read_coco(path: Path) -> LabelRows:
    file = read_coco_json(path)
    rows = []
    for image in file.images:
        ids = {a["category_id"] for a in image.annotations}
        if unknown := sorted(ids - file.categories.keys() - {IGNORE_CATEGORY["id"]}):
            raise AdcamError(
                f"{path}, image {image.img_id!r}: its annotations are of the category "
                f"{unknown[0]}, which the file does not list; it lists {list(file.categories)}"
            )
        names = tuple(file.categories[i] for i in sorted(ids) if i in file.categories)
        rows.append(LabelRow(f"{path}, image {image.img_id!r}", image.img_id, names))
    understood = "COCO's json: an image shows the categories of its annotations"
    return LabelRows(rows, understood, tuple(dict.fromkeys(file.classes.values())))
