"""A list of images with what is known about each: what every source of data comes down to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, overload

import numpy as np

from adcam.data.images import ImageError, check_same_hw, read_image, read_image_hw
from adcam.data.packed_images import PackedImage
from adcam.data.png import count_values, map_values, read_mask, voc_palette
from adcam.errors import AdcamError, join_some
from adcam.files import is_file, match_id
from adcam.limits import check_num_classes
from adcam.structures import IGNORE_INDEX, ClassSet, Sample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """Where an image is and what is known about it; nothing is read yet.

    Attributes:
        img_id: The image id, a relative path without suffix; it is unique within its data set.
        img_path: The image file.
        class_ids: The present foreground classes (0-based, ascending), ``()`` for "none of them",
            ``None`` for "not known".
        mask_path: The mask that the image should have, ``None`` if it should have none.
        boxes: The true boxes ``(x0, y0, x1, y1)`` in pixels of an image of ``boxes_hw``, ``None``
            if there are none.
        boxes_hw: Height and width of the image that the boxes were drawn on, ``None`` for those of
            this image.
        packed: Where the image is if it lies inside another file or behind a URL; ``img_path`` is
            then its name.
        as_stored: Whether the image is read as its file stores it, without the turn that EXIF asks
            for. Boxes of published sets are in these pixels, because the code that made and scores
            them opens images with Pillow alone.
    """

    img_id: str
    img_path: Path
    class_ids: tuple[int, ...] | None = None
    mask_path: Path | None = None
    boxes: tuple[tuple[int, int, int, int], ...] | None = None
    packed: PackedImage | None = None
    as_stored: bool = False
    boxes_hw: tuple[int, int] | None = None


class ImageDataset(Sequence[Sample]):
    """Images of one split, read when asked for; a slice is a data set again.

    Attributes:
        class_set: The classes that ``class_ids`` and masks refer to.
        split: The name of the split, e.g. ``"train_aug"``, which reports give.
        records: One record an image, in the order of the list file.
    """

    def __init__(
        self,
        class_set: ClassSet,
        split: str,
        records: Iterable[Record],
        *,
        other_values: Literal["refuse", "ignore"] = "refuse",
    ) -> None:
        """Check the records; no file is touched (see :meth:`check_files`).

        Args:
            class_set: The classes that class ids and masks refer to.
            split: The name of the split.
            records: The images in their order.
            other_values: What to do with mask values that are neither 0, nor 255, nor one of
                ``class_set.mask_values``: an error, or 255 in their place (for a subset of the
                classes that the masks were drawn for).

        Raises:
            AdcamError: An id is given twice, or class ids are not ascending ids of the set.
        """
        self.class_set = class_set
        self.split = split
        self.records = tuple(records)
        self.other_values = other_values
        self._index = {record.img_id: i for i, record in enumerate(self.records)}
        if len(self._index) != len(self.records):
            counts = Counter(record.img_id for record in self.records)
            twice = [img_id for img_id, count in counts.items() if count > 1]
            raise AdcamError(f"{len(twice)} image ids are given twice: {join_some(twice, 10)}")
        num_fg_classes = class_set.num_fg_classes
        for record in self.records:
            ids = record.class_ids
            if ids is not None and (
                tuple(sorted(set(ids))) != ids or any(not 0 <= i < num_fg_classes for i in ids)
            ):
                raise AdcamError(
                    f"image {record.img_id!r}: class ids must be ascending, each in "
                    f"0..{num_fg_classes - 1}, got {ids}"
                )

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> ImageDataset: ...

    def __getitem__(self, index: int | slice) -> Sample | ImageDataset:
        """Read an image with its mask, if it should have one.

        Raises:
            ImageError: The image or the mask cannot be read.
            AdcamError: The mask has another size than the image, or values outside the class set.
        """
        if isinstance(index, slice):
            return self._with_records(self.records[index])
        record = self.records[index]
        img = self.load_image(index)
        mask = self.load_mask(index)
        if mask is not None:
            image = f"its image {record.img_path}"
            check_same_hw(record.mask_path, mask.shape, image, img.shape[:2])
        boxes = None if record.boxes is None else np.array(record.boxes, dtype=np.int64)
        return Sample(
            record.img_id, img, record.class_ids, mask, record.img_path, boxes, record.boxes_hw
        )

    def load_image(self, index: int) -> np.ndarray:
        """RGB image, uint8 (H, W, 3).

        Raises:
            ImageError: The image cannot be read.
        """
        record = self.records[index]
        if record.packed is not None:
            return record.packed.load()
        return read_image(record.img_path, upright=not record.as_stored)

    def read_hw(self, index: int) -> tuple[int, int]:
        """Height and width of an image, from the head of its file.

        Raises:
            ImageError: It has no file of its own, or the head cannot be read.
        """
        record = self.records[index]
        if record.packed is not None:
            raise ImageError(f"{record.img_path}: only in one piece with its pixels")
        return read_image_hw(record.img_path, upright=not record.as_stored)

    def load_mask(self, index: int) -> np.ndarray | None:
        """Mask, uint8 (H, W): 0, values of the class set, 255; ``None`` if there should be none.

        Raises:
            ImageError: The mask cannot be read.
            AdcamError: It holds other values, and ``other_values`` is ``"refuse"``.
        """
        path = self.records[index].mask_path
        if path is None:
            return None
        mask, legal = read_mask(path), self.class_set.mask_values
        if self.other_values == "ignore":
            others = set(range(256)).difference(legal, (0,))
            return map_values(mask, dict.fromkeys(others, IGNORE_INDEX))
        try:
            count_values(mask, legal)
        except AdcamError as error:
            raise AdcamError(f"{path}: {error}") from error
        return mask

    def index_of(self, img_id: str) -> int:
        """Position of an image.

        Raises:
            AdcamError: No image has this id.
        """
        if img_id not in self._index:
            raise AdcamError(f"no image {img_id!r} in {self._name()}")
        return self._index[img_id]

    def subset(self, img_ids: Iterable[str]) -> ImageDataset:
        """The images whose ids, or file names, are given, in this order.

        Raises:
            AdcamError: An id is unknown or given twice.
        """
        img_ids = [match_id(name, self._index) for name in img_ids]
        if unknown := [img_id for img_id in img_ids if img_id not in self._index]:
            raise AdcamError(
                f"{len(unknown)} ids are not in {self._name()}: {join_some(unknown, 10)}"
            )
        return self._with_records(self.records[self._index[img_id]] for img_id in img_ids)

    def with_labels(
        self, labels: Mapping[str, Iterable[int]], *, table: str | Path | None = None
    ) -> ImageDataset:
        """The same images with other labels.

        Args:
            labels: The class ids of each image id, e.g. ``LabelTable.class_ids``. An image that is
                not among them gets ``None`` ("not known"); ids of other images are skipped, so that
                one table can serve several splits.
            table: The file that the labels are from, for messages. If it is named, a warning says
                which ids were skipped.

        Raises:
            AdcamError: A class id is out of range, or no id of a non-empty table is in this set.
        """
        stray = [img_id for img_id in labels if img_id not in self._index]
        where = "" if table is None else f"{table}: "
        if stray and self.records and len(stray) == len(labels):
            raise AdcamError(
                f"{where}none of the {len(stray)} labelled ids has an image in {self.split}: got "
                f"{join_some(stray, 3)}; expected such as {self.records[0].img_id!r}"
            )
        if stray and table is not None:
            logger.warning(
                "%s%d of %d labelled ids have no image in %s and are left out: %s",
                where,
                len(stray),
                len(labels),
                self.split,
                join_some(stray, 3),
            )
        return self._with_records(
            replace(
                record,
                class_ids=tuple(sorted(set(labels[record.img_id])))
                if record.img_id in labels
                else None,
            )
            for record in self.records
        )

    def missing_files(self, *, masks: bool = True) -> list[Path]:
        """Images, and with ``masks`` masks, that should exist and do not, in record order."""
        paths = [
            path
            for record in self.records
            for path in (
                record.img_path if record.packed is None else None,
                record.mask_path if masks else None,
            )
            if path is not None
        ]
        return [path for path in paths if not is_file(path)]

    def check_files(self, *, masks: bool = True) -> None:
        """Find missing images, and masks, before a run starts rather than hours into it.

        Raises:
            AdcamError: Images or masks are missing; the message counts them and names the first.
        """
        if missing := self.missing_files(masks=masks):
            raise AdcamError(
                f"{len(missing)} files of {self._name()} are missing: {join_some(missing, 10)}"
            )

    def _with_records(self, records: Iterable[Record]) -> ImageDataset:
        return ImageDataset(self.class_set, self.split, records, other_values=self.other_values)

    def _name(self) -> str:
        return f"{self.class_set.name}/{self.split} ({len(self.records)} images)"


def build_class_set(name: str, classes: Sequence[str], *, masks: bool = True) -> ClassSet:
    """A class set with mask values 1..K in the order given and VOC's colours.

    Args:
        name: The name of the data set.
        classes: The names of the classes in classifier order.
        masks: Whether masks may show the classes; without, there are no mask values, and as many
            classes as :mod:`adcam.limits` allows.

    Raises:
        AdcamError: A class is given twice, or there are more than the 254 that fit beside
            background and ignore.
    """
    if masks and len(classes) > 254:
        raise AdcamError(f"a mask can show at most 254 classes, got {len(classes)}")
    check_num_classes(len(classes))
    values = tuple(range(1, len(classes) + 1)) if masks else ()
    return ClassSet(name, tuple(classes), values, voc_palette())
