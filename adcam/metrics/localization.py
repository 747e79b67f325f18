"""Boxes and score maps against true boxes and masks, as the localisation literature scores them.

Two protocols: clovaai/wsolevaluation (Choe et al., CVPR 2020, arXiv 2001.07437 and 2007.04178) with
:class:`MaxBoxAccuracy` and :class:`PixelAveragePrecision`, and vasgaowei/TS-CAM (Gao et al., ICCV
2021) with :class:`LocalizationAccuracy`. docs/localization.md lists where they differ. All count,
merge and then compute; boxes are ``x0, y0, x1, y1`` and both corners belong to the box ("+1").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adcam.files import to_json
from adcam.metrics._numbers import check_same_policy, ratio, to_numpy
from adcam.ops.level_boxes import check_score_map, level_boxes, score_levels
from adcam.structures import IGNORE_INDEX

if TYPE_CHECKING:
    import torch

ORACLE = "oracle"
"""The name in place of a split for a threshold chosen on the very images that it scores."""

ERROR_TYPES = ("right", "classification", "multi_instance", "part", "more", "wrong")
"""What can become of the first predicted class and its box; each image has exactly one."""

NUM_IOU_BINS = 20
"""The number of equal bins over [0, 1] in which GT-known boxes are counted by their IoU."""


@dataclass(frozen=True, eq=False)
class BoxAccuracyResult:
    """Box accuracies, with the thresholds at which they were reached.

    Attributes:
        box_acc: The share of images in percent with a box of at least an IoU, by this IoU.
        max_box_acc_v2: The mean of ``box_acc``. It is the literature's MaxBoxAccV2 where several
            contours are taken, the IoUs are 0.3, 0.5 and 0.7, and the thresholds the oracle's.
        best_thresholds: The score threshold used for each IoU, the lowest of equally good ones.
        chosen_on: The split that these were chosen on; :data:`ORACLE` for the images scored.
        thresholds: All score thresholds, ascending.
        curves: The box accuracy in percent at each of ``thresholds``, by IoU.
        box_acc_per_class: ``box_acc`` by class id, at the same thresholds for all classes, over the
            images whose class was given.
        num_images: The number of images counted.
        policy: Every choice that changes the numbers.
    """

    box_acc: dict[float, float]
    max_box_acc_v2: float
    best_thresholds: dict[float, float]
    chosen_on: str
    thresholds: tuple[float, ...]
    curves: dict[float, tuple[float, ...]]
    box_acc_per_class: dict[int, dict[float, float]]
    num_images: int
    policy: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; IoU thresholds and class ids are text there."""
        values: dict[str, Any] = to_json(vars(self))
        return values


