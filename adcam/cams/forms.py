"""Forms of other methods on this project's class maps: TransCAM, MCTformer and CLIP-ES.

TransCAM: Li et al., arXiv 2203.07239. The class maps are multiplied once by the attention summed
over all blocks. MCTformer: Xu et al., CVPR 2022, arXiv 2203.02891. The class maps are coupled with
the class token's attention, then refined by the patch affinity of all blocks. CLIP-ES: Lin et al.,
CVPR 2023, arXiv 2212.09506. The attention of the last blocks, made doubly stochastic by Sinkhorn,
is applied twice, only inside the boxes of the activated regions. Each starts from the same class
maps, so these methods compare refinements and not classifiers. The options also express what the
authors' code does; docs/methods.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adcam.cams.activation import DiffusionMethod, read_patch_attention
from adcam.method_options import CLIPESOptions, TransCAMOptions
from adcam.ops.diffusion import diffuse
from adcam.structures import TokenMaps


@dataclass(frozen=True)
class MCTformerForm(DiffusionMethod):
    """Multiply the activation by the attention once."""

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return (B, K, h, w) non-negative maps for class ids (B, K)."""
        start = self.start_maps(maps, class_ids)
        # M_i = Σ_j A_ij M_j: a patch collects the activation of those it attends to.
        attn = read_patch_attention(maps, self.layers)
        return torch.einsum("bij,bkj->bki", attn, start.flatten(2)).reshape(start.shape)


@dataclass(frozen=True)
class TransCAMForm(TransCAMOptions, MCTformerForm):
    """Multiply the class maps by the attention once, without the class token."""


@dataclass(frozen=True)
class CLIPESForm(CLIPESOptions, DiffusionMethod):
    """Apply the Sinkhorn-normalised attention ``num_steps`` times."""

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return (B, K, h, w) non-negative maps for class ids (B, K)."""
        start = self.start_maps(maps, class_ids)
        if self.box_threshold is not None:
            # The paper's start is scaled to [0, 1], so its threshold is a share of the range.
            start = start - start.amin(dim=(-2, -1), keepdim=True)
            # Zeroing the columns of T² outside the boxes is zeroing the start there.
            start = start * box_mask(start, self.box_threshold)
        attn = read_patch_attention(maps, self.layers)
        refined = diffuse(start.flatten(2), attn, normalize="sinkhorn", num_steps=self.num_steps)
        return refined.reshape(start.shape)


def box_mask(maps: Tensor, threshold: float) -> Tensor:
    """Mark the bounding boxes of each map's strong regions.

    Args:
        maps: (..., h, w) non-negative maps.
        threshold: Share of each map's maximum, in [0, 1); a larger share makes smaller boxes.

    Returns:
        A tensor of the same shape and dtype that is 1 inside the boxes of 8-connected regions and
        0 elsewhere. A map without activation gives zeros.
    """
    from scipy import ndimage  # slow to import, and needed by this method alone

    flat = maps.detach().flatten(0, -3)  # (M, h, w)
    strong = (flat > threshold * flat.amax(dim=(-2, -1), keepdim=True)).cpu().numpy()
    boxes = np.zeros(strong.shape, dtype=bool)
    for mask, regions in zip(boxes, strong, strict=True):
        labels, _ = ndimage.label(regions, structure=np.ones((3, 3), dtype=int))
        for box in ndimage.find_objects(labels):
            mask[box] = True
    return torch.from_numpy(boxes).to(maps).reshape(maps.shape)
