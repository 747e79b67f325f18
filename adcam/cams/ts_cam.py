"""TS-CAM: class maps times the class token's attention.

Gao et al., "TS-CAM: Token Semantic Coupled Attention Map for Weakly Supervised Object
Localization", ICCV 2021 (arXiv 2103.14862): the class-token row of the attention, averaged over
heads and summed over all blocks, multiplies the semantic map of the class.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adcam.cams.activation import check_start_options, class_token_map, select_cam
from adcam.ops.token_attention import resolve_layers
from adcam.structures import TokenMaps


@dataclass(frozen=True)
class TSCAM:
    """Direct coupling of attention and activation.

    Attributes:
        negatives: What happens to negative class evidence: ``"shift"`` keeps its order, ``"relu"``
            cuts it off, ``"keep"`` leaves it. The paper keeps the maps of its single labels as they
            are; with several labels, other classes push a map below zero.
        rival_weight: Share of the strongest other class of the image that is subtracted from a
            class map, in [0, 1); a larger share separates classes harder.
    """

    negatives: str = "shift"
    rival_weight: float = 0.5

    def __post_init__(self) -> None:
        check_start_options(negatives=self.negatives, rival_weight=self.rival_weight)

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """No patch-to-patch attention is needed, but blocks that attend."""
        resolve_layers("all", depth)
        return ()

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return (B, K, h, w) maps for class ids (B, K)."""
        cam = select_cam(maps, class_ids, negatives=self.negatives, rival_weight=self.rival_weight)
        # The paper sums over the blocks, the map is their mean.
        return cam * class_token_map(maps, method="ts_cam") * maps.depth
