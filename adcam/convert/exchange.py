"""Masks <-> formats of other tools: COCO's json, the folders that Ultralytics trains on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from adcam.convert.mask_source import SPLITS, MaskSource, find_masks
from adcam.convert.per_image import (
    FileType,
    LoopOptions,
    convert_each,
    make_each,
    masks_of,
    refuse_existing,
)
from adcam.convert.summary import ClassCounts, Converted
from adcam.data.annotation_labels import find_class_list, find_yolo_files, read_class_list
from adcam.data.coco import COCO_CATEGORY_IDS, COCO_CLASSES, coco_class_set
from adcam.data.coco_json import (
    IGNORE_CATEGORY,
    CocoFile,
    CocoImage,
    draw_objects,
    encode_mask,
    import_pycocotools,
    match_categories,
    read_coco_json,
)
from adcam.data.dataset import build_class_set
from adcam.data.images import read_image_hw
from adcam.data.polygons import draw_yolo, encode_yolo, read_yolo
from adcam.data.voc import voc_class_set
from adcam.errors import AdcamError
from adcam.files import (
    file_of_id,
    find_images,
    hash_file,
    read_text,
    write_bytes,
    write_json,
    write_text,
)
from adcam.options import check_choice
from adcam.structures import ClassSet


def convert_masks_to_coco(
    masks: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    objects: str = "class",
    polygons: bool = False,
    images: str | Path | None = None,
    image_suffix: str = ".jpg",
    values: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Masks as COCO's json.

    Of run lengths :func:`convert_coco_to_masks` makes the same masks again, 255 included. Category
    ids are mask values, for COCO's 80 classes the official ids. One annotation is a class of an
    image (``objects="class"``) or each connected part of it (``"component"``), as run lengths or,
    with ``polygons``, as outlines.

    Raises:
        AdcamError: There are no masks, ``out`` exists, or pycocotools is missing.
        OSError: ``out`` cannot be written.
    """
    source, out = find_masks(masks, class_set, images=images, values=values), Path(out)
    refuse_existing(out, overwrite)
    import_pycocotools()
    classes = source.class_set
    numbers = COCO_CATEGORY_IDS if classes.classes == COCO_CLASSES else classes.mask_values
    category_of = dict(zip(classes.mask_values, numbers, strict=True))
    counts = ClassCounts(source.class_set)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []

    def encode(img_id: str) -> tuple[str, np.ndarray, list[dict[str, Any]]]:
        mask = source.read(img_id)
        found = encode_mask(mask, category_of, objects=objects, polygons=polygons)
        counts.add_mask(img_id, mask)
        return img_id, mask, found

    for img_id, mask, found in make_each(source.paths, encode, counts.failed, progress):
        number = len(entries) + 1
        height, width = mask.shape
        name = source.name_of(img_id, image_suffix)
        entries.append({"id": number, "file_name": name, "height": height, "width": width})
        for annotation in found:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    categories = [
        {"id": number, "name": name, "supercategory": ""}
        for number, name in zip(numbers, classes.classes, strict=True)
    ]
    if any(annotation["iscrowd"] for annotation in annotations):
        categories.append(IGNORE_CATEGORY)
    content = {"images": entries, "annotations": annotations, "categories": categories}
    write_json(out, content, indent=None)
    notes = [f"{len(annotations)} annotations", *source.describe(image_suffix)]
    return counts.finish("masks-to-coco", out, notes)


