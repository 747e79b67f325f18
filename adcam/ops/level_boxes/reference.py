"""The specification of :func:`adcam.ops.level_boxes.level_boxes`: OpenCV at every grey level.

Thresholding, contours and their order are those of ``compute_bboxes_from_scoremaps`` in
clovaai/wsolevaluation, ``evaluation.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def not_supported_reasons() -> list[str]:
    """Why OpenCV cannot be used here; empty if it can."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        return [f"{error}; install it with `pip install 'adcam[train]'`"]
    return []


def level_boxes(
    levels: NDArray[np.uint8], largest: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Boxes of the contours of ``levels > t`` for t = 0, 1, … below the highest level.

    Args:
        levels: (H, W).
        largest: Only the contour of largest ``cv2.contourArea``, the first of several.

    Returns:
        ``boxes`` (n, 4), ``start`` (n,) and ``stop`` = ``start`` + 1: one row a contour and level.
    """
    import cv2

    boxes: list[tuple[int, int, int, int]] = []
    start: list[int] = []
    # A level t that no pixel has repeats the boxes of t - 1, which only makes the table longer.
    for t in range(int(levels.max())):
        binary = (levels > t).astype(np.uint8)
        contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        if largest:
            contours = [max(contours, key=cv2.contourArea)]
        for contour in contours:
            x, y, width, height = cv2.boundingRect(contour)
            boxes.append((x, y, x + width, y + height))
            start.append(t)
    first = np.array(start, dtype=np.int64)
    return np.array(boxes, dtype=np.int64).reshape(-1, 4), first, first + 1
