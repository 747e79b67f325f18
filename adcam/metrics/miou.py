"""Mean intersection over union: count, merge, compute.

"mIoU" is several numbers. Which one is meant is an argument here (``average``, ``pred_ignore``), is
kept in every result as ``policy``, and is explained with its sources in docs/metrics.md. All counts
are int64: int32 wraps at the size of COCO.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from adcam.files import to_json
from adcam.metrics._numbers import check_same_policy, ratio, to_numpy
from adcam.structures import IGNORE_INDEX

if TYPE_CHECKING:
    import torch

Average = Literal["union", "gt_present", "per_image"]
PredIgnore = Literal["miss", "drop"]


@dataclass(frozen=True, eq=False)
class MeanIoUResult:
    """A mean IoU with everything needed to read it.

    Attributes:
        miou: The mean IoU under ``policy``, in percent; NaN if no class was scored.
        iou_per_class: The IoU of each class in percent, from the counts of the whole data set
            whatever the average; NaN for a class that neither ground truth nor prediction holds.
        precision_per_class: The precision of each class in percent; NaN for a class never
            predicted.
        recall_per_class: The recall of each class in percent; NaN for a class that the ground truth
            does not hold.
        pixel_accuracy: The share of the scored pixels that are correct, in percent.
        confusion: The pixels by true class (rows) and predicted class (columns), int64
            (num_classes, num_classes + 1); the last column counts pixels predicted as
            ``ignore_index``. Read-only.
        ignored_share: The share in [0, 1] of the labelled pixels that were predicted as
            ``ignore_index``. A high share under ``pred_ignore="drop"`` flatters ``miou``.
        num_images: The number of images counted.
        policy: Every choice that changes the numbers.
    """

    miou: float
    iou_per_class: tuple[float, ...]
    precision_per_class: tuple[float, ...]
    recall_per_class: tuple[float, ...]
    pixel_accuracy: float
    confusion: np.ndarray
    ignored_share: float
    num_images: int
    policy: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the confusion matrix, JSON-serialisable; ``None`` stands for NaN."""
        values: dict[str, Any] = to_json(vars(self))
        del values["confusion"]
        return values


