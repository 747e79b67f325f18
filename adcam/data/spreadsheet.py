"""The cells of an Excel workbook (``.xlsx``), read with the standard library alone.

A workbook is a zip archive of XML files (ECMA-376); of these the first sheet and the table of
shared texts are read. Formulas come as the values that were stored with them.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from xml.etree.ElementTree import Element

from adcam.data.xml_text import parse_xml
from adcam.errors import AdcamError
from adcam.limits import check_file_bytes

MAX_BYTES = 200_000_000
"""Largest size of one part of a workbook once unpacked; a small archive can unpack to anything."""

_MAX_COLUMNS = 16_384  # of Excel itself
_MAX_CELLS = 50_000_000  # 400 MB: a short file can stand for many rows of many empty cells

_ERRORS = (
    *(OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError),
    *(RuntimeError, ValueError, KeyError),  # encrypted; a name that is no path
)


def read_xlsx(path: str | Path) -> list[tuple[int, list[str]]]:
    """Read the first sheet of a workbook.

    Returns:
        The number of each row, from 1, and its cells as text, for rows that are not empty. No
        row has fewer cells than the first, since Excel stores none for what is empty. Whole numbers
        have no decimal point.

    Raises:
        AdcamError: The file is missing, no workbook, damaged, or larger than :data:`MAX_BYTES`.
    """
    check_file_bytes(Path(path), "a workbook")
    try:
        with zipfile.ZipFile(path) as archive:
            texts = _read_shared_texts(archive, path)
            sheet = _read_part(archive, _find_first_sheet(archive, path), path)
    except AdcamError:
        raise
    except _ERRORS as err:
        raise AdcamError(f"{path}: cannot be read as an Excel workbook ({err})") from err
    rows = []
    for count, row in enumerate(sheet.iter("row"), start=1):
        cells: list[str] = []
        for cell in row.iter("c"):
            column = _find_column(cell.get("r", ""), len(cells), path)
            cells += [""] * (column + 1 - len(cells))
            cells[column] = _read_cell(cell, texts, path)
        if any(text.strip() for text in cells):
            number = row.get("r", "")
            rows.append((int(number) if re.fullmatch(r"\d{1,9}", number) else count, cells))
    width = len(rows[0][1]) if rows else 0
    if len(rows) * width > _MAX_CELLS:
        raise AdcamError(
            f"{path}: {len(rows):,} rows of {width:,} columns are more than {_MAX_CELLS:,} cells; "
            "save the table as CSV"
        )
    return [(number, cells + [""] * (width - len(cells))) for number, cells in rows]


def _read_part(archive: zipfile.ZipFile, name: str, path: str | Path) -> Element:
    if name not in archive.namelist():
        raise AdcamError(f"{path}: no Excel workbook: it holds no {name}")
    with archive.open(name) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise AdcamError(f"{path}: {name} unpacks to more than {MAX_BYTES:,} bytes")
    return parse_xml(data, f"{path}, {name}")


def _read_shared_texts(archive: zipfile.ZipFile, path: str | Path) -> list[str]:
    name = "xl/sharedStrings.xml"
    if name not in archive.namelist():
        return []
    return [_join_text(item) for item in _read_part(archive, name, path).iter("si")]


def _join_text(item: Element) -> str:
    """The text of an item in its parts, without the reading aid of East Asian texts (``rPh``)."""
    own = [part for part in item if part.tag in ("t", "r")]
    return "".join(text.text or "" for part in own for text in part.iter("t"))


def _find_first_sheet(archive: zipfile.ZipFile, path: str | Path) -> str:
    """The file of the first sheet, by the workbook's list of sheets."""
    sheets = list(_read_part(archive, "xl/workbook.xml", path).iter("sheet"))
    relations = _read_part(archive, "xl/_rels/workbook.xml.rels", path).iter("Relationship")
    target_of = {relation.get("Id"): relation.get("Target", "") for relation in relations}
    if not sheets or not (target := target_of.get(sheets[0].get("id"), "")):
        raise AdcamError(f"{path}: the Excel workbook has no sheet")
    return target.lstrip("/") if target.startswith("/") else f"xl/{target}"


def _find_column(reference: str, following: int, path: str | Path) -> int:
    """Column of a reference such as ``AB12``, from 0; without one the cells follow each other."""
    letters = re.match(r"[A-Z]{0,3}", reference)
    if letters is None or not letters[0]:
        return following
    column = 0
    for letter in letters[0]:
        column = 26 * column + ord(letter) - ord("A") + 1
    if column > _MAX_COLUMNS:
        raise AdcamError(f"{path}: cell {reference} lies beyond column {_MAX_COLUMNS}")
    return column - 1


def _read_cell(cell: Element, texts: list[str], path: str | Path) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        return "".join(map(_join_text, cell.iter("is")))
    value = cell.findtext("v") or ""
    if kind == "s":
        if not re.fullmatch(r"\d{1,9}", value) or int(value) >= len(texts):
            raise AdcamError(f"{path}: cell {cell.get('r')} names a text that is not there")
        return texts[int(value)]
    if kind == "n" and re.fullmatch(r"-?\d{1,15}\.0+", value):
        return value.partition(".")[0]
    return value
