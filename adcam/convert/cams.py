"""Class maps of other projects -> our maps, or masks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adcam.convert.per_image import Kind, convert_each, masks_of
from adcam.convert.summary import Converted, Tally
from adcam.data.formats import CAM_FORMATS, CamFile, read_cam_file
from adcam.errors import AdcamError
from adcam.files import find_files, write_bytes
from adcam.labeling.maps_file import encode_maps, load_maps
from adcam.labeling.output_folder import MAPS_DIR, MASK_DIR
from adcam.masks.background import compute_mask, parse_rule, present_mask_values
from adcam.structures import ClassSet


class _EncodedMaps(NamedTuple):
    class_ids: tuple[int, ...]
    data: bytes


def convert_cams(
    cams: str | Path,
    out: str | Path,
    class_set: ClassSet,
    *,
    cam_format: str = "auto",
    threshold: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Class maps of other projects as ``<out>/maps/<id>.npz``, or as ``<out>/masks/<id>.png``.

    Maps are stored as :mod:`adcam.labeling.maps_file` does, at stride 16; masks are made at image
    size.

    Args:
        cams: Folder of ``<id>.npy`` (:mod:`adcam.data.formats`), all of one format.
        out: Folder to write into.
        class_set: The classes, in the order of the files' numbers.
        cam_format: One of :data:`adcam.data.formats.CAM_FORMATS`; ``"auto"`` asks the first file
            that can be read.
        threshold: A background rule such as ``"0.2"`` (:func:`adcam.masks.background.parse_rule`)
            makes masks, ``None`` maps. Probabilities after a CRF (``psa_crf``) take none and always
            become masks, the most probable class of each pixel: background is among them.
        overwrite: Make every file anew.
        progress: Show progress on standard error.

    Raises:
        AdcamError: There are no such files, the format is not known, ``threshold`` is no rule or is
            given for probabilities, or ``out`` holds files of other settings.
        OSError: A file cannot be written.
    """
    paths, out = find_files(cams, ".npy").paths, Path(out)
    img_ids = list(paths)
    num_fg_classes = class_set.num_fg_classes
    if cam_format == "auto":
        cam_format = find_cam_format(paths.values(), num_fg_classes)
    elif cam_format not in CAM_FORMATS:
        raise AdcamError(f"the format must be auto or one of {CAM_FORMATS}, got {cam_format!r}")
    if cam_format == "psa_crf" and threshold is not None:
        raise AdcamError("probabilities after a CRF take no threshold: background is among them")
    rule = None if threshold is None else parse_rule(threshold)

    def read(img_id: str) -> CamFile:
        path = paths[img_id]
        return read_cam_file(path, num_fg_classes=num_fg_classes, cam_format=cam_format)

    def make_maps(img_id: str) -> _EncodedMaps:
        maps = read(img_id).maps
        height, width = maps.score_maps.shape[1:]
        return _EncodedMaps(maps.class_ids, encode_maps(maps, class_set, (height, width)))

    def make_mask(img_id: str) -> np.ndarray:
        file = read(img_id)
        if rule is not None:
            name, value = rule.rule, rule.value
            values = class_set.mask_values
            return compute_mask(file.maps, mask_values=values, rule=name, threshold=value).mask
        if file.background is None:
            raise AdcamError(f"{paths[img_id]}: background is not among the maps")
        prob = np.stack([file.background, *file.maps.score_maps])
        return present_mask_values(file.maps, class_set.mask_values)[prob.argmax(axis=0)]

    tally = Tally(class_set)
    common: dict[str, Any] = {
        "settings": {
            "converter": "cams",
            "format": cam_format,
            "rule": None if rule is None else str(rule),
            "mask_values": dict(zip(class_set.classes, class_set.mask_values, strict=True)),
        },
        "overwrite": overwrite,
        "progress": progress,
    }
    if cam_format == "psa_crf" or rule is not None:
        out /= MASK_DIR
        done = convert_each(img_ids, make_mask, out, masks_of(class_set), tally, **common)
    else:
        out /= MAPS_DIR
        done = convert_each(img_ids, make_maps, out, _MAPS, tally, **common)
    return tally.finish("cams", out, **vars(done), notes=(f"format {cam_format}",))


def find_cam_format(paths: Iterable[Path], num_fg_classes: int) -> str:
    """Format of the first file that can be read.

    Raises:
        AdcamError: None can; the message is the last one's.
    """
    error: ValueError | None = None
    for path in paths:
        try:
            return read_cam_file(path, num_fg_classes=num_fg_classes).cam_format
        except ValueError as err:
            error = err
    raise error or ValueError("there are no files of class maps")


def _load(path: Path) -> _EncodedMaps:
    return _EncodedMaps(load_maps(path).class_maps.class_ids, path.read_bytes())


_MAPS = Kind(
    ".npz",
    _load,
    lambda path, maps: write_bytes(path, maps.data),
    lambda tally, img_id, maps: tally.add_file(img_id, maps.class_ids, maps.data),
)
