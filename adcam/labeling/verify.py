"""An output folder against its manifest: what is missing, has changed, or belongs to no image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adcam.errors import AdcamError
from adcam.files import hash_values, read_json
from adcam.labeling.executor import run_ahead
from adcam.labeling.manifest import Entry, Manifest, read_entry
from adcam.labeling.merge import Division, choose_division
from adcam.labeling.output_folder import (
    CONFIG_NAME,
    MAPS_DIR,
    MASK_DIR,
    describe_contents,
    find_change,
    find_changes,
    manifest_path,
    name_file,
    result_files,
)
from adcam.labeling.packed_parts import (
    RESULTS,
    Part,
    find_config,
    find_parts,
    read_part_files,
    read_part_manifest,
    relative_name,
)
from adcam.labeling.shards import WHOLE, find_shards
from adcam.remote_files import is_url, join, list_files

_READERS = 4


@dataclass
class Verification:
    """What a comparison of an output folder with its manifest found.

    Attributes:
        ok: Number of images whose files are as they were written.
        failed: Number of images without a result, as the manifest says.
        unknown: Number of images that no manifest line says anything of: the run has not ended.
        changes: What happened to the files of an image, by its id: ``"the mask is missing"``,
            ``"the maps file has changed"``, …; of packed results also to a file, by its name.
        orphans: Files in ``masks/`` and ``maps/`` that belong to no image of the manifest, relative
            to the folder; of packed results files that belong to no part, and ``FILE: ID`` for what
            is in a file and in no manifest.
        others: Shards that were not started, one sentence each.
    """

    ok: int = 0
    failed: int = 0
    unknown: int = 0
    changes: dict[str, str] = field(default_factory=dict)
    orphans: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def is_intact(self) -> bool:
        """Whether the files that are there are those of the manifest, and all of them."""
        return not (self.changes or self.orphans)

    @property
    def is_sound(self) -> bool:
        """Whether the folder is intact, and the run has ended."""
        return self.is_intact and not (self.unknown or self.others)


def verify_folder(path: str | Path, *, by_size: bool = False) -> Verification:
    """Compare an output folder with its manifest; nothing is changed.

    Args:
        path: The folder; shards in it need not be merged. Of packed results it may be a URL.
        by_size: Whether only the sizes of files are compared, which reads none of them, instead of
            sizes and hashes (SHA-256).

    Raises:
        AdcamError: The folder holds no run, or a manifest is damaged.
    """
    if (config := find_config(path)) is not None:
        return _verify_packed(path, config, by_size)
    division = choose_division(path)
    path = Path(path)
    found = Verification(unknown=sum(state.missing or 0 for state in division.states))
    found.others += _not_started(division)
    shards = [WHOLE, *find_shards(path, ".jsonl")]
    manifests = [Manifest(manifest_path(path, shard)) for shard in shards]
    config_hash = hash_values(read_json(path / CONFIG_NAME))
    known: set[str] = set()
    img_ids = dict.fromkeys(img_id for manifest in manifests for img_id in manifest)
    with ThreadPoolExecutor(_READERS) as pool:
        checked = run_ahead(
            lambda entry: pool.submit(_check, path, entry, by_size),
            (read_entry(manifests, img_id) for img_id in img_ids),
            max_ahead=4 * _READERS,
        )
        for entry, changes in checked:
            if entry["status"] == "failed":
                found.failed += 1
                continue
            known.add(entry["id"])
            if entry.get("config", config_hash) != config_hash:
                changes = [*changes, f"it was made with another configuration than {CONFIG_NAME}"]
            if changes:
                found.changes[entry["id"]] = "; ".join(changes)
            else:
                found.ok += 1
    found.orphans += _find_orphans(path, known)
    for manifest in manifests:
        manifest.close()
    return found


def _not_started(division: Division) -> list[str]:
    return [str(state) for state in division.states if state.owned is None]


def _verify_packed(path: str | Path, config: Mapping[str, Any], by_size: bool) -> Verification:
    """Compare packed results with their manifests, part by part."""
    found = Verification()
    config_hash = hash_values({key: value for key, value in config.items() if key != "packed"})
    seen: set[str] = set()
    parts = list(find_parts(path, config))
    for part in parts:
        name = relative_name(path, part.data)
        try:
            entries, files, change = _read_part(part, by_size)
        except (AdcamError, OSError) as error:
            found.changes[name] = str(error)
            continue
        changes = {} if by_size or change else _check_part(entries, files)
        for img_id, entry in entries.items():
            if img_id in seen:
                changes[img_id] = "two parts have it"
            elif entry.get("config", config_hash) != config_hash:
                changes[img_id] = f"it was made with another configuration than {CONFIG_NAME}"
        seen.update(entries)
        done = {img_id for img_id, entry in entries.items() if entry["status"] == "ok"}
        if change:
            found.changes[name] = f"the part {change}"
        else:
            found.ok += len(done - changes.keys())
        found.failed += len(entries) - len(done)
        found.changes |= changes
        found.orphans += [f"{name}: {img_id}" for img_id in files if img_id not in done]
    found.unknown = max(config["packed"]["images"] - len(seen), 0)
    found.others += _not_started(choose_division(path)) if found.unknown else []
    known = {relative_name(path, file) for part in parts for file in (part.data, part.manifest)}
    there = (file for kind in ("data", "manifest") for file in list_files(join(path, kind)))
    found.orphans += [name for file in there if (name := relative_name(path, file)) not in known]
    return found


def _read_part(
    part: Part, by_size: bool
) -> tuple[Mapping[str, Entry], Mapping[str, Mapping[str, bytes]], str | None]:
    """Entries of a part, its files unless sizes are enough, and what has happened to it."""
    if not is_url(part.manifest) and Path(part.manifest).is_symlink():
        raise AdcamError("its manifest is a symbolic link")
    entries, stated = read_part_manifest(part.manifest)
    digest, size = stated.get("data_hash"), stated.get("data_bytes")
    change = find_change(part.data, digest, size, by_size=True)
    if by_size or change:
        return entries, {}, change
    files = read_part_files(part.data)
    if _check_part(entries, files):
        return entries, files, None  # the images say what has changed
    return entries, files, find_change(part.data, digest, size)


def _check_part(
    entries: Mapping[str, Entry], files: Mapping[str, Mapping[str, bytes]]
) -> dict[str, str]:
    """What has happened to the results of the images of a part, by image id."""
    changes = {}
    for img_id, entry in entries.items():
        if entry["status"] == "failed":
            continue
        found = describe_contents(files.get(img_id, {}))
        words = [
            f"the {name_file(key)} {'is missing' if found[key] is None else 'has changed'}"
            for key in RESULTS
            if found[key] != entry.get(key)
        ]
        if words:
            changes[img_id] = "; ".join(words)
    return changes


def _check(path: Path, entry: Entry, by_size: bool) -> tuple[Entry, list[str]]:
    if entry["status"] == "failed":
        return entry, []
    try:
        files = result_files(path, entry["id"])
    except AdcamError as error:
        return entry, [str(error)]
    return entry, [*find_changes(entry, files, by_size=by_size)]


def _find_orphans(path: Path, known: set[str]) -> Iterator[str]:
    for folder, suffix in ((MASK_DIR, ".png"), (MAPS_DIR, ".npz")):
        for parent, subfolders, names in os.walk(path / folder):
            subfolders.sort()
            for name in sorted(names):
                relative = Path(parent, name).relative_to(path)
                img_id = relative.relative_to(folder).as_posix().removesuffix(suffix)
                if not name.endswith(suffix) or img_id not in known:
                    yield relative.as_posix()
