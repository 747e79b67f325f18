"""AD-CAM: activations diffuse along attention refined by common neighbours.

After "Attention-based Class Activation Diffusion for Weakly-Supervised Semantic Segmentation"
(Huang et al., arXiv 2211.10931). Only its abstract is known here: attention is refined
conservatively (pixels whose neighbourhoods differ attend less) and activation is diffused in
proportion to it. The formulas are this project's own; docs/methods.md derives and measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return (B, K, h, w) non-negative maps for class ids (B, K)."""
        start = self.start_maps(maps, class_ids)
        attn = read_patch_attention(maps, self.layers)
        if self.background_weight and class_ids.shape[1]:
            spread = self._spread(add_background(start.flatten(2)), attn, maps.grid_hw)
            spread = divide_with_background(spread, weight=self.background_weight)
        else:
            spread = self._spread(start.flatten(2), attn, maps.grid_hw)
        return clip_at_quantile(spread, quantile=self.clip_quantile).reshape(start.shape)

    def _spread(self, start: Tensor, attn: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        if self.walk == "two_hop":
            return two_hop_walk(start, attn, num_steps=self.two_hop_steps)
        options = RefineOptions(
            artifact_ratio=self.artifact_ratio,
            similarity=self.similarity,
            power=self.power,
            normalize=self.normalize,
            num_steps=self.num_steps,
            alpha=self.alpha,
            exact=self.exact,
        )
        return refine_maps(start, attn, grid_hw, options)


def add_background(start: Tensor) -> Tensor:
    """Append the start of background: what no class claims.

    Args:
        start: (..., K, N) non-negative; each map is scaled to its maximum.

    Returns:
        (..., K + 1, N) in [0, 1]. A map without activation stays empty.
    """
    peak = start.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(start.dtype).tiny)
    scaled = (start / peak).clamp_min(0)
    return torch.cat([scaled, 1 - scaled.amax(dim=-2, keepdim=True)], dim=-2)


def divide_with_background(spread: Tensor, *, weight: float) -> Tensor:
    """Give each class its share of what has arrived of it and of background.

    A map alone says how much has arrived, which depends on how widely it spread: a large object
    is fainter than a small one. The share does not, and a few patches that kept what they started
    with (a clique) score no higher than an object that background did not reach.

    Args:
        spread: (..., K + 1, N) non-negative, background last.
        weight: How much background counts; more lowers a map where both have arrived.

    Returns:
        (..., K, N) in [0, 1]; 0 where nothing of the class has arrived.
    """
    classes, background = spread[..., :-1, :], spread[..., -1:, :]
    tiny = torch.finfo(spread.dtype).tiny
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