class MeanIoU:
    """Streaming mean IoU over images of any sizes.

    Args:
        num_classes: The number of mask values, background included (21 for VOC).
        ignore_index: The value of pixels of the ground truth that are not scored. In a prediction
            it means "no answer". It must lie outside ``0..num_classes-1``.
        average: The classes that enter the mean. ``"union"``: those that ground truth or prediction
            hold over the whole data set (``IoUMetric`` of mmsegmentation, ``eval_sem_seg.py`` of
            IRN).
            ``"gt_present"``: those that the ground truth holds (``utils/evaluate.py`` of ToCo).
            ``"per_image"``: the mean over images of each image's own ``"union"`` mean.
        pred_ignore: ``"miss"``: a labelled pixel predicted as ``ignore_index`` counts against the
            recall of its true class. ``"drop"``: it is not scored (``pseudo_scores`` of ToCo).

    Raises:
        ValueError: For an unknown policy, or an ``ignore_index`` that is a class.

    Example:
        >>> import numpy as np
        >>> metric = MeanIoU(2)
        >>> metric.update(np.array([[0, 1, 1]]), np.array([[0, 0, 1]]))
        >>> metric.compute().miou
        50.0
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = IGNORE_INDEX,
        *,
        average: Average = "union",
        pred_ignore: PredIgnore = "miss",
    ) -> None:
        _check_classes(num_classes, ignore_index)
        _check_choice("average", average, get_args(Average))
        _check_choice("pred_ignore", pred_ignore, get_args(PredIgnore))
        self._policy: dict[str, Any] = {
            "num_classes": num_classes,
            "ignore_index": ignore_index,
            "average": average,
            "pred_ignore": pred_ignore,
        }
        self._confusion = np.zeros((num_classes, num_classes + 1), dtype=np.int64)
        self._num_images = 0
        self._image_mious: list[float] = []

    def update(self, pred: np.ndarray | torch.Tensor, gt: np.ndarray | torch.Tensor) -> None:
        """Count one image.

        Args:
            pred: Integer (H, W), each value in ``0..num_classes-1`` or ``ignore_index``.
            gt: The ground truth, with the same values.

        Raises:
            ValueError: If the shapes differ, a dtype is not integer or a value is not legal.
        """
        num_classes, ignore_index = self._policy["num_classes"], self._policy["ignore_index"]
        self.add_confusion(
            compute_confusion(pred, gt, num_classes=num_classes, ignore_index=ignore_index)
        )

    def add_confusion(self, confusion: np.ndarray) -> None:
        """Count one image by its confusion matrix.

        Args:
            confusion: As :func:`compute_confusion` returns it.

        Raises:
            ValueError: It has another shape.
        """
        if confusion.shape != self._confusion.shape:
            raise ValueError(
                f"the confusion matrix must be of shape {self._confusion.shape}, got "
                f"{confusion.shape}"
            )
        self._confusion += confusion
        self._num_images += 1
        if self._policy["average"] == "per_image":
            # Kept one by one: math.fsum makes the mean independent of the order of merges.
            miou = float(_mean_iou(confusion, "union", self._policy["pred_ignore"]))
            if not math.isnan(miou):
                self._image_mious.append(miou)

    def merge(self, other: MeanIoU) -> None:
        """Add the counts of another instance, for example another worker's share of the images.

        Raises:
            ValueError: If the other one counts under a different policy.
        """
        check_same_policy(self._policy, other._policy)
        self._confusion += other._confusion
        self._num_images += other._num_images
        self._image_mious += other._image_mious

    def compute(self) -> MeanIoUResult:
        """Scores of everything counted so far; counting may go on afterwards."""
        if self._policy["average"] == "per_image":
            num_scored = len(self._image_mious)
            miou = math.fsum(self._image_mious) / num_scored if num_scored else math.nan
        else:
            miou = float(
                _mean_iou(self._confusion, self._policy["average"], self._policy["pred_ignore"])
            )
        return _build_result(self._confusion, miou, self._num_images, self._policy)


@dataclass(frozen=True, eq=False)
class ThresholdCurveResult:
    """Mean IoU at every threshold of a sweep.

    Attributes:
        thresholds: The background scores tried, ascending.
        miou: Mean IoU at each of them, in percent.
        best_threshold: Where ``miou`` is highest; of several, the lowest threshold.
        best: Full scores at ``best_threshold``.
        policy: Every choice that changes the numbers.
        precision: At each threshold, the share in percent of the pixels predicted as some class
            that are of that class; NaN where none is predicted.
        recall: At each threshold, the share in percent of the pixels of all classes that are
            predicted as theirs; NaN where there are none.
    """

    thresholds: tuple[float, ...]
    miou: tuple[float, ...]
    best_threshold: float
    best: MeanIoUResult
    policy: dict[str, Any]
    precision: tuple[float, ...] = ()
    recall: tuple[float, ...] = ()

    @property
    def best_miou(self) -> float:
        """Mean IoU at ``best_threshold``, in percent."""
        return self.best.miou

    @property
    def iou_per_class(self) -> tuple[float, ...]:
        """IoU per class at ``best_threshold``, in percent, NaN where undefined."""
        return self.best.iou_per_class

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; ``best`` is :meth:`MeanIoUResult.to_dict`."""
        return {
            "thresholds": list(self.thresholds),
            "miou": list(self.miou),
            "best_threshold": self.best_threshold,
            "best_miou": self.best_miou,
            "iou_per_class": self.best.to_dict()["iou_per_class"],
            "best": self.best.to_dict(),
            "policy": dict(self.policy),
        }


