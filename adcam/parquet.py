"""Tables as Parquet files: columns read and written by pyarrow, which is imported here alone.

A value that is repeated is stored once, so that a file of some kilobytes may stand for gigabytes.
What is read at a time is therefore measured first, by the headers of its pages, and what repeats is
kept once in memory, too: columns of text and bytes are read as indices into their different values.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from adcam.errors import AdcamError
from adcam.limits import LimitError, read_limits
from adcam.parquet_pages import PageSizes, measure_pages, read_row_groups
from adcam.remote_files import open_file

TYPES = {
    "text": lambda pa: pa.string(),
    "texts": lambda pa: pa.list_(pa.string()),
    "bytes": lambda pa: pa.large_binary(),
    "image": lambda pa: pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "number": lambda pa: pa.float64(),
    "integer": lambda pa: pa.int64(),
    "integers": lambda pa: pa.list_(pa.int64()),
}
"""Kinds of columns that :func:`encode_table` writes."""


@dataclass(frozen=True)
class TableInfo:
    """The columns, row groups and metadata of a Parquet file.

    Attributes:
        path: The file.
        types: The type of each column by name, as text, such as ``"binary"``.
        group_rows: Number of rows of each row group.
        metadata: What its writer added, as text.
    """

    path: str
    types: Mapping[str, str]
    group_rows: tuple[int, ...]
    metadata: Mapping[str, str]

    @cached_property
    def features(self) -> Mapping[str, Any]:
        """The columns as the library ``datasets`` describes them, empty if it did not write it."""
        try:
            return dict(json.loads(self.metadata["huggingface"])["info"]["features"])
        except (KeyError, TypeError, ValueError):
            return {}


def read_info(path: str | Path) -> TableInfo:
    """Read the columns, row groups and metadata of a Parquet file, but no rows.

    Raises:
        AdcamError: The file is missing or no Parquet file.
    """
    import pyarrow.parquet as pq

    with _open(path) as file:
        table = pq.ParquetFile(file)
        schema = table.schema_arrow
        return TableInfo(
            str(path),
            {field.name: str(field.type) for field in schema},
            tuple(group.num_rows for group in read_row_groups(file)),
            _decode_metadata(schema),
        )


def _decode_metadata(schema: Any) -> dict[str, str]:
    return {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, value in (schema.metadata or {}).items()
    }


def read_columns(path: str | Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Read columns of a Parquet file as Python values; ``image.path`` is a part of a structure.

    Raises:
        AdcamError: The file is missing, damaged, or lacks a column, or the columns unpack to more
            than the limit ``file_bytes``.
    """
    return read_table(path, columns)[0]


def read_table(
    path: str | Path, columns: Sequence[str]
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Read columns as :func:`read_columns`, and the texts that the writer added to the file.

    Raises:
        AdcamError: As :func:`read_columns`.
    """
    with _open(path) as file:
        reader = _Reader(path, file, columns)
        values: dict[str, list[Any]] = {name: [] for name in columns}
        for batch in reader.read(range(reader.num_groups), _ROWS):
            for name, cells in batch.items():
                values[name] += cells
        return values, _decode_metadata(reader.schema)


_kept: dict[tuple[str, int, str], tuple[int, list[bytes | None]]] = {}
_keeping = threading.Lock()
_MOST_KEPT = 4


def read_group(path: str, group: int, column: str) -> list[bytes | None]:
    """Read one column of bytes of one row group; the last few are kept, within the limit.

    Raises:
        AdcamError: The file is missing, damaged, or lacks the column, or the group unpacks to more
            than the limit ``file_bytes``.
    """
    key = (path, group, column)
    with _keeping:
        if key in _kept:
            _kept[key] = _kept.pop(key)  # the last one used is the last one to go
            return _kept[key][1]
    with _open(path) as file:
        reader = _Reader(path, file, [column])
        cells = [cell for batch in reader.read([group], _ROWS) for cell in batch[column]]
    most = read_limits().file_bytes
    with _keeping:
        _kept[key] = reader.weight, cells
        while len(_kept) > _MOST_KEPT or sum(weight for weight, _ in _kept.values()) > most:
            del _kept[next(iter(_kept))]
        return cells


def encode_table(
    columns: Mapping[str, tuple[str, Sequence[Any]]],
    *,
    metadata: Mapping[str, str] | None = None,
    compression: str = "zstd",
) -> bytes:
    """Encode a table as a Parquet file; equal tables give equal bytes (with the same pyarrow).

    Args:
        columns: The kind (a key of :data:`TYPES`) and the values of each column by name.
        metadata: Texts to add to the file.
        compression: ``"zstd"``, or ``"none"`` for cells that are compressed themselves.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {
        name: pa.array(values, type=TYPES[kind](pa)) for name, (kind, values) in columns.items()
    }
    table = pa.table(arrays).replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=compression, use_dictionary=False)
    return buffer.getvalue()


