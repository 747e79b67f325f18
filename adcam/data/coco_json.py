"""COCO's json: annotations -> masks of class values, and masks -> annotations.

How instances become one mask is nobody's standard, so here it is a rule with two options:

* Polygons are rasterised by COCO's own code (``pycocotools.mask``), each object by itself.
* Where they overlap, ``overlap="small"`` puts the one of fewer pixels on top, of two alike the one
  that stands first in the file: what is small is as a rule in front, and is never buried.
  ``"first"`` puts the one on top that stands first in the file.
* Small objects are drawn like all others. One that covers no pixel leaves none, and neither does
  one without a polygon of three points; both are counted, and the image-level label names their
  class all the same.
* A crowd (``iscrowd=1``, a region of many objects) never covers an object. ``crowd="ignore"`` makes
  what is left of it 255, ``"skip"`` leaves it background.

pycocotools is optional (``pip install adcam[coco]``) and imported when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from adcam.data.polygons import find_box, paint_regions, trace_regions
from adcam.data.text_tables import check_relative
from adcam.errors import AdcamError
from adcam.files import img_id_of, read_json
from adcam.limits import LimitError, check_image_hw, check_num_classes, read_limits
from adcam.options import check_choice
from adcam.structures import IGNORE_INDEX, ClassSet

IGNORE_CATEGORY: dict[str, Any] = {"id": IGNORE_INDEX, "name": "ignore", "supercategory": ""}
"""Category of ignored pixels in the files written here; its annotations are crowds."""


@dataclass(frozen=True)
class CocoImage:
    """One image of a json file with its annotations, as they stand there.

    Attributes:
        img_id: The image id, which is ``file_name`` without suffix.
        hw: The height and width of the image in pixels.
        annotations: The annotations of the image in the order of the file.
    """

    img_id: str
    hw: tuple[int, int]
    annotations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class CocoFile:
    """What a json file holds.

    Attributes:
        categories: The names of the categories by id, ids ascending, without
            :data:`IGNORE_CATEGORY`.
        images: The images, sorted by ``img_id``.
    """

    categories: Mapping[int, str]
    images: tuple[CocoImage, ...]

    @property
    def classes(self) -> dict[int, str]:
        """The categories that stand for classes, where no class set says which do.

        Those without an annotation and without a positive id are left out: some tools list a
        category 0 above all others.
        """
        used = {a["category_id"] for image in self.images for a in image.annotations}
        return {i: name for i, name in self.categories.items() if i > 0 or i in used}


def read_coco_json(path: str | Path) -> CocoFile:
    """Read ``instances_*.json`` or a file of the same form.

    Args:
        path: A json object with ``images`` (``id``, ``file_name``, ``height``, ``width``),
            ``annotations`` (``image_id``, ``category_id``, ``segmentation``, ``iscrowd``) and
            ``categories`` (``id``, ``name``). It is read as a whole.

    Raises:
        AdcamError: The file is missing, no json (a download cut short), or lacks one of these; two
            images have one id or name, or an annotation belongs to no image.
    """
    path = Path(path)
    content = read_json(path, kind=object, what="a json file")
    try:
        categories = _read_categories(content["categories"])
        images = _read_images(content["images"], content["annotations"])
    except (KeyError, TypeError, AttributeError, OverflowError) as err:
        raise AdcamError(
            f"{path}: not in COCO's form, which has images, annotations and categories ({err!r})"
        ) from err
    except ValueError as err:
        raise AdcamError(f"{path}: {err}") from err
    return CocoFile(categories, tuple(sorted(images, key=lambda image: image.img_id)))


def _read_categories(entries: Any) -> dict[int, str]:
    check_num_classes(len(entries), "categories")
    name_of: dict[int, str] = {}
    for entry in entries:
        number, name = int(entry["id"]), str(entry["name"])
        if name_of.setdefault(number, name) != name:
            raise AdcamError(
                f"the categories {name_of[number]!r} and {name!r} have the id {number}"
            )
    if name_of.get(IGNORE_CATEGORY["id"]) == IGNORE_CATEGORY["name"]:
        del name_of[IGNORE_CATEGORY["id"]]
    return dict(sorted(name_of.items()))


def _read_images(images: Any, annotations: Any) -> list[CocoImage]:
    if len(annotations) > read_limits().annotations:
        raise LimitError(f"{len(annotations):,} annotations", "annotations")
    annotations_of: dict[int, list[Mapping[str, Any]]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        if (image_id := annotation["image_id"]) not in annotations_of:
            raise AdcamError(f"annotation {annotation.get('id')} is of no image: {image_id!r}")
        if type(category := annotation["category_id"]) is not int:
            raise AdcamError(f"annotation {annotation.get('id')} has the category {category!r}")
        if (crowd := annotation.get("iscrowd")) not in (0, 1, None):  # the text "0" would be true
            raise AdcamError(
                f"annotation {annotation.get('id')} has iscrowd {crowd!r}; legal are 0 and 1"
            )
        annotations_of[image_id].append(annotation)
    found: dict[str, CocoImage] = {}
    name_of: dict[Any, str] = {}
    for image in images:
        name = str(image["file_name"]).replace("\\", "/")
        img_id = img_id_of(check_relative(Path("file_name"), name))
        hw = (int(image["height"]), int(image["width"]))
        check_image_hw(hw, f"image {img_id!r}")
        if (number := image["id"]) in name_of or img_id in found:
            other = name_of.get(number, img_id)
            raise AdcamError(
                f"two images have the same id or the same file name: {other!r} and {name!r}"
            )
        name_of[number] = name
        found[img_id] = CocoImage(img_id, hw, tuple(annotations_of[number]))
    return list(found.values())


def match_categories(file: CocoFile, class_set: ClassSet) -> dict[int, int]:
    """Mask value of each category, matched by name; 0 where its objects are not to be drawn.

    Categories that no annotation has may have any name. Where all classes of the set are among the
    file's categories, the set is a choice, and objects of the other categories are not drawn.

    Raises:
        AdcamError: The category of an annotation is not in the class set, and the set is no choice
            among the file's categories.
    """
    value_of = class_set.value_of
    used = {a["category_id"] for image in file.images for a in image.annotations}
    unknown = [name for i, name in file.categories.items() if i in used and name not in value_of]
    missing = [name for name in value_of if name not in file.categories.values()]
    if unknown and missing:
        raise AdcamError(
            f"category {unknown[0]!r} is not in {class_set.name}; legal are {', '.join(value_of)}"
        )
    return {category_id: value_of.get(name, 0) for category_id, name in file.categories.items()}


def find_values(image: CocoImage, value_of: Mapping[int, int]) -> tuple[int, ...]:
    """Mask values of all classes annotated in an image, ascending; crowds and tiny objects count.

    Raises:
        AdcamError: An annotation has a category that is not in ``value_of``.
    """
    categories = {a["category_id"] for a in image.annotations if not _is_ignore(a)}
    return tuple(sorted({_value(value_of, category) for category in categories} - {0}))


class Drawing(NamedTuple):
    """An image's annotations, drawn.

    Attributes:
        mask: The mask, uint8 (H, W): 0, values of the classes, 255.
        num_objects: Number of objects that were to be drawn, crowds included.
        num_empty: Number of these that cover no pixel.
        num_boxes: Number of these that are mere boxes: no polygon of three points, no run lengths.
        num_other: Number of objects of categories that are not drawn.
    """

    mask: np.ndarray
    num_objects: int
    num_empty: int
    num_boxes: int
    num_other: int


def draw_objects(
    image: CocoImage,
    value_of: Mapping[int, int],
    *,
    crowd: str = "ignore",
    overlap: str = "small",
) -> Drawing:
    """Draw an image's annotations as one mask, by the rules at the head of this module.

    Args:
        image: The image with its annotations.
        value_of: The mask value of each category id (:func:`match_categories`); 0 is not drawn.
        crowd: What becomes of crowds: ``"ignore"`` makes them 255, ``"skip"`` background.
        overlap: Which object is on top: the ``"small"`` one, or the ``"first"`` in the file.

    Raises:
        AdcamError: An unknown rule, category or kind of segmentation, or one of another size.
    """
    check_choice("crowd", crowd, ("ignore", "skip"))
    check_choice("overlap", overlap, ("small", "first"))
    wanted = [a for a in image.annotations if _is_ignore(a) or _value(value_of, a["category_id"])]
    objects = []
    crowds = []
    for annotation in wanted:
        region = _decode(annotation, image.hw)
        if annotation.get("iscrowd", 0):
            crowds.append(region)
        else:
            objects.append((region, _value(value_of, annotation["category_id"])))
    num_empty = sum(not region.any() for region in (*crowds, *(region for region, _ in objects)))
    mask = paint_regions(objects, image.hw, small_on_top=overlap == "small")
    for region in crowds if crowd == "ignore" else ():
        mask[region & (mask == 0)] = IGNORE_INDEX
    num_other = len(image.annotations) - len(wanted)
    return Drawing(mask, len(wanted), num_empty, sum(map(_is_box, wanted)), num_other)


def encode_mask(
    mask: np.ndarray,
    category_of: Mapping[int, int],
    *,
    objects: str = "class",
    polygons: bool = False,
) -> list[dict[str, Any]]:
    """Annotations of a mask.

    Of run lengths :func:`draw_objects` makes the same mask again; of polygons nearly so, since
    COCO's code rounds their borders. Pixels of 255 become a crowd of :data:`IGNORE_CATEGORY`,
    always as run lengths.

    Args:
        mask: The mask, uint8 (H, W).
        category_of: The category id of each mask value.
        objects: What is one annotation: a ``"class"`` that the mask shows, or a ``"component"``,
            each connected part of a class.
        polygons: Whether outlines are written in place of COCO's compressed run lengths; holes are
            joined to their outline by a seam.

    Returns:
        ``category_id``, ``segmentation``, ``area``, ``bbox`` (x, y, width, height) and ``iscrowd``
        of each, ascending by mask value.

    Raises:
        AdcamError: The mask holds another value, or ``objects`` is another word.
    """
    from scipy import ndimage  # slow to import, and readers of labels import this file

    check_choice("objects", objects, ("class", "component"))
    found = []
    for value in np.unique(mask).tolist():
        if value == 0:
            continue
        if value != IGNORE_INDEX and value not in category_of:
            raise AdcamError(
                f"the mask holds the value {value}; legal are 0, "
                f"{', '.join(map(str, category_of))} and {IGNORE_INDEX}"
            )
        is_ignore = value == IGNORE_INDEX
        category = IGNORE_CATEGORY["id"] if is_ignore else category_of[value]
        parts = [mask == value]
        if objects == "component" and not is_ignore:
            labels, count = ndimage.label(parts[0])
            parts = [labels == number for number in range(1, count + 1)]
        found += [_encode_region(p, category, is_ignore, polygons and not is_ignore) for p in parts]
    return found


def _encode_region(
    region: np.ndarray, category: int, is_crowd: bool, polygons: bool
) -> dict[str, Any]:
    x0, y0, x1, y1 = find_box(region)
    segmentation: Any
    if polygons:
        segmentation = [outline.ravel().tolist() for outline in trace_regions(region)]
    else:
        counts = import_pycocotools().encode(np.asfortranarray(region))["counts"].decode("ascii")
        segmentation = {"size": list(region.shape), "counts": counts}
    return {
        "category_id": category,
        "segmentation": segmentation,
        "area": int(np.count_nonzero(region)),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": int(is_crowd),
    }


def _is_ignore(annotation: Mapping[str, Any]) -> bool:
    return annotation["category_id"] == IGNORE_CATEGORY["id"] and bool(annotation.get("iscrowd", 0))


def _value(value_of: Mapping[int, int], category: Any) -> int:
    if category not in value_of:
        raise AdcamError(f"category {category!r} is unknown; legal are {sorted(value_of)}")
    return value_of[category]


def _is_box(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation is a mere box: it has no polygon of three points."""
    segmentation = annotation["segmentation"]
    return isinstance(segmentation, list) and all(len(polygon) < 6 for polygon in segmentation)


