"""Diffusion along colour in plain torch, on any device: the specification."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def diffuse_by_color(
    maps: torch.Tensor,
    img: torch.Tensor,
    num_steps: int,
    dilations: tuple[int, ...],
    contrast: float,
    distance_weight: float,
) -> torch.Tensor:
    """M_t = W M_{t-1} for ``num_steps`` steps. (..., K, H, W) -> same."""
    if maps.numel() == 0:
        return maps
    offsets = find_offsets(dilations)
    weights = color_weights(img, offsets, contrast, distance_weight).unsqueeze(-4)
    for _ in range(num_steps):
        spread = torch.zeros_like(maps)
        for number, neighbor in enumerate(_shifted(maps, offsets)):
            spread.addcmul_(weights[..., number, :, :], neighbor)
        maps = spread
    return maps


def find_offsets(dilations: tuple[int, ...]) -> list[tuple[int, int]]:
    """Rows and columns from a pixel to its neighbours, eight at each distance."""
    return [
        (dilation * down, dilation * right)
        for dilation in dilations
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        if (down, right) != (0, 0)
    ]


def color_weights(
    img: torch.Tensor,
    offsets: list[tuple[int, int]],
    contrast: float,
    distance_weight: float,
) -> torch.Tensor:
    """Weights of each pixel's O neighbours, which sum to 1. (..., 3, H, W) -> (..., O, H, W).

    W_ij = (softmax_j(-d_ij) + w softmax_j(-e_ij)) / (1 + w), with w the ``distance_weight``.
    """
    neighbors = torch.stack(_shifted(img, offsets), dim=-4)  # (..., O, 3, H, W)
    sigma = neighbors.std(dim=-4, keepdim=True)
    tiny = torch.finfo(img.dtype).tiny
    scaled = (neighbors - img.unsqueeze(-4)) / (contrast * sigma).clamp_min(tiny)
    # Neighbours that all have one colour count alike: the pixel is equally far from each.
    scaled = torch.where(sigma > 0, scaled, 0)
    by_color = scaled.square().mean(dim=-3).neg().softmax(dim=-3)
    # Computed on the CPU and sent without waiting, since a GPU may still have work in its queue.
    by_distance = weigh_distances(offsets, contrast, img.dtype).to(img.device, non_blocking=True)
    return (by_color + distance_weight * by_distance[:, None, None]) / (1 + distance_weight)


def weigh_distances(
    offsets: list[tuple[int, int]], contrast: float, dtype: torch.dtype
) -> torch.Tensor:
    """softmax_j(-e_ij), what each of O neighbours counts for its distance: (O), on the CPU."""
    steps = torch.tensor(offsets, dtype=dtype)
    distance = torch.linalg.vector_norm(steps, dim=-1)
    scale = contrast * distance.std().clamp_min(torch.finfo(dtype).tiny)
    return (distance / scale).square().neg().softmax(dim=0)


def _shifted(images: torch.Tensor, offsets: list[tuple[int, int]]) -> list[torch.Tensor]:
    """The image as each neighbour sees it; the border stands for what lies outside."""
    reach = max(max(abs(down), abs(right)) for down, right in offsets)
    height, width = images.shape[-2:]
    flat = images.reshape(1, -1, height, width)
    padded = F.pad(flat, (reach, reach, reach, reach), mode="replicate")
    return [
        padded[
            ..., reach + down : reach + down + height, reach + right : reach + right + width
        ].reshape(images.shape)
        for down, right in offsets
    ]
