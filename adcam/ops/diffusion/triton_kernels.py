"""Sinkhorn and the steps of the diffusion in Triton, in one launch.

The transition is the affinity and two vectors, as in scaling.py. A block of rows of the affinity is
read once for each scaling of the rows and once a step; what it gives to each column is left to be
added up in a fixed order, so that two runs agree to the last bit.

As in common_neighbor/triton_kernels.py, a program draws a ticket that names its phase and place,
and waits until the phase before is done for its image. Phases of rows and of columns take turns:

    columns: sums and factors of the columns      rows: factors of the rows, what they give
    (num_iters times; rows once more in front if the sums of the affinity are not known)
    rows: pull, and parts of the push             columns: their sum, the restart
    (num_steps times)

Tensors are contiguous: affinity (B, N, N), vectors (B, N), maps (B, K, N). Every address is
computed in 64 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from adcam.ops import _launch
from adcam.ops.common_neighbor.triton_kernels import count_up, wait_until

_ROWS, _COLUMNS, _MAPS = 32, 64, 16


def count_counters(images: int) -> int:
    """How many zeros a call of :func:`diffuse` counts with."""
    return 1 + 2 * images


def diffuse(
    maps: torch.Tensor,
    affinity: torch.Tensor,
    *,
    num_iters: int,
    num_steps: int,
    alpha: float | None,
    sums: tuple[torch.Tensor, torch.Tensor] | None = None,
    counters: torch.Tensor | None = None,
) -> torch.Tensor:
    """``normalize="sinkhorn"`` of :func:`adcam.ops.diffusion.diffuse`, without gradient.

    Args:
        maps: (..., K, N) float32, float16 or bfloat16, on the device of ``affinity``.
        affinity: (..., N, N) on a CUDA device (under the interpreter, on the CPU); any factor on
            it leaves the result as it is.
        num_iters: Sinkhorn rounds, >= 1.
        num_steps: >= 0.
        alpha: Restart weight or ``None``.
        sums: Parts of the row and of the column sums of ``affinity``, each (B, blocks, N), to be
            summed over the blocks; ``None`` to compute them.
        counters: int32 zeros, :func:`count_counters` of them; ``None`` to make them.

    Returns:
        (..., K, N) float32.
    """
    num_maps, tokens = maps.shape[-2:]
    start = maps.detach().to(torch.float32).contiguous()
    if num_steps == 0 or maps.numel() == 0:
        return start
    affinity = affinity.detach().contiguous()
    images = affinity.numel() // tokens**2
    if counters is None:
        counters = affinity.new_zeros(count_counters(images), dtype=torch.int32)
    row_blocks, map_blocks = triton.cdiv(tokens, _ROWS), triton.cdiv(num_maps, _MAPS)
    column_blocks = triton.cdiv(tokens, _COLUMNS)
    vectors = start.new_empty((3, images, tokens))
    partial = start.new_empty((images, row_blocks, tokens))
    pulled = start.new_empty((images, num_maps, tokens))
    pushed = start.new_empty((images, row_blocks, num_maps, tokens))
    # Every step but the last writes to one of two places in turn.
    between = start.new_empty((2, images, num_maps, tokens))
    stepped = torch.empty_like(start)
    gives, receives = sums if sums is not None else (partial, partial)
    columns = max(triton.next_power_of_2(tokens), _COLUMNS)
    items = images * (
        num_iters * (row_blocks + column_blocks)
        + row_blocks * (sums is None)
        + num_steps * map_blocks * (row_blocks + column_blocks)
    )
    _launch.launch(
        walk, (items,), affinity, start, stepped, *vectors.unbind(), partial, gives, receives,
        pulled, pushed, between, counters, tokens, images, num_maps, gives.shape[1], num_iters,
        num_steps, 1.0 if alpha is None else float(alpha), sums is not None, _ROWS,
        max(1, min(_ROWS, 8192 // columns)), columns, _COLUMNS, _MAPS,
        num_warps=8 if columns > 256 else 4, num_stages=4,
    )  # fmt: skip
    return stepped


@triton.jit
def _inverse(total):
    """1 / total; below float32's smallest normal number the inverse would be infinite."""
    return 1 / tl.maximum(total, 1.1754943508222875e-38)


