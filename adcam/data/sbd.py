"""SBD, the Semantic Boundaries Dataset, whose masks make VOC's train_aug.

Hariharan et al., "Semantic Contours from Inverse Detectors" (ICCV 2011). The archive unpacks to
``benchmark_RELEASE/dataset`` with ``cls/<id>.mat``, ``inst``, ``img``, ``train.txt`` (8,498 ids)
and ``val.txt`` (2,857). A class file holds a structure ``GTcls`` whose ``Segmentation`` is the mask
in VOC's numbering.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from adcam.errors import AdcamError
from adcam.limits import check_file_bytes

_ERRORS = (
    MatReadError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    NotImplementedError,
    OSError,
    EOFError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What scipy's reader raises on files that are damaged or no MATLAB files."""


# Of a file of MATLAB 5 to 7: its header, and the type of an element that is compressed.
_HEADER_BYTES = 128
_COMPRESSED = 15


def read_sbd_mask(path: str | Path) -> np.ndarray:
    """Read ``GTcls.Segmentation`` of a class file.

    Returns:
        uint8 (H, W) of VOC's values 0..20; SBD marks no pixel as void.

    Raises:
        AdcamError: The file is missing, damaged or no MATLAB file of this structure, or holds
            values outside 0..20.
    """
    path = Path(path)
    if not path.is_file():
        raise AdcamError(f"{path}: there is no such file")
    try:
        content = loadmat(path, variable_names=["GTcls"], squeeze_me=True)
    except _ERRORS as err:
        raise AdcamError(f"{path}: cannot be read as a MATLAB file ({err})") from err
    try:
        mask = np.asarray(content["GTcls"]["Segmentation"].item())
    except (KeyError, IndexError, ValueError, AttributeError) as err:
        found = sorted(name for name in content if not name.startswith("__"))
        raise AdcamError(
            f"{path}: no mask GTcls.Segmentation in it; it holds {', '.join(found) or 'no GTcls'}"
        ) from err
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or not mask.size:
        raise AdcamError(
            f"{path}: a mask must be whole numbers (H, W), got {mask.dtype} {mask.shape}"
        )
    if mask.min() < 0 or mask.max() > 20:
        raise AdcamError(f"{path}: values must lie in 0..20, got {mask.min()}..{mask.max()}")
    return np.ascontiguousarray(mask, dtype=np.uint8)


def is_checksummed(path: str | Path) -> bool:
    """Whether all of a file is compressed, with checksums that hold, as MATLAB writes it.

    Of other files scipy's reader trusts every length, and a flipped byte can crash the process.
    """
    check_file_bytes(Path(path), "a mask")
    try:
        data = Path(path).read_bytes()
        position = _HEADER_BYTES
        while position < len(data):
            kind, length = struct.unpack_from("<II", data, position)
            if kind != _COMPRESSED:
                return False
            zlib.decompress(data[position + 8 : position + 8 + length])
            position += 8 + length
    except (OSError, struct.error, zlib.error, MemoryError):
        return False
    return position == len(data) > _HEADER_BYTES


def compute_train_aug(
    sbd_ids: Iterable[str], voc_train: Iterable[str], voc_val: Iterable[str]
) -> list[str]:
    """Ids of train_aug, sorted: SBD's train and val and VOC's train, less VOC's val.

    Of the full data sets these are 10,582.
    """
    return sorted((set(sbd_ids) | set(voc_train)) - set(voc_val))
