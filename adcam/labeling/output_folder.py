"""An output folder: what was made, from what, what is left to do, and who is working in it.

A folder holds one run. ``config.json`` says everything that changes the bytes of its masks and
maps; a run with another configuration is refused. ``manifest.jsonl``
(:mod:`adcam.labeling.manifest`) has one line an image, appended as soon as its files are in place,
so that a killed run resumes where it stopped. ``plan.json`` says how many images the run is about.
A lock (:mod:`adcam.labeling.locks`) keeps a second run out while the first one works. Shards
(:mod:`adcam.labeling.shards`) work in the folder at the same time, each with a manifest, a plan and
a lock of its own in ``shards/``, until they are merged.

Two runs of one command, uninterrupted or resumed, whole or divided and merged, write the same bytes
into ``config.json``, ``plan.json``, ``masks/`` and ``maps/``, and the same ``manifest.jsonl`` but
for ``seconds``, the last key of each line.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adcam.data.converted import read_palette
from adcam.data.png import voc_palette
from adcam.errors import AdcamError
from adcam.files import (
    file_of_id,
    hash_bytes,
    hash_file,
    parse_json,
    read_json,
    refuse_links,
    to_plain,
    write_json,
    write_new,
)
from adcam.labeling.locks import LOCK_NAME, FolderLock, is_held
from adcam.labeling.manifest import (
    Entry,
    Manifest,
    check_entry,
    read_entry,
    read_manifest,
    read_manifest_table,
)
from adcam.labeling.shards import SHARDS_DIR, WHOLE, Shard, find_shards
from adcam.remote_files import find_size, is_url, read_part
from adcam.structures import ClassSet

if TYPE_CHECKING:
    from adcam.data.dataset import Record
    from adcam.labeling.steps import Task

CONFIG_NAME = "config.json"
MANIFEST_NAME = "manifest.jsonl"
PLAN_NAME = "plan.json"
TABLE_NAME = "manifest.parquet"
MASK_DIR = "masks"
MAPS_DIR = "maps"
MASK, MAPS = "mask", "maps"

REPORT_DIR = "report"
"""The folder of a run's report in its output folder."""

_NAMES = (
    *(CONFIG_NAME, MANIFEST_NAME, PLAN_NAME, LOCK_NAME),
    *(MASK_DIR, MAPS_DIR, SHARDS_DIR, REPORT_DIR),
)


def masks_folder(folder: str | Path) -> Path:
    """Return the folder that holds the masks: of ``adcam generate``'s output, ``masks`` in it."""
    path = Path(folder)
    return path / MASK_DIR if (path / MASK_DIR).is_dir() else path


def maps_folder(folder: str | Path) -> Path:
    """Return the folder that holds the maps: of ``adcam generate``'s output, ``maps`` in it."""
    path = Path(folder)
    return path / MAPS_DIR if (path / MAPS_DIR).is_dir() else path


def mask_path(folder: Path, img_id: str) -> Path:
    """Return where the mask of an image belongs in an output folder.

    Raises:
        AdcamError: The id, or a symbolic link inside the folder, leads out of the folder.
    """
    return refuse_links(folder, file_of_id(folder / MASK_DIR, img_id, ".png"))


def result_files(folder: Path, img_id: str) -> dict[str, Path]:
    """Return where mask and maps of an image belong, by the manifest key that holds their hash.

    Raises:
        AdcamError: The id, or a symbolic link inside the folder, leads out of the folder.
    """
    maps = refuse_links(folder, file_of_id(folder / MAPS_DIR, img_id, ".npz"))
    return {"mask": mask_path(folder, img_id), "maps": maps}


def describe_files(files: Mapping[str, Path]) -> dict[str, Any]:
    """Describe the files of an image, of which some may be missing, for its manifest entry."""
    there = {key: path.read_bytes() for key, path in files.items() if path.is_file()}
    return describe_contents(there)


def describe_contents(contents: Mapping[str, bytes]) -> dict[str, Any]:
    """Describe the files of an image by what is in them: hashes and sizes in bytes.

    Args:
        contents: ``"mask"`` and, where there are maps, ``"maps"``.
    """
    described: dict[str, Any] = {}
    for key in (MASK, MAPS):
        content = contents.get(key)
        described[key] = None if content is None else hash_bytes(content)
        described[f"{key}_bytes"] = None if content is None else len(content)
    return described


