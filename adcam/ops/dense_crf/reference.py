"""Mean field with high-dimensional Gaussian filters on a permutohedral lattice, in NumPy and SciPy.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice"
(Eurographics 2010), used by Krähenbühl and Koltun (NeurIPS 2011). Checked against the C++ code that
pydensecrf wraps, whose float32 arithmetic is followed step by step so that every pixel falls into
the same simplex; lattice coordinates and the search for neighbours are our own (README).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import scipy.sparse

Float = NDArray[np.float32]

_MAX_CELLS = 2**62
_SOFTMAX_BLOCK = 4096
"""Pixels per block of the softmax, so that a block of 81 labels stays in the second-level cache."""


class PermutohedralLattice:
    """Gaussian filter of unit standard deviation over points in d dimensions.

    Building costs O(N d² + N d log(N d)); filtering costs O(N d) per channel. Build once, filter
    often.

    Args:
        features: (d, N) float32 positions of the points, in standard deviations.

    Raises:
        ValueError: The positions span more lattice cells than 64 bits can number.
    """

    def __init__(self, features: Float) -> None:
        from scipy.sparse import csr_array  # not for those who only number cells by this file

        dim, num_points = features.shape
        cell, order, weights = _find_simplices(features)
        # Every lattice vertex is one integer point of Z^d; see the README.
        point = (cell[:dim] - cell[dim]).astype(np.int64)  # (d, N)
        point -= point.min(axis=1, keepdims=True) - 2
        radix, step = number_cells(point.max(axis=1) - 2)

        key = np.empty((dim + 1, num_points), dtype=np.int64)
        key[0] = radix @ point
        for vertex in range(dim):
            key[vertex + 1] = key[vertex] - step[order[vertex]]
        # Exact, and sorted: the keys of neighbours are sorted too, which keeps the look-ups local.
        vertex_keys, vertex_of = np.unique(key.T, return_inverse=True)

        num_vertices = len(vertex_keys)
        self._slice = csr_array(
            (
                weights.T.ravel(),
                vertex_of.ravel().astype(np.int32),
                np.arange(0, num_points * (dim + 1) + 1, dim + 1),
            ),
            shape=(num_points, num_vertices),
        )
        self._splat = self._slice.T
        self._blurs = [_blur_matrix(vertex_keys, int(offset)) for offset in step]
        # The constant of the C++ code; the symmetric normalisation below cancels it.
        self._alpha = np.float32(1 / (1 + 2.0**-dim))

    @property
    def num_vertices(self) -> int:
        """Number of lattice vertices that touch at least one point."""
        return int(self._slice.shape[1])

    def filter(self, values: Float) -> Float:
        """Sum the values of all points, weighted by (an approximation of) the Gaussian.

        Args:
            values: (N, C) float32.

        Returns:
            (N, C) float32.
        """
        lattice = self._splat @ values  # (M, C)
        for blur in self._blurs:
            lattice = blur @ lattice
        out: Float = self._slice @ lattice
        out *= self._alpha
        return out


class MeanField:
    """The lattices of an image, ready for any number of inferences.

    Args:
        img: (H, W, 3) uint8.
        gaussian: ``(sigma_xy, compat)`` or ``None``.
        bilateral: ``(sigma_xy, sigma_rgb, compat)`` or ``None``.

    Raises:
        ValueError: A sigma is so small that the lattice cannot be numbered in 64 bits.
    """

    def __init__(
        self,
        img: NDArray[np.uint8],
        *,
        gaussian: tuple[float, float] | None,
        bilateral: tuple[float, float, float] | None,
    ) -> None:
        self._kernels: list[tuple[_NormalisedKernel, np.float32]] = []
        if gaussian is not None:
            sigma_xy, compat = gaussian
            features = _position_features(*img.shape[:2], sigma_xy=sigma_xy)
            self._kernels.append((_NormalisedKernel(features), np.float32(compat)))
        if bilateral is not None:
            sigma_xy, sigma_rgb, compat = bilateral
            position = _position_features(*img.shape[:2], sigma_xy=sigma_xy)
            colour = img.reshape(-1, 3).T.astype(np.float32) / np.float32(sigma_rgb)
            features = np.concatenate([position, colour])  # (5, N)
            self._kernels.append((_NormalisedKernel(features), np.float32(compat)))

    def infer(self, unary: Float, *, num_iters: int) -> Float:
        """Run mean field.

        Args:
            unary: (C, H, W) float32, ``-log`` of the probabilities.
            num_iters: Number of updates.

        Returns:
            (C, H, W) float32 marginals.
        """
        log_prob = np.ascontiguousarray(-unary.reshape(len(unary), -1).T)  # (N, C)
        marginals = _softmax(log_prob)
        for _ in range(num_iters):
            logits = log_prob.copy()
            for kernel, weight in self._kernels:
                message = kernel.apply(marginals)
                message *= weight
                logits += message
            marginals = _softmax(logits)
        return np.ascontiguousarray(marginals.T).reshape(unary.shape)


class _NormalisedKernel:
    """Λ^-1/2 K Λ^-1/2 with Λ = diag(K 1): symmetric normalisation of the Gaussian kernel."""

    def __init__(self, features: Float) -> None:
        self._lattice = PermutohedralLattice(features)
        row_sum = self._lattice.filter(np.ones((features.shape[1], 1), dtype=np.float32))
        self._norm: Float = 1 / np.sqrt(row_sum + np.float32(1e-20))  # (N, 1)

    def apply(self, values: Float) -> Float:
        out = self._lattice.filter(values * self._norm)
        out *= self._norm
        return out


def _position_features(height: int, width: int, *, sigma_xy: float) -> Float:
    """Column and row of every pixel in row-major order, in units of ``sigma_xy``: (2, H·W)."""
    row, col = np.indices((height, width), dtype=np.float32)
    position: Float = np.stack([col.ravel(), row.ravel()])
    position /= np.float32(sigma_xy)
    return position


def _find_simplices(features: Float) -> tuple[Float, NDArray[np.intp], Float]:
    """Find the lattice simplex that encloses each point, and the point's weights in it.

    Adams et al. 2010, sections 3.1 and 4, propositions 4.2 and 4.3.

    Args:
        features: (d, N) float32.

    Returns:
        cell: (d+1, N) float32 of whole numbers; (d+1)·cell is the simplex' vertex of remainder 0.
        order: (d+1, N); ``order[p]`` is the coordinate with the (p+1)-th smallest residual, which
            is the one that drops by d+1 on the way from vertex p to vertex p+1.
        weights: (d+1, N) float32, barycentric weight of vertices 0..d; they sum to 1.
    """
    dim = len(features)
    size = np.float32(dim + 1)
    inverse_size = np.float32(1 / (dim + 1))
    elevated = _elevate(features)

    # Nearest point of remainder 0, not yet on the plane of zero sum.
    cell = np.rint(elevated * inverse_size)
    excess = cell.sum(axis=0).astype(np.int8)
    residual = elevated - cell * size
    # Rank 0 is the largest residual; of equal ones the earlier coordinate comes first, as in C++.
    rank = np.zeros(residual.shape, dtype=np.int8)
    for i in range(dim):
        for j in range(i + 1, dim + 1):
            smaller = residual[i] < residual[j]
            rank[i] += smaller
            rank[j] += ~smaller
    # Move back onto the plane: the coordinates that rounding moved farthest wrap around.
    rank += excess
    wraps = (rank < 0).astype(np.int8) - (rank > dim).astype(np.int8)
    cell += wraps
    rank += wraps * np.int8(dim + 1)

    offset = (elevated - cell * size) * inverse_size
    position = (dim - rank).astype(np.intp)
    sorted_offset = np.empty_like(offset)
    np.put_along_axis(sorted_offset, position, offset, axis=0)
    order = np.empty_like(position)
    np.put_along_axis(order, position, np.arange(dim + 1, dtype=np.intp)[:, None], axis=0)

    weights = sorted_offset.copy()
    weights[1:] -= sorted_offset[:-1]
    weights[0] = sorted_offset[0] + (1 - sorted_offset[dim])
    return cell, order, weights


def axis_scales(dim: int) -> Float:
    """Length that elevation gives to each of the ``dim`` axes: (d,) float32."""
    blur_scale = np.float32(np.sqrt(2 / 3) * (dim + 1))
    j = np.arange(1, dim + 1)
    scales: Float = (blur_scale / np.sqrt(j * (j + 1))).astype(np.float32)
    return scales


def number_cells(largest: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number lattice points in mixed radix.

    Two free places on each side keep a key from running into the next row: the other vertices of
    a simplex are one step away at most and their neighbours another.

    Args:
        largest: (d,) how far the vertices of remainder 0 reach from their least coordinates, which
            lie at 2.

    Returns:
        radix: (d,) int64; a point's key is its product with the coordinates.
        step: (d+1,) int64, what a step along each direction of the blur adds to a key.

    Raises:
        ValueError: There are more points than 64 bits can number.
    """
    sizes = [int(size) + 5 for size in largest]
    radix = np.ones(len(sizes), dtype=np.int64)
    for axis in range(len(sizes) - 1, 0, -1):
        if int(radix[axis]) * sizes[axis] * sizes[axis - 1] > _MAX_CELLS:
            raise ValueError(
                "the positions span more lattice cells than 64 bits can number: the sigmas "
                "are too small for this image"
            )
        radix[axis - 1] = radix[axis] * sizes[axis]
    return radix, np.append(radix, -radix.sum())


