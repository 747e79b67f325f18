"""Tables as Parquet files: columns read and written by pyarrow, which is imported here alone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any

from adcam.errors import AdcamError
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
    """What a Parquet file says of itself.

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
    """Read what a Parquet file says of itself, not its rows.

    Raises:
        AdcamError: The file is missing or no Parquet file.
    """
    with _open(path) as table:
        schema, metadata = table.schema_arrow, table.metadata
        return TableInfo(
            str(path),
            {field.name: str(field.type) for field in schema},
            tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)),
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
        AdcamError: The file is missing, damaged, or lacks a column.
    """
    return read_table(path, columns)[0]


def read_table(
    path: str | Path, columns: Sequence[str]
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Read columns as :func:`read_columns`, and the texts that the writer added to the file.

    Raises:
        AdcamError: The file is missing, damaged, or lacks a column.
    """
    with _open(path) as table:
        found = table.read(columns=list(columns))
        values: dict[str, list[Any]] = {}
        for name in columns:
            outer, _, inner = name.partition(".")
            column = found.column(outer).to_pylist()
            values[name] = [cell and cell.get(inner) for cell in column] if inner else column
        return values, _decode_metadata(table.schema_arrow)


@lru_cache(maxsize=4)
def read_group(path: str, group: int, column: str) -> list[bytes | None]:
    """Read one column of bytes of one row group; the last few are kept.

    Raises:
        AdcamError: The file is missing, damaged, or lacks the column.
    """
    with _open(path) as table:
        outer, _, inner = column.partition(".")
        cells = table.read_row_group(group, columns=[column]).column(outer).to_pylist()
        return [cell and cell.get(inner) for cell in cells] if inner else cells


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

    Args:
        file: The open file.
        columns: The columns as for :func:`encode_table`; only their kinds count.
        batches: As many tables of these columns as there are.
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
    """Yield columns of a Parquet file as Python values, ``size`` rows at a time.

    Raises:
        AdcamError: The file is missing, damaged, or lacks a column.
    """
    with _open(path) as table:
        for batch in table.iter_batches(batch_size=size, columns=list(columns)):
            yield {name: batch.column(name).to_pylist() for name in columns}


@contextmanager
def _open(path: str | Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_file(path) as file:
            yield pq.ParquetFile(file)
    except (pa.ArrowException, KeyError, UnicodeDecodeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AdcamError(f"{path}: cannot be read as a Parquet file ({first})") from error
