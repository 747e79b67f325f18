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
from llvmlite import ir
from numba import njit
from numba.core.types import none
from numba.extending import intrinsic
from numpy.typing import NDArray

from adcam.ops.dense_crf.placement import GaussianKernel, place_kernels

Float = NDArray[np.float32]
Int = NDArray[np.int32]

_STRIPS = 4
"""Parts of the image that sum onto the lattice apart from one another, and the most threads that
can help. A constant, so that the result does not depend on the number of threads."""

_MAX_LANES = 4
"""Channels filtered together at most: their values at a vertex lie side by side. A power of two."""

_BLOCK = 256
"""Pixels that go through the steps of a kernel together: they stay in the first-level cache."""

_NEVER = np.float32(-1e30)
"""Logarithm of a probability of zero, finite so that sums with it are."""

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
        spans: (_STRIPS, kernels, 2) int64, first vertex and end of what each strip touches.
    """

    corners: Int
    weights: Float
    after: Int
    before: Int
    spans: NDArray[np.int64]


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
        kernels = place_kernels(img.shape[:2], gaussian, bilateral)
        self._lattice = _build(np.ascontiguousarray(img).reshape(-1, 3), kernels)

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
        marginals = _infer(self._lattice, unary.reshape(len(unary), -1), num_iters)
        return marginals.reshape(unary.shape)


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


def _build(colour: NDArray[np.uint8], kernels: list[GaussianKernel]) -> _Lattice:
    """Build the lattice of the pixels whose ``colour`` is (N, 3)."""
    shape = (len(colour), sum(len(kernel.step) for kernel in kernels))
    corners, weights = np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.float32)
    found = [[kernel.step[:0]] * _STRIPS for kernel in kernels]

    def embed(worker: _Worker) -> None:
        for kernel, keys in zip(kernels, found, strict=True):
            at = kernel.columns
            for strip, start, stop in worker.strips(len(colour)):
                keys[strip] = _embed(
                    colour,
                    *kernel.axes,
                    kernel.step,
                    kernel.origin,
                    corners[:, at],
                    weights[:, at],
                    start,
                    stop,
                )

    _run(embed)
    spans = np.zeros((_STRIPS, len(kernels), 2), dtype=np.int64)
    first, all_keys, numbers = 1, [], []
    for index, by_strip in enumerate(found):
        # Sorted keys: the neighbours of successive vertices are successive vertices.
        joined = np.concatenate(by_strip)
        keys, number = _number(joined, joined.argsort(), first)
        first += len(keys)
        all_keys.append(keys)
        ends = np.cumsum([len(part) for part in by_strip])
        numbers.append(np.split(number, ends[:-1]))
        for strip, part in enumerate(numbers[-1]):
            if len(part):
                spans[strip, index] = part.min(), part.max() + 1

    num_axes = max((len(kernel.step) for kernel in kernels), default=0)
    neighbours = np.zeros((2, num_axes, first), dtype=np.int32)
    lattice = _Lattice(corners, weights, neighbours[0], neighbours[1], spans)
    tables = np.zeros((2, 1, first), dtype=np.float32)
    sums = np.zeros((_STRIPS, 1, first), dtype=np.float32)

    def connect_and_normalise(worker: _Worker) -> None:
        for strip, start, stop in worker.strips(len(colour)):
            for kernel, number in zip(kernels, numbers, strict=True):
                _renumber(corners[:, kernel.columns], number[strip], start, stop)
            _splat_ones(corners, weights, sums[strip, 0], start, stop)
        vertex = 1
        for kernel, keys in zip(kernels, all_keys, strict=True):
            for axis in range(worker.index, len(kernel.step), worker.count):
                step = kernel.step[axis]
                ahead, behind = neighbours[:, axis] if step > 0 else neighbours[::-1, axis]
                _connect(keys, abs(step), ahead, behind, np.uintp(vertex))
            vertex += len(keys)
        worker.wait()
        row_sum = _blur_all(worker, lattice, sums, tables, (np.float32(0),))
        for kernel in kernels:
            _normalise(
                corners[:, kernel.columns],
                weights[:, kernel.columns],
                row_sum[0],
                np.float32(kernel.compat),
                *worker.share(len(corners)),
            )

    _run(connect_and_normalise)
    return lattice


def _infer(lattice: _Lattice, unary: Float, num_iters: int) -> Float:
    """Marginals (C, N) from ``-log`` of the probabilities (C, N)."""
    num_labels, num_pixels = unary.shape
    marginals = np.empty((num_labels, num_pixels), dtype=np.float32)
    # The softmax sees differences between labels alone: the last label needs no channel.
    num_channels = num_labels - 1
    width = min(1 << (num_channels - 1).bit_length(), _MAX_LANES)
    lanes = (np.float32(0),) * width
    unrolled = (0,) * lattice.corners.shape[1]
    num_groups = -(-num_channels // width)
    # Channels that only fill the last group up have probability zero.
    log_ratio = np.full((num_groups, num_pixels, width), _NEVER, dtype=np.float32)
    for channel in range(num_channels):
        group, lane = divmod(channel, width)
        np.subtract(unary[-1], unary[channel], out=log_ratio[group, :, lane])
    log_ratio = log_ratio.reshape(num_groups, -1)  # (G, N·lanes)
    row_size = lattice.after.shape[1] * width
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
    worker: _Worker, lattice: _Lattice, sums: Float, tables: Float, lanes: tuple[np.float32, ...]
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
    _gather_strips(sums, lattice.spans, source, start, stop, len(lanes))
    for after, before in zip(lattice.after, lattice.before, strict=True):
        worker.wait()
        _blur(source, target, after, before, start, stop, lanes)
        source, target = target, source
    worker.wait()
    return source


# Where a kernel takes `lanes`, zeros in float32, or `unrolled`, the tuple's length counts: Numba
# compiles one version for each, in which it is a constant and the loops over it are unrolled.
# Indices are unsigned: of others Numba asks at each access whether they count from the end.


def _kernel(**options: Any) -> Any:
    return njit(nogil=True, cache=True, **options)


# Numba does not turn loops over a few lanes into vector code. These three do, on tuples of float32.


@intrinsic
def _load(typing_context: Any, array: Any, index: Any, lanes: Any) -> Any:
    """The values of a contiguous ``array`` from ``index`` on, as many as ``lanes``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), len(lanes))
        data = context.make_array(array)(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), vector.as_pointer())
        return _unpack(builder, builder.load(place, align=4), args[2].type)

    return lanes(array, index, lanes), generate


@intrinsic
def _store(typing_context: Any, array: Any, index: Any, values: Any) -> Any:
    """Write ``values`` to a contiguous ``array`` from ``index`` on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = _pack(builder, args[2])
        data = context.make_array(array)(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), vector.type.as_pointer())
        builder.store(vector, place, align=4)
        return context.get_dummy_value()

    return none(array, index, values), generate


@intrinsic
def _fma(typing_context: Any, scale: Any, values: Any, addend: Any) -> Any:
    """``scale * values + addend``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scales = ir.Constant(args[1].type, ir.Undefined)
        for lane in range(len(values)):
            scales = builder.insert_value(scales, args[0], lane)
        product = builder.fmul(_pack(builder, scales), _pack(builder, args[1]), flags=["contract"])
        total = builder.fadd(product, _pack(builder, args[2]), flags=["contract"])
        return _unpack(builder, total, args[1].type)

    return values(scale, values, addend), generate


def _pack(builder: Any, values: Any) -> Any:
    """LLVM vector of the numbers in an LLVM array."""
    width = values.type.count
    vector = ir.Constant(ir.VectorType(ir.FloatType(), width), ir.Undefined)
    for lane in range(width):
        number = builder.extract_value(values, lane)
        vector = builder.insert_element(vector, number, ir.IntType(32)(lane))
    return vector


