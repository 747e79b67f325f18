"""Filling artefact patches in Triton: one program a map, round by round, without the host."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from adcam.ops import _launch
from adcam.ops.common_neighbor.triton_kernels import Agreement


def fill(maps: torch.Tensor, agreement: Agreement, grid_hw: tuple[int, int]) -> torch.Tensor:
    """As :func:`adcam.ops.artifact_patches.reference.fill_patches`, without gradient.

    Args:
        maps: (B, K, N) float32.
        agreement: Which patches are artefacts.
        grid_hw: Height and width of the patch grid.
    """
    images, num_maps, tokens = maps.shape
    filled = torch.empty_like(maps)
    if maps.numel():
        known = maps.new_empty(maps.shape, dtype=torch.int32)
        _launch.launch(
            fill_map, (num_maps, images), maps, filled, known, agreement.values,
            agreement.median, tokens, *grid_hw, agreement.ratio,
            _launch.pad_row(tokens), num_warps=4, num_stages=1,
        )  # fmt: skip
    return filled


@triton.jit(do_not_specialize=["tokens", "height", "width"])
def fill_map(
    maps,
    filled,
    known,
    values,
    median,
    tokens,
    height,
    width,
    ratio,
    columns: tl.constexpr,
):
    """Mean of the known patches around those that are missing. Grid (K, B).

    Threads read what others of their program wrote, so a round begins and ends with a barrier.
    """
    image = tl.program_id(1).to(tl.int64)
    base = (image * tl.num_programs(0) + tl.program_id(0)) * tokens
    patch = tl.arange(0, columns)
    inside = patch < tokens
    x, y = patch % width, patch // width
    limit = tl.load(median + image) * ratio
    agreement = tl.load(values + image * tokens + patch, mask=inside, other=3.0)
    is_known = tl.where(agreement < limit, 0, 1)
    value = tl.load(maps + base + patch, mask=inside, other=0)
    tl.store(filled + base + patch, value, mask=inside)
    tl.store(known + base + patch, is_known, mask=inside)
    left = tl.sum(1 - is_known, axis=0)
    rounds = tl.maximum(height, width)  # fill any grid
    while left * rounds > 0:
        tl.debug_barrier()
        count = tl.zeros((columns,), tl.int32)
        total = tl.zeros((columns,), tl.float32)
        for index in tl.static_range(9):
            down, right = index // 3 - 1, index % 3 - 1
            if index != 4:
                there = inside & (x + right >= 0) & (x + right < width)
                there = there & (y + down >= 0) & (y + down < height)
                place = base + patch + down * width + right
                near = tl.load(known + place, mask=there, other=0)
                count += near
                near_value = tl.load(filled + place, mask=there, other=0)
                total += tl.where(near > 0, near_value, 0.0)
        tl.debug_barrier()
        reached = (is_known == 0) & (count > 0)
        value = tl.where(reached, total / tl.maximum(count, 1).to(tl.float32), value)
        is_known = tl.where(reached, 1, is_known)
        tl.store(filled + base + patch, value, mask=inside)
        tl.store(known + base + patch, is_known, mask=inside)
        left = tl.sum(1 - is_known, axis=0)
        rounds -= 1
