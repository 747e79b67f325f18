"""Mean-over-heads attention in plain torch: the specification every fast path is held to."""

from __future__ import annotations

import torch


def token_attention(
    q: torch.Tensor, k: torch.Tensor, scale: float, num_prefix_tokens: int, cls_index: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, heads, P + N, d) twice -> (B, N, N) and (B, N) or ``None``; see the package."""
    batch, heads, tokens, _ = q.shape
    patches = tokens - num_prefix_tokens
    patch2patch = q.new_zeros(batch, patches, patches)
    cls2patch = None if cls_index is None else q.new_zeros(batch, patches)
    # Head by head, so that one (B, P + N, P + N) tensor lives at a time and not `heads` of them.
    for head in range(heads):
        attn = ((q[:, head] * scale) @ k[:, head].mT).softmax(dim=-1)  # (B, P + N, P + N)
        patch2patch += attn[:, num_prefix_tokens:, num_prefix_tokens:]
        if cls2patch is not None:
            cls2patch += attn[:, cls_index, num_prefix_tokens:]
    patch2patch /= heads
    if cls2patch is not None:
        cls2patch /= heads
    return patch2patch, cls2patch


def cls_attention(
    q: torch.Tensor, k: torch.Tensor, scale: float, num_prefix_tokens: int, cls_index: int
) -> torch.Tensor:
    """(B, heads, P + N, d) twice -> (B, N); see the package."""
    query = q[:, :, cls_index : cls_index + 1] * scale  # (B, heads, 1, d)
    attn = (query @ k.mT).softmax(dim=-1)  # (B, heads, 1, P + N)
    return attn[:, :, 0, num_prefix_tokens:].mean(dim=1)
