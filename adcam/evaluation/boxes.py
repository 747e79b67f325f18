"""Evaluators of localisation: both protocols' counts of boxes, and score maps as files."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adcam.boxes import ts_cam, wsol
from adcam.data.score_maps import write_score_map
from adcam.errors import AdcamError
from adcam.evaluation.mapping import MappedImage, MaskChoice, MethodMaps, path_below_root
from adcam.metrics.localization import (
    LocalizationAccuracy,
    LocalizationResult,
    MaxBoxAccuracy,
    compute_iou,
)
from adcam.structures import Sample

TOP_K = (1, 5)
"""The numbers of predicted classes that Top-k Loc looks at."""

LOC_IOU = 0.5
"""The IoU of MaxBoxAcc, whose threshold GT-known and Top-k Loc take."""


@dataclass(frozen=True)
class BoxOutcome:
    """How well a method found the object of one image.

    Attributes:
        index: The position of the image in its data set.
        img_id: The id of the image.
        iou: The best IoU of the box of the true class with a true box.
        box: That box as ``(x0, y0, x1, y1)``, as shares of the image's width and height.
    """

    index: int
    img_id: str
    iou: float
    box: tuple[float, float, float, float]


class BoxCounts:
    """MaxBoxAccV2 and MaxBoxAcc of several methods, and at given thresholds their Top-k Loc.

    Args:
        names: The methods.
        thresholds: The threshold of each method for GT-known and Top-k Loc, by TS-CAM's rule;
            without them only MaxBoxAccV2 and MaxBoxAcc are counted.

    Attributes:
        every: MaxBoxAccV2's counts of each method, from boxes of all contours.
        largest: MaxBoxAcc's counts of each method, from the box of the largest contour.
        outcomes: How well each method found the object of each image, in any order.
        thresholds: The thresholds that were given.
    """

    step = "boxes"
    choices: Sequence[MaskChoice] = ()

    def __init__(self, names: Sequence[str], thresholds: Mapping[str, float] | None = None) -> None:
        self._names = tuple(names)
        self.thresholds = dict(thresholds or {})
        self.reset()

    def reset(self) -> None:
        self.every = {name: MaxBoxAccuracy() for name in self._names}
        self.largest = {
            name: MaxBoxAccuracy((LOC_IOU,), multi_contour=False) for name in self._names
        }
        self._located = {name: LocalizationAccuracy(TOP_K) for name in self._names}
        self.outcomes: dict[str, list[BoxOutcome]] = {name: [] for name in self._names}

    def wants(self, index: int) -> Collection[str]:
        return self._names

    def process(self, image: MappedImage) -> None:
        sample = image.sample
        for name in self._names:
            maps = image.maps[name]
            score_map = map_of_true_class(sample, maps)
            boxes = wsol.scale_boxes(*boxes_of(sample), _hw(maps))
            for metric in (self.every[name], self.largest[name]):
                metric.update(score_map, boxes, class_id=class_of(sample))
            if name in self.thresholds:
                located = self._located[name]
                outcome = _locate(image.index, sample, maps, self.thresholds[name], located)
                self.outcomes[name].append(outcome)

    def merge(self, other: BoxCounts) -> None:
        for name in self._names:
            self.every[name].merge(other.every[name])
            self.largest[name].merge(other.largest[name])
            self._located[name].merge(other._located[name])
            self.outcomes[name] += other.outcomes[name]

    def compute_localization(self, name: str, *, has_predictions: bool) -> LocalizationResult:
        """Compute GT-known Loc, Top-k Loc and error types of one method.

        Args:
            name: The method.
            has_predictions: Whether its classes were predicted. Without, as for stored maps, all
                that depends on them is NaN.
        """
        result = self._located[name].compute()
        return result if has_predictions else _hide_predictions(result)


class ScoreMapWriter:
    """Writes the maps of the true class as ``<path of the image>.npy`` for wsolevaluation.

    Args:
        folders: The folder of each method's maps.
        image_root: The folder that the paths of the images start in.
    """

    step = "write"
    choices: Sequence[MaskChoice] = ()

    def __init__(self, folders: Mapping[str, Path], image_root: Path | None) -> None:
        self._folders = folders
        self._image_root = image_root

    def reset(self) -> None:
        """Do nothing: what was written stays."""

    def wants(self, index: int) -> Collection[str]:
        return self._folders

    def process(self, image: MappedImage) -> None:
        """Write the maps of one image."""
        image_id = path_below_root(image.sample, self._image_root)
        for name, folder in self._folders.items():
            score_map = map_of_true_class(image.sample, image.maps[name])
            write_score_map(folder, image_id, score_map)

    def merge(self, other: ScoreMapWriter) -> None:
        """Do nothing: nothing is counted."""


def class_of(sample: Sample) -> int:
    """Return the only class of an image.

    Raises:
        AdcamError: It has none or several.
    """
    if sample.class_ids is None or len(sample.class_ids) != 1:
        raise AdcamError(f"{sample.img_id} must have one class, got {sample.class_ids}")
    return sample.class_ids[0]


def boxes_of(sample: Sample) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the true boxes of an image, (n, 4), and the height and width that they are for.

    Raises:
        AdcamError: It has none, or one that begins outside of the image.
    """
    if sample.boxes is None:
        raise AdcamError(f"{sample.img_id} has no box")
    height, width = hw = sample.boxes_hw or sample.ori_hw
    outside = (sample.boxes[:, :2] >= [width, height]).any(axis=1)
    if outside.any():
        raise AdcamError(
            f"{sample.img_id} has {width}x{height} pixels, and the box x0, y0, x1, y1 "
            f"{tuple(sample.boxes[outside][0].tolist())} lies outside of it"
        )
    return sample.boxes, hw


