"""Common-neighbour refinement in Triton: two passes over the attention, then one product.

1. :func:`row_and_column_sums`: the rows' scales, and the columns' sums of the scaled rows.
2. :func:`unit_features`: the vectors whose products are the similarity, written once.
3. :func:`gate_product`: a tile of the product, gated on its way out. The product is symmetric, so
   a tile above the diagonal gates its mirror image too, and the tiles below it are left out.

Tensors are contiguous (B, N, N); N is any number. Every address is computed in 64 bits.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

CONFIGS = [
    triton.Config({"block": 128, "block_k": 32}, num_warps=8, num_stages=3),
    triton.Config({"block": 128, "block_k": 64}, num_warps=8, num_stages=2),
    triton.Config({"block": 64, "block_k": 32}, num_warps=4, num_stages=4),
    triton.Config({"block": 64, "block_k": 64}, num_warps=4, num_stages=3),
    triton.Config({"block": 64, "block_k": 32}, num_warps=8, num_stages=3),
]
"""What is tried on the first call for a device, dtype and size class. All fit into the shared
memory of sm_80. Tiles of 128 want 8 warps: with 4, ptxas spills their registers."""

_ROWS, _COLUMNS = 16, 128


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
        (..., N, N) float32.
    """
    tokens = attn.shape[-1]
    refined = attn.new_empty(attn.shape, dtype=torch.float32)
    if attn.numel() == 0:
        return refined
    attn = attn.detach().contiguous()
    images = attn.numel() // tokens**2
    row_blocks = triton.cdiv(tokens, _ROWS)
    row_scale = attn.new_empty((images, tokens), dtype=torch.float32)
    received = attn.new_empty((images, row_blocks, tokens), dtype=torch.float32)
    features = attn.new_empty(attn.shape, dtype=torch.float16 if half_product else torch.float32)
    with torch.cuda.device_of(attn):  # Triton launches on the current device
        row_and_column_sums[(row_blocks, images)](
            attn, row_scale, received, tokens, _ROWS, _COLUMNS, enable_fp_fusion=True
        )
        if similarity == "resource_allocation":
            degree = received.sum(dim=1)  # (B, N)
            column_scale = torch.where(degree > 0, degree, 1).rsqrt()
        else:
            column_scale = torch.ones_like(row_scale)
        columns = min(triton.next_power_of_2(tokens), 1024)
        unit_features[(tokens, images)](
            attn, row_scale, column_scale, features, tokens, columns, enable_fp_fusion=True
        )
        arguments = attn, features, row_scale, refined, tokens, tokens.bit_length(), float(power)
        if INTERPRETED:
            count = triton.cdiv(tokens, 16)
            gate_product[(count, count, images)](*arguments, block=16, block_k=16)
        else:
            tuned_gate_product[
                lambda meta: (
                    triton.cdiv(tokens, meta["block"]),
                    triton.cdiv(tokens, meta["block"]),
                    images,
                )
            ](*arguments, enable_fp_fusion=True)
    return refined


@triton.jit
def _inverse(total):
    """1 / total, and 1 for 0; below float32's smallest normal number it would be infinite."""
    return 1 / tl.where(total > 0, tl.maximum(total, 1.1754943508222875e-38), 1)


@triton.jit
def row_and_column_sums(
    attn, row_scale, received, tokens, rows: tl.constexpr, columns: tl.constexpr
):
    """What scales a block of rows to sum 1, and what they then add to each column.

    Grid (row blocks, B). ``row_scale`` (B, N); ``received`` (B, row blocks, N), to be summed over
    the blocks. The second reading of the rows comes out of the cache.
    """
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = block * rows + tl.arange(0, rows)
    column = tl.arange(0, columns)
    start = attn + image * tokens * tokens + row.to(tl.int64)[:, None] * tokens + column[None, :]
    # Summed once behind the loop: Triton 3.6 cannot compile a loop that accumulates tl.sum.
    tile = tl.zeros((rows, columns), tl.float32)
    for first in range(0, tokens, columns):
        inside = (row[:, None] < tokens) & (first + column[None, :] < tokens)
        tile += tl.load(start + first, mask=inside, other=0).to(tl.float32)
    scale = _inverse(tl.sum(tile, axis=1))
    tl.store(row_scale + image * tokens + row, scale, mask=row < tokens)
    out = received + (image * tl.num_programs(0) + block) * tokens + column
    for first in range(0, tokens, columns):
        inside = (row[:, None] < tokens) & (first + column[None, :] < tokens)
        value = tl.load(start + first, mask=inside, other=0).to(tl.float32)
        tl.store(out + first, tl.sum(value * scale[:, None], axis=0), mask=first + column < tokens)


@triton.jit
def unit_features(attn, row_scale, column_scale, features, tokens, columns: tl.constexpr):
    """One row of A, its columns scaled, itself scaled to length 1. Grid (N, B)."""
    row, image = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, columns)
    start = image * tokens * tokens + row * tokens
    scale = tl.load(row_scale + image * tokens + row)
    squares = tl.zeros((columns,), tl.float32)
    for first in range(0, tokens, columns):
        inside = first + column < tokens
        weight = tl.load(column_scale + image * tokens + first + column, mask=inside, other=0)
        value = tl.load(attn + start + first + column, mask=inside, other=0).to(tl.float32)
        value *= scale * weight
        squares += value * value
    norm = tl.sqrt(tl.sum(squares, axis=0))
    unit = 1 / tl.where(norm > 0, norm, 1)
    for first in range(0, tokens, columns):
        inside = first + column < tokens
        weight = tl.load(column_scale + image * tokens + first + column, mask=inside, other=0)
        value = tl.load(attn + start + first + column, mask=inside, other=0).to(tl.float32)
        value *= scale * weight  # in the order above: unit may be large
        value *= unit
        tl.store(features + start + first + column, value, mask=inside)


@triton.jit
def gate_product(
    attn,
    features,
    row_scale,
    refined,
    tokens,
    size_class,
    power: tl.constexpr,
    block: tl.constexpr,
    block_k: tl.constexpr,
):
    """A tile of S = F F^T and its mirror image, each turned into R = A * S^power.

    Grid (N / block, N / block, B); programs below the diagonal have nothing to do. ``size_class``
    is there for the choice of a configuration alone.
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
    # Exactly 1 on the diagonal, and no more than 1 elsewhere in spite of rounding.
    sim = tl.where(row[:, None] == column[None, :], 1.0, tl.minimum(sim, 1.0))
    if power == 0:
        gate = tl.full((block, block), 1, tl.float32)
    elif power == 1:
        gate = sim
    elif power == 2:
        gate = sim * sim
    else:
        positive = tl.where(sim > 0, sim, 1)
        gate = tl.where(sim > 0, tl.exp2(tl.log2(positive) * power), 0.0)
    _write_gated(attn, row_scale, refined, gate, row, column, tokens, image)
    if tile_column > tile_row:
        _write_gated(attn, row_scale, refined, tl.trans(gate), column, row, tokens, image)


@triton.jit
def _write_gated(attn, row_scale, refined, gate, row, column, tokens, image):
    inside = (row[:, None] < tokens) & (column[None, :] < tokens)
    place = image * tokens * tokens + row.to(tl.int64)[:, None] * tokens + column[None, :]
    scale = tl.load(row_scale + image * tokens + row, mask=row < tokens, other=0)
    value = tl.load(attn + place, mask=inside, other=0).to(tl.float32)
    tl.store(refined + place, value * scale[:, None] * gate, mask=inside)


tuned_gate_product = triton.autotune(configs=CONFIGS, key=["size_class"])(gate_product)
