"""An output folder: what was made, from what, what is left to do, and who is working in it.

A folder holds one run. ``config.json`` says everything that changes the bytes of its masks and
maps; a run with another configuration is refused. ``manifest.jsonl`` has one line an image,
appended as soon as its files are in place, so that a killed run resumes where it stopped. A lock
keeps a second run out while the first one works.

Two uninterrupted or resumed runs of one command write the same bytes into ``config.json``,
``masks/`` and ``maps/``, and the same ``manifest.jsonl`` but for ``seconds``, the last key of each
line.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from PIL import Image

from adcam.data.png import voc_palette
from adcam.errors import AdcamError
from adcam.files import (
    check_img_id,
    file_of_id,
    hash_or_none,
    name_in_error,
    parse_json,
    read_json,
    replacing,
    to_plain,
    write_json,
)
from adcam.structures import ClassSet

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONFIG_NAME = "config.json"
MANIFEST_NAME = "manifest.jsonl"
LOCK_NAME = ".adcam-lock"
MASK_DIR = "masks"
MAPS_DIR = "maps"

Entry: TypeAlias = Mapping[str, Any]
"""A line of the manifest: ``id``, ``image`` (relative to the folder), ``status`` (``"ok"`` or
``"failed"``) and, for ``"ok"``, ``classes``, ``labels``, ``rule``, ``threshold``, ``chosen_on``,
``ori_hw``, ``mask`` and ``maps`` (hashes, ``None`` where there are no maps), and ``note`` where no
class was found, else ``error``; then ``config`` and ``weights`` (hashes), and ``seconds``."""


def masks_folder(folder: str | Path) -> Path:
    """Return the folder that holds the masks: of ``adcam generate``'s output, ``masks`` in it."""
    path = Path(folder)
    return path / MASK_DIR if (path / MASK_DIR).is_dir() else path


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


def refuse_links(folder: Path, path: Path) -> Path:
    """Return a path below a folder, unless a symbolic link stands on the way to it.

    Raises:
        AdcamError: One does, so that what is written would end up in another place.
    """
    for parent in path.relative_to(folder).parents:
        if parent.name and (folder / parent).is_symlink():
            raise AdcamError(
                f"{folder / parent} is a symbolic link; nothing is written through links inside "
                "an output folder. Remove it, or take another folder"
            )
    return path