def map_of_true_class(sample: Sample, maps: MethodMaps) -> np.ndarray:
    """Return the map of an image's only class, float64 (H, W)."""
    score_map = maps.score_maps[maps.class_ids.index(class_of(sample))]
    return np.asarray(score_map, dtype=np.float64)


def _hw(maps: MethodMaps) -> tuple[int, int]:
    return maps.score_maps.shape[1], maps.score_maps.shape[2]


def _locate(
    index: int, sample: Sample, maps: MethodMaps, threshold: float, metric: LocalizationAccuracy
) -> BoxOutcome:
    """Count an image by TS-CAM's rules."""
    hw = _hw(maps)
    boxes = ts_cam.scale_boxes(*boxes_of(sample), hw)
    box_of = {
        class_id: ts_cam.compute_box(score_map.astype(np.float64), threshold=threshold)
        for class_id, score_map in zip(maps.class_ids, maps.score_maps, strict=True)
    }
    known = box_of[class_of(sample)]
    # Where nothing was predicted, what comes of this is hidden in the end.
    predictions = maps.top_predictions or (class_of(sample),)
    metric.update(
        class_id=class_of(sample),
        pred_class_ids=predictions,
        pred_boxes=np.stack([box_of[class_id] for class_id in predictions]),
        gt_known_box=known,
        boxes=boxes,
    )
    x0, y0, x1, y1 = (known / np.array([hw[1], hw[0]] * 2)).tolist()
    iou = float(compute_iou(known[None], boxes).max())
    return BoxOutcome(index, sample.img_id, iou, (x0, y0, x1, y1))


def _hide_predictions(result: LocalizationResult) -> LocalizationResult:
    """Put NaN in the place of all that predicted classes decide."""
    names = ("top_loc", "top_cls", "errors")

    def blank(scores: Mapping[str, Any]) -> dict[str, Any]:
        return {name: dict.fromkeys(scores[name], math.nan) for name in names}

    per_class = {i: {**scores, **blank(scores)} for i, scores in result.per_class.items()}
    return replace(result, **blank(vars(result)), per_class=per_class)
