"""Masks of any kind -> masks of class values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adcam.convert.mask_source import find_masks
from adcam.convert.per_image import LoopOptions, convert_each, masks_of
from adcam.convert.summary import Converted
from adcam.data.colors import read_color_table
from adcam.data.png import map_values, read_mask
from adcam.errors import AdcamError
from adcam.structures import IGNORE_INDEX, ClassSet


def convert_recode_masks(
    masks: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    colors: str | Path | None = None,
    values: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Colour masks, binary masks and masks of other values, as masks that everything here reads.

    Args:
        masks: Folder of PNG files.
        out: Folder for ``<id>.png``.
        class_set: The classes; ``None`` takes those of ``colors``, of the output folder or of the
            conversion that made the masks, else VOC's.
        colors: A table of classes and their colours
            (:func:`adcam.data.colors.read_color_table`), or ``"voc"``.
        values: What mask values are read as afterwards, e.g. ``"255=1"``.
        overwrite: Whether masks that are there are made again.
        progress: Whether progress is shown on standard error.

    Raises:
        AdcamError: There are no masks, neither ``colors`` nor ``values`` is given, one of them is
            malformed, or ``values`` makes pixels of a class and nobody says the classes.
        OSError: A mask cannot be written.
    """
    if colors is None and values is None:
        raise AdcamError("say what the masks hold: --colors TABLE, or --values OLD=NEW,…")
    table = None if colors is None else read_color_table(colors)
    source = find_masks(masks, class_set, values=values)
    new = sorted(set(source.values.values()) - {0, IGNORE_INDEX})
    if class_set is None and table is None and new:
        raise AdcamError(f"--values makes pixels {new[0]}; say with --classes which class that is")
    if class_set is None:
        class_set = source.class_set if table is None else table.class_set

    def make(img_id: str) -> np.ndarray:
        mask = read_mask(source.paths[img_id], colors=None if table is None else table.colors)
        return map_values(mask, source.values)

    settings = {
        "converter": "recode-masks",
        "colors": None if table is None else {str(v): list(c) for v, c in table.colors.items()},
        "values": values,
        "mask_values": class_set.value_of,
    }
    options = LoopOptions(settings, overwrite, progress)
    counts = convert_each(source.paths, make, Path(out), masks_of(class_set), options)
    return counts.finish("recode-masks", Path(out))
