"""Data sets and results from one layout into another: what ``adcam convert`` does.

Whatever is converted, images go one by one and in the order of their ids, so the same input gives
the same bytes and memory does not grow with the number of images. Files are written atomically;
what an interrupted run wrote is kept, and a file that cannot be converted is named at the end and
stops nothing.

Arguments of one name mean the same in all converters:

* ``masks`` is a folder of ``<id>.png``, or an output folder of this project.
* ``out`` is the file, or the folder of files, to write.
* ``class_set`` has the classes; ``None`` takes those that the source says, else VOC's.
* ``images`` is the folder of the images; ``None`` takes those that an output folder names.
* ``image_suffix``: where an image is not known, its name is its id with this suffix.
* ``values`` says what mask values are read as, e.g. ``"255=1"``.
* ``split`` is ``"train"``, ``"val"`` or ``"test"``; a folder takes one after the other.
* ``overwrite``: whether what is there is made again, or else kept or refused.
* ``progress``: whether progress is shown on standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from adcam.convert.annotation_tools import (
    convert_cvat_to_masks,
    convert_label_studio_to_masks,
    convert_masks_to_cvat,
    convert_masks_to_label_studio,
)
from adcam.convert.data_sets import convert_coco, convert_sbd
from adcam.convert.exchange import (
    convert_coco_to_masks,
    convert_masks_to_coco,
    convert_masks_to_yolo,
    convert_yolo_to_masks,
)
from adcam.convert.labels import (
    convert_irn_labels,
    convert_label_table,
    convert_mask_labels,
    convert_voc_labels,
)
from adcam.convert.packed import convert_unpack
from adcam.convert.recode import convert_recode_masks
from adcam.convert.summary import Converted
from adcam.convert.training_sets import (
    convert_hf_to_masks,
    convert_masks_to_hf,
    convert_masks_to_mmseg,
)
from adcam.errors import AdcamError

Converter: TypeAlias = Callable[..., Converted]
"""Called with what is converted, then ``out`` and options by name, ``overwrite`` and ``progress``
among them."""


def _convert_cams(*source: Any, **options: Any) -> Converted:
    from adcam.convert.cams import convert_cams  # which needs torch; the others do not

    return convert_cams(*source, **options)


def _convert_maps_to_cams(*source: Any, **options: Any) -> Converted:
    from adcam.convert.export_cams import convert_maps_to_cams

    return convert_maps_to_cams(*source, **options)


CONVERTERS: dict[str, Converter] = {
    "sbd": convert_sbd,
    "coco": convert_coco,
    "voc-labels": convert_voc_labels,
    "label-table": convert_label_table,
    "mask-labels": convert_mask_labels,
    "recode-masks": convert_recode_masks,
    "irn-labels": convert_irn_labels,
    "masks-to-coco": convert_masks_to_coco,
    "coco-to-masks": convert_coco_to_masks,
    "masks-to-yolo": convert_masks_to_yolo,
    "yolo-to-masks": convert_yolo_to_masks,
    "masks-to-mmseg": convert_masks_to_mmseg,
    "masks-to-hf": convert_masks_to_hf,
    "hf-to-masks": convert_hf_to_masks,
    "masks-to-label-studio": convert_masks_to_label_studio,
    "label-studio-to-masks": convert_label_studio_to_masks,
    "masks-to-cvat": convert_masks_to_cvat,
    "cvat-to-masks": convert_cvat_to_masks,
    "maps-to-cams": _convert_maps_to_cams,
    "unpack": convert_unpack,
    "cams": _convert_cams,
}
"""The converters by their names on the command line."""


def register_converter(name: str, converter: Converter) -> None:
    """Add a converter, which ``adcam convert NAME SOURCE --out PATH`` then runs in this process.

    Args:
        name: The name.
        converter: The function; it is called with the source, ``out``, ``overwrite`` and
            ``progress``.

    Raises:
        AdcamError: The name is taken.
    """
    if name in CONVERTERS:
        raise AdcamError(f"there is a converter {name!r} already; choose another name")
    CONVERTERS[name] = converter


__all__ = ["CONVERTERS", "Converted", "Converter", "register_converter"]
