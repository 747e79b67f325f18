"""Masks <-> formats of other tools: COCO's json, the text files of Ultralytics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adcam.convert.per_image import (
    Kind,
    convert_each,
    masks_of,
    refuse_existing,
)
from adcam.convert.summary import Converted, Tally
from adcam.data.coco import COCO_CATEGORY_IDS, COCO_CLASSES
from adcam.data.coco_json import (
    IGNORE_CATEGORY,
    build_categories,
    draw_mask,
    encode_mask,
    import_pycocotools,
    match_categories,
    read_coco_json,
)
from adcam.data.images import read_image_hw
from adcam.data.png import read_mask
from adcam.data.polygons import draw_yolo, encode_yolo, read_yolo
from adcam.errors import AdcamError
from adcam.files import find_files, find_images, hash_file, write_json, write_text
from adcam.labeling.output_folder import masks_folder
from adcam.progress import track
from adcam.structures import ClassSet


def convert_masks_to_coco(
    masks: str | Path,
    out: str | Path,
    class_set: ClassSet,
    *,
    image_suffix: str = ".jpg",
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Masks as COCO's json: one annotation a class and image, in run lengths.

    :func:`convert_coco_to_masks` gives the same masks back, 255 included. Category ids are mask
    values, for COCO's 80 classes the official ids.

    Args:
        masks: Folder of ``<id>.png``, or of ``adcam generate``.
        out: json file.
        class_set: The classes.
        image_suffix: ``file_name`` of an image is its id with this suffix.
        overwrite: Replace ``out``.
        progress: Show progress on standard error.

    Raises:
        AdcamError: There are no masks, ``out`` exists, or pycocotools is missing.
        OSError: ``out`` cannot be written.
    """
    paths, out = find_files(masks_folder(masks), ".png").paths, Path(out)
    refuse_existing([out], overwrite)
    import_pycocotools()
    is_coco = class_set.classes == COCO_CLASSES
    category_ids = COCO_CATEGORY_IDS if is_coco else class_set.mask_values
    category_of = dict(zip(class_set.mask_values, category_ids, strict=True))
    tally = Tally(class_set)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for img_id in track(paths, "convert", len(paths)) if progress else paths:
        try:
            mask = read_mask(paths[img_id])
            tally.add_mask(img_id, mask)
        except ValueError as error:
            failed[img_id] = str(error)
            continue
        height, width = mask.shape
        number = len(images) + 1
        images.append(
            {
                "id": number,
                "file_name": f"{img_id}{image_suffix}",
                "height": height,
                "width": width,
            }
        )
        for annotation in encode_mask(mask, category_of):
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    categories = build_categories(class_set, category_ids)
    if any(annotation["iscrowd"] for annotation in annotations):
        categories.append(IGNORE_CATEGORY)
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(out, content, indent=None)
    notes = (f"{len(annotations)} annotations",)
    return tally.finish("masks-to-coco", out, num_images=len(images), failed=failed, notes=notes)


