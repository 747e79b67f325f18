"""From class maps to a mask: background rule, dense CRF, two thresholds; touches no file.

Apart from :mod:`adcam.labeling.labeler` so that a process which only makes masks loads no network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from adcam.errors import AdcamError
from adcam.labeling.transfer import send_bytes, to_host
from adcam.masks.background import (
    BackgroundRule,
    compute_bg_score,
    compute_mask,
    find_threshold,
    stack_probabilities,
)
from adcam.masks.confident import compute_confident_mask
from adcam.masks.crf import build_refinement, refine_batch
from adcam.masks.steepest import find_steepest_levels
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
        crf_device: Where masks are made, with the CRF if there is one.
    """

    rule: BackgroundRule
    two_threshold: tuple[float, float] | None
    crf: str
    crf_backend: str
    mask_values: tuple[int, ...]
    crf_device: str = "cpu"

    @property
    def device(self) -> str:
        """Where :meth:`label_on_device` makes masks; ``"cpu"`` where they are made one by one."""
        is_mps = self.crf_device.startswith("mps")  # it lacks float64
        return "cpu" if self.two_threshold is not None or is_mps else self.crf_device

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
                img, crf=self.crf, backend=self.crf_backend, device=self.crf_device
            )
        if self.two_threshold is not None:
            low, high = self.two_threshold
            mask = compute_confident_mask(
                maps, mask_values=self.mask_values, fg_threshold=high, bg_threshold=low, crf=crf
            )
        else:
            mask = apply_rule(maps, self.rule, self.mask_values, crf=crf)
        return replace(mask, mask=resize_mask(mask.mask, ori_hw))

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
        left = [i for i, of_image in enumerate(maps) if self._is_for_device(of_image)]
        pixels = [torch.from_numpy(np.array(imgs[i], order="C")) for i in left]
        sent = send_bytes(pixels, torch.device(self.device)).split([x.numel() for x in pixels])
        masks, thresholds = self.label_on_device(
            [self._to_device(maps[i]) for i in left],
            [maps[i].class_ids for i in left],
            [part.view(x.shape) for part, x in zip(sent, pixels, strict=True)],
        )
        *arrays, values = to_host([*masks, thresholds])
        found = {
            i: self.describe(mask, value, ori_hws[i])
            for i, mask, value in zip(left, arrays, values.tolist(), strict=True)
        }
        return [found[i] if i in found else self(*of_image) for i, of_image in enumerate(each)]

    def _is_for_device(self, maps: ClassMaps) -> bool:
        """Tell whether the mask of an image is made on the device: not what needs no CRF there."""
        is_there = self.crf != "none" or isinstance(maps, DeviceMaps)
        return self.device != "cpu" and bool(maps.class_ids) and is_there

    def _to_device(self, maps: ClassMaps) -> Tensor:
        if isinstance(maps, DeviceMaps):
            return maps.on_device
        scores = np.ascontiguousarray(maps.score_maps, dtype=np.float32)
        return torch.from_numpy(scores).to(self.device, non_blocking=True)

    def label_on_device(
        self,
        maps: Sequence[Tensor],
        class_ids: Sequence[tuple[int, ...]],
        imgs: Sequence[Tensor],
    ) -> tuple[list[Tensor], Tensor]:
        """Label the pixels of several images where their maps are, their CRFs at once.

        Without a CRF nothing waits for the device, unless the rule is ``"otsu"``.

        Args:
            maps: The maps of each image, (K, H, W) float32 in [0, 1], K >= 1. Those of equal shapes
                in a row are labelled together.
            class_ids: The K classes of each image, ascending.
            imgs: The images, RGB uint8 (H, W, 3), on the same device.

        Returns:
            The mask of each image, uint8 (H, W) of mask values, at the size of its maps; and what
            the rule's threshold is for it, (images,) float64, NaN where its maps are not finite.

        Raises:
            RuntimeError: The CRF cannot compute there.
        """
        if not maps:
            return [], torch.zeros(0)
        most = max(map(len, class_ids)) + 1
        rows = [[0, *(self.mask_values[i] for i in ids)] for ids in class_ids]
        padded = torch.tensor([row + [0] * (most - len(row)) for row in rows], dtype=torch.uint8)
        tables = padded.to(maps[0].device, non_blocking=True)  # (images, K + 1)
        groups = [
            torch.stack([*of_shape]) for _, of_shape in itertools.groupby(maps, attrgetter("shape"))
        ]
        peaks = [scores.amax(dim=1) for scores in groups]  # (G, H, W)
        thresholds = self._find_thresholds(peaks, [scores.shape[1] for scores in groups])
        probs: list[Tensor] = []
        winners: list[Tensor] = []  # (G, H, W)
        sizes = [*map(len, groups)]
        for scores, peak, threshold in zip(groups, peaks, thresholds.split(sizes), strict=True):
            if self.rule.rule == "power":
                bg_score = (1 - peak).clamp(0, 1) ** float(self.rule.value or 0)
            else:
                bg_score = threshold.float()[:, None, None].expand_as(peak)
            if self.crf == "none":
                winners.append(torch.where(peak > bg_score, scores.argmax(dim=1) + 1, 0))
                continue
            bg_score = torch.where((bg_score == 0) & (peak == 0), 1, bg_score)
            stacked = torch.cat([bg_score[:, None], scores], dim=1)
            probs += stacked / stacked.sum(dim=1, keepdim=True)
        if self.crf != "none":
            refined = iter(refine_batch(probs, imgs, crf=self.crf))
            winners = [torch.stack([*itertools.islice(refined, n)]).argmax(dim=1) for n in sizes]
        masks: list[Tensor] = []
        for table, winner in zip(tables.split(sizes), winners, strict=True):
            masks += table.gather(1, winner.flatten(1)).view(winner.shape)
        finite = torch.cat([peak.isfinite().flatten(1).all(dim=1) for peak in peaks])
        return masks, thresholds.where(finite, torch.nan)

    def _find_thresholds(self, peaks: Sequence[Tensor], num_classes: Sequence[int]) -> Tensor:
        """As ``find_threshold``, of all images, with the highest scores (G, H, W) of each group."""
        rule, value = self.rule.rule, self.rule.value
        if rule == "steepest":
            return find_steepest_levels(peaks, expected=value or 0, num_classes=num_classes)
        if rule == "otsu":  # its histogram is made on the host
            hosted = [peak for group in peaks for peak in group.cpu().numpy()]
            found = [find_threshold(peak[None], rule=rule) for peak in hosted]
            return torch.tensor(found, dtype=torch.float64).to(peaks[0].device)
        num = sum(map(len, peaks))
        return torch.full((num,), value or 0, dtype=torch.float64, device=peaks[0].device)

    def describe(self, mask: np.ndarray, threshold: float, ori_hw: tuple[int, int]) -> PseudoMask:
        """Return a mask of :meth:`label_on_device` with the rule that it was made by.

        Args:
            mask: The mask, uint8 (h, w).
            threshold: What the rule's threshold is for it.
            ori_hw: Height and width of the result, which may be larger.

        Raises:
            AdcamError: The threshold says that the maps were not finite.
        """
        if math.isnan(threshold):
            raise AdcamError("score_maps hold NaN or infinite values; scores must lie in [0, 1]")
        return PseudoMask(resize_mask(mask, ori_hw), self.rule.rule, threshold, self.rule.chosen_on)