class OutputFolder:
    """A folder of results with its configuration and manifest, held by this process alone.

    Example:
        with OutputFolder("out", config) as folder:
            if not folder.is_done("dog", {"classes": ["dog"]}):
                ...

    Args:
        path: The folder; it need not exist.
        config: Everything that changes the bytes of the results, JSON-serialisable.
        overwrite: Whether to start over: what the manifest lists is removed, and nothing else.

    Raises:
        AdcamError: Another process works in the folder, or the folder holds a run with another
            configuration, a damaged manifest, masks that no manifest lists, or symbolic links in
            places that are written to.
        OSError: The folder cannot be written to.
    """

    def __init__(
        self, path: str | Path, config: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.path = Path(path)
        _make_folder(self.path)
        for name in (CONFIG_NAME, MANIFEST_NAME, LOCK_NAME, MASK_DIR, MAPS_DIR):
            refuse_links(self.path, self.path / name / "x")
        self._manifest = self.path / MANIFEST_NAME
        # Byte offset and length of each image's newest line: flat in what the lines hold.
        self._lines: dict[str, tuple[int, int]] = {}
        self._lock = FolderLock(self.path)
        try:
            self._open(to_plain(config), overwrite)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes work in the folder."""
        self._lock.release()

    def _open(self, config: Mapping[str, Any], overwrite: bool) -> None:
        found = _read_config(self.path)
        if found is None:
            self._refuse_unknown_files()
        elif overwrite:
            self._remove_run()
        else:
            self._check_config(found, config)
            self._index_manifest()
        self._remove_temporaries()
        if found is None or overwrite:
            write_json(self.path / CONFIG_NAME, config, sort_keys=True)
        self._manifest.touch()

    def mask_path(self, img_id: str) -> Path:
        """Return where the mask of an image belongs (:func:`mask_path`)."""
        return mask_path(self.path, img_id)

    def __contains__(self, img_id: str) -> bool:
        return img_id in self._lines

    def __getitem__(self, img_id: str) -> Entry:
        """Return the newest entry of an image.

        Raises:
            KeyError: The manifest does not list it.
        """
        offset, length = self._lines[img_id]
        with self._manifest.open("rb") as file:
            file.seek(offset)
            entry: Entry = json.loads(file.read(length))
        return entry

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
        return not _find_changes(entry, result_files(self.path, img_id) if files is None else files)

    def append(self, entry: Entry) -> None:
        """Add an entry, handed to the operating system before this returns."""
        line = _encode_line(entry)
        try:
            with self._manifest.open("ab") as file:
                self._lines[entry["id"]] = (file.tell(), len(line))
                file.write(line)
        except OSError as err:
            raise name_in_error(err, self._manifest) from err

    def finish(self, order: Iterable[str]) -> None:
        """Rewrite the manifest: one line an image, in this order, images of earlier runs last."""
        known = [img_id for img_id in order if img_id in self]
        others = sorted(self._lines.keys() - set(known))
        lines = {}
        with replacing(self._manifest) as ordered, self._manifest.open("rb") as file:
            for img_id in (*known, *others):
                offset, length = self._lines[img_id]
                file.seek(offset)
                lines[img_id] = (ordered.tell(), length)
                ordered.write(file.read(length))
        self._lines = lines

    def _check_config(self, found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        if differences := diff_configs(found, config):
            raise AdcamError(
                f"{self.path} holds a run with another configuration (found -> asked for):\n"
                + "\n".join(f"  {line}" for line in differences)
                + "\nTake another folder, or start this one over with --overwrite."
            )

    def _index_manifest(self) -> None:
        """Index the lines; a last line torn by a kill is cut off."""
        if not self._manifest.is_file():
            return
        end = 0
        for offset, length, entry in _read_manifest(self._manifest):
            self._lines[entry["id"]] = (offset, length)
            end = offset + length
        if self._manifest.stat().st_size > end:
            os.truncate(self._manifest, end)

    def _refuse_unknown_files(self) -> None:
        for folder in (MASK_DIR, MAPS_DIR):
            if any(path.is_file() for path in (self.path / folder).rglob("*")):
                raise AdcamError(
                    f"{self.path / folder} holds files, but {self.path} has no {CONFIG_NAME} that "
                    "says where they come from; take another folder"
                )

    def _remove_run(self) -> None:
        if self._manifest.is_file():
            for line in self._manifest.read_bytes().splitlines():
                # A line that names no file of this folder lists nothing that could be removed.
                with suppress(AdcamError):
                    img_id = _check_entry(parse_json(line, MANIFEST_NAME), MANIFEST_NAME)["id"]
                    for path in result_files(self.path, img_id).values():
                        path.unlink(missing_ok=True)
        self._manifest.unlink(missing_ok=True)

    def _remove_temporaries(self) -> None:
        """Remove what a killed process left half-written (:mod:`adcam.files`)."""
        for pattern in ("", f"{MASK_DIR}/**/", f"{MAPS_DIR}/**/"):
            for path in self.path.glob(f"{pattern}.adcam-*.tmp"):
                path.unlink(missing_ok=True)


class FolderLock:
    """Keeps other processes out of a folder until it is released or this process ends.

    The lock is ``flock`` on the file ``.adcam-lock``, so that the system gives it back whatever
    ends the process. On shared folders it works as far as the file system passes such locks on
    (NFS version 4 does); where there are none, the folder is not locked.

    Args:
        folder: The folder, which exists.

    Raises:
        AdcamError: Another process has the lock; the message says which.
        OSError: The file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._file: int | None = None
        if fcntl is None:
            return
        while self._file is None:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.read(file, 500).decode("utf-8", "replace") or "another process"
                os.close(file)
                raise AdcamError(
                    f"{folder} is in use by {holder}; wait until it ends, or take another folder"
                ) from error
            except OSError:  # a file system without locks
                os.close(file)
                self._path.unlink(missing_ok=True)
                return
            # The process before may have removed the file after it was opened here.
            if self._is_there(file):
                self._file = file
            else:
                os.close(file)
        started = datetime.now().astimezone().isoformat(" ", "seconds")
        holder = f"process {os.getpid()} on {socket.gethostname()}, started {started}"
        try:
            os.ftruncate(self._file, 0)
            os.write(self._file, holder.encode())
        except OSError as err:
            self.release()
            raise name_in_error(err, self._path) from err

    def _is_there(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file and give the lock back; once is enough, more do no harm."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


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

    @cached_property
    def file_names(self) -> dict[str, str]:
        """The image id of each image with the suffix that its file really has."""
        return {img_id: f"{img_id}{path.suffix}" for img_id, path in self.image_paths.items()}

    def find_changes(self) -> dict[str, str]:
        """Compare every mask and maps file with the hash that the manifest states.

        Returns:
            By image id what happened: ``"the mask is missing"``, ``"the maps file has changed"``, …
            Empty if all files are as they were written.
        """
        changes = {}
        for img_id, entry in self.entries.items():
            if entry["status"] != "ok":
                continue
            if found := _find_changes(entry, result_files(self.path, img_id)):
                changes[img_id] = "; ".join(found)
        return changes


def read_output_folder(path: str | Path) -> OutputRecord | None:
    """Read what an output folder of this project says of its results.

    Args:
        path: The folder, or the ``masks`` or ``maps`` folder in it.

    Returns:
        The record; ``None`` if the folder was not written by this project.

    Raises:
        AdcamError: ``config.json`` or ``manifest.jsonl`` is damaged.
    """
    folder = Path(path)
    if folder.name in (MASK_DIR, MAPS_DIR) and not (folder / CONFIG_NAME).is_file():
        folder = folder.parent
    if not ((folder / CONFIG_NAME).is_file() and (folder / MANIFEST_NAME).is_file()):
        return None
    config = read_json(folder / CONFIG_NAME, what="the configuration of an output folder")
    if "adcam" not in config:
        return None
    entries = {entry["id"]: entry for _, _, entry in _read_manifest(folder / MANIFEST_NAME)}
    return OutputRecord(folder, config, _read_classes(folder, config, entries), entries)


def relative_path(path: Path, folder: str) -> str:
    """Return the path of an image as a manifest states it, relative to the output folder.

    Args:
        path: The image file, which need not be there.
        folder: The output folder, free of symbolic links (``os.path.realpath``).
    """
    try:
        real = os.path.realpath(path)
    except ValueError:  # a NUL in the name
        real = os.path.normpath(Path.cwd() / path)
    return Path(os.path.relpath(real, folder)).as_posix()


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


def _make_folder(path: Path) -> None:
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


def _read_manifest(path: Path) -> Iterator[tuple[int, int, Entry]]:
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
                yield offset, len(line), _check_entry(parse_json(line, where), where)
            except AdcamError as error:
                raise AdcamError(
                    f"{error}. It is not an entry of a manifest; --overwrite starts over"
                ) from error
            offset += len(line)


def _check_entry(entry: dict[str, Any], where: str) -> Entry:
    """Return a line of a manifest if its keys are of the types that readers rely on."""
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


def _encode_line(entry: Entry) -> bytes:
    try:
        return (json.dumps(entry, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a file name that is no UTF-8
        return (json.dumps(entry) + "\n").encode()


def _find_changes(entry: Entry, files: Mapping[str, Path]) -> list[str]:
    changes = []
    for key, path in files.items():
        if (stated := entry.get(key)) is not None and (found := hash_or_none(path)) != stated:
            name = "maps file" if key == "maps" else key.replace("_", " ")
            changes.append(f"the {name} {'is missing' if found is None else 'has changed'}")
    return changes


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
    palette = next((p for mask in masks if (p := _read_palette(mask)) is not None), voc_palette())
    return ClassSet(folder.resolve().name, tuple(classes), tuple(values), palette)


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _read_palette(path: Path) -> tuple[tuple[int, int, int], ...] | None:
    try:
        with Image.open(path, formats=("PNG",)) as img:
            colors = img.getpalette() or []
    except (OSError, ValueError):  # moved, or edited since
        return None
    if len(colors) != 3 * 256:
        return None
    return tuple((colors[i], colors[i + 1], colors[i + 2]) for i in range(0, 3 * 256, 3))
