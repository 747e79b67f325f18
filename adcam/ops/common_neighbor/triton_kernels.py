"""Common-neighbour refinement in Triton: one launch for the vectors, one for their product.

:func:`prepare` runs in phases, and :func:`gate_product` multiplies:

1. sums of the rows, and what the scaled rows add to each column;
2. the columns' scales, from those parts in a fixed order;
3. the vectors whose products are the similarity, written once;
4. if artefacts are looked for: products of neighbours in the image, the median of each patch's,
   and the median of those over the image;
5. a tile of the product, gated on its way out. The product is symmetric, so a tile above the
   diagonal gates its mirror image too, and the tiles below it are left out.

Programs take their phase by ticket and wait for the phase before: see ``_triton_functions.py``.

Tensors are contiguous (B, N, N); N is any number. Every address is computed in 64 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from adcam.ops import _launch
from adcam.ops._triton_functions import (
    COLUMNS,
    PARTS,
    add_parts,
    count_images,
    count_up,
    load_rows,
    wait_until,
)

SCALE = 4096.0
"""Vectors and the affinity in float16 are multiplied by it: they lie in [0, 1], and what is larger
than 1.5e-8 keeps all of its 11 bits."""


@dataclass(frozen=True)
class Agreement:
    """How much each patch agrees with those around it; an artefact agrees too little.

    Attributes:
        values: (B, N) float32, the similarity to the patches around.
        median: (B) float32, of ``values``.
        ratio: A patch is an artefact where ``values < ratio * median``.
    """

    values: torch.Tensor
    median: torch.Tensor
    ratio: float


@dataclass(frozen=True)
class Refined:
    """Refined attention as the diffusion reads it.

    Attributes:
        affinity: (B, N, N), :data:`SCALE` times R in float16, or in float32.
        gives: (B, blocks, N), parts of its row sums.
        receives: (B, blocks, N), parts of its column sums.
        agreement: ``None`` unless artefacts were looked for.
    """

    affinity: torch.Tensor
    gives: torch.Tensor
    receives: torch.Tensor
    agreement: Agreement | None


def count_counters(images: int) -> int:
    """How many zeros a call of :func:`refine_for_walk` counts with, a multiple of 8."""
    return 2 * _pad(1 + 6 * images)


def refine(
    attn: torch.Tensor, similarity: str, power: float, *, half_product: bool
) -> torch.Tensor:
    """As :func:`adcam.ops.common_neighbor.reference.refine`, without gradient.

    Args:
        attn: (..., N, N) on a CUDA device (under the interpreter, on the CPU); float16, bfloat16
            or float32.
        similarity: ``"resource_allocation"`` or ``"cosine"``.
        power: The exponent of the similarity, >= 0.
        half_product: Multiply float16 operands, with sums in float32. Otherwise the product has
            the precision of float32: three TF32 products of split operands.

    Returns:
        (..., N, N) float32; NaN for an image with a negative, infinite or NaN value.
    """
    refined = attn.new_empty(attn.shape, dtype=torch.float32)
    if attn.numel():
        counters = attn.new_zeros(1 + 6 * count_images(attn), dtype=torch.int32)
        vectors = _prepare(attn, similarity, half_product, counters)
        _multiply(vectors, power, refined, 1.0, None)
    return refined


def refine_for_walk(
    attn: torch.Tensor,
    similarity: str,
    power: float,
    *,
    half_product: bool,
    counters: torch.Tensor,
    grid_hw: tuple[int, int] | None = None,
    artifact_ratio: float = 0.0,
) -> Refined:
    """As :func:`refine`, with the sums that the diffusion begins with, and without artefacts.

    Args:
        attn: The attention as :func:`refine` takes it, not empty.
        similarity: ``"resource_allocation"`` or ``"cosine"``.
        power: The exponent of the similarity, >= 0.
        half_product: Multiply float16 operands, and return the affinity in float16.
        counters: int32 zeros, as many as :func:`count_counters` says.
        grid_hw: Height and width of the patch grid; ``None`` looks for no artefacts.
        artifact_ratio: The share of the median agreement below which a patch is an artefact.
    """
    images, tokens = count_images(attn), attn.shape[-1]
    first, second = counters.chunk(2)
    vectors = _prepare(attn, similarity, half_product, first, grid_hw=grid_hw)
    agreement = None
    if vectors.agreement is not None:
        agreement = Agreement(*vectors.agreement, artifact_ratio)
        vectors = _prepare(attn, similarity, half_product, second, without=agreement)
    block = _find_tile(vectors.features).sizes["block"]
    affinity = torch.empty_like(vectors.features)
    shape = (images, triton.cdiv(tokens, block), tokens)
    gives, receives = (vectors.lengths.new_empty(shape) for _ in range(2))
    _multiply(vectors, power, affinity, SCALE if half_product else 1.0, (gives, receives))
    return Refined(affinity, gives, receives, agreement)


@dataclass(frozen=True)
class _Vectors:
    """A = features · lengths / column_scale; features (B, N, N), the others (B, N)."""

    features: torch.Tensor
    lengths: torch.Tensor
    column_scale: torch.Tensor
    agreement: tuple[torch.Tensor, torch.Tensor] | None


def _prepare(
    attn: torch.Tensor,
    similarity: str,
    half_product: bool,
    counters: torch.Tensor,
    *,
    grid_hw: tuple[int, int] | None = None,
    without: Agreement | None = None,
) -> _Vectors:
    tokens, images = attn.shape[-1], count_images(attn)
    attn = attn.detach().contiguous()
    tile = _launch.find_row_tile("prepare", tokens, attn.device)
    row_blocks = triton.cdiv(tokens, tile.block_rows)
    patch_blocks = triton.cdiv(tokens, COLUMNS)
    features = attn.new_empty(
        (images, tokens, tokens), dtype=torch.float16 if half_product else torch.float32
    )
    row_scale, lengths, column_scale = (
        attn.new_empty((images, tokens), dtype=torch.float32) for _ in range(3)
    )
    partial = attn.new_empty((images, row_blocks, tokens), dtype=torch.float32)
    found = attn.new_empty((5, images, tokens) if grid_hw else (1,), dtype=torch.float32)
    median = attn.new_empty(images if grid_hw else 1, dtype=torch.float32)
    known = without or Agreement(found, median, 0.0)
    items = 2 * row_blocks + patch_blocks + (row_blocks + 2 * patch_blocks) * bool(grid_hw)
    _launch.launch(
        prepare, (items * images,), attn, features, row_scale, lengths, column_scale, partial,
        found, median, known.values, known.median, counters, tokens, images,
        *(grid_hw or (1, 1)), known.ratio,
        SCALE if half_product else 1.0, similarity == "resource_allocation", grid_hw is not None,
        without is not None, tile.block_rows, tile.group, tile.columns, COLUMNS, PARTS,
        num_warps=tile.num_warps, num_stages=1,
    )  # fmt: skip
    agreement = (found[4], median) if grid_hw else None
    return _Vectors(features, lengths, column_scale, agreement)


def _multiply(
    vectors: _Vectors,
    power: float,
    refined: torch.Tensor,
    scale: float,
    sums: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    images, tokens, _ = vectors.features.shape
    tile = _find_tile(vectors.features)
    count = triton.cdiv(tokens, tile.sizes["block"])
    half = vectors.features.dtype == torch.float16
    gives, receives = sums or (vectors.lengths, vectors.lengths)
    _launch.launch(
        gate_product, (count, count, images), vectors.features, vectors.lengths,
        vectors.column_scale, refined, gives, receives, tokens, SCALE if half else 1.0, scale,
        float(power), sums is not None, **tile.sizes,
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def _find_tile(features: torch.Tensor) -> _launch.Tile:
    kind = "float16" if features.dtype == torch.float16 else "float32"
    return _launch.find_tile(f"common_neighbor, {kind}", features.device)


def _pad(count: int) -> int:
    """The next multiple of 4: four int32 are 16 bytes, to which pointers are aligned."""
    return -(-count // 4) * 4


@triton.jit(do_not_specialize=["images", "height", "width"])
def prepare(
    attn,
    features,
    row_scale,
    lengths,
    column_scale,
    partial,
    found,
    median,
    known_values,
    known_median,
    counters,
    tokens,
    images,
    height,
    width,
    ratio,
    scale: tl.constexpr,
    is_weighted: tl.constexpr,
    find_artifacts: tl.constexpr,
    leave_out: tl.constexpr,
    rows: tl.constexpr,
    group: tl.constexpr,
    columns: tl.constexpr,
    patches: tl.constexpr,
    parts: tl.constexpr,
):
    """The vectors (B, N, N) of an attention, and how much neighbours in the image agree.

    ``found`` (5, B, N) holds products with four neighbours, then their median. ``counters`` holds
    the ticket, then six numbers an image: how much of each phase is done.
    """
    row_blocks = tl.cdiv(tokens, rows)
    patch_blocks = tl.cdiv(tokens, patches)
    by_rows = images * row_blocks
    by_patches = images * patch_blocks
    ticket = tl.atomic_add(counters, 1)
    done = counters + 1
    if ticket < by_rows:
        image = (ticket // row_blocks).to(tl.int64)
        _sum_rows(
            attn, row_scale, partial, known_values, known_median, ticket % row_blocks, image,
            tokens, ratio, leave_out, rows, group, columns,
        )  # fmt: skip
        count_up(done + image * 6)
    elif ticket < by_rows + by_patches:
        place = ticket - by_rows
        image = (place // patch_blocks).to(tl.int64)
        wait_until(done + image * 6, row_blocks)
        _scale_columns(
            partial, column_scale, place % patch_blocks, image, tokens, row_blocks, is_weighted,
            patches, parts,
        )  # fmt: skip
        count_up(done + image * 6 + 1)
    elif ticket < 2 * by_rows + by_patches:
        place = ticket - by_rows - by_patches
        image = (place // row_blocks).to(tl.int64)
        wait_until(done + image * 6 + 1, patch_blocks)
        _write_features(
            attn, features, row_scale, lengths, column_scale, known_values, known_median,
            place % row_blocks, image, tokens, ratio, scale, leave_out, rows, group, columns,
        )  # fmt: skip
        count_up(done + image * 6 + 2)
    elif find_artifacts:
        place = ticket - 2 * by_rows - by_patches
        if place < by_rows:
            image = (place // row_blocks).to(tl.int64)
            wait_until(done + image * 6 + 2, row_blocks)
            _multiply_neighbors(
                features, found, place % row_blocks, image, images, tokens, height, width, scale,
                rows, group, columns,
            )  # fmt: skip
            count_up(done + image * 6 + 3)
        elif place < by_rows + by_patches:
            place -= by_rows
            image = (place // patch_blocks).to(tl.int64)
            wait_until(done + image * 6 + 3, row_blocks)
            _agree(found, place % patch_blocks, image, images, tokens, height, width, patches)
            count_up(done + image * 6 + 4)
        else:
            place -= by_rows + by_patches
            image = (place // patch_blocks).to(tl.int64)
            wait_until(done + image * 6 + 4, patch_blocks)
            _find_median(found, median, place % patch_blocks, image, images, tokens, patches)


@triton.jit
def _keep(value, known_values, known_median, row, column, image, tokens, ratio):
    """Zero where row or column is an artefact."""
    limit = tl.load(known_median + image) * ratio
    values = known_values + image * tokens
    row_agrees = tl.load(values + row, mask=row < tokens, other=0)
    column_agrees = tl.load(values + column, mask=column < tokens, other=0)
    # As `attn * kept`: NaN stays.
    value *= tl.where(row_agrees < limit, 0.0, 1.0)[:, None]
    return value * tl.where(column_agrees < limit, 0.0, 1.0)[None, :]


@triton.jit
def _check(value):
    """Attention as float32; what no attention can be is NaN."""
    value = value.to(tl.float32)
    return tl.where((value >= 0) & (value < float("inf")), value, float("nan"))


@triton.jit
def _sum_rows(
    attn,
    row_scale,
    partial,
    known_values,
    known_median,
    block,
    image,
    tokens,
    ratio,
    leave_out: tl.constexpr,
    rows: tl.constexpr,
    group: tl.constexpr,
    columns: tl.constexpr,
):
    """What scales a block of rows to sum 1, and what they then add to each column.

    Whole rows are in registers, so that each is read once, and the next rows are loaded meanwhile.
    """
    column = tl.arange(0, columns)
    given = tl.zeros((columns,), tl.float32)
    row = block * rows + tl.arange(0, group)
    end = tl.minimum((block + 1) * rows, tokens)
    next_rows = load_rows(attn, row, end, column, image, tokens)
    for _ in range(0, rows, group):
        value = _check(next_rows)
        next_rows = load_rows(attn, row + group, end, column, image, tokens)
        if leave_out:
            value = _keep(value, known_values, known_median, row, column, image, tokens, ratio)
        total = tl.sum(value, axis=1)
        # Below float32's smallest normal number the inverse would be infinite.
        scale = 1 / tl.where(total > 0, tl.maximum(total, 1.1754943508222875e-38), 1)
        tl.store(row_scale + image * tokens + row, scale, mask=row < end)
        given += tl.sum(value * scale[:, None], axis=0)
        row += group
    out = partial + (image * tl.cdiv(tokens, rows) + block) * tokens + column
    tl.store(out, given, mask=column < tokens)


@triton.jit
def _scale_columns(
    partial,
    column_scale,
    block,
    image,
    tokens,
    row_blocks,
    is_weighted: tl.constexpr,
    patches: tl.constexpr,
    parts: tl.constexpr,
):
    """D^(-1/2) of a block of columns, or 1."""
    column = block * patches + tl.arange(0, patches)
    part = partial + image * row_blocks * tokens + column
    total = add_parts(part, row_blocks, tokens, column < tokens, patches, parts)
    total = tl.where(total == 0, 1.0, total)  # not `total > 0`: NaN stays
    if not is_weighted:
        total = total * 0 + 1
    tl.store(column_scale + image * tokens + column, tl.rsqrt(total), mask=column < tokens)


@triton.jit
def _write_features(
    attn,
    features,
    row_scale,
    lengths,
    column_scale,
    known_values,
    known_median,
    block,
    image,
    tokens,
    ratio,
    scale: tl.constexpr,
    leave_out: tl.constexpr,
    rows: tl.constexpr,
    group: tl.constexpr,
    columns: tl.constexpr,
):
    """Rows of A, their columns scaled, themselves scaled to length ``scale``."""
    column = tl.arange(0, columns)
    weight = tl.load(column_scale + image * tokens + column, mask=column < tokens, other=0)
    row = block * rows + tl.arange(0, group)
    end = tl.minimum((block + 1) * rows, tokens)
    next_rows = load_rows(attn, row, end, column, image, tokens)
    for _ in range(0, rows, group):
        value = _check(next_rows)
        next_rows = load_rows(attn, row + group, end, column, image, tokens)
        if leave_out:
            value = _keep(value, known_values, known_median, row, column, image, tokens, ratio)
        value *= tl.load(row_scale + image * tokens + row, mask=row < end, other=0)[:, None]
        value *= weight[None, :]
        norm = tl.sqrt(tl.sum(value * value, axis=1))
        value *= (scale / tl.where(norm == 0, 1.0, norm))[:, None]
        inside = (row < end)[:, None] & (column < tokens)[None, :]
        place = image * tokens * tokens + row.to(tl.int64)[:, None] * tokens + column[None, :]
        tl.store(features + place, value, mask=inside)
        tl.store(lengths + image * tokens + row, norm / scale, mask=row < end)
        row += group


@triton.jit
def _multiply_neighbors(
    features,
    found,
    block,
    image,
    images,
    tokens,
    height,
    width,
    scale: tl.constexpr,
    rows: tl.constexpr,
    group: tl.constexpr,
    columns: tl.constexpr,
):
    """Similarity to the patch on the right and to three below; 0 where there is none."""
    column = tl.arange(0, columns)
    base = features + image * tokens * tokens + column[None, :]
    for first in range(0, rows, group):
        row = block * rows + first + tl.arange(0, group)
        inside = (row[:, None] < tokens) & (column[None, :] < tokens)
        own = tl.load(base + row.to(tl.int64)[:, None] * tokens, mask=inside, other=0)
        own = own.to(tl.float32)
        for way in tl.static_range(4):
            down = 0 if way == 0 else 1
            right = 1 if way == 0 else way - 2
            x = row % width + right
            there = (x >= 0) & (x < width) & (row // width + down < height) & (row < tokens)
            other = row + down * width + right
            value = tl.load(
                base + other.to(tl.int64)[:, None] * tokens,
                mask=inside & there[:, None],
                other=0,
            ).to(tl.float32)
            sim = tl.minimum(tl.sum(own * value, axis=1) / (scale * scale), 1.0)
            tl.store(found + (way * images + image) * tokens + row, sim, mask=row < tokens)


@triton.jit
def _agree(found, block, image, images, tokens, height, width, patches: tl.constexpr):
    """The lower median over the (up to) eight patches around each of a block of patches."""
    patch = block * patches + tl.arange(0, patches)
    index = tl.arange(0, 8)
    way = index % 4
    sign = tl.where(index < 4, 1, -1)
    down = tl.where(way == 0, 0, 1) * sign
    right = tl.where(way == 0, 1, way - 2) * sign
    x, y = (patch % width)[:, None] + right[None, :], (patch // width)[:, None] + down[None, :]
    there = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (patch < tokens)[:, None]
    # A pair was multiplied once, at the first of the two.
    holder = tl.where(index[None, :] < 4, patch[:, None], y * width + x)
    place = (way[None, :] * images + image) * tokens + holder
    value = tl.load(found + place, mask=there, other=2.0)
    valid = there.to(tl.int32)
    middle = (tl.sum(valid, axis=1) - 1) // 2
    less = tl.sum((value[:, None, :] < value[:, :, None]).to(tl.int32), axis=2)
    up_to = tl.sum((value[:, None, :] <= value[:, :, None]).to(tl.int32), axis=2)
    is_middle = (less <= middle[:, None]) & (up_to > middle[:, None]) & there
    result = tl.max(tl.where(is_middle, value, 0.0), axis=1)
    result = tl.where(tl.sum(valid, axis=1) == 0, 1.0, result)  # a grid of one patch
    tl.store(found + (4 * images + image) * tokens + patch, result, mask=patch < tokens)


@triton.jit
def _find_median(found, median, block, image, images, tokens, patches: tl.constexpr):
    """Write the lower median of the image if it is in this block of patches."""
    patch = block * patches + tl.arange(0, patches)
    values = found + (4 * images + image) * tokens
    own = tl.load(values + patch, mask=patch < tokens, other=2.0)
    less = tl.zeros((patches, patches), tl.int32)
    up_to = tl.zeros((patches, patches), tl.int32)
    for first in range(0, tokens, patches):
        other = first + tl.arange(0, patches)
        value = tl.load(values + other, mask=other < tokens, other=3.0)
        less += (value[None, :] < own[:, None]).to(tl.int32)
        up_to += (value[None, :] <= own[:, None]).to(tl.int32)
    middle = (tokens - 1) // 2
    is_middle = (tl.sum(less, axis=1) <= middle) & (tl.sum(up_to, axis=1) > middle)
    # Several patches may hold that value: all write the same.
    tl.store(median + image + patch * 0, own, mask=is_middle & (patch < tokens))


@triton.jit
def gate_product(
    features,
    lengths,
    column_scale,
    refined,
    gives,
    receives,
    tokens,
    feature_scale: tl.constexpr,
    scale: tl.constexpr,
    power: tl.constexpr,
    with_sums: tl.constexpr,
    block: tl.constexpr,
    block_k: tl.constexpr,
):
    """A tile of S = F F^T and its mirror image, each turned into R = A * S^power.

    Grid (N / block, N / block, B); programs below the diagonal have nothing to do. ``refined`` is
    written times ``scale``, and the sums of each tile along both axes go to ``gives`` and
    ``receives`` (B, N / block, N).
    """
    tile_row, tile_column = tl.program_id(0), tl.program_id(1)
    if tile_column < tile_row:
        return
    image = tl.program_id(2).to(tl.int64)
    row = tile_row * block + tl.arange(0, block)
    column = tile_column * block + tl.arange(0, block)
    inner = tl.arange(0, block_k)
    offset = image * tokens * tokens
    left = features + offset + row.to(tl.int64)[:, None] * tokens + inner[None, :]
    right = features + offset + column.to(tl.int64)[:, None] * tokens + inner[None, :]
    sim = tl.zeros((block, block), tl.float32)
    for first in range(0, tokens, block_k):
        inside = first + inner[None, :] < tokens
        left_tile = tl.load(left + first, mask=(row[:, None] < tokens) & inside, other=0)
        right_tile = tl.load(right + first, mask=(column[:, None] < tokens) & inside, other=0)
        sim = tl.dot(left_tile, tl.trans(right_tile), sim, input_precision="tf32x3")
    sim = sim / (feature_scale * feature_scale)
    # Exactly 1 on the diagonal, and no more than 1 elsewhere in spite of rounding; NaN stays.
    sim = tl.where((row[:, None] == column[None, :]) | (sim > 1), 1.0, sim)
    if power == 0:
        gate = tl.full((block, block), 1, tl.float32)
    elif power == 1:
        gate = sim
    elif power == 2:
        gate = sim * sim
    else:
        positive = tl.where(sim > 0, sim, 1)
        gate = tl.where(sim > 0, tl.exp2(tl.log2(positive) * power), 0.0)
    _write_gated(
        features, lengths, column_scale, refined, gives, receives, gate * scale, row, column,
        tile_row, tile_column, tokens, image, with_sums,
    )  # fmt: skip
    if tile_column > tile_row:
        _write_gated(
            features, lengths, column_scale, refined, gives, receives, tl.trans(gate) * scale,
            column, row, tile_column, tile_row, tokens, image, with_sums,
        )  # fmt: skip


@triton.jit
def _write_gated(
    features,
    lengths,
    column_scale,
    refined,
    gives,
    receives,
    gate,
    row,
    column,
    tile_row,
    tile_column,
    tokens,
    image,
    with_sums: tl.constexpr,
):
    inside = (row[:, None] < tokens) & (column[None, :] < tokens)
    place = image * tokens * tokens + row.to(tl.int64)[:, None] * tokens + column[None, :]
    value = tl.load(features + place, mask=inside, other=0).to(tl.float32)
    value *= tl.load(lengths + image * tokens + row, mask=row < tokens, other=0)[:, None]
    weight = tl.load(column_scale + image * tokens + column, mask=column < tokens, other=1)
    value *= gate * (1 / weight)[None, :]
    tl.store(refined + place, value, mask=inside)
    if with_sums:
        count = tl.num_programs(0)
        given = gives + (image * count + tile_column) * tokens + row
        tl.store(given, tl.sum(value, axis=1), mask=row < tokens)
        received = receives + (image * count + tile_row) * tokens + column
        tl.store(received, tl.sum(value, axis=0), mask=column < tokens)
