"""Where the pixels of an image lie among the vertices of a lattice, and how these are numbered.

Every elevated coordinate of a pixel is a sum of values that depend on its column, its row or one of
its grey levels alone, so a few short tables hold all of them. The numbers of vertices follow the
image's own order, whatever their colours; they depend on its size and on the sigmas, not on its
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adcam.ops.dense_crf.reference import axis_scales, number_cells

Float = NDArray[np.float32]


@dataclass(frozen=True)
class GaussianKernel:
    """One Gaussian kernel of the CRF and its place on a lattice.

    Attributes:
        axes: Elevated coordinates: of each column (W,), of each row (H,) and of the grey levels of
            each colour (0 or 3, 256), float32.
        step: (d+1,) int64, what a step along each direction of the blur adds to a key.
        origin: What is subtracted from keys to make them positive.
        num_keys: The keys in use, less ``origin``, are below this number.
        columns: Which corners of a pixel belong to this kernel, among those of all kernels.
        compat: The weight of the kernel.
    """

    axes: tuple[Float, Float, Float]
    step: NDArray[np.int64]
    origin: int
    num_keys: int
    columns: slice
    compat: float


def place_kernels(
    hw: tuple[int, ...],
    gaussian: Sequence[float] | None,
    bilateral: Sequence[float] | None,
) -> list[GaussianKernel]:
    """Place the kernels that are there, the smoothness kernel first.

    Args:
        hw: Height and width of the image; of several, the largest.
        gaussian: ``(sigma_xy, compat)`` or ``None``.
        bilateral: ``(sigma_xy, sigma_rgb, compat)`` or ``None``.

    Raises:
        ValueError: A sigma is so small that the lattice cannot be numbered in 64 bits.
    """
    kernels: list[GaussianKernel] = []
    if gaussian is not None:
        sigma_xy, compat = gaussian
        kernels.append(_place(hw, sigma_xy, None, compat, first_column=0))
    if bilateral is not None:
        sigma_xy, sigma_rgb, compat = bilateral
        first_column = sum(len(kernel.step) for kernel in kernels)
        kernels.append(_place(hw, sigma_xy, sigma_rgb, compat, first_column=first_column))
    return kernels


def _place(
    hw: tuple[int, ...],
    sigma_xy: float,
    sigma_rgb: float | None,
    compat: float,
    *,
    first_column: int,
) -> GaussianKernel:
    """Elevate the axes of an image of (H, W) pixels; without ``sigma_rgb`` only its positions."""
    height, width = hw
    dim = 2 if sigma_rgb is None else 5
    col, row, level = (np.arange(n, dtype=np.float32) for n in (width, height, 256))
    scales = axis_scales(dim)
    col = col / np.float32(sigma_xy) * scales[0]
    row = row / np.float32(sigma_xy) * scales[1]
    levels = (level / np.float32(sigma_rgb or 1))[None] * scales[2:, None]
    extent = np.array([axis[-1] for axis in (col, row, *levels)], dtype=np.float64)
    step, origin, num_keys = _number_box(extent)
    columns = slice(first_column, first_column + dim + 1)
    return GaussianKernel((col, row, levels), step, origin, num_keys, columns, compat)


def _number_box(extent: NDArray[np.float64]) -> tuple[NDArray[np.int64], int, int]:
    """Number the lattice points around the box 0..``extent`` (d,), given in elevated units.

    The leading places of a key are the row and the column of the vertex in the image: vertices of
    neighbouring pixels are then neighbours in memory, whatever their colours.

    Returns:
        ``step`` as in :class:`GaussianKernel`; its product with the coordinates of a vertex of
        remainder 0, over d+1, is the key of the vertex. The key of the lowest point, and the number
        of keys from there on.
    """
    dim = len(extent)
    axis = np.arange(2, dim)
    forms = np.zeros((dim, dim + 1), dtype=np.int64)
    forms[0, :3] = 1, 1, -2  # row: the other axes cancel
    forms[1, :2] = 1, -1  # column
    forms[axis, axis], forms[axis, dim] = 1, -1
    # Elevation without the scales, as in `reference._elevate`.
    elevate = np.triu(np.ones((dim + 1, dim))) - np.diag(np.arange(1, dim + 1), -1)[:, :dim]
    reach = forms @ elevate / (dim + 1) * extent
    # Rounding to a cell moves a coordinate by less than one cell; the other vertices of the simplex
    # and their neighbours are farther away where a form is steeper than `number_cells` allows for.
    size = np.abs(forms).sum(axis=1)
    slack = size + size // 2 + np.abs(forms).max(axis=1) - 2
    low = np.floor(reach.clip(max=0).sum(axis=1)).astype(np.int64) - slack
    high = np.ceil(reach.clip(min=0).sum(axis=1)).astype(np.int64) + slack
    radix, _ = number_cells(high - low)
    num_keys = int(radix[0]) * (int(high[0] - low[0]) + 5)
    return radix @ forms, int(radix @ (low - 2)), num_keys
