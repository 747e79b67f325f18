"""Boxes of the contours of a grey map at all its levels. Derivation: README.md beside this."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adcam.ops._backends import (
    choose_backend,
    numba_not_supported_reasons,
    summarize_reasons,
)
from adcam.ops._checks import check_choice
from adcam.ops.level_boxes import reference

__all__ = [
    "CONTOURS",
    "LevelBoxes",
    "available_backends",
    "check_score_map",
    "level_boxes",
    "score_levels",
]

CONTOURS = ("all", "largest")


class LevelBoxes(NamedTuple):
    """Boxes with the levels at which they exist; a box may be listed more than once.

    Attributes:
        boxes: int64 (n, 4), ``x0, y0, x1, y1`` with x1 and y1 one past the last pixel.
        start: int64 (n,), 0..254.
        stop: int64 (n,): row i is a contour of ``levels > t`` for ``start[i] <= t < stop[i]``.
    """

    boxes: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    def at(self, level: int) -> NDArray[np.int64]:
        """The boxes of ``levels > level``, (m, 4), in no order; none from the highest level on."""
        return self.boxes[(self.start <= level) & (level < self.stop)]


def available_backends() -> dict[str, str | None]:
    """From each backend's name to ``None`` if it can run here, else to the reason why not."""
    return summarize_reasons(_not_supported_reasons())


def level_boxes(
    levels: NDArray[np.uint8], *, contours: str = "all", backend: str = "auto"
) -> LevelBoxes:
    """Boxes around the contours of ``levels > t`` for every t.

    A contour is what ``cv2.findContours`` returns in tree mode: the outer border of every
    8-connected component, and the border of every hole in one.

    Args:
        levels: uint8 (H, W), H and W at least 1.
        contours: ``"all"``, or ``"largest"`` for the contour of largest ``cv2.contourArea`` at each
            t. That is the area of the polygon through the centres of its pixels; of equally large
            contours the one that OpenCV lists first is taken.
        backend: ``"numba"`` (one pass over the pixels), ``"reference"`` (one call of OpenCV for
            each level) or ``"auto"`` for the first of them that can run. They give the same boxes.

    Returns:
        The boxes. At each t below the highest level there is at least one; from there on there is
        none.

    Raises:
        ValueError: Another shape or dtype, or an unknown choice.
        RuntimeError: The backend asked for cannot run here; the message holds the reason.
    """
    levels = np.ascontiguousarray(levels)
    if levels.dtype != np.uint8 or levels.ndim != 2 or not levels.size:
        raise ValueError(f"levels must be uint8 (H, W), got {levels.dtype} {levels.shape}")
    check_choice("contours", contours, CONTOURS)
    if choose_backend("level_boxes", backend, _not_supported_reasons()) == "numba":
        from adcam.ops.level_boxes import numba_component_tree

        return LevelBoxes(*numba_component_tree.level_boxes(levels, contours == "largest"))
    return LevelBoxes(*reference.level_boxes(levels, contours == "largest"))


def check_score_map(score_map: NDArray[np.floating]) -> NDArray[np.float64]:
    """The map as float64 (H, W) in [0, 1].

    Raises:
        ValueError: Another shape or dtype, NaN, or a score outside [0, 1].
    """
    scores = np.asarray(score_map)
    if scores.ndim != 2 or scores.dtype.kind != "f" or not scores.size:
        raise ValueError(
            f"score_map must be floating point (H, W), got {scores.dtype} {scores.shape}"
        )
    low, high = float(scores.min()), float(scores.max())
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise ValueError(f"score_map must lie in [0, 1] without NaN, got values in [{low}, {high}]")
    return scores.astype(np.float64, copy=False)


def score_levels(score_map: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Scores times 255, truncated, as both wsolevaluation and TS-CAM have it: uint8 (H, W).

    Raises:
        ValueError: As :func:`check_score_map`.
    """
    return (check_score_map(score_map) * 255).astype(np.uint8)


@cache
def _not_supported_reasons() -> dict[str, list[str]]:
    return {
        "numba": numba_not_supported_reasons("adcam.ops.level_boxes.numba_component_tree"),
        "reference": reference.not_supported_reasons(),
    }
