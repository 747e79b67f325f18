"""Common-neighbour similarity in plain torch: the specification every fast path is held to."""

from __future__ import annotations

import torch

COSINE_SIMILARITIES = ("resource_allocation", "cosine", "bhattacharyya")
"""The similarities that are cosines of the vectors of :func:`features_of_rows`."""


def refine(attn: torch.Tensor, similarity: str, power: float) -> torch.Tensor:
    """R = A * S^power, A = ``attn`` with rows scaled to sum 1. (..., N, N) -> (..., N, N)."""
    rows = normalize_rows(attn)
    return rows * _power(similarity_of_rows(rows, similarity), power)


def normalize_rows(attn: torch.Tensor) -> torch.Tensor:
    """A: each row of the attention divided by its sum; rows without mass stay zero."""
    total = attn.sum(dim=-1, keepdim=True)
    return attn / torch.where(total > 0, total, 1)


def similarity_of_rows(rows: torch.Tensor, similarity: str) -> torch.Tensor:
    """Similarity S of all pairs of rows, (..., N, N) -> (..., N, N) in [0, 1] with S_ii = 1.

    Args:
        rows: (..., N, N), non-negative; each row sums to 1, or to 0 for a dead token.
        similarity: One of :data:`adcam.ops.common_neighbor.SIMILARITIES`.
    """
    if similarity == "none":
        return torch.ones_like(rows)
    if similarity == "overlap":
        # sum_k min(a, b) = (sum a + sum b - |a - b|_1) / 2: for rows that sum to 1 this is
        # 1 - |a - b|_1 / 2, and a dead row overlaps with nothing. cdist holds no (N, N, N) tensor.
        total = rows.sum(dim=-1)
        distance = torch.cdist(rows, rows, p=1)
        sim = ((total[..., :, None] + total[..., None, :] - distance) / 2).clamp(min=0)
    else:
        directions = _unit_rows(features_of_rows(rows, similarity))
        sim = directions @ directions.mT
    sim = sim.clamp(max=1)
    # Exactly 1, so that power -> infinity keeps self-attention; dead tokens resemble themselves.
    sim.diagonal(dim1=-2, dim2=-1).fill_(1)
    return sim


def features_of_rows(rows: torch.Tensor, similarity: str) -> torch.Tensor:
    """The vectors whose cosines are the similarity, (..., N, N); that of a dead token is zero.

    They are rows of A D^(-1/2) for ``"resource_allocation"``, of √A for ``"bhattacharyya"``, and of
    A for ``"cosine"``.
    """
    if similarity == "resource_allocation":
        received = rows.sum(dim=-2, keepdim=True)  # (..., 1, N), the diagonal of D
        return rows / torch.where(received > 0, received, 1).sqrt()
    if similarity == "bhattacharyya":
        return _sqrt(rows)
    return rows


def _unit_rows(features: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / torch.where(norm > 0, norm, 1)


def _sqrt(values: torch.Tensor) -> torch.Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    zero = values == 0
    return (values + zero).sqrt() * ~zero


def _power(sim: torch.Tensor, power: float) -> torch.Tensor:
    """``sim ** power``; for powers below 1 the gradient at 0 is 0 instead of infinite."""
    if not 0 < power < 1:
        return sim**power
    zero = sim == 0
    return (sim + zero) ** power * ~zero