class ThresholdCurve:
    """Mean IoU of the constant-background rule at many thresholds, in one pass over the images.

    At threshold t a pixel takes the class of its highest score if that score is above t, else it is
    background; the class does not depend on t. So each image adds one histogram over (number of
    thresholds below the score, class, true class), and cumulative sums of it give the confusion
    matrix at every threshold, equal to thresholding and counting again for each. Scores and
    thresholds are compared in float32, as ``adcam.masks.background.compute_mask`` does; among equal
    scores the first class wins. The whole range is swept: nothing stops at a drop.

    Args:
        num_classes: The number of mask values, background included.
        thresholds: Strictly ascending, each in [0, 1].
        ignore_index: The value of pixels of the ground truth that are not scored.
        mask_values: Mask value of each foreground class, each in ``1..num_classes-1``.
        average: As for :class:`MeanIoU`, without ``"per_image"``.

    Raises:
        ValueError: For thresholds, mask values or a policy outside the legal set.
    """

    def __init__(
        self,
        num_classes: int,
        thresholds: Sequence[float] | np.ndarray,
        ignore_index: int = IGNORE_INDEX,
        *,
        mask_values: Sequence[int],
        average: Literal["union", "gt_present"] = "union",
    ) -> None:
        _check_classes(num_classes, ignore_index)
        _check_choice("average", average, ("union", "gt_present"))
        self._thresholds = tuple(float(t) for t in thresholds)
        # float32, like the scores: a score equal to its threshold must stay background.
        self._edges = np.asarray(self._thresholds, dtype=np.float32)
        in_range = bool(np.all((self._edges >= 0) & (self._edges <= 1)))
        if not self._thresholds or not in_range or np.any(np.diff(self._thresholds) <= 0):
            raise ValueError(
                f"thresholds must be strictly ascending numbers in [0, 1], got {list(thresholds)}"
            )
        self._mask_values = tuple(int(v) for v in mask_values)
        if any(not 1 <= v < num_classes for v in self._mask_values):
            raise ValueError(
                f"mask_values must lie in 1..{num_classes - 1}, got {list(self._mask_values)}"
            )
        self._policy: dict[str, Any] = {
            "num_classes": num_classes,
            "ignore_index": ignore_index,
            "average": average,
            "rule": "constant",
        }
        # [b, predicted, true]: pixels of that class whose score is above exactly b thresholds.
        self._histogram = np.zeros(
            (len(self._edges) + 1, num_classes, num_classes), dtype=np.int64
        )  # (T+1, n, n)
        self._num_images = 0

    def update(
        self,
        score_maps: np.ndarray | torch.Tensor,
        class_ids: Sequence[int],
        gt: np.ndarray | torch.Tensor,
    ) -> None:
        """Count one image.

        Args:
            score_maps: (K, H, W) float in [0, 1]; with K = 0 the image is all background.
            class_ids: The K foreground classes, indices into ``mask_values``, each once.
            gt: Integer (H, W), each value in ``0..num_classes-1`` or ``ignore_index``.

        Raises:
            ValueError: If shapes do not match, a class or a value is not legal, or a score is NaN
                or infinite.
        """
        num_classes, ignore_index = self._policy["num_classes"], self._policy["ignore_index"]
        scores = to_numpy(score_maps).astype(np.float32, copy=False)
        gt_mask = to_numpy(gt)
        if scores.shape != (len(class_ids), *gt_mask.shape) or gt_mask.ndim != 2:
            raise ValueError(
                f"score_maps {scores.shape} do not match {len(class_ids)} classes and a ground "
                f"truth of shape {gt_mask.shape}: (K, H, W) and (H, W) are needed"
            )
        if len(set(class_ids)) != len(class_ids) or any(
            not 0 <= i < len(self._mask_values) for i in class_ids
        ):
            raise ValueError(
                f"class_ids must be distinct and in 0..{len(self._mask_values) - 1}, "
                f"got {list(class_ids)}"
            )
        true_index = _class_index(gt_mask, "gt", num_classes, ignore_index)
        labelled = true_index < num_classes
        true_index = true_index[labelled]  # (P,)
        self._num_images += 1
        if not len(class_ids):
            self._histogram[0, 0] += np.bincount(true_index, minlength=num_classes)
            return
        winner = scores.argmax(axis=0)[labelled]  # (P,)
        peak = scores.max(axis=0)[labelled]  # (P,)
        if not np.isfinite(peak).all():
            raise ValueError("score_maps hold NaN or infinite values; scores must lie in [0, 1]")
        num_below = np.searchsorted(self._edges, peak, side="left")
        # Only the K classes of this image: the histogram stays small however many classes exist.
        shape = (len(self._edges) + 1, len(class_ids), num_classes)
        flat = np.ravel_multi_index((num_below, winner, true_index), shape)
        counts = np.bincount(flat, minlength=math.prod(shape)).reshape(shape)
        self._histogram[:, [self._mask_values[i] for i in class_ids]] += counts

    def merge(self, other: ThresholdCurve) -> None:
        """Add the counts of another instance.

        Raises:
            ValueError: If the other one uses other thresholds, mask values or another policy.
        """
        check_same_policy(self._settings(), other._settings())
        self._histogram += other._histogram
        self._num_images += other._num_images

    def confusions(self) -> np.ndarray:
        """Confusion matrix at each threshold: int64 (T, num_classes, num_classes + 1)."""
        # above[i]: pixels whose score is above threshold i, that is, above more than i thresholds.
        above = self._histogram[::-1].cumsum(axis=0)[::-1][1:]  # (T, n predicted, n true)
        num_true = self._histogram.sum(axis=(0, 1))  # (n,)
        num_thresholds, num_classes, _ = above.shape
        confusion = np.zeros((num_thresholds, num_classes, num_classes + 1), dtype=np.int64)
        confusion[:, :, :num_classes] = above.transpose(0, 2, 1)
        confusion[:, :, 0] = num_true - above.sum(axis=1)  # no class has mask value 0
        return confusion

    def compute(self) -> ThresholdCurveResult:
        """The whole curve and the scores at its best threshold.

        Raises:
            ValueError: If nothing was counted, so that no threshold is best.
        """
        confusions = self.confusions()
        mious = _mean_iou(confusions, self._policy["average"], "miss")
        if np.isnan(mious).any():
            raise ValueError(
                f"no labelled pixel in {self._num_images} images: no threshold is best"
            )
        best = int(mious.argmax())
        return ThresholdCurveResult(
            thresholds=self._thresholds,
            miou=tuple(mious.tolist()),
            best_threshold=self._thresholds[best],
            best=_build_result(
                confusions[best], float(mious[best]), self._num_images, self._policy
            ),
            policy=dict(self._policy),
            precision=_share_of_classes(confusions, axis=1),
            recall=_share_of_classes(confusions, axis=2),
        )

    def _settings(self) -> dict[str, Any]:
        return {
            **self._policy,
            "thresholds": self._thresholds,
            "mask_values": self._mask_values,
        }