def _unpack(builder: Any, vector: Any, array_type: Any) -> Any:
    """The reverse of :func:`_pack`; the compiler removes both between two operations."""
    values = ir.Constant(array_type, ir.Undefined)
    for lane in range(array_type.count):
        number = builder.extract_element(vector, ir.IntType(32)(lane))
        values = builder.insert_value(values, number, lane)
    return values


@_kernel()
def _embed(  # type: ignore[no-untyped-def]
    colour, col, row, levels, step, origin, corners, weights, start, stop
):
    """Find the simplex of pixels ``start``..``stop`` and number its vertices as they first appear.

    ``reference._find_simplices`` in blocks of pixels, whose loops become vector code. The hash
    table is open, with linear probing; a first look at all keys of a block, without branches, waits
    for memory once rather than for each. Fills ``corners`` with 0-based numbers, and ``weights``.

    Returns:
        (M,) int64 keys of the vertices in the order of their numbers.
    """
    size = len(step)
    dim = size - 1
    fsize = np.float32(size)
    inverse_size = np.float32(1 / size)
    zero, one = np.float32(0), np.float32(1)
    scaled = np.empty((dim, _BLOCK), np.float32)
    elevated = np.empty((size, _BLOCK), np.float32)
    cell = np.empty((size, _BLOCK), np.float32)
    residual = np.empty((size, _BLOCK), np.float32)
    total = np.empty(_BLOCK, np.float32)
    rank = np.empty((size, _BLOCK), np.int32)
    offset = np.empty((size, _BLOCK), np.float32)
    key = np.empty((size, _BLOCK), np.int64)
    number = np.empty((size, _BLOCK), np.int32)

    # As many slots as pixels, if that is not too few for one block's keys.
    bits = 14
    while 1 << bits < stop - start:
        bits += 1
    table_keys = np.full(1 << bits, -1, np.int64)
    table_numbers = np.empty(1 << bits, np.int32)
    keys = np.empty(1 << (bits - 1), np.int64)
    count = 0
    x, y = start % len(col), start // len(col)

    for block in range(start, stop, _BLOCK):
        first = np.uintp(block)
        length = np.uintp(min(_BLOCK, stop - block))
        for i in range(length):
            scaled[0, i] = col[x]
            scaled[1, i] = row[y]
            x += 1
            if x == len(col):
                x, y = 0, y + 1
        for j in range(2, dim):
            for i in range(length):
                scaled[j, i] = levels[j - 2, colour[first + i, j - 2]]
        for i in range(length):
            total[i] = zero
        for j in range(dim, 0, -1):
            factor = np.float32(j)
            for i in range(length):
                elevated[j, i] = total[i] - factor * scaled[j - 1, i]
                total[i] += scaled[j - 1, i]
        for i in range(length):
            elevated[0, i] = total[i]
            total[i] = zero

        for j in range(size):
            for i in range(length):
                nearest = np.rint(elevated[j, i] * inverse_size)
                cell[j, i] = nearest
                total[i] += nearest
                residual[j, i] = elevated[j, i] - nearest * fsize
        for j in range(size):
            for i in range(length):
                rank[j, i] = np.int32(total[i])
        for j in range(dim):
            for k in range(j + 1, size):
                for i in range(length):
                    smaller = np.int32(residual[j, i] < residual[k, i])
                    rank[j, i] += smaller
                    rank[k, i] += np.int32(1) - smaller
        for i in range(length):
            key[0, i] = -origin
        for j in range(size):
            for i in range(length):
                wraps = np.int32(rank[j, i] < 0) - np.int32(rank[j, i] > dim)
                rank[j, i] += wraps * np.int32(size)
                nearest = cell[j, i] + np.float32(wraps)
                residual[j, i] = (elevated[j, i] - nearest * fsize) * inverse_size
                key[0, i] += step[j] * np.int64(nearest)
        for p in range(size):
            for j in range(size):
                for i in range(length):
                    if rank[j, i] == dim - p:
                        offset[p, i] = residual[j, i]
                        if p < dim:
                            key[p + 1, i] = key[p, i] - step[j]

        for p in range(size):
            for i in range(length):
                slot = _hash(key[p, i], bits)
                is_here = table_keys[slot] == key[p, i]
                number[p, i] = table_numbers[slot] if is_here else np.int32(-1)
        for p in range(size):
            for i in range(length):
                if number[p, i] >= 0:
                    continue
                slot = _hash(key[p, i], bits)
                while table_keys[slot] != key[p, i]:
                    if table_keys[slot] < 0:
                        table_keys[slot] = key[p, i]
                        table_numbers[slot] = count
                        keys[count] = key[p, i]
                        count += 1
                        break
                    slot = (slot + np.uint64(1)) & np.uint64((1 << bits) - 1)
                number[p, i] = table_numbers[slot]
        for i in range(length):
            weights[first + i, 0] = offset[0, i] + (one - offset[dim, i])
            corners[first + i, 0] = number[0, i]
            for p in range(1, size):
                weights[first + i, p] = offset[p, i] - offset[p - 1, i]
                corners[first + i, p] = number[p, i]

        if count > len(keys) - size * _BLOCK:
            bits += 2
            table_keys = np.full(1 << bits, -1, np.int64)
            table_numbers = np.empty(1 << bits, np.int32)
            grown = np.empty(1 << (bits - 1), np.int64)
            grown[:count] = keys[:count]
            keys = grown
            for old in range(count):
                slot = _hash(keys[old], bits)
                while table_keys[slot] >= 0:
                    slot = (slot + np.uint64(1)) & np.uint64((1 << bits) - 1)
                table_keys[slot] = keys[old]
                table_numbers[slot] = old
    return keys[:count].copy()


