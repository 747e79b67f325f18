"""From class maps to a mask: background rule, dense CRF, two thresholds; touches no file.

Apart from :mod:`adcam.labeling.labeler` so that a process which only makes masks loads no network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from adcam.masks.background import (
    BackgroundRule,
    compute_bg_score,
    compute_mask,
    stack_probabilities,
)
from adcam.masks.confident import compute_confident_mask
from adcam.masks.crf import build_refinement
from adcam.structures import ClassMaps, PseudoMask


@dataclass(frozen=True)
class Masking:
    """Every choice between class maps and mask, as :class:`adcam.labeling.labeler.LabelerOptions`.

    Attributes:
        rule: Where background ends.
        two_threshold: ``(low, high)`` background scores in place of ``rule``, or ``None``.
        crf: ``"none"`` or a key of :data:`adcam.masks.crf.CRF_BACKENDS`.
        crf_params: Key of :data:`adcam.masks.crf.CRF_PARAMS`.
        mask_values: Mask value of each class, in classifier order.
        crf_device: Where the CRF computes.
    """

    rule: BackgroundRule
    two_threshold: tuple[float, float] | None
    crf: str
    crf_params: str
    mask_values: tuple[int, ...]
    crf_device: str = "cpu"

    def __call__(self, maps: ClassMaps, img: np.ndarray, ori_hw: tuple[int, int]) -> PseudoMask:
        """Mask at the size ``ori_hw`` from maps (K, h, w) and the image (h, w, 3) they are of."""
        crf = None
        if self.crf != "none" and maps.class_ids:
            crf = build_refinement(
                img,
                crf=self.crf_params,
                backend=self.crf,
                device=self.crf_device,
            )
        if self.two_threshold is not None:
            low, high = self.two_threshold
            mask = compute_confident_mask(
                maps, mask_values=self.mask_values, fg_threshold=high, bg_threshold=low, crf=crf
            )
        else:
            rule, threshold = self.rule.rule, self.rule.value
            prob = None
            if crf is not None:
                bg_score = compute_bg_score(maps.score_maps, rule=rule, threshold=threshold)
                prob = crf(stack_probabilities(maps.score_maps, bg_score))
            mask = compute_mask(
                maps,
                mask_values=self.mask_values,
                rule=rule,
                threshold=threshold,
                chosen_on=self.rule.chosen_on,
                prob=prob,
            )
        return replace(mask, mask=_resize_mask(mask.mask, ori_hw))


def resize_maps(score_maps: np.ndarray, hw: tuple[int, ...]) -> np.ndarray:
    """Maps (K, h, w) at another size, float32 (K, *hw), bilinear."""
    if score_maps.shape[1:] == tuple(hw):
        return score_maps.astype(np.float32, copy=False)
    if not len(score_maps):
        return np.zeros((0, *hw), dtype=np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(score_maps, dtype=np.float32))
    resized = F.interpolate(tensor[None], size=tuple(hw), mode="bilinear", align_corners=False)
    return resized[0].numpy()


def _resize_mask(mask: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """A mask at another size, nearest value."""
    if mask.shape == hw:
        return mask
    size_wh = (hw[1], hw[0])
    return np.array(Image.fromarray(mask).resize(size_wh, Image.Resampling.NEAREST))
