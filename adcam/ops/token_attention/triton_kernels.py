"""Mean-over-heads attention in Triton, tile by tile: no attention of a single head is stored.

With the normaliser of each row of each head known, :func:`add_mean` sums the heads of a tile of the
(N, N) result in registers, for up to six blocks of the network in one launch, and touches memory
once. The normalisers come from the fused attention that ran anyway (fused.py); where it hands out
none, :func:`row_normalizers` finds them as FlashAttention does (Dao et al., arXiv 2205.14135).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from adcam.ops import _launch
from adcam.ops.token_attention import MOST_BLOCKS, Block

_CLASS_KEYS = 64


def accumulate(
    total: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    scale: float,
    num_prefix_tokens: int,
) -> torch.Tensor:
    """Add the mean over heads to ``total`` (B, N, N) in place; ``None`` starts at zero.

    Beside ``total`` it holds one number for each row of each head. A product in float32 is made of
    three products in TF32, and is as exact as that of the reference.
    """
    normalizers = compute_normalizers(q, k, scale=scale)
    return accumulate_blocks(
        total, [(q, k, normalizers)], scale=scale, num_prefix_tokens=num_prefix_tokens
    )


def compute_normalizers(q: torch.Tensor, k: torch.Tensor, *, scale: float) -> torch.Tensor:
    """log Σ_j exp(scale · q_i k_j) of each row of each head, (B, heads, tokens) float32."""
    batch, heads, tokens, _ = q.shape
    normalizers = torch.empty(batch, heads, tokens, dtype=torch.float32, device=q.device)
    if normalizers.numel():
        tile = _find_tile(q)
        grid = (batch * heads * triton.cdiv(tokens, tile.sizes["block_rows"]),)
        _launch.launch(
            row_normalizers, grid, q, k, normalizers, *q.stride(), *k.stride(),
            scale * math.log2(math.e), tokens, heads, *_dims(q), **_options(tile),
        )  # fmt: skip
    return normalizers


def accumulate_blocks(
    total: torch.Tensor | None,
    blocks: Sequence[Block],
    *,
    scale: float,
    num_prefix_tokens: int,
    weight: float = 1.0,
) -> torch.Tensor:
    """Add ``weight`` times the mean over heads of several blocks to ``total`` (B, N, N) in place.

    Args:
        total: The sum so far, or ``None`` to start at zero.
        blocks: Queries and keys (B, heads, P + N, d) of each, and their normalisers (B, heads,
            P + N) or ``None`` to find them. Those of equal layout share launches.
        scale: The factor on the products of queries and keys.
        num_prefix_tokens: P.
        weight: The factor on the mean, > 0.
    """
    q = blocks[0][0]
    batch, patches = q.shape[0], q.shape[2] - num_prefix_tokens
    from_zero = total is None
    if total is None:
        total = torch.empty(batch, patches, patches, dtype=torch.float32, device=q.device)
    if total.numel() == 0:
        return total
    tile = _find_tile(q)
    tiles = math.prod(triton.cdiv(patches, tile.sizes[side]) for side in tile.sizes)
    for group in _group_by_layout(blocks, scale, num_prefix_tokens):
        # The kernel takes six blocks. Where there are fewer, it does not read the rest.
        pointers = [x for block in group + group[:1] * (MOST_BLOCKS - len(group)) for x in block]
        queries, keys, normalizers = group[0]
        _launch.launch(
            add_mean, (batch * tiles,), *pointers, total,
            *queries.stride(), *keys.stride(), *normalizers.stride(), *total.stride(),
            scale * math.log2(math.e), math.log2(weight / queries.shape[1]), patches,
            queries.shape[1], len(group), *_dims(queries), from_zero, **_options(tile),
        )  # fmt: skip
        from_zero = False
    return total


def _group_by_layout(
    blocks: Sequence[Block],
    scale: float,
    num_prefix_tokens: int,
) -> Iterator[list[list[torch.Tensor]]]:
    """The patches of each block, up to six blocks that one launch can take."""
    patches = []
    for q, k, known in blocks:
        normalizers = compute_normalizers(q, k, scale=scale) if known is None else known
        patches.append([x[:, :, num_prefix_tokens:] for x in (q, k, normalizers)])

    def layout(block: list[torch.Tensor]) -> Any:
        return [(x.shape, x.stride(), x.dtype) for x in block]

    for _, alike in itertools.groupby(patches, key=layout):
        run = list(alike)
        for start in range(0, len(run), MOST_BLOCKS):
            yield run[start : start + MOST_BLOCKS]


def cls_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    normalizers: torch.Tensor,
    *,
    scale: float,
    num_prefix_tokens: int,
    cls_index: int,
) -> torch.Tensor:
    """The class token's row (B, N), mean over heads, from the normalisers (B, heads, P + N)."""
    batch, heads, tokens, _ = q.shape
    patches = tokens - num_prefix_tokens
    rows = torch.empty(batch, patches, dtype=torch.float32, device=q.device)
    if rows.numel():
        query, normalizer = q[:, :, cls_index], normalizers[:, :, cls_index]
        keys = k[:, :, num_prefix_tokens:]
        _launch.launch(
            class_rows, (triton.cdiv(patches, _CLASS_KEYS), batch), query, keys, normalizer, rows,
            *query.stride(), *keys.stride(), *normalizer.stride(),
            scale * math.log2(math.e), -math.log2(heads), patches, heads, *_dims(q), _CLASS_KEYS,
        )  # fmt: skip
    return rows


