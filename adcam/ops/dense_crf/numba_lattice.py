"""Mean field on a permutohedral lattice, compiled by Numba: the fast path on a CPU.

The method is that of ``reference.py``, whose float32 arithmetic up to the barycentric weights it
repeats step by step, so that every pixel falls into the same simplex. What makes it fast is in the
README. Imported when used: importing Numba and loading the compiled code takes part of a second.

Kernels release the interpreter's lock and work on a part of the pixels or vertices; plain Python
threads run them, as many as torch uses. ``prange`` is not used: its portable scheduler ends the
process when two threads of a caller enter it, and it takes several times longer to compile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from adcam.ops.dense_crf.reference import axis_scales, number_cells

Float = NDArray[np.float32]
Int = NDArray[np.int32]

_STRIPS = 4
"""Parts of the image that sum onto the lattice apart from one another, and the most threads that
can help. A constant, so that the result does not depend on the number of threads."""

_MAX_LANES = 4
"""Channels filtered together: their values at a vertex lie side by side."""

_BLOCK = 256
"""Pixels per block of an update: what they need stays in the first-level cache."""

_FAST_MATH = {"contract"}
"""Fused multiply-add, where it cannot move a pixel into another simplex."""


@dataclass(frozen=True)
class _Lattice:
    """The lattices of an image as one, their vertices numbered through from 1.

    Attributes:
        corners: (N, K) int32, the vertices of each pixel: 3 of the smoothness kernel, if any, then
            6 of the appearance kernel, if any.
        weights: (N, K) float32, barycentric weights times the roots of the kernel's normalisation
            and ``compat``: splat, blur and slice make a whole message.
        after: (A, M+1) int32, the next vertex along each direction of the blur; 0 is absent. A
            lattice with fewer than A directions has no neighbours along the rest.
        before: (A, M+1) int32, the vertex on the other side.
    """

    corners: Int
    weights: Float
    after: Int
    before: Int


@dataclass(frozen=True)
class _Part:
    """One kernel's share of a lattice: its vertices and what comes before them.

    Attributes:
        keys: (M,) int64, sorted.
        step: (d+1,) int64, what a step along each direction of the blur adds to a key.
        columns: Of ``corners`` and ``weights``.
        offset: Number of vertices of the parts before; vertices are ``offset + 1 .. offset + M``.
        compat: Weight of the kernel.
    """

    keys: NDArray[np.int64]
    step: NDArray[np.int64]
    columns: slice
    offset: int
    compat: float


class MeanField:
    """The lattices of an image, ready for any number of inferences.

    Args:
        img: (H, W, 3) uint8.
        gaussian: ``(sigma_xy, compat)`` or ``None``.
        bilateral: ``(sigma_xy, sigma_rgb, compat)`` or ``None``.

    Raises:
        ValueError: A sigma is so small that the lattice cannot be numbered in 64 bits.
    """

    def __init__(
        self,
        img: NDArray[np.uint8],
        *,
        gaussian: tuple[float, float] | None,
        bilateral: tuple[float, float, float] | None,
    ) -> None:
        img = np.ascontiguousarray(img)
        kernels = []
        if gaussian is not None:
            sigma_xy, compat = gaussian
            kernels.append((img[..., :0], sigma_xy, 1.0, compat))
        if bilateral is not None:
            kernels.append((img, *bilateral))
        shape = (img.shape[0] * img.shape[1], sum(3 + kernel[0].shape[2] for kernel in kernels))
        corners, weights = np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.float32)
        parts: list[_Part] = []
        for colour, sigma_xy, sigma_rgb, compat in kernels:
            first = sum(len(part.step) for part in parts)
            columns = slice(first, first + 3 + colour.shape[2])
            offset = sum(len(part.keys) for part in parts)
            keys, step = _find_vertices(
                colour, sigma_xy, sigma_rgb, corners[:, columns], weights[:, columns], offset
            )
            parts.append(_Part(keys, step, columns, offset, compat))
        self._lattice = _connect_and_normalise(parts, corners, weights)

    def infer(self, unary: Float, *, num_iters: int) -> Float:
        """Run mean field.

        Args:
            unary: (C, H, W) float32, ``-log`` of the probabilities.
            num_iters: Number of updates.

        Returns:
            (C, H, W) float32 marginals.
        """
        if len(unary) == 1:
            return np.ones_like(unary)
        # The softmax sees differences between labels alone: the last label needs no channel.
        log_ratio = (unary[-1] - unary[:-1]).reshape(len(unary) - 1, -1)
        return _infer(self._lattice, log_ratio, num_iters).reshape(unary.shape)


class _Worker:
    """One of the threads that walk through the same steps, each on its own share."""

    def __init__(self, index: int, count: int, barrier: threading.Barrier) -> None:
        self.index = index
        self.count = count
        self._barrier = barrier

    def share(self, size: int, first: int = 0) -> tuple[int, int]:
        """This thread's part of ``first..size``."""
        length = size - first
        start, stop = (length * (self.index + end) // self.count for end in (0, 1))
        return first + start, first + stop

    def strips(self, num_pixels: int) -> list[tuple[int, int, int]]:
        """Number, first pixel and end of each of this thread's strips."""
        return [
            (strip, num_pixels * strip // _STRIPS, num_pixels * (strip + 1) // _STRIPS)
            for strip in range(self.index, _STRIPS, self.count)
        ]

    def wait(self) -> None:
        """Wait until all threads have come here."""
        if self.count > 1:
            self._barrier.wait()


def _run(steps: Callable[[_Worker], None]) -> None:
    """Walk through ``steps`` with as many threads as torch uses, at most ``_STRIPS``."""
    count = min(torch.get_num_threads(), _STRIPS)
    barrier = threading.Barrier(count)

    def walk(index: int) -> None:
        try:
            steps(_Worker(index, count, barrier))
        except BaseException:
            barrier.abort()  # else the others would wait for ever
            raise

    if count == 1:
        walk(0)
        return
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(walk, index) for index in range(count)]:
            future.result()


def _find_vertices(
    colour: NDArray[np.uint8],
    sigma_xy: float,
    sigma_rgb: float,
    corners: Int,
    weights: Float,
    offset: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the vertices around every pixel's position and ``colour``.

    Args:
        colour: (H, W, 3), or (H, W, 0) for a lattice of positions alone.
        sigma_xy: In pixels.
        sigma_rgb: In grey levels.
        corners: (N, d+1), overwritten by those of :class:`_Lattice`, numbered from ``offset + 1``.
        weights: (N, d+1), overwritten by the barycentric weights.
        offset: Number of vertices of the parts before.

    Returns:
        ``keys`` and ``step`` of :class:`_Part`.
    """
    height, width, num_colours = colour.shape
    dim, num_pixels = 2 + num_colours, height * width
    # What elevation multiplies: column, row and the grey levels of each colour.
    col, row, level = (np.arange(n, dtype=np.float32) for n in (width, height, 256))
    scales = axis_scales(dim)
    col = col / np.float32(sigma_xy) * scales[0]
    row = row / np.float32(sigma_xy) * scales[1]
    levels = (level / np.float32(sigma_rgb))[None] * scales[2:, None]  # (0 or 3, 256)
    radix, step, origin = _number_box(
        np.array([axis[-1] for axis in (col, row, *levels)], dtype=np.float64)
    )

    flat = colour.reshape(num_pixels, num_colours)
    found: list[NDArray[np.int64]] = [step[:0]] * _STRIPS

    def embed(worker: _Worker) -> None:
        for strip, start, stop in worker.strips(num_pixels):
            found[strip] = _embed(
                flat, col, row, levels, radix, step, origin, corners, weights, start, stop
            )

    _run(embed)
    # Sorted keys: the neighbours of successive vertices are successive vertices.
    keys, number = np.unique(np.concatenate(found), return_inverse=True)
    number = number.astype(np.int32) + np.int32(offset + 1)
    numbers = np.split(number, np.cumsum([len(part) for part in found])[:-1])

    def renumber(worker: _Worker) -> None:
        for strip, start, stop in worker.strips(num_pixels):
            _renumber(corners, numbers[strip], start, stop)

    _run(renumber)
    return keys, step


def _connect_and_normalise(parts: list[_Part], corners: Int, weights: Float) -> _Lattice:
    """Make a lattice of its parts; ``weights`` become those of :class:`_Lattice`."""
    num_axes = max((len(part.step) for part in parts), default=0)
    num_vertices = sum(len(part.keys) for part in parts)
    neighbours = np.zeros((2, num_axes, num_vertices + 1), dtype=np.int32)
    lattice = _Lattice(corners, weights, *neighbours)
    tables = np.zeros((2, 1, num_vertices + 1), dtype=np.float32)
    sums = np.zeros((_STRIPS, 1, num_vertices + 1), dtype=np.float32)

    def steps(worker: _Worker) -> None:
        for strip, start, stop in worker.strips(len(corners)):
            _splat_ones(corners, weights, sums[strip, 0], start, stop)
        for part in parts:
            for axis in range(worker.index, len(part.step), worker.count):
                step = part.step[axis]
                ahead, behind = neighbours[:, axis] if step > 0 else neighbours[::-1, axis]
                _connect(part.keys, abs(step), ahead, behind, part.offset + 1)
        worker.wait()
        row_sum = _blur_all(worker, lattice, sums, tables, (0,))
        for part in parts:
            _normalise(
                corners[:, part.columns],
                weights[:, part.columns],
                row_sum[0],
                np.float32(part.compat),
                *worker.share(len(corners)),
            )

    _run(steps)
    return lattice


def _number_box(extent: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Number the lattice points around the box 0..``extent`` (d,), given in elevated units.

    Returns:
        ``radix`` and ``step`` as in :func:`number_cells`, and what ``radix @ u`` is at the lowest
        point of the box.
    """
    dim = len(extent)
    tail = np.append(np.cumsum(extent[::-1])[::-1], 0)  # sum from each axis on
    factor = np.arange(dim)
    # u_i = (e_i - e_d) / (d+1) with e_i = tail of the later axes - i times the i-th one; rounding
    # to a cell and wrapping move it by less than 2.
    low = -factor * np.append(0, extent[:-1]) / (dim + 1) - 2
    high = (tail[:-1] + dim * extent[-1]) / (dim + 1) + 2
    lowest = np.floor(low).astype(np.int64)
    radix, step = number_cells(np.ceil(high).astype(np.int64) - lowest)
    return radix, step, int(radix @ (lowest - 2))


def _infer(lattice: _Lattice, log_ratio: Float, num_iters: int) -> Float:
    """Marginals (C, N) from ``log(prob / prob of the last label)`` (C-1, N)."""
    num_channels, num_pixels = log_ratio.shape
    marginals = np.empty((num_channels + 1, num_pixels), dtype=np.float32)
    lanes = (0,) * min(num_channels, _MAX_LANES)
    unrolled = (0,) * lattice.corners.shape[1]
    num_groups = -(-num_channels // len(lanes))
    row_size = lattice.after.shape[1] * len(lanes)
    tables = np.zeros((2, num_groups, row_size), dtype=np.float32)
    sums = np.zeros((_STRIPS, num_groups, row_size), dtype=np.float32)

    def iterate(worker: _Worker) -> None:
        table = tables[0]
        for update in range(num_iters + 1):
            is_first, is_last = update == 0, update == num_iters
            for strip, start, stop in worker.strips(num_pixels):
                _update(
                    log_ratio,
                    lattice.corners,
                    lattice.weights,
                    table,
                    sums[strip],
                    marginals,
                    not is_first,
                    is_last,
                    start,
                    stop,
                    lanes,
                    unrolled,
                )
            if not is_last:
                worker.wait()
                table = _blur_all(worker, lattice, sums, tables, lanes)

    _run(iterate)
    return marginals


def _blur_all(
    worker: _Worker, lattice: _Lattice, sums: Float, tables: Float, lanes: tuple[int, ...]
) -> Float:
    """Add up the strips, leave zeros in them, and blur: one thread's share; then wait.

    Args:
        worker: The thread.
        lattice: Its neighbours are used.
        sums: (_STRIPS, G, (M+1)·lanes) float32, sums at the vertices by strip.
        tables: (2, G, (M+1)·lanes) float32, overwritten; the values of vertex 0 are zero.
        lanes: As long as channels lie side by side.

    Returns:
        The one of the two tables that holds the result.
    """
    source, target = tables
    start, stop = worker.share(lattice.after.shape[1], first=1)
    _gather_strips(sums, source, start * len(lanes), stop * len(lanes))
    for after, before in zip(lattice.after, lattice.before, strict=True):
        worker.wait()
        _blur(source, target, after, before, start, stop, lanes)
        source, target = target, source
    worker.wait()
    return source


# Where a kernel takes `lanes` or `unrolled`, the tuple's length alone counts: Numba compiles one
# version for each, in which it is a constant and the loops over it are unrolled. Indices read from
# memory are made unsigned: of others Numba asks at each access whether they count from the end.


def _kernel(**options: Any) -> Any:
    return njit(nogil=True, cache=True, **options)


@_kernel()
def _embed(  # type: ignore[no-untyped-def]
    colour, col, row, levels, radix, step, origin, corners, weights, start, stop
):
    """Find the simplex of pixels ``start``..``stop`` and number its vertices as they first appear.

    ``reference._find_simplices`` and ``np.unique``, one pixel at a time; the hash table is open,
    with linear probing. Fills ``corners`` with 0-based numbers, and ``weights``.

    Returns:
        (M,) int64 keys of the vertices in the order of their numbers.
    """
    size = len(step)
    dim = size - 1
    x, y = start % len(col), start // len(col)
    fsize = np.float32(size)
    inverse_size = np.float32(1 / size)
    one = np.float32(1)
    elevated = np.empty(size, np.float32)
    cell = np.empty(size, np.float32)
    residual = np.empty(size, np.float32)
    offset = np.empty(size, np.float32)
    order = np.empty(size, np.int32)
    rank = np.empty(size, np.int32)
    scaled = np.empty(size, np.float32)

    bits = 12
    table_keys = np.full(1 << bits, -1, np.int64)
    table_numbers = np.empty(1 << bits, np.int32)
    keys = np.empty(1 << (bits - 1), np.int64)
    count = 0
    # Neighbouring pixels often share a vertex.
    last_keys = np.full(size, -1, np.int64)
    last_numbers = np.zeros(size, np.int32)

    for pixel in range(start, stop):
        scaled[0] = col[x]
        scaled[1] = row[y]
        x += 1
        if x == len(col):
            x, y = 0, y + 1
        for j in range(2, dim):
            scaled[j] = levels[j - 2, colour[pixel, j - 2]]
        tail = np.float32(0)
        for back in range(dim):
            j = dim - back
            elevated[j] = tail - np.float32(j) * scaled[j - 1]
            tail += scaled[j - 1]
        elevated[0] = tail

        total = np.float32(0)
        for j in range(size):
            nearest = np.rint(elevated[j] * inverse_size)
            cell[j] = nearest
            total += nearest
            residual[j] = elevated[j] - nearest * fsize
        for j in range(size):
            rank[j] = np.int32(total)
        for i in range(dim):
            for j in range(i + 1, size):
                smaller = np.int32(residual[i] < residual[j])
                rank[i] += smaller
                rank[j] += 1 - smaller
        for j in range(size):
            place = rank[j]
            if place < 0:
                place += size
                cell[j] += one
            elif place > dim:
                place -= size
                cell[j] -= one
            offset[dim - place] = (elevated[j] - cell[j] * fsize) * inverse_size
            order[dim - place] = j

        key = -origin
        for j in range(dim):
            key += radix[j] * np.int64(cell[j] - cell[dim])
        for p in range(size):
            if p == 0:
                weights[pixel, p] = offset[0] + (one - offset[dim])
            else:
                key -= step[order[p - 1]]
                weights[pixel, p] = offset[p] - offset[p - 1]
            if key != last_keys[p]:
                slot = _hash(key, bits)
                while table_keys[slot] != key:
                    if table_keys[slot] < 0:
                        table_keys[slot] = key
                        table_numbers[slot] = count
                        keys[count] = key
                        count += 1
                        break
                    slot = (slot + np.uint64(1)) & np.uint64((1 << bits) - 1)
                last_keys[p] = key
                last_numbers[p] = table_numbers[slot]
            corners[pixel, p] = last_numbers[p]

        if count > len(keys) - size:
            bits += 1
            table_keys = np.full(1 << bits, -1, np.int64)
            table_numbers = np.empty(1 << bits, np.int32)
            grown = np.empty(1 << (bits - 1), np.int64)
            grown[:count] = keys[:count]
            keys = grown
            for number in range(count):
                slot = _hash(keys[number], bits)
                while table_keys[slot] >= 0:
                    slot = (slot + np.uint64(1)) & np.uint64((1 << bits) - 1)
                table_keys[slot] = keys[number]
                table_numbers[slot] = number
    return keys[:count].copy()


@_kernel(inline="always")
def _hash(key, bits):  # type: ignore[no-untyped-def]
    """The top ``bits`` of the key times 2^64 / golden ratio (Knuth, TAOCP 3, section 6.4)."""
    return (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits)


@_kernel()
def _renumber(corners, numbers, start, stop):  # type: ignore[no-untyped-def]
    for pixel in range(start, stop):
        for p in range(corners.shape[1]):
            corners[pixel, p] = numbers[np.uintp(corners[pixel, p])]


@_kernel()
def _connect(keys, step, ahead, behind, first):  # type: ignore[no-untyped-def]
    """Find the vertices whose key is ``step`` > 0 larger: two walks along the sorted keys.

    The vertex of the first key has the number ``first``.
    """
    other = 0
    for vertex in range(len(keys)):
        wanted = keys[vertex] + step
        while other < len(keys) and keys[other] < wanted:
            other += 1
        if other == len(keys):
            return
        if keys[other] == wanted:
            ahead[first + vertex] = first + other
            behind[first + other] = first + vertex


@_kernel()
def _splat_ones(corners, weights, total, start, stop):  # type: ignore[no-untyped-def]
    for pixel in range(start, stop):
        for p in range(corners.shape[1]):
            total[corners[pixel, p]] += weights[pixel, p]


@_kernel(fastmath=_FAST_MATH)
def _normalise(corners, weights, row_sum, compat, start, stop):  # type: ignore[no-untyped-def]
    for pixel in range(start, stop):
        total = np.float32(1e-20)
        for p in range(corners.shape[1]):
            total += weights[pixel, p] * row_sum[corners[pixel, p]]
        factor = np.sqrt(compat / total)
        for p in range(corners.shape[1]):
            weights[pixel, p] *= factor


@_kernel()
def _gather_strips(sums, table, start, stop):  # type: ignore[no-untyped-def]
    for group in range(sums.shape[1]):
        for i in range(start, stop):
            table[group, i] = sums[0, group, i]
            sums[0, group, i] = 0
        for strip in range(1, sums.shape[0]):
            for i in range(start, stop):
                table[group, i] += sums[strip, group, i]
                sums[strip, group, i] = 0


@_kernel(fastmath=_FAST_MATH)
def _blur(source, target, after, before, start, stop, lanes):  # type: ignore[no-untyped-def]
    half = np.float32(0.5)
    width = np.uintp(len(lanes))
    for group in range(source.shape[0]):
        values, blurred = source[group], target[group]
        for vertex in range(np.uintp(start), np.uintp(stop)):
            here = vertex * width
            one, other = np.uintp(after[vertex]) * width, np.uintp(before[vertex]) * width
            for lane in range(width):
                blurred[here + lane] = values[here + lane] + half * (
                    values[one + lane] + values[other + lane]
                )


@_kernel(fastmath=_FAST_MATH)
def _update(  # type: ignore[no-untyped-def]
    log_ratio,
    corners,
    weights,
    table,
    strip_sum,
    marginals,
    has_message,
    is_last,
    start,
    stop,
    lanes,
    unrolled,
):
    """Slice, softmax and splat in one pass over the pixels ``start``..``stop``.

    ``table`` (G, (M+1)·lanes) is sliced if ``has_message``. The new marginals are written to
    ``marginals`` (C, N) if ``is_last``; else their differences to the last label are added to
    ``strip_sum``, of the shape of ``table``.
    """
    width = len(lanes)
    num_channels = len(log_ratio)
    num_groups = len(table)
    # Channels that only fill the last group up stay zero.
    values = np.zeros((num_groups * width, _BLOCK), np.float32)
    top = np.empty(_BLOCK, np.float32)
    total = np.empty(_BLOCK, np.float32)
    last = np.empty(_BLOCK, np.float32)
    zero, one = np.float32(0), np.float32(1)
    for block in range(start, stop, _BLOCK):
        length = min(_BLOCK, stop - block)
        for c in range(num_channels):
            for i in range(length):
                values[c, i] = log_ratio[c, block + i]
        if has_message:
            for group in range(num_groups):
                column = table[group]
                for i in range(length):
                    for p in range(len(unrolled)):
                        corner = np.uintp(corners[block + i, p]) * np.uintp(width)
                        weight = weights[block + i, p]
                        for lane in range(width):
                            values[group * width + lane, i] += (
                                weight * column[corner + np.uintp(lane)]
                            )

        for i in range(length):
            top[i] = zero
        for c in range(num_channels):
            for i in range(length):
                top[i] = max(top[i], values[c, i])
        for i in range(length):
            last[i] = _exp(-top[i])
            total[i] = last[i]
        for c in range(num_channels):
            for i in range(length):
                values[c, i] = _exp(values[c, i] - top[i])
                total[i] += values[c, i]
        for i in range(length):
            total[i] = one / total[i]

        if is_last:
            for c in range(num_channels):
                for i in range(length):
                    marginals[c, block + i] = values[c, i] * total[i]
            for i in range(length):
                marginals[num_channels, block + i] = last[i] * total[i]
        else:
            for c in range(num_channels):
                for i in range(length):
                    values[c, i] = (values[c, i] - last[i]) * total[i]
            for group in range(num_groups):
                column = strip_sum[group]
                for i in range(length):
                    for p in range(len(unrolled)):
                        corner = np.uintp(corners[block + i, p]) * np.uintp(width)
                        weight = weights[block + i, p]
                        for lane in range(width):
                            column[corner + np.uintp(lane)] += (
                                weight * values[group * width + lane, i]
                            )


@_kernel(inline="always")
def _exp(x):  # type: ignore[no-untyped-def]
    """Float32 exponential of x <= 0 to 2 units in the last place, without a call in the loop.

    x = k ln 2 + r with |r| <= ln 2 / 2; exp(r) from its power series to r^6, whose rest is below
    2e-7; 2^k from its bits. Below -87 as at -87, nearly the smallest normal number.
    """
    x = max(x, np.float32(-87))
    k = np.rint(x * np.float32(1.4426950408889634))
    # ln 2 in two parts; k times the first, a number of 9 bits, is exact.
    r = (x - k * np.float32(0.693359375)) + k * np.float32(2.1219444005469057e-4)
    series = np.float32(1 / 720)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = series * r + np.float32(coefficient)
    return series * np.int32((np.int32(k) + 127) << 23).view(np.float32)