def require_folder(folder: Path) -> None:
    """Raise if somebody has removed the output folder, instead of making it again.

    Raises:
        FileNotFoundError: It is not there.
    """
    if not folder.is_dir():
        reason = "the output folder was removed while a run was working in it"
        raise FileNotFoundError(errno.ENOENT, reason, str(folder))


class OutputFolder:
    """A folder of results with its configuration and manifest, held by this process alone.

    A shard holds its part of the folder alone, and shares the rest with the other shards
    (:mod:`adcam.labeling.shards`). A run over the whole finds what shards have done before, and in
    the end has one manifest of everything.

    Example:
        with OutputFolder("out", config) as folder:
            if not folder.is_done("dog", {"classes": ["dog"]}):
                ...

    Args:
        path: The folder; it need not exist.
        config: Everything that changes the bytes of the results, JSON-serialisable; ``None`` takes
            the folder as it is, which must hold a run.
        overwrite: Whether to start over: what the manifests list is removed, and nothing else.
        shard: The part of the data set that this process works on.

    Raises:
        AdcamError: Another process works in the folder, or the folder holds a run with another
            configuration, a damaged manifest, masks that no manifest lists, or symbolic links in
            places that are written to.
        OSError: The folder cannot be written to.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any] | None,
        *,
        overwrite: bool = False,
        shard: Shard = WHOLE,
    ) -> None:
        self.path = Path(path)
        self.shard = shard
        if overwrite:
            refuse_part(self.path, shard)
        if config is not None:
            make_folder(self.path)
        elif _read_config(self.path) is None:
            raise AdcamError(f"{self.path} holds no run: there is no {CONFIG_NAME} in it")
        for name in _NAMES:
            refuse_links(self.path, self.path / name / "x")
        self._index: dict[str, int] = {}
        self._others: list[Manifest] = []
        self._locks: list[FolderLock] = []
        try:
            self._locks = take_locks(self.path, self.shard)
            self._open(None if config is None else to_plain(config), overwrite)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes work in the folder."""
        for manifest in (*self._others, *([self._manifest] if hasattr(self, "_manifest") else [])):
            manifest.close()
        while self._locks:
            self._locks.pop().release()

    def _open(self, config: Mapping[str, Any] | None, overwrite: bool) -> None:
        # In this order: another shard may be writing its configuration and first masks just now.
        has_files = self._find_files()
        found = _read_config(self.path)
        if found is None and has_files:
            raise AdcamError(
                f"{has_files} holds files, but {self.path} has no {CONFIG_NAME} that says where "
                "they come from; take another folder"
            )
        if found is not None and overwrite:
            self._remove_run()
        elif found is not None and config is not None:
            check_config(self.path, found, config, self.shard)
        if self.shard.is_whole:  # the temporaries of other shards are in use
            self._remove_temporaries()
        if config is not None and found is None:
            self._write_new_config(config)
        elif config is not None and overwrite:
            write_json(self.path / CONFIG_NAME, config, sort_keys=True)
        self._manifest = Manifest(manifest_path(self.path, self.shard))
        table = self.path / TABLE_NAME
        if table.is_file() and not (self.path / MANIFEST_NAME).is_file() and self.shard.is_whole:
            self._manifest.rewrite(read_manifest_table(table))
        if config is not None:
            table.unlink(missing_ok=True)  # it will not know what this run adds
            self._manifest.open()

    def _write_new_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration; one that another shard has just written must be the same."""
        if not write_new(self.path / CONFIG_NAME, encode_config(config)):
            check_config(self.path, _read_config(self.path) or {}, config, self.shard)

    def start(self, img_ids: Sequence[str], *, window: int = 1) -> list[int]:
        """Say which images the run is about, and find what was done of them before.

        Args:
            img_ids: The ids of all images, in the order of the data set.
            window: How many images in a row are computed together, in batches whose size can change
                the last bit of a result. A shard owns such a window as a whole, by the id of its
                first image.

        Returns:
            Indices of the images that this process is to work on, ascending.
        """
        owned = self.shard.find_owned(img_ids, window)
        self._index = {img_ids[i]: i for i in owned}
        self._others = self._find_others()
        plan = make_plan(img_ids, len(owned))
        path = plan_path(self.path, self.shard)
        if not path.is_file() or read_json(path) != plan:
            if not self.shard.is_whole:
                self.finish(self._index)
            write_json(path, plan)
        return owned

    def _find_others(self) -> list[Manifest]:
        """Manifests that shards, a run over the whole, or another division have left here."""
        shards = find_shards(self.path, ".jsonl")
        if self.shard.is_whole:
            return [Manifest(shard.file(self.path, ".jsonl")) for shard in shards]
        # Shards of this division have none of this one's images.
        paths = [s.file(self.path, ".jsonl") for s in shards if s.count != self.shard.count]
        return [Manifest(p, self._index.__contains__) for p in (self.path / MANIFEST_NAME, *paths)]

    @property
    def was_killed(self) -> bool:
        """Whether the process that worked here before this one was killed, perhaps by an image."""
        return self._locks[-1].was_killed

    def note(self, **values: Any) -> None:
        """Add to what this process says of itself while it works here, for ``adcam status``."""
        self._locks[-1].note(values)

    @property
    def num_lines(self) -> int:
        """Lines in the manifest of this process, older ones of an image included."""
        return self._manifest.num_lines

    def mask_path(self, img_id: str) -> Path:
        """Return where the mask of an image belongs (:func:`mask_path`)."""
        return mask_path(self.path, img_id)

    def __contains__(self, img_id: str) -> bool:
        return img_id in self._manifest or any(img_id in other for other in self._others)

    def __getitem__(self, img_id: str) -> Entry:
        """Return the newest entry of an image (:func:`adcam.labeling.manifest.read_entry`).

        Raises:
            KeyError: No manifest lists it.
        """
        entry = read_entry((self._manifest, *self._others), img_id)
        return {key: value for key, value in entry.items() if key != "index"}

    def is_done(
        self, img_id: str, expected: Entry, files: Mapping[str, Path] | None = None
    ) -> bool:
        """Tell whether an image needs no work.

        Args:
            img_id: The image.
            expected: Keys that the entry must hold with these values.
            files: Files whose hash the entry holds, by key; an entry without the hash has no such
                file. By default its mask and maps.

        Returns:
            True if the entry is ``"ok"``, agrees with ``expected``, and the files it lists are
            there with the hashes it states.
        """
        if img_id not in self:
            return False
        entry = self[img_id]
        if entry["status"] != "ok" or any(entry.get(k) != v for k, v in expected.items()):
            return False
        files = result_files(self.path, img_id) if files is None else files
        return not any(find_changes(entry, files))

    def append(self, entry: Entry) -> None:
        """Add an entry, handed to the operating system before this returns."""
        self._manifest.append(self._numbered(entry))

    def _numbered(self, entry: Entry) -> Entry:
        """An entry as it stands in the manifest of a shard: with the image's place, to merge by."""
        if self.shard.is_whole or entry["id"] not in self._index:
            return entry
        return {"index": self._index[entry["id"]], **entry}

    def finish(self, order: Iterable[str], *, lost_workers: bool = False) -> None:
        """Rewrite the manifest: one line an image, in this order, images of earlier runs last.

        The manifests of shards become part of the one of a run over the whole.

        Args:
            order: The ids of the images.
            lost_workers: Whether processes of the run died, which may have left files half-written:
                all folders are searched for them then.
        """
        known = [img_id for img_id in order if img_id in self]
        mine = {img_id for m in (self._manifest, *self._others) for img_id in m}
        others = sorted(mine - set(known))
        self._manifest.rewrite(self._numbered(self[img_id]) for img_id in (*known, *others))
        if self.shard.is_whole:
            for other in self._others:
                other.close()
            self._others = []
            _remove_shard_files(self.path)
            if lost_workers:
                self._remove_temporaries()

    def join(self, order: Iterable[str]) -> None:
        """Make one manifest of those of all shards, in this order (:meth:`finish`)."""
        self._others = self._find_others()
        self.finish(order, lost_workers=True)  # of a shard's workers nobody knows

    def _find_files(self) -> Path | None:
        """The first of the folders for results that holds any."""
        folders = (self.path / MASK_DIR, self.path / MAPS_DIR)
        return next((f for f in folders if any(path.is_file() for path in f.rglob("*"))), None)

    def _remove_run(self) -> None:
        main, table = self.path / MANIFEST_NAME, self.path / TABLE_NAME
        if table.is_file() and not main.is_file():
            for entry in read_manifest_table(table):
                self._remove_results(entry)
        shards = [shard.file(self.path, ".jsonl") for shard in find_shards(self.path, ".jsonl")]
        for manifest in (main, *shards):
            if not manifest.is_file():
                continue
            for line in manifest.read_bytes().splitlines():
                with suppress(AdcamError):
                    self._remove_results(parse_json(line, MANIFEST_NAME))
            manifest.unlink()
        _remove_shard_files(self.path)
        for name in (PLAN_NAME, TABLE_NAME):
            (self.path / name).unlink(missing_ok=True)

    def _remove_results(self, entry: Any) -> None:
        """Remove the files of an entry; one that names no file of this folder lists nothing."""
        with suppress(AdcamError):
            img_id = check_entry(entry, MANIFEST_NAME)["id"]
            for path in result_files(self.path, img_id).values():
                path.unlink(missing_ok=True)

    def _remove_temporaries(self) -> None:
        places = ("", f"{SHARDS_DIR}/", f"{MASK_DIR}/**/", f"{MAPS_DIR}/**/")
        remove_temporaries(self.path, *places)


