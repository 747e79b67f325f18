"""Background rules that see no ground truth, and what they lose where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from adcam.masks.background import compute_mask, default_rule, find_threshold
from adcam.masks.steepest import compute_jumps, find_steepest_of_set
from adcam.metrics.miou import MeanIoU, ThresholdCurveResult
from adcam.structures import ClassMaps

OF_SET = "steepest level of all images"
"""The rule that chooses one constant for all images."""


class UnsupervisedRules:
    """The thresholds of every rule on a set of maps, and their scores if there is ground truth.

    The rules are the default's constant, the default, Otsu's threshold of each image, and one
    constant for all images: the level at which their maps are steepest in the mean.

    Args:
        method: The method that made the maps, which has its default.
    """

    def __init__(self, method: str = "ad_cam") -> None:
        default = float(default_rule(method).value or 0)
        self._rules: dict[str, tuple[str, float | None]] = {
            f"constant:{default:g}": ("constant", default),
            f"steepest:{default:g}": ("steepest", default),
            "otsu": ("otsu", None),
        }
        self._levels: dict[str, list[float]] = {name: [] for name in self._rules}
        self._jumps: list[tuple[np.ndarray, np.ndarray]] = []
        self._counts: dict[str, MeanIoU] = {}

    def update(self, score_maps: np.ndarray) -> None:
        """Look at the maps of one image.

        Args:
            score_maps: (K, H, W) float in [0, 1]; with K = 0 nothing is learnt from it.
        """
        if not len(score_maps):
            return
        for name, (rule, value) in self._rules.items():
            self._levels[name].append(find_threshold(score_maps, rule=rule, threshold=value))
        self._jumps.append(compute_jumps(score_maps.max(axis=0)))

    def count(
        self,
        maps: ClassMaps,
        mask_values: Sequence[int],
        gt: np.ndarray,
        average: Literal["union", "gt_present"] = "union",
    ) -> None:
        """Count the masks of one image by the rules that each image sets for itself.

        Args:
            maps: Its maps, at the size of ``gt``.
            mask_values: The mask value of each class.
            gt: The ground truth, integer (H, W).
            average: The classes that enter the mean, as for :class:`adcam.metrics.miou.MeanIoU`.
        """
        for name, (rule, value) in self._rules.items():
            if name not in self._counts:
                self._counts[name] = MeanIoU(max(mask_values, default=0) + 1, average=average)
            mask = compute_mask(maps, mask_values=mask_values, rule=rule, threshold=value)
            self._counts[name].update(mask.mask, gt)

    def suggest(self) -> list[dict[str, Any]]:
        """Return each rule with its threshold, in the mean where each image has its own."""
        found = [
            {"rule": name, "threshold": float(np.mean(levels))}
            for name, levels in self._levels.items()
            if levels
        ]
        level = find_steepest_of_set(self._jumps)
        return found if level is None else [*found, {"rule": OF_SET, "threshold": level}]

    def score(self, curve: ThresholdCurveResult) -> list[dict[str, Any]]:
        """Return each rule with its threshold, its mIoU and its loss, in percent.

        Args:
            curve: The scores of all constants on the same images; the best of them is what is lost
                against.
        """
        rows = []
        for row in self.suggest():
            if row["rule"] in self._counts:
                miou = self._counts[row["rule"]].compute().miou
            else:
                distances = np.abs(np.array(curve.thresholds) - row["threshold"])
                miou = curve.miou[int(distances.argmin())]
            rows.append({**row, "miou": miou, "loss": curve.best_miou - miou})
        return rows
