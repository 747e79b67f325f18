"""Spread class maps along an affinity between tokens. Derivation: README.md beside this file."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from adcam.ops._backends import available_backends, choose_backend, triton_not_supported_reasons
from adcam.ops._checks import (
    at_least_float32,
    check_choice,
    check_maps,
    check_non_negative,
    check_square,
    to_common_dtype,
    without_autocast,
)
from adcam.ops._recompute import recompute_backward
from adcam.ops.diffusion import reference, scaling

__all__ = ["NORMALIZATIONS", "available_backends", "diffuse", "transition"]

NORMALIZATIONS = ("sinkhorn", "row", "column", "none")
SINKHORN_ITERS = 3  # as CLIP-ES


def diffuse(
    maps: torch.Tensor,
    affinity: torch.Tensor,
    *,
    normalize: str = "sinkhorn",
    num_steps: int | None = 2,
    alpha: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Spread each map over the tokens in proportion to the affinity.

    With ``T`` from :func:`transition` and each map a column vector::

        M_t = T M_{t-1}                                   t = 1..num_steps
        M_t = alpha T M_{t-1} + (1 - alpha) M_0           with restart
        M   = (1 - alpha) (I - alpha T)^-1 M_0            with restart, num_steps=None

    so a token takes over the mean of the tokens its row of ``T`` points to. To use another number
    of Sinkhorn rounds, or to edit ``T``, pass it as the affinity with ``normalize="none"``.

    Sinkhorn and squaring follow CLIP-ES (arXiv 2212.09506); the restart is personalised PageRank
    (Zhou et al., Learning with local and global consistency, NIPS 2003).

    Args:
        maps: (..., K, N), finite, of either sign; float16, bfloat16, float32 or float64.
        affinity: (..., N, N), finite and >= 0, with the same leading sizes as ``maps``.
        normalize: One of :data:`NORMALIZATIONS`.
        num_steps: >= 0. More steps spread wider and flatten the map; 0 returns ``maps``. ``None``
            stands for infinitely many and needs ``alpha``.
        alpha: Restart weight in [0, 1] (below 1 for ``num_steps=None``); ``None`` means no
            restart, like 1. Larger lets the map travel further; 0 returns ``maps``.
        backend: ``"triton"`` (GPU; ``normalize="sinkhorn"`` alone, not float64), ``"torch"``
            (any device; ``T`` as the affinity and two scaling vectors, as in Triton),
            ``"reference"`` (``T`` as a matrix, the only one with ``num_steps=None``), or
            ``"auto"`` for the first of them that can run.

    Returns:
        (..., K, N) in the wider dtype of the two, at least float32. Differentiable in both.

    Raises:
        ValueError: If the shapes do not match, a tensor is not floating point, ``affinity`` holds
            a negative, infinite or NaN value, an option is outside its legal set, or the closed
            form does not exist (``alpha`` times the spectral radius of ``T`` is 1 or more). The
            values of ``maps`` are not checked, nor those of an ``affinity`` on a GPU, which would
            wait for the device.
        RuntimeError: If the backend asked for cannot run here; the message holds the reason.
    """
    check_options(normalize, num_steps, alpha)
    check_square("affinity", affinity)
    check_maps(maps, affinity, "affinity")
    check_non_negative("affinity", affinity, None)
    reasons = _not_supported_reasons(maps, affinity, normalize, num_steps)
    chosen = choose_backend("diffusion", backend, reasons)
    options: dict[str, Any] = {"num_iters": SINKHORN_ITERS, "num_steps": num_steps, "alpha": alpha}

    def by_scaling(maps: torch.Tensor, affinity: torch.Tensor) -> torch.Tensor:
        return scaling.diffuse(*to_common_dtype(maps, affinity), normalize=normalize, **options)

    with without_autocast(affinity):
        if chosen == "reference":
            tensors = to_common_dtype(maps, affinity)
            return reference.diffuse(*tensors, normalize=normalize, **options)
        if chosen == "torch":
            return by_scaling(maps, affinity)
        from adcam.ops.diffusion import triton_kernels

        kernels = partial(triton_kernels.diffuse, **options)
        return recompute_backward(kernels, by_scaling, maps, affinity)


def transition(
    affinity: torch.Tensor, *, normalize: str = "sinkhorn", num_iters: int = SINKHORN_ITERS
) -> torch.Tensor:
    """Scale an affinity so that it can move maps.

    ::

        "sinkhorn"  num_iters times (columns to sum 1, then rows to sum 1), then (T + T^T) / 2
        "row"       rows to sum 1: each token becomes a mean of others; constant maps stay
        "column"    columns to sum 1: each token hands out what it has; the sum of a map stays
        "none"      the affinity itself

    Sinkhorn's rows and columns sum to 1 only in the limit: after the last row step the rows do,
    and symmetrising leaves row and column i at (1 + c_i) / 2, c_i the column sum before it.

    A token whose row (``"row"``), column (``"column"``) or either (``"sinkhorn"``) is zero is
    first given an affinity to itself, so that a token without neighbours keeps its own value:
    T_ii = 1 if both are zero.

    Args:
        affinity: (..., N, N), finite and >= 0; float16, bfloat16, float32 or float64.
        normalize: One of :data:`NORMALIZATIONS`.
        num_iters: Sinkhorn rounds, >= 1. More come closer to row and column sums of 1; 3 as in
            CLIP-ES (arXiv 2212.09506). Not used by the others.

    Returns:
        (..., N, N), >= 0, at least float32. Multiplying ``affinity`` by a constant does not change
        it (but for ``"none"``). Differentiable.

    Raises:
        ValueError: If ``affinity`` is not square, not floating point, or holds a negative,
            infinite or NaN value; if an option is outside its legal set.
    """
    if num_iters < 1:
        raise ValueError(f"num_iters must be >= 1, got {num_iters}")
    check_choice("normalize", normalize, NORMALIZATIONS)
    check_square("affinity", affinity)
    check_non_negative("affinity", affinity)
    return reference.transition(at_least_float32(affinity), normalize, num_iters)


def check_options(normalize: str, num_steps: int | None, alpha: float | None) -> None:
    """Raise ``ValueError`` for options that :func:`diffuse` refuses."""
    check_choice("normalize", normalize, NORMALIZATIONS)
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be None or lie in [0, 1], got {alpha}")
    if num_steps is not None and num_steps < 0:
        raise ValueError(f"num_steps must be None or >= 0, got {num_steps}")
    if num_steps is None and (alpha is None or alpha == 1):
        raise ValueError(f"num_steps=None needs alpha in [0, 1), got {alpha}")


def find_missing_kernels(normalize: str, num_steps: int | None) -> list[str]:
    """Why Triton has no kernel for these options, whatever the tensors; nothing if it has one."""
    reasons = _closed_form_reasons(num_steps)
    if normalize != "sinkhorn":
        reasons.append(f"there is no kernel for normalize={normalize!r}")
    return reasons


def _closed_form_reasons(num_steps: int | None) -> list[str]:
    return ["the closed form needs the transition as a matrix"] if num_steps is None else []


def _not_supported_reasons(
    maps: torch.Tensor, affinity: torch.Tensor, normalize: str, num_steps: int | None
) -> dict[str, list[str]]:
    on_these_tensors = triton_not_supported_reasons(maps, affinity)
    return {
        "triton": on_these_tensors + find_missing_kernels(normalize, num_steps),
        "torch": _closed_form_reasons(num_steps),
        "reference": [],
    }
