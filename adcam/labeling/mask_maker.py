"""From class maps to a mask: background rule, dense CRF, two thresholds; touches no file.

Apart from :mod:`adcam.labeling.labeler` so that a process which only makes masks loads no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from adcam.masks.background import (
    BackgroundRule,
    compute_bg_score,
    compute_mask,
    find_threshold,
    stack_probabilities,
)
from adcam.masks.confident import compute_confident_mask
from adcam.masks.crf import build_refinement, refine_batch
from adcam.structures import ClassMaps, PseudoMask


@dataclass(frozen=True, eq=False)
class DeviceMaps(ClassMaps):
    """Class maps that are also still where they were computed.

    Attributes:
        on_device: ``score_maps`` on the device of the network. It stays in its process: what is
            sent to another one is :class:`adcam.structures.ClassMaps`.
    """

    on_device: Tensor

    def __reduce__(self) -> tuple[type[ClassMaps], tuple[tuple[int, ...], np.ndarray]]:
        return ClassMaps, (self.class_ids, self.score_maps)


@dataclass(frozen=True)
class MaskMaker:
    """Turns class maps into a mask.

    Attributes:
        rule: Where background ends.
        two_threshold: ``(low, high)`` background scores in place of ``rule``, or ``None``.
        crf: ``"none"``, or the parameter set of a CRF (:data:`adcam.masks.crf.CRF_PARAMS`).
        crf_backend: What computes the CRF, a key of :data:`adcam.masks.crf.CRF_BACKENDS`.
        mask_values: The mask value of each class, in classifier order.
        crf_device: Where the CRF computes.
    """

    rule: BackgroundRule
    two_threshold: tuple[float, float] | None
    crf: str
    crf_backend: str
    mask_values: tuple[int, ...]
    crf_device: str = "cpu"

    def __call__(self, maps: ClassMaps, img: np.ndarray, ori_hw: tuple[int, int]) -> PseudoMask:
        """Make the mask of an image.

        Args:
            maps: The maps of the present classes, (K, h, w).
            img: The image that they are of, RGB uint8 (h, w, 3).
            ori_hw: Height and width of the mask, which may be larger.
        """
        crf = None
        if self.crf != "none" and maps.class_ids:
            crf = build_refinement(
                img,
                crf=self.crf,
                backend=self.crf_backend,
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

    def make_batch(
        self,
        maps: Sequence[ClassMaps],
        imgs: Sequence[np.ndarray],
        ori_hws: Sequence[tuple[int, int]],
    ) -> list[PseudoMask]:
        """Make the masks of several images; on another device than the CPU, their CRFs at once.

        Args:
            maps: The maps of each image, as when called.
            imgs: The images.
            ori_hws: Height and width of the masks.
        """
        each = list(zip(maps, imgs, ori_hws, strict=True))
        if self.crf == "none" or self.crf_device == "cpu" or self.two_threshold is not None:
            return [self(*of_image) for of_image in each]
        left = [i for i, of_image in enumerate(maps) if of_image.class_ids]
        probs = [self._stack_on_device(maps[i]) for i in left]
        refined = refine_batch(probs, [imgs[i] for i in left], crf=self.crf)
        winners = [prob.argmax(dim=0).to(torch.uint8) for prob in refined]
        del probs, refined
        found = dict(zip(left, (winner.cpu().numpy() for winner in winners), strict=True))
        return [
            self._decide(of_image, found[i], ori_hw) if i in found else self(of_image, img, ori_hw)
            for i, (of_image, img, ori_hw) in enumerate(each)
        ]

    def _stack_on_device(self, maps: ClassMaps) -> Tensor:
        """``stack_probabilities`` of the rule's background score, where the CRF computes."""
        if isinstance(maps, DeviceMaps):
            scores = maps.on_device
        else:
            scores = torch.from_numpy(np.ascontiguousarray(maps.score_maps, dtype=np.float32))
            scores = scores.to(self.crf_device, non_blocking=True)
        peak = scores.amax(dim=0)
        rule, threshold = self.rule.rule, self.rule.value
        if rule == "power":
            bg_score = (1 - peak).clamp(0, 1) ** float(threshold or 0)
        else:
            value = find_threshold(maps.score_maps, rule=rule, threshold=threshold)
            bg_score = torch.full_like(peak, value)
        bg_score = torch.where((bg_score == 0) & (peak == 0), 1, bg_score)
        stacked = torch.cat([bg_score[None], scores])
        return stacked / stacked.sum(dim=0)

    def _decide(
        self, maps: ClassMaps, winner: np.ndarray | None, ori_hw: tuple[int, int]
    ) -> PseudoMask:
        mask = compute_mask(
            maps,
            mask_values=self.mask_values,
            rule=self.rule.rule,
            threshold=self.rule.value,
            chosen_on=self.rule.chosen_on,
            winner=winner,
        )
        return replace(mask, mask=_resize_mask(mask.mask, ori_hw))


def resize_maps(score_maps: np.ndarray, hw: tuple[int, ...]) -> np.ndarray:
    """Resize maps (K, h, w) to float32 (K, *hw), bilinear."""
    if score_maps.shape[1:] == tuple(hw):
        return score_maps.astype(np.float32, copy=False)
    if not len(score_maps):
        return np.zeros((0, *hw), dtype=np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(score_maps, dtype=np.float32))
    resized = F.interpolate(tensor[None], size=tuple(hw), mode="bilinear", align_corners=False)
    return resized[0].numpy()


def _resize_mask(mask: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Resize a mask, nearest value."""
    if mask.shape == hw:
        return mask
    size_wh = (hw[1], hw[0])
    return np.array(Image.fromarray(mask).resize(size_wh, Image.Resampling.NEAREST))
