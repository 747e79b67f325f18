"""Mean-over-heads attention in blocks of query rows that stay in the cache; no backward."""

from __future__ import annotations

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
    batch, heads, tokens, _ = q.shape
    if q.dtype == torch.float16:
        q, k = q.float(), k.float()  # few CPUs multiply float16, and none fast in torch
    dtype = torch.float32 if q.dtype == torch.bfloat16 else q.dtype
    patches = tokens - num_prefix_tokens
    if total is None:
        total = torch.zeros(batch, patches, patches, dtype=dtype, device=q.device)
    rows = min(max(_BLOCK_NUMEL // tokens, 1), patches)
    products = torch.empty(rows, tokens, dtype=q.dtype, device=q.device)
    attn = torch.empty(rows, tokens, dtype=dtype, device=q.device)
    q = q[:, :, num_prefix_tokens:] * scale
    for item in range(batch):
        for start in range(0, patches, rows):
            target = total[item, start : start + rows]  # (rows, N)
            size = len(target)  # the last block may be smaller
            for head in range(heads):
                queries = q[item, head, start : start + rows]  # (rows, d)
                torch.mm(queries, k[item, head].mT, out=products[:size])
                torch.softmax(products[:size], dim=-1, dtype=dtype, out=attn[:size])
                # The mean over heads comes with the sum: no pass of its own.
                target.add_(attn[:size, num_prefix_tokens:], alpha=1 / heads)
    return total
