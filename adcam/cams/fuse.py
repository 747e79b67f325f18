"""Fusion of the maps of several scales and of the mirrored image into one map at image size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from adcam.cams.normalize import min_max
from adcam.errors import AdcamError


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
