"""Mean field on a permutohedral lattice for a batch of images, by the kernels of this project.

The method is that of ``reference.py``, the vertices are numbered as in ``placement.py``, with the
image in front of the key. One sort of all keys numbers the vertices of all images and both kernels
and orders the entries of the splat. As in ``numba_lattice.py`` one label needs no channel, the
roots of normalisation and ``compat`` are folded into the weights, and one message of all corners
serves both kernels. An update is a launch for the splat, one for the sums that are too long for a
single program, one for each axis of the blur, and one for slice and softmax.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from adcam.ops._launch import launch as _launch
from adcam.ops.dense_crf import triton_kernels as kernels
from adcam.ops.dense_crf.placement import GaussianKernel, place_kernels

_STRETCH = 64
"""Most entries that are summed by one lane, one after the other; longer sums are split."""

_MAX_CHANNELS = 32
"""The most channels that are filtered together; more are filtered in groups, one after another."""

_NEVER = -1e30
"""Logarithm of a probability of zero, finite so that sums with it are."""

_MAX_ROWS = 2**31 - 1


@dataclass(frozen=True)
class _Lattice:
    """The lattices of a batch as one: N pixels with K corners, M vertices, both kernels in turn.

    A table has two buffers of M rows, which the blur fills alternately, and behind them the sums of
    the stretches of vertices that have several stretches.

    Attributes:
        corners: (K, N) int32, the row of each corner in the buffer that its kernel's blur ends in.
        weights: (K, N) float32, barycentric weights times the roots of the kernel's normalisation
            and ``compat``: splat, blur and slice make a whole message.
        entry_pixel: (K·N,) int32, the pixels of the vertices, one vertex after the other.
        entry_weight: (K·N,) float32, their weights.
        first_entry: (P+1,) int32, where each stretch of entries begins.
        target: (P,) int32, the row of the table that its sum goes to.
        first_part: (L+1,) int32, where the sums of each vertex with several stretches begin.
        parted: (L,) int32, those vertices.
        after: (A, M) int32, the next vertex along each axis of the blur, or -1.
        before: (A, M) int32, the vertex on the other side.
        starts: The first vertex that each axis of the blur moves.
    """

    corners: Tensor
    weights: Tensor
    entry_pixel: Tensor
    entry_weight: Tensor
    first_entry: Tensor
    target: Tensor
    first_part: Tensor
    parted: Tensor
    after: Tensor
    before: Tensor
    starts: tuple[int, ...]

    @property
    def num_vertices(self) -> int:
        """Number of vertices, M."""
        return self.after.shape[1]

    @property
    def num_rows(self) -> int:
        """Number of rows of a table."""
        num_whole = self.num_vertices - len(self.parted)
        return 2 * self.num_vertices + len(self.target) - num_whole


class MeanField:
    """The lattices of a batch of images, ready for any number of inferences.

    Args:
        imgs: (H, W, 3) uint8 each, of any sizes, on one CUDA device (under the interpreter, on the
            CPU).
        gaussian: ``(sigma_xy, compat)`` or ``None``.
        bilateral: ``(sigma_xy, sigma_rgb, compat)`` or ``None``.

    Raises:
        ValueError: A sigma is so small that the lattice cannot be numbered in 64 bits, or there are
            too many pixels for 32-bit numbers.
    """

    def __init__(
        self,
        imgs: Sequence[Tensor],
        *,
        gaussian: tuple[float, float] | None,
        bilateral: tuple[float, float, float] | None,
    ) -> None:
        self._hw = [(img.shape[0], img.shape[1]) for img in imgs]
        largest = tuple(max(sizes) for sizes in zip(*self._hw, strict=True))
        placed = place_kernels(largest, gaussian, bilateral)
        pixels = torch.cat([img.reshape(-1, 3) for img in imgs])
        if 2 * len(pixels) * sum(len(kernel.step) for kernel in placed) > _MAX_ROWS:
            raise ValueError(f"{len(pixels)} pixels are too many to number at once")
        self._num_pixels = len(pixels)
        self._device = pixels.device
        self._lattice = _build(pixels, self._hw, placed) if placed else None

    def infer(self, unaries: Sequence[Tensor], *, num_iters: int) -> list[Tensor]:
        """Run mean field.

        Args:
            unaries: (C, H, W) float32 each, ``-log`` of the probabilities; C may differ.
            num_iters: Number of updates.

        Returns:
            (C, H, W) float32 marginals of each image, views of one tensor.
        """
        num_labels = max(len(unary) for unary in unaries)
        if num_labels == 1:
            return [torch.ones_like(unary) for unary in unaries]
        evidence = self._stack(unaries, num_labels - 1)
        marginals = _infer(self._lattice, evidence, num_labels, num_iters)
        split = marginals.split([height * width for height, width in self._hw], dim=1)
        return [
            part[: len(unary)].view(unary.shape) for part, unary in zip(split, unaries, strict=True)
        ]

    def _stack(self, unaries: Sequence[Tensor], num_channels: int) -> Tensor:
        """Logarithms of probabilities to that of label 0: (groups, N, width).

        A label that an image lacks, and a channel that fills a group up, has probability zero.
        """
        groups = triton.cdiv(num_channels, _MAX_CHANNELS)
        width = triton.cdiv(num_channels, groups)
        if width > 2:
            width = triton.cdiv(width, 4) * 4  # rows that are read in vectors of four
        shape = (self._num_pixels, groups * width)
        evidence = torch.full(shape, _NEVER, dtype=torch.float32, device=self._device)
        first = 0
        for _, alike in itertools.groupby(unaries, key=len):  # one launch for as many labels
            values = torch.cat([unary.flatten(1) for unary in alike], dim=1)  # (C, pixels)
            stop = first + values.shape[1]
            torch.sub(values[:1].T, values[1:].T, out=evidence[first:stop, : len(values) - 1])
            first = stop
        return evidence.unflatten(1, (groups, width)).transpose(0, 1).contiguous()


def _build(
    pixels: Tensor, sizes_hw: Sequence[tuple[int, int]], placed: list[GaussianKernel]
) -> _Lattice:
    """Build the lattice of images whose ``pixels`` (N, 3) stand one after the other."""
    num_pixels = len(pixels)
    numbers = _number_images(placed, len(sizes_hw)).to(pixels.device, non_blocking=True)
    keys, weights = _embed(pixels, sizes_hw, placed, numbers)
    sorted_keys, place = keys.flatten().sort(stable=True)
    is_new = torch.ones_like(sorted_keys, dtype=torch.bool)
    torch.ne(sorted_keys[1:], sorted_keys[:-1], out=is_new[1:])
    number = is_new.cumsum(dim=0, dtype=torch.int32) - 1
    first_entry = is_new.nonzero()[:, 0]  # waits for the device
    vertex_keys = sorted_keys[first_entry]
    del keys, sorted_keys, is_new

    num_vertices = len(vertex_keys)
    first_entry = torch.cat([first_entry, first_entry.new_full((1,), len(place))])
    parts = (first_entry.diff() + _STRETCH - 1) // _STRETCH  # (M,)
    # The keys, so the vertices, of one kernel lie behind those of the other.
    ends = np.cumsum([len(sizes_hw) * kernel.num_keys for kernel in placed])
    ends_there = torch.from_numpy(ends).to(place.device, non_blocking=True)
    stops = torch.searchsorted(vertex_keys, ends_there)
    counts = torch.cat([parts.sum()[None], (parts > 1).sum()[None], stops])
    num_stretches, num_parted, *stop = counts.tolist()  # waits for the device, the last time
    stretches = _split(first_entry, parts, num_stretches, num_parted)
    starts = [0, *stop]
    after, before = _connect(vertex_keys, numbers, placed, starts)

    corners = torch.empty(len(place), dtype=torch.int32, device=place.device)
    corners.scatter_(0, place, number)
    corners = corners.view(-1, num_pixels)
    for kernel in placed:
        if len(kernel.step) % 2:  # its blur ends in the other buffer
            corners[kernel.columns] += num_vertices
    axis_starts = tuple(
        min(start for start, kernel in zip(starts, placed, strict=False) if axis < len(kernel.step))
        for axis in range(len(after))
    )
    lattice = _Lattice(
        corners,
        weights,
        (place % num_pixels).int(),
        weights.flatten()[place],
        *stretches,
        after,
        before,
        axis_starts,
    )
    _normalise(lattice, placed)
    torch.take(weights, place, out=lattice.entry_weight)
    return lattice


def _number_images(placed: list[GaussianKernel], num_images: int) -> Tensor:
    """What :func:`triton_kernels.embed` calls ``numbers``, of each kernel: (kernels, 10) int64."""
    numbers = np.zeros((len(placed), 10), dtype=np.int64)
    first = 0
    for row, kernel in zip(numbers, placed, strict=True):
        row[: len(kernel.step)] = kernel.step
        row[8:] = first - kernel.origin, kernel.num_keys
        first += num_images * kernel.num_keys
    return torch.from_numpy(numbers)


def _embed(
    pixels: Tensor,
    sizes_hw: Sequence[tuple[int, int]],
    placed: list[GaussianKernel],
    numbers: Tensor,
) -> tuple[Tensor, Tensor]:
    """Keys, int64, and weights, float32, of the corners of each pixel: (K, N)."""
    num_corners = sum(len(kernel.step) for kernel in placed)
    keys = torch.empty((num_corners, len(pixels)), dtype=torch.int64, device=pixels.device)
    weights = torch.empty((num_corners, len(pixels)), dtype=torch.float32, device=pixels.device)
    counts = np.array([height * width for height, width in sizes_hw])
    table = np.stack([counts.cumsum() - counts, counts, [width for _, width in sizes_hw]], axis=1)
    shapes = torch.from_numpy(table.astype(np.int32)).to(pixels.device, non_blocking=True)
    grid = (triton.cdiv(int(counts.max()), 128), len(sizes_hw))
    for row, kernel in zip(numbers, placed, strict=True):
        col, line, levels = kernel.axes
        axes = torch.from_numpy(np.concatenate([col, line, levels.ravel()]))
        axes = axes.to(pixels.device, non_blocking=True)
        _launch(
            kernels.embed, grid,
            pixels, shapes, axes, row, keys, weights, len(pixels), len(col), len(line),
            kernel.columns.start, len(kernel.step) - 1, 128, is_exact=True,
        )  # fmt: skip
    return keys, weights


def _split(
    first_entry: Tensor, parts: Tensor, num_stretches: int, num_parted: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split the entries of each vertex into stretches; the device is not waited for.

    Args:
        first_entry: (M+1,) int64, where the entries of each vertex begin, and where the last end.
        parts: (M,) int64, the number of stretches of each vertex.
        num_stretches: Their sum.
        num_parted: The number of vertices with several.

    Returns:
        ``first_entry``, ``target``, ``first_part`` and ``parted`` of :class:`_Lattice`.
    """
    num_vertices, device = len(parts), parts.device
    vertex = torch.arange(num_vertices, device=device)
    vertex = vertex.repeat_interleave(parts, output_size=num_stretches)
    part = torch.arange(num_stretches, device=device) - (parts.cumsum(0) - parts)[vertex]
    first = torch.cat([first_entry[vertex] + _STRETCH * part, first_entry[-1:]])
    is_part = parts[vertex] > 1
    place_of_part = 2 * num_vertices - 1 + is_part.cumsum(0)
    target = torch.where(is_part, place_of_part, vertex)
    wanted = torch.arange(1, num_parted + 1, device=device)
    parted = torch.searchsorted((parts > 1).cumsum(0), wanted)
    first_part = 2 * num_vertices + torch.cat([parted.new_zeros(1), parts[parted].cumsum(0)])
    return first.int(), target.int(), first_part.int(), parted.int()


