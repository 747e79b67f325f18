"""Mean-over-heads attention in plain torch: the specification every fast path is held to."""

from __future__ import annotations

import torch


def patch_attention(
    q: torch.Tensor, k: torch.Tensor, scale: float, num_prefix_tokens: int
) -> torch.Tensor:
    """1/H Σ_h softmax(scale · q_h k_hᵀ)[P:, P:]. (B, H, P + N, d) twice -> (B, N, N)."""
    batch, heads, tokens, _ = q.shape
    patches = tokens - num_prefix_tokens
    mean = q.new_zeros(batch, patches, patches)
    # Head by head, so that one (B, N, P + N) tensor lives at a time and not `heads` of them.
    for head in range(heads):
        rows = q[:, head, num_prefix_tokens:] * scale  # (B, N, d)
        attn = (rows @ k[:, head].mT).softmax(dim=-1)  # (B, N, P + N)
        mean += attn[:, :, num_prefix_tokens:]
    mean /= heads
    return mean


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(scale · q_h k_hᵀ) v_h for each head h. (B, H, T, d) three times -> same."""
    attn = ((q * scale) @ k.mT).softmax(dim=-1)  # (B, H, T, T)
    return attn @ v


def cls_attention(
    q: torch.Tensor, k: torch.Tensor, scale: float, num_prefix_tokens: int, cls_index: int
) -> torch.Tensor:
    """1/H Σ_h softmax(scale · q_h k_hᵀ)[cls_index, P:]. (B, H, P + N, d) twice -> (B, N)."""
    query = q[:, :, cls_index : cls_index + 1] * scale  # (B, H, 1, d)
    attn = (query @ k.mT).softmax(dim=-1)  # (B, H, 1, P + N)
    return attn[:, :, 0, num_prefix_tokens:].mean(dim=1)