def write_batches(
    file: IO[bytes],
    columns: Mapping[str, tuple[str, Sequence[Any]]],
    batches: Iterable[Mapping[str, tuple[str, Sequence[Any]]]],
) -> None:
    """Write a table batch by batch, each as a row group, so that one is in memory at a time.

    Of ``columns``, which are those of every batch, only the kinds count.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, TYPES[kind](pa)) for name, (kind, _) in columns.items()])
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer:
        for batch in batches:
            arrays = [pa.array(batch[name][1], type=schema.field(name).type) for name in columns]
            writer.write_table(pa.table(arrays, schema=schema))


def read_batches(
    path: str | Path, columns: Sequence[str], size: int
) -> Iterator[dict[str, list[Any]]]:
    """Yield columns of a Parquet file as Python values, ``size`` rows at a time or fewer.

    Raises:
        AdcamError: The file is missing, damaged, or lacks a column, or one of its row groups
            unpacks to more than the limit ``file_bytes``.
    """
    with _open(path) as file:
        reader = _Reader(path, file, columns)
        for group in range(reader.num_groups):
            yield from reader.read([group], size)


_ROWS = 1024  # decoded at once
_BATCH_BYTES = 64 << 20  # decoded at once where values may be larger than they are stored
_VALUE_BYTES = 64  # what a short value takes in Python, with its place in a list


class _Reader:
    """Columns of an open Parquet file, which are measured before they are read.

    Attributes:
        schema: The columns of the file.
        num_groups: Number of its row groups.
        weight: Bytes in memory that the last call of :meth:`read` has asked for so far.
    """

    def __init__(self, path: str | Path, file: IO[bytes], columns: Sequence[str]) -> None:
        import pyarrow.parquet as pq

        self._path, self._file, self._columns = path, file, tuple(columns)
        table = pq.ParquetFile(file)
        self.schema, self._metadata = table.schema_arrow, table.metadata
        self._row_groups = read_row_groups(file)
        self.num_groups = len(self._row_groups)
        self.weight = 0
        for name in self._columns:
            if name.partition(".")[0] not in self.schema.names:
                raise KeyError(f"there is no column {name!r}")
        self._leaves = {
            number: leaf
            for number in range(self._metadata.num_columns)
            for leaf in [table.schema.column(number)]
            if any(f"{leaf.path}.".startswith(f"{name}.") for name in self._columns)
        }

    def read(self, groups: Sequence[int], size: int) -> Iterator[dict[str, list[Any]]]:
        """Yield the values of some row groups, ``size`` rows at a time or fewer.

        Raises:
            AdcamError: Together they unpack to more than the limit.
        """
        import pyarrow.parquet as pq

        self.weight, shared = 0, []
        for number, leaf in self._leaves.items():
            sizes = self._measure(number, groups)
            self._add(sizes.unpacked + sizes.values * _VALUE_BYTES)
            if leaf.physical_type != "BYTE_ARRAY":
                self._add(sizes.values * max(leaf.length or 0, 0))  # each is unpacked by itself
            elif not sizes.repeats:
                shared.append(leaf.path)
            elif leaf.max_repetition_level:
                self._add(sizes.values * sizes.unpacked)  # one row may hold all of them
            else:
                size = max(min(size, _BATCH_BYTES // max(sizes.unpacked, 1)), 1)
        table = pq.ParquetFile(self._file, metadata=self._metadata, read_dictionary=shared)
        known: dict[Any, Any] = {}
        for group in groups:  # one by one: their different values are numbered anew
            missing = self._row_groups[group].num_rows
            for batch in table.iter_batches(size, row_groups=[group], columns=self._columns):
                missing -= batch.num_rows
                yield {name: self._convert(batch, name, known) for name in self._columns}
            if missing:
                raise AdcamError(
                    f"{self._path}: is damaged: it lacks {missing:,} rows of row group {group}"
                )

    def _measure(self, number: int, groups: Sequence[int]) -> PageSizes:
        whole = PageSizes()
        for group in groups:
            try:
                sizes = measure_pages(self._file, *self._row_groups[group].columns[number])
            except (ValueError, IndexError) as error:
                name = self._leaves[number].path
                raise AdcamError(
                    f"{self._path}: the column {name!r} is damaged ({error})"
                ) from error
            whole.unpacked += sizes.unpacked
            # A missing value may have no place in a page.
            whole.values += max(sizes.values, self._row_groups[group].num_rows)
            whole.repeats |= sizes.repeats
        return whole

    def _add(self, weight: int) -> None:
        self.weight += weight
        if self.weight > read_limits().file_bytes:
            named = ", ".join(map(repr, self._columns))
            what = (
                f"{self._path}: reading {named} takes at least {self.weight:,} bytes once unpacked"
            )
            raise LimitError(what, "file_bytes")

    def _convert(self, batch: Any, name: str, known: dict[Any, Any]) -> list[Any]:
        outer, _, inner = name.partition(".")
        cells = self._to_values(batch.column(outer), known)
        return [cell and cell.get(inner) for cell in cells] if inner else cells

    def _to_values(self, array: Any, known: dict[Any, Any]) -> list[Any]:
        """The values of an array as Python has them; equal texts and bytes are one object."""
        import pyarrow as pa

        kind = array.type
        if pa.types.is_dictionary(kind):
            places = array.indices.to_pylist()
            used = sorted({place for place in places if place is not None})
            values = array.dictionary.take(pa.array(used, "int64")).to_pylist()
            shared = {n: known.setdefault(v, v) for n, v in zip(used, values, strict=True)}
            return [None if place is None else shared[place] for place in places]
        if pa.types.is_struct(kind):
            names = [field.name for field in kind]
            parts = [self._to_values(part, known) for part in array.flatten()]
            rows = [dict(zip(names, row, strict=True)) for row in zip(*parts, strict=True)]
            missing = array.is_null().to_pylist()
            return [None if no else row for no, row in zip(missing, rows, strict=True)]
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            items = iter(self._to_values(array.flatten(), known))
            lengths = array.value_lengths().to_pylist()
            return [None if n is None else [next(items) for _ in range(n)] for n in lengths]
        if pa.types.is_nested(kind):
            raise AdcamError(f"{self._path}: columns of the type {kind} are not read")
        values = array.to_pylist()
        if not pa.types.is_fixed_size_binary(kind):  # texts here repeat what came before them
            self._add(sum(len(v) for v in values if isinstance(v, str | bytes)))
        return values


@contextmanager
def _open(path: str | Path) -> Iterator[IO[bytes]]:
    import pyarrow as pa

    try:
        with open_file(path) as file:
            yield file
    except AdcamError:  # which is a ValueError
        raise
    except (pa.ArrowException, KeyError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AdcamError(f"{path}: cannot be read as a Parquet file ({first})") from error
