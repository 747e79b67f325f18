"""Text tables of data sets: every error names file, line, value and what is legal."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from adcam.errors import AdcamError
from adcam.files import read_text

Box = tuple[int, int, int, int]


class TextLine(NamedTuple):
    """One line of a table.

    Attributes:
        where: The file and the line, such as ``"file, line 3"``, for messages.
        cells: What stands between the separators, without white space around it.
    """

    where: str
    cells: tuple[str, ...]


def read_rows(path: Path, columns: tuple[str, ...], separator: str | None) -> list[TextLine]:
    """Read a UTF-8 table; blank lines are skipped.

    Args:
        path: The file.
        columns: The names of the columns, for messages; each line must have as many cells.
        separator: What stands between cells; ``None`` is white space. The last column takes the
            rest of the line.

    Raises:
        AdcamError: The file is missing, empty or no text, or a line has too few cells.
    """
    rows = []
    for number, line in enumerate(read_text(path, "a table").splitlines(), start=1):
        if not line.strip():
            continue
        cells = tuple(cell.strip() for cell in line.strip().split(separator, len(columns) - 1))
        if len(cells) != len(columns) or (separator is not None and separator in cells[-1]):
            expected = (separator or " ").join(columns)
            raise AdcamError(f"{path}, line {number}: expected {expected!r}, got {line.strip()!r}")
        rows.append(TextLine(f"{path}, line {number}", cells))
    if not rows:
        raise AdcamError(f"{path}: the file is empty")
    return rows


def read_pairs(path: Path, columns: tuple[str, ...], separator: str | None) -> dict[str, TextLine]:
    """Rows by their first cell, which must not repeat, in the order of the file.

    Raises:
        AdcamError: As :func:`read_rows`, or a first cell stands on two lines.
    """
    row_of: dict[str, TextLine] = {}
    for row in read_rows(path, columns, separator):
        if (key := row.cells[0]) in row_of:
            raise AdcamError(f"{row.where}: {columns[0]} {key!r} is given twice")
        row_of[key] = row
    return row_of


def parse_int(row: TextLine, column: int, name: str, low: int, high: int | None = None) -> int:
    """A cell as a whole number.

    Raises:
        AdcamError: It is none, or not in ``low..high``.
    """
    text = row.cells[column]
    try:
        value = int(text)
    except ValueError as err:
        raise AdcamError(f"{row.where}: {name} must be a whole number, got {text!r}") from err
    if value < low or (high is not None and value > high):
        legal = f"at least {low}" if high is None else f"{low}..{high}"
        raise AdcamError(f"{row.where}: {name} must be {legal}, got {value}")
    return value


def check_box(where: str, box: Box) -> Box:
    """Return a box, or refuse one whose corners make no box.

    Raises:
        AdcamError: Its corners are negative or not in order.
    """
    x0, y0, x1, y1 = box
    if not (0 <= x0 <= x1 and 0 <= y0 <= y1):
        raise AdcamError(f"{where}: a box needs 0 <= x0 <= x1 and 0 <= y0 <= y1, got {box}")
    return box


def check_count(
    path: Path, split: str, count: int, expected_counts: Mapping[str, int] | None
) -> None:
    """Compare the number of images with the one that the data set is known to have.

    Raises:
        AdcamError: It is another one.
    """
    if expected_counts is not None and expected_counts.get(split, count) != count:
        raise AdcamError(
            f"{path}: {count} images, but {split} has {expected_counts[split]}; for a part of the "
            "data set give other expected_counts, or {} for any number"
        )


def check_complete(path: Path, wanted: Iterable[str], table: Container[str], source: str) -> None:
    """Check that a table has an entry for each of the images that a list or split names.

    Raises:
        AdcamError: One is not in the table.
    """
    if missing := [image for image in wanted if image not in table]:
        raise AdcamError(
            f"{path}: {len(missing)} images of {source} have no entry here, such as {missing[0]!r}"
        )


def check_relative(where: Path, path: str) -> str:
    """Return a relative path, or refuse one that leads out of its folder.

    Raises:
        AdcamError: It would lead out of the folder that it is relative to.
    """
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise AdcamError(f"{where}: paths must stay below their folder, got {path!r}")
    return path
