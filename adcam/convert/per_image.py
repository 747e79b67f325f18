"""One file an image: the loop under every converter, and its output folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from adcam.convert.summary import ClassCounts
from adcam.data.png import read_mask, write_mask
from adcam.errors import AdcamError
from adcam.files import file_of_id, read_json, to_plain, write_json
from adcam.progress import track
from adcam.structures import ClassSet

SETTINGS_NAME = "convert.json"
"""Says how the files of a folder were made, and keeps runs of different settings apart."""

T = TypeVar("T")


@dataclass(frozen=True)
class FileType(Generic[T]):
    """How files of one type are read, written and counted.

    Attributes:
        suffix: The suffix of their names, such as ``".png"``.
        load: Reads a file that an earlier run wrote; raises AdcamError where it is damaged.
        save: Writes a file, atomically.
        count: Adds a file's content to the counts; raises AdcamError where it is not legal.
    """

    suffix: str
    load: Callable[[Path], T]
    save: Callable[[Path, T], None]
    count: Callable[[ClassCounts, str, T], None]


def masks_of(class_set: ClassSet) -> FileType[np.ndarray]:
    """Masks as PNG files with the palette of their classes."""
    return FileType(
        ".png",
        read_mask,
        lambda path, mask: write_mask(path, mask, class_set.palette),
        ClassCounts.add_mask,
    )


@dataclass(frozen=True)
class LoopOptions:
    """How a loop over images runs.

    Attributes:
        settings: Everything that decides what is written; a folder of other settings is refused.
        overwrite: Whether files that are there are made again.
        progress: Whether progress is shown on standard error.
    """

    settings: Mapping[str, Any]
    overwrite: bool
    progress: bool


@dataclass
class LoopSummary:
    """What a loop did.

    Attributes:
        num_images: Number of images that have their file.
        kept: Number of these whose file was there already.
        failed: Why an image has no file, by its id.
    """

    num_images: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def convert_each(
    img_ids: Sequence[str],
    make: Callable[[str], T],
    folder: Path,
    file_type: FileType[T],
    counts: ClassCounts,
    options: LoopOptions,
) -> LoopSummary:
    """Write ``<folder>/<img_id><suffix>`` for every image, or keep the one that is there.

    Args:
        img_ids: The image ids, ascending.
        make: Makes an image's result; AdcamError and OSError are that image's failure.
        folder: The output folder.
        file_type: How results are read, written and counted.
        counts: The counts that all results are added to, kept ones included.
        options: How the loop runs.

    Raises:
        AdcamError: The folder holds files of other settings or unknown origin, or ids are not
            ascending.
        OSError: A file cannot be written.
    """
    if list(img_ids) != sorted(set(img_ids)):
        raise AdcamError("image ids must be ascending and unique")
    paths = {i: file_of_id(folder, i, file_type.suffix) for i in img_ids}
    remove = paths.values() if options.overwrite else None
    _open_folder(folder, file_type.suffix, options.settings, remove)
    summary = LoopSummary()
    for img_id in track(img_ids, "convert", len(img_ids)) if options.progress else img_ids:
        path = paths[img_id]
        result = _load(path, file_type)
        is_new = result is None
        try:
            if result is None:
                result = make(img_id)
            file_type.count(counts, img_id, result)
        except (AdcamError, OSError) as error:
            summary.failed[img_id] = str(error)
            continue
        if is_new:
            file_type.save(path, result)
        summary.num_images += 1
        summary.kept += not is_new
    return summary


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Keep a single output file from being lost.

    Raises:
        AdcamError: One is there and may not be overwritten.
    """
    if not overwrite and (there := [path for path in paths if path.exists()]):
        raise AdcamError(f"{there[0]} is there already; --overwrite replaces it")


def _load(path: Path, file_type: FileType[T]) -> T | None:
    """What an earlier run wrote; ``None`` where there is nothing that can be read."""
    if not path.is_file():
        return None
    try:
        return file_type.load(path)
    except AdcamError:
        return None


def _open_folder(
    folder: Path, suffix: str, settings: Mapping[str, Any], remove: Iterable[Path] | None
) -> None:
    """Refuse files of other settings; with ``remove`` begin by removing these files."""
    path = folder / SETTINGS_NAME
    wanted = to_plain(dict(settings))
    if remove is not None:
        for old in remove:
            old.unlink(missing_ok=True)
    elif path.is_file():
        try:
            found = read_json(path)
        except AdcamError as error:
            raise AdcamError(f"{error}; --overwrite starts over") from error
        if found != wanted:
            raise AdcamError(
                f"{folder} was created with different settings "
                f"({'; '.join(_differences(found, wanted))}); choose another folder, or start over "
                "with --overwrite"
            )
        return
    elif any(path.suffix == suffix for path in folder.rglob("[!.]*")):
        raise AdcamError(
            f"{folder} holds {suffix} files of unknown origin (there is no {SETTINGS_NAME}); "
            "choose another folder, or replace them with --overwrite"
        )
    write_json(path, wanted)


def _differences(found: Any, wanted: Mapping[str, Any]) -> Iterator[str]:
    there = found if isinstance(found, dict) else {}
    for key in sorted({*there, *wanted}):
        if there.get(key) != wanted.get(key):
            yield f"{key}: {there.get(key)!r} there, {wanted.get(key)!r} now"
