"""What a file of weights is, by its first bytes and its description: without torch, in no time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from adcam.errors import AdcamError
from adcam.structures import ClassSet

_OTHER_FILES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"<", "a web page or XML, not weights; download the file itself"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras); export its weights from there"),
    (b"\x93NUMPY", "a NumPy array, not weights by name"),
)


def check_file_kind(path: Path) -> bytes:
    """Refuse a file that holds no tensors at all, by its first bytes.

    Returns:
        The first 512 bytes of the file.

    Raises:
        AdcamError: If the file is empty, a Git LFS pointer, a web page, or packed.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise AdcamError(f"{path}: the file is empty")
    for magic, what in _OTHER_FILES:
        if start.lstrip()[: len(magic)] == magic:
            raise AdcamError(f"{path}: is {what}")
    if start[257:262] == b"ustar":
        raise AdcamError(f"{path}: is a tar archive; unpack it and give the file inside")
    return start


def read_metadata(path: Path, written_by: str) -> dict[str, str]:
    """Read the header of a safetensors file, and none of its tensors.

    Args:
        path: The file.
        written_by: Which command writes such files and how it names them, for errors.

    Raises:
        AdcamError: The file is missing, or no safetensors file.
    """
    if not path.is_file():
        hint = "; this is a folder, name the file in it" if path.is_dir() else ""
        raise AdcamError(f"{path}: no such checkpoint{hint}")
    check_file_kind(path)
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise AdcamError(
            f"{path}: not a readable safetensors file ({error}). {written_by} beside its .pth "
            "checkpoints, which are for resuming only"
        ) from error


def read_description(path: str | Path) -> str:
    """Read what a classifier file says of itself, as JSON, and none of its tensors.

    Raises:
        AdcamError: The file is missing, no safetensors file, or no classifier.
    """
    path = Path(path)
    metadata = read_metadata(path, "`adcam train` writes classifier.safetensors")
    if "segmenter" in metadata:
        raise AdcamError(
            f"{path}: this is a network of `adcam segment`, no classifier; `adcam segment predict` "
            "labels images with it"
        )
    text = metadata.get("adcam")
    if text is None:
        raise AdcamError(
            f"{path}: these are bare weights without a head or class names. Train on them "
            "(model.weights in a config), or use them with --model NAME --weights FILE"
        )
    return text


def read_class_set(path: str | Path) -> ClassSet:
    """Read the classes of a classifier file, and nothing else of it.

    Raises:
        AdcamError: As :func:`read_description`, or the description is damaged.
    """
    text = read_description(path)
    with refusing_damage(path):
        return build_described_classes(json.loads(text)["class_set"])


def read_described_views(path: str | Path) -> Mapping[str, Any] | None:
    """Read at which scales a classifier file is meant to see images, ``None`` if it does not say.

    Raises:
        AdcamError: As :func:`read_description`, or the description is damaged.
    """
    text = read_description(path)
    with refusing_damage(path):
        views: Mapping[str, Any] | None = json.loads(text).get("views")
    return views


@contextmanager
def refusing_damage(path: str | Path) -> Iterator[None]:
    """Turn what a damaged description raises in the block into an error that names the file.

    Raises:
        AdcamError: The description is damaged.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise AdcamError(f"{path}: this classifier cannot be used: {error}") from error


def build_described_classes(description: Mapping[str, Any]) -> ClassSet:
    """Build the classes of a description.

    Raises:
        KeyError, TypeError, ValueError: It is damaged.
    """
    return ClassSet(
        name=description["name"],
        classes=tuple(description["classes"]),
        mask_values=tuple(description["mask_values"]),
        palette=tuple((r, g, b) for r, g, b in description["palette"]),
    )
