"""The walk of two hops in Triton, in one launch that reads the attention twice a step.

A block of rows is read as a whole. The first reading finds the sum of each row and what the rows
hand to each column, the second what they take from the columns. Programs take their phase by
ticket and wait for the phase before (see ``_triton_functions.py``):

    rows: what they hand out      columns: their sums      rows: what they take
    (num_steps times)

Tensors are contiguous: attention (B, N, N), maps (B, K, N). Every address is computed in 64 bits.
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


def walk(maps: torch.Tensor, attn: torch.Tensor, num_steps: int) -> torch.Tensor:
    """As :func:`adcam.ops.two_hop_walk.reference.walk`, (..., K, N) float32, without gradient.

    Args:
        maps: (..., K, N) on the device of ``attn``.
        attn: (..., N, N) float32, float16 or bfloat16 on a CUDA device (under the interpreter, on
            the CPU).
        num_steps: >= 0.
    """
    num_maps, tokens = maps.shape[-2:]
    start = maps.detach().to(torch.float32).contiguous()
    if num_steps == 0 or maps.numel() == 0:
        return start
    attn = attn.detach().contiguous()
    images = count_images(attn)
    tile = _launch.find_row_tile("two_hop_walk", tokens, attn.device)
    chunk = min(triton.next_power_of_2(num_maps), MAPS)
    row_blocks, chunks = triton.cdiv(tokens, tile.block_rows), triton.cdiv(num_maps, chunk)
    column_blocks = triton.cdiv(tokens, COLUMNS)
    counters = attn.new_zeros(1 + 2 * images, dtype=torch.int32)
    rows = start.new_empty((images, tokens))
    partial = start.new_empty((images, row_blocks, tokens))
    pushed = start.new_empty((images, row_blocks, num_maps, tokens))
    shares = torch.empty_like(start)
    # The steps before the last write to two places alternately.
    between = start.new_empty((2, images, num_maps, tokens) if num_steps > 1 else (1,))
    stepped = torch.empty_like(start)
    items = images * num_steps * (2 * chunks * row_blocks + num_maps * column_blocks)
    _launch.launch(
        walk_two_hops, (items,), attn, start, stepped, rows, partial, pushed, shares, between,
        counters, tokens, images, num_maps, num_steps, chunk, tile.block_rows, tile.group,
        tile.columns, COLUMNS, PARTS, num_warps=tile.num_warps, num_stages=1,
    )  # fmt: skip
    return stepped


@triton.jit(do_not_specialize=["images", "num_maps", "num_steps"])
def walk_two_hops(
    attn,
    start,
    stepped,
    rows,
    partial,
    pushed,
    shares,
    between,
    counters,
    tokens,
    images,
    num_maps,
    num_steps,
    chunk: tl.constexpr,
    block_rows: tl.constexpr,
    group: tl.constexpr,
    whole: tl.constexpr,
    block_columns: tl.constexpr,
    parts: tl.constexpr,
):
    """``counters`` holds the ticket, then for each image how many items of rows and of columns are
    done. ``chunk``, 1 to 4, is how many maps an item of rows moves at once."""
    row_blocks = tl.cdiv(tokens, block_rows)
    column_blocks = tl.cdiv(tokens, block_columns)
    by_rows = images * row_blocks * tl.cdiv(num_maps, chunk)
    by_columns = images * column_blocks * num_maps
    row_items = row_blocks * tl.cdiv(num_maps, chunk)  # of an image, in a phase
    column_items = column_blocks * num_maps
    ticket = tl.atomic_add(counters, 1)
    rows_done, columns_done = counters + 1, counters + 1 + images
    step = ticket // (2 * by_rows + by_columns)
    place = ticket % (2 * by_rows + by_columns)
    # The start, the two places between in turn, and at last the result.
    size = images.to(tl.int64) * num_maps * tokens
    source = start if step == 0 else between + ((step - 1) % 2) * size
    target = stepped if step == num_steps - 1 else between + (step % 2) * size
    if place < by_rows:
        first_map = place // (images * row_blocks) * chunk
        place = place % (images * row_blocks)
        image = (place // row_blocks).to(tl.int64)
        wait_until(rows_done + image, 2 * step * row_items)
        _push(
            attn, source, rows, partial, pushed, place % row_blocks, first_map, image, tokens,
            num_maps, row_blocks, chunk, block_rows, group, whole,
        )  # fmt: skip
        count_up(rows_done + image)
    elif place < by_rows + by_columns:
        place -= by_rows
        index = place // (images * column_blocks)
        place = place % (images * column_blocks)
        image = (place // column_blocks).to(tl.int64)
        wait_until(rows_done + image, (2 * step + 1) * row_items)
        _share(
            partial, pushed, shares, place % column_blocks, index, image, tokens, num_maps,
            row_blocks, block_columns, parts,
        )  # fmt: skip
        count_up(columns_done + image)
    else:
        place -= by_rows + by_columns
        first_map = place // (images * row_blocks) * chunk
        place = place % (images * row_blocks)
        image = (place // row_blocks).to(tl.int64)
        wait_until(columns_done + image, (step + 1) * column_items)
        _pull(
            attn, source, target, rows, shares, place % row_blocks, first_map, image, tokens,
            num_maps, chunk, block_rows, group, whole,
        )  # fmt: skip
        count_up(rows_done + image)


@triton.jit
def _push(
    attn,
    maps,
    rows,
    partial,
    pushed,
    block,
    first_map,
    image,
    tokens,
    num_maps,
    row_blocks,
    chunk: tl.constexpr,
    block_rows: tl.constexpr,
    group: tl.constexpr,
    whole: tl.constexpr,
):
    """The factors of a block of rows, and what it hands to each column: ones, and its maps."""
    column = tl.arange(0, whole)
    left = num_maps - first_map  # maps from here on
    start = maps + (image * num_maps + first_map) * tokens
    mass = tl.zeros((whole,), tl.float32)
    given0, given1, given2, given3 = mass, mass, mass, mass
    row = block * block_rows + tl.arange(0, group)
    end = tl.minimum((block + 1) * block_rows, tokens)
    next_rows = load_rows(attn, row, end, column, image, tokens)
    for _ in range(0, block_rows, group):
        value = next_rows.to(tl.float32)
        next_rows = load_rows(attn, row + group, end, column, image, tokens)
        total = tl.sum(value, axis=1)
        factor = tl.where(total > 0, inverse(total), total * 0)  # NaN stays
        tl.store(rows + image * tokens + row, factor, mask=row < end)
        value *= factor[:, None]
        mass += tl.sum(value, axis=0)
        given0 += _hand_out(value, start, 0, left, row, end, tokens)
        if chunk > 1:
            given1 += _hand_out(value, start, 1, left, row, end, tokens)
        if chunk > 2:
            given2 += _hand_out(value, start, 2, left, row, end, tokens)
        if chunk > 3:
            given3 += _hand_out(value, start, 3, left, row, end, tokens)
        row += group
    sums = partial + (image * row_blocks + block) * tokens + column
    tl.store(sums, mass, mask=column < tokens)
    out = pushed + ((image * row_blocks + block) * num_maps + first_map) * tokens
    store_maps(out, given0, given1, given2, given3, left, column, tokens, chunk)


@triton.jit
def _hand_out(value, start, index: tl.constexpr, left, row, end, tokens):
    """What some rows hand of one map to each column."""
    here = row < tl.where(left > index, end, 0)
    held = tl.load(start + index * tokens + row, mask=here, other=0)
    return tl.sum(value * held[:, None], axis=0)


@triton.jit
def _share(
    partial,
    pushed,
    shares,
    block,
    index,
    image,
    tokens,
    num_maps,
    row_blocks,
    block_columns: tl.constexpr,
    parts: tl.constexpr,
):
    """What a block of columns got of one map, over what it got of everything."""
    column = block * block_columns + tl.arange(0, block_columns)
    inside = column < tokens
    part = partial + image * row_blocks * tokens + column
    received = add_parts(part, row_blocks, tokens, inside, block_columns, parts)
    part = pushed + (image * row_blocks * num_maps + index) * tokens + column
    got = add_parts(part, row_blocks, num_maps * tokens, inside, block_columns, parts)
    share = got / tl.where(received == 0, 1.0, received)  # not `received > 0`: NaN stays
    tl.store(shares + (image * num_maps + index) * tokens + column, share, mask=inside)


@triton.jit
def _pull(
    attn,
    maps,
    target,
    rows,
    shares,
    block,
    first_map,
    image,
    tokens,
    num_maps,
    chunk: tl.constexpr,
    block_rows: tl.constexpr,
    group: tl.constexpr,
    whole: tl.constexpr,
):
    """What a block of rows takes from all columns. A row without attention keeps what it has."""
    column = tl.arange(0, whole)
    left = num_maps - first_map
    first = (image * num_maps + first_map) * tokens
    share0 = load_map(shares + first, 0, left, column, tokens)
    share1, share2, share3 = share0, share0, share0
    if chunk > 1:
        share1 = load_map(shares + first, 1, left, column, tokens)
    if chunk > 2:
        share2 = load_map(shares + first, 2, left, column, tokens)
    if chunk > 3:
        share3 = load_map(shares + first, 3, left, column, tokens)
    row = block * block_rows + tl.arange(0, group)
    end = tl.minimum((block + 1) * block_rows, tokens)
    next_rows = load_rows(attn, row, end, column, image, tokens)
    for _ in range(0, block_rows, group):
        value = next_rows.to(tl.float32)
        next_rows = load_rows(attn, row + group, end, column, image, tokens)
        factor = tl.load(rows + image * tokens + row, mask=row < end, other=0)
        _take(value, share0, maps + first, target + first, 0, left, row, end, factor, tokens)
        if chunk > 1:
            _take(value, share1, maps + first, target + first, 1, left, row, end, factor, tokens)
        if chunk > 2:
            _take(value, share2, maps + first, target + first, 2, left, row, end, factor, tokens)
        if chunk > 3:
            _take(value, share3, maps + first, target + first, 3, left, row, end, factor, tokens)
        row += group


@triton.jit
def _take(value, share, source, target, index: tl.constexpr, left, row, end, factor, tokens):
    here = row < tl.where(left > index, end, 0)
    taken = factor * tl.sum(value * share[None, :], axis=1)
    held = tl.load(source + index * tokens + row, mask=here, other=0)
    tl.store(target + index * tokens + row, tl.where(factor == 0, held, taken), mask=here)
