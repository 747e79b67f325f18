"""Diffusion whose transition is never written: the affinity and two vectors that scale it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ScaledAffinity:
    """A transition T without its matrix: T = diag(rows) W diag(columns), W = affinity + diag(own).

    Attributes:
        affinity: (..., N, N).
        own: (..., 1, N), what tokens without neighbours are given.
        rows: (..., 1, N).
        columns: (..., 1, N).
        symmetric: ``True`` if T is the mean of that matrix and its transpose.
    """

    affinity: torch.Tensor
    own: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    symmetric: bool

    def apply(self, maps: torch.Tensor) -> torch.Tensor:
        """T times each map, (..., K, N) -> same."""
        pulled = self.rows * _pull(self.columns * maps, self.affinity, self.own)
        if not self.symmetric:
            return pulled
        return (pulled + self.columns * _push(self.rows * maps, self.affinity, self.own)) / 2


def diffuse(
    maps: torch.Tensor,
    affinity: torch.Tensor,
    *,
    normalize: str,
    num_iters: int,
    num_steps: int,
    alpha: float | None,
) -> torch.Tensor:
    """As :func:`adcam.ops.diffusion.reference.diffuse`, without its closed form."""
    scaled = scale(affinity, normalize, num_iters)
    current = maps
    for _ in range(num_steps):
        current = scaled.apply(current)
        if alpha is not None:
            current = alpha * current + (1 - alpha) * maps
    return current


def scale(affinity: torch.Tensor, normalize: str, num_iters: int) -> ScaledAffinity:
    """The transition of :func:`adcam.ops.diffusion.reference.transition` as scaling vectors.

    Args:
        affinity: (..., N, N), finite and >= 0.
        normalize: ``"sinkhorn"``, ``"row"``, ``"column"`` or ``"none"``.
        num_iters: Sinkhorn rounds, >= 1; each reads the affinity twice.
    """
    gives = affinity.sum(dim=-1)[..., None, :]  # (..., 1, N)
    ones, zeros = torch.ones_like(gives), torch.zeros_like(gives)
    if normalize == "none":
        return ScaledAffinity(affinity, zeros, ones, ones, symmetric=False)
    receives = affinity.sum(dim=-2, keepdim=True)
    dead = {
        "row": gives == 0,
        "column": receives == 0,
        "sinkhorn": (gives == 0) | (receives == 0),
    }[normalize]
    remaining = gives + receives
    own = torch.where(dead, torch.where(remaining > 0, remaining, 1), 0)
    if normalize == "row":
        return ScaledAffinity(affinity, own, _inverse(gives + own), ones, symmetric=False)
    columns = _inverse(receives + own)
    if normalize == "column":
        return ScaledAffinity(affinity, own, ones, columns, symmetric=False)
    rows = _inverse(_pull(columns, affinity, own))
    for _ in range(num_iters - 1):
        columns = _inverse(_push(rows, affinity, own))
        rows = _inverse(_pull(columns, affinity, own))
    return ScaledAffinity(affinity, own, rows, columns, symmetric=True)


def _pull(maps: torch.Tensor, affinity: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """W M: each token sums over those it looks at. Maps are rows, which keeps reads in order."""
    return maps @ affinity.mT + own * maps


def _push(maps: torch.Tensor, affinity: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """W^T M: each token sums over those that look at it."""
    return maps @ affinity + own * maps


def _inverse(total: torch.Tensor) -> torch.Tensor:
    """1 / total. Below the smallest normal number the inverse would be infinite."""
    return total.clamp(min=torch.finfo(total.dtype).tiny).reciprocal()
