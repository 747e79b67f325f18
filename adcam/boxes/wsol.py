"""From score map to boxes as wsolevaluation does it (clovaai/wsolevaluation, MIT licence).

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020, arXiv
2001.07437), ``compute_bboxes_from_scoremaps`` and ``resize_bbox`` in ``evaluation.py``. How it
differs from :mod:`adcam.boxes.ts_cam` is described in docs/localization.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adcam.boxes._levels import boxes_above


def compute_boxes(
    score_map: NDArray[np.floating], *, threshold: float, multi_contour: bool = True
) -> NDArray[np.int64]:
    """Compute boxes around what lies above a share of the map's maximum.

    The map is taken as uint8, ``score * 255`` truncated; foreground is above
    ``int(threshold * maximum)``. Boxes are drawn around contours, holes included, as
    :func:`adcam.ops.level_boxes.level_boxes` finds them: ``x1`` and ``y1`` are one past the last
    pixel, but at most the last of the map.

    Args:
        score_map: (H, W) floating point in [0, 1]; the protocol wants it min-max normalised.
        threshold: Share of the map's maximum, in [0, 1); a larger one gives smaller boxes.
        multi_contour: ``True`` gives one box a contour (MaxBoxAccV2), ``False`` only that of the
            largest (MaxBoxAcc).

    Returns:
        (n, 4), largest box first; (0, 0, 0, 0) alone where nothing is foreground.

    Raises:
        ValueError: If the map has another shape or dtype, holds NaN, or a value is out of range.
    """
    boxes = boxes_above(score_map, threshold, contours="all" if multi_contour else "largest")
    if not len(boxes):
        return np.zeros((1, 4), dtype=np.int64)
    height, width = score_map.shape
    boxes[:, 2:] = np.minimum(boxes[:, 2:], [width - 1, height - 1])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # By area, then by coordinates: the same order whatever found them.
    return boxes[np.lexsort((*boxes.T[::-1], -area))]


def scale_boxes(
    boxes: NDArray[np.integer], from_hw: tuple[int, int], to_hw: tuple[int, int] = (224, 224)
) -> NDArray[np.int64]:
    """Scale ground-truth boxes to pixels of the map and truncate them, without clipping.

    Args:
        boxes: (n, 4) ``x0, y0, x1, y1`` in pixels of the image.
        from_hw: Height and width of the image.
        to_hw: Height and width of the map.

    Returns:
        (n, 4); ``x1`` of a box that reaches the image's width is the map's width, one past its
        last pixel, as in the original.
    """
    width_height = np.array([from_hw[1], from_hw[0]] * 2, dtype=np.float64)
    map_width_height = np.array([to_hw[1], to_hw[0]] * 2, dtype=np.float64)
    return (np.asarray(boxes) * map_width_height / width_height).astype(np.int64)