def remove_temporaries(folder: Path, *places: str) -> None:
    """Remove what a killed process left half-written (:mod:`adcam.files`).

    Args:
        folder: A folder that nobody else works in.
        places: The folders in it to look into, each as the start of a pattern: ``"data/"``, or
            ``"masks/**/"`` with all folders below; ``""`` for the folder itself.
    """
    for place in places:
        for path in folder.glob(f"{place}.adcam-*.tmp"):
            path.unlink(missing_ok=True)


def take_locks(folder: Path, shard: Shard) -> list[FolderLock]:
    """Hold a folder, or a shard's part of it, alone.

    Args:
        folder: The folder, which exists.
        shard: The part of the data set that this process works on.

    Returns:
        The locks, to be released last to first; the last one says who works.

    Raises:
        AdcamError: Another process has the folder or the shard, or divides it in another way.
        OSError: A lock cannot be made.
    """
    locks = [FolderLock(folder, shared=not shard.is_whole)]
    if shard.is_whole:
        return locks
    try:
        own = shard.file(folder, ".lock")
        make_folder(own.parent)
        locks.append(FolderLock(folder, f"{SHARDS_DIR}/{own.name}"))
        # Of two that start at once, each sees the other: both end, and neither works.
        for other in find_shards(folder, ".lock"):
            if other.count != shard.count and is_held(other.file(folder, ".lock")):
                raise AdcamError(
                    f"{folder} is divided into {other.count} shards by runs that are at work, not "
                    f"into {shard.count}; wait until they end, or divide it as they do"
                )
    except BaseException:
        while locks:
            locks.pop().release()
        raise
    return locks