def _share_of_classes(confusions: np.ndarray, *, axis: int) -> tuple[float, ...]:
    """Correct pixels of all classes but background, in percent of a sum along ``axis``.

    Of ``confusions`` (T, n, n + 1), axis 1 gives precision and axis 2 recall, each (T,).
    """
    correct = confusions[:, :, :-1].diagonal(axis1=1, axis2=2)[:, 1:].sum(axis=1)
    whole = confusions.sum(axis=axis)[:, 1 : confusions.shape[1]].sum(axis=1)
    return tuple(
        100 * int(part) / int(all_) if all_ else math.nan
        for part, all_ in zip(correct, whole, strict=True)
    )


def compute_confusion(
    pred: np.ndarray | torch.Tensor,
    gt: np.ndarray | torch.Tensor,
    *,
    num_classes: int,
    ignore_index: int = IGNORE_INDEX,
) -> np.ndarray:
    """Confusion matrix of one image; pixels whose ground truth is ``ignore_index`` are left out.

    Args:
        pred: Integer (H, W), each value in ``0..num_classes-1`` or ``ignore_index``.
        gt: The ground truth, with the same values.
        num_classes: The number of mask values, background included.
        ignore_index: See :class:`MeanIoU`.

    Returns:
        int64 (num_classes, num_classes + 1): rows true, columns predicted, the last column
        predicted ``ignore_index``.

    Raises:
        ValueError: If the shapes differ, a dtype is not integer or a value is not legal.
    """
    predicted, gt_mask = to_numpy(pred), to_numpy(gt)
    if predicted.shape != gt_mask.shape or gt_mask.ndim != 2:
        raise ValueError(
            f"pred {predicted.shape} and gt {gt_mask.shape} must have one shape, (height, width)"
        )
    size = num_classes + 1
    flat = _class_index(gt_mask, "gt", num_classes, ignore_index)
    flat *= size
    flat += _class_index(predicted, "pred", num_classes, ignore_index)
    counts = np.bincount(flat.ravel(), minlength=size * size).reshape(size, size)
    return counts[:num_classes].astype(np.int64)


