"""What the explorer of a report shows: images with their maps and masks, one script file each.

A page that is opened from a disk may load scripts and pictures beside it, but no other data. So
every image is a script ``<number>.js`` that hands its arrays to the page, and a small picture
``<number>.jpg`` for the list of all images; the page loads both when they are needed. What the page
must know of all images at once is ``index.json``.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adcam.files import open_json, parse_json, read_text, refuse_links, write_bytes, write_json
from adcam.report.figures import (
    display_palette,
    encode_jpeg,
    fit_side,
    heat_colors,
    overlay_mask,
)
from adcam.structures import IGNORE_INDEX, ClassSet

EXPLORER_DIR = "explorer"
"""The name of the folder of an explorer, beside the page and in the folder of a stage."""

INDEX_NAME = "index.json"

IMAGE_SIDE = 320
"""The longer side of the images and masks of an explorer, in pixels."""

MAP_SIDE = 160
"""The longer side of its maps, in pixels: they come from far coarser token grids."""

THUMBNAIL_SIDE = 160
"""The longer side in pixels of the pictures in the list of all images."""

_MOST_CONFUSIONS = 8  # of an image: smaller ones are not looked for


@dataclass(frozen=True)
class ExploredMethod:
    """A method, or something else that made masks, as one panel of the explorer.

    Attributes:
        name: Its name.
        miou: Its mean IoU over all images in percent, as the tables of the report give it; ``None``
            without ground truth.
        rule: The background rule of its stored masks, such as ``"constant:0.42"``; ``""`` where a
            mask follows no rule.
        crf: Whether its masks went through a dense CRF, and so do not follow the sliders.
    """

    name: str
    miou: float | None = None
    rule: str = ""
    crf: bool = False


@dataclass(frozen=True, eq=False)
class PatchAttention:
    """What the patches of an image attend to.

    Attributes:
        grid_hw: The grid of the N = h w patches, row by row.
        attention: The attention of each patch (row) to each other, uint8 (N, N), in 255ths of the
            largest value of its row.
        affinity: The same after refinement by common neighbours.
    """

    grid_hw: tuple[int, int]
    attention: np.ndarray
    affinity: np.ndarray


@dataclass(frozen=True, eq=False)
class ExploredImage:
    """An image with what all methods made of it, small.

    Attributes:
        img_id: The id of the image.
        rgb: The image, uint8 (h, w, 3).
        class_values: The mask values of the K classes that the maps are of.
        truth: The ground truth, uint8 (h, w); ``None`` where there is none.
        maps: The maps by method, uint8 (K, h', w') with h' <= h; 255 stands for a score of 1.
        masks: The masks by method, uint8 (h, w).
        mious: The mean IoU of this image in percent by method, at the image's full size.
        confidence: The classifier's probability of the image's least likely class, in [0, 1];
            ``None`` where it is not known.
        attention: What its patches attend to; ``None`` for most images, since it is large.
        true_boxes: Its true boxes, each x0, y0, x1, y1 as shares of width and height.
        found_boxes: The box that each method found, by its name, in the same form.
    """

    img_id: str
    rgb: np.ndarray
    class_values: Sequence[int]
    truth: np.ndarray | None = None
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    mious: Mapping[str, float] = field(default_factory=dict)
    confidence: float | None = None
    attention: PatchAttention | None = None
    true_boxes: Sequence[Sequence[float]] = ()
    found_boxes: Mapping[str, Sequence[float]] = field(default_factory=dict)


class ExplorerWriter:
    """Writes the files of an explorer, image by image; memory does not grow with their arrays.

    Args:
        folder: The folder to write into.
        methods: The panels, in their order; the last is the main one, whose masks the list of all
            images shows.
        class_set: Names and values of the classes.

    Raises:
        AdcamError: The folder is a symbolic link.
    """

    def __init__(
        self, folder: Path, methods: Sequence[ExploredMethod], class_set: ClassSet
    ) -> None:
        self._folder = refuse_links(folder.parent, folder / INDEX_NAME).parent
        self._methods = tuple(methods)
        self._class_set = class_set
        self._palette = display_palette(class_set)
        self._entries: list[dict[str, Any]] = []
        self._with_maps: set[str] = set()
        self._with_masks: set[str] = set()

    def add(self, image: ExploredImage) -> None:
        """Write the files of one image; the first gets the number 0.

        Raises:
            ValueError: A mask or the ground truth has another size than the image.
            OSError: The folder cannot be written to.
        """
        self._write_files(str(len(self._entries)), image)
        self._entries.append(self._describe(image))
        self._with_maps.update(image.maps)
        self._with_masks.update(image.masks)

    def finish(self) -> None:
        """Write the index, which makes the folder an explorer.

        Raises:
            OSError: The folder cannot be written to.
        """
        classes = [
            {
                "value": value,
                "name": self._class_set.name_of_value(value),
                "color": list(self._palette[value]),
            }
            for value in (0, *self._class_set.mask_values)
        ]
        methods = [
            {
                **vars(method),
                "miou": _round(method.miou),
                "maps": method.name in self._with_maps,
                "masks": method.name in self._with_masks,
            }
            for method in self._methods
        ]
        index = {
            "classes": classes,
            "methods": methods,
            "heat": base64.b64encode(heat_colors().tobytes()).decode(),
            "images": self._entries,
        }
        write_json(self._folder / INDEX_NAME, index)

    def _write_files(self, name: str, image: ExploredImage) -> None:
        """Write the script of an image, its small picture, and the script of its attention."""
        hw = image.rgb.shape[:2]
        arrays = [image.truth, *image.masks.values()]
        if wrong := [array.shape for array in arrays if array is not None and array.shape != hw]:
            raise ValueError(f"masks of {image.img_id!r} must be of its size {hw}, got {wrong}")
        photo = encode_jpeg(image.rgb, max_side=max(hw), quality=90)
        found = [image.found_boxes.get(method.name) for method in self._methods]
        values = {
            "hw": list(hw),
            "photo": base64.b64encode(photo).decode(),
            "truth": _pack_optional(image.truth),
            "values": list(image.class_values),
            "maps": [_pack_maps(image.maps.get(method.name)) for method in self._methods],
            "boxes": {
                "true": [_round_box(box) for box in image.true_boxes],
                "found": [None if box is None else _round_box(box) for box in found],
            },
            "masks": [_pack_optional(image.masks.get(method.name)) for method in self._methods],
        }
        if image.attention is not None:
            patches = {
                "grid_hw": list(image.attention.grid_hw),
                "attention": pack_array(image.attention.attention),
                "affinity": pack_array(image.attention.affinity),
            }
            script = encode_script(f"{name}-attention", patches)
            write_bytes(self._folder / f"{name}-attention.js", script)
        shown = image.rgb
        if (main := self._main_mask(image)) is not None:
            shown = overlay_mask(image.rgb, main, self._palette, opacity=0.45)
        thumbnail = encode_jpeg(shown, max_side=THUMBNAIL_SIDE, quality=80)
        write_bytes(self._folder / f"{name}.jpg", thumbnail)
        write_bytes(self._folder / f"{name}.js", encode_script(name, values))

    def _describe(self, image: ExploredImage) -> dict[str, Any]:
        """Describe an image for the index.

        Returns:
            ``id``; ``classes``, the mask values of its labels; ``iou`` by panel; ``size``, the
            share of the pixels in percent that are no background in the ground truth, or without
            one in the last mask; ``confidence``; ``attention``, whether it is stored; and
            ``confusions`` of the last mask.
        """
        main = self._main_mask(image)
        measured = main if image.truth is None else image.truth
        size = None
        if measured is not None:
            scored = measured[measured != IGNORE_INDEX]
            size = round(100 * float((scored != 0).mean()), 2) if scored.size else 0.0
        return {
            "id": image.img_id,
            "classes": list(image.class_values),
            "iou": [_round(image.mious.get(method.name)) for method in self._methods],
            "size": size,
            "confidence": None if image.confidence is None else round(float(image.confidence), 4),
            "attention": image.attention is not None,
            "confusions": find_confusions(image.truth, main),
        }

    def _main_mask(self, image: ExploredImage) -> np.ndarray | None:
        """The mask of the last panel."""
        return image.masks.get(self._methods[-1].name) if self._methods else None


def shrink_image(img: np.ndarray) -> np.ndarray:
    """Reduce an image, uint8 (H, W, 3), to :data:`IMAGE_SIDE` pixels on a side at most."""
    height, width = fit_side((img.shape[0], img.shape[1]), IMAGE_SIDE)
    small = Image.fromarray(img).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2)
    return np.asarray(small)


def shrink_mask(mask: np.ndarray) -> np.ndarray:
    """Reduce a mask, uint8 (H, W), to the same size; a pixel takes the value at its middle."""
    height, width = fit_side((mask.shape[0], mask.shape[1]), IMAGE_SIDE)
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def read_index(folder: Path) -> dict[str, Any] | None:
    """Read what :class:`ExplorerWriter` left in a folder; ``None`` if there is no index.

    Raises:
        AdcamError: The file is damaged.
    """
    if not (folder / INDEX_NAME).is_file():
        return None
    with open_json(folder / INDEX_NAME, "not the index of an explorer") as index:
        if not all(isinstance(index[key], list) for key in ("classes", "methods", "images")):
            raise TypeError("classes, methods and images must be lists")
        return dict(index)


def find_confusions(truth: np.ndarray | None, mask: np.ndarray | None) -> list[list[int]]:
    """The largest confusions of a mask: [true value, predicted value, pixels], largest first.

    Args:
        truth: The ground truth, uint8 (h, w), or ``None``.
        mask: The mask, uint8 (h, w), or ``None``.

    Returns:
        At most eight; none where one of the two is missing.
    """
    if truth is None or mask is None:
        return []
    wrong = (truth != mask) & (truth != IGNORE_INDEX) & (mask != IGNORE_INDEX)
    pairs = truth[wrong].astype(np.int64) * 256 + mask[wrong]
    found, counts = np.unique(pairs, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_CONFUSIONS]
    return [[int(found[i]) // 256, int(found[i]) % 256, int(counts[i])] for i in order]


def list_files(index: Mapping[str, Any]) -> Iterator[str]:
    """Name the files of an explorer that its page loads.

    Args:
        index: What :func:`read_index` returned.
    """
    for number, image in enumerate(index["images"]):
        yield from (f"{number}.js", f"{number}.jpg")
        if image["attention"]:
            yield f"{number}-attention.js"


def encode_script(name: str, values: Mapping[str, Any]) -> bytes:
    """Write a script that hands values to the page.

    Args:
        name: The name of the script without its suffix.
        values: JSON values.
    """
    text = json.dumps(values, separators=(",", ":"))
    return f"adcam.receive({json.dumps(name)}, {text});\n".encode("ascii")


def read_script(path: Path) -> dict[str, Any]:
    """Read the values of a script that :func:`encode_script` wrote; nothing of it is run.

    Raises:
        AdcamError: The file is missing or damaged.
    """
    what = "not a script of an explorer"
    text = read_text(path, what, limit="json_bytes")
    values: dict[str, Any] = parse_json(text[text.find("{") : text.rfind("}") + 1], str(path))
    return values


def pack_array(array: np.ndarray) -> str:
    """Compress the bytes of an uint8 array without loss (zlib) and write them as base64."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 6)).decode()


def _pack_maps(maps: np.ndarray | None) -> dict[str, Any] | None:
    return None if maps is None else {"hw": list(maps.shape[1:]), "data": pack_array(maps)}


def _pack_optional(array: np.ndarray | None) -> str | None:
    return None if array is None else pack_array(array)


def _round_box(box: Sequence[float]) -> list[float]:
    return [round(float(side), 4) for side in box]


def _round(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), 2)
