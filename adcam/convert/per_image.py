"""One file an image: the loop under every converter, and its output folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from adcam.convert.summary import Tally
from adcam.data.png import read_mask, write_mask
from adcam.data.text_tables import check_relative
from adcam.errors import AdcamError
from adcam.files import read_json, to_plain, write_json
from adcam.progress import track
from adcam.structures import ClassSet

SETTINGS_NAME = "convert.json"
"""Says how the files of a folder were made, and keeps runs of different settings apart."""

T = TypeVar("T")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """Files of one kind.

    Attributes:
        suffix: ``".png"``, …
        load: Reads a file that an earlier run wrote; raises ValueError where it is damaged.
        save: Writes one, atomically.
        count: Adds one to a tally; raises ValueError where it is not legal.
    """

    suffix: str
    load: Callable[[Path], T]
    save: Callable[[Path, T], None]
    count: Callable[[Tally, str, T], None]


def masks_of(class_set: ClassSet) -> Kind[np.ndarray]:
    """Masks as palette PNG files."""
    return Kind(
        ".png",
        read_mask,
        lambda path, mask: write_mask(path, mask, class_set.palette),
        Tally.add_mask,
    )


@dataclass
class Done:
    """What a loop did.

    Attributes:
        num_images: Images that have their file.
        kept: Of these, images whose file was there already.
        failed: Reasons by image id.
    """

    num_images: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def convert_each(
    img_ids: Sequence[str],
    make: Callable[[str], T],
    folder: Path,
    kind: Kind[T],
    tally: Tally,
    *,
    settings: Mapping[str, Any],
    overwrite: bool,
    progress: bool,
) -> Done:
    """Write ``<folder>/<img_id><suffix>`` for every image, or keep the one that is there.

    Args:
        img_ids: Images, ascending.
        make: Makes an image's result; ValueError and OSError are that image's failure.
        folder: Output folder.
        kind: How results are read, written and counted.
        tally: Counts of all results, kept ones included.
        settings: All that decides what is written.
        overwrite: Make every file anew.
        progress: Show progress on standard error.

    Raises:
        AdcamError: The folder holds files of other settings or unknown origin, or ids are not
            ascending.
        OSError: A file cannot be written.
    """
    if list(img_ids) != sorted(set(img_ids)):
        raise AdcamError("image ids must be ascending and unique")
    paths = {i: folder / f"{check_relative(folder, i)}{kind.suffix}" for i in img_ids}
    _open_folder(folder, kind.suffix, settings, paths.values() if overwrite else None)
    done = Done()
    for img_id in track(img_ids, "convert", len(img_ids)) if progress else img_ids:
        path = paths[img_id]
        result = _load(path, kind)
        is_new = result is None
        try:
            if result is None:
                result = make(img_id)
            kind.count(tally, img_id, result)
        except (ValueError, OSError) as error:
            done.failed[img_id] = str(error)
            continue
        if is_new:
            kind.save(path, result)
        done.num_images += 1
        done.kept += not is_new
    return done


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Keep a single output file from being lost.

    Raises:
        AdcamError: One is there and may not be overwritten.
    """
    if not overwrite and (there := [path for path in paths if path.exists()]):
        raise AdcamError(f"{there[0]} is there already; --overwrite replaces it")


def _load(path: Path, kind: Kind[T]) -> T | None:
    """What an earlier run wrote; ``None`` where there is nothing that can be read."""
    if not path.is_file():
        return None
    try:
        return kind.load(path)
    except ValueError:
        return None


def _open_folder(
    folder: Path, suffix: str, settings: Mapping[str, Any], remove: Iterable[Path] | None
) -> None:
    """Make sure that what is kept was made alike; with ``remove`` begin by removing these files."""
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
                f"{folder} was made otherwise ({'; '.join(_differences(found, wanted))}); choose "
                "another folder, or start anew with --overwrite"
            )
        return
    elif next(folder.rglob(f"*{suffix}"), None) is not None:
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
