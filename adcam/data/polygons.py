"""Masks as outlines and back, and the text files that Ultralytics trains segmentation on.

An outline runs along the borders of pixels, not through their centres, so that filling it gives
the same pixels back. A text file holds one object a line, ``class x1 y1 x2 y2 …``, class from 0,
x and y as shares of width and height ("Instance Segmentation Datasets" in Ultralytics' docs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adcam.data.png import count_values
from adcam.data.text_tables import read_rows
from adcam.errors import AdcamError


class YoloObject(NamedTuple):
    """One line of a text file.

    Attributes:
        class_id: The foreground class, from 0.
        polygon: The corners, (P, 2) float64, x and y as shares of width and height.
    """

    class_id: int
    polygon: np.ndarray


def trace_regions(region: np.ndarray) -> list[np.ndarray]:
    """Outlines of the connected parts of a region, bool (H, W); neighbours share a side.

    Each part is one closed polygon. A hole is joined to it by a seam, a way there and the same way
    back, which an even-odd filling does not see.

    Returns:
        int64 (P, 2) corners x, y of each part, 0..W and 0..H, without the first one repeated;
        parts from top to bottom by their first pixel.
    """
    from scipy import ndimage  # slow to import, and readers of labels import this file

    parts, _ = ndimage.label(region)
    outlines = []
    for index, window in enumerate(ndimage.find_objects(parts), start=1):
        rows, columns = window
        outer, *holes = _trace_loops(parts[window] == index)
        joined = [*outer]
        for hole in holes:
            joined += [outer[0], *hole, hole[0]]
        if holes:
            joined.append(outer[0])
        outlines.append(np.array(joined) + np.array([columns.start, rows.start]))
    return outlines


def find_box(region: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box around a region's pixels, bool (H, W) with at least one.

    It is x0, y0, and x1, y1 one past the last of them.
    """
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def fill_polygon(polygon: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres lie inside a polygon, by the even-odd rule.

    Args:
        polygon: The corners x, y in pixels, (P, 2), pixel (i, j) being the square from (j, i) to
            (j + 1, i + 1); the last corner is joined to the first.
        hw: The height and width of the result.

    Returns:
        bool (H, W).
    """
    height, width = hw
    toggles = np.zeros((height, width + 1), dtype=np.int64)
    ends = np.roll(polygon, -1, axis=0)
    for (x0, y0), (x1, y1) in zip(polygon.tolist(), ends.tolist(), strict=True):
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        # Rows whose centres i + 0.5 lie in [y0, y1): none for a level edge.
        rows = np.arange(max(math.ceil(y0 - 0.5), 0), min(math.ceil(y1 - 0.5), height))
        if not rows.size:
            continue
        crossings = x0 + (x1 - x0) * (rows + 0.5 - y0) / (y1 - y0)
        columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)
        np.add.at(toggles, (rows, columns), 1)
    return (toggles.cumsum(axis=1)[:, :width] % 2).astype(bool)


def encode_yolo(mask: np.ndarray, mask_values: Sequence[int]) -> str:
    """A mask, uint8 (H, W), as text, one line a connected part of a class, classes ascending.

    A class' number is its position in ``mask_values``. Pixels of 255 are left out: the format knows
    no uncertain pixels.

    Raises:
        AdcamError: The mask holds another value.
    """
    count_values(mask, mask_values)
    height, width = mask.shape
    lines = []
    for class_id, value in enumerate(mask_values):
        for outline in trace_regions(mask == value):
            shares = (outline / (width, height)).ravel()
            lines.append(" ".join([str(class_id), *(f"{share:.6g}" for share in shares)]))
    return "".join(f"{line}\n" for line in lines)


def read_yolo(path: str | Path, num_fg_classes: int) -> list[YoloObject]:
    """Read a text file; an empty one is an image without objects.

    Raises:
        AdcamError: The file is missing or no text, a line is no class with at least three points,
            or a class or share is out of range.
    """
    path = Path(path)
    if path.is_file() and not path.read_bytes().strip():
        return []
    objects = []
    for row in read_rows(path, ("class", "x1 y1 x2 y2 x3 y3 …"), None):
        try:
            class_id = int(row.cells[0])
            shares = np.array([float(cell) for cell in row.cells[1].split()])
        except ValueError as err:
            raise AdcamError(f"{row.where}: expected a class and numbers ({err})") from err
        if not 0 <= class_id < num_fg_classes:
            raise AdcamError(f"{row.where}: class must be 0..{num_fg_classes - 1}, got {class_id}")
        if len(shares) < 6 or len(shares) % 2:
            raise AdcamError(
                f"{row.where}: a polygon needs x and y of at least three points, got "
                f"{len(shares)} numbers"
            )
        if not ((shares >= 0) & (shares <= 1)).all():
            raise AdcamError(f"{row.where}: x and y must be shares in 0..1")
        objects.append(YoloObject(class_id, shares.reshape(-1, 2)))
    return objects


def draw_yolo(
    objects: Sequence[YoloObject], hw: tuple[int, int], mask_values: Sequence[int]
) -> np.ndarray:
    """Draw objects as one mask; where they overlap, the one of fewer pixels is on top.

    Returns:
        uint8 (H, W); of :func:`encode_yolo` the same mask again, with 0 for 255.
    """
    height, width = hw
    regions = [
        (fill_polygon(o.polygon * (width, height), hw), mask_values[o.class_id]) for o in objects
    ]
    return paint_regions(regions, hw)


def paint_regions(
    regions: Sequence[tuple[np.ndarray, int]], hw: tuple[int, int], *, small_on_top: bool = True
) -> np.ndarray:
    """Paint regions over one another, uint8 (H, W), 0 where there is none.

    Args:
        regions: The pixels of each region, bool (H, W), and its value.
        hw: The height and width of the result.
        small_on_top: Whether the region of fewer pixels is on top, and of two alike the first;
            otherwise the first always is.
    """
    mask = np.zeros(hw, dtype=np.uint8)
    # What is on top is painted last. Sorting is stable.
    below = list(reversed(regions))
    if small_on_top:
        below.sort(key=lambda item: -int(np.count_nonzero(item[0])))
    for region, value in below:
        mask[region] = value
    return mask


def _trace_loops(part: np.ndarray) -> list[list[tuple[int, int]]]:
    """Closed border lines of one connected part as corners (x, y), the outer one before holes.

    Borders are walked with the part on the right. Where two touch in a corner, turning right keeps
    to the same pixel.
    """
    padded = np.pad(part, 1)
    # Of each side of a pixel: its first corner against the pixel, its direction, the neighbour.
    sides = (
        ((0, 0), (1, 0), padded[:-2, 1:-1]),
        ((1, 0), (0, 1), padded[1:-1, 2:]),
        ((1, 1), (-1, 0), padded[2:, 1:-1]),
        ((0, 1), (0, -1), padded[1:-1, :-2]),
    )
    edges = {
        (x + corner[0], y + corner[1], *direction)
        for corner, direction, neighbour in sides
        for y, x in np.argwhere(part & ~neighbour).tolist()
    }
    remaining = set(edges)
    loops = []
    for first in sorted(edges, key=lambda edge: (edge[1], edge[0])):
        loop = []
        edge = first
        while edge in remaining:
            remaining.remove(edge)
            loop.append(edge)
            x, y, dx, dy = edge
            turns = ((-dy, dx), (dx, dy), (dy, -dx))  # right, straight on, left; y points down
            choices = ((x + dx, y + dy, *turn) for turn in turns)
            edge = next(choice for choice in choices if choice in edges)
        if loop:
            pairs = zip(loop[-1:] + loop[:-1], loop, strict=True)
            loops.append([edge[:2] for before, edge in pairs if before[2:] != edge[2:]])
    return loops
