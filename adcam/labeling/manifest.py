"""A manifest: one line of JSON an image, the newest line of an image counts.

Lines are only ever appended, each whole, so that a reader on any machine sees what is done, and a
killed run loses at most the line that it was writing.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from adcam.errors import AdcamError
from adcam.files import check_img_id, name_in_error, parse_json, replacing
from adcam.parquet import read_batches, write_batches

Entry: TypeAlias = Mapping[str, Any]
"""A line of the manifest: ``id``, ``image`` (relative to the folder), ``status`` (``"ok"`` or
``"failed"``) and, for ``"ok"``, ``classes``, ``labels``, ``rule``, ``threshold``, ``chosen_on``,
``ori_hw``, ``mask`` and ``maps`` (hashes, ``None`` where there are no maps), and ``note`` where no
class was found, else ``error``; then ``config`` and ``weights`` (hashes), and ``seconds``."""

# Kinds of the manifest's columns; every other key of an entry is text.
_KINDS = {
    **{"classes": "texts", "threshold": "number", "ori_hw": "integers", "seconds": "number"},
    **{"mask_bytes": "integer", "maps_bytes": "integer"},
}
COLUMNS = (
    *("id", "image", "status", "error", "classes", "labels", "note", "rule", "threshold"),
    *("chosen_on", "ori_hw", "mask", "mask_bytes", "maps", "maps_bytes", "config", "weights"),
    "seconds",
)
"""Keys of entries, in the order that they have as columns of a Parquet file."""

_SYNC_INTERVAL_S = 1.0
_ROWS = 10_000  # entries that are in memory at once, where a whole manifest becomes Parquet


class Manifest:
    """A manifest on disk, of which only the places of the lines are held in memory.

    Args:
        path: The file; it need not exist.
        keep: Which images are of interest, by id; lines of others are not indexed.

    Raises:
        AdcamError: A line is no entry; the message names file and line.
    """

    def __init__(self, path: Path, keep: Callable[[str], bool] | None = None) -> None:
        self.path = path
        # Byte offset and length of each image's newest line: flat in what the lines hold.
        self._lines: dict[str, tuple[int, int]] = {}
        self._file: int | None = None
        self._reader: BinaryIO | None = None
        self._synced = 0.0
        self._end = 0
        self.num_lines = 0
        if path.is_file():
            for offset, length, entry in read_manifest(path):
                self._end = offset + length
                self.num_lines += 1
                if keep is None or keep(entry["id"]):
                    self._lines[entry["id"]] = (offset, length)

    def __contains__(self, img_id: str) -> bool:
        return img_id in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __getitem__(self, img_id: str) -> Entry:
        """Read the newest entry of an image.

        Raises:
            KeyError: There is none.
        """
        offset, length = self._lines[img_id]
        if self._reader is None:
            self._reader = self.path.open("rb", buffering=0)
        self._reader.seek(offset)
        entry: Entry = json.loads(self._reader.read(length))
        return entry

    def open(self) -> None:
        """Open the file for :meth:`append`; it is made if need be, and a torn last line is cut off.

        Raises:
            OSError: It cannot be written, or is a symbolic link.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        try:
            self._file = os.open(self.path, flags, 0o666)
            os.ftruncate(self._file, self._end)
        except OSError as err:
            raise name_in_error(err, self.path) from err

    def close(self) -> None:
        """Hand what was appended to the disk and close the file."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._file is not None:
            with suppress(OSError):  # each line has been handed to the system
                os.fsync(self._file)
            os.close(self._file)
            self._file = None

    def append(self, entry: Entry) -> None:
        """Add an entry, handed to the operating system before this returns.

        It is forced to the disk at most a second later: what a power cut takes is made again.

        Raises:
            OSError: The file cannot be written, or was removed or replaced; nothing of the entry
                stays in it.
        """
        if self._file is None:
            self.open()
        line = encode_line(entry)
        self.check_in_place()
        assert self._file is not None
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
            if time.monotonic() - self._synced >= _SYNC_INTERVAL_S:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as err:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise name_in_error(err, self.path) from err
        self._lines[entry["id"]] = (self._end, len(line))
        self._end += len(line)
        self.num_lines += 1

    def check_in_place(self) -> None:
        """Raise if somebody has removed the folder while this run worked in it.

        Raises:
            FileNotFoundError: The file that was opened is no longer the one of this name.
        """
        if self._file is None:
            return
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._file), self.path.lstat()):
                return
        reason = "the file was removed or replaced while this run was writing it"
        raise FileNotFoundError(errno.ENOENT, reason, str(self.path))

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Replace the file, in one step, by these entries, one an image.

        They may be read from this manifest while it is rewritten.

        Raises:
            OSError: The file cannot be written.
        """
        self.check_in_place()
        lines: dict[str, tuple[int, int]] = {}
        end = 0
        with replacing(self.path, durable=True) as file:
            for entry in entries:
                line = encode_line(entry)
                file.write(line)
                lines[entry["id"]] = (end, len(line))
                end += len(line)
            self.close()
        self._lines, self._end, self.num_lines = lines, end, len(lines)


