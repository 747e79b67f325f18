"""CVAT's XML for images, version 1.1: masks as run lengths in their box, and polygons.

A ``mask`` has ``left``, ``top``, ``width``, ``height`` and ``rle``: lengths of runs along the rows
of the box, background first ("CVAT for images" in https://docs.cvat.ai).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adcam.data.polygons import fill_polygon, find_box
from adcam.data.text_tables import check_relative
from adcam.data.xml_text import read_xml
from adcam.errors import AdcamError
from adcam.files import img_id_of
from adcam.limits import check_image_hw
from adcam.structures import ClassSet

_OTHER_SHAPES = ("box", "ellipse", "polyline", "points", "cuboid", "skeleton")


@dataclass(frozen=True)
class CvatImage:
    """One image of a file.

    Attributes:
        img_id: The image id, ``name`` without suffix.
        hw: Height and width in pixels.
        regions: The class and the pixels of each region, bool (H, W); what has a larger
            ``z_order`` comes first.
        num_other: Number of shapes that are no regions, such as boxes.
    """

    img_id: str
    hw: tuple[int, int]
    regions: tuple[tuple[str, np.ndarray], ...]
    num_other: int


@dataclass(frozen=True)
class CvatFile:
    """What a file holds.

    Attributes:
        labels: The labels that its task defines, in their order.
        images: The images, sorted by id.
    """

    labels: tuple[str, ...]
    images: tuple[CvatImage, ...]


def encode_image(
    number: int, name: str, mask: np.ndarray, value_of: Mapping[str, int]
) -> ET.Element:
    """Make the element of an image, one mask for each class of its mask, uint8 (H, W), but 255.

    ``number`` is the image's in the file, ``name`` its path below the folder of the images.
    """
    height, width = mask.shape
    image = ET.Element("image", id=str(number), name=name, width=str(width), height=str(height))
    for label, value in value_of.items():
        region = mask == value
        if not region.any():
            continue
        x0, y0, x1, y1 = find_box(region)
        ET.SubElement(
            image,
            "mask",
            label=label,
            source="auto",
            occluded="0",
            rle=", ".join(map(str, encode_runs(region[y0:y1, x0:x1]))),
            left=str(x0),
            top=str(y0),
            width=str(x1 - x0),
            height=str(y1 - y0),
            z_order="0",
        )
    return image


def encode_file(images: list[ET.Element], class_set: ClassSet) -> bytes:
    """Join the elements of images and the labels with their colours to the content of a file."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    labels = ET.SubElement(ET.SubElement(ET.SubElement(root, "meta"), "task"), "labels")
    for name, value in class_set.value_of.items():
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = name
        ET.SubElement(label, "color").text = "#{:02x}{:02x}{:02x}".format(*class_set.palette[value])
        ET.SubElement(label, "type").text = "mask"
        ET.SubElement(label, "attributes")
    root.extend(images)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def encode_runs(box: np.ndarray) -> list[int]:
    """Lengths of the runs of a box, bool (h, w), along its rows, background first.

    Example:
        >>> encode_runs(np.array([[True, False], [False, True]]))
        [0, 1, 2, 1]
    """
    flat = box.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff([0, *changes, flat.size]).tolist()


def read_cvat(path: str | Path) -> CvatFile:
    """Read an export "CVAT for images 1.1"; masks and polygons are regions, others are counted.

    Raises:
        AdcamError: The file is no such XML, a shape is damaged, or two images have one name.
    """
    root = read_xml(path)
    if root.tag != "annotations":
        raise AdcamError(f"{path}: no annotations of CVAT for images, but {root.tag!r}")
    images: dict[str, CvatImage] = {}
    for element in root.findall("image"):
        try:
            image = _read_image(element, Path(path))
        except (KeyError, ValueError, TypeError) as error:
            name = element.get("name")
            raise AdcamError(f"{path}: image {name!r} is damaged: {error}") from error
        if image.img_id in images:
            raise AdcamError(f"{path}: two images are named {image.img_id!r}")
        images[image.img_id] = image
    return CvatFile(list_labels(root), tuple(images[img_id] for img_id in sorted(images)))


def list_labels(root: ET.Element) -> tuple[str, ...]:
    """The labels of the task or project; parts of a skeleton, which have a parent, are left out."""
    labels = [x for x in root.iterfind("meta//labels/label") if x.find("parent") is None]
    names = ((label.findtext("name") or "").strip() for label in labels)
    return tuple(dict.fromkeys(name for name in names if name))


def _read_image(element: ET.Element, path: Path) -> CvatImage:
    name = check_relative(path, element.attrib["name"].replace("\\", "/"))
    hw = (int(element.attrib["height"]), int(element.attrib["width"]))
    check_image_hw(hw, "the image")
    # What lies above comes first; of equals, what was drawn later lies above.
    shapes = [shape for shape in reversed(list(element)) if shape.tag in ("mask", "polygon")]
    shapes.sort(key=lambda shape: -int(shape.get("z_order", "0")))
    regions = [(shape.attrib["label"], _read_shape(shape, hw)) for shape in shapes]
    num_other = sum(shape.tag in _OTHER_SHAPES for shape in element)
    return CvatImage(img_id_of(name), hw, tuple(regions), num_other)


def _read_shape(shape: ET.Element, hw: tuple[int, int]) -> np.ndarray:
    if shape.tag == "polygon":
        pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
        points = np.array(pairs, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise AdcamError("a polygon is a list of x,y;x,y;…")
        return fill_polygon(points.clip(0, (hw[1], hw[0])), hw)
    left, top, width, height = (
        int(shape.attrib[name]) for name in ("left", "top", "width", "height")
    )
    runs = [int(run) for run in shape.attrib["rle"].split(",")]
    inside = 0 <= left <= left + width <= hw[1] and 0 <= top <= top + height <= hw[0]
    if not inside or min(runs) < 0 or sum(runs) != width * height:
        raise AdcamError(f"a mask of {sum(runs)} pixels in a box {left}, {top}, {width}×{height}")
    region = np.zeros(hw, dtype=bool)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    region[top : top + height, left : left + width] = flat.reshape(height, width)
    return region
