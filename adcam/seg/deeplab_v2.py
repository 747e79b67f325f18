"""The head of DeepLab-v2, which mmsegmentation lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class DeepLabV2Head(BaseDecodeHead):
    """ASPP-L of Chen et al., "DeepLab" (TPAMI 2018, arXiv 1606.00915, section 3.2).

    Parallel 3×3 convolutions of several dilations straight from features to classes, summed;
    neither normalisation nor dropout, as in most re-implementations.

    Args:
        dilations: (6, 12, 18, 24) is the paper's ASPP-L; larger looks further.
        **kwargs: Arguments of ``BaseDecodeHead``; ``channels`` is not used.
    """

    def __init__(self, dilations: Sequence[int] = (6, 12, 18, 24), **kwargs: Any) -> None:
        kwargs.setdefault("dropout_ratio", 0)
        super().__init__(channels=kwargs.pop("channels", 1), **kwargs)
        self.conv_seg = nn.Identity()  # the branches classify
        branches = [
            nn.Conv2d(self.in_channels, self.out_channels, 3, padding=d, dilation=d)
            for d in dilations
        ]
        for branch in branches:
            nn.init.normal_(branch.weight, std=0.01)
            if branch.bias is not None:
                nn.init.zeros_(branch.bias)
        self.branches = nn.ModuleList(branches)
        self.init_cfg = None  # mmengine would initialise conv_seg

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits (B, C, h, w) from the features (B, in_channels, h, w) at ``in_index``."""
        features = self._transform_inputs(inputs)
        return sum(branch(features) for branch in self.branches)