class MaxBoxAccuracy:
    """MaxBoxAcc and MaxBoxAccV2 of wsolevaluation (``BoxEvaluator`` in its ``evaluation.py``).

    A score map is multiplied by 255 and truncated to uint8; at threshold t the pixels above
    ``int(t * peak)`` are foreground, and boxes are drawn around contours as
    :func:`adcam.ops.level_boxes.level_boxes` finds them. An image counts at t if the best IoU of
    any of these boxes with any true box is at least the IoU threshold; where nothing is foreground
    the box is (0, 0, 0, 0). ``x1`` and ``y1`` of a box are one past its last pixel, but at most
    the map's last: an inconsistency of the original that parity needs.

    The same numbers as the original, not close ones; all thresholds cost one pass over the pixels.

    Args:
        iou_thresholds: Ascending, each in (0, 1]. ``(0.5,)`` with one contour is MaxBoxAcc.
        multi_contour: Whether boxes are drawn around all contours, or around the largest alone.
        step: The distance of the score thresholds 0, step, 2·step, … below 1. There are only 256
            grey levels, so a step below 0.004 changes nothing but gives the original's own list.

    Raises:
        ValueError: An argument is outside its range.

    Example:
        >>> import numpy as np
        >>> metric = MaxBoxAccuracy()
        >>> score_map = np.zeros((8, 8))
        >>> score_map[2:5, 3:6] = 1.0
        >>> metric.update(score_map, np.array([[3, 2, 6, 5]]))
        >>> metric.compute().max_box_acc_v2
        100.0
    """

    def __init__(
        self,
        iou_thresholds: Sequence[float] = (0.3, 0.5, 0.7),
        multi_contour: bool = True,
        step: float = 0.001,
    ) -> None:
        deltas = tuple(float(delta) for delta in iou_thresholds)
        if (
            not deltas
            or list(deltas) != sorted(set(deltas))
            or not 0 < deltas[0] <= deltas[-1] <= 1
        ):
            raise ValueError(
                f"iou_thresholds must be ascending numbers in (0, 1], got {list(iou_thresholds)}"
            )
        self._thresholds = _score_thresholds(step)
        self._policy: dict[str, Any] = {
            "iou_thresholds": deltas,
            "multi_contour": bool(multi_contour),
            "step": float(step),
        }
        # [d, t]: images with an IoU of at least iou_thresholds[d] at thresholds[t].
        self._num_hits = np.zeros((len(deltas), len(self._thresholds)), dtype=np.int64)
        self._num_images = 0
        self._num_hits_of: dict[int, np.ndarray] = {}
        self._num_images_of: dict[int, int] = {}

    def update(
        self,
        score_map: np.ndarray | torch.Tensor,
        boxes: np.ndarray | torch.Tensor | Sequence[Sequence[int]],
        *,
        class_id: int | None = None,
    ) -> None:
        """Count one image.

        Args:
            score_map: (H, W) floating point in [0, 1], the map of the true class. The original
                takes maps of 224 × 224, min-max normalised.
            boxes: The true boxes, integers (n, 4), n >= 1, in pixels of the map
                (:func:`adcam.boxes.wsol.scale_boxes` brings them there).
            class_id: The class of the image, for accuracies per class.

        Raises:
            ValueError: Another shape or dtype, NaN, a score outside [0, 1], or a box with
                negative or unordered coordinates.
        """
        levels = score_levels(to_numpy(score_map))
        true_boxes = _check_boxes("boxes", boxes)
        peak = int(levels.max())
        found = level_boxes(levels, contours="all" if self._policy["multi_contour"] else "largest")
        last_xy = np.array([levels.shape[1] - 1, levels.shape[0] - 1])
        corners = np.minimum(found.boxes[:, 2:], last_xy)
        iou = _best_iou(np.concatenate([found.boxes[:, :2], corners], axis=1), true_boxes)  # (n,)
        iou_of_nothing = _best_iou(np.zeros((1, 4), dtype=np.int64), true_boxes)[0]
        levels_cut = (self._thresholds * peak).astype(np.int64)  # (T,)
        for row, delta in enumerate(self._policy["iou_thresholds"]):
            good = iou >= delta
            # Intervals of levels at which a good box is there, as +1 and -1 at their ends.
            changes = np.bincount(found.start[good], minlength=257)
            changes -= np.bincount(found.stop[good], minlength=257)
            hit = changes.cumsum() > 0
            hit[peak:] = iou_of_nothing >= delta
            hits = hit[levels_cut]
            self._num_hits[row] += hits
            if class_id is not None:
                self._hits_of(class_id)[row] += hits
        self._num_images += 1
        if class_id is not None:
            self._num_images_of[class_id] = self._num_images_of.get(class_id, 0) + 1

    def merge(self, other: MaxBoxAccuracy) -> None:
        """Add the counts of another instance.

        Raises:
            ValueError: If the other one counts under a different policy.
        """
        check_same_policy(self._policy, other._policy)
        self._num_hits += other._num_hits
        self._num_images += other._num_images
        for class_id, hits in other._num_hits_of.items():
            self._hits_of(class_id)[:] += hits
        for class_id, count in other._num_images_of.items():
            self._num_images_of[class_id] = self._num_images_of.get(class_id, 0) + count

    def compute(
        self, thresholds: Mapping[float, float] | None = None, *, chosen_on: str | None = None
    ) -> BoxAccuracyResult:
        """Accuracies of everything counted so far; counting may go on afterwards.

        Args:
            thresholds: Score threshold for each IoU threshold, such as ``best_thresholds`` of
                another split's result. ``None`` takes the best for these very images, as the
                protocol does; the result then says ``"oracle"``.
            chosen_on: The split that ``thresholds`` were chosen on; given exactly with them.

        Raises:
            ValueError: Nothing was counted, ``chosen_on`` is missing or without thresholds, or a
                threshold is not one of those swept.
        """
        if not self._num_images:
            raise ValueError("no image was counted: there is no best threshold")
        if (thresholds is None) != (chosen_on is None) or chosen_on == ORACLE:
            raise ValueError(
                f"chosen_on must name the split that given thresholds come from, got {chosen_on!r} "
                f"{'without' if thresholds is None else 'with'} thresholds"
            )
        deltas = self._policy["iou_thresholds"]
        curves = self._num_hits * 100.0 / self._num_images  # (D, T)
        if thresholds is None:
            used = curves.argmax(axis=1)
        else:
            used = np.array([self._find_threshold(thresholds, delta) for delta in deltas])
        best = np.arange(len(deltas)), used

        def by_delta(values: np.ndarray) -> dict[float, Any]:
            return dict(zip(deltas, values.tolist(), strict=True))

        per_class = {i: n * 100.0 / self._num_images_of[i] for i, n in self._num_hits_of.items()}
        chosen_on = ORACLE if chosen_on is None else chosen_on
        return BoxAccuracyResult(
            box_acc=by_delta(curves[best]),
            max_box_acc_v2=float(np.mean(curves[best])),
            best_thresholds=by_delta(self._thresholds[used]),
            chosen_on=chosen_on,
            thresholds=tuple(self._thresholds.tolist()),
            curves={delta: tuple(curve) for delta, curve in by_delta(curves).items()},
            box_acc_per_class={i: by_delta(per_class[i][best]) for i in sorted(per_class)},
            num_images=self._num_images,
            policy={**self._policy, "chosen_on": chosen_on},
        )

    def _hits_of(self, class_id: int) -> np.ndarray:
        return self._num_hits_of.setdefault(int(class_id), np.zeros_like(self._num_hits))

    def _find_threshold(self, thresholds: Mapping[float, float], delta: float) -> int:
        if delta not in thresholds:
            raise ValueError(f"no threshold is given for IoU {delta}, got {dict(thresholds)}")
        found = np.flatnonzero(self._thresholds == thresholds[delta])
        if not len(found):
            raise ValueError(
                f"threshold {thresholds[delta]} was not swept; the steps are "
                f"{self._policy['step']} from 0 to below 1"
            )
        return int(found[0])


