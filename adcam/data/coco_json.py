"""COCO's json: annotations -> masks of class values, and masks -> annotations.

How instances become one mask is nobody's standard, so here it is a rule with two options:

* Polygons are rasterised by COCO's own code (``pycocotools.mask``), each object by itself.
* Where they overlap, ``overlap="small"`` puts the one of fewer pixels on top, of two alike the one
  that stands first in the file: what is small is as a rule in front, and is never buried.
  ``"first"`` puts the one on top that stands first in the file.
* Small objects are drawn like all others. One that covers no pixel leaves none, and neither does a
  polygon of fewer than three points; the image-level label names their class all the same.
* A crowd (``iscrowd=1``, a region of many objects) never covers an object. ``crowd="ignore"`` makes
  what is left of it 255, ``"skip"`` leaves it background.

pycocotools is optional (``pip install adcam[coco]``) and imported when it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from adcam.data.text_tables import check_relative
from adcam.errors import AdcamError
from adcam.files import img_id_of
from adcam.structures import IGNORE_INDEX, ClassSet

CROWD_RULES = ("ignore", "skip")
OVERLAP_RULES = ("small", "first")

IGNORE_CATEGORY: dict[str, Any] = {"id": IGNORE_INDEX, "name": "ignore", "supercategory": ""}
"""Category of ignored pixels in the files written here; its annotations are crowds."""


@dataclass(frozen=True)
class CocoImage:
    """One image of a json file with its annotations, as they stand there.

    Attributes:
        img_id: ``file_name`` without suffix.
        hw: Height and width in pixels.
        annotations: In the order of the file.
    """

    img_id: str
    hw: tuple[int, int]
    annotations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class CocoFile:
    """What a json file holds.

    Attributes:
        categories: Names by category id, ids ascending.
        images: Sorted by ``img_id``.
    """

    categories: Mapping[int, str]
    images: tuple[CocoImage, ...]


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
    try:
        content = json.loads(path.read_bytes())
    except OSError as err:
        raise AdcamError(f"{path}: cannot be read ({err.strerror})") from err
    except ValueError as err:
        raise AdcamError(f"{path}: not a json file, or one that was cut short ({err})") from err
    try:
        categories = {int(c["id"]): str(c["name"]) for c in content["categories"]}
        annotations_of: dict[int, list[Mapping[str, Any]]] = {
            i["id"]: [] for i in content["images"]
        }
        for annotation in content["annotations"]:
            if (image_id := annotation["image_id"]) not in annotations_of:
                raise AdcamError(f"annotation {annotation.get('id')} is of no image: {image_id!r}")
            annotations_of[image_id].append(annotation)
        images = [
            CocoImage(
                img_id_of(check_relative(path, str(image["file_name"]))),
                (int(image["height"]), int(image["width"])),
                tuple(annotations_of[image["id"]]),
            )
            for image in content["images"]
        ]
    except (KeyError, TypeError, AttributeError) as err:
        raise AdcamError(
            f"{path}: not in COCO's form, which has images, annotations and categories ({err!r})"
        ) from err
    except ValueError as err:
        raise AdcamError(f"{path}: {err}") from err
    if empty := [image.img_id for image in images if min(image.hw) < 1]:
        raise AdcamError(f"{path}: image {empty[0]!r} has no pixels")
    if len(annotations_of) != len(images) or len({image.img_id for image in images}) != len(images):
        raise AdcamError(f"{path}: two images have the same id or the same file name")
    return CocoFile(
        dict(sorted(categories.items())),
        tuple(sorted(images, key=lambda image: image.img_id)),
    )


def match_categories(file: CocoFile, class_set: ClassSet) -> dict[int, int]:
    """Mask value of each category, matched by name; :data:`IGNORE_CATEGORY` has none.

    Raises:
        AdcamError: A category's name is not in the class set.
    """
    value_of = dict(zip(class_set.classes, class_set.mask_values, strict=True))
    named = {i: n for i, n in file.categories.items() if (i, n) != _IGNORE_PAIR}
    if unknown := [name for name in named.values() if name not in value_of]:
        raise AdcamError(
            f"category {unknown[0]!r} is not in {class_set.name}; legal are {', '.join(value_of)}"
        )
    return {category_id: value_of[name] for category_id, name in named.items()}


def find_values(image: CocoImage, value_of: Mapping[int, int]) -> tuple[int, ...]:
    """Mask values of all classes annotated in an image, ascending; crowds and tiny objects count.

    Raises:
        AdcamError: An annotation has a category that is not in ``value_of``.
    """
    categories = {a["category_id"] for a in image.annotations if not _is_ignore(a)}
    return tuple(sorted({_value(value_of, category) for category in categories}))


def draw_mask(
    image: CocoImage,
    value_of: Mapping[int, int],
    *,
    crowd: str = "ignore",
    overlap: str = "small",
) -> np.ndarray:
    """Draw an image's annotations as one mask, by the rules at the head of this module.

    Args:
        image: The image.
        value_of: Mask value by category id, e.g. of :func:`match_categories`.
        crowd: ``"ignore"`` or ``"skip"``.
        overlap: ``"small"`` or ``"first"``.

    Returns:
        uint8 (H, W): 0, values of ``value_of``, 255.

    Raises:
        AdcamError: An unknown rule, category or kind of segmentation, or one of another size.
    """
    for name, rule, legal in (("crowd", crowd, CROWD_RULES), ("overlap", overlap, OVERLAP_RULES)):
        if rule not in legal:
            raise AdcamError(f"{name} must be one of {legal}, got {rule!r}")
    mask = np.zeros(image.hw, dtype=np.uint8)
    objects = []
    crowds = []
    for annotation in image.annotations:
        region = _decode(annotation, image.hw)
        if annotation.get("iscrowd", 0):
            crowds.append(region)
        else:
            objects.append((region, _value(value_of, annotation["category_id"])))
    # Later ones cover earlier ones, so the order of the file is turned round. Sorting is stable.
    objects.reverse()
    if overlap == "small":
        objects.sort(key=lambda item: -int(np.count_nonzero(item[0])))
    for region, value in objects:
        mask[region] = value
    for region in crowds if crowd == "ignore" else ():
        mask[region & (mask == 0)] = IGNORE_INDEX
    return mask


def encode_mask(mask: np.ndarray, category_of: Mapping[int, int]) -> list[dict[str, Any]]:
    """Annotations of a mask: one a class that it shows, as COCO's compressed run lengths.

    :func:`draw_mask` gives the same mask back. Pixels of 255 become a crowd of
    :data:`IGNORE_CATEGORY`.

    Args:
        mask: uint8 (H, W).
        category_of: Category id by mask value.

    Returns:
        ``category_id``, ``segmentation``, ``area``, ``bbox`` (x, y, width, height) and ``iscrowd``
        of each, ascending by mask value.

    Raises:
        AdcamError: The mask holds another value.
    """
    coder = import_pycocotools()
    found = []
    for value in np.unique(mask).tolist():
        if value == 0:
            continue
        if value != IGNORE_INDEX and value not in category_of:
            raise AdcamError(
                f"the mask holds the value {value}; legal are 0, "
                f"{', '.join(map(str, category_of))} and {IGNORE_INDEX}"
            )
        region = mask == value
        rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
        (x0, x1), (y0, y1) = ((int(line[0]), int(line[-1]) + 1) for line in (columns, rows))
        is_ignore = value == IGNORE_INDEX
        found.append(
            {
                "category_id": IGNORE_CATEGORY["id"] if is_ignore else category_of[value],
                "segmentation": {
                    "size": list(region.shape),
                    "counts": coder.encode(np.asfortranarray(region))["counts"].decode("ascii"),
                },
                "area": int(np.count_nonzero(region)),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": int(is_ignore),
            }
        )
    return found


_IGNORE_PAIR = (IGNORE_CATEGORY["id"], IGNORE_CATEGORY["name"])


def _is_ignore(annotation: Mapping[str, Any]) -> bool:
    return annotation["category_id"] == IGNORE_CATEGORY["id"] and bool(annotation.get("iscrowd", 0))


def _value(value_of: Mapping[int, int], category: Any) -> int:
    if category not in value_of:
        raise AdcamError(f"category {category!r} is unknown; legal are {sorted(value_of)}")
    return value_of[category]


def _decode(annotation: Mapping[str, Any], hw: tuple[int, int]) -> np.ndarray:
    """The pixels of an annotation, bool (H, W)."""
    where = f"annotation {annotation.get('id')}"
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        polygons = [_check_polygon(where, polygon, hw) for polygon in segmentation]
        solid = [polygon for polygon in polygons if len(polygon) >= 6]
        if not solid:
            return np.zeros(hw, dtype=bool)
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
    # Background first, then by turns, down the columns.
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


def build_categories(class_set: ClassSet, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Entries of ``categories`` for a class set, one a class in its order."""
    return [
        {"id": category_id, "name": name, "supercategory": ""}
        for category_id, name in zip(category_ids, class_set.classes, strict=True)
    ]
