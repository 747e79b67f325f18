"""Fusion of the maps of several scales and of the mirrored image into one map at image size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adcam.cams.normalize import min_max
from adcam.errors import AdcamError
from adcam.ops.color_diffusion import diffuse_by_color


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
    fused = torch.zeros(num_classes, *ori_hw, device=grids[0].device)
    for grid in grids:
        scaled = min_max(grid.float())
        if views == 2:
            scaled = torch.stack([scaled[0], scaled[1].flip(-1)])
        # Averaging the views first and resizing once is the same: both are linear.
        view_mean = scaled.mean(dim=0, keepdim=True)  # (1, K, h, w)
        fused += F.interpolate(view_mean, size=ori_hw, mode="bilinear", align_corners=False)[0]
    return min_max(fused)


FINE = 4
"""How many times finer than the patches the grid is on which maps spread along colours."""


def sharpen_by_color(
    grids: Sequence[Tensor], img: np.ndarray, ori_hw: tuple[int, int], *, num_steps: int
) -> Tensor:
    """Fuse maps on a finer grid, spread them along the colours there, and resize the result.

    Args:
        grids: The maps of each scale, as for :func:`fuse_maps`.
        img: The image, RGB uint8 (H, W, 3).
        ori_hw: Height and width of the result.
        num_steps: Number of steps, >= 1; more smooth more (:mod:`adcam.ops.color_diffusion`).

    Returns:
        (K, H, W) float32 in [0, 1].
    """
    height, width = max((grid.shape[-2:] for grid in grids), key=math.prod)
    fine_hw = (FINE * height, FINE * width)
    maps = fuse_maps(grids, fine_hw)
    pixels = torch.from_numpy(img).to(maps.device).permute(2, 0, 1)[None].float()
    small = F.interpolate(pixels, size=fine_hw, mode="area")[0]
    spread = diffuse_by_color(maps, small, num_steps=num_steps)
    resized = F.interpolate(spread[None], size=ori_hw, mode="bilinear", align_corners=False)
    return min_max(resized[0])
