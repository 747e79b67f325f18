"""AD-CAM: activations diffuse along attention refined by common neighbours.

After "Attention-based Class Activation Diffusion for Weakly-Supervised Semantic Segmentation"
(Huang et al., arXiv 2211.10931). Only its abstract is known here: attention is refined
conservatively (pixels whose neighbourhoods differ attend less) and activation is diffused in
proportion to it. The formulas are this project's own; docs/methods.md derives and measures them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adcam.cams.activation import DiffusionMethod, read_patch_attention
from adcam.method_options import ADCAMOptions
from adcam.ops.refinement import RefineOptions, refine_maps
from adcam.ops.two_hop_walk import two_hop_walk
from adcam.structures import TokenMaps


@dataclass(frozen=True)
class ADCAM(ADCAMOptions, DiffusionMethod):
    """Refine the attention, then diffuse the activation along it."""

    backend: ClassVar[str] = "auto"  # of the operations; measurements compare with "reference"

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return (B, K, h, w) non-negative maps for class ids (B, K)."""
        start = self.start_maps(maps, class_ids)
        attn = read_patch_attention(maps, self.layers)
        spread = spread_beside_background(
            start.flatten(2),
            lambda start: self._spread(start, attn, maps.grid_hw),
            weight=self.background_weight,
            shared=self.rival_weight > 0,
        )
        return clip_at_quantile(spread, quantile=self.clip_quantile).reshape(start.shape)

    def _spread(self, start: Tensor, attn: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        if self.walk == "two_hop":
            return two_hop_walk(start, attn, num_steps=self.two_hop_steps, backend=self.backend)
        options = RefineOptions(
            artifact_ratio=self.artifact_ratio,
            similarity=self.similarity,
            power=self.power,
            normalize=self.normalize,
            num_steps=self.num_steps,
            alpha=self.alpha,
            exact=self.exact,
        )
        return refine_maps(start, attn, grid_hw, options, backend=self.backend)


def spread_beside_background(
    start: Tensor, spread: Callable[[Tensor], Tensor], *, weight: float, shared: bool
) -> Tensor:
    """Spread classes and their background, and give each class its share of what arrives.

    A map alone says how much of a class has arrived, which is little where an object is large or
    few of its patches were lit at first. The share compares it with the background that arrives at
    the same place. That background diffuses as the classes do is PSA's (Ahn and Kwak, arXiv
    1803.10464, section 3.3); the share is this project's.

    Args:
        start: (..., K, N), non-negative; values below 0 count as 0 unless ``weight`` is 0.
        spread: Diffuses maps (..., K', N) in [0, 1]: the classes, each scaled to its maximum, and
            background, which is 1 less what classes claim.
        weight: κ in class / (class + κ background); a larger one lowers a map more where background
            arrives. 0 spreads the start as it is.
        shared: Whether background is what no class claims, one map for all. Otherwise each class
            has its own, what it does not claim itself, and no result depends on other classes.

    Returns:
        (..., K, N), in [0, 1]. A class whose start is empty stays empty.
    """
    if not weight or not start.shape[-2]:
        return spread(start)
    tiny = torch.finfo(start.dtype).tiny
    scaled = start.clamp_min(0) / start.amax(dim=-1, keepdim=True).clamp_min(tiny)
    claimed = scaled.amax(dim=-2, keepdim=True) if shared else scaled
    arrived = spread(torch.cat([scaled, 1 - claimed], dim=-2))
    classes, background = arrived.split([scaled.shape[-2], claimed.shape[-2]], dim=-2)
    return classes / (classes + weight * background).clamp_min(tiny)


def clip_at_quantile(maps: Tensor, *, quantile: float) -> Tensor:
    """Cut each map off at a quantile of its own values.

    A few patches that attend to each other alone (the artefacts of Darcet et al., "Vision
    Transformers Need Registers", arXiv 2309.16588) keep what they start with, however far the rest
    spreads; scaled to their maximum, the object would be faint.

    Args:
        maps: (..., N) float maps.
        quantile: The quantile in (0, 1], linear between the two nearest values.
    """
    if quantile == 1 or not maps.numel():
        return maps
    return maps.minimum(maps.quantile(quantile, dim=-1, keepdim=True))