def read_entry(manifests: Sequence[Manifest], img_id: str) -> Entry:
    """Read the newest entry of an image; of several manifests' one that is ``"ok"``, if any.

    Raises:
        KeyError: No manifest lists it.
    """
    entries = [manifest[img_id] for manifest in manifests if img_id in manifest]
    if not entries:
        raise KeyError(img_id)
    return next((entry for entry in entries if entry["status"] == "ok"), entries[0])


def read_manifest(path: Path) -> Iterator[tuple[int, int, Entry]]:
    """Yield byte offset, length and entry of every line, but for a last one torn by a kill.

    Raises:
        AdcamError: A line is not an entry; the message names file and line.
    """
    with path.open("rb") as file:
        offset = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            where = f"{path}, line {number}"
            try:
                yield offset, len(line), check_entry(parse_json(line, where), where)
            except AdcamError as error:
                raise AdcamError(
                    f"{error}. It is not an entry of a manifest; --overwrite starts over"
                ) from error
            offset += len(line)


def check_entry(entry: dict[str, Any], where: str) -> Entry:
    """Return a line of a manifest if its keys are of the types that readers rely on.

    Raises:
        AdcamError: They are not; the message starts with ``where``.
    """
    img_id = entry.get("id")
    if not isinstance(img_id, str):
        raise AdcamError(f"{where}: id must be text, got {img_id!r:.40}")
    if entry.get("status") not in ("ok", "failed"):
        raise AdcamError(f"{where}: status must be ok or failed, got {entry.get('status')!r:.40}")
    if entry["status"] == "ok":
        try:
            check_img_id(img_id)
        except AdcamError as error:
            raise AdcamError(f"{where}: {error}") from error
    for key in ("mask", "maps", "score_map"):
        if not isinstance(entry.get(key), str | None):
            raise AdcamError(f"{where}: {key} must be a hash, got {entry[key]!r:.40}")
    return entry


def encode_line(entry: Entry) -> bytes:
    """Encode an entry as a line of a manifest."""
    try:
        return (json.dumps(entry, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a file name that is no UTF-8
        return (json.dumps(entry) + "\n").encode()


def to_columns(entries: Sequence[Entry]) -> dict[str, tuple[str, list[Any]]]:
    """Arrange entries as columns for :func:`adcam.parquet.encode_table`."""
    return {
        name: (_KINDS.get(name, "text"), [entry.get(name) for entry in entries]) for name in COLUMNS
    }


def to_entries(columns: Mapping[str, Sequence[Any]], where: str) -> Iterator[Entry]:
    """Yield the entries of :func:`to_columns`, without the keys that an entry does not have.

    Raises:
        AdcamError: One is not an entry; the message starts with ``where``.
    """
    for values in zip(*(columns[name] for name in COLUMNS), strict=True):
        entry = check_entry(dict(zip(COLUMNS, values, strict=True)), where)
        always = ("maps", "maps_bytes", "threshold") if entry["status"] == "ok" else ()
        yield {key: value for key, value in entry.items() if value is not None or key in always}


def write_manifest_table(path: Path, manifest: Path) -> None:
    """Write a manifest as a Parquet file, for programs that read tables.

    Args:
        path: The Parquet file.
        manifest: The manifest, in which no image has two lines.

    Raises:
        AdcamError: The manifest is damaged, or its entries have keys that are not in
            :data:`COLUMNS`.
        OSError: The file cannot be written.
    """
    entries = (entry for _, _, entry in read_manifest(manifest))

    def batches() -> Iterator[dict[str, tuple[str, list[Any]]]]:
        while rows := list(itertools.islice(entries, _ROWS)):
            if others := {key for entry in rows for key in entry} - set(COLUMNS):
                raise AdcamError(f"{manifest}: only of masks, not with {sorted(others)}")
            yield to_columns(rows)

    with replacing(path, durable=True) as file:
        write_batches(file, to_columns([]), batches())


def read_manifest_table(path: Path) -> Iterator[Entry]:
    """Yield the entries of :func:`write_manifest_table`.

    Raises:
        AdcamError: The file is damaged.
    """
    for columns in read_batches(path, COLUMNS, _ROWS):
        yield from to_entries(columns, str(path))