def _is_points(segmentation: list[Any]) -> bool:
    """Whether a polygon is given as points, ``[[x, y], [x, y], …]``."""
    return len(segmentation) >= 3 and all(isinstance(p, list) and len(p) == 2 for p in segmentation)


def _decode(annotation: Mapping[str, Any], hw: tuple[int, int]) -> np.ndarray:
    """The pixels of an annotation, bool (H, W)."""
    where = f"annotation {annotation.get('id')}"
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        if _is_points(segmentation):
            raise AdcamError(
                f"{where}: a polygon of points [[x, y], …]; COCO's form is [[x, y, x, y, …]]"
            )
        polygons = [_check_polygon(where, polygon, hw) for polygon in segmentation]
        solid = [polygon for polygon in polygons if len(polygon) >= 6]
        if not solid:
            return np.zeros(hw, dtype=bool)
        _check_length(where, solid, hw)
        coder = import_pycocotools()
        counts: Any = coder.merge(coder.frPyObjects(solid, *hw))["counts"].decode("ascii")
    elif isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        if tuple(segmentation["size"]) != hw:
            raise AdcamError(
                f"{where}: run lengths of {segmentation['size']} pixels (height, width) in an "
                f"image of {list(hw)}"
            )
        counts = segmentation["counts"]
    else:
        raise AdcamError(f"{where}: a segmentation is a list of polygons or run lengths")
    runs = _expand(where, counts) if isinstance(counts, str) else counts
    valid = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    if not valid or sum(runs) != hw[0] * hw[1]:
        raise AdcamError(f"{where}: run lengths must be counts that add up to {hw[0] * hw[1]}")
    # Background first, then alternately, down the columns.
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(hw, order="F")


