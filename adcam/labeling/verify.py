"""An output folder against its manifest: what is missing, has changed, or belongs to no image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from adcam.errors import AdcamError
from adcam.files import hash_values, read_json
from adcam.labeling.executor import run_ahead
from adcam.labeling.manifest import Entry, Manifest
from adcam.labeling.merge import choose_division
from adcam.labeling.output_folder import (
    CONFIG_NAME,
    MAPS_DIR,
    MASK_DIR,
    find_changes,
    find_size_changes,
    manifest_path,
    result_files,
)
from adcam.labeling.shards import WHOLE, find_shards

_READERS = 4


@dataclass
class Verification:
    """What a comparison of an output folder with its manifest found.

    Attributes:
        ok: Number of images whose files are as they were written.
        failed: Number of images without a result, as the manifest says.
        unknown: Number of images that no manifest line says anything of: the run has not ended.
        changes: What happened to the files of an image, by its id: ``"the mask is missing"``,
            ``"the maps file has changed"``, …
        orphans: Files in ``masks/`` and ``maps/`` that belong to no image of the manifest, relative
            to the folder.
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
        path: The folder; shards in it need not be merged.
        by_size: Whether only the sizes of files are compared, which reads none of them, instead of
            sizes and hashes (SHA-256).

    Raises:
        AdcamError: The folder holds no run, or a manifest is damaged.
    """
    path = Path(path)
    division = choose_division(path)
    found = Verification(unknown=sum(state.missing or 0 for state in division.states))
    for state in division.states:
        if state.owned is None:
            found.others.append(str(state))
    shards = [WHOLE, *find_shards(path, ".jsonl")]
    manifests = [Manifest(manifest_path(path, shard)) for shard in shards]
    config_hash = hash_values(read_json(path / CONFIG_NAME))
    known: set[str] = set()
    with ThreadPoolExecutor(_READERS) as pool:
        checked = run_ahead(
            lambda entry: pool.submit(_check, path, entry, by_size),
            _newest(manifests),
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


def _newest(manifests: list[Manifest]) -> Iterator[Entry]:
    """One entry an image: of several manifests' one that is ``"ok"``, if any."""
    seen: set[str] = set()
    for number, manifest in enumerate(manifests):
        for img_id in manifest:
            if img_id in seen:
                continue
            seen.add(img_id)
            entries = [other[img_id] for other in manifests[number:] if img_id in other]
            yield next((entry for entry in entries if entry["status"] == "ok"), entries[0])


def _check(path: Path, entry: Entry, by_size: bool) -> tuple[Entry, list[str]]:
    if entry["status"] == "failed":
        return entry, []
    try:
        files = result_files(path, entry["id"])
    except AdcamError as error:
        return entry, [str(error)]
    changes = find_size_changes(entry, files)
    return entry, changes if changes or by_size else find_changes(entry, files)


def _find_orphans(path: Path, known: set[str]) -> Iterator[str]:
    for folder, suffix in ((MASK_DIR, ".png"), (MAPS_DIR, ".npz")):
        for parent, subfolders, names in os.walk(path / folder):
            subfolders.sort()
            for name in sorted(names):
                relative = Path(parent, name).relative_to(path)
                img_id = relative.relative_to(folder).as_posix().removesuffix(suffix)
                if not name.endswith(suffix) or img_id not in known:
                    yield relative.as_posix()