def convert_coco_to_masks(
    annotations: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    crowd: str = "ignore",
    overlap: str = "small",
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Any json file in COCO's form as masks (rules: :mod:`adcam.data.coco_json`).

    The categories are matched with the classes, which may be some of them, by name. Without
    ``class_set``, they are the classes in the order of their ids, with the values 1..K (COCO's and
    VOC's own where the ids are theirs).

    Raises:
        AdcamError: The file is not in COCO's form, has categories outside the classes, or
            pycocotools is missing.
        OSError: A mask cannot be written.
    """
    import_pycocotools()
    path, folder = Path(annotations), Path(out)
    file = read_coco_json(path)
    if class_set is None:
        class_set = _find_classes(file, path.stem)
    drawer = CocoDrawer(file.images, match_categories(file, class_set), crowd, overlap)
    settings = {
        "converter": "coco-to-masks",
        "annotations": hash_file(path),
        "mask_values": class_set.value_of,
        **drawer.rules,
    }
    options = LoopOptions(settings, overwrite, progress)
    counts = convert_each(drawer.images, drawer, folder, masks_of(class_set), options)
    notes = drawer.describe()
    if escaped := [img_id for img_id in drawer.images if unquote(img_id) != img_id]:
        notes.append(
            f"{len(escaped)} file names look escaped, such as {escaped[0]!r}; masks are named as "
            "they are written"
        )
    return counts.finish("coco-to-masks", folder, notes)


def _find_classes(file: CocoFile, name: str) -> ClassSet:
    """The classes that the categories of a file stand for."""
    if file.classes == dict(zip(COCO_CATEGORY_IDS, COCO_CLASSES, strict=True)):
        return coco_class_set()
    names, voc = tuple(file.classes.values()), voc_class_set()
    if file.classes.items() <= dict(zip(voc.mask_values, voc.classes, strict=True)).items():
        return voc_class_set(names)
    return build_class_set(name, tuple(dict.fromkeys(names)))


class CocoDrawer:
    """Draws the masks of a json file, and counts objects that leave no pixel."""

    def __init__(
        self,
        images: Sequence[CocoImage],
        value_of: Mapping[int, int],
        crowd: str,
        overlap: str,
    ) -> None:
        self.images = {image.img_id: image for image in images}
        self._value_of = value_of
        self.rules = {"crowd": crowd, "overlap": overlap}
        self._num_objects = self._num_empty = self._num_other = 0

    def __call__(self, img_id: str) -> np.ndarray:
        """The mask of an image.

        Raises:
            AdcamError: An annotation is malformed, or all objects of the image are mere boxes.
        """
        drawing = draw_objects(self.images[img_id], self._value_of, **self.rules)
        self._num_objects += drawing.num_objects
        self._num_empty += drawing.num_empty
        self._num_other += drawing.num_other
        if drawing.num_boxes == drawing.num_objects > 0:
            raise AdcamError(
                f"none of its {drawing.num_objects} objects has a polygon of three points or run "
                "lengths; boxes make no mask"
            )
        return drawing.mask

    def describe(self) -> list[str]:
        """The rules, and what became of the objects that are not in the masks made by this run."""
        notes = ["crowds: {crowd}; on top where objects overlap: {overlap}".format(**self.rules)]
        if self._num_empty:
            notes.append(f"{self._num_empty} of {self._num_objects} objects leave no pixel")
        if self._num_other:
            notes.append(f"{self._num_other} objects of other categories are not drawn")
        return notes


def convert_masks_to_yolo(
    masks: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    images: str | Path | None = None,
    split: str = "train",
    values: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Masks as a folder that Ultralytics trains segmentation on.

    Written are ``labels/<split>/<id>.txt``, one line a connected part of a class; copies of the
    images as ``images/<split>/<id>.jpg``; and ``data.yaml`` with the classes, numbered from 0 in
    the order of the classes. Uncertain pixels (255) cannot be written and become background.

    Raises:
        AdcamError: There are no masks, ``split`` is another word, or ``out`` holds files of other
            settings.
        OSError: A file cannot be written.
    """
    check_choice("split", split, SPLITS)
    source, root = find_masks(masks, class_set, images=images, values=values), Path(out)
    classes = source.class_set
    settings = {
        "converter": "masks-to-yolo",
        "mask_values": classes.value_of,
        **({"values": values} if values else {}),
    }

    def encode(img_id: str) -> str:
        return encode_yolo(source.read(img_id), classes.mask_values)

    folder = root / "labels" / split
    options = LoopOptions(settings, overwrite, progress)
    texts = FileType(classes, ".txt", read_text, write_text, _count_yolo)
    counts = convert_each(source.paths, encode, folder, texts, options)
    missing = _copy_images(source, root / "images" / split, counts.failed)
    write_text(root / "data.yaml", _format_data_yaml(root, classes))
    notes = [*source.describe()]
    if missing:
        notes.append(f"{missing} images are not known or not there; put them in images/{split}")
    return counts.finish("masks-to-yolo", root, notes)


def _count_yolo(counts: ClassCounts, img_id: str, text: str) -> None:
    class_ids = {int(line.split(" ", 1)[0]) for line in text.splitlines()}
    counts.add_file(img_id, class_ids, text.encode())


def _copy_images(source: MaskSource, folder: Path, failed: Mapping[str, str]) -> int:
    """Copy the images beside their labels; the number of those that are not there."""
    missing = 0
    for img_id in source.paths:
        path = source.image_paths.get(img_id)
        if path is None or not path.is_file():
            missing += 1
        elif img_id not in failed:
            copy = file_of_id(folder, img_id, path.suffix)
            if not copy.is_file() or copy.stat().st_size != path.stat().st_size:
                write_bytes(copy, path.read_bytes())
    return missing


def _format_data_yaml(root: Path, class_set: ClassSet) -> str:
    """The file that training is started with; its folder is where its paths begin."""
    there = [split for split in SPLITS if (root / "labels" / split).is_dir()]
    lines = [f"{split}: images/{split}" for split in there]
    if "train" not in there:
        lines.append(f"train: images/{there[0]}")
    if "val" not in there:
        lines.append(f"val: images/{there[0]}  # the images that are trained on")
    # A text in JSON is one in YAML.
    names = (json.dumps(name, ensure_ascii=False) for name in class_set.classes)
    lines += ["names:", *(f"  {number}: {name}" for number, name in enumerate(names))]
    return "".join(f"{line}\n" for line in lines)


def convert_yolo_to_masks(
    labels: str | Path,
    out: str | Path,
    class_set: ClassSet | None = None,
    *,
    images: str | Path,
    overwrite: bool = False,
    progress: bool = False,
) -> Converted:
    """Text files of Ultralytics as masks, an image without a file as one without objects.

    Without ``class_set``, the classes are those of ``data.yaml`` or ``classes.txt`` in the folder
    ``labels`` or above, else VOC's.

    Raises:
        AdcamError: A folder is missing or empty, a text file belongs to no image, or the list of
            classes that is there numbers one of ``class_set`` differently.
        OSError: A mask cannot be written.
    """
    text_of, path_of = find_yolo_files(Path(labels)), find_images(images)
    if listed := find_class_list(Path(labels)):
        if class_set is None:
            class_set = build_class_set(listed.parent.name, read_class_list(listed))
        else:
            _check_order(class_set.classes, listed)
    classes = class_set or voc_class_set()
    if stray := [img_id for img_id in text_of if img_id not in path_of]:
        raise AdcamError(
            f"{images}: {len(stray)} text files have no image, such as {stray[0]!r}; name the "
            "folder below which they have the paths of the images"
        )

    def make(img_id: str) -> np.ndarray:
        hw = read_image_hw(path_of[img_id])
        path = text_of.get(img_id)
        objects = [] if path is None else read_yolo(path, classes.num_fg_classes)
        return draw_yolo(objects, hw, classes.mask_values)

    settings = {"converter": "yolo-to-masks", "mask_values": classes.value_of}
    options = LoopOptions(settings, overwrite, progress)
    counts = convert_each(path_of, make, Path(out), masks_of(classes), options)
    return counts.finish("yolo-to-masks", Path(out))


def _check_order(given: Sequence[str], listed: Path) -> None:
    """Refuse classes in another order than a list beside the text files has, if one can be read."""
    try:
        names = read_class_list(listed)
    except AdcamError:
        return
    if any(name in names and names.index(name) != number for number, name in enumerate(given)):
        raise AdcamError(
            f"the classes given are, from 0, {', '.join(given)}, but in {listed} "
            f"{', '.join(names)}, so that classes would be swapped. Leave out --classes (`adcam "
            "convert recode-masks --values` gives the masks other values), or correct that file"
        )
