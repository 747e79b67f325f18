"""The pages of a column in a Parquet file, by their headers: sizes that nobody can lie about.

A Parquet file states the sizes of its columns in a footer, which a reader need not believe. What a
reader unpacks is stated in front of every page, in the compact protocol of Apache Thrift
(``parquet.thrift`` and ``thrift-compact-protocol.md`` of these projects): a page whose content is
larger than its header says is an error of every decoder. Only headers are read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any

DELTA_BYTE_ARRAY = 7
"""The encoding in which a value may repeat the beginning of the value before it."""

_MOST_DEPTH = 8  # of structures in a header; the format has three


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


def measure_pages(file: IO[bytes], start: int, size: int) -> PageSizes:
    """Add up what the headers of a column's pages say.

    Args:
        file: The open file; it is left at another place.
        start: The offset of the first page.
        size: Bytes from there to the end of the last one.

    Raises:
        ValueError: There is no header of a page where one should be.
    """
    sizes, place = PageSizes(), start
    while place < start + size:
        file.seek(place)
        header = _read_struct(file)
        unpacked, stored = header.get(2), header.get(3)
        if (
            not isinstance(unpacked, int)
            or not isinstance(stored, int)
            or min(unpacked, stored) < 0
        ):
            raise ValueError(f"no header of a page at byte {place:,}")
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
    """Read whole numbers and structures by the number of their field; skip all else."""
    if depth > _MOST_DEPTH:
        raise ValueError("the header of a page is nested too deeply")
    values: dict[int, Any] = {}
    field = 0
    while head := _read_byte(file):
        step, kind = divmod(head, 16)
        field = field + step if step else _signed(_read_varint(file))
        values[field] = kind == 1 if kind in (1, 2) else _read_value(file, kind, depth)
    return values


def _read_value(file: IO[bytes], kind: int, depth: int) -> Any:
    if kind in (4, 5, 6):
        return _signed(_read_varint(file))
    if kind == 12:
        return _read_struct(file, depth + 1)
    if kind in (1, 2, 3):  # a truth value in a list takes a byte, as a small number does
        _read_byte(file)
    elif kind == 7:
        file.seek(8, 1)
    elif kind == 8:
        file.seek(_read_varint(file), 1)
    elif kind in (9, 10):
        count, item = divmod(_read_byte(file), 16)
        for _ in range(_read_varint(file) if count == 15 else count):
            _read_value(file, item, depth + 1)
    else:
        raise ValueError(f"the header of a page holds a value of the unknown kind {kind}")
    return None


def _read_varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 63, 7):
        byte = _read_byte(file)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("the header of a page holds a number that is too long")


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


def _read_byte(file: IO[bytes]) -> int:
    byte = file.read(1)
    if not byte:
        raise ValueError("the file ends within the header of a page")
    return byte[0]