def _find_tile(q: torch.Tensor) -> _launch.Tile:
    if q.dtype == torch.float32:
        kind = "float32" if q.shape[-1] <= 64 else "wide float32"
    else:
        kind = "float16" if q.shape[-1] <= 128 else "float32"
    return _launch.find_tile(f"token_attention, {kind}", q.device)


def _dims(q: torch.Tensor) -> tuple[int, int]:
    """Width of a head, and as a side of a product: at least 16 and a power of 2."""
    return q.shape[-1], max(triton.next_power_of_2(q.shape[-1]), 16)


def _options(tile: _launch.Tile) -> dict[str, Any]:
    return {**tile.sizes, "num_warps": tile.num_warps, "num_stages": tile.num_stages}


@triton.jit(do_not_specialize=["tokens", "heads"])
def row_normalizers(
    q,
    k,
    normalizers,
    q_batch,
    q_head,
    q_token,
    q_channel,
    k_batch,
    k_head,
    k_token,
    k_channel,
    scale,
    tokens,
    heads,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """log of the sum of exp of each row, (B, heads, tokens); one program a block of rows.

    Neighbouring programs read the keys of the same head. ``scale`` is for powers of 2.
    """
    row_blocks = tl.cdiv(tokens, block_rows)
    pair = (tl.program_id(0) // row_blocks).to(tl.int64)  # batch * heads + head
    rows = (tl.program_id(0) % row_blocks) * block_rows + tl.arange(0, block_rows)
    head_q = q + pair // heads * q_batch + pair % heads * q_head
    head_k = k + pair // heads * k_batch + pair % heads * k_head
    queries = _load_tokens(head_q, rows, tokens, q_token, q_channel, head_dim, padded_dim)
    largest = tl.full((block_rows,), float("-inf"), tl.float32)
    mass = tl.zeros((block_rows,), tl.float32)
    for start in range(0, tokens, block_columns):
        columns = start + tl.arange(0, block_columns)
        keys = _load_tokens(head_k, columns, tokens, k_token, k_channel, head_dim, padded_dim)
        scores = tl.dot(queries, tl.trans(keys), input_precision="tf32x3") * scale
        scores = tl.where((columns < tokens)[None, :], scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        mass = mass * tl.exp2(largest - new_largest)
        mass += tl.sum(tl.exp2(scores - new_largest[:, None]), axis=1)
        largest = new_largest
    value = (largest + tl.log2(mass)) * 0.6931471805599453  # ln 2
    tl.store(normalizers + pair * tokens + rows, value, rows < tokens)


@triton.jit(do_not_specialize=["n_batch", "n_head", "patches", "heads"])
def add_mean(
    q0,
    k0,
    n0,
    q1,
    k1,
    n1,
    q2,
    k2,
    n2,
    q3,
    k3,
    n3,
    q4,
    k4,
    n4,
    q5,
    k5,
    n5,
    total,
    q_batch,
    q_head,
    q_token,
    q_channel,
    k_batch,
    k_head,
    k_token,
    k_channel,
    n_batch,
    n_head,
    n_token,
    total_batch,
    total_row,
    total_column,
    scale,
    shift,
    patches,
    heads,
    num_blocks: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    from_zero: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Add the mean over heads of up to six blocks to (B, N, N), or write it; one program a tile.

    ``scale`` and ``shift``, the logarithm of the weight of a head, are for powers of 2.
    """
    row_blocks = tl.cdiv(patches, block_rows)
    column_blocks = tl.cdiv(patches, block_columns)
    tile = tl.program_id(0) % (row_blocks * column_blocks)
    image = (tl.program_id(0) // (row_blocks * column_blocks)).to(tl.int64)
    rows = tile // column_blocks * block_rows + tl.arange(0, block_rows)
    columns = tile % column_blocks * block_columns + tl.arange(0, block_columns)
    here_q, here_k, here_n = image * q_batch, image * k_batch, image * n_batch
    mean = tl.zeros((block_rows, block_columns), tl.float32)
    for block in tl.static_range(num_blocks):
        # Not by name: Triton 3.2 keeps only the first of a tuple.
        mean = _add_heads(
            mean,
            (q0, q1, q2, q3, q4, q5)[block] + here_q,
            (k0, k1, k2, k3, k4, k5)[block] + here_k,
            (n0, n1, n2, n3, n4, n5)[block] + here_n,
            rows, columns, q_head, q_token, q_channel, k_head, k_token, k_channel, n_head, n_token,
            scale, shift, patches, heads, head_dim, padded_dim,
        )  # fmt: skip
    inside = (rows < patches)[:, None] & (columns < patches)[None, :]
    places = (
        total
        + image * total_batch
        + rows.to(tl.int64)[:, None] * total_row
        + columns.to(tl.int64)[None, :] * total_column
    )
    if not from_zero:
        mean += tl.load(places, inside)
    tl.store(places, mean, inside)


@triton.jit
def _add_heads(
    mean,
    q,
    k,
    normalizers,
    rows,
    columns,
    q_head,
    q_token,
    q_channel,
    k_head,
    k_token,
    k_channel,
    n_head,
    n_token,
    scale,
    shift,
    patches,
    heads,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
):
    """Add a tile of every head of one block."""
    for _ in range(heads):
        queries = _load_tokens(q, rows, patches, q_token, q_channel, head_dim, padded_dim)
        keys = _load_tokens(k, columns, patches, k_token, k_channel, head_dim, padded_dim)
        scores = tl.dot(queries, tl.trans(keys), input_precision="tf32x3") * scale
        normalizer = tl.load(normalizers + rows * n_token, rows < patches, other=0)
        normalizer = normalizer * 1.4426950408889634 - shift  # log2(e)
        mean += tl.exp2(scores - normalizer[:, None])
        q += q_head
        k += k_head
        normalizers += n_head
    return mean


@triton.jit(do_not_specialize=["n_batch", "n_head", "patches"])
def class_rows(
    q,
    k,
    normalizers,
    out,
    q_batch,
    q_head,
    q_channel,
    k_batch,
    k_head,
    k_token,
    k_channel,
    n_batch,
    n_head,
    scale,
    shift,
    patches,
    heads: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    block: tl.constexpr,
):
    """One query's attention to the patches, mean over heads, (B, N). Grid (N / block, B)."""
    columns = tl.program_id(0) * block + tl.arange(0, block)
    image = tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, padded_dim)
    head_q = q + image * q_batch + channels * q_channel
    head_k = k + image * k_batch
    head_n = normalizers + image * n_batch
    mean = tl.zeros((block,), tl.float32)
    for _ in tl.static_range(heads):  # unrolled, so that the loads of several heads are under way
        query = tl.load(head_q, channels < head_dim, other=0).to(tl.float32)
        keys = _load_tokens(head_k, columns, patches, k_token, k_channel, head_dim, padded_dim)
        scores = tl.sum(keys.to(tl.float32) * query[None, :], axis=1) * scale
        mean += tl.exp2(scores - (tl.load(head_n) * 1.4426950408889634 - shift))
        head_q += q_head
        head_k += k_head
        head_n += n_head
    tl.store(out + image * patches + columns, mean, columns < patches)


@triton.jit
def _load_tokens(
    base,
    tokens,
    num_tokens,
    token_stride,
    channel_stride,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
):
    """Rows ``tokens`` of one head as (block, padded_dim); zero outside."""
    channels = tl.arange(0, padded_dim)
    inside = (tokens < num_tokens)[:, None] & (channels < head_dim)[None, :]
    places = (
        tokens.to(tl.int64)[:, None] * token_stride
        + channels.to(tl.int64)[None, :] * channel_stride
    )
    return tl.load(base + places, inside, other=0)
