"""Refine attention by what two tokens attend to in common. Derivation: README.md beside this."""

from __future__ import annotations

import math
from functools import partial

import torch

from adcam.ops._backends import available_backends, choose_backend, triton_not_supported_reasons
from adcam.ops._checks import (
    at_least_float32,
    check_choice,
    check_non_negative,
    check_square,
    without_autocast,
)
from adcam.ops._recompute import recompute_backward
from adcam.ops.common_neighbor import blocked, reference

__all__ = ["SIMILARITIES", "available_backends", "common_neighbor", "neighbor_similarity"]

SIMILARITIES = ("resource_allocation", "cosine", "bhattacharyya", "overlap", "none")


def common_neighbor(
    attn: torch.Tensor,
    *,
    similarity: str = "resource_allocation",
    power: float = 2.0,
    backend: str = "auto",
) -> torch.Tensor:
    """Weaken attention between tokens whose own attentions differ.

    With ``A`` the input scaled to row sums 1 and ``S`` from :func:`neighbor_similarity`::

        R_ij = A_ij * S_ij ** power

    ``R <= A`` everywhere: pairs that share their neighbours keep their attention, others lose it.
    A row without mass (padding, a dead token) stays zero.

    The idea is AD-CAM's (arXiv 2211.10931, abstract); the formulas are this project's, chosen by
    measurement.

    Args:
        attn: (..., N, N), finite and >= 0, float16, bfloat16, float32 or float64; row i is what
            token i attends to. Rows need not sum to 1. Differentiable.
        similarity: One of :data:`SIMILARITIES`; ``"none"`` gives ``R = A``.
        power: >= 0. Larger cuts dissimilar pairs harder; 0 gives ``R = A``.
        backend: ``"triton"`` (GPU; ``"resource_allocation"`` and ``"cosine"``, not float64; its
            product has float16 operands with sums in float32: errors of 1e-4 in S),
            ``"triton_exact"`` (the same in the precision of float32, three times the products),
            ``"torch"`` (half of the product, block by block, on the CPU; not ``"overlap"`` and
            ``"none"``), ``"reference"``, or ``"auto"`` for the first of them that can run. All
            have the backward of the reference.

    Returns:
        (..., N, N) in [0, 1], not symmetric; float64 for float64 input, else float32.

    Raises:
        ValueError: If ``attn`` is not square, not floating point, or holds a negative, infinite or
            NaN value; if ``similarity`` or ``backend`` is unknown; if ``power`` is negative or not
            finite. Values on a GPU are not checked, since that would wait for the device; Triton
            returns NaN for an image with such a value.
        RuntimeError: If the backend asked for cannot run here; the message holds the reason.
    """
    check_options(similarity, power)
    check_square("attn", attn)
    check_non_negative("attn", attn, None)
    chosen = choose_backend("common_neighbor", backend, _not_supported_reasons(attn, similarity))
    slow = partial(_refine_by_reference, similarity=similarity, power=power)
    with without_autocast(attn):
        if chosen == "reference":
            return slow(attn)
        if chosen == "torch":
            fast = partial(blocked.refine, similarity=similarity, power=power)
            return recompute_backward(fast, slow, at_least_float32(attn))
        from adcam.ops.common_neighbor import triton_kernels

        fast = partial(
            triton_kernels.refine,
            similarity=similarity,
            power=power,
            half_product=chosen == "triton",
        )
        return recompute_backward(fast, slow, attn)


def neighbor_similarity(
    attn: torch.Tensor, *, similarity: str = "resource_allocation"
) -> torch.Tensor:
    """Similarity of what two tokens attend to, for all pairs.

    With ``A`` the input scaled to row sums 1 and ``a_i`` its row i::

        "resource_allocation"  P_ij / sqrt(P_ii P_jj),  P = A D^-1 A^T,  D = diag(column sums of A)
        "cosine"               a_i . a_j / (|a_i| |a_j|)
        "bhattacharyya"        sum_k sqrt(A_ik A_jk)
        "overlap"              1 - |a_i - a_j|_1 / 2  =  sum_k min(A_ik, A_jk)
        "none"                 1

    Resource allocation (Zhou, Lü and Zhang, arXiv 0901.0553, for link prediction) divides each
    common neighbour's vote by how much attention it receives, so that tokens everybody attends to
    count little. The Bhattacharyya coefficient's gradient, infinite where an attention is exactly
    0, is taken as 0 there.

    Args:
        attn: (..., N, N) attention, finite and >= 0; see :func:`common_neighbor`.
        similarity: One of :data:`SIMILARITIES`.

    Returns:
        (..., N, N), symmetric, in [0, 1], diagonal exactly 1. A row without mass is similar to
        itself alone (except under ``"none"``).

    Raises:
        ValueError: As in :func:`common_neighbor`.
    """
    check_choice("similarity", similarity, SIMILARITIES)
    check_square("attn", attn)
    check_non_negative("attn", attn)
    with without_autocast(attn):
        rows = reference.normalize_rows(at_least_float32(attn))
        return reference.similarity_of_rows(rows, similarity)


def check_options(similarity: str, power: float) -> None:
    """Raise ``ValueError`` for a similarity or a power that :func:`common_neighbor` refuses."""
    check_choice("similarity", similarity, SIMILARITIES)
    if not (math.isfinite(power) and power >= 0):
        raise ValueError(f"power must be finite and >= 0, got {power}")


def find_missing_kernels(similarity: str) -> list[str]:
    """Why Triton has no kernel for a similarity, whatever the tensors; nothing if it has one."""
    if similarity in ("resource_allocation", "cosine"):
        return []
    return [f"there is no kernel for similarity {similarity!r}"]


def has_product_kernel(attn: torch.Tensor, similarity: str) -> bool:
    """Whether Triton can compute the refinement of such an attention."""
    return not _not_supported_reasons(attn, similarity)["triton"]


def _not_supported_reasons(attn: torch.Tensor, similarity: str) -> dict[str, list[str]]:
    triton_reasons = triton_not_supported_reasons(attn) + find_missing_kernels(similarity)
    return {
        "triton": triton_reasons,
        "triton_exact": triton_reasons,
        "torch": blocked.not_supported_reasons(attn, similarity),
        "reference": [],
    }


def _refine_by_reference(attn: torch.Tensor, similarity: str, power: float) -> torch.Tensor:
    return reference.refine(at_least_float32(attn), similarity, power)
