"""Images as tensors for training the classifier."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from adcam.data.dataset import ImageDataset
from adcam.data.images import ImageError
from adcam.errors import AdcamError

logger = logging.getLogger(__name__)


class TrainDataset(Dataset[dict[str, Tensor]]):
    """Random crops, mirrored and recoloured, with multi-hot labels.

    Args:
        images: The images with their labels.
        img_size: The side of the square crop in pixels.
        min_area: The smallest share of the image that a crop covers, in (0, 1]; smaller shows more
            parts and fewer whole objects, and more often misses what the label promises.
        jitter: How strongly brightness, contrast and saturation are changed; 0 leaves them.
        resize: The side in pixels of the square that an image is resized to before a crop of
            ``img_size`` is cut out of it, as TS-CAM does (256 for 224); larger shows less of the
            image. ``None`` leaves the crop to ``min_area``.

    Raises:
        AdcamError: If an image has no known labels (``class_ids`` is ``None``), or an option is
            outside its legal range.
    """

    def __init__(
        self,
        images: ImageDataset,
        *,
        img_size: int,
        min_area: float = 0.35,
        jitter: float = 0.3,
        resize: int | None = None,
    ) -> None:
        if not 0 < min_area <= 1:
            raise AdcamError(f"min_area must lie in (0, 1], got {min_area}")
        if resize is not None and resize < img_size:
            raise AdcamError(f"resize must be at least img_size {img_size}, got {resize}")
        self._images = images
        self._targets = make_targets(images)
        crop = (
            v2.RandomResizedCrop(img_size, scale=(min_area, 1.0), antialias=True)
            if resize is None
            else v2.Compose([v2.Resize([resize, resize], antialias=True), v2.RandomCrop(img_size)])
        )
        self._transform = v2.Compose(
            [
                crop,
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(jitter, jitter, jitter),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``inputs`` uint8 (3, S, S) and ``cls_label`` float32 (C,).

        An unreadable image is reported and the next one takes its place: a run of days does not
        end on one file.

        Raises:
            AdcamError: If no image at all can be read.
        """
        for step in range(len(self)):
            position = (index + step) % len(self)
            try:
                tensor = _to_chw(self._images.load_image(position))
            except ImageError as error:
                logger.warning("left out of training: %s", error)
                continue
            return {"inputs": self._transform(tensor), "cls_label": self._targets[position]}
        raise AdcamError(f"none of the {len(self)} images of {self._images.split!r} can be read")


class EvalDataset(Dataset[dict[str, Tensor]]):
    """Whole images resized to a square of ``img_size`` pixels a side, with multi-hot labels.

    Raises:
        AdcamError: If an image has no known labels.
    """

    def __init__(self, images: ImageDataset, *, img_size: int) -> None:
        self._images = images
        self._targets = make_targets(images)
        self._img_size = img_size
        self._resize = v2.Resize([img_size, img_size], antialias=True)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``inputs`` uint8 (3, S, S) and ``cls_label`` float32 (C,).

        An unreadable image is reported; it comes black, with NaN for labels, which takes it out
        of the score.
        """
        try:
            tensor = _to_chw(self._images.load_image(index))
        except ImageError as error:
            logger.warning("left out of validation: %s", error)
            black = torch.zeros(3, self._img_size, self._img_size, dtype=torch.uint8)
            return {"inputs": black, "cls_label": torch.full_like(self._targets[index], torch.nan)}
        return {"inputs": self._resize(tensor), "cls_label": self._targets[index]}


def make_targets(images: ImageDataset) -> Tensor:
    """Multi-hot labels of a data set, float32 (n, C).

    Raises:
        AdcamError: If labels of an image are not known.
    """
    _check_labelled(images)
    targets = torch.zeros(len(images), images.class_set.num_fg_classes)
    for row, record in zip(targets, images.records, strict=True):
        row[list(record.class_ids or ())] = 1.0
    return targets


def _check_labelled(images: ImageDataset) -> None:
    unknown = [record.img_id for record in images.records if record.class_ids is None]
    if unknown:
        raise AdcamError(
            f"{len(unknown)} of {len(images)} images of split {images.split!r} have no labels, "
            f"the first is {unknown[0]!r}; an image with none of the classes needs an empty label"
        )


def class_counts(images: ImageDataset) -> Mapping[str, int]:
    """Count the images of each class.

    Raises:
        AdcamError: If labels of an image are not known.
    """
    _check_labelled(images)
    counts = Counter(i for record in images.records for i in record.class_ids or ())
    return {name: counts[i] for i, name in enumerate(images.class_set.classes)}


def _to_chw(img: np.ndarray) -> Tensor:
    return torch.from_numpy(img).permute(2, 0, 1)