def apply_rule(
    maps: ClassMaps,
    rule: BackgroundRule,
    mask_values: Sequence[int],
    *,
    crf: Callable[[np.ndarray], np.ndarray] | None = None,
) -> PseudoMask:
    """Make a mask of maps by a background rule, at the size of the maps.

    Args:
        maps: The maps of the present classes, (K, h, w).
        rule: Where background ends.
        mask_values: The mask value of each class, in classifier order.
        crf: What refines the probabilities (K + 1, h, w) of background and classes, such as
            :func:`adcam.masks.crf.build_refinement` returns; ``None`` decides by the maps alone.
    """
    prob = None
    if crf is not None:
        bg_score = compute_bg_score(maps.score_maps, rule=rule.rule, threshold=rule.value)
        prob = crf(stack_probabilities(maps.score_maps, bg_score))
    return compute_mask(
        maps,
        mask_values=mask_values,
        rule=rule.rule,
        threshold=rule.value,
        chosen_on=rule.chosen_on,
        prob=prob,
    )


def resize_maps(score_maps: np.ndarray, hw: tuple[int, ...]) -> np.ndarray:
    """Resize maps (K, h, w) to float32 (K, *hw), bilinear."""
    if score_maps.shape[1:] == tuple(hw):
        return score_maps.astype(np.float32, copy=False)
    if not len(score_maps):
        return np.zeros((0, *hw), dtype=np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(score_maps, dtype=np.float32))
    resized = F.interpolate(tensor[None], size=tuple(hw), mode="bilinear", align_corners=False)
    return resized[0].numpy()


def resize_mask(mask: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Resize a mask, nearest value."""
    if mask.shape == hw:
        return mask
    size_wh = (hw[1], hw[0])
    return np.array(Image.fromarray(mask).resize(size_wh, Image.Resampling.NEAREST))