class PixelAveragePrecision:
    """PxAP of wsolevaluation (``MaskEvaluator`` in its ``evaluation.py``).

    Precision and recall of the pixels with a score of at least t, pooled over all images, and
    ``sum_i P_i (R_i - R_{i-1})`` over descending t; ignored pixels are not counted. The same
    number as the original.

    Args:
        step: The distance of the thresholds 0, step, 2·step, … below 1. A smaller one follows the
            precision-recall curve more closely.

    Raises:
        ValueError: ``step`` is not in (0, 1).

    Example:
        >>> import numpy as np
        >>> metric = PixelAveragePrecision()
        >>> metric.update(np.array([[0.9, 0.6, 0.2]]), np.array([[1, 0, 1]], dtype=np.uint8))
        >>> round(metric.compute(), 2)
        83.33
    """

    def __init__(self, step: float = 0.001) -> None:
        self._policy = {"step": float(step)}
        # Bins [0, step), …, [last threshold, 1), [1, 2), [2, 3): the original's.
        self._edges = np.append(_score_thresholds(step), [1.0, 2.0, 3.0])
        self._num_true = np.zeros(len(self._edges) - 1, dtype=np.int64)
        self._num_false = np.zeros_like(self._num_true)
        self._num_images = 0

    def update(
        self, score_map: np.ndarray | torch.Tensor, gt_mask: np.ndarray | torch.Tensor
    ) -> None:
        """Count one image.

        Args:
            score_map: (H, W) floating point in [0, 1].
            gt_mask: uint8 (H, W): 1 = object, 0 = background, 255 = not scored.

        Raises:
            ValueError: Shapes that differ, another dtype, NaN, or values outside these ranges.
        """
        scores = check_score_map(to_numpy(score_map))
        mask = to_numpy(gt_mask)
        if mask.shape != scores.shape or mask.dtype.kind not in "iub":
            raise ValueError(
                f"gt_mask must hold integers in the shape {scores.shape} of the score map, got "
                f"{mask.dtype} {mask.shape}"
            )
        wrong = mask[(mask != 0) & (mask != 1) & (mask != IGNORE_INDEX)]
        if wrong.size:
            raise ValueError(
                f"gt_mask holds {wrong[0]}; legal are 0, 1 and {IGNORE_INDEX} (ignore)"
            )
        bins = np.searchsorted(self._edges, scores, side="right") - 1  # (H, W)
        num_bins = len(self._num_true)
        self._num_true += np.bincount(bins[mask == 1], minlength=num_bins)
        self._num_false += np.bincount(bins[mask == 0], minlength=num_bins)
        self._num_images += 1

    def merge(self, other: PixelAveragePrecision) -> None:
        """Add the counts of another instance.

        Raises:
            ValueError: If the other one has another ``step``.
        """
        check_same_policy(self._policy, other._policy)
        self._num_true += other._num_true
        self._num_false += other._num_false
        self._num_images += other._num_images

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute thresholds, precision and recall, each (T,), by descending threshold.

        Precision and recall lie in [0, 1]; precision is NaN where no score reaches the threshold.

        Raises:
            ValueError: No object pixel was counted, so that there is no recall.
        """
        if not self._num_true.sum():
            raise ValueError(f"no object pixel in {self._num_images} images: PxAP is not defined")
        num_correct = self._num_true[::-1].cumsum()
        num_called = num_correct + self._num_false[::-1].cumsum()
        precision = ratio(num_correct, num_called)
        return self._edges[-2::-1], precision, num_correct / num_correct[-1]

    def compute(self) -> float:
        """PxAP in percent of everything counted so far.

        Raises:
            ValueError: As :meth:`curve`.
        """
        _, precision, recall = self.curve()
        gained = precision[1:] * np.diff(recall)
        return float(gained[~np.isnan(precision[1:])].sum() * 100)


@dataclass(frozen=True, eq=False)
class LocalizationResult:
    """Scores of predicted classes with their boxes, in percent of the images.

    Attributes:
        top_loc: The share of images in which one of the first k predictions names the class and
            has a correct box, by k.
        top_cls: The share of images in which one of the first k predictions names the class, by k.
        gt_known: The share of images in which the box of the true class is correct.
        errors: What became of the first prediction, by :data:`ERROR_TYPES`; the shares sum to 100.
        per_class: The same numbers by class id, under ``"top_loc"``, ``"top_cls"``, ``"gt_known"``
            and ``"errors"``, for the images of that class alone.
        iou_histogram: The number of images in each of :data:`NUM_IOU_BINS` bins, by the IoU of the
            box of the true class. A bin includes its lower end, the last one both ends.
        num_images: The number of images counted.
        policy: Every choice that changes the numbers.
    """

    top_loc: dict[int, float]
    top_cls: dict[int, float]
    gt_known: float
    errors: dict[str, float]
    per_class: dict[int, dict[str, Any]]
    iou_histogram: tuple[int, ...]
    num_images: int
    policy: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; k and class ids are text there, ``None`` stands for NaN."""
        values: dict[str, Any] = to_json(vars(self))
        return values