def _elevate(features: Float) -> Float:
    """Map (d, N) points onto the plane of zero sum in d+1 dimensions, scaled for the blur.

    Adams et al. 2010, p. 5 (the basis E) and p. 6 (the lattice is scaled by √(2/3)·(d+1) so that
    splat, blur and slice together have unit standard deviation).
    """
    dim, num_points = features.shape
    scales = axis_scales(dim)
    elevated = np.empty((dim + 1, num_points), dtype=np.float32)
    tail_sum = np.zeros(num_points, dtype=np.float32)
    for j in range(dim, 0, -1):
        scaled = features[j - 1] * scales[j - 1]
        elevated[j] = tail_sum - np.float32(j) * scaled
        tail_sum += scaled
    elevated[0] = tail_sum
    return elevated


def _blur_matrix(vertex_keys: NDArray[np.int64], offset: int) -> scipy.sparse.csr_array:
    """Matrix of the weights (1/2, 1, 1/2) along one direction; absent vertices count as zero."""
    from scipy.sparse import csr_array

    num_vertices = len(vertex_keys)
    wanted = vertex_keys + offset
    found = np.searchsorted(vertex_keys, wanted)
    found[found == num_vertices] = 0
    here = np.flatnonzero(vertex_keys[found] == wanted).astype(np.int32)
    there = found[here].astype(np.int32)
    diagonal = np.arange(num_vertices, dtype=np.int32)
    weights = np.full(num_vertices + 2 * len(here), 0.5, dtype=np.float32)
    weights[:num_vertices] = 1
    rows = np.concatenate([diagonal, here, there])
    cols = np.concatenate([diagonal, there, here])
    return csr_array((weights, (rows, cols)), shape=(num_vertices, num_vertices))


def _softmax(logits: Float) -> Float:
    """Softmax over the last axis of (N, C); transposed blocks keep NumPy's loops over pixels."""
    out = np.empty_like(logits)
    for start in range(0, len(logits), _SOFTMAX_BLOCK):
        block = logits[start : start + _SOFTMAX_BLOCK].T.copy()  # (C, n)
        block -= block.max(axis=0)
        np.exp(block, out=block)
        block /= block.sum(axis=0)
        out[start : start + _SOFTMAX_BLOCK] = block.T
    return out
