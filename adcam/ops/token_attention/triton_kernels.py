"""Mean-over-heads attention in Triton, in two passes over tiles of the scores; no backward.

The first finds the normaliser of each row of each head, as FlashAttention does (Dao et al., arXiv
2205.14135). With it known, the second sums the heads of a tile of the (N, N) result in registers
and touches memory once: no attention of a single head is ever stored.
"""

from __future__ import annotations

import math
import os

import torch
import triton
import triton.language as tl

# Tuning times kernels on a GPU. The interpreter has none, and wants small blocks, so that a small
# input has several.
if os.environ.get("TRITON_INTERPRET") == "1":
    CONFIGS = [triton.Config({"block_rows": 16, "block_columns": 32})]
else:
    CONFIGS = [
        triton.Config({"block_rows": 64, "block_columns": 64}, num_warps=4, num_stages=3),
        triton.Config({"block_rows": 64, "block_columns": 128}, num_warps=4, num_stages=3),
        triton.Config({"block_rows": 128, "block_columns": 64}, num_warps=4, num_stages=3),
        triton.Config({"block_rows": 128, "block_columns": 64}, num_warps=8, num_stages=3),
        triton.Config({"block_rows": 128, "block_columns": 128}, num_warps=8, num_stages=2),
        triton.Config({"block_rows": 128, "block_columns": 128}, num_warps=8, num_stages=3),
    ]


def accumulate(
    total: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    scale: float,
    num_prefix_tokens: int,
) -> torch.Tensor:
    """Add the mean over heads to ``total`` (B, N, N) in place; ``None`` starts at zero.

    Beside ``total`` it holds one number for each row of each head. Products of float32 are made
    without tensor cores, so that they are as exact as the reference's.
    """
    batch, heads, tokens, head_dim = q.shape
    patches = tokens - num_prefix_tokens
    result = total
    if result is None:
        result = torch.empty(batch, patches, patches, dtype=torch.float32, device=q.device)
    if result.numel() == 0:
        return result
    normalizers = torch.empty(batch, heads, patches, dtype=torch.float32, device=q.device)
    patch_queries = q[:, :, num_prefix_tokens:]
    common = {
        "scale": scale * math.log2(math.e),  # the kernels count in powers of 2
        "patches": patches,
        "heads": heads,
        "head_dim": head_dim,
        # A product needs sides of at least 16, and blocks powers of 2.
        "padded_dim": max(triton.next_power_of_2(head_dim), 16),
        "enable_fp_fusion": True,  # the default; Triton 3.9 warns where it is left unsaid
    }

    def row_grid(config: dict[str, int]) -> tuple[int]:
        return (batch * heads * triton.cdiv(patches, config["block_rows"]),)

    def tile_grid(config: dict[str, int]) -> tuple[int]:
        row_blocks = triton.cdiv(patches, config["block_rows"])
        return (batch * row_blocks * triton.cdiv(patches, config["block_columns"]),)

    with torch.cuda.device_of(q):  # Triton launches on the current device
        _row_normalizers[row_grid](
            patch_queries, k, normalizers, *patch_queries.stride(), *k.stride(), tokens, **common
        )
        patch_keys = k[:, :, num_prefix_tokens:]
        _add_mean[tile_grid](
            patch_queries,
            patch_keys,
            normalizers,
            result,
            *patch_queries.stride(),
            *patch_keys.stride(),
            *result.stride(),
            **common,
            from_zero=total is None,
        )
    return result


@triton.autotune(CONFIGS, key=["head_dim"])
@triton.jit
def _row_normalizers(
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
    tokens,
    scale,
    patches,
    heads,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """log2(heads * sum of exp) of each patch's row, (B, heads, N); one program a block of rows.

    Neighbouring programs read the keys of the same head.
    """
    row_blocks = tl.cdiv(patches, block_rows)
    pair = (tl.program_id(0) // row_blocks).to(tl.int64)  # batch * heads + head
    rows = (tl.program_id(0) % row_blocks) * block_rows + tl.arange(0, block_rows)
    head_q = q + pair // heads * q_batch + pair % heads * q_head
    head_k = k + pair // heads * k_batch + pair % heads * k_head
    queries = _load_tokens(head_q, rows, patches, q_token, q_channel, head_dim, padded_dim)
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
    # With the number of heads in the normaliser, the sum over heads is their mean.
    tl.store(normalizers + pair * patches + rows, largest + tl.log2(mass * heads), rows < patches)


# Tuning runs the kernel on the caller's tensors: what it added has to be taken back.
@triton.autotune(CONFIGS, key=["head_dim"], restore_value=["total"])
@triton.jit
def _add_mean(
    q,
    k,
    normalizers,
    total,
    q_batch,
    q_head,
    q_token,
    q_channel,
    k_batch,
    k_head,
    k_token,
    k_channel,
    total_batch,
    total_row,
    total_column,
    scale,
    patches,
    heads,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    from_zero: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
):
    """Add the mean over heads to (B, N, N), or write it over what is there; one program a tile."""
    row_blocks = tl.cdiv(patches, block_rows)
    column_blocks = tl.cdiv(patches, block_columns)
    tile = tl.program_id(0) % (row_blocks * column_blocks)
    image = (tl.program_id(0) // (row_blocks * column_blocks)).to(tl.int64)
    rows = tile // column_blocks * block_rows + tl.arange(0, block_rows)
    columns = tile % column_blocks * block_columns + tl.arange(0, block_columns)
    head_q = q + image * q_batch
    head_k = k + image * k_batch
    head_normalizers = normalizers + image * heads * patches
    mean = tl.zeros((block_rows, block_columns), tl.float32)
    for _ in range(heads):
        queries = _load_tokens(head_q, rows, patches, q_token, q_channel, head_dim, padded_dim)
        keys = _load_tokens(head_k, columns, patches, k_token, k_channel, head_dim, padded_dim)
        scores = tl.dot(queries, tl.trans(keys), input_precision="tf32x3") * scale
        normalizer = tl.load(head_normalizers + rows, rows < patches, other=0)
        mean += tl.exp2(scores - normalizer[:, None])
        head_q += q_head
        head_k += k_head
        head_normalizers += patches
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