def manifest_path(folder: Path, shard: Shard = WHOLE) -> Path:
    """Return the manifest of a shard, or of the whole."""
    return folder / MANIFEST_NAME if shard.is_whole else shard.file(folder, ".jsonl")


def plan_path(folder: Path, shard: Shard) -> Path:
    """Return the file that says what a process is to do: its images, and a hash of all ids."""
    return folder / PLAN_NAME if shard.is_whole else shard.file(folder, ".json")


def make_plan(img_ids: Sequence[str], owned: int) -> dict[str, Any]:
    """Say what a process is to do: the images of the data set, and how many of them are its own."""
    digest = hashlib.sha256()
    for img_id in img_ids:
        digest.update(img_id.encode("utf-8", "surrogatepass") + b"\0")
    return {"images": len(img_ids), "ids": digest.hexdigest(), "owned": owned}


def check_plan(plan: dict[str, Any], where: str | Path) -> dict[str, Any]:
    """Return a plan (:func:`make_plan`) as it was read, if it is one.

    Raises:
        AdcamError: It is none; the message names the file.
    """
    if not all(isinstance(plan.get(key), int) for key in ("images", "owned")):
        raise AdcamError(f"{where}: not the plan of a run: {json.dumps(plan):.80}")
    return {**plan, "ids": str(plan.get("ids"))}


