"""Background rules that see no ground truth, and what they lose where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from adcam.masks.background import BackgroundRule, compute_mask, default_rule, find_threshold
from adcam.masks.steepest import LEVELS, find_steepest_of_set, mean_jump
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
        average: The classes that enter the mean, as for :class:`adcam.metrics.miou.MeanIoU`.
    """

    def __init__(
        self, method: str = "ad_cam", average: Literal["union", "gt_present"] = "union"
    ) -> None:
        default = default_rule(method).value
        rules = (
            BackgroundRule("constant", default),
            BackgroundRule("steepest", default),
            BackgroundRule("otsu", None),
        )
        self._rules = {str(rule): rule for rule in rules}
        self._average = average
        self._levels: dict[str, list[float]] = {name: [] for name in self._rules}
        self._jumps = np.zeros(len(LEVELS))
        self._counts: dict[str, MeanIoU] = {}

    def update(
        self, maps: ClassMaps, mask_values: Sequence[int] = (), gt: np.ndarray | None = None
    ) -> None:
        """Look at the maps of one image, and with ground truth score the masks by each rule.

        Args:
            maps: Its maps, at the size of ``gt``; without a class nothing is learnt from them.
            mask_values: The mask value of each class.
            gt: The ground truth, integer (H, W).
        """
        for name, rule in self._rules.items():
            of_rule: dict[str, Any] = {"rule": rule.rule, "threshold": rule.value}
            if gt is None:
                level = find_threshold(maps.score_maps, **of_rule)
            else:
                mask = compute_mask(maps, mask_values=mask_values, **of_rule)
                level = mask.threshold
                if name not in self._counts:
                    num_classes = max(mask_values, default=0) + 1
                    self._counts[name] = MeanIoU(num_classes, average=self._average)
                self._counts[name].update(mask.mask, gt)
            if maps.class_ids:
                self._levels[name].append(level)
        if maps.class_ids:
            self._jumps += mean_jump(maps.score_maps.max(axis=0))

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
