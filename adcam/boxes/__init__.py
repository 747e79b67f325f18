"""Boxes from class maps, by the two rules of the literature: ``wsol.py`` and ``ts_cam.py``."""

from __future__ import annotations

import numpy as np

from adcam.boxes import ts_cam, wsol
from adcam.options import check_choice
from adcam.structures import Boxes, ClassMaps

__all__ = ["RULES", "compute_boxes"]

RULES = ("wsol", "ts_cam")


def compute_boxes(
    maps: ClassMaps, *, rule: str = "wsol", threshold: float, chosen_on: str = "given"
) -> Boxes:
    """Compute one box a class by ``"ts_cam"``, or one a contour of its map by ``"wsol"``.

    Args:
        maps: Score maps of the present classes.
        rule: One of :data:`RULES`.
        threshold: Share of each map's maximum, in [0, 1). Larger gives smaller boxes.
        chosen_on: The split that the threshold was chosen on.

    Returns:
        The boxes in pixels of the maps. A map that is zero everywhere gives the rule's own box for
        "nothing".

    Raises:
        AdcamError: If the rule is unknown, the threshold is out of range, or a map holds NaN.
    """
    check_choice("rule", rule, RULES)
    class_ids: list[int] = []
    boxes: list[np.ndarray] = []
    for class_id, score_map in zip(maps.class_ids, maps.score_maps, strict=True):
        if rule == "ts_cam":
            found = ts_cam.compute_box(score_map, threshold=threshold)[None]
        else:
            found = wsol.compute_boxes(score_map, threshold=threshold)
        class_ids += [class_id] * len(found)
        boxes.append(found)
    empty = np.zeros((0, 4), dtype=np.int64)
    return Boxes(tuple(class_ids), np.concatenate([empty, *boxes]), rule, threshold, chosen_on)
