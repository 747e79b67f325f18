"""Masks that are to be converted, with everything that is known about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adcam.data.converted import read_converted_classes
from adcam.data.png import map_values, parse_values, read_mask
from adcam.data.voc import voc_class_set
from adcam.errors import AdcamError
from adcam.files import find_files, find_images
from adcam.labeling.output_folder import masks_folder, read_output_folder
from adcam.structures import IGNORE_INDEX, ClassSet

SPLITS = ("train", "val", "test")
"""The parts of a data set that other training code knows."""


@dataclass(frozen=True)
class MaskSource:
    """A folder of masks.

    Attributes:
        paths: The masks by image id, ids ascending.
        class_set: Names, values and colours of the classes.
        image_paths: The image of each mask, as far as it is known.
        values: What mask values are read as, e.g. ``{255: 1}``.
        pixels: Number of pixels of each value in the masks read so far.
    """

    paths: Mapping[str, Path]
    class_set: ClassSet
    image_paths: Mapping[str, Path]
    values: Mapping[int, int]
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))

    def read(self, img_id: str) -> np.ndarray:
        """A mask, uint8 (H, W), whose pixels are counted.

        Raises:
            ImageError: The file cannot be read.
        """
        mask = map_values(read_mask(self.paths[img_id]), self.values)
        np.add(self.pixels, np.bincount(mask.ravel(), minlength=256), out=self.pixels)
        return mask

    def find_image(self, img_id: str) -> Path:
        """The image of a mask.

        Raises:
            AdcamError: It is not there, or not known.
        """
        path = self.image_paths.get(img_id)
        if path is None or not path.is_file():
            raise AdcamError("its image is not there; name the folder of images with --images")
        return path

    def name_of(self, img_id: str, suffix: str) -> str:
        """The name of an image below its folder; where it is not known, its id and ``suffix``."""
        if (path := self.image_paths.get(img_id)) is None:
            return f"{img_id}{suffix}"
        return "/".join(path.parts[-len(img_id.split("/")) :])

    def describe(self, suffix: str | None = None) -> Iterator[str]:
        """What a user should know of the values of the masks read so far.

        With a ``suffix``, also of the names that :meth:`name_of` gives the images by it.
        """
        unknown = [img_id for img_id in self.paths if img_id not in self.image_paths]
        if suffix is not None and unknown:
            yield (
                f"{len(unknown)} of {len(self.paths)} images are not known and named as "
                f"{unknown[0]}{suffix}; --images names their folder, --image-suffix another suffix"
            )
        if self.pixels[IGNORE_INDEX] and not self.pixels[1:IGNORE_INDEX].any():
            yield (
                f"all masks hold only 0 and {IGNORE_INDEX}, which means 'ignored'; if it means the "
                f"object, --values {IGNORE_INDEX}=1 reads it as the first class"
            )


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
        class_set: The classes; ``None`` takes those of the output folder or of the conversion that
            made the masks, else VOC's.
        images: Folder of the images; ``None`` takes those that the output folder names.
        values: What mask values are read as, e.g. ``"255=1"``
            (:func:`adcam.data.png.parse_values`).

    Raises:
        AdcamError: There are no masks, the output folder is damaged, or ``values`` is malformed.
    """
    folder = masks_folder(masks)
    paths = find_files(folder, ".png")
    own = read_output_folder(folder)
    image_paths = {} if own is None else own.image_paths
    if images is not None:
        image_paths = find_images(images)
    if class_set is None:
        converted = read_converted_classes(folder) if own is None else own.class_set
        class_set = converted or voc_class_set()
    return MaskSource(paths, class_set, image_paths, parse_values(values))
