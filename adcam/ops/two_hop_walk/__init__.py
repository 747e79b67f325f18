"""Spread maps by a walk of two hops, without its matrix. Derivation: README.md beside this file."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adcam.ops._backends import (
    available_backends,
    choose_backend,
    triton_not_supported_reasons,
)
from adcam.ops._checks import (
    at_least_float32,
    check_float,
    check_maps,
    check_non_negative,
    check_square,
    check_steps,
    to_common_dtype,
    without_autocast,
)
from adcam.ops.two_hop_walk import reference, streamed, thin

__all__ = ["available_backends", "two_hop_transition", "two_hop_walk", "two_hop_walk_of_tokens"]


_MOST_IN_A_ROW = 2048
"""Longer rows of float32 fill the registers of the kernel, and cuBLAS is faster (README.md)."""


def two_hop_walk(
    maps: torch.Tensor,
    attn: torch.Tensor,
    *,
    num_steps: int = 1,
    check_values: bool | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Spread each map by "pick a neighbour, then one of those who attend to it".

    With ``A`` the attention scaled to row sums 1 and ``D`` the diagonal matrix of its column sums::

        P   = A D^-1 A^T                    symmetric; rows and columns sum to 1
        M_t = P M_{t-1} = A (D^-1 (A^T M_{t-1}))            t = 1..num_steps

    It is the quick form of AD-CAM: no N×N×N product and no Sinkhorn scaling, and P is not formed.
    Common neighbours enter it by adding up, not as a gate (docs/methods.md compares both).

    Args:
        maps: (..., K, N), finite, of either sign; float16, bfloat16, float32 or float64.
        attn: (..., N, N), finite and >= 0, with the leading sizes of ``maps``; rows need not sum
            to 1. A token without attention of its own keeps its values and gives none away.
        num_steps: >= 0. More steps spread wider and flatten the map; 0 returns ``maps``.
        check_values: Whether the values of ``attn`` are checked, which on a GPU waits for the
            device. ``None`` checks them on other devices alone.
        backend: ``"triton"`` (GPU, not float64, no gradient), ``"torch"`` (two thin products a
            step), ``"reference"`` (P as a matrix) or ``"auto"`` for the fastest that can run.

    Returns:
        (..., K, N) in the wider dtype of the two, at least float32. The sum of a map and constant
        maps stay as they are. Differentiable in both.

    Raises:
        ValueError: If the shapes do not match, a tensor is not floating point, ``attn`` holds a
            negative, infinite or NaN value and is checked, or an option is outside its legal set.
    """
    check_steps(num_steps)
    check_square("attn", attn)
    check_maps(maps, attn, "attention")
    check_non_negative("attn", attn, check_values)
    reasons = triton_not_supported_reasons(maps, attn, is_differentiable=False)
    backends: dict[str, list[str]] = {"triton": reasons, "torch": [], "reference": []}
    if attn.dtype == torch.float32 and attn.shape[-1] > _MOST_IN_A_ROW:
        backends = {"torch": [], **backends}
    chosen = choose_backend("two_hop_walk", backend, backends)
    if chosen == "triton":
        from adcam.ops.two_hop_walk import triton_kernels

        return triton_kernels.walk(maps, attn, num_steps)
    walk = reference.walk if chosen == "reference" else thin.walk
    with without_autocast(attn):
        return walk(*to_common_dtype(maps, attn), num_steps)


def two_hop_transition(attn: torch.Tensor) -> torch.Tensor:
    """P as a matrix, for looking at it: an N×N×N product.

    Args:
        attn: The attention, (..., N, N), finite and >= 0; rows need not sum to 1.

    Returns:
        (..., N, N) in [0, 1], symmetric, at least float32; rows and columns sum to 1.

    Raises:
        ValueError: If ``attn`` is not square, not floating point, or holds a negative, infinite or
            NaN value.
    """
    check_square("attn", attn)
    check_non_negative("attn", attn)
    with without_autocast(attn):
        return reference.transition(at_least_float32(attn))


def two_hop_walk_of_tokens(
    maps: torch.Tensor,
    blocks: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    scale: float,
    num_prefix_tokens: int = 1,
    num_steps: int = 1,
    max_rows: int = 256,
) -> torch.Tensor:
    """The walk from queries and keys, for inputs whose N×N attention does not fit into memory.

    It equals :func:`two_hop_walk` on the mean of the blocks' attention
    (:func:`adcam.ops.token_attention.token_attention`). Every step computes that attention twice, a
    few rows at a time.

    Args:
        maps: (B, K, N), finite; see :func:`two_hop_walk`.
        blocks: Queries and keys (B, heads, tokens, d) of each block whose attention is averaged,
            prefix tokens first. The number and width of heads may differ between blocks.
        scale: Factor on the products of queries and keys, above 0.
        num_prefix_tokens: The number of tokens before the patches (class token, registers).
        num_steps: >= 0, as in :func:`two_hop_walk`.
        max_rows: Rows of the attention that exist at a time, >= 1. More take more memory
            (2 · max_rows · tokens numbers an image) and fewer calls.

    Returns:
        (B, K, N), at least float32. Not differentiable.

    Raises:
        ValueError: If there is no block, the shapes do not match or an option is out of range.

    Example:
        >>> q, k = torch.rand(2, 1, 3, 1 + 16, 8).unbind(0)
        >>> two_hop_walk_of_tokens(torch.ones(1, 2, 16), [(q, k)], scale=0.3).shape
        torch.Size([1, 2, 16])
    """
    check_steps(num_steps)
    check_float("maps", maps)
    if not scale > 0:
        raise ValueError(f"scale must be > 0, got {scale}")
    if max_rows < 1:
        raise ValueError(f"max_rows must be >= 1, got {max_rows}")
    _check_blocks(blocks, maps, num_prefix_tokens)
    with without_autocast(maps), torch.no_grad():
        rows = streamed.AttentionRows(blocks, scale, num_prefix_tokens, max_rows)
        return streamed.walk(at_least_float32(maps), rows, num_steps)


def _check_blocks(
    blocks: Sequence[tuple[torch.Tensor, torch.Tensor]], maps: torch.Tensor, num_prefix_tokens: int
) -> None:
    if not blocks:
        raise ValueError("blocks must hold the queries and keys of at least one block")
    want = (maps.shape[0], num_prefix_tokens + maps.shape[-1])
    for q, k in blocks:
        check_float("q", q)
        is_alike = maps.ndim == 3 and q.ndim == 4 and q.shape == k.shape
        if not is_alike or (q.shape[0], q.shape[2]) != want:
            raise ValueError(
                "q and k must be (B, heads, prefix tokens + N, d) for maps (B, K, N), got "
                f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(maps.shape)} with "
                f"{num_prefix_tokens} prefix tokens"
            )
