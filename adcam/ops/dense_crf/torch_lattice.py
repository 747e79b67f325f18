"""Mean field on a permutohedral lattice in PyTorch, for a batch of images on any device.

The method is that of ``reference.py``, whose float32 arithmetic up to the barycentric weights it
repeats step by step. The pixels of all images stand in one long list and the number of its image
is part of a vertex' key, so images of different sizes share every call and no vertex. One sort
numbers the vertices and orders the splat; splat and slice are weighted bags of rows, whose sums,
unlike those of atomic additions, are the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adcam.ops.dense_crf.reference import axis_scales, number_cells


class MeanField:
    """The lattices of a batch of images, ready for any number of inferences.

    Args:
        imgs: (H, W, 3) uint8 each, of any sizes, on one device.
        gaussian: ``(sigma_xy, compat)`` or ``None``.
        bilateral: ``(sigma_xy, sigma_rgb, compat)`` or ``None``.

    Raises:
        ValueError: A sigma is so small that the lattice cannot be numbered in 64 bits.
    """

    def __init__(
        self,
        imgs: Sequence[Tensor],
        *,
        gaussian: tuple[float, float] | None,
        bilateral: tuple[float, float, float] | None,
    ) -> None:
        self._hw = [(img.shape[0], img.shape[1]) for img in imgs]
        pixels = torch.cat([img.reshape(-1, 3) for img in imgs])
        sizes = torch.tensor([height * width for height, width in self._hw], device=pixels.device)
        img_of = torch.repeat_interleave(torch.arange(len(imgs), device=pixels.device), sizes)
        position = torch.cat([_position(hw, pixels.device) for hw in self._hw], dim=1)  # (2, N)
        self._kernels: list[_Kernel] = []
        if gaussian is not None:
            sigma_xy, compat = gaussian
            self._kernels.append(_Kernel(_divide(position, sigma_xy), img_of, compat))
        if bilateral is not None:
            sigma_xy, sigma_rgb, compat = bilateral
            colour = _divide(pixels.T.float(), sigma_rgb)
            features = torch.cat([_divide(position, sigma_xy), colour])  # (5, N)
            self._kernels.append(_Kernel(features, img_of, compat))

    def infer(self, unaries: Sequence[Tensor], *, num_iters: int) -> list[Tensor]:
        """Run mean field.

        Args:
            unaries: (C, H, W) float32 each, ``-log`` of the probabilities; C may differ.
            num_iters: Number of updates.

        Returns:
            (C, H, W) float32 marginals of each image.
        """
        num_labels = max(len(unary) for unary in unaries)
        # A label that an image lacks has probability zero there, and keeps it.
        log_prob = torch.cat(
            [
                F.pad(-unary.flatten(1), (0, 0, 0, num_labels - len(unary)), value=-torch.inf).T
                for unary in unaries
            ]
        )  # (N, C)
        marginals = log_prob.softmax(dim=1)
        for _ in range(num_iters):
            logits = log_prob
            for kernel in self._kernels:
                logits = logits + kernel.apply(marginals)
            marginals = logits.softmax(dim=1)
        split = marginals.split([height * width for height, width in self._hw])
        return [
            part[:, : len(unary)].T.reshape(unary.shape)
            for part, unary in zip(split, unaries, strict=True)
        ]


class _Kernel:
    """The symmetrically normalised Gaussian of points (d, N), times ``compat``."""

    def __init__(self, features: Tensor, img_of: Tensor, compat: float) -> None:
        dim, num_points = features.shape
        cell, order, weights = _find_simplices(features)
        point = (cell[:dim] - cell[dim]).long()
        point -= point.amin(dim=1, keepdim=True) - 2
        # The image is the leading coordinate. The last step belongs to the directions of the blur,
        # which the image has no part in.
        largest = torch.cat([img_of[-1:], point.amax(dim=1) - 2]).cpu().numpy()
        radix, _ = number_cells(largest)
        step = torch.from_numpy(radix[1:]).to(features.device)
        step = torch.cat([step, -step.sum(dim=0, keepdim=True)])  # (d+1,)
        first = (step[:dim, None] * point).sum(dim=0) + int(radix[0]) * img_of
        key = torch.cat([first[None], first - step[order[:dim]].cumsum(dim=0)])  # (d+1, N)

        sorted_key, place = key.flatten().sort(stable=True)
        is_new = torch.ones_like(sorted_key, dtype=torch.bool)
        is_new[1:] = sorted_key[1:] != sorted_key[:-1]
        vertex_key = sorted_key[is_new]
        number = torch.empty_like(place)
        number[place] = is_new.cumsum(dim=0) - 1
        self._corners = number.reshape(dim + 1, num_points).T.contiguous()
        self._weights = weights.T.contiguous()
        self._pixel_of_entry = place % num_points
        self._weight_of_entry = weights.flatten()[place]
        self._first_entry = is_new.nonzero()[:, 0]

        # An absent neighbour is the vertex behind the last one, whose values are zero.
        absent = len(vertex_key)
        self._neighbours = []
        for offset in step.tolist():
            pair = []
            for wanted in (vertex_key + offset, vertex_key - offset):
                found = torch.searchsorted(vertex_key, wanted).clamp(max=absent - 1)
                pair.append(torch.where(vertex_key[found] == wanted, found, absent))
            self._neighbours.append(pair)

        row_sum = self.apply(torch.ones_like(features[0])[:, None])[:, 0]
        factor = (compat / (row_sum + 1e-20)).sqrt()
        self._weights *= factor[:, None]
        self._weight_of_entry *= factor[self._pixel_of_entry]

    def apply(self, values: Tensor) -> Tensor:
        """Weighted sum over all pixels of the same image: (N, C) to (N, C)."""
        lattice = F.embedding_bag(
            self._pixel_of_entry,
            values,
            self._first_entry,
            mode="sum",
            per_sample_weights=self._weight_of_entry,
        )  # (M, C)
        for after, before in self._neighbours:
            padded = F.pad(lattice, (0, 0, 0, 1))
            lattice = lattice + 0.5 * (padded[after] + padded[before])
        return F.embedding_bag(
            self._corners, lattice, mode="sum", per_sample_weights=self._weights
        )  # (N, C)


def _divide(values: Tensor, sigma: float) -> Tensor:
    """Divide by a tensor: on CUDA, torch replaces division by a number by another rounding."""
    return values / torch.tensor(sigma, dtype=torch.float32, device=values.device)


def _position(hw: tuple[int, int], device: torch.device) -> Tensor:
    """Column and row of every pixel in row-major order: (2, H·W) float32."""
    row, col = torch.meshgrid(
        torch.arange(hw[0], dtype=torch.float32, device=device),
        torch.arange(hw[1], dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([col.flatten(), row.flatten()])


def _find_simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``reference._find_simplices`` on tensors: ``cell``, ``order`` and ``weights``, (d+1, N)."""
    dim = len(features)
    size = dim + 1
    tail = torch.zeros_like(features[0])
    elevated = torch.empty((size, len(tail)), dtype=torch.float32, device=features.device)
    for j in range(dim, 0, -1):
        # As a Python number, a float32 is not rounded again.
        scaled = features[j - 1] * float(axis_scales(dim)[j - 1])
        elevated[j] = tail - j * scaled
        tail = tail + scaled
    elevated[0] = tail

    inverse_size = torch.tensor(1 / size, dtype=torch.float32, device=features.device)
    cell = (elevated * inverse_size).round()
    excess = cell.sum(dim=0).int()
    residual = elevated - cell * size
    rank = torch.zeros_like(residual, dtype=torch.int32)
    for i in range(dim):
        for j in range(i + 1, size):
            smaller = (residual[i] < residual[j]).int()
            rank[i] += smaller
            rank[j] += 1 - smaller
    rank += excess
    wraps = (rank < 0).int() - (rank > dim).int()
    cell += wraps
    rank += wraps * size

    offset = (elevated - cell * size) * inverse_size
    position = (dim - rank).long()
    sorted_offset = torch.empty_like(offset).scatter_(0, position, offset)
    axes = torch.arange(size, device=features.device)[:, None].expand_as(position)
    order = torch.empty_like(position).scatter_(0, position, axes)
    first = sorted_offset[:1] + (1 - sorted_offset[dim:])
    weights = torch.cat([first, sorted_offset[1:] - sorted_offset[:-1]])
    return cell, order, weights
