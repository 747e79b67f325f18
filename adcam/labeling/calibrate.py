"""Label thresholds of a classifier, chosen on images whose labels are known; masks are not read."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from adcam.data.dataset import ImageDataset
from adcam.data.images import ImageError, fit_hw, fit_pixels
from adcam.errors import AdcamError
from adcam.labeling.inputs import BATCH_SIZE, find_unread, plan_batches, read_in_groups
from adcam.labeling.labeler import DEFAULT_LABEL_THRESHOLD, PseudoLabeler
from adcam.labeling.run import given_class_ids
from adcam.labeling.steps import compute_in_halves
from adcam.metrics.classification import MultiLabelAP, MultiLabelResult
from adcam.metrics.label_thresholds import choose_label_thresholds
from adcam.models.classifier_file import LabelThresholds, save_label_thresholds
from adcam.progress import track

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Label thresholds, and what they are worth on the images that they were chosen on.

    Attributes:
        thresholds: One threshold a class.
        num_shown: The number of images that show each class.
        before: The scores of the labels predicted with one threshold of 0.5.
        after: Those with ``thresholds``; they flatter, since they were chosen on these images.
    """

    thresholds: LabelThresholds
    num_shown: tuple[int, ...]
    before: MultiLabelResult
    after: MultiLabelResult


def calibrate(
    images: ImageDataset,
    labeler: PseudoLabeler,
    *,
    batch_size: int | None = None,
    progress: bool = True,
) -> Calibration:
    """Choose the label thresholds of a classifier on labelled images.

    Take images that it was not trained on if there are enough: its probabilities on training images
    are nearer to 0 and 1 than on others.

    Args:
        images: The images with their labels; class ids are matched to the labeler's by name.
        labeler: The classifier with the scales that it will be used at; the probabilities depend on
            them. Its method changes nothing: take ``"cam"``, which reads no attention.
        batch_size: Most images of equal input sizes that the network sees at once; ``None`` for 1
            on the CPU, else :data:`adcam.labeling.inputs.BATCH_SIZE`.
        progress: Whether to show progress on standard error.

    Raises:
        AdcamError: An image has no labels, names a class that the classifier does not know, no
            image shows any class, or none can be read.
    """
    if missing := [record.img_id for record in images.records if record.class_ids is None]:
        raise AdcamError(
            f"{len(missing)} of {len(images)} images have no labels, such as {missing[0]}: "
            "thresholds are chosen where labels are known"
        )
    class_ids = given_class_ids(images, labeler)
    num_classes = len(labeler.class_set.classes)
    size = batch_size or (1 if labeler.device.type == "cpu" else BATCH_SIZE)
    results = _predict(images, labeler, size)
    pairs = list(track(results, "calibrate", len(images)) if progress else results)
    read = [(index, scores) for index, scores in pairs if scores is not None]
    if not read:
        raise AdcamError(f"none of the {len(images)} images of {images.split!r} can be read")
    scores = np.stack([scores for _, scores in read])  # (M, C)
    targets = np.zeros((len(read), num_classes), dtype=np.int64)
    for row, (index, _) in enumerate(read):
        targets[row, list(class_ids[index])] = 1
    values = choose_label_thresholds(scores, targets)
    return Calibration(
        LabelThresholds(values, images.split, len(read)),
        tuple(targets.sum(axis=0).tolist()),
        _score(scores, targets, (DEFAULT_LABEL_THRESHOLD,) * num_classes),
        _score(scores, targets, values),
    )


def calibrate_file(
    path: str | Path, images: ImageDataset, labeler: PseudoLabeler, *, progress: bool = False
) -> Calibration:
    """Choose label thresholds as :func:`calibrate` does, and write them into the labeler's file."""
    found = calibrate(images, labeler, progress=progress)
    save_label_thresholds(path, found.thresholds, views=asdict(labeler.options.views))
    return found


def _predict(
    images: ImageDataset, labeler: PseudoLabeler, batch_size: int
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yield the index and the probabilities (C,) of each image, ``None`` if it is unreadable."""
    maker, max_pixels = labeler.map_maker, labeler.options.max_pixels

    def find_sizes(index: int) -> Hashable:
        return find_unread(
            lambda: maker.resizer.find_sizes(fit_hw(images.read_hw(index), max_pixels))
        )

    def read(index: int) -> tuple[int, tuple[Tensor, ...] | None]:
        try:
            img = images.load_image(index)
        except ImageError as error:
            logger.warning("left out of the calibration: %s", error)
            return index, None
        return index, maker.resizer(fit_pixels(img, max_pixels))

    def predict(inputs: Sequence[Sequence[Tensor]]) -> list[np.ndarray]:
        return [*maker.run_inputs(inputs).compute_scores()]

    groups = read_in_groups(range(len(images)), find_sizes, read, batch_size=batch_size)
    with closing(groups):
        for group in groups:
            yield from ((index, None) for index, inputs in group if inputs is None)
            there = [(index, inputs) for index, inputs in group if inputs is not None]
            for batch in plan_batches([inputs for _, inputs in there], batch_size):
                scores = compute_in_halves([there[i][1] for i in batch], predict)
                yield from zip((there[i][0] for i in batch), scores, strict=True)


def _score(
    scores: np.ndarray, targets: np.ndarray, thresholds: Sequence[float]
) -> MultiLabelResult:
    """Score labels predicted with one threshold a class."""
    metric = MultiLabelAP(scores.shape[1], threshold=0.5)
    metric.update(scores >= np.asarray(thresholds), targets)
    return metric.compute()
