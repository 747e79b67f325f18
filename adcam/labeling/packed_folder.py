"""A folder of packed results (:mod:`adcam.labeling.packed_parts`), filled by a run.

A part is written whole as soon as all its images are done, first the data, then its manifest, which
says that it is complete: a run that was killed does the parts again that it had not completed.
Images that failed are tried again by the next run, which replaces their part, and so are parts
whose data are not those that their manifest states. On this machine, locks keep a second run out;
object stores have none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from adcam.errors import AdcamError
from adcam.files import (
    hash_bytes,
    hash_values,
    parse_json,
    refuse_links,
    to_plain,
)
from adcam.labeling.locks import LOCK_NAME, FolderLock
from adcam.labeling.manifest import Entry, to_columns
from adcam.labeling.output_folder import (
    CONFIG_NAME,
    check_config,
    encode_config,
    find_change,
    make_folder,
    make_plan,
    refuse_part,
    remove_temporaries,
    require_folder,
    take_locks,
)
from adcam.labeling.packed_parts import (
    FORMATS,
    encode_part,
    read_part_files,
    read_part_manifest,
    relative_name,
)
from adcam.labeling.shards import SHARDS_DIR, WHOLE, Shard
from adcam.parquet import encode_table, read_table
from adcam.remote_files import (
    find_size,
    join,
    list_files,
    read_part,
    remove_file,
    to_local,
    write_file,
)

IMAGES_PER_FILE = 1000
"""Images in a part, unless another number is asked for."""

_KEPT_NAMES = (CONFIG_NAME, LOCK_NAME, "data", "manifest", SHARDS_DIR)


@dataclass(frozen=True)
class PackedOutput:
    """Where and how results are packed.

    Attributes:
        path: The folder, of this machine (also as ``file://…``) or a URL.
        format: The kind of the files, one of :data:`adcam.labeling.packed_parts.FORMATS`.
        images_per_file: Images in a part. More give fewer files; a run that was killed repeats more
            and holds the results of more images in memory, some ten kilobytes each.

    Raises:
        AdcamError: A value is not legal.
    """

    path: str
    format: str = "parquet"
    images_per_file: int = IMAGES_PER_FILE

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise AdcamError(f"results are packed as one of {FORMATS}, got {self.format!r}")
        if self.images_per_file < 1:
            raise AdcamError(f"images per file must be at least 1, got {self.images_per_file}")

    def describe(self, img_ids: Sequence[str]) -> dict[str, Any]:
        """Describe what decides which image goes into which part."""
        return {
            "format": self.format,
            "images_per_file": self.images_per_file,
            "images": len(img_ids),
            "ids": hash_values(list(img_ids)),
        }


class PackedFolder:
    """A folder of packed results, to be filled as an output folder of files is.

    A folder of this machine is held by one run, or by one run a shard, as an output folder of files
    is. Behind a URL there are no locks: two runs that fill one folder at the same time do it twice
    and leave the same bytes, but for the seconds in the manifest, since every part is put whole,
    and a part has but one content.

    Args:
        output: Where and how results are packed.
        config: Everything that changes the bytes of the results, JSON-serialisable.
        overwrite: Whether to start over: the parts that are there are removed.
        shard: The part of the data set that this process works on; each has files of its own.

    Raises:
        AdcamError: Another process works in the folder, symbolic links stand in places that are
            written to, or, from :meth:`start`, the folder holds a run with another configuration or
            over other images, or cannot be read.
        OSError: The folder cannot be written to.
    """

    def __init__(
        self,
        output: PackedOutput,
        config: Mapping[str, Any],
        *,
        overwrite: bool = False,
        shard: Shard = WHOLE,
    ) -> None:
        self.output = output
        # The folder, where it is one of this machine.
        self._folder = to_local(output.path)
        self.path = output.path if self._folder is None else str(self._folder)
        self.shard = shard
        self._config = to_plain(config)
        self._overwrite = overwrite
        self._parts: list[tuple[str, ...]] = []
        self._part_of: dict[str, int] = {}
        # States of the images of earlier runs, and what has come since of parts that wait for more.
        self._status: dict[str, str] = {}
        self._new: dict[int, dict[str, tuple[Entry, Mapping[str, bytes]]]] = {}
        self._locks: list[FolderLock] = []
        if self._folder is not None:
            make_folder(self._folder)
            for name in _KEPT_NAMES:
                refuse_links(self._folder, self._folder / name / "x")
            self._locks = take_locks(self._folder, shard)

    def __enter__(self) -> PackedFolder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Let other processes work in the folder; parts that are not complete are forgotten."""
        while self._locks:
            self._locks.pop().release()

    @property
    def was_killed(self) -> bool:
        """Whether the process that worked here before was killed; behind a URL nobody can tell."""
        return bool(self._locks) and self._locks[-1].was_killed

    @property
    def num_lines(self) -> int:
        """Images of the parts that are complete."""
        return len(self._status)

    def start(self, img_ids: Sequence[str], *, window: int = 1) -> list[int]:
        """As :meth:`adcam.labeling.output_folder.OutputFolder.start`."""
        owned = self.shard.find_owned(img_ids, window)
        size = self.output.images_per_file
        mine = [img_ids[i] for i in owned]
        self._parts = [tuple(mine[i : i + size]) for i in range(0, len(mine), size)]
        self._part_of = {img_id: n for n, part in enumerate(self._parts) for img_id in part}
        packed = {**self.output.describe(img_ids), "shards": self.shard.count}
        self._open({**self._config, "packed": packed})
        if not self.shard.is_whole:
            self._write_plan(make_plan(img_ids, len(owned)))
        elif self._folder is not None:  # the temporaries of shards are in use; a store has none
            remove_temporaries(self._folder, "", "data/", "manifest/", f"{SHARDS_DIR}/")
        self._status = dict(self._read_status())
        return owned

    def note(self, **values: Any) -> None:
        """Add to what this process says of itself while it works here, for ``adcam status``."""
        if self._locks:
            self._locks[-1].note(values)

    def _write_plan(self, plan: Mapping[str, Any]) -> None:
        content = (json.dumps(plan, indent=2) + "\n").encode()
        path = join(self.path, f"{SHARDS_DIR}/{self.shard.name}.json")
        if find_size(path) is None or read_part(path) != content:
            write_file(path, content)

    def _open(self, config: Mapping[str, Any]) -> None:
        """Write the configuration, or refuse a folder that holds something else."""
        path = join(self.path, CONFIG_NAME)
        # In this order: another shard may be writing its configuration and first parts just now.
        strangers = [file for file in list_files(self.path) if not self._is_lock(file)]
        content = encode_config(config)
        found = None if find_size(path) is None else parse_json(read_part(path), path)
        if self._overwrite and found is not None:
            refuse_part(self.path, self.shard)
            for file in (*self._list("manifest"), *self._list("data"), *self._list(SHARDS_DIR)):
                remove_file(file)
        elif found is not None:
            check_config(self.path, found, config, self.shard)
            return
        elif strangers:
            raise AdcamError(
                f"{self.path} holds files, but no {CONFIG_NAME} that says where they come from; "
                "take another folder"
            )
        write_file(path, content)

    def _is_lock(self, file: str) -> bool:
        name = relative_name(self.path, file)
        return name == LOCK_NAME or (name.startswith(SHARDS_DIR) and name.endswith(".lock"))

    def _list(self, kind: str) -> list[str]:
        return list_files(join(self.path, kind))

    def _read_status(self) -> Iterator[tuple[str, str]]:
        """Yield the state of every image whose part is complete and has the data that it states."""
        kinds = ("data", "manifest")
        there = {f"{kind}/{PurePosixPath(f).name}" for kind in kinds for f in self._list(kind)}
        for number in range(len(self._parts)):
            names = [self._name(kind, number) for kind in kinds]
            if there.issuperset(names):
                data, manifest = (join(self.path, name) for name in names)
                try:
                    rows, stated = read_table(manifest, ("id", "status"))
                except AdcamError:
                    if self._folder is None:  # perhaps the store did not answer
                        raise
                    continue  # damaged: the part is made again
                digest, size = stated.get("data_hash"), stated.get("data_bytes")
                # A store is not made to send everything again for its hash.
                if find_change(data, digest, size, by_size=self._folder is None) is None:
                    yield from zip(rows["id"], rows["status"], strict=True)

    def is_done(
        self, img_id: str, expected: Entry, files: Mapping[str, Path] | None = None
    ) -> bool:
        """Tell whether an image needs no work: its part is complete, and it did not fail.

        The entry must hold the keys of ``expected`` with their values. An image has no ``files``.
        """
        if self._status.get(img_id) != "ok":
            return False
        return all(self[img_id].get(key) == value for key, value in expected.items())

    def __getitem__(self, img_id: str) -> Entry:
        """Return the entry of an image whose part is complete.

        Raises:
            KeyError: There is none.
        """
        if img_id not in self._status:
            raise KeyError(img_id)
        return _read_known(join(self.path, self._name("manifest", self._part_of[img_id])))[img_id]

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an image; its part is written when it is the last that the part waited for.

        Args:
            entry: Its entry, and under ``files`` the contents of its files by the keys that hold
                their hashes.
        """
        number = self._part_of[entry["id"]]
        files = entry.get("files", {})
        plain = {key: value for key, value in entry.items() if key != "files"}
        new = self._new.setdefault(number, {})
        new[entry["id"]] = (plain, files)
        missing = sum(
            img_id not in new and self._status.get(img_id) != "ok" for img_id in self._parts[number]
        )
        if not missing:
            self._write(number, self._new.pop(number))

    def finish(self, order: Iterable[str], *, lost_workers: bool = False) -> None:
        """Check that every part is complete; workers write no files here.

        Raises:
            AdcamError: One is not, although every image was reported.
        """
        if self._new:
            part = self._name("data", min(self._new))
            raise AdcamError(f"{join(self.path, part)} is not complete; run the command again")

    def _write(self, number: int, new: Mapping[str, tuple[Entry, Mapping[str, bytes]]]) -> None:
        """Write a part: its data, then its manifest, with images of earlier runs as they are."""
        data = join(self.path, self._name("data", number))
        manifest = join(self.path, self._name("manifest", number))
        kept: dict[str, tuple[Entry, Mapping[str, bytes]]] = {}
        if self._folder is not None:
            require_folder(self._folder)
        if len(new) < len(self._parts[number]):
            entries, files = _read_known(manifest), read_part_files(data)
            kept = {img_id: (entries[img_id], files.get(img_id, {})) for img_id in entries}
        rows = [new.get(img_id) or kept[img_id] for img_id in self._parts[number]]
        content = encode_part(rows, self.output.format)
        write_file(data, content)
        columns = to_columns([entry for entry, _ in rows])
        stated = {"data_bytes": str(len(content)), "data_hash": hash_bytes(content)}
        write_file(manifest, encode_table(columns, metadata=stated))
        _read_known.cache_clear()
        self._status.update((entry["id"], entry["status"]) for entry, _ in rows)

    def _name(self, kind: str, number: int) -> str:
        suffix = self.output.format if kind == "data" else "parquet"
        shard = "" if self.shard.is_whole else f"{self.shard.name}-"
        return f"{kind}/{shard}part-{number:05d}.{suffix}"


@lru_cache(maxsize=2)
def _read_known(path: str) -> dict[str, Entry]:
    """Read the entries of a part that only this process changes."""
    return read_part_manifest(path)[0]
