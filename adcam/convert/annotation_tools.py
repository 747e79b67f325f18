"""Masks <-> tools that people draw in: Label Studio and CVAT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element
from xml.sax.saxutils import quoteattr

import numpy as np

from adcam.convert.mask_source import find_masks
from adcam.convert.per_image import (
    LoopOptions,
    convert_each,
    make_each,
    masks_of,
    refuse_existing,
)
from adcam.convert.summary import ClassCounts, Converted
from adcam.data.cvat import encode_file, encode_image, read_cvat
from adcam.data.dataset import build_class_set
from adcam.data.label_studio import FROM_NAME, TO_NAME, encode_task, read_tasks
from adcam.data.polygons import paint_regions
from adcam.errors import AdcamError
from adcam.files import hash_file, write_bytes, write_json, write_text
from adcam.structures import ClassSet

Region = tuple[str, np.ndarray]


def convert_masks_to_label_studio(
    masks: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    images: str | Path | None = None,
    image_suffix: str = ".jpg",
    url_prefix: str = "/data/local-files/?d=",
    values: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Masks as tasks with pre-annotations that people correct with Label Studio's brush.

    Written are ``tasks.json`` to import and ``label_config.xml``, the labelling interface that the
    pre-annotations belong to. Uncertain pixels (255) are left out. ``url_prefix`` stands before the
    path of an image below its folder; by default it is that of Label Studio's local storage.

    Raises:
        AdcamError: There are no masks, or ``tasks.json`` exists.
        OSError: A file cannot be written.
    """
    source, path = find_masks(masks, class_set, images=images, values=values), Path(out)
    refuse_existing(path / "tasks.json", overwrite)
    counts = ClassCounts(source.class_set)

    def encode(img_id: str) -> dict[str, Any]:
        mask = source.read(img_id)
        counts.add_mask(img_id, mask)
        url = url_prefix + quote(source.name_of(img_id, image_suffix))
        return encode_task(url, mask, source.class_set.value_of)

    tasks = list(make_each(source.paths, encode, counts.failed, progress))
    write_json(path / "tasks.json", tasks, indent=None)
    write_text(path / "label_config.xml", _format_interface(source.class_set))
    return counts.finish("masks-to-label-studio", path, source.describe(image_suffix))


def _format_interface(class_set: ClassSet) -> str:
    rows = (
        f'    <Label value={quoteattr(name)} background="#{{:02x}}{{:02x}}{{:02x}}"/>\n'.format(
            *class_set.palette[value]
        )
        for name, value in class_set.value_of.items()
    )
    return (
        f'<View>\n  <Image name="{TO_NAME}" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="{FROM_NAME}" toName="{TO_NAME}">\n{"".join(rows)}'
        "  </BrushLabels>\n</View>\n"
    )


def convert_label_studio_to_masks(
    tasks: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """An export of Label Studio in its JSON format as masks: brushes and polygons.

    Where regions overlap, the one of fewer pixels is on top. Without ``class_set``, the classes are
    all labels of the file, sorted by name.

    Raises:
        AdcamError: The file is no such export, has no brush or polygon, or names a label that is
            no class.
        OSError: A mask cannot be written.
    """
    found = read_tasks(tasks)
    if not any(task.regions for task in found):
        raise AdcamError(
            f"{tasks}: none of its {len(found)} tasks has a brush or polygon to make a mask of"
        )
    names = sorted({name for task in found for name, _ in task.regions})
    classes = class_set or build_class_set("label-studio", names)
    regions = {task.img_id: task for task in found if task.hw is not None}

    def make(img_id: str) -> np.ndarray:
        task = regions[img_id]
        return _paint(task.regions, task.hw or (0, 0), classes, small_on_top=True)

    settings = _describe("label-studio-to-masks", tasks, classes)
    options = LoopOptions(settings, overwrite, progress)
    counts = convert_each(regions, make, Path(out), masks_of(classes), options)
    notes = _describe_left_out(sum(task.num_other for task in found), "brushes")
    if without := len(found) - len(regions):
        notes.append(f"{without} tasks without regions have no mask")
    if class_set is None and len(names) > 1:
        notes.append("classes are numbered by the alphabet; --classes names them in another order")
    return counts.finish("label-studio-to-masks", Path(out), notes)


def convert_masks_to_cvat(
    masks: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    images: str | Path | None = None,
    image_suffix: str = ".jpg",
    values: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Masks as an XML file that CVAT uploads as "CVAT for images 1.1", for people to correct.

    Uncertain pixels (255) are left out.

    Raises:
        AdcamError: There are no masks, or ``out`` exists.
        OSError: ``out`` cannot be written.
    """
    source, path = find_masks(masks, class_set, images=images, values=values), Path(out)
    refuse_existing(path, overwrite)
    counts = ClassCounts(source.class_set)
    elements: list[Element] = []

    def encode(img_id: str) -> Element:
        mask = source.read(img_id)
        counts.add_mask(img_id, mask)
        name = source.name_of(img_id, image_suffix)
        return encode_image(len(elements), name, mask, source.class_set.value_of)

    for element in make_each(source.paths, encode, counts.failed, progress):
        elements.append(element)
    write_bytes(path, encode_file(elements, source.class_set))
    return counts.finish("masks-to-cvat", path, source.describe(image_suffix))


def convert_cvat_to_masks(
    annotations: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """An export "CVAT for images 1.1" as masks: its masks and polygons, by their order in depth.

    An image without a shape is all background; one with only boxes or other shapes is listed as
    failed. Without ``class_set``, the classes are the labels of the file in their order.

    Raises:
        AdcamError: The file is no such export, or names a label that is no class.
        OSError: A mask cannot be written.
    """
    file = read_cvat(annotations)
    names = file.labels or sorted({name for image in file.images for name, _ in image.regions})
    classes = class_set or build_class_set("cvat", names)
    images = {image.img_id: image for image in file.images}

    def make(img_id: str) -> np.ndarray:
        image = images[img_id]
        if image.num_other and not image.regions:
            raise AdcamError(
                f"none of its {image.num_other} shapes is a mask or polygon; boxes make no mask"
            )
        return _paint(image.regions, image.hw, classes, small_on_top=False)

    settings = _describe("cvat-to-masks", annotations, classes)
    options = LoopOptions(settings, overwrite, progress)
    counts = convert_each(images, make, Path(out), masks_of(classes), options)
    left_out = sum(image.num_other for image in file.images)
    return counts.finish("cvat-to-masks", Path(out), _describe_left_out(left_out, "masks"))


def _describe_left_out(number: int, kind: str) -> list[str]:
    return [f"{number} regions are neither {kind} nor polygons: left out"] if number else []


def _describe(converter: str, annotations: str | Path, classes: ClassSet) -> dict[str, Any]:
    """Everything that decides what the masks become."""
    return {
        "converter": converter,
        "annotations": hash_file(annotations),
        "mask_values": classes.value_of,
    }


def _paint(
    regions: Sequence[Region], hw: tuple[int, int], classes: ClassSet, *, small_on_top: bool
) -> np.ndarray:
    value_of = classes.value_of
    if unknown := [name for name, _ in regions if name not in value_of]:
        raise AdcamError(f"{unknown[0]!r} is no class; classes are {', '.join(value_of)}")
    painted = [(region, value_of[name]) for name, region in regions]
    return paint_regions(painted, hw, small_on_top=small_on_top)
