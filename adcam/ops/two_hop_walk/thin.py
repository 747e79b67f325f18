"""The walk of two hops as two products of the attention with K maps; P is never formed."""

from __future__ import annotations

import torch


def walk(maps: torch.Tensor, attn: torch.Tensor, num_steps: int) -> torch.Tensor:
    """As :func:`adcam.ops.two_hop_walk.reference.walk`; (..., K, N) -> same.

    A = diag(1 / sums) attn is not formed either: the factors go to the maps. The attention is read
    once for its row sums and twice a step.
    """
    if num_steps == 0:
        return maps
    total = attn.sum(dim=-1)[..., None, :]  # (..., 1, N)
    alive = total > 0
    rows = alive / torch.where(alive, total, 1)  # diag(A), 0 for a token without attention
    # One product gives D beside the first step's sums.
    pushed = torch.cat([rows, rows * maps], dim=-2) @ attn  # (..., 1 + K, N)
    received, pushed = pushed[..., :1, :], pushed[..., 1:, :]
    received = torch.where(received > 0, received, 1)
    for step in range(num_steps):
        if step:
            pushed = (rows * maps) @ attn
        maps = torch.where(alive, rows * ((pushed / received) @ attn.mT), maps)
    return maps
