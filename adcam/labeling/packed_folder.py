"""Results in a few large files: masks and maps in Parquet files or tar archives, also behind URLs.

Ten million small files are slow to write, to list and to copy. A packed folder holds, for every so
many images of the data set, in its order::

    config.json                     everything that changes the bytes, and how the folder is divided
    data/part-00000.parquet         id, mask (a PNG file), maps (an .npz file or null) of each image
    data/part-00000.tar             or this: <id>.mask.png and <id>.maps.npz of each image
    manifest/part-00000.parquet     the entries that a manifest.jsonl would have

Masks and maps are the bytes that an output folder would have as files. A part is written whole as
soon as all its images are done, first the data, then its manifest, which says that it is complete:
a run that was killed does the parts again that it had not completed. Images that failed are tried
again by the next run, which replaces their part. :func:`unpack` makes an output folder of files.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from adcam.errors import AdcamError
from adcam.files import check_img_id, hash_bytes, hash_values, parse_json, to_plain
from adcam.labeling.manifest import Entry
from adcam.labeling.output_folder import CONFIG_NAME, diff_configs
from adcam.labeling.shards import WHOLE, Shard
from adcam.parquet import encode_table, read_columns
from adcam.remote_files import find_size, join, list_files, read_part, remove_file, write_file

FORMATS = ("parquet", "tar")
"""Kinds of files that masks and maps are packed into."""

IMAGES_PER_FILE = 1000
"""Images in a part, unless another number is asked for."""

RESULTS = {"mask": ".mask.png", "maps": ".maps.npz"}
"""Results of an image and their suffixes in a tar archive."""

# Kinds of the manifest's columns; every other key of an entry is text.
_KINDS = {
    **{"classes": "texts", "threshold": "number", "ori_hw": "integers", "seconds": "number"},
    **{"mask_bytes": "integer", "maps_bytes": "integer"},
}
_COLUMNS = (
    *("id", "image", "status", "error", "classes", "labels", "note", "rule", "threshold"),
    *("chosen_on", "ori_hw", "mask", "mask_bytes", "maps", "maps_bytes", "config", "weights"),
    "seconds",
)


@dataclass(frozen=True)
class PackedOutput:
    """Where and how results are packed.

    Attributes:
        path: The folder, of this machine or a URL.
        format: The kind of the files, one of :data:`FORMATS`.
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

    Two runs that fill one folder at the same time do it twice and leave the same bytes, but for
    the seconds in the manifest: every part is put whole, and a part has but one content.

    Args:
        output: Where and how results are packed.
        config: Everything that changes the bytes of the results, JSON-serialisable.
        overwrite: Whether to start over: the parts that are there are removed.
        shard: The part of the data set that this process works on; each has files of its own.

    Raises:
        AdcamError: The folder holds a run with another configuration or over other images, or
            cannot be read.
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
        self.path = output.path
        self.shard = shard
        self.num_lines = 0
        self.was_killed = False  # nobody leaves a lock here that would tell
        self._config = to_plain(config)
        self._overwrite = overwrite
        self._parts: list[tuple[str, ...]] = []
        self._part_of: dict[str, int] = {}
        # States of the images of earlier runs, and what has come since of parts that wait for more.
        self._status: dict[str, str] = {}
        self._new: dict[int, dict[str, tuple[Entry, Mapping[str, bytes]]]] = {}

    def __enter__(self) -> PackedFolder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing is left to be closed: parts that are not complete are forgotten."""

    def start(self, img_ids: Sequence[str], *, window: int = 1) -> list[int]:
        """Say which images the run is about, and find what was done of them before.

        Args:
            img_ids: The ids of all images, in the order of the data set.
            window: How many images in a row are computed together; a shard owns them as a whole.

        Returns:
            Indices of the images that this process is to work on, ascending.
        """
        owned = self.shard.find_owned(img_ids, window)
        size = self.output.images_per_file
        mine = [img_ids[i] for i in owned]
        self._parts = [tuple(mine[i : i + size]) for i in range(0, len(mine), size)]
        self._part_of = {img_id: n for n, part in enumerate(self._parts) for img_id in part}
        packed = {**self.output.describe(img_ids), "shards": self.shard.count}
        self._open({**self._config, "packed": packed}, self._overwrite)
        self._status = dict(self._read_status())
        return owned

    def note(self, **values: Any) -> None:
        """Nobody asks a packed folder who is at work in it."""

    def _open(self, config: Mapping[str, Any], overwrite: bool) -> None:
        path = join(self.path, CONFIG_NAME)
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        found = None if find_size(path) is None else parse_json(read_part(path), path)
        if overwrite and found is not None:
            if not self.shard.is_whole:
                raise AdcamError(
                    f"--overwrite would remove what other shards have made in {self.path}; remove "
                    "the folder yourself, or take another one"
                )
            for file in (*self._list("manifest"), *self._list("data")):
                remove_file(file)
        elif found is not None:
            if differences := diff_configs(found, json.loads(text)):
                raise AdcamError(
                    f"{self.path} holds a run with another configuration (found -> asked for):\n"
                    + "\n".join(f"  {line}" for line in differences)
                    + "\nTake another folder, or start this one over with --overwrite."
                )
            return
        elif list_files(self.path):
            raise AdcamError(
                f"{self.path} holds files, but no {CONFIG_NAME} that says where they come from; "
                "take another folder"
            )
        write_file(path, text.encode())

    def _list(self, kind: str) -> list[str]:
        return list_files(join(self.path, kind))

    def _read_status(self) -> Iterator[tuple[str, str]]:
        """Yield the state of every image whose part is complete and has its data."""
        kinds = ("data", "manifest")
        there = {f"{kind}/{PurePosixPath(f).name}" for kind in kinds for f in self._list(kind)}
        for number in range(len(self._parts)):
            names = [self._name(kind, number) for kind in kinds]
            if there.issuperset(names):
                rows = read_columns(join(self.path, names[1]), ("id", "status"))
                yield from zip(rows["id"], rows["status"], strict=True)

    def is_done(
        self, img_id: str, expected: Entry, files: Mapping[str, Path] | None = None
    ) -> bool:
        """Tell whether an image needs no work: its part is complete, and it did not fail.

        Args:
            img_id: The image.
            expected: Keys that the entry must hold with these values.
            files: Not used; a packed folder has no files of single images.
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
        return _read_entries(join(self.path, self._name("manifest", self._part_of[img_id])))[img_id]

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

    def finish(self, order: Iterable[str]) -> None:
        """Check that every part is complete.

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
        if len(new) < len(self._parts[number]):
            entries, files = _read_entries(manifest), read_part_files(data)
            kept = {img_id: (entries[img_id], files.get(img_id, {})) for img_id in entries}
        rows = [new.get(img_id) or kept[img_id] for img_id in self._parts[number]]
        write_file(data, encode_part(rows, self.output.format))
        columns = {
            name: (_KINDS.get(name, "text"), [entry.get(name) for entry, _ in rows])
            for name in _COLUMNS
        }
        write_file(manifest, encode_table(columns))
        _read_entries.cache_clear()
        self._status.update((entry["id"], entry["status"]) for entry, _ in rows)

    def _name(self, kind: str, number: int) -> str:
        suffix = self.output.format if kind == "data" else "parquet"
        shard = "" if self.shard.is_whole else f"{self.shard.name}-"
        return f"{kind}/{shard}part-{number:05d}.{suffix}"


def encode_part(rows: Sequence[tuple[Entry, Mapping[str, bytes]]], kind: str) -> bytes:
    """Encode the masks and maps of a part; equal ones give equal bytes.

    Args:
        rows: Entry and files of each image; those that failed have no files.
        kind: One of :data:`FORMATS`.
    """
    done = [(entry["id"], files) for entry, files in rows if files]
    if kind == "parquet":
        columns: dict[str, tuple[str, list[Any]]] = {"id": ("text", [img_id for img_id, _ in done])}
        for name in RESULTS:
            columns[name] = ("bytes", [files.get(name) for _, files in done])
        return encode_table(columns, compression="none")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for img_id, files in done:
            for name, content in sorted(files.items()):
                member = tarfile.TarInfo(f"{img_id}{RESULTS[name]}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def read_part_files(path: str) -> dict[str, dict[str, bytes]]:
    """Read the files of a part by image id and result.

    Raises:
        AdcamError: The part is damaged.
    """
    found: dict[str, dict[str, bytes]] = {}
    if path.endswith(".parquet"):
        columns = read_columns(path, ("id", *RESULTS))
        for number, img_id in enumerate(columns["id"]):
            contents = {name: columns[name][number] for name in RESULTS}
            found[img_id] = {name: data for name, data in contents.items() if data is not None}
        return found
    try:
        with tarfile.open(fileobj=io.BytesIO(read_part(path)), mode="r:") as archive:
            for member in archive:
                for name, suffix in RESULTS.items():
                    if member.isreg() and member.name.endswith(suffix):
                        content = archive.extractfile(member)
                        data = b"" if content is None else content.read()
                        found.setdefault(member.name.removesuffix(suffix), {})[name] = data
    except (tarfile.TarError, EOFError) as error:
        raise AdcamError(f"{path}: cannot be read as a part of results ({error})") from error
    return found


@lru_cache(maxsize=2)
def _read_entries(path: str) -> dict[str, Entry]:
    """Read the entries of a part by image id, without the keys that an entry does not have."""
    columns = read_columns(path, _COLUMNS)
    entries: dict[str, Entry] = {}
    for values in zip(*(columns[name] for name in _COLUMNS), strict=True):
        entry = dict(zip(_COLUMNS, values, strict=True))
        always = ("maps", "maps_bytes", "threshold") if entry["status"] == "ok" else ()
        entries[entry["id"]] = {
            key: value for key, value in entry.items() if value is not None or key in always
        }
    return entries


def read_config(path: str | Path) -> dict[str, Any]:
    """Read the configuration of a packed folder.

    Raises:
        AdcamError: It is no packed folder.
    """
    file = join(path, CONFIG_NAME)
    if find_size(file) is not None:
        config: dict[str, Any] = parse_json(read_part(file), file)
        if "packed" in config:
            return config
    raise AdcamError(f"{path}: no folder of packed results, which has config.json and manifest/")


def read_packed(path: str | Path) -> Iterator[tuple[Entry, dict[str, bytes]]]:
    """Yield entry and files of every image of a packed folder, checked against their hashes.

    Args:
        path: The folder, of this machine or a URL.

    Raises:
        AdcamError: It is no packed folder, is damaged, or a file is not the one that its entry
            states.
    """
    kind = read_config(path)["packed"]["format"]
    for manifest in list_files(join(path, "manifest")):
        stem = manifest.rpartition("/")[2].removesuffix(".parquet")
        part = join(path, f"data/{stem}.{kind}")
        files = read_part_files(part)
        for img_id, entry in _read_entries(manifest).items():
            found = files.get(check_img_id(img_id), {})
            for name in RESULTS:
                stated, data = entry.get(name), found.get(name)
                if stated != (None if data is None else hash_bytes(data)):
                    raise AdcamError(
                        f"{part}: the {name} of image {img_id!r} is not the one that the manifest "
                        "states; run its command again with --overwrite"
                    )
            yield entry, found
