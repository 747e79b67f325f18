"""The probability from which each class counts as present, chosen on image-level labels."""

from __future__ import annotations

import numpy as np

from adcam.errors import AdcamError
from adcam.metrics._numbers import ratio

CANDIDATES = 1 / (1 + np.exp(-np.arange(-70, 71) / 10))
"""The probabilities that are tried: 0.0009 to 0.9991, in equal steps of the logit."""

PRIOR_IMAGES = 10.0
"""How many images of a class the mean of all classes counts for."""

_WIDTH = 10  # candidates, one logit: the standard deviation that curves are smoothed by


def choose_label_thresholds(
    scores: np.ndarray, targets: np.ndarray, *, prior_images: float = PRIOR_IMAGES
) -> tuple[float, ...]:
    """Choose the threshold of each class that maximises its F1.

    A class with few images has a ragged curve of F1, whose best place is chance. So the counts of
    all classes together, scaled to ``prior_images`` images that show the class, are added to its
    own: a rare class takes over the common threshold, a frequent one has its own. The curve is then
    smoothed over the threshold (Gaussian, one logit wide). Where there are few labels in all, the
    thresholds are drawn to 0.5: their logits are multiplied by n / (n + ``prior_images``) for n
    labels.

    Args:
        scores: The probability of each class of each image, (images, C) in [0, 1].
        targets: Whether the image shows the class, (images, C) of 0 and 1.
        prior_images: The weight of all classes. A larger value draws the thresholds closer
            together; 0 leaves every class to itself, and one without images then gets 0.5.

    Returns:
        One threshold a class; a class is present from this probability on.

    Raises:
        AdcamError: The shapes differ, a value is not legal, or no image shows any class.

    Example:
        >>> scores = np.array([[0.7], [0.6], [0.01], [0.02]])
        >>> choose_label_thresholds(scores, np.array([[1], [1], [0], [0]]))[0].__round__(1)
        0.4
    """
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise AdcamError(f"scores {scores.shape} and targets {targets.shape} must be (images, C)")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise AdcamError("scores must be probabilities in [0, 1]")
    if not ((targets == 0) | (targets == 1)).all():
        raise AdcamError("targets must be 0 or 1")
    if not 0 <= prior_images < np.inf:
        raise AdcamError(f"prior_images must be at least 0, got {prior_images}")
    present = targets.astype(bool)
    if not present.any():
        raise AdcamError("no image shows any class, so that no threshold can be chosen")
    # (T, C): the images called present by each threshold, and those of them that are.
    called = np.stack([(scores >= t).sum(axis=0) for t in CANDIDATES]).astype(np.float64)
    correct = np.stack([((scores >= t) & present).sum(axis=0) for t in CANDIDATES])
    shown = present.sum(axis=0)  # (C,)
    weight = prior_images / shown.sum()
    f1 = ratio(
        2 * (correct + weight * correct.sum(axis=1, keepdims=True)),
        called + shown + weight * (called.sum(axis=1, keepdims=True) + shown.sum()),
    )  # (T, C)
    best = CANDIDATES[_smooth(np.nan_to_num(f1)).argmax(axis=0)]  # (C,)
    share = shown.sum() / (shown.sum() + prior_images)
    logits = np.where((prior_images > 0) | (shown > 0), share * np.log(best / (1 - best)), 0)
    return tuple((1 / (1 + np.exp(-logits))).tolist())


def _smooth(curves: np.ndarray) -> np.ndarray:
    """Smooth curves (T, C) along their first axis; beyond its ends a curve goes on as it ends."""
    reach = 3 * _WIDTH
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _WIDTH) ** 2)
    padded = np.pad(curves, ((reach, reach), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=0)  # (T, C, W)
    smooth: np.ndarray = windows @ (kernel / kernel.sum())
    return smooth
