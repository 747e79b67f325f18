"""Where background ends and the classes begin: background scores, probabilities and masks.

Rules, for the highest class score m of a pixel:

- ``constant``: background score t everywhere (``eval_cam.py`` of IRN, jiwoon-ahn/irn).
- ``power``: background score ``(1 - m) ** alpha`` (``infer_cls.py`` of PSA, jiwoon-ahn/psa).
- ``otsu``: a constant per image, Otsu's threshold (IEEE Trans. SMC 9(1), 1979) on the map of m.
- ``steepest``: a constant per image, the level near t at which the map of m is steepest
  (:mod:`adcam.masks.steepest`, ours).

A pixel is foreground where m is above the background score; background wins at equality. Class
indices become mask values here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adcam.errors import AdcamError
from adcam.method_options import DEFAULT_RULES
from adcam.options import check_choice
from adcam.structures import ClassMaps, PseudoMask

RULES = ("constant", "power", "otsu", "steepest")
"""The names of the background rules."""

RULE_FORMS = (
    "a number in [0, 1], 'constant:<number in [0, 1]>', 'power:<number above 0>', 'otsu' or "
    "'steepest:<number in [0, 1]>'"
)


@dataclass(frozen=True)
class BackgroundRule:
    """A rule that decides which pixels are background.

    Attributes:
        rule: ``"constant"``, ``"power"``, ``"otsu"`` or ``"steepest"``.
        value: The background score t in [0, 1] of ``constant`` (larger: more background); the
            exponent alpha > 0 of ``power`` (larger: less background); ``None`` for ``otsu``; for
            ``steepest`` the level in [0, 1] that is expected for an image of one class (larger:
            more background).
        chosen_on: The split the value was chosen on; ``"given"`` when the user gave it.

    Raises:
        AdcamError: For an unknown rule or a value outside its range.
    """

    rule: str
    value: float | None
    chosen_on: str = "given"

    def __post_init__(self) -> None:
        _check_rule(self.rule, self.value)

    def __str__(self) -> str:
        return self.rule if self.value is None else f"{self.rule}:{self.value}"


def parse_rule(rule: str | float | BackgroundRule, *, chosen_on: str = "given") -> BackgroundRule:
    """Read a rule as it is written on the command line, or as a number.

    Args:
        rule: ``"0.35"``, ``0.35`` or ``"constant:0.35"``, ``"power:4"``, ``"otsu"``,
            ``"steepest:0.56"``; a :class:`BackgroundRule` stays as it is.
        chosen_on: The split the value was chosen on.

    Raises:
        AdcamError: For anything else, with the legal forms.

    Example:
        >>> parse_rule("power:4")
        BackgroundRule(rule='power', value=4.0, chosen_on='given')
    """
    if isinstance(rule, BackgroundRule):
        return rule
    name, colon, number = str(rule).strip().partition(":")
    if not colon and name not in RULES:
        name, number = "constant", name
    try:
        value = float(number) if colon or number else None
        return BackgroundRule(name, value, chosen_on)
    except ValueError as error:
        raise AdcamError(f"background rule must be {RULE_FORMS}, got {rule!r}: {error}") from error


def compute_bg_score(
    score_maps: np.ndarray, *, rule: str, threshold: float | None = None
) -> np.ndarray:
    """Compute the background score of each pixel.

    Args:
        score_maps: (K, H, W) float in [0, 1]; K may be 0.
        rule: One of :data:`RULES`.
        threshold: The value of the rule, ``None`` for ``otsu``; see :class:`BackgroundRule`.

    Returns:
        float32 (H, W) in [0, 1].

    Raises:
        AdcamError: For an unknown rule, a value outside its range, or maps that are not finite.
    """
    value = find_threshold(score_maps, rule=rule, threshold=threshold)
    return _bg_score(score_maps, rule, value)


def _bg_score(score_maps: np.ndarray, rule: str, value: float) -> np.ndarray:
    """The background score of each pixel where ``value`` decides this image."""
    peak = _peak(score_maps)
    if rule == "power":
        return (1 - peak).clip(0, 1) ** np.float32(value)
    return np.full_like(peak, value)


def find_threshold(score_maps: np.ndarray, *, rule: str, threshold: float | None = None) -> float:
    """Return the value that decides this image: for ``constant`` and ``power`` that of the rule.

    Otsu's threshold is the value, of 256 between the map's lowest and highest, that splits the
    pixels into two groups with the largest variance between them. A constant map has no two
    groups: its own value is returned, so that all of it is background.

    Args:
        score_maps: (K, H, W) float in [0, 1]; K may be 0.
        rule: One of :data:`RULES`.
        threshold: The value of the rule, ``None`` for ``otsu``; see :class:`BackgroundRule`.

    Raises:
        AdcamError: If the rule is unknown, its value is out of range, or maps are not finite.
    """
    _check_rule(rule, threshold)
    if rule == "steepest":
        # Here, so that a rule can be read without torch.
        from adcam.masks.steepest import find_steepest_level

        return find_steepest_level(
            _peak(score_maps), expected=float(threshold or 0), num_classes=len(score_maps)
        )
    if threshold is not None:
        return float(threshold)
    return _find_otsu_threshold(_peak(score_maps))


def _find_otsu_threshold(values: np.ndarray) -> float:
    """As ``skimage.filters.threshold_otsu`` with 256 bins, to the bit."""
    if values.min() == values.max():
        return float(values.flat[0])
    counts, edges = np.histogram(values, bins=256)
    centers = (edges[:-1] + edges[1:]) / 2
    counts = counts.astype(np.float32)
    below = np.cumsum(counts)  # pixels up to each bin
    above = np.cumsum(counts[::-1])[::-1]  # pixels from each bin on
    mean_below = np.cumsum(counts * centers) / below
    mean_above = (np.cumsum((counts * centers)[::-1]) / above[::-1])[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centers[between.argmax()])


def stack_probabilities(score_maps: np.ndarray, bg_score: np.ndarray) -> np.ndarray:
    """Stack background and class scores to one distribution a pixel, for a CRF's unary.

    Args:
        score_maps: (K, H, W) float, at least 0.
        bg_score: (H, W) float, at least 0.

    Returns:
        float32 (K + 1, H, W), background first, summing to 1 over the first axis. Where every score
        is 0 the pixel is background with probability 1.

    Raises:
        AdcamError: If the shapes do not match, or a score is negative or not finite.
    """
    if score_maps.ndim != 3 or score_maps.shape[1:] != bg_score.shape:
        raise AdcamError(
            f"score_maps {score_maps.shape} and bg_score {bg_score.shape} must be (K, H, W) and "
            "(H, W)"
        )
    stacked = np.concatenate([bg_score[None], score_maps]).astype(np.float32)  # (K+1, H, W)
    if not (np.isfinite(stacked).all() and (stacked >= 0).all()):
        raise AdcamError("scores must be finite and at least 0")
    stacked[0, ~stacked.any(axis=0)] = 1
    return stacked / stacked.sum(axis=0)


def compute_mask(
    maps: ClassMaps,
    *,
    mask_values: Sequence[int],
    rule: str = "constant",
    threshold: float | None = None,
    chosen_on: str = "given",
    prob: np.ndarray | None = None,
) -> PseudoMask:
    """Compute the mask of one image.

    Args:
        maps: The present classes and their score maps. With no class the mask is all background.
        mask_values: Mask value of each foreground class, in classifier order.
        rule: One of :data:`RULES`.
        threshold: The value of the rule, ``None`` for ``otsu``; it is compared with the scores in
            float32.
        chosen_on: Recorded in the result: the split the threshold was chosen on.
        prob: (K + 1, H, W), background first, for example :func:`stack_probabilities` after a CRF.
            Where given, each pixel takes its most probable row, and the rule is only recorded.

    Returns:
        The mask. Among equal class scores the first class wins; background wins over equal ones.

    Raises:
        AdcamError: If maps, classes and probabilities do not match, the rule is unknown, its value
            is out of range, or maps are not finite.
    """
    values = present_mask_values(maps, mask_values)
    value = find_threshold(maps.score_maps, rule=rule, threshold=threshold)
    if prob is None:
        winner = label_pixels(maps.score_maps, _bg_score(maps.score_maps, rule, value))
    else:
        expected = (len(values), *maps.score_maps.shape[1:])
        if prob.shape != expected:
            raise AdcamError(f"prob must be (K + 1, H, W) = {expected}, got {prob.shape}")
        winner = prob.argmax(axis=0)
    return PseudoMask(values[winner], rule, value, chosen_on)


def label_pixels(score_maps: np.ndarray, bg_score: np.ndarray) -> np.ndarray:
    """Return each pixel's row in ``[background, classes…]``, 0 where no score beats background.

    Args:
        score_maps: (K, H, W) float; K may be 0.
        bg_score: (H, W) float.

    Returns:
        intp (H, W) in ``0..K``.
    """
    if not len(score_maps):
        return np.zeros(bg_score.shape, dtype=np.intp)
    return np.where(_peak(score_maps) > bg_score, score_maps.argmax(axis=0) + 1, 0)


def present_mask_values(maps: ClassMaps, mask_values: Sequence[int]) -> np.ndarray:
    """Return the mask values of ``[background, the image's classes…]``: uint8 (K + 1,), 0 first.

    Raises:
        AdcamError: If a class has no mask value, or there is not one map per class.
    """
    if maps.score_maps.ndim != 3 or len(maps.score_maps) != len(maps.class_ids):
        raise AdcamError(
            f"score_maps must be (K, H, W) with K = {len(maps.class_ids)}, the number of classes, "
            f"got {maps.score_maps.shape}"
        )
    if any(not 0 <= i < len(mask_values) for i in maps.class_ids):
        raise AdcamError(
            f"class_ids must lie in 0..{len(mask_values) - 1}, got {list(maps.class_ids)}"
        )
    return np.array([0, *(mask_values[i] for i in maps.class_ids)], dtype=np.uint8)


def _peak(score_maps: np.ndarray) -> np.ndarray:
    """Highest class score of each pixel, float32 (H, W); 0 where there is no class."""
    if not len(score_maps):
        return np.zeros(score_maps.shape[1:], dtype=np.float32)
    peak = score_maps.max(axis=0).astype(np.float32, copy=False)
    if not np.isfinite(peak).all():
        raise AdcamError("score_maps hold NaN or infinite values; scores must lie in [0, 1]")
    return peak


def _check_rule(rule: str, value: float | None) -> None:
    check_choice("rule", rule, RULES)
    if rule == "otsu":
        if value is not None:
            raise AdcamError(f"otsu finds its own threshold on each image, got {value}")
    elif value is None:
        raise AdcamError(f"rule {rule!r} needs a threshold")
    elif rule in ("constant", "steepest") and not 0 <= value <= 1:
        raise AdcamError(f"the threshold of {rule!r} must lie in [0, 1], got {value}")
    elif rule == "power" and not (value > 0 and math.isfinite(value)):
        raise AdcamError(f"the exponent of 'power' must be a finite number above 0, got {value}")


def default_rule(method: str = "ad_cam") -> BackgroundRule:
    """The background rule where none is given, with the split, method and scale it was chosen on.

    Args:
        method: The method that made the maps. Methods without a rule of their own take AD-CAM's.

    Example:
        >>> str(default_rule("ts_cam")), str(default_rule("refined"))
        ('steepest:0.56', 'steepest:0.52')
    """
    text, chosen_on = DEFAULT_RULES.get(method, DEFAULT_RULES["ad_cam"])
    return parse_rule(text, chosen_on=chosen_on)


DEFAULT_RULE = default_rule()
"""The rule of AD-CAM, and of all methods that :func:`default_rule` has no other for."""
