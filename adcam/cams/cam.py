"""CAM: the class maps themselves.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016. With a
convolutional head followed by global average pooling the class map is the head's output.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adcam.cams.activation import ClassMapMethod
from adcam.structures import TokenMaps


@dataclass(frozen=True)
class CAM(ClassMapMethod):
    """Rectified class maps; no attention is used."""

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return (B, K, h, w) non-negative maps for class ids (B, K)."""
        return self.select_cam(maps, class_ids)