@_kernel(inline="always")
def _hash(key, bits):  # type: ignore[no-untyped-def]
    """The top ``bits`` of the key times 2^64 / golden ratio (Knuth, TAOCP 3, section 6.4)."""
    return (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits)


@_kernel()
def _renumber(corners, numbers, start, stop):  # type: ignore[no-untyped-def]
    for pixel in range(np.uintp(start), np.uintp(stop)):
        for p in range(corners.shape[1]):
            corners[pixel, p] = numbers[np.uintp(corners[pixel, p])]


@_kernel()
def _connect(keys, step, ahead, behind, first):  # type: ignore[no-untyped-def]
    """Find the vertices whose key is ``step`` > 0 larger: two walks along the sorted keys.

    The vertex of the first key has the number ``first``.
    """
    count = np.uintp(len(keys))
    vertex, other = np.uintp(0), np.uintp(0)
    # One of the two advances, or both: sums instead of branches, which could not be foreseen.
    while other < count:
        wanted, key = keys[vertex] + step, keys[other]
        is_found = np.int32(wanted == key)
        ahead[first + vertex] = is_found * np.int32(first + other)
        behind[first + other] = is_found * np.int32(first + vertex)
        vertex += np.uintp(wanted <= key)
        other += np.uintp(key <= wanted)


@_kernel()
def _number(keys, order, first):  # type: ignore[no-untyped-def]
    """Number different keys in ascending ``order``, from ``first`` on.

    Returns:
        The different keys, sorted, and the number of each of ``keys``.
    """
    different = np.empty(len(keys), np.int64)
    numbers = np.empty(len(keys), np.int32)
    last, count = np.int64(-1), 0
    for i in range(len(order)):
        place = np.uintp(order[i])
        if keys[place] != last:
            last = keys[place]
            different[count] = last
            count += 1
        numbers[place] = first + count - 1
    return different[:count].copy(), numbers


@_kernel()
def _splat_ones(corners, weights, total, start, stop):  # type: ignore[no-untyped-def]
    for pixel in range(np.uintp(start), np.uintp(stop)):
        for p in range(corners.shape[1]):
            total[np.uintp(corners[pixel, p])] += weights[pixel, p]