class LocalizationAccuracy:
    """Top-k Loc, GT-known Loc and error types as TS-CAM counts them.

    Source: ``evaluate_cls_loc``, ``cls_loc_err`` and ``get_badcase_detail`` in ``lib/cams_deit.py``
    of vasgaowei/TS-CAM. Its inequalities are not alike: GT-known Loc wants IoU >= 0.5, Top-k Loc
    IoU > 0.5.

    Args:
        top_k: The numbers k of predictions that Top-k looks at, ascending.

    Raises:
        ValueError: ``top_k`` is empty, not ascending or below 1.

    Example:
        >>> metric = LocalizationAccuracy(top_k=(1, 2))
        >>> metric.update(
        ...     class_id=3,
        ...     pred_class_ids=[7, 3],
        ...     pred_boxes=[[0, 0, 9, 9], [2, 2, 9, 9]],
        ...     gt_known_box=[2, 2, 9, 9],
        ...     boxes=[[1, 1, 9, 9]],
        ... )
        >>> result = metric.compute()
        >>> result.top_loc, result.gt_known, result.errors["classification"]
        ({1: 0.0, 2: 100.0}, 100.0, 100.0)
    """

    def __init__(self, top_k: Sequence[int] = (1, 5)) -> None:
        self._top_k = tuple(int(k) for k in top_k)
        if not self._top_k or list(self._top_k) != sorted(set(self._top_k)) or self._top_k[0] < 1:
            raise ValueError(f"top_k must be ascending numbers from 1 on, got {list(top_k)}")
        self._policy: dict[str, Any] = {
            "top_k": self._top_k,
            "top_loc_iou": "> 0.5",
            "gt_known_iou": ">= 0.5",
        }
        # By class: images, GT-known, Top-k Loc and Top-k classification by k, error types.
        self._counts: dict[int, np.ndarray] = {}
        self._iou_counts = np.zeros(NUM_IOU_BINS, dtype=np.int64)

    def update(
        self,
        *,
        class_id: int,
        pred_class_ids: Sequence[int] | np.ndarray,
        pred_boxes: np.ndarray | Sequence[Sequence[int]],
        gt_known_box: np.ndarray | Sequence[int],
        boxes: np.ndarray | Sequence[Sequence[int]],
    ) -> None:
        """Count one image; all boxes are in pixels of one and the same size of it.

        Args:
            class_id: The true class.
            pred_class_ids: The predicted classes by falling score, (m,) distinct ids, m >= 1. Of
                fewer than k classes Top-k takes all.
            pred_boxes: The box of each of them (:func:`adcam.boxes.ts_cam.compute_box`), (m, 4).
            gt_known_box: The box from the map of the true class, (4,).
            boxes: The true boxes (:func:`adcam.boxes.ts_cam.scale_boxes`), (n, 4), n >= 1.

        Raises:
            ValueError: The shapes are wrong, a class is predicted twice, or boxes have negative or
                unordered coordinates.
        """
        top_predictions = [int(i) for i in pred_class_ids]
        if not top_predictions or len(set(top_predictions)) != len(top_predictions):
            raise ValueError(
                f"pred_class_ids must be distinct and at least one, got {top_predictions}"
            )
        true_boxes = _check_boxes("boxes", boxes)
        found_boxes = _check_boxes("pred_boxes", pred_boxes)
        if len(found_boxes) != len(top_predictions):
            raise ValueError(
                f"{len(top_predictions)} classes are predicted with {len(found_boxes)} boxes"
            )
        known_box = _check_boxes("gt_known_box", to_numpy(np.asarray(gt_known_box))[None])
        named = np.array(top_predictions) == class_id  # (m,)
        located = named & (_best_iou(found_boxes, true_boxes) > 0.5)
        error = classify_error(found_boxes[0], true_boxes) if named[0] else "classification"
        known_iou = _best_iou(known_box, true_boxes)[0]
        row = [1, known_iou >= 0.5]
        row += [located[:k].any() for k in self._top_k]
        row += [named[:k].any() for k in self._top_k]
        row += [error == name for name in ERROR_TYPES]
        self._counts_of(class_id)[:] += np.array(row, dtype=np.int64)
        self._iou_counts[min(int(known_iou * NUM_IOU_BINS), NUM_IOU_BINS - 1)] += 1

    def merge(self, other: LocalizationAccuracy) -> None:
        """Add the counts of another instance.

        Raises:
            ValueError: If the other one has another ``top_k``.
        """
        check_same_policy(self._policy, other._policy)
        for class_id, counts in other._counts.items():
            self._counts_of(class_id)[:] += counts
        self._iou_counts += other._iou_counts

    def compute(self) -> LocalizationResult:
        """Scores of everything counted so far, NaN if nothing was."""
        total = sum(self._counts.values(), np.zeros(self._num_columns, dtype=np.int64))
        return LocalizationResult(
            **self._scores(total),
            per_class={
                class_id: self._scores(counts) for class_id, counts in sorted(self._counts.items())
            },
            iou_histogram=tuple(self._iou_counts.tolist()),
            num_images=int(total[0]),
            policy=dict(self._policy),
        )

    @property
    def _num_columns(self) -> int:
        return 2 + 2 * len(self._top_k) + len(ERROR_TYPES)

    def _counts_of(self, class_id: int) -> np.ndarray:
        return self._counts.setdefault(int(class_id), np.zeros(self._num_columns, dtype=np.int64))

    def _scores(self, counts: np.ndarray) -> dict[str, Any]:
        percent = (100 * ratio(counts, np.broadcast_to(counts[0], counts.shape))).tolist()
        num_k = len(self._top_k)
        return {
            "top_loc": dict(zip(self._top_k, percent[2 : 2 + num_k], strict=True)),
            "top_cls": dict(zip(self._top_k, percent[2 + num_k : 2 + 2 * num_k], strict=True)),
            "gt_known": percent[1],
            "errors": dict(zip(ERROR_TYPES, percent[2 + 2 * num_k :], strict=True)),
        }


