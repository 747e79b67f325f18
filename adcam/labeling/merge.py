"""Shards become one run: their manifests joined, after a check that nothing is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adcam.errors import AdcamError
from adcam.files import read_json, write_json
from adcam.labeling.manifest import read_manifest, write_manifest_table
from adcam.labeling.output_folder import (
    CONFIG_NAME,
    MANIFEST_NAME,
    PLAN_NAME,
    TABLE_NAME,
    OutputFolder,
    check_plan,
    manifest_path,
    plan_path,
)
from adcam.labeling.packed_parts import (
    find_config,
    find_parts,
    read_packed_failures,
    read_packed_plan,
)
from adcam.labeling.shards import Shard, find_shards
from adcam.parquet import read_table
from adcam.remote_files import find_size, is_url


@dataclass(frozen=True)
class ShardState:
    """What a shard has done so far.

    Attributes:
        shard: The shard.
        owned: Number of its images; ``None`` if it was never started.
        ok: Number of images with a result.
        failed: Number of images that have none, with the reason in the manifest.
        lines: Lines of its manifest, older ones of an image included.
    """

    shard: Shard
    owned: int | None = None
    ok: int = 0
    failed: int = 0
    lines: int = 0

    @property
    def missing(self) -> int | None:
        """Number of images that nothing is known of yet; ``None`` if it was never started."""
        return None if self.owned is None else max(self.owned - self.ok - self.failed, 0)

    def __str__(self) -> str:
        if self.owned is None:
            return f"shard {self.shard} was not started"
        return f"shard {self.shard} lacks {self.missing} of {self.owned} images"


@dataclass(frozen=True)
class Division:
    """The shards that a data set was divided into, as an output folder knows them.

    Attributes:
        images: Number of images of the whole data set; ``None`` if the folder does not say.
        states: What each shard has done, in order.
        order: Ids of the images that are known, by their place in the data set; of a run over the
            whole it is empty. ``None`` where results are packed, whose shards stay as they are.
    """

    images: int | None
    states: Sequence[ShardState]
    order: Mapping[int, str] | None

    @property
    def is_packed(self) -> bool:
        """Whether results are packed (:mod:`adcam.labeling.packed_parts`)."""
        return self.order is None

    @property
    def is_complete(self) -> bool:
        """Whether something is known of every image."""
        if any(state.missing != 0 for state in self.states):
            return False
        if self.order is None or self.states[0].shard.is_whole:
            return True
        return all(i in self.order for i in range(self.images or 0))


@dataclass(frozen=True)
class MergeResult:
    """What a merged folder holds.

    Attributes:
        ok: Number of images with a result.
        failed: The error of each image that has none, by id.
    """

    ok: int
    failed: Mapping[str, str]


def merge_shards(path: str | Path, *, parquet: bool = False) -> MergeResult:
    """Join the manifests of all shards of an output folder into one, and remove theirs.

    The folder is then the same as after a run that was not divided. A run over the whole that was
    killed at its very end is finished in the same way.

    Args:
        path: The output folder. A folder without shards is only checked, and so are packed results,
            whose shards keep files of their own; of these it may be a URL.
        parquet: Whether to write the manifest also as ``manifest.parquet``. A run that resumes
            removes it; if only this file is left, the manifest is made from it again.

    Raises:
        AdcamError: Nothing was changed, because images are missing (the message names the shards
            that have to be run again), a run is at work, or it is no output folder.
        OSError: The folder cannot be written to.
    """
    if find_config(path) is not None:
        division = require_complete(path, "merged")
        if parquet:
            raise AdcamError(f"{path} holds packed results, whose manifest is Parquet already")
        return MergeResult(sum(state.ok for state in division.states), read_packed_failures(path))
    path = Path(path)
    with OutputFolder(path, None) as folder:
        division = require_complete(path, "merged")
        state = division.states[0]
        if not state.shard.is_whole:
            plan = read_json(plan_path(path, state.shard))
            write_json(path / PLAN_NAME, {**plan, "owned": plan["images"]})
            order = division.order or {}
            folder.join([order[i] for i in range(plan["images"])])
        elif state.lines > state.ok + state.failed or find_shards(path, ".jsonl"):
            # A run over the whole was killed before it could do so itself.
            manifests = _find_manifests(path, state.shard)
            lines = (entry for file in manifests for _, _, entry in read_manifest(file))
            folder.join(dict.fromkeys(entry["id"] for entry in lines))
        ok, failed = 0, {}
        for _, _, entry in read_manifest(path / MANIFEST_NAME):
            if entry["status"] == "ok":
                ok += 1
            else:
                failed[entry["id"]] = str(entry.get("error", ""))
        if parquet:
            write_manifest_table(path / TABLE_NAME, path / MANIFEST_NAME)
    return MergeResult(ok, failed)


def require_complete(path: str | Path, done: str) -> Division:
    """Find out how a folder's data set was divided, and refuse it if images are missing.

    Args:
        path: As for :func:`choose_division`.
        done: What is not done then, such as ``"merged"``.

    Raises:
        AdcamError: Images are missing, or as for :func:`choose_division`.
    """
    division = choose_division(path)
    if division.is_complete:
        return division
    lacking = [str(state) for state in division.states if state.missing != 0]
    count = division.states[0].shard.count
    what = f"{len(lacking)} of {count} shards are incomplete" if count > 1 else "incomplete"
    shown = "\n".join(f"  {line}" for line in lacking[:20] or ["the plan is missing"])
    more = f"\n  … and {len(lacking) - 20} more" if len(lacking) > 20 else ""
    raise AdcamError(
        f"{path}: {what}, so that nothing was {done}:\n{shown}{more}\nRun the same command again "
        "with the --shard that is named"
    )


def choose_division(path: str | Path) -> Division:
    """Find out how a folder's data set was divided, and what each shard has done.

    Where runs have divided it in several ways, the most complete division counts.

    Args:
        path: The output folder; of packed results it may be a URL.

    Raises:
        AdcamError: A manifest or a plan is damaged, or the folder holds no run.
    """
    if (config := find_config(path)) is not None:
        return _read_packed_division(path, config)
    if is_url(path):
        raise AdcamError(f"{path} holds no run: there is no {CONFIG_NAME} of packed results in it")
    path = Path(path)
    if not (path / CONFIG_NAME).is_file():
        raise AdcamError(f"{path} holds no run: there is no {CONFIG_NAME} in it")
    if (path / TABLE_NAME).is_file() and not (path / MANIFEST_NAME).is_file():
        raise AdcamError(
            f"{path} has {TABLE_NAME} alone: `adcam merge {path}` makes {MANIFEST_NAME}"
        )
    counts = {shard.count for suffix in (".json", ".jsonl") for shard in find_shards(path, suffix)}
    divisions = [_read_division(path, count) for count in sorted(counts)]
    if not divisions or (path / PLAN_NAME).is_file():
        divisions.append(_read_division(path, 1))
    return max(divisions, key=lambda d: (d.is_complete, sum(s.ok + s.failed for s in d.states)))


def _read_packed_division(path: str | Path, config: Mapping[str, Any]) -> Division:
    """What the parts of packed results say; those without their data count as not done."""
    images, count = config["packed"]["images"], config["packed"]["shards"]
    status: dict[Shard, dict[str, str]] = {}
    for part in find_parts(path, config):
        if find_size(part.data) is not None:
            rows, _ = read_table(part.manifest, ("id", "status"))
            status.setdefault(part.shard, {}).update(zip(rows["id"], rows["status"], strict=True))
    states = []
    for shard in (Shard(index, count) for index in range(count)):
        known = status.get(shard, {})
        plan = None if shard.is_whole else read_packed_plan(path, shard)
        owned = images if shard.is_whole else None if plan is None else plan["owned"]
        ok = sum(value == "ok" for value in known.values())
        states.append(ShardState(shard, owned, ok, len(known) - ok, len(known)))
    return Division(images, states, None)


def _read_division(path: Path, count: int) -> Division:
    shards = [Shard(index, count) for index in range(count)]
    plans = {shard: plan for shard in shards if (plan := _read_plan(path, shard)) is not None}
    # Shards that were given other images than most count as not started.
    seen = Counter((plan["images"], plan["ids"]) for plan in plans.values())
    agreed = seen.most_common(1)[0][0] if seen else (None, None)
    order: dict[int, str] = {}
    states = []
    for shard in shards:
        plan = plans.get(shard)
        if plan is None:
            has_started = shard.is_whole and manifest_path(path, shard).is_file()
        else:
            has_started = (plan["images"], plan["ids"]) == agreed
        if not has_started:
            states.append(ShardState(shard))
            continue
        status: dict[str, str] = {}
        lines = 0
        for manifest in _find_manifests(path, shard):
            newest: dict[str, str] = {}
            for _, _, entry in read_manifest(manifest):
                lines += 1
                if shard.is_whole:
                    newest[entry["id"]] = entry["status"]
                elif isinstance(entry.get("index"), int):
                    newest[entry["id"]] = entry["status"]
                    order[entry["index"]] = entry["id"]
            # Of several manifests, one in which the image has a result counts.
            status |= {i: value for i, value in newest.items() if status.get(i) != "ok"}
        ok = sum(value == "ok" for value in status.values())
        # Folders of other commands have no plan: what their manifest lists is all there is.
        owned = len(status) if plan is None else plan["owned"]
        states.append(ShardState(shard, owned, ok, len(status) - ok, lines))
    return Division(agreed[0], states, order)


def _find_manifests(path: Path, shard: Shard) -> list[Path]:
    """The manifest of a shard; of the whole, all manifests."""
    shards = [shard, *(find_shards(path, ".jsonl") if shard.is_whole else ())]
    return [file for shard in shards if (file := manifest_path(path, shard)).is_file()]


def _read_plan(path: Path, shard: Shard) -> dict[str, Any] | None:
    file = plan_path(path, shard)
    return check_plan(read_json(file, what="the plan of a run"), file) if file.is_file() else None
