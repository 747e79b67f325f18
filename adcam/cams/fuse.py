"""Fusion of the maps of several scales and of the mirrored image into one map at image size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adcam.cams.normalize import min_max
from adcam.errors import AdcamError
from adcam.ops.color_diffusion import diffuse_by_color

FINE = 4
"""How many times finer than the patches the grid is on which maps spread along colours."""


def fuse_maps(grids: Sequence[Tensor], ori_hw: tuple[int, int]) -> Tensor:
    """Scale each map to [0, 1], resize it to the image, average, and scale the average.

    Every scale counts the same, whatever the magnitude of its maps.

    Args:
        grids: Maps (V, K, h, w), one tensor a scale; h and w differ between scales. V is 1, or 2
            when the second is of the mirrored image (mirrored back here).
        ori_hw: Height and width of the image.

    Returns:
        (K, H, W) float32 in [0, 1].

    Raises:
        AdcamError: If there is no grid, they differ in K, or V is neither 1 nor 2.
    """
    if not grids:
        raise AdcamError("there are no maps to fuse")
    views, num_classes = grids[0].shape[:2]
    if any(grid.ndim != 4 or grid.shape[:2] != (views, num_classes) for grid in grids):
        raise AdcamError(f"maps must all be (V, K, h, w), got {[tuple(g.shape) for g in grids]}")
    if views not in (1, 2):
        raise AdcamError(f"V must be 1, or 2 with the mirrored image, got {views}")
    fused = torch.zeros(num_classes, *ori_hw, dtype=torch.float32, device=grids[0].device)
    for grid in grids:
        scaled = min_max(grid.float())
        if views == 2:
            scaled = torch.stack([scaled[0], scaled[1].flip(-1)])
        # Averaging the views first and resizing once is the same: both are linear.
        view_mean = scaled.mean(dim=0, keepdim=True)  # (1, K, h, w)
        fused += F.interpolate(view_mean, size=ori_hw, mode="bilinear", align_corners=False)[0]
    return min_max(fused)


def fuse_batch(
    grids: Sequence[Tensor],
    pixels: Sequence[Tensor],
    hws: Sequence[tuple[int, int]],
    *,
    color_steps: int = 0,
) -> list[Tensor]:
    """Fuse the maps of several images as :func:`fuse_maps` does, spread along colours if asked for.

    With colours, maps are fused on a finer grid and spread along the colours there
    (:mod:`adcam.ops.color_diffusion`) before they are resized. Images in a row of equal sizes are
    resized together.

    Args:
        grids: Maps (B, V, K, h, w), one tensor a scale, V and K as for :func:`fuse_maps`.
        pixels: Each image, RGB uint8 (H, W, 3), on the device of ``grids``.
        hws: Height and width of the maps of each image.
        color_steps: Number of steps along the colours, >= 0; more smooth more.

    Returns:
        (K, H, W) float32 in [0, 1] of each image.
    """
    if not color_steps:
        parts = [_fuse_images([grid[part] for grid in grids], hw) for hw, part in _runs(hws)]
        return [maps for part in parts for maps in part]
    height, width = max((grid.shape[-2:] for grid in grids), key=math.prod)
    fine_hw = (FINE * height, FINE * width)
    maps = _fuse_images(grids, fine_hw)
    spread = diffuse_by_color(maps, _shrink(pixels, fine_hw), num_steps=color_steps)
    parts = [
        min_max(F.interpolate(spread[part], size=hw, mode="bilinear", align_corners=False))
        for hw, part in _runs(hws)
    ]
    return [maps for part in parts for maps in part]


def _fuse_images(grids: Sequence[Tensor], hw: tuple[int, int]) -> Tensor:
    """:func:`fuse_maps` of several images at one size: (B, V, K, h, w) each -> (B, K, H, W)."""
    batch, _, classes = grids[0].shape[:3]
    flat = [grid.transpose(0, 1).flatten(1, 2) for grid in grids]  # (V, B·K, h, w)
    return fuse_maps(flat, hw).unflatten(0, (batch, classes))


def _shrink(pixels: Sequence[Tensor], hw: tuple[int, int]) -> Tensor:
    """Images (H, W, 3) of any sizes as (B, 3, h, w) float32."""
    parts = [
        F.interpolate(torch.stack([*pixels[part]]).movedim(-1, 1).float(), size=hw, mode="area")
        for _, part in _runs([(img.shape[0], img.shape[1]) for img in pixels])
    ]
    return torch.cat(parts)


def _runs(hws: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], slice]]:
    """Group images that follow one another and have equal sizes: the size and where they are."""
    runs, start = [], 0
    for hw, group in itertools.groupby(hws):
        stop = start + len(list(group))
        runs.append((hw, slice(start, stop)))
        start = stop
    return runs
