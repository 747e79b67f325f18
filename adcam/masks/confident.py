"""Masks with an uncertain part: two thresholds, and 255 between them.

After the two-threshold labels of IRN (Ahn, Cho, Kwak, CVPR 2019; ``step/cam_to_ir_label.py`` of
jiwoon-ahn/irn).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from adcam.errors import AdcamError
from adcam.masks.background import (
    compute_bg_score,
    label_pixels,
    present_mask_values,
    stack_probabilities,
)
from adcam.structures import IGNORE_INDEX, ClassMaps, PseudoMask


def compute_confident_mask(
    maps: ClassMaps,
    *,
    mask_values: Sequence[int],
    fg_threshold: float = 0.30,
    bg_threshold: float = 0.05,
    crf: Callable[[np.ndarray], np.ndarray] | None = None,
) -> PseudoMask:
    """Label what two passes agree on and leave the rest uncertain.

    The foreground pass takes the high constant background score ``fg_threshold``: what it calls a
    class is one with confidence. The background pass takes the low one, ``bg_threshold``: what it
    calls background is so with confidence. Where the passes differ the pixel becomes 255. Without a
    CRF these are the pixels whose highest score is above ``bg_threshold`` and not above
    ``fg_threshold``.

    With a CRF a pixel may be a class in the foreground pass alone, or two classes in the two
    passes. IRN's script keeps the class of the foreground pass there; here it is uncertain.

    Args:
        maps: The present classes and their score maps. With no class the mask is all background.
        mask_values: Mask value of each foreground class, in classifier order.
        fg_threshold: The background score of the foreground pass, in [0, 1]; a larger value leaves
            more foreground uncertain. The default is IRN's.
        bg_threshold: The background score of the background pass, in [0, ``fg_threshold``]; a
            smaller value leaves more background uncertain. The default is IRN's.
        crf: From float32 probabilities (K + 1, H, W), background first, to refined ones of the same
            shape; called once per pass, and not at all for an image without a class.

    Returns:
        The mask. Its ``rule`` names both thresholds, e.g. ``"confident:0.05:0.3"``; its
        ``threshold`` is ``fg_threshold``.

    Raises:
        AdcamError: If ``bg_threshold`` is above ``fg_threshold``, a threshold lies outside [0, 1],
            maps and classes do not match, or the CRF returns another shape.
    """
    if bg_threshold > fg_threshold:
        raise AdcamError(
            f"bg_threshold must not be above fg_threshold, got {bg_threshold} > {fg_threshold}"
        )
    values = present_mask_values(maps, mask_values)
    fg_pass, bg_pass = (
        values[_label(maps.score_maps, threshold, crf)]
        for threshold in (fg_threshold, bg_threshold)
    )
    return PseudoMask(
        mask=np.where(fg_pass == bg_pass, fg_pass, np.uint8(IGNORE_INDEX)),
        rule=f"confident:{bg_threshold}:{fg_threshold}",
        threshold=fg_threshold,
        chosen_on="given",
    )


def _label(
    score_maps: np.ndarray, threshold: float, crf: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    """Row of each pixel in ``[background, classes…]``, intp (H, W)."""
    bg_score = compute_bg_score(score_maps, rule="constant", threshold=threshold)
    if crf is None or not len(score_maps):
        return label_pixels(score_maps, bg_score)
    prob = stack_probabilities(score_maps, bg_score)
    refined = np.asarray(crf(prob))
    if refined.shape != prob.shape:
        raise AdcamError(f"the CRF must keep the shape {prob.shape}, it returned {refined.shape}")
    return refined.argmax(axis=0)
