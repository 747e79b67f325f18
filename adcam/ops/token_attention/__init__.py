"""Attention among patches, and from the class token to them. Derivation: README.md beside this."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch.nn import functional as F

from adcam.ops._backends import available_backends, choose_backend, triton_not_supported_reasons
from adcam.ops._checks import at_least_float32, check_float, without_autocast
from adcam.ops._recompute import recompute_backward, records_gradient
from adcam.ops.layers import resolve_layers
from adcam.ops.token_attention import blocked, fused, reference

__all__ = [
    "accumulate_blocks",
    "accumulate_token_attention",
    "attend",
    "attend_and_accumulate",
    "attend_with_normalizers",
    "available_backends",
    "cls_attention",
    "has_kernels",
    "resolve_layers",
    "token_attention",
]

Block = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Queries, keys and, where they are known, normalisers of a block of the network."""

MOST_BLOCKS = 6
"""Blocks that Triton adds in one pass over the sum: those that DeiT's attention is read of by
default. Until then their queries and keys are held; more would save little memory traffic."""

WIDEST_HEAD = 256
"""Channels of the widest heads that Triton computes in half precision; in float32, half as many.
With more, no reasonable tile fits into the shared memory of every GPU."""


def token_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    scale: float,
    num_prefix_tokens: int = 1,
    cls_index: int | None = 0,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of one block, mean over heads, on the patch tokens.

    With P prefix tokens before N patch tokens and H heads::

        attn_h      = softmax(scale * q_h k_h^T)          over all P + N tokens
        patch2patch = mean_h attn_h[P:, P:]
        cls2patch   = mean_h attn_h[cls_index, P:]

    Rows are not scaled again after the prefix columns are dropped, so they sum to less than 1;
    what is missing went to the prefix tokens. No (B, H, P + N, P + N) tensor exists in any backend
    unless the reference is differentiated.

    Args:
        q: Queries (B, H, P + N, d); float16, bfloat16, float32 or float64. Whatever the model does
            to them before the product (norms, rotary embedding) is already done.
        k: Keys, same shape and dtype.
        scale: Factor on the products, > 0; 1 / sqrt(d) in a standard ViT. Larger sharpens.
        num_prefix_tokens: P >= 0: class, distillation and register tokens together, as in timm.
        cls_index: Position of the class token among the prefix tokens; ``None`` if the model has
            none or its row is not wanted.
        backend: ``"triton"`` (a CUDA device; no float64), ``"torch"`` (blocks of rows, any device;
            products of bfloat16 are rounded to bfloat16), ``"reference"`` (in float32 or wider) or
            ``"auto"`` for the first that can run.

    Returns:
        ``patch2patch`` (B, N, N) and ``cls2patch`` (B, N), or ``None`` for ``cls_index=None``; in
        [0, 1], at least float32. Differentiable: the backward of each backend is the reference's,
        run again from q and k. NaN in ``q`` or ``k`` is passed on, not raised.

    Raises:
        ValueError: If the shapes do not match or leave no patch token, a tensor is not floating
            point, or an option is outside its legal range.
        RuntimeError: If the backend asked for cannot run here; the message holds the reasons.
    """
    _check(q, k, scale, num_prefix_tokens)
    if cls_index is not None:
        _check_cls_index(cls_index, num_prefix_tokens)
    options: dict[str, Any] = {"scale": scale, "num_prefix_tokens": num_prefix_tokens}
    patch2patch = accumulate_token_attention(None, q, k, backend=backend, **options)
    cls2patch = None if cls_index is None else cls_attention(q, k, cls_index=cls_index, **options)
    return patch2patch, cls2patch


def accumulate_token_attention(
    total: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    scale: float,
    num_prefix_tokens: int = 1,
    backend: str = "auto",
) -> torch.Tensor:
    """Add the ``patch2patch`` of :func:`token_attention` to a running sum over blocks.

    ::

        total = None
        for q, k in blocks:
            total = accumulate_token_attention(total, q, k, scale=scale)

    holds one (B, N, N) tensor however many blocks and heads there are.

    Args:
        total: (B, N, N), what an earlier call returned, or ``None`` to start. The fast backends add
            to it in place unless autograd records, so only use what is returned from then on.
        q: Queries (B, heads, tokens, d), prefix tokens first; see :func:`token_attention`.
        k: Keys in the shape and dtype of ``q``.
        scale: The factor on the products of queries and keys, above 0.
        num_prefix_tokens: The number of tokens before the patches (class token, registers).
        backend: What computes; see :func:`token_attention`.

    Returns:
        (B, N, N), float64 for float64 inputs, else float32. Differentiable in all tensors.

    Raises:
        ValueError: As in :func:`token_attention`, or if ``total`` is not of the shape, dtype and
            device of the result.
        RuntimeError: As in :func:`token_attention`.
    """
    _check(q, k, scale, num_prefix_tokens)
    if total is not None:
        _check_total(total, q, num_prefix_tokens)
    chosen = choose_backend("token_attention", backend, _not_supported_reasons(q, k))

    def slow(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return reference.patch_attention(
            at_least_float32(q), at_least_float32(k), scale, num_prefix_tokens
        )

    with without_autocast(q):
        if chosen == "reference":
            mean = slow(q, k)
        else:
            fast = partial(_load(chosen), scale=scale, num_prefix_tokens=num_prefix_tokens)
            tensors = [q, k] if total is None else [total, q, k]
            if not records_gradient(*tensors):
                return fast(total, q, k)
            mean = recompute_backward(partial(fast, None), slow, q, k)
    return mean if total is None else total + mean


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
    """The output of a block's attention alone, computed in the fastest way known.

    On a CPU, torch's fused attention multiplies bfloat16 at the speed of float32 (it took twice the
    time of separate products at 448 px), so there the output is computed block by block. The
    attention is rounded to bfloat16 either way, and block by block the scores are rounded too.
    Everything else goes to torch's function.

    Args:
        q: (B, H, T, d) queries.
        k: Keys, as ``q``.
        v: Values, as ``q``.
        scale: Positive factor of ``q @ k.T``.

    Returns:
        (B, H, T, d), dtype of ``v``. Differentiable.

    Raises:
        ValueError: As in :func:`attend_and_accumulate`.
    """
    _check(q, k, scale, num_prefix_tokens=0)
    _check_values(q, v)
    with without_autocast(q):
        is_fused_slow = q.device.type == "cpu" and q.dtype == torch.bfloat16
        if is_fused_slow and not records_gradient(q, k, v):
            return blocked.attend(q, k, v, scale=scale)
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


def attend_and_accumulate(
    total: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    num_prefix_tokens: int = 1,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of a block's attention, and :func:`accumulate_token_attention` of the same block.

    ::

        output_h = softmax(scale * q_h k_h^T) v_h          as torch's scaled_dot_product_attention

    On a CPU both come from one softmax, where two calls would take two. Elsewhere, and where
    autograd records, the output is that of torch's fused attention.

    Args:
        total: (B, N, N) float sum that the result is added to, or ``None`` to start at zero.
        q: Queries (B, heads, tokens, d), prefix tokens first; see :func:`token_attention`.
        k: Keys in the shape and dtype of ``q``.
        v: Values, shape, dtype and device of ``q``.
        scale: The factor on the products of queries and keys, above 0.
        num_prefix_tokens: The number of tokens before the patches (class token, registers).
        backend: What computes; see :func:`token_attention`. ``"torch"`` rounds the attention of
            bfloat16 inputs to bfloat16 before it is multiplied by ``v``, as fused attention does.

    Returns:
        ``output`` (B, H, P + N, d), dtype of ``v``, and what :func:`accumulate_token_attention`
        returns. Differentiable in all tensors.

    Raises:
        ValueError: As in :func:`accumulate_token_attention`, or if ``v`` does not match ``q``.
        RuntimeError: As in :func:`token_attention`.
    """
    _check(q, k, scale, num_prefix_tokens)
    _check_values(q, v)
    if total is not None:
        _check_total(total, q, num_prefix_tokens)
    chosen = choose_backend("token_attention", backend, _not_supported_reasons(q, k))
    options: dict[str, Any] = {"scale": scale, "num_prefix_tokens": num_prefix_tokens}
    tensors = [q, k, v] if total is None else [total, q, k, v]
    with without_autocast(q):
        if chosen == "torch" and q.device.type == "cpu" and not records_gradient(*tensors):
            return blocked.attend_and_accumulate(total, q, k, v, **options)
        if chosen == "reference":
            wide = at_least_float32(q), at_least_float32(k), at_least_float32(v)
            output = reference.attend(*wide, scale).to(v.dtype)
        else:
            output = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return output, accumulate_token_attention(total, q, k, backend=chosen, **options)


