"""Common-neighbour refinement on the CPU: half of the product, gated while it is in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from adcam.ops.common_neighbor.reference import COSINE_SIMILARITIES

_ROWS = 128
"""Rows of the product at a time: enough for the full rate of a matrix product, few enough that a
block of 2,304 columns stays in the cache until it is gated."""


def not_supported_reasons(attn: torch.Tensor, similarity: str) -> list[str]:
    """Why this backend cannot run; nothing if it can."""
    reasons = []
    if similarity not in COSINE_SIMILARITIES:
        reasons.append(f"similarity {similarity!r} is not a matrix product")
    if attn.device.type != "cpu":
        reasons.append(f"attn is on {attn.device.type}, not on cpu")
    return reasons


def refine(attn: torch.Tensor, similarity: str, power: float) -> torch.Tensor:
    """As :func:`adcam.ops.common_neighbor.reference.refine`, without gradient.

    Beside input and output it holds one block of rows, for the whole batch.
    """
    refined = torch.empty(attn.shape, dtype=attn.dtype)
    scratch = torch.empty(_ROWS * attn.shape[-1], dtype=attn.dtype)
    images = attn.detach()[None].flatten(end_dim=-3)  # (B, N, N)
    for source, target in zip(images, refined[None].flatten(end_dim=-3), strict=True):
        _refine_image(source, target, scratch, similarity, power)
    return refined


def _refine_image(
    attn: torch.Tensor,
    refined: torch.Tensor,
    scratch: torch.Tensor,
    similarity: str,
    power: float,
) -> None:
    """Fill ``refined`` (N, N): with the features first, then row by row with what replaces them."""
    total = _non_zero(attn.sum(dim=-1, keepdim=True))
    torch.div(attn, total, out=refined)
    _to_unit_features(refined, similarity)
    blocks = list(_row_blocks(attn.shape[0]))
    for start, end in blocks:
        # The product is symmetric: what lies left of this block is an earlier block, transposed.
        below = refined[start:].mT
        gate = scratch[: (end - start) * below.shape[1]].view(end - start, -1)  # (rows, N - start)
        torch.mm(refined[start:end], below, out=gate)
        gate.clamp_(max=1).diagonal().fill_(1)
        torch.pow(gate, power, out=refined[start:end, start:])
    for start, end in blocks:
        mirrored = refined[start:end, end:].mT
        torch.mul(attn[end:, start:end], mirrored, out=refined[end:, start:end])
        refined[start:end, start:].mul_(attn[start:end, start:])
    refined.div_(total)


def _to_unit_features(rows: torch.Tensor, similarity: str) -> None:
    """Turn normalised rows (N, N), in place, into the vectors whose products are the similarity."""
    if similarity == "resource_allocation":
        rows.div_(_non_zero(rows.sum(dim=-2)).sqrt_())
    elif similarity == "bhattacharyya":
        rows.sqrt_()
    rows.div_(_non_zero(torch.linalg.vector_norm(rows, dim=-1, keepdim=True)))


def _row_blocks(tokens: int) -> Iterator[tuple[int, int]]:
    """Start and end of each block; equal sizes, so that none is a sliver."""
    count = math.ceil(tokens / _ROWS)
    for index in range(count):
        yield index * tokens // count, (index + 1) * tokens // count


def _non_zero(total: torch.Tensor) -> torch.Tensor:
    return torch.where(total > 0, total, 1)
