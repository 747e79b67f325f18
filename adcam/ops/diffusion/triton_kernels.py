"""Sinkhorn and the steps of the diffusion in Triton, in one launch.

The transition is the affinity and two vectors, as in scaling.py. A block of rows of the affinity is
read once for each scaling of the rows but the last, and once a step; what it gives to each column
is left to be added up in a fixed order, so that two runs agree to the last bit.

Programs take their phase by ticket and wait for the phase before: see ``_triton_functions.py``.
Phases of rows and of columns take turns:

    rows: their factors, and what they give       columns: their sums and factors
    (num_iters times; not the first rows if the sums of the affinity are known)
    rows: pull, and parts of the push             columns: their sum, the restart
    (num_steps times; the last factors of the rows come out of the first of them)

Tensors are contiguous: affinity (B, N, N), vectors (B, N), maps (B, K, N). Every address is
computed in 64 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from adcam.ops import _launch
from adcam.ops._triton_functions import (
    COLUMNS,
    MAPS,
    PARTS,
    add_parts,
    count_images,
    count_up,
    inverse,
    load_map,
    load_rows,
    store_maps,
    wait_until,
)


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
    images = count_images(affinity)
    if counters is None:
        counters = affinity.new_zeros(count_counters(images), dtype=torch.int32)
    tile = _launch.find_row_tile("walk", tokens, affinity.device)
    chunk = min(triton.next_power_of_2(num_maps), MAPS)
    row_blocks, chunks = triton.cdiv(tokens, tile.block_rows), triton.cdiv(num_maps, chunk)
    column_blocks = triton.cdiv(tokens, COLUMNS)
    # Three tensors and not parts of one: a part may begin at a multiple of 16 bytes or not, and
    # kernels would be compiled for both.
    own, rows, columns = (start.new_empty((images, tokens)) for _ in range(3))
    partial = start.new_empty((images, row_blocks, tokens))
    pulled = start.new_empty((images, num_maps, tokens))
    pushed = start.new_empty((images, row_blocks, num_maps, tokens))
    # The steps before the last write to two places alternately.
    between = start.new_empty((2, images, num_maps, tokens))
    stepped = torch.empty_like(start)
    gives, receives = sums if sums is not None else (partial, partial)
    items = images * (
        num_iters * (row_blocks + column_blocks)
        - row_blocks * (sums is not None)
        + num_steps * (chunks * row_blocks + num_maps * column_blocks)
    )
    _launch.launch(
        walk, (items,), affinity, start, stepped, own, rows, columns, partial, gives, receives,
        pulled, pushed, between, counters, tokens, images, num_maps, gives.shape[1], num_iters,
        num_steps, 1.0 if alpha is None else float(alpha), sums is not None, chunk,
        tile.block_rows, tile.group, tile.columns, COLUMNS, PARTS, num_warps=tile.num_warps,
        num_stages=1,
    )  # fmt: skip
    return stepped


# Kernels are not compiled anew for numbers that are in no address: each takes seconds to compile.
@triton.jit(
    do_not_specialize=["images", "num_maps", "sum_blocks", "num_iters", "num_steps"],
)
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
    chunk: tl.constexpr,
    block_rows: tl.constexpr,
    group: tl.constexpr,
    whole: tl.constexpr,
    block_columns: tl.constexpr,
    parts: tl.constexpr,
):
    """Scale and step. ``counters`` holds the ticket, then for each image how many items of rows and
    of columns are done. ``chunk``, 1 to 4, is how many maps an item of rows moves at once."""
    row_blocks = tl.cdiv(tokens, block_rows)
    column_blocks = tl.cdiv(tokens, block_columns)
    chunks = tl.cdiv(num_maps, chunk)
    by_rows = images * row_blocks
    per_round = by_rows + images * column_blocks
    # Without its first phase, the numbers of the others stay the same.
    ticket = tl.atomic_add(counters, 1) + (by_rows if has_sums else 0)
    rows_done, columns_done = counters + 1, counters + 1 + images
    skipped = row_blocks if has_sums else 0
    if ticket < num_iters * per_round:
        index = ticket // per_round
        place = ticket % per_round
        if place < by_rows:
            image = (place // row_blocks).to(tl.int64)
            wait_until(columns_done + image, index * column_blocks)
            _balance_rows(
                affinity, own, rows, columns, partial, place % row_blocks, image, tokens,
                row_blocks, index, block_rows, group, whole,
            )  # fmt: skip
            count_up(rows_done + image)
        else:
            place -= by_rows
            image = (place // column_blocks).to(tl.int64)
            wait_until(rows_done + image, (index + 1) * row_blocks - skipped)
            _balance_columns(
                own, rows, columns, partial, gives, receives, place % column_blocks, image,
                tokens, row_blocks, sum_blocks, index == 0, has_sums, block_columns, parts,
            )  # fmt: skip
            count_up(columns_done + image)
    else:
        ticket -= num_iters * per_round
        per_step = by_rows * chunks + images * column_blocks * num_maps
        step = ticket // per_step
        place = ticket % per_step
        rows_before = (num_iters + step * chunks) * row_blocks - skipped
        # The start, the two places between in turn, and at last the result.
        size = images.to(tl.int64) * num_maps * tokens
        source = start if step == 0 else between + ((step - 1) % 2) * size
        if place < by_rows * chunks:
            first_map = place // by_rows * chunk
            place = place % by_rows
            image = (place // row_blocks).to(tl.int64)
            columns_before = (num_iters + step * num_maps) * column_blocks
            wait_until(columns_done + image, columns_before)
            _step_rows(
                affinity, own, rows, columns, source, pulled, pushed, place % row_blocks,
                first_map, image, tokens, num_maps, row_blocks, step == 0, chunk, block_rows,
                group, whole,
            )  # fmt: skip
            count_up(rows_done + image)
        else:
            place -= by_rows * chunks
            index = place // (images * column_blocks)
            place = place % (images * column_blocks)
            image = (place // column_blocks).to(tl.int64)
            wait_until(rows_done + image, rows_before + chunks * row_blocks)
            target = stepped if step == num_steps - 1 else between + (step % 2) * size
            _step_columns(
                own, rows, columns, source, start, pulled, pushed, target, place % column_blocks,
                index, image, tokens, num_maps, row_blocks, alpha, block_columns, parts,
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
    block_rows: tl.constexpr,
    group: tl.constexpr,
    whole: tl.constexpr,
):
    """Row factors from column factors, and what the rows then give to each column.

    In the first phase there are no factors yet, and ``rows`` holds the plain sums. Whole rows are
    in registers, so that each is read once, and the next rows are loaded meanwhile.
    """
    column = tl.arange(0, whole)
    vector = image * tokens
    known = tl.where(round_index == 0, 0, tokens)  # how many factors there are
    factor = tl.load(columns + vector + column, mask=column < known, other=1)
    given = tl.zeros((whole,), tl.float32)
    row = block * block_rows + tl.arange(0, group)
    end = tl.minimum((block + 1) * block_rows, tokens)
    next_rows = load_rows(affinity, row, end, column, image, tokens)
    for _ in range(0, block_rows, group):
        value = next_rows.to(tl.float32)
        next_rows = load_rows(affinity, row + group, end, column, image, tokens)
        total = tl.sum(value * factor[None, :], axis=1)
        extra = tl.load(own + vector + row, mask=row < known, other=0)
        extra *= tl.load(columns + vector + row, mask=row < known, other=0)
        scale = inverse(total + extra)
        tl.store(rows + vector + row, tl.where(round_index == 0, total, scale), mask=row < end)
        given += tl.sum(value * tl.where(round_index == 0, 1.0, scale)[:, None], axis=0)
        row += group
    out = partial + (image * row_blocks + block) * tokens + column
    tl.store(out, given, mask=column < tokens)


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
    parts: tl.constexpr,
):
    """Column factors. The first phase finds the tokens without neighbours and writes ``own``."""
    column = block * block_columns + tl.arange(0, block_columns)
    inside = column < tokens
    vector = image * tokens + column
    part = partial + image * row_blocks * tokens + column
    if is_first:
        if has_sums:
            place = image * sum_blocks * tokens + column
            gave = add_parts(gives + place, sum_blocks, tokens, inside, block_columns, parts)
            total = add_parts(receives + place, sum_blocks, tokens, inside, block_columns, parts)
        else:
            gave = tl.load(rows + vector, mask=inside, other=1)  # the sums, this once
            total = add_parts(part, row_blocks, tokens, inside, block_columns, parts)
        remaining = gave + total
        dead = (gave == 0) | (total == 0)
        extra = tl.where(dead, tl.where(remaining > 0, remaining, 1), 0)
        tl.store(own + vector, extra, mask=inside)
        tl.store(columns + vector, inverse(total + extra), mask=inside)
    else:
        total = add_parts(part, row_blocks, tokens, inside, block_columns, parts)
        extra = tl.load(own + vector, mask=inside, other=0)
        extra *= tl.load(rows + vector, mask=inside, other=1)
        tl.store(columns + vector, inverse(total + extra), mask=inside)


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
    first_map,
    image,
    tokens,
    num_maps,
    row_blocks,
    is_first,
    chunk: tl.constexpr,
    block_rows: tl.constexpr,
    group: tl.constexpr,
    whole: tl.constexpr,
):
    """A block of rows times up to four maps, and what the rows hand to each column.

    The first step also finds the last factors of the rows, since it sums whole rows anyway.
    ``pulled`` (B, K, N), ``pushed`` (B, row blocks, K, N).
    """
    column = tl.arange(0, whole)
    vector = image * tokens
    factor = tl.load(columns + vector + column, mask=column < tokens, other=0)
    left = num_maps - first_map  # maps from here on
    start = maps + (image * num_maps + first_map) * tokens
    pull = pulled + (image * num_maps + first_map) * tokens
    scaled0 = factor * load_map(start, 0, left, column, tokens)
    scaled1, scaled2, scaled3 = scaled0, scaled0, scaled0
    given0 = tl.zeros((whole,), tl.float32)
    given1, given2, given3 = given0, given0, given0
    if chunk > 1:
        scaled1 = factor * load_map(start, 1, left, column, tokens)
    if chunk > 2:
        scaled2 = factor * load_map(start, 2, left, column, tokens)
    if chunk > 3:
        scaled3 = factor * load_map(start, 3, left, column, tokens)
    row = block * block_rows + tl.arange(0, group)
    end = tl.minimum((block + 1) * block_rows, tokens)
    next_rows = load_rows(affinity, row, end, column, image, tokens)
    for _ in range(0, block_rows, group):
        value = next_rows.to(tl.float32)
        next_rows = load_rows(affinity, row + group, end, column, image, tokens)
        own_factor = tl.load(own + vector + row, mask=row < end, other=0)
        own_factor *= tl.load(columns + vector + row, mask=row < end, other=0)
        if is_first:
            row_factor = inverse(tl.sum(value * factor[None, :], axis=1) + own_factor)
            tl.store(rows + vector + row, row_factor, mask=row < end)
        else:
            row_factor = tl.load(rows + vector + row, mask=row < end, other=0)
        given0 += _move(
            value, scaled0, start, pull, 0, left, row, end, row_factor, own_factor, tokens
        )  # fmt: skip
        if chunk > 1:
            given1 += _move(
                value, scaled1, start, pull, 1, left, row, end, row_factor, own_factor, tokens
            )  # fmt: skip
        if chunk > 2:
            given2 += _move(
                value, scaled2, start, pull, 2, left, row, end, row_factor, own_factor, tokens
            )  # fmt: skip
        if chunk > 3:
            given3 += _move(
                value, scaled3, start, pull, 3, left, row, end, row_factor, own_factor, tokens
            )  # fmt: skip
        row += group
    push = pushed + ((image * row_blocks + block) * num_maps + first_map) * tokens
    store_maps(push, given0, given1, given2, given3, left, column, tokens, chunk)


@triton.jit
def _move(
    value,
    scaled,
    start,
    pull,
    index: tl.constexpr,
    left,
    row,
    end,
    row_factor,
    own_factor,
    tokens,
):
    """Write what some rows take from a map, and return what they hand to each column."""
    here = row < tl.where(left > index, end, 0)
    held = tl.load(start + index * tokens + row, mask=here, other=0)
    taken = tl.sum(value * scaled[None, :], axis=1) + own_factor * held
    tl.store(pull + index * tokens + row, row_factor * taken, mask=here)
    return tl.sum(value * (held * row_factor)[:, None], axis=0)


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
    index,
    image,
    tokens,
    num_maps,
    row_blocks,
    alpha,
    block_columns: tl.constexpr,
    parts: tl.constexpr,
):
    """The mean of pull and push of one map, with restart."""
    column = block * block_columns + tl.arange(0, block_columns)
    inside = column < tokens
    place = (image * num_maps + index) * tokens + column
    part = pushed + (image * row_blocks * num_maps + index) * tokens + column
    total = add_parts(part, row_blocks, num_maps * tokens, inside, block_columns, parts)
    vector = image * tokens + column
    extra = tl.load(own + vector, mask=inside, other=0)
    extra *= tl.load(rows + vector, mask=inside, other=0)
    total += extra * tl.load(maps + place, mask=inside, other=0)
    total *= tl.load(columns + vector, mask=inside, other=0)
    value = (total + tl.load(pulled + place, mask=inside, other=0)) / 2
    value = alpha * value + (1 - alpha) * tl.load(initial + place, mask=inside, other=0)
    tl.store(stepped + place, value, mask=inside)
