"""The images that a classifier learns from, with everything checked that is known beforehand."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from adcam.data.augment import class_counts
from adcam.data.dataset import ImageDataset
from adcam.data.images import ImageError
from adcam.data.sources import build_dataset
from adcam.errors import AdcamError, join_some
from adcam.settings import Settings
from adcam.structures import ClassSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledImages:
    """Training and validation images of a classifier.

    Attributes:
        train: The training images, one data set a list of ``data.train``.
        val: The validation images.
    """

    train: tuple[ImageDataset, ...]
    val: ImageDataset

    @property
    def class_set(self) -> ClassSet:
        """The classes, which all lists share."""
        return self.val.class_set


def open_labelled_images(settings: Settings) -> LabelledImages:
    """Open the lists of a config and find what would spoil a training before its first step.

    Classes that no image shows are logged as warnings.

    Raises:
        AdcamError: A list is missing or empty, files or labels are missing, classes differ, no
            image of a list can be read, or no image shows any class.
    """
    data = settings.data
    if not data.train or data.val is None:
        raise AdcamError("data.train and data.val must name lists of images")
    train = tuple(build_dataset(data, split) for split in data.train)
    images = LabelledImages(train, build_dataset(data, data.val))
    for part in (*train, images.val):
        if not len(part):
            raise AdcamError(f"split {part.split!r} is empty; a training needs images in it")
        part.check_files(masks=False)
        if settings.task == "localization":
            _check_single_labels(part)
    for part in train:
        if part.class_set.classes != images.class_set.classes:
            raise AdcamError(
                f"{part.split!r} has {part.class_set.num_fg_classes} classes, "
                f"{images.val.split!r} has {images.class_set.num_fg_classes}, or others; name them "
                "in data.classes"
            )
    _check_classes(images)
    for part in (*train, images.val):
        _check_readable(part)
    return images


def _check_single_labels(images: ImageDataset) -> None:
    several = [r for r in images.records if r.class_ids is not None and len(r.class_ids) != 1]
    if several:
        raise AdcamError(
            f"task 'localization' needs one class an image; {len(several)} of {len(images)} images "
            f"of split {images.split!r} have another number, the first is {several[0].img_id!r} "
            f"with {len(several[0].class_ids or ())}"
        )


def _check_classes(images: LabelledImages) -> None:
    """Refuse lists that show no class at all; say which classes a list does not show."""
    names = ", ".join(repr(part.split) for part in images.train)
    for parts, what, use in (
        (images.train, f"training images ({names})", "learn"),
        ((images.val,), f"validation images ({images.val.split!r})", "be scored"),
    ):
        counts = [class_counts(part) for part in parts]
        absent = [name for name in images.class_set.classes if not any(c[name] for c in counts)]
        if len(absent) == images.class_set.num_fg_classes:
            raise AdcamError(f"none of the {what} shows any class; look at data.labels")
        if absent:
            shown = join_some(absent, 10)
            logger.warning(
                "%d of %d classes are in none of the %s and cannot %s: %s",
                *(len(absent), images.class_set.num_fg_classes, what, use, shown),
            )


def _check_readable(images: ImageDataset) -> None:
    """Read images until one can be read; single broken ones are left out later."""
    for index in range(len(images)):
        try:
            images.load_image(index)
        except ImageError as error:
            reason = error
            continue
        return
    raise AdcamError(
        f"none of the {len(images)} images of {images.split!r} can be read; the last: {reason}"
    )
