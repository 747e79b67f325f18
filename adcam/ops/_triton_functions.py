"""Functions that the Triton kernels of several operations call, and the sizes they share.

Three operations compute in phases, and a phase needs what the one before wrote for the same image:
common_neighbor, diffusion and two_hop_walk. Each runs all of its phases in one launch. A program
draws a ticket, a number that names its phase and its place there, and waits until the phase before
is done. Tickets are handed out in the order of the phases, so whatever a program waits for was
begun before it, and is finished however few programs run at a time (Merrill and Garland,
"Single-pass Parallel Prefix Scan with Decoupled Look-back", 2016).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

COLUMNS = 64
"""Columns that a program works on where a phase goes by columns."""

PARTS = 32
"""Parts of a sum that are loaded at a time."""

MAPS = 4
"""The most maps that a program moves at once: a kernel names each of them."""


def count_images(matrix: torch.Tensor) -> int:
    """The number of matrices in (..., N, N)."""
    return matrix.numel() // matrix.shape[-1] ** 2


@triton.jit
def wait_until(counter, target):
    """Wait until other programs have counted to ``target``, and see what they wrote."""
    while tl.atomic_add(counter, 0) < target:
        pass
    tl.debug_barrier()


@triton.jit
def count_up(counter):
    """Let other programs see what this one wrote."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1)


@triton.jit
def add_parts(part, count, tokens, mask, block: tl.constexpr, parts: tl.constexpr):
    """Sum of ``count`` vectors that lie ``tokens`` apart, ``parts`` of which are loaded at a time.

    ``part`` (block) points into the first vector.
    """
    index = tl.arange(0, parts)
    total = tl.zeros((parts, block), tl.float32)
    for first in range(0, count, parts):
        here = (first + index < count)[:, None] & mask[None, :]
        place = part[None, :] + (first + index).to(tl.int64)[:, None] * tokens
        total += tl.load(place, mask=here, other=0)
    return tl.sum(total, axis=0)


@triton.jit
def load_rows(matrix, row, end, column, image, tokens):
    """Whole rows before ``end`` of an image's (N, N), as they are stored."""
    inside = (row < end)[:, None] & (column < tokens)[None, :]
    place = image * tokens * tokens + row.to(tl.int64)[:, None] * tokens + column[None, :]
    return tl.load(matrix + place, mask=inside, other=0)


@triton.jit
def inverse(total):
    """1 / total; below float32's smallest normal number the inverse would be infinite."""
    return 1 / tl.maximum(total, 1.1754943508222875e-38)


@triton.jit
def store_maps(out, map0, map1, map2, map3, left, patch, tokens, chunk: tl.constexpr):
    """Write up to four maps from ``out`` on, no more than ``chunk`` and ``left`` of them."""
    tl.store(out + patch, map0, mask=patch < tokens)
    if chunk > 1:
        tl.store(out + tokens + patch, map1, mask=patch < tl.where(left > 1, tokens, 0))
    if chunk > 2:
        tl.store(out + 2 * tokens + patch, map2, mask=patch < tl.where(left > 2, tokens, 0))
    if chunk > 3:
        tl.store(out + 3 * tokens + patch, map3, mask=patch < tl.where(left > 3, tokens, 0))


@triton.jit
def load_map(start, index: tl.constexpr, left, patch, tokens):
    """One of the ``left`` maps from ``start`` on; zeros where there is no such map."""
    end = tl.where(left > index, tokens, 0)
    return tl.load(start + index * tokens + patch, mask=patch < end, other=0)
