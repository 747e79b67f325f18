"""The pages of a column in a Parquet file, by their headers: sizes that nobody can lie about.

A Parquet file states the sizes of its columns in a footer, which a reader need not believe. What a
reader unpacks is stated in front of every page, in the compact protocol of Apache Thrift
(``parquet.thrift`` and ``thrift-compact-protocol.md`` of these projects): a page whose content is
larger than its header says is an error of every decoder. Only footer and headers are read here.

pyarrow could say where the columns are, too. But it ends the whole process where a column of the
footer contradicts itself (26.0.1, ``RowGroupMetaData.column``), and a file may be a stranger's.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

DELTA_BYTE_ARRAY = 7
"""The encoding in which a value may repeat the beginning of the value before it."""

_MOST_DEPTH = 12  # of structures and lists in one another; the format has six


@dataclass
class PageSizes:
    """What the pages of one or more columns unpack to.

    Attributes:
        unpacked: Bytes of all pages once they are decompressed.
        values: Values in them, those that are missing and those in lists too.
        repeats: Whether values may share bytes with others, and so be larger than their page.
    """

    unpacked: int = 0
    values: int = 0
    repeats: bool = False


@dataclass(frozen=True)
class RowGroup:
    """Where a row group is.

    Attributes:
        num_rows: Number of its rows.
        columns: Of each column that has values, offset of the first page and bytes of all pages.
    """

    num_rows: int
    columns: tuple[tuple[int, int], ...]


def read_row_groups(file: IO[bytes]) -> list[RowGroup]:
    """Read from the footer where the columns of each row group are; the file is left elsewhere.

    Raises:
        ValueError: There is no footer, or it lacks what a footer must have.
    """
    end = file.seek(-8, io.SEEK_END)
    size = int.from_bytes(file.read(4), "little")
    file.seek(end - size)
    return list(_parse_footer(file.read(size)))


@lru_cache(maxsize=4)
def _parse_footer(footer: bytes) -> tuple[RowGroup, ...]:
    # Kept, since images are read a row group at a time, and each time the file is opened anew.
    try:
        groups = _read_struct(io.BytesIO(footer)).get(4, [])
        return tuple(RowGroup(int(g[3]), tuple(_place(c[3]) for c in g[1])) for g in groups)
    except (KeyError, TypeError) as error:
        raise ValueError("its footer does not say where the columns are") from error


def _place(column: dict[int, Any]) -> tuple[int, int]:
    start, size, dictionary = int(column[9]), int(column[7]), int(column.get(11) or 0)
    return (dictionary if 0 < dictionary < start else start), size


def measure_pages(file: IO[bytes], start: int, size: int) -> PageSizes:
    """Add up what the headers of a column's pages say; the file is left at another place.

    Args:
        file: The open file.
        start: The offset of the first page.
        size: Bytes from there to the end of the last one.

    Raises:
        ValueError: There is no header of a page where one should be.
    """
    sizes, place = PageSizes(), start
    while place < start + size:
        file.seek(place)
        try:
            header = _read_struct(file)
            unpacked, stored = int(header[2]), int(header[3])
            if min(unpacked, stored) < 0:
                raise ValueError("a size is negative")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no header of a page at byte {place:,}: {error}") from error
        sizes.unpacked += unpacked
        # Data pages of version 1 and 2; the values of a dictionary are counted by its bytes.
        for field, encoding in ((5, 2), (8, 4)):
            page = header.get(field)
            if isinstance(page, dict):
                sizes.values += max(int(page.get(1, 0)), 0)
                sizes.repeats |= page.get(encoding) == DELTA_BYTE_ARRAY
        place = file.tell() + stored
    return sizes


def _read_struct(file: IO[bytes], depth: int = 0) -> dict[int, Any]:
    """Read whole numbers, structures and lists of these by the number of their field."""
    values: dict[int, Any] = {}
    field = 0
    while head := _read_byte(file):
        step, kind = divmod(head, 16)
        field = field + step if step else _signed(_read_varint(file))
        values[field] = kind == 1 if kind in (1, 2) else _read_value(file, kind, depth)
    return values


def _read_value(file: IO[bytes], kind: int, depth: int) -> Any:
    if depth > _MOST_DEPTH:
        raise ValueError("a structure is nested too deeply")
    if kind in (4, 5, 6):
        return _signed(_read_varint(file))
    if kind == 12:
        return _read_struct(file, depth + 1)
    if kind in (1, 2, 3):  # a truth value in a list takes a byte, as a small number does
        _read_byte(file)
    elif kind == 7:
        file.seek(7, 1)
        _read_byte(file)  # which notices the end of the file
    elif kind == 8:
        file.seek(_read_varint(file), 1)
    elif kind in (9, 10):
        count, item = divmod(_read_byte(file), 16)
        count = _read_varint(file) if count == 15 else count
        return [_read_value(file, item, depth + 1) for _ in range(count)]
    else:
        raise ValueError(f"there is a value of the unknown kind {kind}")
    return None


def _read_varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 63, 7):
        byte = _read_byte(file)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a number is too long")


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _read_byte(file: IO[bytes]) -> int:
    byte = file.read(1)
    if not byte:
        raise ValueError("the file ends within a structure")
    return byte[0]