def classify_error(box: np.ndarray | Sequence[int], boxes: np.ndarray) -> str:
    """Tell why a box of the correct class is wrong, by ``get_badcase_detail`` of TS-CAM.

    In this order: ``"right"`` if IoU > 0.5 with some true box; ``"multi_instance"`` if the box
    covers more than 0.3 of each of several true boxes; and of the true box of highest IoU (the
    first of equals): ``"part"`` if more than half of the box lies in it, ``"more"`` if the box
    covers at least 0.7 of it; else ``"wrong"``.

    Args:
        box: (4,).
        boxes: True boxes (n, 4), n >= 1.

    Returns:
        One of :data:`ERROR_TYPES`, never ``"classification"``.

    Raises:
        ValueError: Another shape, or negative or unordered coordinates.
    """
    true_boxes = _check_boxes("boxes", boxes)
    predicted = _check_boxes("box", np.asarray(box)[None])
    shared, pred_area, true_areas = _areas(predicted, true_boxes)  # (1, n), (1, 1), (1, n)
    iou = (shared / (pred_area + true_areas - shared))[0]
    best = int(iou.argmax())
    of_true = (shared / true_areas)[0]
    if iou[best] > 0.5:
        return "right"
    if (of_true > 0.3).sum() > 1:
        return "multi_instance"
    if shared[0, best] / pred_area[0, 0] > 0.5:
        return "part"
    return "more" if of_true[best] >= 0.7 else "wrong"


