"""Class maps on disk: small, without pickle, read back with checks.

A stride-16 map holds what a ViT with 16-pixel patches can say; as uint8 it takes a few kilobytes
an image, where maps at image size in float32 take megabytes. Maps that follow the colours of the
image are finer and are stored with a stride of 4.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adcam.data.png import voc_palette
from adcam.data.score_maps import load_arrays
from adcam.errors import AdcamError
from adcam.labeling.mask_maker import resize_maps
from adcam.structures import ClassMaps, ClassSet

STRIDES = (16, 4)
"""Image pixels between two stored values: of plain maps, and of maps that follow colours."""

MAPS_DTYPES = ("uint8", "float16")

_DTYPES = {
    "score_maps": "uf",
    "class_ids": "i",
    "mask_values": "u",
    "ori_hw": "i",
    "classes": "U",
}


@dataclass(frozen=True)
class StoredMaps:
    """What a maps file holds.

    Attributes:
        class_maps: The present classes and their maps, (K, ⌈H/s⌉, ⌈W/s⌉) with a stride s of 16
            or 4.
        ori_hw: Height and width of the image.
        classes: Names of all classes, in classifier order.
        mask_values: Mask value of each class.
    """

    class_maps: ClassMaps
    ori_hw: tuple[int, int]
    classes: tuple[str, ...]
    mask_values: tuple[int, ...]

    @property
    def class_set(self) -> ClassSet:
        """All classes, with VOC's colours."""
        return ClassSet("maps", self.classes, self.mask_values, voc_palette())

    def upsample(self) -> ClassMaps:
        """Return the maps at image size, (K, H, W), bilinear."""
        return ClassMaps(
            self.class_maps.class_ids, resize_maps(self.class_maps.score_maps, self.ori_hw)
        )


def encode_maps(
    maps: ClassMaps,
    class_set: ClassSet,
    ori_hw: tuple[int, int],
    *,
    dtype: str = "uint8",
    stride: int = STRIDES[0],
) -> bytes:
    """Encode maps as a compressed ``.npz``; equal maps give equal bytes.

    Arrays: ``score_maps`` (K, ⌈H/stride⌉, ⌈W/stride⌉), ``class_ids`` int64 (K,), ``classes``
    unicode (C,), ``mask_values`` uint8 (C,), ``ori_hw`` int64 (2,).

    Args:
        maps: The maps of the present classes, of any size, in [0, 1].
        class_set: All classes of the classifier.
        ori_hw: Height and width of the image.
        dtype: How values are stored: ``"uint8"`` in steps of 1/255, or ``"float16"``, which takes
            twice the space.
        stride: Image pixels between two stored values, one of :data:`STRIDES`. A smaller stride
            keeps finer detail and takes more space.

    Raises:
        AdcamError: If the dtype or the stride is another.
    """
    if stride not in STRIDES:
        raise AdcamError(f"maps are stored with a stride of {STRIDES}, got {stride}")
    if dtype not in MAPS_DTYPES:
        raise AdcamError(f"maps are stored as one of {MAPS_DTYPES}, got {dtype!r}")
    # Sampled, not averaged: maps are interpolated from a grid about as coarse, and averaging
    # would lower their peaks a second time.
    small = resize_maps(maps.score_maps, tuple(-(-side // stride) for side in ori_hw))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        score_maps=np.rint(small * 255).astype(np.uint8)
        if dtype == "uint8"
        else small.astype(np.float16),
        class_ids=np.array(maps.class_ids, dtype=np.int64),
        classes=np.array(class_set.classes, dtype=np.str_),
        mask_values=np.array(class_set.mask_values, dtype=np.uint8),
        ori_hw=np.array(ori_hw, dtype=np.int64),
    )
    return buffer.getvalue()


def load_maps(path: str | Path) -> StoredMaps:
    """Read a maps file.

    Raises:
        AdcamError: The file is missing, damaged, holds pickled objects, or its arrays do not fit
            one another.
    """
    path = Path(path)
    if not path.is_file():
        raise AdcamError(f"{path}: no such maps file")
    arrays = load_arrays(path, "maps")
    if isinstance(arrays, np.ndarray):
        raise AdcamError(f"{path}: cannot be read as maps (a single array, no archive)")
    if arrays.keys() != _DTYPES.keys() or any(
        arrays[name].dtype.kind not in kinds for name, kinds in _DTYPES.items()
    ):
        found = {name: str(array.dtype) for name, array in arrays.items()}
        raise AdcamError(f"{path}: maps hold the arrays {sorted(_DTYPES)}, got {found}")
    scores, class_ids, ori_hw = arrays["score_maps"], arrays["class_ids"], arrays["ori_hw"]
    num_classes = len(arrays["classes"])
    fits = (
        arrays["classes"].shape == arrays["mask_values"].shape == (num_classes,)
        and class_ids.shape == scores.shape[:1]
        and ((class_ids >= 0) & (class_ids < num_classes)).all()
        and len(set(class_ids.tolist())) == len(class_ids)
        and ori_hw.shape == (2,)
        and any(scores.shape[1:] == tuple(-(-int(n) // s) for n in ori_hw) for s in STRIDES)
    )
    if not fits:
        shapes = {name: array.shape for name, array in arrays.items()}
        raise AdcamError(f"{path}: arrays do not fit one another: {shapes}, ori_hw {ori_hw}")
    score_maps = scores.astype(np.float32)
    if scores.dtype == np.uint8:
        score_maps /= 255
    if not (np.isfinite(score_maps).all() and (score_maps >= 0).all() and (score_maps <= 1).all()):
        raise AdcamError(f"{path}: scores must lie in [0, 1]")
    return StoredMaps(
        ClassMaps(tuple(class_ids.tolist()), score_maps),
        (int(ori_hw[0]), int(ori_hw[1])),
        tuple(arrays["classes"].tolist()),
        tuple(arrays["mask_values"].tolist()),
    )