def _connect(
    vertex_keys: Tensor, numbers: Tensor, placed: list[GaussianKernel], starts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """``after`` and ``before`` of :class:`_Lattice`; ``starts``: first vertices, then M."""
    shape = (max(len(kernel.step) for kernel in placed), len(vertex_keys))
    after, before = (
        torch.full(shape, -1, dtype=torch.int32, device=vertex_keys.device) for _ in range(2)
    )
    for row, kernel, start, stop in zip(numbers, placed, starts[:-1], starts[1:], strict=True):
        _launch(
            kernels.connect, (triton.cdiv(stop - start, 256), len(kernel.step)),
            vertex_keys, row, after, before, start, stop, len(vertex_keys),
            (stop - start).bit_length(), 256,
        )  # fmt: skip
    return after, before


def _normalise(lattice: _Lattice, placed: list[GaussianKernel]) -> None:
    """Fold the symmetric normalisation and ``compat`` into ``lattice.weights``."""
    num_pixels = lattice.weights.shape[1]
    ones = lattice.weights.new_ones((num_pixels, 1))
    table = lattice.weights.new_empty((lattice.num_rows, 1))
    _splat_and_blur(lattice, ones, table)
    for kernel in placed:
        _launch(
            kernels.normalise, (triton.cdiv(num_pixels, 256),),
            table, lattice.corners, lattice.weights, float(kernel.compat), num_pixels,
            kernel.columns.start, len(kernel.step), 256,
        )  # fmt: skip


def _infer(lattice: _Lattice | None, evidence: Tensor, num_labels: int, num_iters: int) -> Tensor:
    """Marginals (C, N) from ``evidence`` (groups, N, width), see :func:`triton_kernels.update`."""
    groups, num_pixels, width = evidence.shape
    marginals = evidence.new_empty((num_labels, num_pixels))
    if lattice is None or num_iters == 0:
        _update(None, evidence, evidence, marginals, is_last=True)
        return marginals
    values = torch.empty_like(evidence)
    logits = torch.empty_like(evidence) if groups > 1 else evidence
    table = evidence.new_empty((lattice.num_rows, width))
    _update(None, table, evidence, values)
    for index in range(num_iters):
        is_last = index == num_iters - 1
        for group in range(groups):
            _splat_and_blur(lattice, values[group], table)
            if groups > 1:
                _add_message(lattice, table, evidence[group], logits[group])
        _update(
            lattice if groups == 1 else None,
            table,
            logits,
            marginals if is_last else values,
            is_last=is_last,
        )
    return marginals


def _splat_and_blur(lattice: _Lattice, values: Tensor, table: Tensor) -> None:
    """Filter ``values`` (N, width) up to the slice, in ``table`` (rows, width)."""
    width = table.shape[1]
    channels = triton.next_power_of_2(width)
    block = max(128 // channels, 4)
    num_stretches = len(lattice.target)
    # Exact, since the lanes that add up a vertex would differ by which of their products is fused.
    _launch(
        kernels.sum_stretches, (triton.cdiv(num_stretches, block),),
        values, lattice.entry_pixel, lattice.entry_weight, lattice.first_entry, lattice.target,
        table, num_stretches, True, width, channels, block, is_exact=True,
    )  # fmt: skip
    if num_parted := len(lattice.parted):
        _launch(
            kernels.sum_stretches, (triton.cdiv(num_parted, block),),
            table, lattice.entry_pixel, lattice.entry_weight, lattice.first_part, lattice.parted,
            table, num_parted, False, width, channels, block,
        )  # fmt: skip
    num_vertices = lattice.num_vertices
    block = max(1024 // channels, 32)
    for axis, start in enumerate(lattice.starts):
        source = axis % 2 * num_vertices
        _launch(
            kernels.blur, (triton.cdiv(num_vertices - start, block),),
            table, lattice.after, lattice.before, axis, start, num_vertices,
            source, num_vertices - source, width, channels, block,
        )  # fmt: skip


def _add_message(lattice: _Lattice, table: Tensor, evidence: Tensor, logits: Tensor) -> None:
    num_pixels, width = evidence.shape
    channels = triton.next_power_of_2(width)
    block = max(512 // channels, 16)
    _launch(
        kernels.add_message, (triton.cdiv(num_pixels, block),),
        table, lattice.corners, lattice.weights, evidence, logits, num_pixels,
        len(lattice.corners), width, channels, block,
    )  # fmt: skip


def _update(
    lattice: _Lattice | None,
    table: Tensor,
    evidence: Tensor,
    out: Tensor,
    *,
    is_last: bool = False,
) -> None:
    """Softmax of ``evidence`` plus, with a lattice, the message in ``table``; into ``out``."""
    groups, num_pixels, width = evidence.shape
    channels = triton.next_power_of_2(groups * width)
    block = max(512 // channels, 16)
    corners, weights, num_corners = evidence, evidence, 0  # not read
    if lattice is not None:
        corners, weights, num_corners = lattice.corners, lattice.weights, len(lattice.corners)
    _launch(
        kernels.update, (triton.cdiv(num_pixels, block),),
        table, corners, weights, evidence, out, num_pixels, len(out), num_corners, is_last,
        groups, width, channels, block,
    )  # fmt: skip
