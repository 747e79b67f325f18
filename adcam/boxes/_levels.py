"""The first step of both box rules."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adcam.errors import AdcamError
from adcam.ops.level_boxes import available_backends, level_boxes, score_levels


def boxes_above(
    score_map: NDArray[np.floating], threshold: float, *, contours: str
) -> NDArray[np.int64]:
    """Find the boxes of the contours above ``int(threshold * maximum)`` of the grey levels, (n, 4).

    ``x1`` and ``y1`` are one past the last pixel; n is 0 where nothing is foreground.

    Raises:
        AdcamError: If ``threshold`` lies outside [0, 1), or the map's values outside [0, 1].
    """
    if not 0 <= threshold < 1:
        raise AdcamError(f"threshold must lie in [0, 1), got {threshold}")
    levels = score_levels(score_map)
    foreground = (levels > int(threshold * int(levels.max()))).astype(np.uint8)
    # Where OpenCV is installed, one call finds the contours of a single level sooner than the pass
    # over all levels does; the boxes are the same.
    backend = "auto" if available_backends()["reference"] else "reference"
    return level_boxes(foreground, contours=contours, backend=backend).at(0)