def convert_coco_to_masks(
    annotations: str | Path,
    out: str | Path,
    class_set: ClassSet,
    *,
    crowd: str = "ignore",
    overlap: str = "small",
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Any json file in COCO's form as masks (rules: :mod:`adcam.data.coco_json`).

    Args:
        annotations: The json file; its categories are matched with the classes by name.
        out: Folder for ``<id>.png``, the id being ``file_name`` without suffix.
        class_set: The classes and their mask values.
        crowd: ``"ignore"`` or ``"skip"``.
        overlap: ``"small"`` or ``"first"``.
        overwrite: Make every mask anew.
        progress: Show progress on standard error.

    Raises:
        AdcamError: The file is not in COCO's form, has categories outside the classes, or
            pycocotools is missing.
        OSError: A mask cannot be written.
    """
    import_pycocotools()
    path, folder = Path(annotations), Path(out)
    file = read_coco_json(path)
    value_of = match_categories(file, class_set)
    images = {image.img_id: image for image in file.images}
    tally = Tally(class_set)
    done = convert_each(
        list(images),
        lambda img_id: draw_mask(images[img_id], value_of, crowd=crowd, overlap=overlap),
        folder,
        masks_of(class_set),
        tally,
        settings={
            "converter": "coco-to-masks",
            "annotations": hash_file(path),
            "mask_values": dict(zip(class_set.classes, class_set.mask_values, strict=True)),
            "crowd": crowd,
            "overlap": overlap,
        },
        overwrite=overwrite,
        progress=progress,
    )
    notes = (f"crowds: {crowd}; on top where objects overlap: {overlap}",)
    return tally.finish("coco-to-masks", folder, **vars(done), notes=notes)


def convert_masks_to_yolo(
    masks: str | Path,
    out: str | Path,
    class_set: ClassSet,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Masks as text files of Ultralytics, one line a connected part of a class.

    Classes are numbered from 0 in the order of ``class_set``. Uncertain pixels (255) cannot be
    written and become background.

    Args:
        masks: Folder of ``<id>.png``, or of ``adcam generate``.
        out: Folder for ``<id>.txt``, ``labels`` in their layout.
        class_set: The classes.
        overwrite: Make every file anew.
        progress: Show progress on standard error.

    Raises:
        AdcamError: There are no masks, or ``out`` holds files of other settings.
        OSError: A file cannot be written.
    """
    paths, out = find_files(masks_folder(masks), ".png").paths, Path(out)

    def count(tally: Tally, img_id: str, text: str) -> None:
        class_ids = {int(line.split(" ", 1)[0]) for line in text.splitlines()}
        tally.add_file(img_id, class_ids, text.encode())

    tally = Tally(class_set)
    done = convert_each(
        list(paths),
        lambda img_id: encode_yolo(read_mask(paths[img_id]), class_set.mask_values),
        out,
        Kind(".txt", lambda path: path.read_text("utf-8"), write_text, count),
        tally,
        settings={
            "converter": "masks-to-yolo",
            "mask_values": dict(zip(class_set.classes, class_set.mask_values, strict=True)),
        },
        overwrite=overwrite,
        progress=progress,
    )
    return tally.finish("masks-to-yolo", out, **vars(done))


def convert_yolo_to_masks(
    labels: str | Path,
    out: str | Path,
    class_set: ClassSet,
    *,
    images: str | Path,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Text files of Ultralytics as masks, an image without a file as one without objects.

    Args:
        labels: Folder of ``<id>.txt``.
        out: Folder for ``<id>.png``.
        class_set: The classes, numbered from 0 in the text files.
        images: Folder of the images, whose sizes are needed.
        overwrite: Make every mask anew.
        progress: Show progress on standard error.

    Raises:
        AdcamError: A folder is missing or empty, or a text file belongs to no image.
        OSError: A mask cannot be written.
    """
    text_of, path_of = find_files(labels, ".txt").paths, find_images(images).paths
    if stray := [img_id for img_id in text_of if img_id not in path_of]:
        raise AdcamError(f"{images}: {len(stray)} text files have no image, such as {stray[0]!r}")

    def make(img_id: str) -> np.ndarray:
        hw = read_image_hw(path_of[img_id])
        path = text_of.get(img_id)
        objects = [] if path is None else read_yolo(path, class_set.num_fg_classes)
        return draw_yolo(objects, hw, class_set.mask_values)

    tally = Tally(class_set)
    done = convert_each(
        sorted(path_of),
        make,
        Path(out),
        masks_of(class_set),
        tally,
        settings={
            "converter": "yolo-to-masks",
            "mask_values": dict(zip(class_set.classes, class_set.mask_values, strict=True)),
        },
        overwrite=overwrite,
        progress=progress,
    )
    return tally.finish("yolo-to-masks", Path(out), **vars(done))
