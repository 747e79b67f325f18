"""Argument checks that the operations share.

Checks of shapes, dtypes and options cost nothing. :func:`check_non_negative` reads the tensor once,
which is little beside the work of the operations that call it. On a GPU it would have to wait for
the device, so there it is left out unless the caller asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_choice(name: str, value: str, legal: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``legal``."""
    if value not in legal:
        raise ValueError(f"{name} must be one of {list(legal)}, got {value!r}")


def check_float(name: str, tensor: torch.Tensor) -> None:
    """Raise ``ValueError`` unless ``tensor`` is a tensor of one of :data:`FLOAT_DTYPES`."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(
            f"{name} must be a torch.Tensor, got {type(tensor).__name__}; "
            "torch.from_numpy makes one of a NumPy array"
        )
    if tensor.dtype not in FLOAT_DTYPES:
        legal = [str(dtype) for dtype in FLOAT_DTYPES]
        raise ValueError(f"{name} must have a dtype of {legal}, got {tensor.dtype}")


def check_square(name: str, tensor: torch.Tensor) -> None:
    """Raise ``ValueError`` unless ``tensor`` is floating point and (..., N, N)."""
    check_float(name, tensor)
    if tensor.ndim < 2 or tensor.shape[-1] != tensor.shape[-2]:
        raise ValueError(f"{name} must have shape (..., N, N), got {tuple(tensor.shape)}")


def check_maps(maps: torch.Tensor, matrix: torch.Tensor, kind: str) -> None:
    """Raise ``ValueError`` unless ``maps`` are floating point and fit a matrix between tokens.

    Args:
        maps: The maps, (..., K, N).
        matrix: A tensor that :func:`check_square` accepts.
        kind: What the message calls the matrix.
    """
    check_float("maps", maps)
    if maps.ndim < 2 or maps.shape[:-2] != matrix.shape[:-2] or maps.shape[-1] != matrix.shape[-1]:
        raise ValueError(
            f"maps must have shape (..., K, N) for an {kind} of shape (..., N, N), "
            f"got {tuple(maps.shape)} and {tuple(matrix.shape)}"
        )


def check_grid(grid_hw: tuple[int, int], num_patches: int) -> None:
    """Raise ``ValueError`` unless a grid of this height and width has ``num_patches`` patches."""
    height, width = grid_hw
    if height < 1 or width < 1 or height * width != num_patches:
        raise ValueError(f"grid_hw must have {num_patches} patches, got {height}×{width}")


def check_steps(num_steps: int) -> None:
    """Raise ``ValueError`` for a negative number of steps."""
    if num_steps < 0:
        raise ValueError(f"num_steps must be >= 0, got {num_steps}")


def check_share(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def check_non_negative(name: str, tensor: torch.Tensor, wanted: bool | None = True) -> None:
    """Raise ``ValueError`` if ``tensor`` holds a negative, infinite or NaN value.

    Args:
        name: What the message calls the tensor.
        tensor: The tensor.
        wanted: ``False`` checks nothing; ``None`` checks nothing on a GPU, where it would wait.
    """
    if tensor.numel() == 0 or wanted is False or (wanted is None and tensor.is_cuda):
        return
    # NaN wins both reductions and fails both comparisons, so one pass finds all three faults.
    low, high = torch.stack(torch.aminmax(tensor.detach())).tolist()
    if not (low >= 0 and high < math.inf):
        raise ValueError(f"{name} must be finite and >= 0, got values in [{low}, {high}]")


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half-precision tensors as float32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def to_common_dtype(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors in the wider dtype of both, at least float32."""
    dtype = torch.promote_types(at_least_float32(first).dtype, at_least_float32(second).dtype)
    return first.to(dtype), second.to(dtype)


def without_autocast(tensor: torch.Tensor) -> torch.autocast:
    """Context in which matrix products keep the dtype of ``tensor`` under a caller's autocast."""
    return torch.autocast(tensor.device.type, enabled=False)
