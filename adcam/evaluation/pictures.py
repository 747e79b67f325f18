"""An evaluator that keeps every image small, with its maps and masks, for the report."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import numpy as np
from PIL import Image

from adcam.evaluation.boxes import boxes_of
from adcam.evaluation.mapping import MappedImage, MaskChoice
from adcam.files import Spool
from adcam.labeling.mask_maker import resize_maps
from adcam.report.explorer import IMAGE_SIDE, MAP_SIDE, shrink_mask
from adcam.report.figures import encode_jpeg, fit_side
from adcam.structures import ClassSet

MAX_IMAGES = 2000
"""The number of images that are kept at most, evenly spread; each takes about 50 kB of disk."""


Bytes = bytes | Callable[[], bytes]
"""Bytes in memory, or a function that reads them from where they were put aside."""


def _read(data: Bytes) -> bytes:
    return data if isinstance(data, bytes) else data()


@dataclass(frozen=True)
class _Packed:
    """An array, compressed without loss."""

    data: Bytes
    shape: tuple[int, ...]

    @classmethod
    def pack(cls, array: np.ndarray) -> _Packed:
        return cls(zlib.compress(np.ascontiguousarray(array).tobytes(), 1), array.shape)

    def unpack(self) -> np.ndarray:
        return np.frombuffer(zlib.decompress(_read(self.data)), np.uint8).reshape(self.shape)

    def put_aside(self, spool: Spool) -> _Packed:
        return replace(self, data=spool.put(_read(self.data)))


@dataclass(frozen=True, eq=False)
class SmallImage:
    """An image with what all methods made of it, reduced for the report.

    Attributes:
        index: The position of the image in its data set.
        img_id: The id of the image.
        class_ids: The labelled classes of the image.
        boxes: The true boxes, float (n, 4), as shares of the width and height; ``None`` where
            there are none.
        confidence: The probability that the network of the last mask, or else of the last map,
            gives the least likely of these classes; ``None`` where it is not known.
    """

    index: int
    img_id: str
    class_ids: tuple[int, ...]
    boxes: np.ndarray | None
    confidence: float | None
    _img: Bytes
    _gt: _Packed | None
    _maps: Mapping[str, _Packed]
    _masks: Mapping[str, _Packed]

    @property
    def img(self) -> np.ndarray:
        """The image, uint8 (h, w, 3), with at most :data:`IMAGE_SIDE` pixels on a side."""
        return np.array(Image.open(io.BytesIO(_read(self._img))))

    @property
    def gt(self) -> np.ndarray | None:
        """The ground truth mask at the size of the image, uint8 (h, w)."""
        return None if self._gt is None else self._gt.unpack()

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """The maps of the labelled classes by method, uint8 (K, h', w').

        They have at most :data:`MAP_SIDE` pixels on a side; 255 stands for a score of 1.
        """
        return {name: packed.unpack() for name, packed in self._maps.items()}

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks by method at the size of the image, uint8 (h, w)."""
        return {name: packed.unpack() for name, packed in self._masks.items()}

    def score_map(self, name: str) -> np.ndarray:
        """Return the highest score of any labelled class, float32 (h, w), at the image's size.

        Args:
            name: The method.
        """
        maps = self._maps[name].unpack()
        highest = maps.max(axis=0, initial=0)[None].astype(np.float32) / 255
        height, width = self.img.shape[:2]
        return resize_maps(highest, (height, width))[0]

    def put_aside(self, spool: Spool) -> SmallImage:
        """Return this image with its arrays in a file instead of the memory."""
        return replace(
            self,
            _img=spool.put(_read(self._img)),
            _gt=None if self._gt is None else self._gt.put_aside(spool),
            _maps={name: packed.put_aside(spool) for name, packed in self._maps.items()},
            _masks={name: packed.put_aside(spool) for name, packed in self._masks.items()},
        )


class Pictures:
    """Keeps images with their maps and masks, so that a report needs no second pass.

    What others have kept and this instance takes over is put aside on the disk, until neither this
    instance nor any of its images is used any more.

    Args:
        names: The methods whose maps are kept.
        choices: The masks that are kept.
        class_set: The classes of the data set.
        num_images: The number of images in the data set.
        stride: Only every n-th image is looked at.
        limit: The number of images that are kept at most, evenly spread.
        folder: The folder of the file that they are put aside in; ``None`` takes that of the system
            for temporary files.
    """

    step = "pictures"

    def __init__(
        self,
        names: Sequence[str],
        choices: Sequence[MaskChoice],
        class_set: ClassSet,
        *,
        num_images: int,
        stride: int = 1,
        limit: int = MAX_IMAGES,
        folder: str | Path | None = None,
    ) -> None:
        self._names = tuple(names)
        self.choices = tuple(choices)
        self._class_set = class_set
        self._stride = stride * max(-(-num_images // (stride * limit)), 1)
        self._folder = folder
        self.reset()

    def reset(self) -> None:
        self._images: list[SmallImage] = []
        self._spool: Spool | None = None  # opened when needed: the copies in workers need none

    def wants(self, index: int) -> Collection[str]:
        if index % self._stride:
            return ()
        return (*self._names, *(choice.name for choice in self.choices))

    def process(self, image: MappedImage) -> None:
        """Keep one image."""
        sample = image.sample
        map_hw = fit_side(sample.ori_hw, MAP_SIDE)
        mask_values = self._class_set.mask_values
        masks = {choice.name: image.make_mask(choice, mask_values).mask for choice in self.choices}
        boxes = None
        if sample.boxes is not None:
            drawn, (height, width) = boxes_of(sample)
            boxes = drawn / np.array([width, height] * 2)
        last = [*self._names, *masks][-1]
        self._images.append(
            SmallImage(
                image.index,
                sample.img_id,
                sample.class_ids or (),
                boxes,
                image.maps[last].confidence,
                encode_jpeg(sample.img, max_side=IMAGE_SIDE, quality=92),
                None if sample.mask is None else _Packed.pack(shrink_mask(sample.mask)),
                {name: self._reduce_maps(image, name, map_hw) for name in self._names},
                {name: _Packed.pack(shrink_mask(mask)) for name, mask in masks.items()},
            )
        )

    def merge(self, other: Pictures) -> None:
        """Add the images of another instance.

        Raises:
            OSError: The disk is full or gone.
        """
        if self._spool is None:
            self._spool = Spool(self._folder)
        self._images += [image.put_aside(self._spool) for image in other._images]

    def compute(self) -> tuple[SmallImage, ...]:
        """Return the images that were kept, in their order."""
        return tuple(sorted(self._images, key=attrgetter("index")))

    def _reduce_maps(self, image: MappedImage, name: str, hw: tuple[int, int]) -> _Packed:
        maps = image.maps[name]
        labelled = [i for i, c in enumerate(maps.class_ids) if c in (image.sample.class_ids or ())]
        small = resize_maps(maps.score_maps[labelled], hw)
        return _Packed.pack(np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8))
