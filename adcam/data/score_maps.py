"""Score maps as wsolevaluation stores them, one bare ``.npy`` an image.

Either tool can score the other's maps.

Source: ``CAMComputer`` in ``inference.py`` and ``CamDataset`` in ``evaluation.py`` there.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from adcam.data.object_npy import NPY_ERRORS
from adcam.data.text_tables import check_relative
from adcam.errors import AdcamError
from adcam.files import write_bytes
from adcam.limits import LimitError, check_file_bytes, read_limits

SCORE_MAP_HW = (224, 224)
"""Size at which wsolevaluation scores."""


def write_score_map(folder: str | Path, image_id: str, score_map: np.ndarray) -> Path:
    """Write ``<folder>/<image_id>.npy`` as float64, atomically.

    Args:
        folder: The folder of the maps of a split.
        image_id: The path of the image as the metadata has it, suffix included (``"a/b.jpg"`` gives
            ``a/b.jpg.npy``, the name that wsolevaluation's code reads and writes).
        score_map: The map, (H, W) in [0, 1].

    Returns:
        The file written.

    Raises:
        AdcamError: Another shape, NaN or a score outside [0, 1]; an id that leaves the folder.
        OSError: The file cannot be written.
    """
    path = Path(folder) / f"{check_relative(Path(folder), image_id)}.npy"
    write_bytes(path, encode_score_map(_check(path, np.asarray(score_map))))
    return path


def encode_score_map(score_map: np.ndarray) -> bytes:
    """Encode a map (H, W) in [0, 1] as float64, the content of a file."""
    buffer = io.BytesIO()
    np.save(buffer, score_map.astype(np.float64), allow_pickle=False)
    return buffer.getvalue()


def find_score_map(folder: str | Path, image_id: str) -> Path:
    """The file of an image: ``a/b.jpg.npy``, or ``a/b.npy`` as wsolevaluation's README has it.

    Returns:
        The first of them that is there, or else the first.

    Raises:
        AdcamError: An id that leaves the folder.
    """
    usual = Path(folder) / f"{check_relative(Path(folder), image_id)}.npy"
    short = (Path(folder) / image_id).with_suffix(".npy")
    return short if not usual.is_file() and short.is_file() else usual


def find_score_maps(folder: str | Path, image_ids: Iterable[str]) -> dict[str, Path]:
    """The file of each image (:func:`find_score_map`), all of which must be there.

    Raises:
        AdcamError: Files are missing; the message counts them and names the first.
    """
    paths = {image_id: find_score_map(folder, image_id) for image_id in image_ids}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise AdcamError(
            f"{folder} lacks the score maps of {len(missing)} of {len(paths)} images, such as "
            f"{missing[0]}"
        )
    return paths


def read_score_map(path: str | Path) -> np.ndarray:
    """Read one map; nothing is unpickled.

    Returns:
        float64 (H, W) in [0, 1].

    Raises:
        AdcamError: The file is missing, damaged, holds objects, or no map in [0, 1].
    """
    path = Path(path)
    stored = load_arrays(path, "a score map")
    if not isinstance(stored, np.ndarray):
        raise AdcamError(f"{path}: expected one array, got an archive")
    return _check(path, stored).astype(np.float64, copy=False)


def load_arrays(path: Path, what: str) -> np.ndarray | dict[str, np.ndarray]:
    """Read a ``.npy`` or the members of a ``.npz``; nothing is unpickled.

    Errors say that the file should be ``what``, e.g. ``"maps"``.

    Raises:
        AdcamError: The file is missing or damaged, holds objects, or its header is none or asks for
            more than there is.
    """
    check_file_bytes(path, what)
    try:
        # From memory: np.load leaves a file that it opened itself open where it is no archive.
        stored = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return stored
        # A member of zeros is a thousand times larger than the file that holds it.
        if sum(member.file_size for member in stored.zip.infolist()) > read_limits().file_bytes:
            too_much = f"{path}: {what} that unpack to more than a file may have"
            raise LimitError(too_much, "file_bytes")
        members = {name: stored[name] for name in stored.files}
    except NPY_ERRORS as err:
        raise AdcamError(f"{path}: cannot be read as {what} ({err})") from err
    if not all(isinstance(member, np.ndarray) for member in members.values()):
        raise AdcamError(f"{path}: cannot be read as {what} (a member is no array)")
    return members


def _check(path: Path, score_map: np.ndarray) -> np.ndarray:
    if score_map.ndim != 2 or score_map.dtype.kind != "f" or not score_map.size:
        raise AdcamError(
            f"{path}: a score map must be floating point (H, W), got {score_map.dtype} "
            f"{score_map.shape}"
        )
    low, high = float(score_map.min()), float(score_map.max())
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise AdcamError(f"{path}: scores must lie in [0, 1] without NaN, got [{low}, {high}]")
    return score_map
