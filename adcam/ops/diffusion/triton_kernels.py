"""Sinkhorn and the steps of the diffusion in Triton.

The transition is the affinity and two vectors, as in scaling.py. One launch reads the affinity
once: a program takes a block of rows, sums along them, scales them, and at once sums the scaled
rows along the columns, while they are in the cache. Sums over row blocks are left to a small
second kernel, in a fixed order, so that two runs agree to the last bit.

Tensors are contiguous: affinity (B, N, N), vectors (B, N), maps (B, K, N). Every address is
computed in 64 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_ROWS, _COLUMNS, _MAPS = 32, 64, 16


def diffuse(
    maps: torch.Tensor,
    affinity: torch.Tensor,
    *,
    num_iters: int,
    num_steps: int,
    alpha: float | None,
) -> torch.Tensor:
    """``normalize="sinkhorn"`` of :func:`adcam.ops.diffusion.diffuse`, without gradient.

    Args:
        maps: (..., K, N) float32, float16 or bfloat16, on the device of ``affinity``.
        affinity: (..., N, N) on a CUDA device (under the interpreter, on the CPU).
        num_iters: Sinkhorn rounds, >= 1.
        num_steps: >= 0.
        alpha: Restart weight or ``None``.

    Returns:
        (..., K, N) float32.
    """
    num_maps, tokens = maps.shape[-2:]
    start = maps.detach().to(torch.float32).contiguous()
    if num_steps == 0 or maps.numel() == 0:
        return start
    affinity = affinity.detach().contiguous()
    images = affinity.numel() // tokens**2
    row_blocks = triton.cdiv(tokens, _ROWS)
    column_blocks = triton.cdiv(tokens, 128)
    rows, columns, own = start.new_empty((3, images, tokens)).unbind()
    partial = start.new_empty((images, row_blocks, tokens))
    with torch.cuda.device_of(affinity):  # Triton launches on the current device
        for index in range(num_iters + 1):
            balance_rows[(row_blocks, images)](
                affinity, own, rows, columns, partial, tokens,
                index == 0, index == num_iters, _ROWS, _COLUMNS, enable_fp_fusion=True,
            )  # fmt: skip
            if index < num_iters:
                balance_columns[(column_blocks, images)](
                    own, rows, columns, partial, tokens, row_blocks, index == 0, 128,
                    enable_fp_fusion=True,
                )  # fmt: skip
        map_blocks = triton.cdiv(num_maps, _MAPS)
        pulled = start.new_empty((images, num_maps, tokens))
        pushed = start.new_empty((images, row_blocks, num_maps, tokens))
        current = start
        for _ in range(num_steps):
            step_rows[(row_blocks, map_blocks, images)](
                affinity, own, rows, columns, current, pulled, pushed, tokens, num_maps,
                _ROWS, _COLUMNS, _MAPS, enable_fp_fusion=True,
            )  # fmt: skip
            stepped = torch.empty_like(start)
            step_columns[(column_blocks, num_maps, images)](
                own, rows, columns, current, start, pulled, pushed, stepped, tokens, row_blocks,
                1.0 if alpha is None else float(alpha), 128, enable_fp_fusion=True,
            )  # fmt: skip
            current = stepped
    return current


@triton.jit
def _inverse(total):
    """1 / total; below float32's smallest normal number the inverse would be infinite."""
    return 1 / tl.maximum(total, 1.1754943508222875e-38)


