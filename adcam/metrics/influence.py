"""What each image does to a mean IoU, and how uncertain the images leave it.

A mean IoU of a few hundred images would be another one on other images of the same kind. Its
standard error follows from the influence of each image: how the score changes if the image counts
a little more (the infinitesimal jackknife: Efron, "The Jackknife, the Bootstrap and Other
Resampling Plans", SIAM 1982, chapter 6). Two methods are scored on the same images, so the error of
their difference comes from the differences of the influences, image by image, and is mostly smaller
than either error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from adcam.metrics._numbers import ratio
from adcam.metrics.miou import MeanIoUResult, count_areas


def list_areas(confusion: np.ndarray, *, pred_ignore: str = "miss") -> np.ndarray:
    """Keep of the confusion matrix of one image what a mean IoU needs.

    Args:
        confusion: (n, n + 1), as :func:`adcam.metrics.miou.compute_confusion` returns it.
        pred_ignore: As for :class:`adcam.metrics.miou.MeanIoU`.

    Returns:
        (3, k) int64, of the k classes that the image or its mask shows: the class, its correct
        pixels, and those that are of it in the ground truth, in the mask, or in both.
    """
    correct, predicted, true = count_areas(confusion, pred_ignore)
    union = predicted + true - correct
    shown = np.flatnonzero(union)
    return np.stack([shown, correct[shown], union[shown]])


def compute_influences(areas: Mapping[str, np.ndarray], total: MeanIoUResult) -> dict[str, float]:
    """Compute by how much the score changes if one image counts more.

    The influence of an image on mIoU = mean over c of R_c / U_c is the derivative of the score by
    the image's weight, the mean over c of (r_c − IoU_c u_c) / U_c, with the correct pixels r and
    the union u of the image and R and U of all images.

    Args:
        areas: What :func:`list_areas` keeps of each image, by image id.
        total: The score of these images together.

    Returns:
        The influence of each image in points of ``total.miou``, by image id: positive where the
        image raises the score. They sum to 0.
    """
    if total.policy["average"] == "per_image":
        mious = {i: mean_of_areas(own) for i, own in areas.items()}
        scored = {i: miou for i, miou in mious.items() if not math.isnan(miou)}
        return {i: (miou - total.miou) / len(scored) for i, miou in scored.items()}
    correct, predicted, true = count_areas(total.confusion, total.policy["pred_ignore"])
    union = predicted + true - correct
    chosen = true > 0 if total.policy["average"] == "gt_present" else union > 0
    iou, weight = ratio(correct, union), np.where(chosen, ratio(chosen, union), 0) / chosen.sum()
    return {
        img_id: 100 * float(((own - iou[shown] * all_) * weight[shown]).sum())
        for img_id, (shown, own, all_) in areas.items()
    }


def mean_of_areas(areas: np.ndarray) -> float:
    """Return the mean IoU of one image in percent; NaN where it shows nothing that is scored.

    Args:
        areas: What :func:`list_areas` keeps of the image.
    """
    _, correct, union = areas
    return 100 * float((correct / union).mean()) if len(union) else math.nan


def compute_image_error(influences: Iterable[float]) -> float:
    """Compute the standard error of a score over images.

    Args:
        influences: Those of all images on a score, or on the difference of two scores (the
            differences of both influences of each image).

    Returns:
        The standard error in points; NaN with fewer than two images.
    """
    squares = [value * value for value in influences]
    num = len(squares)
    return math.sqrt(math.fsum(squares) * num / (num - 1)) if num > 1 else math.nan
