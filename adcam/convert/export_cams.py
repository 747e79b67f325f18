"""Our class maps -> the files that other projects' next steps read."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from adcam.convert.per_image import EncodedFile, LoopOptions, convert_each, encoded_files
from adcam.convert.summary import Converted
from adcam.data.formats import CAM_FORMATS
from adcam.data.score_maps import encode_score_map
from adcam.errors import AdcamError
from adcam.files import file_of_id, find_files
from adcam.labeling.box_job import make_score_map
from adcam.labeling.maps_file import StoredMaps, load_maps
from adcam.labeling.output_folder import maps_folder
from adcam.options import check_choice
from adcam.structures import ClassMaps

EXPORT_FORMATS = (*(name for name in CAM_FORMATS if name != "psa_crf"), "wsol")
"""What :func:`convert_maps_to_cams` writes."""


def convert_maps_to_cams(
    maps: str | Path,
    out: str | Path,
    *,
    cam_format: str = "irn",
    image_suffix: str = ".jpg",
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Our maps as ``<out>/<id>.npy`` of another project, at image size, classes from 0.

    Args:
        maps: Folder of ``<id>.npz`` of ``adcam generate --save-maps``, or the output folder above.
        out: Folder to write into.
        cam_format: One of :data:`EXPORT_FORMATS` (:mod:`adcam.data.formats`). ``"wsol"`` is that of
            wsolevaluation: one map an image, of 224 × 224, so each image must show one class.
        image_suffix: For ``"wsol"``, whose files are named ``<id>.jpg.npy``: the suffix of images.
        overwrite: Whether files that are there are made again.
        progress: Whether progress is shown on standard error.

    Raises:
        AdcamError: There are no maps, they have different classes, the format is another, or
            ``out`` holds files of other settings.
        OSError: A file cannot be written.
    """
    check_choice("the format", cam_format, EXPORT_FORMATS)
    paths = find_files(maps_folder(maps), ".npz")
    class_set = load_maps(next(iter(paths.values()))).class_set
    encode = (
        _encode_single if cam_format == "wsol" else partial(encode_cam_file, cam_format=cam_format)
    )

    def read(img_id: str) -> StoredMaps:
        stored = load_maps(paths[img_id])
        if stored.classes != class_set.classes:
            raise AdcamError(f"{paths[img_id]}: its classes differ from those of other maps")
        return stored

    def make(img_id: str) -> EncodedFile:
        upsampled = read(img_id).upsample()
        return EncodedFile(upsampled.class_ids, encode(upsampled))

    suffix = f"{image_suffix}.npy" if cam_format == "wsol" else ".npy"
    id_of = {file_of_id(Path(out), img_id, suffix): img_id for img_id in paths}
    file_type = encoded_files(
        class_set, suffix, lambda path: read(id_of[path]).class_maps.class_ids
    )
    classes = list(class_set.classes)
    settings = {"converter": "maps-to-cams", "format": cam_format, "classes": classes}
    options = LoopOptions(settings, overwrite, progress)
    counts = convert_each(paths, make, Path(out), file_type, options)
    return counts.finish("maps-to-cams", Path(out), [f"format {cam_format}"])


def _encode_single(maps: ClassMaps) -> bytes:
    if len(maps.class_ids) != 1:
        raise AdcamError(
            f"it shows {len(maps.class_ids)} classes; wsolevaluation scores images of one class"
        )
    return encode_score_map(make_score_map(maps))


def encode_cam_file(maps: ClassMaps, cam_format: str) -> bytes:
    """Encode one image's maps as another project's code reads them; equal maps give equal bytes.

    Args:
        maps: The maps of the present classes at image size, (K, H, W) in [0, 1].
        cam_format: One of :data:`CAM_FORMATS` but ``psa_crf``. IRN's and PuzzleCAM's files hold
            tensors of PyTorch, since their code moves them to a GPU.

    Raises:
        AdcamError: There is no such format to write.
    """
    scores = np.ascontiguousarray(maps.score_maps, dtype=np.float32)
    ids = np.array(maps.class_ids, dtype=np.int64)
    content: dict[Any, Any]
    if cam_format == "psa":
        content = {class_id: scores[i].copy() for i, class_id in enumerate(maps.class_ids)}
    elif cam_format == "clip_es":
        content = {"keys": ids, "attn_highres": scores.astype(np.float16)}
    elif cam_format == "irn":
        content = {"keys": torch.from_numpy(ids), "cam": _shrink(scores), "high_res": scores}
    elif cam_format == "puzzlecam":
        keys = np.concatenate([np.zeros(1, dtype=np.int64), ids + 1])
        content = {"keys": keys, "cam": _shrink(scores), "hr_cam": scores}
    else:
        legal = [name for name in CAM_FORMATS if name != "psa_crf"]
        raise AdcamError(f"maps are written as one of {legal}, got {cam_format!r}")
    buffer = io.BytesIO()
    np.save(buffer, np.array(content, dtype=object))
    return buffer.getvalue()


def _shrink(scores: np.ndarray) -> torch.Tensor:
    """Maps at a quarter of the size, as IRN's ``get_strided_size`` counts it."""
    hw = tuple(-(-side // 4) for side in scores.shape[1:])
    if not len(scores):
        return torch.zeros(0, *hw)
    tensor = torch.from_numpy(scores)[None]
    return F.interpolate(tensor, size=hw, mode="bilinear", align_corners=False)[0]
