"""The record of a run in its folder: what was made, from what, and what is left to do.

A folder holds one run. ``config.json`` says everything that changes the bytes of its masks and
maps; a run with another configuration is refused. ``manifest.jsonl`` has one line an image,
appended as soon as its files are in place, so that a killed run goes on where it stopped.

Two uninterrupted or resumed runs of one command write the same bytes into ``config.json``,
``masks/`` and ``maps/``, and the same ``manifest.jsonl`` but for ``seconds``, the last key of each
line.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from adcam.errors import AdcamError
from adcam.files import hash_or_none, write_bytes, write_text

CONFIG_NAME = "config.json"
MANIFEST_NAME = "manifest.jsonl"
MASK_DIR = "masks"
MAPS_DIR = "maps"

Entry: TypeAlias = Mapping[str, Any]
"""A line of the manifest: ``id``, ``image`` (relative to the folder), ``status`` (``"ok"`` or
``"failed"``) and, for ``"ok"``, ``classes``, ``labels``, ``rule``, ``threshold``, ``chosen_on``,
``ori_hw``, ``mask`` and ``maps`` (hashes, ``None`` where there are no maps), else ``error``; then
``config`` and ``weights`` (hashes), and ``seconds``."""


def masks_folder(folder: str | Path) -> Path:
    """The folder of masks; of ``adcam generate``'s output, the ``masks`` in it."""
    path = Path(folder)
    return path / MASK_DIR if (path / MASK_DIR).is_dir() else path


class RunFolder:
    """A folder of generated masks with its configuration and manifest.

    Args:
        path: The folder; it need not exist.
        config: Everything that changes the bytes of the results, JSON-serialisable.
        overwrite: Start anew: what the manifest lists is removed, and nothing else.

    Raises:
        AdcamError: The folder holds a run with another configuration, a damaged manifest, or masks
            that no manifest lists.
        OSError: The folder cannot be written to.
    """

    def __init__(
        self, path: str | Path, config: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        self.path = Path(path)
        self._manifest = self.path / MANIFEST_NAME
        # Byte offset and length of each image's newest line: flat in what the lines hold.
        self._lines: dict[str, tuple[int, int]] = {}
        found = self._read_config()
        if found is None:
            self._refuse_strangers()
        elif overwrite:
            self._remove_run()
        else:
            self._check_config(found, config)
            self._read_manifest()
        self._remove_temporaries()
        if found is None or overwrite:
            text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            write_text(self.path / CONFIG_NAME, text)
        self._manifest.touch()

    def mask_path(self, img_id: str) -> Path:
        """Where the mask of an image belongs.

        Raises:
            AdcamError: The id would leave the folder.
        """
        return self.path / MASK_DIR / f"{_check_id(img_id)}.png"

    def maps_path(self, img_id: str) -> Path:
        """Where the maps of an image belong.

        Raises:
            AdcamError: The id would leave the folder.
        """
        return self.path / MAPS_DIR / f"{_check_id(img_id)}.npz"

    def __contains__(self, img_id: str) -> bool:
        return img_id in self._lines

    def __getitem__(self, img_id: str) -> Entry:
        """The newest entry of an image.

        Raises:
            KeyError: The manifest does not know it.
        """
        offset, length = self._lines[img_id]
        with self._manifest.open("rb") as file:
            file.seek(offset)
            entry: Entry = json.loads(file.read(length))
        return entry

    def is_done(self, img_id: str, expected: Entry) -> bool:
        """Whether an image needs no work.

        Args:
            img_id: The image.
            expected: Keys that the entry must hold with these values.

        Returns:
            True if the entry is ``"ok"``, agrees with ``expected``, and the files it lists are
            there with the hashes it states.
        """
        if img_id not in self:
            return False
        entry = self[img_id]
        return (
            entry["status"] == "ok"
            and all(entry[key] == value for key, value in expected.items())
            and hash_or_none(self.mask_path(img_id)) == entry["mask"]
            and (entry["maps"] is None or hash_or_none(self.maps_path(img_id)) == entry["maps"])
        )

    def append(self, entry: Entry) -> None:
        """Add an entry, handed to the operating system before this returns."""
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
        with self._manifest.open("ab") as file:
            self._lines[entry["id"]] = (file.tell(), len(line))
            file.write(line)

    def finish(self, order: Iterable[str]) -> None:
        """Rewrite the manifest: one line an image, in this order, images of earlier runs last."""
        known = [img_id for img_id in order if img_id in self]
        others = sorted(self._lines.keys() - set(known))
        text = io.BytesIO()
        lines = {}
        with self._manifest.open("rb") as file:
            for img_id in (*known, *others):
                offset, length = self._lines[img_id]
                file.seek(offset)
                lines[img_id] = (text.tell(), length)
                text.write(file.read(length))
        write_bytes(self._manifest, text.getvalue())
        self._lines = lines

    def _read_config(self) -> dict[str, Any] | None:
        path = self.path / CONFIG_NAME
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text("utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or "adcam" not in found:
            raise AdcamError(f"{path} was not written by `adcam generate`; take another folder")
        return found

    def _check_config(self, found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        if differences := diff_configs(found, json.loads(json.dumps(config))):
            raise AdcamError(
                f"{self.path} holds a run with another configuration (found -> asked for):\n"
                + "\n".join(f"  {line}" for line in differences)
                + "\nTake another folder, or start this one anew with --overwrite."
            )

    def _read_manifest(self) -> None:
        """Index the lines; a last line torn by a kill is cut off."""
        if not self._manifest.is_file():
            return
        with self._manifest.open("r+b") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    file.truncate(offset)
                    break
                img_id = _id_of_line(line)
                if img_id is None:
                    raise AdcamError(
                        f"{self._manifest}, line {number}: not an entry of a manifest; "
                        "--overwrite starts anew"
                    )
                self._lines[img_id] = (offset, len(line))
                offset += len(line)

    def _refuse_strangers(self) -> None:
        for folder in (MASK_DIR, MAPS_DIR):
            if next(_files_below(self.path / folder), None) is not None:
                raise AdcamError(
                    f"{self.path / folder} holds files, but {self.path} has no {CONFIG_NAME} that "
                    "says where they come from; take another folder"
                )

    def _remove_run(self) -> None:
        if self._manifest.is_file():
            for line in self._manifest.read_bytes().splitlines():
                if (img_id := _id_of_line(line)) is not None:
                    self.mask_path(img_id).unlink(missing_ok=True)
                    self.maps_path(img_id).unlink(missing_ok=True)
        self._manifest.unlink(missing_ok=True)

    def _remove_temporaries(self) -> None:
        """What a killed process left half-written (:mod:`adcam.files`)."""
        for pattern in ("", f"{MASK_DIR}/**/", f"{MAPS_DIR}/**/"):
            for path in self.path.glob(f"{pattern}.adcam-*.tmp"):
                path.unlink(missing_ok=True)


def diff_configs(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Differences of two configurations, one line a key.

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


def _id_of_line(line: bytes) -> str | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    img_id = entry.get("id") if isinstance(entry, dict) else None
    return img_id if isinstance(img_id, str) else None


def _files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _check_id(img_id: str) -> str:
    path = PurePosixPath(img_id)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise AdcamError(f"image id {img_id!r} would be written outside the output folder")
    return img_id
