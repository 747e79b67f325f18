"""What the metrics of this package share: arrays in, ratios with NaN, equal policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def to_numpy(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """The values as an array; tensors of any device, without importing torch for arrays."""
    if not hasattr(values, "detach"):
        return np.asarray(values)
    tensor = values.detach().cpu()
    # NumPy has no bfloat16, in which networks under autocast answer.
    return np.asarray(tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole`` in float64, NaN where ``whole`` is 0."""
    quotient = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=quotient, where=np.asarray(whole) > 0)
    return quotient


def check_same_policy(mine: dict[str, Any], other: dict[str, Any]) -> None:
    """Raise ``ValueError`` naming the entries in which two policies of one metric differ."""
    different = {key: (mine[key], other[key]) for key in mine if mine[key] != other[key]}
    if different:
        raise ValueError(f"cannot merge counts of different policies: {different}")
