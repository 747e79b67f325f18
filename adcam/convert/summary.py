"""What a conversion did: counts, classes, and a hash of all that it made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adcam.data.png import count_values
from adcam.structures import IGNORE_INDEX, ClassSet


@dataclass(frozen=True)
class Converted:
    """The result of one conversion.

    Attributes:
        what: The name of the converter.
        out: The folder or file that was written.
        num_images: Number of images converted, in this run or an earlier one.
        kept: Number of these whose file was there already.
        failed: Why an image could not be converted, by its id.
        class_images: Number of images that show a class, by class name.
        class_pixels: Number of pixels of a class, by class name, background and ignored ones
            included; empty where there are no masks.
        sha256: Hash of all results in the order of image ids: values of masks, classes of labels or
            bytes of other files, so that it does not depend on how PNG files are compressed.
        notes: What else a user should know, such as counts compared with known ones.
    """

    what: str
    out: Path
    num_images: int
    kept: int
    failed: Mapping[str, str]
    class_images: Mapping[str, int]
    class_pixels: Mapping[str, int]
    sha256: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-serialisable."""
        return {**vars(self), "out": str(self.out), "notes": list(self.notes)}


@dataclass
class ClassCounts:
    """Counts of what was made; images are added in the order of their ids.

    Attributes:
        class_set: The classes that are counted.
        images: Number of images that show each class.
        pixels: Number of pixels of each mask value.
        num_images: Number of images that were added.
        kept: Number of these whose file was there already.
        failed: Why an image has no file, by its id.
    """

    class_set: ClassSet
    num_images: int = field(default=0, init=False)
    kept: int = field(default=0, init=False)
    failed: dict[str, str] = field(default_factory=dict, init=False)
    images: np.ndarray = field(init=False)
    pixels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.images = np.zeros(self.class_set.num_fg_classes, dtype=np.int64)
        self.pixels = np.zeros(256, dtype=np.int64)
        self._hash = hashlib.sha256()

    def add_mask(self, img_id: str, mask: np.ndarray) -> None:
        """Count a mask, uint8 (H, W).

        Raises:
            AdcamError: It holds values outside the class set.
        """
        counts = count_values(mask, self.class_set.mask_values)
        self.pixels += counts
        ids = [i for i, value in enumerate(self.class_set.mask_values) if counts[value]]
        self.add_file(img_id, ids, f"{mask.shape[0]} {mask.shape[1]}\n".encode() + mask.tobytes())

    def add_labels(self, img_id: str, class_ids: Iterable[int]) -> None:
        """Count an image's labels, class ids from 0."""
        ids = sorted(class_ids)
        self.add_file(img_id, ids, " ".join(map(str, ids)).encode())

    def add_file(self, img_id: str, class_ids: Iterable[int], content: bytes) -> None:
        """Count a file that shows some classes."""
        self.num_images += 1
        self.images[sorted(class_ids)] += 1
        self._hash.update(f"{img_id}\n{len(content)}\n".encode() + content)

    def finish(self, what: str, out: Path, notes: Iterable[str] = ()) -> Converted:
        """The result, classes by name."""
        names = self.class_set.classes
        values = [0, *self.class_set.mask_values, IGNORE_INDEX]
        pixel_names = ["background", *names, "ignore"] if self.class_set.mask_values else []
        class_pixels = {n: int(self.pixels[v]) for n, v in zip(pixel_names, values, strict=False)}
        return Converted(
            what,
            out,
            self.num_images,
            self.kept,
            self.failed,
            {name: int(self.images[i]) for i, name in enumerate(names)},
            class_pixels if self.pixels.any() else {},
            self._hash.hexdigest(),
            tuple(notes),
        )
