"""What a run leaves of a few of its images, so that its report can show maps and probabilities."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adcam.files import file_of_id, refuse_links, write_bytes, write_json
from adcam.labeling.maps_file import encode_maps, load_maps
from adcam.labeling.mask_maker import resize_maps
from adcam.labeling.output_folder import REPORT_DIR
from adcam.labeling.steps import Mapped
from adcam.report.explorer import MAP_SIDE
from adcam.report.figures import fit_side
from adcam.structures import ClassSet

SHOWN_DIR = "shown"
"""The folder inside ``report/`` with maps and probabilities of the images that the report shows."""


def keep_shown(folder: Path, image: Mapped, class_set: ClassSet, *, stride: int) -> None:
    """Write the maps and the probabilities of an image that the report is to show.

    Raises:
        OSError: A file cannot be written.
    """
    shown, img_id = folder / REPORT_DIR / SHOWN_DIR, image.task.img_id
    ids = image.maps.class_ids
    content = encode_maps(image.maps, class_set, image.ori_hw, stride=stride)
    write_bytes(refuse_links(folder, file_of_id(shown, img_id, ".npz")), content)
    found = {class_set.classes[i]: round(float(image.scores[i]), 4) for i in ids}
    write_json(file_of_id(shown, img_id, ".json"), {"id": img_id, "probabilities": found})


def forget_shown(folder: Path) -> None:
    """Remove what an earlier run with other settings kept in an output folder.

    Raises:
        AdcamError: The folder of the report is a link to another place.
    """
    shown = refuse_links(folder, folder / REPORT_DIR / SHOWN_DIR / "x").parent
    shutil.rmtree(shown, ignore_errors=True)


def read_small_maps(path: Path, values: Sequence[int]) -> np.ndarray | None:
    """Read the maps of an image as an explorer shows them.

    Args:
        path: A file of :mod:`adcam.labeling.maps_file`.
        values: The mask values of the image's classes, ascending by class.

    Returns:
        uint8 (K, h, w), :data:`adcam.report.explorer.MAP_SIDE` pixels on a side at most; ``None``
        where the maps are of other classes.

    Raises:
        AdcamError: The file cannot be read.
    """
    stored = load_maps(path)
    maps = stored.class_maps
    if [stored.mask_values[i] for i in maps.class_ids] != list(values):
        return None
    small = resize_maps(maps.score_maps, fit_side(maps.score_maps.shape[1:], MAP_SIDE))
    return np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8)
