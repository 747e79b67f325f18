"""From score map to box as TS-CAM does it.

Gao et al., "TS-CAM: Token Semantic Coupled Attention Map for Weakly Supervised Object Localization"
(ICCV 2021, arXiv 2103.14862): ``get_bboxes`` in ``lib/cams_deit.py``, and the scaling of
ground-truth boxes in ``lib/datasets/cub.py`` and ``imagenet.py`` of vasgaowei/TS-CAM. The
differences from :mod:`adcam.boxes.wsol` are described in docs/localization.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adcam.boxes._levels import boxes_above

CUB_THRESHOLD = 0.1
"""``MODEL.CAM_THR`` of its configs for CUB-200-2011."""

ILSVRC_THRESHOLD = 0.12
"""``MODEL.CAM_THR`` of its configs for ILSVRC."""


def compute_box(score_map: NDArray[np.floating], *, threshold: float) -> NDArray[np.int64]:
    """Compute the box around the largest contour above a share of the map's maximum.

    The map is taken as uint8, ``score * 255`` truncated; foreground is above
    ``int(threshold * maximum)``; of its contours the one of largest area gives the box.

    Args:
        score_map: (H, W) floating point in [0, 1]; TS-CAM's own are bilinear at 224 × 224, then
            min-max normalised.
        threshold: Share of the map's maximum, in [0, 1); a larger one gives a smaller box. The
            paper's configs have :data:`CUB_THRESHOLD` and :data:`ILSVRC_THRESHOLD`.

    Returns:
        (4,) ``x0, y0, x1, y1`` with x1 and y1 one past the last pixel; (0, 0, 1, 1) where nothing
        is foreground.

    Raises:
        ValueError: If the map has another shape or dtype, holds NaN, or a value is out of range.
    """
    boxes = boxes_above(score_map, threshold, contours="largest")
    return boxes[0] if len(boxes) else np.array([0, 0, 1, 1], dtype=np.int64)


def scale_boxes(
    boxes: NDArray[np.integer], from_hw: tuple[int, int], to_hw: tuple[int, int] = (224, 224)
) -> NDArray[np.int64]:
    """Scale ground-truth boxes to pixels of the map, clip them to the map and truncate.

    Args:
        boxes: (n, 4) ``x0, y0, x1, y1`` in pixels of the image.
        from_hw: Height and width of the image.
        to_hw: Height and width of the map.

    Returns:
        (n, 4), x1 at most the map's width - 1.
    """
    width_height = np.array([from_hw[1], from_hw[0]] * 2, dtype=np.float64)
    map_width_height = np.array([to_hw[1], to_hw[0]] * 2, dtype=np.float64)
    scaled = np.asarray(boxes) / width_height * map_width_height
    scaled[:, :2] = np.maximum(scaled[:, :2], 0)
    scaled[:, 2:] = np.minimum(scaled[:, 2:], map_width_height[2:] - 1)
    return scaled.astype(np.int64)
