"""Mean-over-heads attention in blocks of query rows that stay in the cache; no backward."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

_BLOCK_NUMEL = 1 << 19
"""Elements of a block: 2 MB of float32. Measured on DeiT-Tiny at N = 784 and 2304: a quarter of it
costs 3 to 16 % more, because a call then computes too little, and a whole head of N = 2304 costs
20 % more, because it falls out of the cache."""


def accumulate(
    total: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    scale: float,
    num_prefix_tokens: int,
) -> torch.Tensor:
    """Add the mean over heads to ``total`` (B, N, N) in place; ``None`` starts at zero.

    Beside ``total`` it holds two blocks. bfloat16 products are rounded to bfloat16: torch has no
    product of bfloat16 matrices on a CPU that returns the float32 it summed.
    """
    q, k = _fast_to_multiply(q), _fast_to_multiply(k)
    total = _start(total, q, num_prefix_tokens)
    for item, _, rows, _, attn in _softmax_blocks(q[:, :, num_prefix_tokens:], k, scale):
        # The sum divides by the number of heads, so the mean needs no pass of its own.
        total[item, rows].add_(attn[:, num_prefix_tokens:], alpha=1 / q.shape[1])
    return total


def attend_and_accumulate(
    total: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    num_prefix_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`accumulate`, and what the same softmax makes of the values, (B, H, P + N, d).

    bfloat16 attention is rounded to bfloat16 before it meets the values.
    """
    queries, keys, values = (_fast_to_multiply(tensor) for tensor in (q, k, v))
    total = _start(total, queries, num_prefix_tokens)
    output = _new_output(queries, values)
    for item, head, rows, scores, attn in _softmax_blocks(queries, keys, scale):
        first = max(rows.start, num_prefix_tokens)  # prefix tokens have no row in the sum
        target = total[item, first - num_prefix_tokens : max(rows.stop - num_prefix_tokens, 0)]
        target.add_(attn[first - rows.start :, num_prefix_tokens:], alpha=1 / q.shape[1])
        weights = attn if attn.dtype == values.dtype else scores.copy_(attn)
        torch.mm(weights, values[item, head], out=output[item, head, rows])
    return output.to(v.dtype), total


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
    """The output alone, (B, H, P + N, d)."""
    output = _new_output(q, v)
    for item, head, rows, _, attn in _softmax_blocks(q, k, scale, dtype=v.dtype):
        torch.mm(attn, v[item, head], out=output[item, head, rows])
    return output


def _new_output(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Tokens before heads in memory, as the fused attention leaves them: the model joins them."""
    batch, heads, tokens, _ = q.shape
    return v.new_empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2)


def _softmax_blocks(
    q: torch.Tensor, k: torch.Tensor, scale: float, *, dtype: torch.dtype | None = None
) -> Iterator[tuple[int, int, slice, torch.Tensor, torch.Tensor]]:
    """Block by block: image, head, rows of ``q``, their scores and attention (rows, tokens).

    The scores have the dtype of ``q``, the attention has ``dtype``, by default at least float32.
    The next block is written to the same memory. The caller may overwrite the scores.
    """
    batch, heads, num_rows, _ = q.shape
    tokens = k.shape[2]
    count = math.ceil(num_rows * tokens / _BLOCK_NUMEL)
    size = math.ceil(num_rows / min(count, num_rows))  # equal blocks, so that none is a sliver
    scores = q.new_empty(size, tokens)
    attn = q.new_empty(size, tokens, dtype=dtype or _sum_dtype(q))
    q = q * scale
    for item in range(batch):
        for start in range(0, num_rows, size):
            rows = slice(start, min(start + size, num_rows))
            block = slice(rows.stop - rows.start)
            for head in range(heads):
                torch.mm(q[item, head, rows], k[item, head].mT, out=scores[block])
                torch.softmax(scores[block], dim=-1, dtype=attn.dtype, out=attn[block])
                yield item, head, rows, scores[block], attn[block]


def _start(total: torch.Tensor | None, q: torch.Tensor, num_prefix_tokens: int) -> torch.Tensor:
    if total is not None:
        return total
    patches = q.shape[2] - num_prefix_tokens
    return q.new_zeros(q.shape[0], patches, patches, dtype=_sum_dtype(q))


def _sum_dtype(q: torch.Tensor) -> torch.dtype:
    return torch.float32 if q.dtype == torch.bfloat16 else q.dtype


def _fast_to_multiply(tensor: torch.Tensor) -> torch.Tensor:
    """float16 as float32: few CPUs multiply float16, and torch is fast on none of them."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor
