"""One step of the class maps along the attention: the forms of TransCAM and MCTformer.

TransCAM: Li et al., arXiv 2203.07239 — class maps multiplied once by the attention summed over
all blocks. MCTformer: Xu et al., CVPR 2022, arXiv 2203.02891 — class maps coupled with the class
token's attention, then refined by the patch affinity of all blocks. Here both act on one model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adcam.cams.activation import patch_attention, start_maps
from adcam.ops.token_attention import resolve_layers
from adcam.structures import TokenMaps


@dataclass(frozen=True)
class Coupled:
    """Attention times activation, once.

    Attributes:
        init: ``"coupled"`` (MCTformer's form) or ``"cam"`` (TransCAM's form).
        layers: Blocks whose attention is averaged; see
            :func:`adcam.ops.token_attention.resolve_layers`.
        rectify: Negative class evidence: ``"shift"`` keeps its order, ``"relu"`` cuts it off.
        compete: Share of the strongest other class of the image that is taken from a class map, in
            [0, 1); larger parts classes harder.
    """

    init: str = "coupled"
    layers: str | tuple[int, ...] = "all"
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
            method="coupled",
            rectify=self.rectify,
            compete=self.compete,
        )
        attn = patch_attention(maps, resolve_layers(self.layers, maps.depth))
        # M_i = Σ_j A_ij M_j: a patch collects the activation of those it attends to.
        return torch.einsum("bij,bkj->bki", attn, start.flatten(2)).reshape(start.shape)