def compute_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of boxes (n, 4) with boxes (m, 4), both corners inside the box: float64 (n, m)."""
    shared, first_area, second_area = _areas(first, second)
    return shared / (first_area + second_area - shared)


def _areas(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shared area (n, m) and the areas (n, 1) and (1, m) of integer boxes."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.maximum(high - low + 1, 0).prod(axis=2)
    first_area = (first[:, 2:] - first[:, :2] + 1).prod(axis=1)
    second_area = (second[:, 2:] - second[:, :2] + 1).prod(axis=1)
    return shared, first_area[:, None], second_area[None]


def _best_iou(boxes: np.ndarray, true_boxes: np.ndarray) -> np.ndarray:
    """Highest IoU of each box (n, 4) with any true box, (n,)."""
    return compute_iou(boxes, true_boxes).max(axis=1)


def _score_thresholds(step: float) -> np.ndarray:
    """The original's list: ``np.arange`` with all its rounding, since ``int(t * peak)`` sees it."""
    if not 0 < step < 1:
        raise ValueError(f"step must lie between 0 and 1, got {step}")
    thresholds = np.arange(0, 1, step)
    return thresholds[thresholds < 1]


def _check_boxes(name: str, boxes: Any) -> np.ndarray:
    array = to_numpy(boxes)
    if array.ndim != 2 or array.shape[1] != 4 or not len(array) or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers (n, 4), n >= 1, got {array.dtype} {array.shape}")
    array = array.astype(np.int64)
    wrong = array[(array < 0).any(axis=1) | (array[:, :2] > array[:, 2:]).any(axis=1)]
    if len(wrong):
        raise ValueError(
            f"{name} must have 0 <= x0 <= x1 and 0 <= y0 <= y1, got {wrong[0].tolist()}"
        )
    return array
