"""What both box rules do first: grey levels of a score map, and the level to cut at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def quantise(score_map: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Scores times 255, truncated: (H, W) uint8.

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
    return (scores.astype(np.float64) * 255).astype(np.uint8)


def cut_level(levels: NDArray[np.uint8], threshold: float) -> int:
    """The level that foreground lies above: ``threshold`` of the highest, truncated.

    Raises:
        ValueError: ``threshold`` is outside [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold}")
    return int(threshold * int(levels.max()))
