"""Convolutional networks of timm as backbones of mmsegmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor

from adcam.ops.drop_path import draw_on_the_processor
from adcam.options import check_backbone_options


@MODELS.register_module()
class TimmCNN(BaseModule):
    """Feature maps of a convolutional timm network at chosen strides.

    Args:
        name: A name of ``timm.list_models()``; nothing is downloaded.
        out_indices: Stages whose outputs are returned: stage i has stride 2^(i+1), as long as
            ``out_stride`` is not reached.
        out_stride: The largest stride, 8, 16 or 32; where a stage would exceed it, its convolutions
            are dilated instead. Smaller gives finer maps and takes more time.
        drop_path_rate: Rate of stochastic depth; a larger one regularises more.
        backbone_kwargs: Further options of the backbone, of those that
            :data:`adcam.options.BACKBONE_OPTIONS` lists.
    """

    def __init__(
        self,
        name: str,
        *,
        out_indices: Sequence[int] = (4,),
        out_stride: int = 32,
        drop_path_rate: float = 0.0,
        backbone_kwargs: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        self.network = timm.create_model(
            name,
            pretrained=False,
            features_only=True,
            out_indices=tuple(out_indices),
            output_stride=out_stride,
            drop_path_rate=drop_path_rate,
            **check_backbone_options(backbone_kwargs, name),
        )
        draw_on_the_processor(self.network)

    def init_weights(self) -> None:
        """Keep timm's initialisation or what was loaded."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, D_i, h_i, w_i), one a chosen stage, from images (B, 3, H, W)."""
        return tuple(self.network(inputs))
