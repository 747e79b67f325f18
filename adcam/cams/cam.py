"""CAM: the class maps themselves.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016. With a
convolutional head followed by global average pooling the class map is the head's output.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adcam.cams.activation import check_start_options, select_cam
from adcam.structures import TokenMaps


@dataclass(frozen=True)
class CAM:
    """Rectified class maps; no attention is used.

    Attributes:
        negatives: What happens to negative class evidence: ``"shift"`` keeps its order, ``"relu"``
            cuts it off, ``"keep"`` leaves it.
        rival_weight: Share of the strongest other class of the image that is subtracted from a
            class map, in [0, 1); a larger share separates classes harder.
    """

    negatives: str = "shift"
    rival_weight: float = 0.5

    def __post_init__(self) -> None:
        check_start_options(negatives=self.negatives, rival_weight=self.rival_weight)

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """No patch-to-patch attention is needed."""
        return ()

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return (B, K, h, w) non-negative maps for class ids (B, K)."""
        return select_cam(maps, class_ids, negatives=self.negatives, rival_weight=self.rival_weight)