@triton.jit
def walk(
    affinity,
    start,
    stepped,
    own,
    rows,
    columns,
    partial,
    gives,
    receives,
    pulled,
    pushed,
    between,
    counters,
    tokens,
    images,
    num_maps,
    sum_blocks,
    num_iters,
    num_steps,
    alpha,
    has_sums: tl.constexpr,
    block_rows: tl.constexpr,
    group: tl.constexpr,
    whole: tl.constexpr,
    block_columns: tl.constexpr,
    block_maps: tl.constexpr,
):
    """Scale and step. ``counters`` holds the ticket, then for each image how many items of rows and
    of columns are done."""
    row_blocks = tl.cdiv(tokens, block_rows)
    column_blocks = tl.cdiv(tokens, block_columns)
    map_blocks = tl.cdiv(num_maps, block_maps)
    by_rows = images * row_blocks
    per_round = by_rows + images * column_blocks
    # Without its first phase, the numbers of the others stay the same.
    ticket = tl.atomic_add(counters, 1) + (by_rows if has_sums else 0)
    rows_done, columns_done = counters + 1, counters + 1 + images
    skipped = row_blocks if has_sums else 0
    balance = num_iters * per_round + by_rows
    if ticket < balance:
        index = ticket // per_round
        place = ticket % per_round
        if place < by_rows:
            image = (place // row_blocks).to(tl.int64)
            wait_until(columns_done + image, index * column_blocks)
            _balance_rows(
                affinity, own, rows, columns, partial, place % row_blocks, image, tokens,
                row_blocks, index, num_iters, block_rows, group, whole,
            )  # fmt: skip
            count_up(rows_done + image)
        else:
            place -= by_rows
            image = (place // column_blocks).to(tl.int64)
            wait_until(rows_done + image, (index + 1) * row_blocks - skipped)
            _balance_columns(
                own, rows, columns, partial, gives, receives, place % column_blocks, image,
                tokens, row_blocks, sum_blocks, index == 0, has_sums, block_columns,
            )  # fmt: skip
            count_up(columns_done + image)
    else:
        ticket -= balance
        step = ticket // (per_round * map_blocks)
        place = ticket % (per_round * map_blocks)
        rows_before = (num_iters + 1 + step * map_blocks) * row_blocks - skipped
        # The start, the two places between in turn, and at last the result.
        size = images.to(tl.int64) * num_maps * tokens
        source = start if step == 0 else between + ((step - 1) % 2) * size
        if place < by_rows * map_blocks:
            chunk = place // by_rows
            place = place % by_rows
            image = (place // row_blocks).to(tl.int64)
            wait_until(rows_done + image, rows_before)
            wait_until(columns_done + image, (num_iters + step * map_blocks) * column_blocks)
            _step_rows(
                affinity, own, rows, columns, source, pulled, pushed, place % row_blocks, chunk,
                image, tokens, num_maps, row_blocks, block_rows, block_columns, block_maps,
            )  # fmt: skip
            count_up(rows_done + image)
        else:
            place -= by_rows * map_blocks
            chunk = place // (images * column_blocks)
            place = place % (images * column_blocks)
            image = (place // column_blocks).to(tl.int64)
            wait_until(rows_done + image, rows_before + map_blocks * row_blocks)
            target = stepped if step == num_steps - 1 else between + (step % 2) * size
            _step_columns(
                own, rows, columns, source, start, pulled, pushed, target, place % column_blocks,
                chunk, image, tokens, num_maps, row_blocks, alpha, block_columns, block_maps,
            )  # fmt: skip
            count_up(columns_done + image)


@triton.jit
def _balance_rows(
    affinity,
    own,
    rows,
    columns,
    partial,
    block,
    image,
    tokens,
    row_blocks,
    round_index,
    num_iters,
    block_rows: tl.constexpr,
    group: tl.constexpr,
    whole: tl.constexpr,
):
    """Row factors from column factors, and what the rows then give to each column.

    In the first phase there are no factors yet: ``rows`` holds the plain sums. A row is in
    registers as a whole, so that it is read once.
    """
    column = tl.arange(0, whole)
    vector = image * tokens
    known = tl.where(round_index == 0, 0, tokens)  # how many factors there are
    factor = tl.load(columns + vector + column, mask=column < known, other=1)
    given = tl.zeros((group, whole), tl.float32)
    for first in range(0, block_rows, group):
        row = block * block_rows + first + tl.arange(0, group)
        inside = (row[:, None] < tokens) & (column[None, :] < tokens)
        place = vector * tokens + row.to(tl.int64)[:, None] * tokens + column[None, :]
        value = tl.load(affinity + place, mask=inside, other=0).to(tl.float32)
        total = tl.sum(value * factor[None, :], axis=1)
        extra = tl.load(own + vector + row, mask=row < known, other=0)
        extra *= tl.load(columns + vector + row, mask=row < known, other=0)
        inverse = _inverse(total + extra)
        tl.store(rows + vector + row, tl.where(round_index == 0, total, inverse), mask=row < tokens)
        given += value * tl.where(round_index == 0, 1.0, inverse)[:, None]
    if round_index < num_iters:
        out = partial + (image * row_blocks + block) * tokens + column
        tl.store(out, tl.sum(given, axis=0), mask=column < tokens)


@triton.jit
def _add_parts(part, count, tokens, mask, block: tl.constexpr):
    """Sum of ``count`` vectors that lie ``tokens`` apart."""
    total = tl.zeros((block,), tl.float32)
    for _ in range(count):
        total += tl.load(part, mask=mask, other=0)
        part += tokens
    return total


@triton.jit
def _balance_columns(
    own,
    rows,
    columns,
    partial,
    gives,
    receives,
    block,
    image,
    tokens,
    row_blocks,
    sum_blocks,
    is_first,
    has_sums: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Column factors. The first phase finds the tokens without neighbours and writes ``own``."""
    column = block * block_columns + tl.arange(0, block_columns)
    inside = column < tokens
    vector = image * tokens + column
    part = partial + image * row_blocks * tokens + column
    if is_first:
        if has_sums:
            place = image * sum_blocks * tokens + column
            gave = _add_parts(gives + place, sum_blocks, tokens, inside, block_columns)
            total = _add_parts(receives + place, sum_blocks, tokens, inside, block_columns)
        else:
            gave = tl.load(rows + vector, mask=inside, other=1)  # the sums, this once
            total = _add_parts(part, row_blocks, tokens, inside, block_columns)
        remaining = gave + total
        dead = (gave == 0) | (total == 0)
        extra = tl.where(dead, tl.where(remaining > 0, remaining, 1), 0)
        tl.store(own + vector, extra, mask=inside)
        tl.store(columns + vector, _inverse(total + extra), mask=inside)
    else:
        total = _add_parts(part, row_blocks, tokens, inside, block_columns)
        extra = tl.load(own + vector, mask=inside, other=0)
        extra *= tl.load(rows + vector, mask=inside, other=1)
        tl.store(columns + vector, _inverse(total + extra), mask=inside)


@triton.jit
def _step_rows(
    affinity,
    own,
    rows,
    columns,
    maps,
    pulled,
    pushed,
    block,
    chunk,
    image,
    tokens,
    num_maps,
    row_blocks,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_maps: tl.constexpr,
):
    """A block of rows of the affinity times the maps, and what it hands to each column.

    ``pulled`` (B, K, N), ``pushed`` (B, row blocks, K, N).
    """
    row = block * block_rows + tl.arange(0, block_rows)
    column = tl.arange(0, block_columns)
    index = chunk * block_maps + tl.arange(0, block_maps)
    vector = image * tokens
    place = vector * tokens + row.to(tl.int64)[:, None] * tokens + column[None, :]
    start = maps + image * num_maps * tokens + index.to(tl.int64)[:, None] * tokens  # (maps, 1)
    mask = (index[:, None] < num_maps) & (row[None, :] < tokens)
    held = tl.load(start + row[None, :], mask=mask, other=0)  # (maps, rows)
    row_factor = tl.load(rows + vector + row, mask=row < tokens, other=0)
    handed = held * row_factor[None, :]
    part = (image * row_blocks + block) * num_maps + index.to(tl.int64)[:, None]
    out = pushed + part * tokens + column[None, :]
    total = tl.zeros((block_maps, block_rows), tl.float32)
    for first in range(0, tokens, block_columns):
        here = first + column < tokens
        inside = (row[:, None] < tokens) & here[None, :]
        value = tl.load(affinity + place + first, mask=inside, other=0).to(tl.float32)
        factor = tl.load(columns + vector + first + column, mask=here, other=0)
        there = (index[:, None] < num_maps) & here[None, :]
        scaled = tl.load(start + first + column[None, :], mask=there, other=0) * factor[None, :]
        total = tl.dot(scaled, tl.trans(value), total, input_precision="tf32x3")
        given = tl.dot(handed, value, input_precision="tf32x3")
        tl.store(out + first, given, mask=there)
    extra = tl.load(own + vector + row, mask=row < tokens, other=0)
    own_factor = tl.load(columns + vector + row, mask=row < tokens, other=0)
    total += (extra * own_factor)[None, :] * held
    out = pulled + image * num_maps * tokens + index.to(tl.int64)[:, None] * tokens + row[None, :]
    tl.store(out, row_factor[None, :] * total, mask=mask)


@triton.jit
def _step_columns(
    own,
    rows,
    columns,
    maps,
    initial,
    pulled,
    pushed,
    stepped,
    block,
    chunk,
    image,
    tokens,
    num_maps,
    row_blocks,
    alpha,
    block_columns: tl.constexpr,
    block_maps: tl.constexpr,
):
    """The mean of pull and push, with restart."""
    column = block * block_columns + tl.arange(0, block_columns)
    index = chunk * block_maps + tl.arange(0, block_maps)
    here = column < tokens
    inside = (index[:, None] < num_maps) & here[None, :]
    within = index.to(tl.int64)[:, None] * tokens + column[None, :]
    place = image * num_maps * tokens + within
    part = pushed + image * row_blocks * num_maps * tokens + within
    total = tl.zeros((block_maps, block_columns), tl.float32)
    for _ in range(row_blocks):
        total += tl.load(part, mask=inside, other=0)
        part += num_maps * tokens
    vector = image * tokens + column
    extra = tl.load(own + vector, mask=here, other=0)
    extra *= tl.load(rows + vector, mask=here, other=0)
    total += extra[None, :] * tl.load(maps + place, mask=inside, other=0)
    total *= tl.load(columns + vector, mask=here, other=0)[None, :]
    value = (total + tl.load(pulled + place, mask=inside, other=0)) / 2
    value = alpha * value + (1 - alpha) * tl.load(initial + place, mask=inside, other=0)
    tl.store(stepped + place, value, mask=inside)
