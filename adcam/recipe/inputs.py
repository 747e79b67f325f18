"""What a stage depends on, in hashes: images and labels, masks, and the files of a config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from adcam.data.dataset import ImageDataset
from adcam.files import hash_file, hash_values


def describe_images(images: ImageDataset, *, masks: bool = False) -> dict[str, Any]:
    """Hashes of a data set: ids and labels, boxes, file sizes, and with ``masks`` the true masks.

    The bytes of the photographs are not read, which would take minutes on a large data set: an
    image that is replaced by another has another size.

    Args:
        images: The data set.
        masks: Whether the true masks count, too.

    Raises:
        AdcamError: Files are missing.
    """
    images.check_files(masks=masks)
    classes, records = images.class_set.classes, images.records
    labels = [(r.img_id, [classes[i] for i in r.class_ids or ()]) for r in records]
    description: dict[str, Any] = {
        "images": len(images),
        "labels": hash_values(labels),
        "photographs": hash_values([r.img_path.stat().st_size for r in records]),
    }
    if any(record.boxes for record in records):
        description["boxes"] = hash_values([record.boxes for record in records])
    if any(record.boxes_hw for record in records):
        description["boxes_hw"] = hash_values([record.boxes_hw for record in records])
    if masks:
        hashes = [hash_once(r.mask_path) for r in records if r.mask_path is not None]
        description["masks"] = hash_values(hashes)
    return description


def hash_masks(folder: Path, img_ids: Iterable[str]) -> str:
    """One hash of the masks ``<id>.png`` of some images, as they lie on the disk now."""
    paths = ((img_id, folder / f"{img_id}.png") for img_id in img_ids)
    return hash_values([(i, hash_once(path) if path.is_file() else None) for i, path in paths])


def hash_once(path: Path) -> str:
    """Hash of a file, which is read again only where its size or time has changed."""
    status = path.stat()
    return _hash_version(path, status.st_size, status.st_mtime_ns)


@cache
def _hash_version(path: Path, size: int, mtime_ns: int) -> str:
    return hash_file(path)


def hash_files_in(values: Any) -> Any:
    """Values of a config with the hash of each file in the place of its path.

    Where a file lies is no input of a stage, what it holds is one.
    """
    if isinstance(values, Mapping):
        return {key: hash_files_in(values[key]) for key in sorted(values)}
    if isinstance(values, list | tuple):
        return [hash_files_in(value) for value in values]
    if isinstance(values, str) and Path(values).suffix and Path(values).is_file():
        return f"file {hash_file(values)}"
    return values
