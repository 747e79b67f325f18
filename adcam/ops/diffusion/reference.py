"""Diffusion of class maps in plain torch: the specification every fast path is held to."""

from __future__ import annotations

import torch


def diffuse(
    maps: torch.Tensor,
    affinity: torch.Tensor,
    *,
    normalize: str,
    num_iters: int,
    num_steps: int | None,
    alpha: float | None,
) -> torch.Tensor:
    """Walk ``num_steps`` steps, or to the end of the walk for ``None``. (..., K, N) -> same."""
    matrix = transition(affinity, normalize, num_iters)
    if num_steps is None:
        return equilibrium(maps, matrix, alpha or 0.0)
    return walk(maps, matrix, num_steps, alpha)


def transition(affinity: torch.Tensor, normalize: str, num_iters: int) -> torch.Tensor:
    """Transition T of an affinity, (..., N, N) -> (..., N, N).

    ``"row"`` makes rows sum to 1, ``"column"`` columns. ``"sinkhorn"`` makes columns and then rows
    sum to 1, ``num_iters`` times, and takes the mean with the transpose. ``"none"`` does nothing.
    """
    if normalize == "none":
        return affinity
    row_sum = affinity.sum(dim=-1)  # (..., N), what each token gives
    column_sum = affinity.sum(dim=-2)  # (..., N), what it receives
    both = row_sum + column_sum
    if normalize == "row":
        return _scale_rows(_keep_own(affinity, row_sum == 0, both))
    if normalize == "column":
        return _scale_columns(_keep_own(affinity, column_sum == 0, both))
    matrix = _keep_own(affinity, (row_sum == 0) | (column_sum == 0), both)
    for _ in range(num_iters):
        matrix = _scale_rows(_scale_columns(matrix))
    return (matrix + matrix.mT) / 2


def walk(
    maps: torch.Tensor, matrix: torch.Tensor, num_steps: int, alpha: float | None
) -> torch.Tensor:
    """M_t = T M_{t-1}, or alpha T M_{t-1} + (1 - alpha) M_0 with restart. (..., K, N) -> same."""
    current = maps
    for _ in range(num_steps):
        current = current @ matrix.mT  # T M: maps are column vectors in the formula and rows here
        if alpha is not None:
            current = alpha * current + (1 - alpha) * maps
    return current


def equilibrium(maps: torch.Tensor, matrix: torch.Tensor, alpha: float) -> torch.Tensor:
    """M = (1 - alpha) (I - alpha T)^-1 M_0, where the walk with restart ends. (..., K, N) -> same.

    Raises:
        ValueError: If alpha times the spectral radius of T is 1 or more, so that the walk never
            settles.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    # The solution x of x = alpha T x + 1 is positive if and only if the walk settles: README.md.
    ones = torch.ones_like(maps[..., :1, :])
    right = torch.cat([maps, ones], dim=-2).mT  # (..., N, K + 1)
    solution, info = torch.linalg.solve_ex(identity - alpha * matrix, right)
    if bool((info != 0).any()) or not bool((solution.detach()[..., -1] > 0).all()):
        raise ValueError(
            f"alpha = {alpha} times the spectral radius of the transition must stay below 1 for "
            "the closed form; lower alpha, or use normalize='row'"
        )
    return (1 - alpha) * solution[..., :-1].mT


def _scale_rows(matrix: torch.Tensor) -> torch.Tensor:
    """Make rows sum to 1; rows of zeros stay."""
    total = matrix.sum(dim=-1, keepdim=True)
    return matrix / torch.where(total > 0, total, 1)


def _scale_columns(matrix: torch.Tensor) -> torch.Tensor:
    """Make columns sum to 1; columns of zeros stay."""
    total = matrix.sum(dim=-2, keepdim=True)
    return matrix / torch.where(total > 0, total, 1)


def _keep_own(affinity: torch.Tensor, dead: torch.Tensor, remaining: torch.Tensor) -> torch.Tensor:
    """Give the tokens in ``dead`` (..., N) an affinity to themselves, so that they keep their map.

    Its size is the token's ``remaining`` (..., N) affinity, 1 if there is none: the transition
    then does not change when the affinity is multiplied by a constant.
    """
    own = torch.where(remaining > 0, remaining, 1)
    return affinity + torch.diag_embed(torch.where(dead, own, 0))
