"""Class maps that other projects store: what each family writes, read without running it.

All are ``np.save`` of a dict, so pickles; :mod:`adcam.data.object_npy` reads them.

========== ======================================== =============================================
format     written by                               content
========== ======================================== =============================================
irn        IRN, ReCAM, LPCAM, AdvCAM, AMN           ``keys`` (K,) classes from 0, ``cam`` at a
                                                    quarter of the size, ``high_res`` (K, H, W)
psa        PSA, SEAM, MCTformer, TransCAM, WeakTr   {class from 0: (H, W)}
psa_crf    PSA and SEAM after their CRF             {0: background, class + 1: (H, W)},
                                                    probabilities
clip_es    CLIP-ES                                  ``keys`` (K,) from 0, ``attn_highres`` float16
                                                    (K, H, W)
puzzlecam  PuzzleCAM                                ``keys`` (K + 1,) 0 and classes + 1, ``hr_cam``
                                                    (K, H, W)
========== ======================================== =============================================

Read in ``step/make_cam.py`` of jiwoon-ahn/irn, ``infer_cls.py`` of jiwoon-ahn/psa,
``generate_cams_voc12.py`` of linyq2117/CLIP-ES and ``inference_classification.py`` of
shjo-april/PuzzleCAM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adcam.data.object_npy import load_object_npy
from adcam.errors import AdcamError
from adcam.options import check_choice
from adcam.structures import ClassMaps

CAM_FORMATS = ("irn", "psa", "psa_crf", "clip_es", "puzzlecam")

_MAPS_KEY = {"irn": "high_res", "clip_es": "attn_highres", "puzzlecam": "hr_cam"}

_TOLERANCE = 2e-3
"""How far scores may leave [0, 1], and probabilities' sum 1: rounding of float16."""


@dataclass(frozen=True)
class CamFile:
    """What a file of another project holds.

    Attributes:
        cam_format: The format, one of :data:`CAM_FORMATS`.
        maps: The classes and maps in it, at image size.
        background: The probability of background, float32 (H, W); only ``psa_crf`` has one.
    """

    cam_format: str
    maps: ClassMaps
    background: np.ndarray | None = None


def read_cam_file(
    path: str | Path, *, num_fg_classes: int = 20, cam_format: str = "auto"
) -> CamFile:
    """Read one image's maps.

    Args:
        path: The ``.npy`` file.
        num_fg_classes: The number of classes; legal are 0 to one less.
        cam_format: The format, one of :data:`CAM_FORMATS`; ``"auto"`` recognises it by the names
            in the dict. A dict with numbers is ``psa_crf`` if it has a 0 and its maps add up to 1
            in every pixel, and else ``psa``.

    Raises:
        AdcamError: The file is damaged, of another or an unknown format, names a class twice or one
            that is not legal, or holds maps that are not (K, H, W) in [0, 1]. The message names the
            file.
        FileNotFoundError: There is no such file.
    """
    check_choice("the format", cam_format, ("auto", *CAM_FORMATS))
    content: Any = load_object_npy(path)
    try:
        found = _find_format(content)
        if cam_format not in ("auto", found) and {cam_format, found} != {"psa", "psa_crf"}:
            raise AdcamError(f"this is a file of format {found}, not {cam_format}")
        return _read(content, found if cam_format == "auto" else cam_format, num_fg_classes)
    except ValueError as err:
        raise AdcamError(f"{path}: {err}") from err


def _find_format(content: Any) -> str:
    if not isinstance(content, dict) or not content:
        raise AdcamError(f"expected a dict of maps, got {type(content).__name__} {content!r:.40}")
    names = set(content)
    for cam_format, key in _MAPS_KEY.items():
        if {"keys", key} <= names:
            return cam_format
    if not all(type(name) is int for name in names):
        shown = ", ".join(repr(name) for name in list(content)[:5])
        raise AdcamError(f"a dict with {shown} is of none of the formats {CAM_FORMATS}")
    if 0 in names:
        total = sum(np.asarray(value, dtype=np.float32) for value in content.values())
        if np.all(np.abs(total - 1) <= _TOLERANCE * len(names)):
            return "psa_crf"
    return "psa"


def _read(content: Mapping[Any, Any], cam_format: str, num_fg_classes: int) -> CamFile:
    if cam_format in _MAPS_KEY:
        class_ids, maps = _read_keyed(content, cam_format)
    else:
        class_ids, maps = _read_by_class(content)
    maps = _check_maps(class_ids, maps)
    background = None
    if cam_format == "psa_crf":
        if 0 not in class_ids:
            raise AdcamError("maps after the CRF have background under 0, and there is none")
        background = maps[class_ids.index(0)]
        maps = maps[[i for i, key in enumerate(class_ids) if key != 0]]
        class_ids = [key - 1 for key in class_ids if key != 0]
    if wrong := [i for i in class_ids if not 0 <= i < num_fg_classes]:
        raise AdcamError(f"class {wrong[0]} is not in 0..{num_fg_classes - 1}")
    if len(set(class_ids)) != len(class_ids):
        raise AdcamError(f"a class is given twice: {class_ids}")
    order = np.argsort(class_ids, kind="stable").astype(np.int64)
    return CamFile(cam_format, ClassMaps(tuple(sorted(class_ids)), maps[order]), background)


def _read_keyed(content: Mapping[Any, Any], cam_format: str) -> tuple[list[int], np.ndarray]:
    """The classes, which the file lists under ``keys``, and their maps as one array."""
    keys, maps = np.asarray(content["keys"]), np.asarray(content[_MAPS_KEY[cam_format]])
    if keys.ndim != 1 or keys.dtype.kind not in "iu":
        raise AdcamError(f"keys must be whole numbers (K,), got {keys.dtype} {keys.shape}")
    if cam_format == "puzzlecam":
        if keys[:1].tolist() != [0]:
            raise AdcamError(f"keys of PuzzleCAM begin with a 0, got {keys.tolist()}")
        keys = keys[1:] - 1
    return keys.tolist(), maps


def _read_by_class(content: Mapping[Any, Any]) -> tuple[list[int], np.ndarray]:
    """The numbers that name the maps, and the maps stacked."""
    shapes = {np.shape(value) for value in content.values()}
    if len(shapes) != 1:
        raise AdcamError(f"maps of one image must be of one size, got {sorted(shapes)}")
    return list(content), np.stack([np.asarray(value) for value in content.values()])


def _check_maps(class_ids: Sequence[int], maps: np.ndarray) -> np.ndarray:
    """The maps as float32 in [0, 1]."""
    if maps.ndim != 3 or maps.dtype.kind != "f" or 0 in maps.shape[1:]:
        raise AdcamError(f"maps must be floating point (K, H, W), got {maps.dtype} {maps.shape}")
    if len(class_ids) != len(maps):
        raise AdcamError(f"{len(class_ids)} classes but {len(maps)} maps")
    maps = maps.astype(np.float32)
    if not ((maps >= -_TOLERANCE) & (maps <= 1 + _TOLERANCE)).all():  # also true for NaN
        raise AdcamError(f"scores must lie in [0, 1], got [{maps.min()}, {maps.max()}]")
    return maps.clip(0, 1)
