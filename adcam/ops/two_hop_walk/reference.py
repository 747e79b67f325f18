"""The walk of two hops in plain torch, with its matrix: the specification."""

from __future__ import annotations

import torch

from adcam.ops.common_neighbor.reference import normalize_rows


def transition(attn: torch.Tensor) -> torch.Tensor:
    """P = A D^-1 A^T, (..., N, N) -> (..., N, N); a token without attention stays where it is."""
    rows = normalize_rows(attn)
    received = rows.sum(dim=-2, keepdim=True)  # (..., 1, N), the diagonal of D
    matrix = (rows / torch.where(received > 0, received, 1)) @ rows.mT
    return matrix + torch.diag_embed((attn.sum(dim=-1) == 0).to(matrix.dtype))


def walk(maps: torch.Tensor, attn: torch.Tensor, num_steps: int) -> torch.Tensor:
    """``num_steps`` steps of P, (..., K, N) -> same."""
    matrix = transition(attn)
    for _ in range(num_steps):
        maps = maps @ matrix  # P is symmetric: maps are rows here
    return maps
