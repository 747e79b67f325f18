"""All grey levels in one pass, compiled by Numba: a flood that meets components when complete.

README.md beside this derives what the loops compute. Imported when used: importing Numba and
loading the compiled code takes part of a second, and compiling it the first time some seconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


def level_boxes(
    levels: NDArray[np.uint8], largest: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """As :func:`adcam.ops.level_boxes.reference.level_boxes`, levels with one box joined."""
    if largest:
        filled = _fill_holes(levels)
        weights = _block_weights(filled)
        components = _find_components(filled, weights, True, False)
        return _choose_largest(*components, int(levels.max()))
    no_weights = np.zeros(levels.shape, dtype=np.int32)
    boxes, start, stop, _, _ = _find_components(levels, no_weights, True, False)
    # Holes are the components of the inverted map that do not reach its frame.
    inverted = 255 - levels
    holes, hole_start, hole_stop, _, _ = _find_components(inverted, no_weights, False, True)
    # The contour of a hole runs through the pixels around it: one more on each side.
    holes += np.array([-1, -1, 1, 1])
    return (
        np.concatenate([boxes, holes]),
        np.concatenate([start, 255 - hole_stop]),
        np.concatenate([stop, 255 - hole_start]),
    )


@njit(cache=True)
def _find_components(
    levels: NDArray[np.uint8], weights: NDArray[np.int32], diagonal: bool, framed: bool
) -> Any:
    """Components of ``levels > t`` at every t, by a flood that always goes to the highest pixel.

    Args:
        levels: (H, W).
        weights: (H, W), summed over each component.
        diagonal: Whether diagonal neighbours touch.
        framed: Whether the map lies in a frame of pixels above all levels; components that reach
            it are not returned.

    Returns:
        boxes (n, 4) as (x0, y0, x1 + 1, y1 + 1); start, stop (n,): the component is the same for
        start <= t < stop; its weight (n,); its first pixel in reading order (n,).
    """
    height, width = levels.shape
    # One ring for the frame and one that is never entered, so that no neighbour needs a check.
    row = width + 4
    size = (height + 4) * row
    level_of = np.zeros(size, dtype=np.int16)
    weight_of = np.zeros(size, dtype=np.int32)
    x_of = np.empty(size, dtype=np.int16)
    y_of = np.empty(size, dtype=np.int16)
    reached = np.ones(size, dtype=np.bool_)
    for y in range(-1, height + 1):
        for x in range(-1, width + 1):
            p = (y + 2) * row + x + 2
            x_of[p], y_of[p] = x, y
            if 0 <= y < height and 0 <= x < width:
                level_of[p] = levels[y, x]
                weight_of[p] = weights[y, x]
                reached[p] = False
            elif framed:
                level_of[p] = 256
                reached[p] = False
    neighbours = np.array([1, -1, row, -row, row + 1, row - 1, -row + 1, -row - 1])
    num_neighbours = 8 if diagonal else 4

    # Pixels seen and not yet entered, one stack a level linked through `below`. One that was left
    # for a higher neighbour goes back there and remembers which neighbours it has looked at.
    top = np.full(257, -1, dtype=np.int32)
    below = np.empty(size, dtype=np.int32)
    num_seen = np.zeros(size, dtype=np.uint8)

    # Unfinished components, each inside the one under it in the stack. x0, y0, x1, y1, weight,
    # first pixel; a box that begins at -1 is the frame's.
    stack = np.empty((258, 6), dtype=np.int64)
    stack_level = np.empty(258, dtype=np.int64)
    depth = -1
    nothing = np.array([width, height, -1, -1, 0, size])

    found = np.empty((levels.size, 6), dtype=np.int64)
    start = np.empty(levels.size, dtype=np.int64)
    stop = np.empty(levels.size, dtype=np.int64)
    n = 0

    p = row + 1 if framed else 2 * row + 2
    reached[p] = True
    level = np.int64(-1)
    while True:
        if level_of[p] > level:
            level = np.int64(level_of[p])
            depth += 1
            stack_level[depth] = level
            stack[depth] = nothing
        k = num_seen[p]
        higher = False
        while k < num_neighbours and not higher:
            q = p + neighbours[k]
            k += 1
            if not reached[q]:
                reached[q] = True
                higher = level_of[q] > level
                put = p if higher else q
                below[put] = top[level_of[put]]
                top[level_of[put]] = put
                if higher:
                    num_seen[p] = k
                    p = q
        if higher:
            continue
        component = stack[depth]
        component[0] = min(component[0], x_of[p])
        component[1] = min(component[1], y_of[p])
        component[2] = max(component[2], x_of[p])
        component[3] = max(component[3], y_of[p])
        component[4] += weight_of[p]
        component[5] = min(component[5], p)

        lower = level
        while lower >= 0 and top[lower] < 0:
            lower -= 1
        # Components above that level are complete.
        while depth >= 0 and stack_level[depth] > lower:
            component = stack[depth]
            under = stack_level[depth - 1] if depth > 0 else -1
            if component[0] >= 0 and stack_level[depth] > 0:
                found[n] = component
                start[n] = max(lower, under, 0)
                stop[n] = stack_level[depth]
                n += 1
            if depth > 0 and under >= lower:
                outer = stack[depth - 1]
                outer[0] = min(outer[0], component[0])
                outer[1] = min(outer[1], component[1])
                outer[2] = max(outer[2], component[2])
                outer[3] = max(outer[3], component[3])
                outer[4] += component[4]
                outer[5] = min(outer[5], component[5])
                depth -= 1
            elif lower >= 0:
                stack_level[depth] = lower
            else:
                depth -= 1
        if lower < 0:
            break
        level = lower
        p = top[level]
        top[level] = below[p]
    boxes = found[:n, :4].copy()
    boxes[:, 2:] += 1
    return boxes, start[:n].copy(), stop[:n].copy(), found[:n, 4].copy(), found[:n, 5].copy()


@njit(cache=True)
def _fill_holes(levels: NDArray[np.uint8]) -> Any:
    """Raise every pixel to the lowest rim on its way to the frame, by the 4 neighbours.

    The result is above t exactly where ``levels > t`` is, or where that encloses a hole.
    A flood from the frame with one queue a level, each a stack linked through ``below``.
    """
    height, width = levels.shape
    filled = np.empty((height, width), dtype=np.uint8)
    reached = np.zeros((height, width), dtype=np.bool_)
    below = np.empty(height * width, dtype=np.int32)
    top = np.full(256, -1, dtype=np.int32)
    for y in range(height):
        step = 1 if y == 0 or y == height - 1 else max(width - 1, 1)
        for x in range(0, width, step):
            reached[y, x] = True
            filled[y, x] = levels[y, x]
            below[y * width + x] = top[levels[y, x]]
            top[levels[y, x]] = y * width + x
    dys = np.array([-1, 0, 0, 1])
    dxs = np.array([0, -1, 1, 0])
    for level in range(256):
        while top[level] >= 0:
            p = top[level]
            top[level] = below[p]
            y, x = p // width, p % width
            for k in range(4):
                ny, nx = y + dys[k], x + dxs[k]
                if 0 <= ny < height and 0 <= nx < width and not reached[ny, nx]:
                    reached[ny, nx] = True
                    value = max(levels[ny, nx], np.uint8(level))
                    filled[ny, nx] = value
                    below[ny * width + nx] = top[value]
                    top[value] = ny * width + nx
    return filled


@njit(cache=True)
def _block_weights(levels: NDArray[np.uint8]) -> Any:
    """Give each 2x2 block's third and fourth highest pixel 1: half the block, in half pixels.

    Summed over a component without holes this is twice the area of the polygon through the
    centres of its border pixels.
    """
    height, width = levels.shape
    weights = np.zeros((height, width), dtype=np.int32)
    for y in range(height - 1):
        for x in range(width - 1):
            # Two rounds of "the lowest of those left" over the four corners 0..3.
            lowest = -1
            for _ in range(2):
                best = -1
                for k in range(4):
                    if k != lowest and (
                        best < 0
                        or levels[y + k // 2, x + k % 2] < levels[y + best // 2, x + best % 2]
                    ):
                        best = k
                weights[y + best // 2, x + best % 2] += 1
                lowest = best
    return weights


@njit(cache=True)
def _choose_largest(
    boxes: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    area: NDArray[np.int64],
    first: NDArray[np.int64],
    num_levels: int,
) -> Any:
    """At each t < ``num_levels`` the box of largest area; of equals the one that begins last."""
    chosen = np.full(num_levels, -1, dtype=np.int64)
    for i in range(len(boxes)):
        for t in range(start[i], stop[i]):
            best = chosen[t]
            if (
                best < 0
                or area[i] > area[best]
                or (area[i] == area[best] and first[i] > first[best])
            ):
                chosen[t] = i
    levels = np.arange(num_levels)
    return boxes[chosen], levels, levels + 1