def _remove_shard_files(folder: Path) -> None:
    for suffix in (".jsonl", ".json", ".lock"):
        for shard in find_shards(folder, suffix):
            shard.file(folder, suffix).unlink(missing_ok=True)
    with suppress(OSError):  # it is not there, or holds files of somebody else
        (folder / SHARDS_DIR).rmdir()


@dataclass(frozen=True, eq=False)
class OutputRecord:
    """What an output folder says of its results.

    Attributes:
        path: The output folder, with ``config.json`` and ``manifest.jsonl`` in it.
        config: The content of ``config.json``.
        class_set: Names, mask values and colours of the classes.
        entries: The newest manifest line of each image by image id, in the order of the manifest.
    """

    path: Path
    config: Mapping[str, Any]
    class_set: ClassSet
    entries: Mapping[str, Entry]

    @cached_property
    def image_paths(self) -> dict[str, Path]:
        """The image file of each image id; it may have been moved since."""
        # Paths in the manifest are relative to the folder itself, not to a link to it.
        folder = self.path.resolve()
        return {
            img_id: Path(os.path.normpath(folder / entry["image"]))
            for img_id, entry in self.entries.items()
            if isinstance(entry.get("image"), str)
        }


def read_output_folder(path: str | Path) -> OutputRecord | None:
    """Read what an output folder of this project says of its results.

    Args:
        path: The folder, or the ``masks`` or ``maps`` folder in it.

    Returns:
        The record; ``None`` if the folder was not written by this project.

    Raises:
        AdcamError: ``config.json`` or ``manifest.jsonl`` is damaged, or shards are not merged.
    """
    folder = Path(path)
    if folder.name in (MASK_DIR, MAPS_DIR) and not (folder / CONFIG_NAME).is_file():
        folder = folder.parent
    if not (folder / CONFIG_NAME).is_file():
        return None
    if find_shards(folder, ".jsonl"):
        raise AdcamError(f"{folder} holds shards that are not joined: run `adcam merge {folder}`")
    if not (folder / MANIFEST_NAME).is_file():
        return None
    config = read_json(folder / CONFIG_NAME, what="the configuration of an output folder")
    if "adcam" not in config:
        return None
    entries = {entry["id"]: entry for _, _, entry in read_manifest(folder / MANIFEST_NAME)}
    return OutputRecord(folder, config, _read_classes(folder, config, entries), entries)


def describe_image(image: Record | Task, root: str) -> str:
    """Say where an image is, as a manifest does: its path relative to the output folder.

    An image inside a packed file is named behind ``#``; URLs stay as they are.

    Args:
        image: The image.
        root: The output folder, free of symbolic links; ``"/"`` for one behind a URL.
    """
    packed = image.packed
    file = image.img_path if packed is None else packed.file
    # Seen from behind a URL, a path of this machine has no other form than the absolute one.
    top = "/" if root == "/" and not is_url(file) else ""
    text = str(file) if is_url(file) else f"{top}{relative_path(Path(file), root)}"
    return text if packed is None or not packed.name else f"{text}#{packed.name}"


def relative_path(path: Path, folder: str) -> str:
    """Return the path of a file relative to the output folder, free of symbolic links.

    Args:
        path: The file, which need not be there.
        folder: The output folder, free of symbolic links (``os.path.realpath``).
    """
    try:
        real = os.path.realpath(path)
    except ValueError:  # a NUL in the name
        real = os.path.normpath(Path.cwd() / path)
    return Path(os.path.relpath(real, folder)).as_posix()