def name_classes(result: MeanIoUResult, names: Mapping[int, str]) -> dict[str, Any]:
    """Return a result with classes by name, without those that neither side holds.

    Args:
        result: The scores.
        names: The class name of each mask value; other classes are called by their value.

    Returns:
        ``miou``, and by class ``iou_per_class``, ``precision_per_class`` and ``recall_per_class``,
        all in percent; ``pixel_accuracy``, ``ignored_share``, ``num_images`` and ``policy``.
        JSON-serialisable.
    """
    values = result.to_dict()
    held = [i for i, iou in enumerate(values["iou_per_class"]) if iou is not None]
    for key in ("iou_per_class", "precision_per_class", "recall_per_class"):
        values[key] = {names.get(i, str(i)): values[key][i] for i in held}
    return values


def _class_index(values: np.ndarray, name: str, num_classes: int, ignore_index: int) -> np.ndarray:
    """Values as intp, with ``ignore_index`` mapped to ``num_classes``."""
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name} must hold integers, got dtype {values.dtype}")
    legal = (values >= 0) & (values < num_classes)
    wrong = ~legal & (values != ignore_index)
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"{name} holds {values[row, column]} at row {row}, column {column}; legal are "
            f"0..{num_classes - 1} and {ignore_index} (ignore)"
        )
    index = values.astype(np.intp)
    index[~legal] = num_classes
    return index


def count_areas(
    confusion: np.ndarray, pred_ignore: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the pixels that are correct, predicted and true of each class.

    Args:
        confusion: (..., n, n + 1), as :func:`compute_confusion` returns it.
        pred_ignore: As for :class:`MeanIoU`.

    Returns:
        Three arrays (..., n).
    """
    answered = confusion[..., :-1]
    scored = answered if pred_ignore == "drop" else confusion
    correct = np.diagonal(answered, axis1=-2, axis2=-1)
    return correct, answered.sum(axis=-2), scored.sum(axis=-1)


def _mean_iou(confusion: np.ndarray, average: str, pred_ignore: str) -> np.ndarray:
    """Mean IoU in percent, (…), of confusion (…, n, n + 1); NaN where no class is chosen."""
    correct, predicted, true = count_areas(confusion, pred_ignore)
    union = predicted + true - correct
    chosen = true > 0 if average == "gt_present" else union > 0
    iou = np.where(chosen, ratio(correct, union), 0.0)
    return 100 * ratio(iou.sum(axis=-1), chosen.sum(axis=-1))


def _build_result(
    confusion: np.ndarray, miou: float, num_images: int, policy: dict[str, Any]
) -> MeanIoUResult:
    correct, predicted, true = count_areas(confusion, policy.get("pred_ignore", "miss"))
    frozen = confusion.copy()
    frozen.setflags(write=False)
    return MeanIoUResult(
        miou=miou,
        iou_per_class=tuple((100 * ratio(correct, predicted + true - correct)).tolist()),
        precision_per_class=tuple((100 * ratio(correct, predicted)).tolist()),
        recall_per_class=tuple((100 * ratio(correct, true)).tolist()),
        pixel_accuracy=100 * float(ratio(correct.sum(), true.sum())),
        confusion=frozen,
        num_images=num_images,
        ignored_share=float(ratio(confusion[:, -1].sum(), confusion.sum())),
        policy=dict(policy),
    )


def _check_classes(num_classes: int, ignore_index: int) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if 0 <= ignore_index < num_classes:
        raise ValueError(
            f"ignore_index must lie outside the classes 0..{num_classes - 1}, got {ignore_index}"
        )


def _check_choice(name: str, value: str, legal: Sequence[str]) -> None:
    if value not in legal:
        raise ValueError(f"{name} must be one of {list(legal)}, got {value!r}")
