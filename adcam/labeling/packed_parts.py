"""Packed results: masks and maps in Parquet files or tar archives, also behind URLs.

Ten million small files are slow to write, to list and to copy. A packed folder holds, for every so
many images of the data set, in its order::

    config.json                     everything that changes the bytes, and how the folder is divided
    data/part-00000.parquet         id, mask (a PNG file), maps (an .npz file or null) of each image
    data/part-00000.tar             or this: <id>.mask.png and <id>.maps.npz of each image
    manifest/part-00000.parquet     the entries that a manifest.jsonl would have, size and hash of
                                    the part's data
    shards/00000-of-00002.json      what a shard is to do; its parts have its name before theirs

Masks and maps are the bytes that an output folder would have as files. Everything here reads such a
folder, but for :func:`encode_part`; :mod:`adcam.labeling.packed_folder` fills it, and
:func:`adcam.convert.packed.convert_unpack` makes an output folder of files from it.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adcam.errors import AdcamError
from adcam.files import check_img_id, hash_bytes, parse_json
from adcam.labeling.manifest import COLUMNS, Entry, to_entries
from adcam.labeling.output_folder import CONFIG_NAME, check_plan
from adcam.labeling.shards import MAX_SHARDS, SHARDS_DIR, WHOLE, Shard
from adcam.parquet import encode_table, read_table
from adcam.remote_files import find_size, is_url, join, list_files, read_part

FORMATS = ("parquet", "tar")
"""Kinds of files that masks and maps are packed into."""

RESULTS = {"mask": ".mask.png", "maps": ".maps.npz"}
"""Results of an image and their suffixes in a tar archive."""

_PART = re.compile(r"(?:(\d{5,6})-of-(\d{5,6})-)?part-\d{5,}\.parquet")


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
        columns, _ = read_table(path, ("id", *RESULTS))
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


def read_part_manifest(path: str) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read the manifest of a part.

    Returns:
        Its entries by image id, without the keys that an entry does not have; and what it states of
        the part's data: ``data_bytes``, ``data_hash``, which folders of earlier versions lack.

    Raises:
        AdcamError: It is damaged.
    """
    columns, stated = read_table(path, COLUMNS)
    entries = {entry["id"]: entry for entry in to_entries(columns, path)}
    return entries, stated


@dataclass(frozen=True)
class Part:
    """A part whose manifest is there.

    Attributes:
        name: Its name, without suffix.
        shard: The shard that made it.
        data: The file of its masks and maps, which need not be there.
        manifest: The file of its entries.
    """

    name: str
    shard: Shard
    data: str
    manifest: str


def find_parts(path: str | Path, config: Mapping[str, Any]) -> Iterator[Part]:
    """Yield the parts of a packed folder that have a manifest, by name.

    Args:
        path: The folder, of this machine or a URL.
        config: Its configuration (:func:`read_config`).
    """
    for manifest in list_files(join(path, "manifest")):
        match = _PART.fullmatch(manifest.rpartition("/")[2])
        if match is None or match[2] == "00000" or int(match[1] or 0) >= int(match[2] or 1):
            continue
        name = match[0].removesuffix(".parquet")
        shard = Shard(int(match[1]), int(match[2])) if match[1] else WHOLE
        data = join(path, f"data/{name}.{config['packed']['format']}")
        yield Part(name, shard, data, manifest)


def relative_name(path: str | Path, file: str) -> str:
    """Name a file of a packed folder as its documentation does, such as ``data/part-00000.tar``."""
    if is_url(path):  # a store may spell the URL in another way than the user
        return "/".join(file.split("/")[-2:])
    return Path(file).relative_to(path).as_posix()


def read_packed_plan(path: str | Path, shard: Shard) -> dict[str, Any] | None:
    """Read what a shard of a packed folder is to do, ``None`` if it was never started.

    Raises:
        AdcamError: The file is damaged.
    """
    file = join(path, f"{SHARDS_DIR}/{shard.name}.json")
    if find_size(file) is None:
        return None
    return check_plan(parse_json(read_part(file), file, what="the plan of a run"), file)


def read_packed_failures(path: str | Path) -> dict[str, str]:
    """Read the error of each image of a packed folder that has no result.

    Raises:
        AdcamError: It is no packed folder, or is damaged.
    """
    failed = {}
    for part in find_parts(path, read_config(path)):
        rows, _ = read_table(part.manifest, ("id", "status", "error"))
        for img_id, status, error in zip(*rows.values(), strict=True):
            if status != "ok":
                failed[img_id] = str(error or "")
    return failed


def find_config(path: str | Path) -> dict[str, Any] | None:
    """Read the configuration of a packed folder, ``None`` if the folder is none.

    Raises:
        AdcamError: It says that results are packed, but not how.
    """
    file = join(path, CONFIG_NAME)
    if find_size(file) is None:
        return None
    try:
        config: dict[str, Any] = parse_json(read_part(file), file)
    except AdcamError:
        return None
    if (packed := config.get("packed")) is None:
        return None
    kinds = {"format": str, "images": int, "images_per_file": int, "shards": int, "ids": str}
    is_known = isinstance(packed, dict) and all(
        isinstance(packed.get(key), kind) for key, kind in kinds.items()
    )
    if not (is_known and packed["format"] in FORMATS and 1 <= packed["shards"] <= MAX_SHARDS):
        raise AdcamError(f"{file} does not say how results are packed: {json.dumps(packed):.80}")
    return config


def read_config(path: str | Path) -> dict[str, Any]:
    """Read the configuration of a packed folder.

    Raises:
        AdcamError: It is no packed folder.
    """
    if (config := find_config(path)) is not None:
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
    for part in find_parts(path, read_config(path)):
        files = read_part_files(part.data)
        for img_id, entry in read_part_manifest(part.manifest)[0].items():
            found = files.get(check_img_id(img_id), {})
            for name in RESULTS:
                stated, data = entry.get(name), found.get(name)
                if stated != (None if data is None else hash_bytes(data)):
                    raise AdcamError(
                        f"{part.data}: the {name} of image {img_id!r} is not the one that the "
                        "manifest states. Remove this file; the run's command makes it again"
                    )
            yield entry, found