def encode_config(config: Mapping[str, Any]) -> bytes:
    """Encode the configuration of a folder as it stands in ``config.json``."""
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def check_config(
    folder: str | Path, found: Mapping[str, Any], wanted: Mapping[str, Any], shard: Shard
) -> None:
    """Refuse a folder that holds a run with another configuration than is asked for.

    Raises:
        AdcamError: The two differ; the message lists every difference.
    """
    if differences := diff_configs(found, wanted):
        raise AdcamError(
            f"{folder} holds a run with another configuration (found -> asked for):\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nTake another folder"
            + (", or start this one over with --overwrite." if shard.is_whole else ".")
        )


def refuse_part(folder: str | Path, shard: Shard) -> None:
    """Refuse to start a folder over for one shard, of which others may work in it.

    Raises:
        AdcamError: The shard is not the whole data set.
    """
    if not shard.is_whole:
        raise AdcamError(
            f"--overwrite would remove what other shards have made in {folder}; remove the folder "
            "yourself, or take another one"
        )


def diff_configs(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """List the differences of two configurations, one line a key.

    Example:
        >>> diff_configs({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": None})
        ['a.c: 2 -> 3', 'd: (absent) -> null']
    """
    old, new = dict(_flatten(found)), dict(_flatten(wanted))
    return [
        f"{key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)


def make_folder(path: Path) -> None:
    """Make an output folder, if it is not there.

    Raises:
        OSError: It cannot be made; the message names it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot write into the folder {path} ({error.strerror})"
        raise OSError(error.errno, reason, str(path)) from error


def _read_config(folder: Path) -> dict[str, Any] | None:
    path = folder / CONFIG_NAME
    if not path.is_file():
        return None
    with suppress(AdcamError):
        found: dict[str, Any] = read_json(path)
        if "adcam" in found:
            return found
    raise AdcamError(f"{path} was not written by `adcam generate`; take another folder")


def find_changes(
    entry: Entry, files: Mapping[str, Path], *, by_size: bool = False
) -> Iterator[str]:
    """Compare the files of an image with the sizes and hashes that its entry states.

    Args:
        entry: The entry; a file whose hash it does not state may be anything.
        files: The files by key.
        by_size: As for :func:`find_change`.

    Yields:
        What has happened to each file that is not as it was: ``"the mask is missing"``, …
    """
    for key, path in files.items():
        if (digest := entry.get(key)) is not None:
            change = find_change(path, digest, entry.get(f"{key}_bytes"), by_size=by_size)
            if change is not None:
                yield f"the {name_file(key)} {change}"


def find_change(path: str | Path, digest: Any, size: Any, *, by_size: bool = False) -> str | None:
    """Compare a file, of this machine or behind a URL, with what is stated of it.

    Args:
        path: The file.
        digest: Its hash; ``None`` where it may be any.
        size: Its size in bytes; ``None`` where it may be any.
        by_size: Whether the size alone is compared, which reads nothing.

    Returns:
        What has happened to it, such as ``"has changed"``; ``None`` if nothing has.
    """
    if not is_url(path) and Path(path).is_symlink():
        return "is a symbolic link"
    if (found := find_size(path)) is None:
        return "is missing"
    if size is not None and str(found) != str(size):
        return f"has {found} bytes instead of {size}"
    if by_size or digest is None:
        return None
    found_digest = hash_bytes(read_part(path)) if is_url(path) else hash_file(path)
    return None if found_digest == digest else "has changed"


def name_file(key: str) -> str:
    """Name what a key of an entry stands for, in a message."""
    return "maps file" if key == MAPS else key.replace("_", " ")


def _read_classes(
    folder: Path, config: Mapping[str, Any], entries: Mapping[str, Entry]
) -> ClassSet:
    labeler = config.get("labeler")
    labeler = labeler if isinstance(labeler, Mapping) else {}
    classes: Any = labeler.get("classes")
    values: Any = labeler.get("mask_values")
    if not (_is_list_of(classes, str) and _is_list_of(values, int)):
        raise AdcamError(f"{folder / CONFIG_NAME} does not say the classes and their mask values")
    masks = (mask_path(folder, i) for i, entry in entries.items() if entry.get("mask"))
    palette = next((p for mask in masks if (p := read_palette(mask)) is not None), voc_palette())
    return ClassSet(folder.resolve().name, tuple(classes), tuple(values), palette)


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
