"""Artefact patches in plain torch, on any device: the specification.

Only the similarities of patches that touch are needed, which are 8 N of the N² pairs, so four
passes over the attention cost less than one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from adcam.ops.common_neighbor.reference import features_of_rows, normalize_rows

_OFFSETS = ((0, 1), (1, -1), (1, 0), (1, 1))
"""One of each pair of opposite neighbours, (down, right)."""


def surroundings_similarity(
    attn: torch.Tensor, grid_hw: tuple[int, int], similarity: str
) -> torch.Tensor:
    """s_i = median of S_ij over the patches j that touch i. (..., N, N) -> (..., N)."""
    features = features_of_rows(normalize_rows(attn), similarity).unflatten(-2, grid_hw)
    norm = torch.linalg.vector_norm(features, dim=-1)  # (..., h, w)
    norm = torch.where(norm > 0, norm, 1)
    around = [norm.new_full(norm.shape, torch.nan) for _ in range(8)]
    for number, ((top, left), (bottom, right)) in enumerate(_pairs(grid_hw)):
        product = torch.linalg.vecdot(features[..., top, left, :], features[..., bottom, right, :])
        norms = norm[..., top, left] * norm[..., bottom, right]
        value = (product / norms).clamp(max=1)
        around[2 * number][..., top, left] = value
        around[2 * number + 1][..., bottom, right] = value
    middle = torch.stack(around, dim=-1).nanmedian(dim=-1).values
    return middle.nan_to_num(nan=1.0).flatten(-2)


def fill_patches(
    maps: torch.Tensor, missing: torch.Tensor, grid_hw: tuple[int, int]
) -> torch.Tensor:
    """Missing patches become the mean of the known patches around them. (..., K, N) -> same."""
    grid = maps.unflatten(-1, grid_hw)
    known = ~missing.unflatten(-1, grid_hw)[..., None, :, :]  # (..., 1, h, w)
    # Every round fills the missing patches that touch a known one: max(h, w) rounds fill any grid.
    for _ in range(max(grid_hw)):
        if bool(known.all()):
            break
        count = _sum_around(known.to(grid.dtype))
        mean = _sum_around(torch.where(known, grid, 0)) / count.clamp(min=1)
        reached = ~known & (count > 0)
        grid = torch.where(reached, mean, grid)
        known = known | reached
    return grid.flatten(-2)


def _sum_around(grid: torch.Tensor) -> torch.Tensor:
    """Sum of the eight patches around each one; outside there is nothing. (..., h, w)."""
    padded = F.pad(grid, (1, 1, 1, 1))
    height, width = grid.shape[-2:]
    around = [
        padded[..., down : down + height, right : right + width]
        for down in range(3)
        for right in range(3)
        if (down, right) != (1, 1)
    ]
    return torch.stack(around).sum(dim=0)


def _pairs(
    grid_hw: tuple[int, int],
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """The patches that have a neighbour at an offset, and those neighbours."""
    height, width = grid_hw
    for down, right in _OFFSETS:
        here = (slice(0, max(height - down, 0)), slice(max(-right, 0), width - max(right, 0)))
        there = (slice(down, height), slice(max(right, 0), width + min(right, 0)))
        if abs(right) < width:
            yield here, there
