"""TS-CAM: class maps times the class token's attention.

Gao et al., "TS-CAM: Token Semantic Coupled Attention Map for Weakly Supervised Object
Localization", ICCV 2021 (arXiv 2103.14862): the class-token row of the attention, averaged over
heads and summed over all blocks, multiplies the semantic map of the class.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adcam.cams.activation import ClassMapMethod
from adcam.ops.token_attention import resolve_layers
from adcam.structures import TokenMaps


@dataclass(frozen=True)
class TSCAM(ClassMapMethod):
    """Direct coupling of attention and activation.

    The paper keeps the maps of its single labels as they are (``negatives="keep"``); with several
    labels, other classes push a map below zero.
    """

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """No patch-to-patch attention is needed, but blocks that attend."""
        resolve_layers("all", depth)
        return ()

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return (B, K, h, w) maps for class ids (B, K)."""
        # The paper sums over the blocks, the map is their mean.
        return (
            self.select_cam(maps, class_ids) * self.read_class_token(maps, class_ids) * maps.depth
        )
