"""The refinement of CLIP-ES on this project's class maps.

Lin et al., "CLIP is Also an Efficient Segmenter", CVPR 2023 (arXiv 2212.09506): attention of the
last blocks, made doubly stochastic by Sinkhorn, symmetrised, applied twice, only inside the boxes
of the activated regions. Its start, Grad-CAM of CLIP, is replaced by ours, so this row compares
refinements and not classifiers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from adcam.cams.activation import patch_attention, start_maps
from adcam.errors import AdcamError
from adcam.ops.diffusion import diffuse
from adcam.ops.token_attention import resolve_layers
from adcam.structures import TokenMaps


@dataclass(frozen=True)
class CLIPES:
    """Sinkhorn-normalised attention, applied ``num_steps`` times.

    Attributes:
        init: ``"coupled"`` or ``"cam"``.
        layers: Blocks whose attention is averaged.
        num_steps: Powers of the transition; more spreads further.
        box_threshold: Activation outside the bounding boxes of what exceeds this share of a map's
            maximum is dropped before diffusion (the paper's 0.4); ``None`` keeps everything.
        rectify: Negative class evidence: ``"shift"`` keeps its order, ``"relu"`` cuts it off.
        compete: Share of the strongest other class of the image that is taken from a class map, in
            [0, 1); larger parts classes harder.
    """

    init: str = "coupled"
    layers: str | tuple[int, ...] = "last:2/3"
    num_steps: int = 2
    box_threshold: float | None = None
    rectify: str = "shift"
    compete: float = 0.5

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """The sets of blocks whose patch-to-patch attention is needed."""
        return (resolve_layers(self.layers, depth),)

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return (B, K, h, w) non-negative maps for class ids (B, K)."""
        start = start_maps(
            maps,
            class_ids,
            init=self.init,
            method="clip_es",
            rectify=self.rectify,
            compete=self.compete,
        )
        if self.box_threshold is not None:
            # Zeroing the columns of T² outside the boxes is zeroing the start there.
            start = start * box_mask(start, self.box_threshold)
        attn = patch_attention(maps, resolve_layers(self.layers, maps.depth))
        refined = diffuse(start.flatten(2), attn, normalize="sinkhorn", num_steps=self.num_steps)
        return refined.reshape(start.shape)


def box_mask(maps: Tensor, threshold: float) -> Tensor:
    """Ones inside the bounding boxes of a map's strong regions.

    Args:
        maps: (..., h, w) non-negative.
        threshold: Share of each map's maximum, in [0, 1); larger makes smaller boxes.

    Returns:
        Same shape and dtype, 0 or 1; boxes of 8-connected regions are filled. A map without
        activation gives zeros.

    Raises:
        AdcamError: If the threshold lies outside [0, 1).
    """
    if not 0 <= threshold < 1:
        raise AdcamError(f"box_threshold must lie in [0, 1), got {threshold}")
    flat = maps.detach().flatten(0, -3)  # (M, h, w)
    strong = (flat > threshold * flat.amax(dim=(-2, -1), keepdim=True)).cpu().numpy()
    boxes = np.zeros(strong.shape, dtype=bool)
    for mask, regions in zip(boxes, strong, strict=True):
        labels, _ = ndimage.label(regions, structure=np.ones((3, 3), dtype=int))
        for box in ndimage.find_objects(labels):
            mask[box] = True
    return torch.from_numpy(boxes).to(maps).reshape(maps.shape)
