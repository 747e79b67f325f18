"""Masks that are to be converted, with everything that is known about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from adcam.data.png import map_values, parse_values, read_mask, voc_palette
from adcam.data.voc import voc_class_set
from adcam.errors import AdcamError
from adcam.files import find_files, find_images, read_json, read_text
from adcam.labeling.output_folder import (
    CONFIG_NAME,
    MANIFEST_NAME,
    MAPS_DIR,
    MASK_DIR,
    masks_folder,
)
from adcam.structures import IGNORE_INDEX, ClassSet


@dataclass(frozen=True)
class MaskSource:
    """A folder of masks.

    Attributes:
        paths: The masks by image id, ids ascending.
        class_set: Names, values and colours of the classes.
        image_paths: The image of each mask, as far as it is known.
        file_names: The names of these images below their folder, with ``/`` between folders.
        values: What mask values are read as, e.g. ``{255: 1}``.
    """

    paths: Mapping[str, Path]
    class_set: ClassSet
    image_paths: Mapping[str, Path]
    values: Mapping[int, int]

    def read(self, img_id: str) -> np.ndarray:
        """A mask, uint8 (H, W).

        Raises:
            ImageError: The file cannot be read.
        """
        return map_values(read_mask(self.paths[img_id]), self.values)

    def name_of(self, img_id: str, suffix: str) -> str:
        """The name of an image below its folder; where it is not known, its id and ``suffix``."""
        if (path := self.image_paths.get(img_id)) is None:
            return f"{img_id}{suffix}"
        return "/".join(path.parts[-len(img_id.split("/")) :])

    def describe(self, pixels: np.ndarray) -> list[str]:
        """What a user should know of the masks' values.

        Args:
            pixels: Number of pixels of each value in all masks, int64 (256,).
        """
        if not pixels[IGNORE_INDEX] or pixels[1:IGNORE_INDEX].any():
            return []
        return [
            f"all masks hold only 0 and {IGNORE_INDEX}, which means 'ignored'; if it means the "
            f"object, --values {IGNORE_INDEX}=1 reads it as the first class"
        ]


def find_masks(
    masks: str | Path,
    class_set: ClassSet | None = None,
    *,
    images: str | Path | None = None,
    values: str | None = None,
) -> MaskSource:
    """Open a folder of masks.

    Args:
        masks: Folder of ``<id>.png``; of an output folder of this project, which brings classes,
            colours and images, the ``masks`` in it.
        class_set: The classes; ``None`` takes those of the output folder, else VOC's.
        images: Folder of the images; ``None`` takes those that the output folder names.
        values: What mask values are read as, e.g. ``"255=1"``
            (:func:`adcam.data.png.parse_values`).

    Raises:
        AdcamError: There are no masks, the output folder is damaged, or ``values`` is malformed.
    """
    folder = masks_folder(masks)
    paths = find_files(folder, ".png").paths
    own = read_output(folder)
    image_paths = {} if own is None else own.image_paths
    if images is not None:
        image_paths = find_images(images).paths
    if class_set is None:
        class_set = voc_class_set() if own is None else own.class_set
    return MaskSource(paths, class_set, image_paths, parse_values(values))


@dataclass(frozen=True)
class OwnOutput:
    """What an output folder of this project says of its results.

    Attributes:
        class_set: Names, mask values and colours of the classes.
        image_paths: The image of each mask by image id; it may have been moved since.
    """

    class_set: ClassSet
    image_paths: dict[str, Path]


def read_output(folder: Path) -> OwnOutput | None:
    """Classes and images of an output folder of this project, ``None`` for other folders.

    Args:
        folder: The folder, or the ``masks`` or ``maps`` in it.

    Raises:
        AdcamError: Its ``config.json`` is damaged.
    """
    if folder.name in (MASK_DIR, MAPS_DIR) and not (folder / CONFIG_NAME).is_file():
        folder = folder.parent
    config_path, manifest = folder / CONFIG_NAME, folder / MANIFEST_NAME
    if not (config_path.is_file() and manifest.is_file()):
        return None
    labeler = read_json(config_path, what="the configuration of an output folder").get("labeler")
    try:
        names, values = tuple(labeler["classes"]), tuple(map(int, labeler["mask_values"]))
        palette = _read_palette(folder / MASK_DIR)
        class_set = ClassSet(folder.resolve().name, names, values, palette)
    except (KeyError, TypeError, ValueError) as err:
        raise AdcamError(f"{config_path} does not say the classes and their mask values") from err
    image_paths = {}
    for line in read_text(manifest, "a manifest").splitlines():
        try:
            entry = json.loads(line)
            image_paths[str(entry["id"])] = folder / entry["image"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a line torn by a kill, or of an image that has no file
    return OwnOutput(class_set, image_paths)


def _read_palette(masks: Path) -> tuple[tuple[int, int, int], ...]:
    """The colours of the first mask of a folder that has any, else VOC's."""
    for path in masks.rglob("*.png"):
        try:
            with Image.open(path, formats=("PNG",)) as img:
                colors = img.getpalette() or []
        except (OSError, ValueError):
            continue
        if len(colors) == 3 * 256:
            return tuple((colors[i], colors[i + 1], colors[i + 2]) for i in range(0, 768, 3))
    return voc_palette()