@triton.jit
def balance_rows(
    affinity,
    own,
    rows,
    columns,
    partial,
    tokens,
    is_first: tl.constexpr,
    is_last: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Row factors from column factors, and what the rows then give to each column.

    Grid (row blocks, B). ``rows`` (B, N) is written; ``partial`` (B, row blocks, N) too unless
    this is the last round. In the first launch there are no factors yet: ``rows`` holds the plain
    sums, and ``own`` and ``columns`` are not read.
    """
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = block * block_rows + tl.arange(0, block_rows)
    column = tl.arange(0, block_columns)
    vector = image * tokens
    place = vector * tokens + row.to(tl.int64)[:, None] * tokens + column[None, :]
    total = tl.zeros((block_rows,), tl.float32)
    for first in range(0, tokens, block_columns):
        inside = (row[:, None] < tokens) & (first + column[None, :] < tokens)
        value = tl.load(affinity + place + first, mask=inside, other=0).to(tl.float32)
        if not is_first:
            factor = columns + vector + first + column
            value *= tl.load(factor, mask=first + column < tokens, other=0)[None, :]
        total += tl.sum(value, axis=1)
    if is_first:
        result = total
        scale = tl.full((block_rows,), 1, tl.float32)
    else:
        extra = tl.load(own + vector + row, mask=row < tokens, other=0)
        extra *= tl.load(columns + vector + row, mask=row < tokens, other=0)
        result = _inverse(total + extra)
        scale = result
    tl.store(rows + vector + row, result, mask=row < tokens)
    if not is_last:
        out = partial + (image * tl.num_programs(0) + block) * tokens + column
        for first in range(0, tokens, block_columns):
            inside = (row[:, None] < tokens) & (first + column[None, :] < tokens)
            value = tl.load(affinity + place + first, mask=inside, other=0).to(tl.float32)
            given = tl.sum(value * scale[:, None], axis=0)
            tl.store(out + first, given, mask=first + column < tokens)


@triton.jit
def balance_columns(
    own, rows, columns, partial, tokens, row_blocks, is_first: tl.constexpr, block: tl.constexpr
):
    """Column factors from the parts of the row blocks. Grid (N / block, B).

    The first launch finds the tokens without neighbours and writes ``own`` (B, N).
    """
    column = tl.program_id(0) * block + tl.arange(0, block)
    inside = column < tokens
    image = tl.program_id(1).to(tl.int64)
    vector = image * tokens + column
    part = partial + image * row_blocks * tokens + column
    total = tl.zeros((block,), tl.float32)
    for _ in range(row_blocks):
        total += tl.load(part, mask=inside, other=0)
        part += tokens
    row_factor = tl.load(rows + vector, mask=inside, other=1)
    if is_first:
        gives = row_factor  # the sums, this once
        remaining = gives + total
        dead = (gives == 0) | (total == 0)
        extra = tl.where(dead, tl.where(remaining > 0, remaining, 1), 0)
        tl.store(own + vector, extra, mask=inside)
        total += extra
    else:
        total += tl.load(own + vector, mask=inside, other=0) * row_factor
    tl.store(columns + vector, _inverse(total), mask=inside)


@triton.jit
def step_rows(
    affinity,
    own,
    rows,
    columns,
    maps,
    pulled,
    pushed,
    tokens,
    num_maps,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_maps: tl.constexpr,
):
    """A block of rows of the affinity times the maps, and what it hands to each column.

    Grid (row blocks, K / block_maps, B). ``pulled`` (B, K, N), ``pushed`` (B, row blocks, K, N).
    """
    block, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    row = block * block_rows + tl.arange(0, block_rows)
    column = tl.arange(0, block_columns)
    index = tl.program_id(1) * block_maps + tl.arange(0, block_maps)
    vector = image * tokens
    place = vector * tokens + row.to(tl.int64)[:, None] * tokens + column[None, :]
    start = maps + image * num_maps * tokens + index.to(tl.int64)[:, None] * tokens  # (maps, 1)
    total = tl.zeros((block_maps, block_rows), tl.float32)
    for first in range(0, tokens, block_columns):
        here = first + column < tokens
        inside = (row[:, None] < tokens) & here[None, :]
        value = tl.load(affinity + place + first, mask=inside, other=0).to(tl.float32)
        factor = tl.load(columns + vector + first + column, mask=here, other=0)
        there = (index[:, None] < num_maps) & here[None, :]
        scaled = tl.load(start + first + column[None, :], mask=there, other=0) * factor[None, :]
        total = tl.dot(scaled, tl.trans(value), total, input_precision="tf32x3")
    mask = (index[:, None] < num_maps) & (row[None, :] < tokens)
    scaled = tl.load(start + row[None, :], mask=mask, other=0)  # (maps, rows)
    row_factor = tl.load(rows + vector + row, mask=row < tokens, other=0)
    extra = tl.load(own + vector + row, mask=row < tokens, other=0)
    extra *= tl.load(columns + vector + row, mask=row < tokens, other=0)
    out = pulled + image * num_maps * tokens + index.to(tl.int64)[:, None] * tokens + row[None, :]
    tl.store(out, row_factor[None, :] * (total + extra[None, :] * scaled), mask=mask)
    scaled *= row_factor[None, :]
    part = (image * tl.num_programs(0) + block) * num_maps + index.to(tl.int64)[:, None]
    out = pushed + part * tokens + column[None, :]
    for first in range(0, tokens, block_columns):
        here = first + column < tokens
        inside = (row[:, None] < tokens) & here[None, :]
        value = tl.load(affinity + place + first, mask=inside, other=0).to(tl.float32)
        given = tl.dot(scaled, value, input_precision="tf32x3")
        tl.store(out + first, given, mask=(index[:, None] < num_maps) & here[None, :])


@triton.jit
def step_columns(
    own,
    rows,
    columns,
    maps,
    initial,
    pulled,
    pushed,
    stepped,
    tokens,
    row_blocks,
    alpha,
    block: tl.constexpr,
):
    """The mean of pull and push, with restart. Grid (N / block, K, B); maps (B, K, N)."""
    column = tl.program_id(0) * block + tl.arange(0, block)
    inside = column < tokens
    index, image = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    num_maps = tl.num_programs(1)
    vector = image * tokens + column
    place = (image * num_maps + index) * tokens + column
    part = pushed + (image * row_blocks * num_maps + index) * tokens + column
    total = tl.zeros((block,), tl.float32)
    for _ in range(row_blocks):
        total += tl.load(part, mask=inside, other=0)
        part += num_maps.to(tl.int64) * tokens
    extra = tl.load(own + vector, mask=inside, other=0)
    extra *= tl.load(rows + vector, mask=inside, other=0)
    total += extra * tl.load(maps + place, mask=inside, other=0)
    total *= tl.load(columns + vector, mask=inside, other=0)
    value = (total + tl.load(pulled + place, mask=inside, other=0)) / 2
    value = alpha * value + (1 - alpha) * tl.load(initial + place, mask=inside, other=0)
    tl.store(stepped + place, value, mask=inside)