@_kernel(fastmath=_FAST_MATH)
def _normalise(corners, weights, row_sum, compat, start, stop):  # type: ignore[no-untyped-def]
    for pixel in range(np.uintp(start), np.uintp(stop)):
        total = np.float32(1e-20)
        for p in range(corners.shape[1]):
            total += weights[pixel, p] * row_sum[np.uintp(corners[pixel, p])]
        factor = np.sqrt(compat / total)
        for p in range(corners.shape[1]):
            weights[pixel, p] *= factor


@_kernel()
def _gather_strips(sums, spans, table, start, stop, width):  # type: ignore[no-untyped-def]
    for group in range(sums.shape[1]):
        for i in range(np.uintp(start * width), np.uintp(stop * width)):
            table[group, i] = 0
        for strip in range(spans.shape[0]):
            for part in range(spans.shape[1]):
                first = max(start, spans[strip, part, 0])
                end = max(first, min(stop, spans[strip, part, 1]))
                for i in range(np.uintp(first * width), np.uintp(end * width)):
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
            sides = _load(values, np.uintp(after[vertex]) * width, lanes)
            sides = _fma(half, sides, _load(values, here, lanes))
            other = _load(values, np.uintp(before[vertex]) * width, lanes)
            _store(blurred, here, _fma(half, other, sides))


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

    ``log_ratio`` (G, N·lanes) is of the probabilities, to that of the last label.
    ``table`` (G, (M+1)·lanes) is sliced if ``has_message``. The new marginals are written to
    ``marginals`` (C, N) if ``is_last``; else their differences to the last label are added to
    ``strip_sum``, of the shape of ``table``.
    """
    width = np.uintp(len(lanes))
    num_groups = len(table)
    values = np.empty((num_groups, _BLOCK * len(lanes)), np.float32)
    top = np.empty(_BLOCK, np.float32)
    total = np.empty(_BLOCK, np.float32)
    last = np.empty(_BLOCK, np.float32)
    zero, one = np.float32(0), np.float32(1)
    for block in range(start, stop, _BLOCK):
        first = np.uintp(block)
        length = np.uintp(min(_BLOCK, stop - block))
        for i in range(length):
            top[i] = zero
        for group in range(num_groups):
            group_values, evidence, column = values[group], log_ratio[group], table[group]
            for i in range(length):
                logits = _load(evidence, (first + i) * width, lanes)
                if has_message:
                    for p in range(len(unrolled)):
                        corner = np.uintp(corners[first + i, p]) * width
                        logits = _fma(weights[first + i, p], _load(column, corner, lanes), logits)
                _store(group_values, i * width, logits)
            for i in range(length):
                for lane in range(width):
                    top[i] = max(top[i], group_values[i * width + lane])

        for i in range(length):
            last[i] = _exp(-top[i])
            total[i] = last[i]
        for group in range(num_groups):
            group_values = values[group]
            for i in range(length):
                for lane in range(width):
                    group_values[i * width + lane] -= top[i]
            for j in range(length * width):
                group_values[j] = _exp(group_values[j])
            for i in range(length):
                for lane in range(width):
                    total[i] += group_values[i * width + lane]
        for i in range(length):
            total[i] = one / total[i]

        if is_last:
            for c in range(len(marginals) - 1):
                group_values, shift = values[c // len(lanes)], np.uintp(c % len(lanes))
                for i in range(length):
                    marginals[c, first + i] = group_values[i * width + shift] * total[i]
            for i in range(length):
                marginals[-1, first + i] = last[i] * total[i]
        else:
            for group in range(num_groups):
                group_values, column = values[group], strip_sum[group]
                for i in range(length):
                    for lane in range(width):
                        group_values[i * width + lane] = (
                            group_values[i * width + lane] - last[i]
                        ) * total[i]
                for i in range(length):
                    vector = _load(group_values, i * width, lanes)
                    for p in range(len(unrolled)):
                        corner = np.uintp(corners[first + i, p]) * width
                        _store(
                            column,
                            corner,
                            _fma(weights[first + i, p], vector, _load(column, corner, lanes)),
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
