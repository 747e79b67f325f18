"""Attention among patches, and from the class token to them. Derivation: README.md beside this."""

from __future__ import annotations

import math

import torch

from adcam.ops._checks import at_least_float32, check_float, without_autocast
from adcam.ops.token_attention import reference
from adcam.ops.token_attention.layers import resolve_layers

__all__ = ["cls_attention", "resolve_layers", "token_attention"]


def token_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    scale: float,
    num_prefix_tokens: int = 1,
    cls_index: int | None = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of one block, mean over heads, on the patch tokens.

    With P prefix tokens before N patch tokens and H heads::

        attn_h      = softmax(scale * q_h k_h^T)          over all P + N tokens
        patch2patch = mean_h attn_h[P:, P:]
        cls2patch   = mean_h attn_h[cls_index, P:]

    Rows are not scaled again after the prefix columns are dropped, so they sum to less than 1;
    what is missing went to the prefix tokens. Heads are summed one after another: no
    (B, H, P + N, P + N) tensor exists unless autograd keeps one.

    Args:
        q: Queries (B, H, P + N, d); float16, bfloat16, float32 or float64. Whatever the model does
            to them before the product (norms, rotary embedding) is already done.
        k: Keys, same shape and dtype.
        scale: Factor on the products, > 0; 1 / sqrt(d) in a standard ViT. Larger sharpens.
        num_prefix_tokens: P >= 0: class, distillation and register tokens together, as in timm.
        cls_index: Position of the class token among the prefix tokens; ``None`` if the model has
            none or its row is not wanted.

    Returns:
        ``patch2patch`` (B, N, N) and ``cls2patch`` (B, N), or ``None`` for ``cls_index=None``; in
        [0, 1], at least float32. Differentiable. NaN in ``q`` or ``k`` is passed on, not raised.

    Raises:
        ValueError: If the shapes do not match or leave no patch token, a tensor is not floating
            point, or an option is outside its legal range.
    """
    _check(q, k, scale, num_prefix_tokens)
    if cls_index is not None:
        _check_cls_index(cls_index, num_prefix_tokens)
    with without_autocast(q):
        return reference.token_attention(
            at_least_float32(q), at_least_float32(k), scale, num_prefix_tokens, cls_index
        )


def cls_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    scale: float,
    num_prefix_tokens: int = 1,
    cls_index: int = 0,
) -> torch.Tensor:
    """The ``cls2patch`` of :func:`token_attention` alone, without the N x N work.

    Args:
        q: As in :func:`token_attention`; only the class token's query is read.
        k: As in :func:`token_attention`.
        scale: As in :func:`token_attention`.
        num_prefix_tokens: P >= 1.
        cls_index: Position of the class token among the prefix tokens.

    Returns:
        (B, N) in [0, 1], at least float32; each row sums to less than 1.

    Raises:
        ValueError: As in :func:`token_attention`.
    """
    _check(q, k, scale, num_prefix_tokens)
    _check_cls_index(cls_index, num_prefix_tokens)
    with without_autocast(q):
        return reference.cls_attention(
            at_least_float32(q), at_least_float32(k), scale, num_prefix_tokens, cls_index
        )


def _check(q: torch.Tensor, k: torch.Tensor, scale: float, num_prefix_tokens: int) -> None:
    check_float("q", q)
    if q.ndim != 4 or q.shape != k.shape or q.dtype != k.dtype:
        raise ValueError(
            "q and k must have one shape (B, heads, tokens, d) and one dtype, "
            f"got {tuple(q.shape)} {q.dtype} and {tuple(k.shape)} {k.dtype}"
        )
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be finite and > 0, got {scale}")
    if not 0 <= num_prefix_tokens < q.shape[2]:
        raise ValueError(
            f"num_prefix_tokens must lie in 0..{q.shape[2] - 1} for {q.shape[2]} tokens, "
            f"got {num_prefix_tokens}"
        )


def _check_cls_index(cls_index: int, num_prefix_tokens: int) -> None:
    if not 0 <= cls_index < num_prefix_tokens:
        raise ValueError(
            f"cls_index must lie in 0..{num_prefix_tokens - 1} for num_prefix_tokens="
            f"{num_prefix_tokens} (None for no class row), got {cls_index}"
        )