def _check_polygon(where: str, polygon: Any, hw: tuple[int, int]) -> list[float]:
    # Annotations end a little outside their image; COCO's C code walks every edge whole, however
    # far it leads.
    far = 10 * max(hw)
    if (
        not isinstance(polygon, list)
        or len(polygon) % 2
        or not all(isinstance(v, int | float) and -far <= v <= far for v in polygon)
    ):
        raise AdcamError(f"{where}: a polygon is a list of numbers x, y, x, y, … in the image")
    return [float(v) for v in polygon]


def _check_length(where: str, polygons: list[list[float]], hw: tuple[int, int]) -> None:
    """Refuse outlines far longer than any in such an image, whose every step COCO's code keeps."""
    height, width = hw
    length = 0.0
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2)
        length += float(np.abs(points - np.roll(points, -1, axis=0)).max(axis=1).sum())
    if length > (limit := 8 * height * width + 1000 * (height + width)):
        raise AdcamError(
            f"{where}: its outline is {length:.0f} pixels long; at most {limit} make sense in an "
            f"image of {height}×{width}"
        )


def _expand(where: str, counts: str) -> list[int]:
    """Run lengths of COCO's compressed string, as ``rleFrString`` of ``maskApi.c`` reads it.

    Six bits a character, from 48 on, the lowest five first; the sixth says that more follow, and
    the last one's fifth is the sign. From the fourth number on each is a difference to the last but
    one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise AdcamError(f"{where}: run lengths hold the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def import_pycocotools() -> ModuleType:
    """COCO's mask code, ``pycocotools.mask``.

    Raises:
        AdcamError: It cannot be imported; the message says how to install it.
    """
    try:
        from pycocotools import mask
    except ImportError as err:
        raise AdcamError(
            f"COCO's masks need pycocotools, which cannot be imported ({err}); "
            "pip install 'adcam[coco]'"
        ) from err
    return mask
