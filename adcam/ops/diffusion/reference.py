"""Diffusion of class maps in plain torch: the specification every fast path is held to."""

from __future__ import annotations

import torch


def transition(affinity: torch.Tensor, normalize: str, num_iters: int) -> torch.Tensor:
    """Transition T of an affinity, (..., N, N) -> (..., N, N). See the package's docstring."""
    if normalize == "none":
        return affinity
    gives = affinity.sum(dim=-1)  # (..., N)
    receives = affinity.sum(dim=-2)  # (..., N)
    if normalize == "row":
        return _divide(_keep_own(affinity, gives == 0, gives + receives), dim=-1)
    if normalize == "column":
        return _divide(_keep_own(affinity, receives == 0, gives + receives), dim=-2)
    dead = (gives == 0) | (receives == 0)
    matrix = _keep_own(affinity, dead, gives + receives)
    for _ in range(num_iters):
        matrix = _divide(_divide(matrix, dim=-2), dim=-1)
    return (matrix + matrix.mT) / 2


def walk(
    maps: torch.Tensor, matrix: torch.Tensor, num_steps: int, alpha: float | None
) -> torch.Tensor:
    """``num_steps`` steps of T, with restart where ``alpha`` is given. (..., K, N) -> same."""
    current = maps
    for _ in range(num_steps):
        current = current @ matrix.mT  # a map is a column vector: T M
        if alpha is not None:
            current = alpha * current + (1 - alpha) * maps
    return current


def equilibrium(maps: torch.Tensor, matrix: torch.Tensor, alpha: float) -> torch.Tensor:
    """Where the walk with restart ends, (1 - alpha) (I - alpha T)^-1 M_0. (..., K, N) -> same.

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


def _divide(matrix: torch.Tensor, dim: int) -> torch.Tensor:
    total = matrix.sum(dim=dim, keepdim=True)
    return matrix / torch.where(total > 0, total, 1)


def _keep_own(affinity: torch.Tensor, dead: torch.Tensor, remaining: torch.Tensor) -> torch.Tensor:
    """Give the tokens in ``dead`` (..., N) an affinity to themselves, so that they keep their map.

    Its size is the token's ``remaining`` (..., N) affinity, 1 if there is none: the transition
    then does not change when the affinity is multiplied by a constant.
    """
    own = torch.where(remaining > 0, remaining, 1)
    return affinity + torch.diag_embed(torch.where(dead, own, 0))
