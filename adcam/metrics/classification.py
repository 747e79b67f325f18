"""How well a classifier names the classes of images: average precision per class and its mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adcam.files import to_json
from adcam.metrics._numbers import check_same_policy, ratio, to_numpy

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MultiLabelResult:
    """Scores of a multi-label classifier, all in percent.

    Attributes:
        mean_ap: The mean of ``ap_per_class`` over the classes that have a positive image; NaN if
            none has.
        ap_per_class: The average precision of each class; NaN for a class without a positive image.
        precision: The share of the (image, class) pairs called present that are present; NaN if
            none is called present.
        recall: The share of the (image, class) pairs present that are called present; NaN if none
            is present.
        f1: The harmonic mean of precision and recall.
        precision_per_class: The precision of each class; NaN for a class never called present.
        recall_per_class: The recall of each class; NaN for a class without a positive image.
        f1_per_class: The harmonic mean of both for each class; NaN for a class that is neither
            present nor called present.
        num_images: The number of images counted.
        policy: The threshold above which a class is called present.
    """

    mean_ap: float
    ap_per_class: tuple[float, ...]
    precision: float
    recall: float
    f1: float
    precision_per_class: tuple[float, ...]
    recall_per_class: tuple[float, ...]
    f1_per_class: tuple[float, ...]
    num_images: int
    policy: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable, one key per attribute; ``None`` stands for NaN."""
        values: dict[str, Any] = to_json(vars(self))
        return values


class MultiLabelAP:
    """Average precision per class and its mean (mAP), from scores of images seen in any order.

    Args:
        num_classes: The number of foreground classes C.
        threshold: A class is called present where its score is above this, for precision, recall
            and F1 only: 0.5 for probabilities, 0 for logits. A higher value raises precision and
            lowers recall; average precision does not depend on it.

    Raises:
        ValueError: If ``num_classes`` is below 1 or ``threshold`` is not finite.

    Example:
        >>> import numpy as np
        >>> metric = MultiLabelAP(1)
        >>> metric.update(np.array([[0.9], [0.8], [0.7]]), np.array([[1], [0], [1]]))
        >>> round(metric.compute().mean_ap, 2)
        83.33
    """

    def __init__(self, num_classes: int, *, threshold: float = 0.5) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not math.isfinite(threshold):
            raise ValueError(f"threshold must be a finite number, got {threshold}")
        self._policy: dict[str, Any] = {"num_classes": num_classes, "threshold": threshold}
        self._scores: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []

    def update(self, scores: np.ndarray | torch.Tensor, targets: np.ndarray | torch.Tensor) -> None:
        """Count a batch.

        Args:
            scores: (B, C) float, higher means more likely present.
            targets: (B, C) multi-hot: 0 or 1, any dtype.

        Raises:
            ValueError: If the shapes are not (B, C), a score is not finite or a target is neither
                0 nor 1.
        """
        score, target = to_numpy(scores), to_numpy(targets)
        num_classes = self._policy["num_classes"]
        if score.shape != target.shape or score.ndim != 2 or score.shape[1] != num_classes:
            raise ValueError(
                f"scores {score.shape} and targets {target.shape} must both be (B, {num_classes})"
            )
        if not np.isfinite(score).all():
            raise ValueError("scores hold NaN or infinite values")
        wrong = target[(target != 0) & (target != 1)]
        if wrong.size:
            raise ValueError(f"targets hold {wrong[0]}; legal are 0 and 1")
        # astype copies: the caller may reuse its buffers.
        self._scores.append(score.astype(np.float64))
        self._targets.append(target.astype(bool))

    def merge(self, other: MultiLabelAP) -> None:
        """Add the images of another instance.

        Raises:
            ValueError: If the other one has another number of classes or another threshold.
        """
        check_same_policy(self._policy, other._policy)
        self._scores += other._scores
        self._targets += other._targets

    def compute(self) -> MultiLabelResult:
        """Scores of everything counted so far; counting may go on afterwards."""
        empty = np.zeros((0, self._policy["num_classes"]))
        scores = np.concatenate([empty, *self._scores])  # (M, C)
        targets = np.concatenate([empty.astype(bool), *self._targets])  # (M, C)
        ap = [
            100 * compute_average_precision(scores[:, c], targets[:, c])
            for c in range(scores.shape[1])
        ]
        defined = [v for v in ap if not math.isnan(v)]
        called = scores > self._policy["threshold"]
        correct = (called & targets).sum(axis=0)  # (C,)
        num_called, num_present = called.sum(axis=0), targets.sum(axis=0)
        return MultiLabelResult(
            mean_ap=math.fsum(defined) / len(defined) if defined else math.nan,
            ap_per_class=tuple(ap),
            precision=100 * float(ratio(correct.sum(), num_called.sum())),
            recall=100 * float(ratio(correct.sum(), num_present.sum())),
            f1=100 * float(ratio(2 * correct.sum(), num_called.sum() + num_present.sum())),
            precision_per_class=tuple((100 * ratio(correct, num_called)).tolist()),
            recall_per_class=tuple((100 * ratio(correct, num_present)).tolist()),
            f1_per_class=tuple((100 * ratio(2 * correct, num_called + num_present)).tolist()),
            num_images=len(scores),
            policy=dict(self._policy),
        )


def compute_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Area under the precision-recall steps, ``sum_i (R_i - R_{i-1}) P_i``.

    P_i and R_i are taken at the i-th highest *distinct* score, so images with equal scores enter
    together and their order cannot change the value. There is no interpolation: this is
    ``average_precision_score`` of scikit-learn, not VOC's 11 points.

    Args:
        scores: (M,) float.
        targets: (M,) bool.

    Returns:
        In [0, 1]; NaN if no target is positive.
    """
    num_positive = int(targets.sum())
    if not num_positive:
        return math.nan
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    num_correct = np.cumsum(targets[order])[last_of_tie]
    num_called = np.flatnonzero(last_of_tie) + 1
    gained = np.diff(num_correct, prepend=0)
    return float((gained * (num_correct / num_called)).sum() / num_positive)
