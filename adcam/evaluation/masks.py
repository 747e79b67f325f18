"""Evaluators of segmentation: threshold sweeps, scores of finished masks, masks as files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adcam.data.png import write_mask
from adcam.errors import AdcamError
from adcam.evaluation.mapping import MappedImage, MaskChoice
from adcam.labeling.output_folder import describe_files, mask_path
from adcam.metrics.influence import compute_influences, list_areas, mean_of_areas
from adcam.metrics.miou import (
    Average,
    MeanIoU,
    MeanIoUResult,
    PredIgnore,
    ThresholdCurve,
    ThresholdCurveResult,
    compute_confusion,
)
from adcam.structures import ClassSet, Sample

THRESHOLDS = tuple(round(step / 100, 2) for step in range(100))
"""The background scores that a comparison tries: below 1, at which every mask would be empty."""


class ThresholdSweep:
    """Mean IoU of several methods at every constant background score, without a CRF.

    Args:
        names: The methods.
        class_set: The classes of the data set.
        stride: Only every n-th image is counted.
    """

    step = "sweep"
    choices: Sequence[MaskChoice] = ()

    def __init__(self, names: Sequence[str], class_set: ClassSet, *, stride: int = 1) -> None:
        self._names = tuple(names)
        self._class_set = class_set
        self._stride = stride
        self.reset()

    def reset(self) -> None:
        values = self._class_set.mask_values
        self._curves = {
            name: ThresholdCurve(self._class_set.num_classes, THRESHOLDS, mask_values=values)
            for name in self._names
        }

    def wants(self, index: int) -> Collection[str]:
        return () if index % self._stride else self._names

    def process(self, image: MappedImage) -> None:
        for name, curve in self._curves.items():
            maps = image.maps[name]
            curve.update(maps.score_maps, maps.class_ids, mask_of(image.sample))

    def merge(self, other: ThresholdSweep) -> None:
        for name, curve in self._curves.items():
            curve.merge(other._curves[name])

    def compute(self) -> dict[str, ThresholdCurveResult]:
        """Compute the curve of every method."""
        return {name: curve.compute() for name, curve in self._curves.items()}


@dataclass(frozen=True, eq=False)
class MaskScore:
    """The scores of one kind of mask.

    Attributes:
        result: The scores over all images.
        mious: The mean IoU of each image by itself in percent, by image id.
        influences: What each image does to ``result.miou``, in points, by image id
            (:func:`adcam.metrics.influence.compute_influences`).
    """

    result: MeanIoUResult
    mious: Mapping[str, float]
    influences: Mapping[str, float]


class MaskCounts:
    """Counts masks against the ground truth, over all images and image by image.

    Args:
        num_classes: The number of mask values, background included.
        average: The classes that enter the mean, as for :class:`adcam.metrics.miou.MeanIoU`.
        pred_ignore: What a predicted 255 costs, as for :class:`adcam.metrics.miou.MeanIoU`.
    """

    def __init__(
        self, num_classes: int, *, average: Average = "union", pred_ignore: PredIgnore = "miss"
    ) -> None:
        self._num_classes = num_classes
        self._pred_ignore = pred_ignore
        self._total = MeanIoU(num_classes, average=average, pred_ignore=pred_ignore)
        self._areas: dict[str, np.ndarray] = {}

    def update(self, img_id: str, pred: np.ndarray, gt: np.ndarray) -> None:
        """Count one image.

        Args:
            img_id: The id of the image.
            pred: The predicted mask, integer (H, W).
            gt: The ground truth, integer (H, W).

        Raises:
            ValueError: The sizes differ, or a value is not legal.
        """
        confusion = compute_confusion(pred, gt, num_classes=self._num_classes)
        self._total.add_confusion(confusion)
        self._areas[img_id] = list_areas(confusion, pred_ignore=self._pred_ignore)

    def merge(self, other: MaskCounts) -> None:
        """Add the counts of another instance on other images."""
        self._total.merge(other._total)
        self._areas |= other._areas

    def compute(self) -> MaskScore:
        """Compute the scores of everything counted so far."""
        result = self._total.compute()
        mious = {img_id: mean_of_areas(areas) for img_id, areas in self._areas.items()}
        return MaskScore(result, mious, compute_influences(self._areas, result))


class MaskScores:
    """Scores of finished masks; one method may be tried at several thresholds before a CRF.

    The lattice of a CRF is built once for each image and parameter set.

    Args:
        choices: The masks to score.
        class_set: The classes of the data set.
        stride: Only every n-th image is counted, because each threshold costs a CRF.
    """

    step = "masks"

    def __init__(
        self, choices: Sequence[MaskChoice], class_set: ClassSet, *, stride: int = 1
    ) -> None:
        self.choices = tuple(choices)
        self._class_set = class_set
        self._stride = stride
        self.reset()

    def reset(self) -> None:
        self._counts = {choice: MaskCounts(self._class_set.num_classes) for choice in self.choices}

    def wants(self, index: int) -> Collection[str]:
        return [] if index % self._stride else [choice.name for choice in self.choices]

    def process(self, image: MappedImage) -> None:
        for choice, counts in self._counts.items():
            mask = image.make_mask(choice, self._class_set.mask_values).mask
            counts.update(image.sample.img_id, mask, mask_of(image.sample))

    def merge(self, other: MaskScores) -> None:
        for choice, counts in self._counts.items():
            counts.merge(other._counts[choice])

    def compute(self) -> dict[MaskChoice, MaskScore]:
        """Compute the scores of every choice."""
        return {choice: counts.compute() for choice, counts in self._counts.items()}


class MaskWriter:
    """Writes the masks of one method as ``<id>.png``, with the bytes of ``adcam generate``.

    Args:
        choice: The masks to write.
        class_set: The classes of the data set, with the palette of the files.
        folder: The output folder, in which the masks have a folder of their own.
    """

    step = "write"

    def __init__(self, choice: MaskChoice, class_set: ClassSet, folder: Path) -> None:
        self.choices = (choice,)
        self._class_set = class_set
        self._folder = folder
        self.reset()

    def reset(self) -> None:
        """Forget which masks were written; the files stay."""
        self._entries: dict[str, dict[str, Any]] = {}

    def wants(self, index: int) -> Collection[str]:
        return [choice.name for choice in self.choices]

    def process(self, image: MappedImage) -> None:
        """Write the mask of one image."""
        sample, (choice,) = image.sample, self.choices
        mask = image.make_mask(choice, self._class_set.mask_values)
        path = mask_path(self._folder, sample.img_id)
        write_mask(path, mask.mask, self._class_set.palette)
        self._entries[sample.img_id] = {
            "status": "ok",
            "classes": [self._class_set.classes[i] for i in sample.class_ids or ()],
            "labels": "given",
            "rule": mask.rule,
            "threshold": mask.threshold,
            "chosen_on": mask.chosen_on,
            "ori_hw": list(sample.ori_hw),
            **describe_files({"mask": path}),
        }

    def merge(self, other: MaskWriter) -> None:
        """Add the masks that another instance wrote of other images."""
        self._entries |= other._entries

    def compute(self) -> dict[str, dict[str, Any]]:
        """Return what an output folder's manifest says of each image, by image id."""
        return self._entries


def mask_of(sample: Sample) -> np.ndarray:
    """Return the ground truth mask of an image.

    Raises:
        AdcamError: There is none.
    """
    if sample.mask is None:
        raise AdcamError(f"{sample.img_id} has no mask")
    return sample.mask
