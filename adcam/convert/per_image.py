"""One file an image: the loop under every converter, and its output folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from adcam.convert.summary import ClassCounts
from adcam.data.converted import CONVERTED_NAME
from adcam.data.png import read_mask, write_mask
from adcam.errors import AdcamError
from adcam.files import file_of_id, is_file, read_json, to_plain, write_bytes, write_json
from adcam.progress import track
from adcam.structures import ClassSet

T = TypeVar("T")


@dataclass(frozen=True)
class FileType(Generic[T]):
    """How files of one type are read, written and counted.

    Attributes:
        class_set: The classes that they show.
        suffix: The suffix of their names, such as ``".png"``.
        load: Reads a file that an earlier run wrote; raises AdcamError where it is damaged.
        save: Writes a file, atomically.
        count: Adds a file's content to the counts; raises AdcamError where it is not legal.
    """

    class_set: ClassSet
    suffix: str
    load: Callable[[Path], T]
    save: Callable[[Path, T], None]
    count: Callable[[ClassCounts, str, T], None]


def masks_of(class_set: ClassSet) -> FileType[np.ndarray]:
    """Masks as PNG files with the palette of their classes."""
    return FileType(
        class_set,
        ".png",
        read_mask,
        lambda path, mask: write_mask(path, mask, class_set.palette),
        ClassCounts.add_mask,
    )


class EncodedFile(NamedTuple):
    """The bytes of a file, and the classes that it shows."""

    class_ids: tuple[int, ...]
    data: bytes


def encoded_files(
    class_set: ClassSet, suffix: str, read_class_ids: Callable[[Path], tuple[int, ...]]
) -> FileType[EncodedFile]:
    """Files that are encoded before they are written; ``read_class_ids`` reads one again."""
    return FileType(
        class_set,
        suffix,
        lambda path: EncodedFile(read_class_ids(path), path.read_bytes()),
        lambda path, file: write_bytes(path, file.data),
        lambda counts, img_id, file: counts.add_file(img_id, file.class_ids, file.data),
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


def make_each(
    img_ids: Collection[str], make: Callable[[str], T], failed: dict[str, str], progress: bool
) -> Iterator[T]:
    """What ``make`` makes of each image; AdcamError and OSError go to ``failed`` by image id."""
    for img_id in track(img_ids, "convert", len(img_ids)) if progress else img_ids:
        try:
            made = make(img_id)
        except (AdcamError, OSError) as error:
            failed[img_id] = str(error)
        else:
            yield made


def convert_each(
    img_ids: Collection[str],
    make: Callable[[str], T],
    folder: Path,
    file_type: FileType[T],
    options: LoopOptions,
) -> ClassCounts:
    """Write ``<folder>/<img_id><suffix>`` for every image, or keep the one that is there.

    Args:
        img_ids: The image ids, ascending.
        make: Makes an image's result; AdcamError and OSError are that image's failure.
        folder: The output folder.
        file_type: How results are read, written and counted.
        options: How the loop runs.

    Returns:
        The counts of all results and failures, kept results included.

    Raises:
        AdcamError: The folder holds files of other settings or unknown origin, or ids are not
            ascending.
        OSError: A file cannot be written.
    """
    if list(img_ids) != sorted(set(img_ids)):
        raise AdcamError("image ids must be ascending and unique")
    old = _find_old(folder, img_ids, file_type.suffix) if options.overwrite else None
    _open_folder(folder, file_type.suffix, options.settings, old)
    counts = ClassCounts(file_type.class_set)

    def load_or_make(img_id: str) -> tuple[Path, T, bool]:
        path = file_of_id(folder, img_id, file_type.suffix)
        there = _load(path, file_type)
        result = make(img_id) if there is None else there
        file_type.count(counts, img_id, result)
        return path, result, there is None

    found = make_each(img_ids, load_or_make, counts.failed, options.progress)
    for path, result, is_new in found:
        if is_new:
            file_type.save(path, result)
        counts.kept += not is_new
    return counts


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Keep a single output file from being lost.

    Raises:
        AdcamError: It is there and may not be overwritten.
    """
    if not overwrite and path.exists():
        raise AdcamError(f"{path} is there already; --overwrite replaces it")


def _load(path: Path, file_type: FileType[T]) -> T | None:
    """What an earlier run wrote; ``None`` where there is nothing that can be read.

    Raises:
        OSError: No file can have this name.
    """
    if not path.is_file():  # raises where the name is too long
        return None
    try:
        return file_type.load(path)
    except AdcamError:
        return None


def _find_old(folder: Path, img_ids: Iterable[str], suffix: str) -> Iterator[Path]:
    """The files of these images that are there; names that no file can have are left out."""
    for img_id in img_ids:
        with suppress(AdcamError):
            if is_file(path := file_of_id(folder, img_id, suffix)):
                yield path


def _open_folder(
    folder: Path, suffix: str, settings: Mapping[str, Any], remove: Iterable[Path] | None
) -> None:
    """Refuse files of other settings; with ``remove`` begin by removing these files."""
    path = folder / CONVERTED_NAME
    wanted = to_plain(dict(settings))
    if remove is not None:
        for old in remove:
            old.unlink(missing_ok=True)
    elif path.is_file():
        try:
            found = read_json(path)
        except AdcamError as error:
            raise AdcamError(f"{error}; --overwrite starts over") from error
        # Older versions did not write the classes of every converter.
        classes = {key: value for key, value in wanted.items() if key == "mask_values"}
        if {**classes, **found} != wanted:
            raise AdcamError(
                f"{folder} was created with different settings "
                f"({'; '.join(_differences(found, wanted))}); choose another folder, or start over "
                "with --overwrite"
            )
    elif any(path.suffix == suffix for path in folder.rglob("[!.]*")):
        raise AdcamError(
            f"{folder} holds {suffix} files of unknown origin (there is no {CONVERTED_NAME}); "
            "choose another folder, or replace them with --overwrite"
        )
    write_json(path, wanted)


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            yield f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now"