def has_kernels(q: torch.Tensor) -> bool:
    """Whether Triton kernels can run on queries such as these."""
    return not _not_supported_reasons(q, q)["triton"]


def attend_with_normalizers(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The output of a block's attention, and the normaliser of each row that it was made with.

    The kernel is the one that ``scaled_dot_product_attention`` takes, so the output is that
    function's, and the normalisers cost nothing.

    Args:
        q: (B, heads, tokens, d) queries.
        k: Keys, as ``q``.
        v: Values, as ``q``.
        scale: Positive factor of ``q @ k.T``.

    Returns:
        ``output`` (B, heads, tokens, d), dtype of ``v``, and ``log Σ_j exp(scale * q_i k_j)``,
        (B, heads, tokens) float32, or ``None`` where torch takes a kernel that keeps it. Not
        differentiable.

    Raises:
        ValueError: As in :func:`attend_and_accumulate`.
    """
    _check(q, k, scale, num_prefix_tokens=0)
    _check_values(q, v)
    with without_autocast(q):
        return fused.attend(q, k, v, scale=scale)


def accumulate_blocks(
    total: torch.Tensor | None,
    blocks: Sequence[Block],
    *,
    scale: float,
    num_prefix_tokens: int = 1,
    weight: float = 1.0,
    backend: str = "auto",
) -> torch.Tensor:
    """Add ``weight`` times the ``patch2patch`` of several blocks to a running sum, in one pass.

    Triton reads and writes the sum once for every six blocks, where one call of
    :func:`accumulate_token_attention` a block does so for each.

    Args:
        total: (B, N, N), the sum so far, or ``None`` to start at zero.
        blocks: At least one. Queries and keys (B, heads, P + N, d), and the normalisers that
            :func:`attend_with_normalizers` returned, or ``None``.
        scale: The factor on the products of queries and keys, above 0.
        num_prefix_tokens: P.
        weight: The factor on each block's mean, > 0.
        backend: What computes; see :func:`token_attention`.

    Returns:
        (B, N, N), float64 for float64 inputs, else float32. Not differentiable by Triton.

    Raises:
        ValueError: As in :func:`accumulate_token_attention`, or if there is no block or ``weight``
            is not above 0.
        RuntimeError: As in :func:`token_attention`.
    """
    if not blocks or not weight > 0:
        raise ValueError(f"blocks must not be empty and weight > 0, got {len(blocks)}, {weight}")
    for q, k, _ in blocks:
        _check(q, k, scale, num_prefix_tokens)
    q = blocks[0][0]
    if total is not None:
        _check_total(total, q, num_prefix_tokens)
    options: dict[str, Any] = {"scale": scale, "num_prefix_tokens": num_prefix_tokens}
    if choose_backend("token_attention", backend, _not_supported_reasons(q, q)) == "triton":
        from adcam.ops.token_attention import triton_kernels

        return triton_kernels.accumulate_blocks(total, blocks, weight=weight, **options)
    for q, k, _ in blocks:
        mean = weight * accumulate_token_attention(None, q, k, backend=backend, **options)
        total = mean if total is None else total + mean
    return cast("torch.Tensor", total)


def cls_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    scale: float,
    num_prefix_tokens: int = 1,
    cls_index: int = 0,
    normalizers: torch.Tensor | None = None,
) -> torch.Tensor:
    """The ``cls2patch`` of :func:`token_attention` alone, without the N x N work.

    Args:
        q: Queries (B, heads, tokens, d), of which only the class token's is read.
        k: Keys in the shape and dtype of ``q``.
        scale: The factor on the products of queries and keys, above 0.
        num_prefix_tokens: P >= 1.
        cls_index: Position of the class token among the prefix tokens.
        normalizers: What :func:`attend_with_normalizers` returned. With it, and where Triton can
            run, one kernel reads the keys as they are; it has no gradient.

    Returns:
        (B, N) in [0, 1], at least float32; each row sums to less than 1.

    Raises:
        ValueError: As in :func:`token_attention`.
    """
    _check(q, k, scale, num_prefix_tokens)
    _check_cls_index(cls_index, num_prefix_tokens)
    options: dict[str, Any] = {"scale": scale, "num_prefix_tokens": num_prefix_tokens}
    if normalizers is not None and has_kernels(q):
        from adcam.ops.token_attention import triton_kernels

        return triton_kernels.cls_attention(q, k, normalizers, cls_index=cls_index, **options)
    with without_autocast(q):
        return reference.cls_attention(
            at_least_float32(q), at_least_float32(k), cls_index=cls_index, **options
        )


def _load(backend: str) -> Callable[..., torch.Tensor]:
    """The ``accumulate`` of a fast backend."""
    if backend == "torch":
        return blocked.accumulate
    from adcam.ops.token_attention import triton_kernels

    return triton_kernels.accumulate


def _not_supported_reasons(q: torch.Tensor, k: torch.Tensor) -> dict[str, list[str]]:
    reasons = triton_not_supported_reasons(q, k)
    widest = WIDEST_HEAD // 2 if q.dtype == torch.float32 else WIDEST_HEAD
    if q.shape[-1] > widest:
        reasons.append(f"there is no kernel for {q.dtype} heads of more than {widest} channels")
    return {"triton": reasons, "torch": [], "reference": []}


def _check(q: torch.Tensor, k: torch.Tensor, scale: float, num_prefix_tokens: int) -> None:
    check_float("q", q)
    check_float("k", k)
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


def _check_values(q: torch.Tensor, v: torch.Tensor) -> None:
    if (v.shape, v.dtype) != (q.shape, q.dtype):
        raise ValueError(
            f"v must have the shape and dtype of q, {tuple(q.shape)} {q.dtype}, "
            f"got {tuple(v.shape)} {v.dtype}"
        )


def _check_cls_index(cls_index: int, num_prefix_tokens: int) -> None:
    if not 0 <= cls_index < num_prefix_tokens:
        raise ValueError(
            f"cls_index must lie in 0..{num_prefix_tokens - 1} for num_prefix_tokens="
            f"{num_prefix_tokens} (None for no class row), got {cls_index}"
        )


def _check_total(total: torch.Tensor, q: torch.Tensor, num_prefix_tokens: int) -> None:
    patches = q.shape[2] - num_prefix_tokens
    want = ((q.shape[0], patches, patches), at_least_float32(q[:0]).dtype, q.device)
    if (tuple(total.shape), total.dtype, total.device) != want:
        raise ValueError(
            f"total must be {want[0]} {want[1]} on {want[2]}, "
            f"got {tuple(total.shape)} {total.dtype} on {total.device}"
        )
