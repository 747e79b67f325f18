"""Any timm ViT as a backbone of mmsegmentation."""

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
class TimmViT(BaseModule):
    """Patch tokens of a timm ViT at chosen depths, as maps.

    Position embeddings are resampled to the grid of each input. Sides must be multiples of the
    patch.

    Args:
        name: A name of ``timm.list_models()``; nothing is downloaded.
        img_size: Side in pixels of the images that the position embedding is stored for.
        out_indices: Blocks whose outputs are returned, 0-based; the last may be given as -1.
        norm: ``True`` applies the final normalisation to each output.
        drop_path_rate: Rate of stochastic depth; a larger one regularises more.
        backbone_kwargs: Further options of the backbone, of those that
            :data:`adcam.options.BACKBONE_OPTIONS` lists.
    """

    def __init__(
        self,
        name: str,
        *,
        img_size: int = 224,
        out_indices: Sequence[int] = (-1,),
        norm: bool = True,
        drop_path_rate: float = 0.0,
        backbone_kwargs: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        self.network = timm.create_model(
            name,
            pretrained=False,
            num_classes=0,
            global_pool="",
            img_size=img_size,
            dynamic_img_size=True,
            drop_path_rate=drop_path_rate,
            **check_backbone_options(backbone_kwargs, name),
        )
        draw_on_the_processor(self.network)
        depth = len(self.network.blocks)
        self.out_indices = [index % depth for index in out_indices]
        self.norm = norm
        # Distributed training refuses parameters that no output depends on.
        self.network.prune_intermediate_layers(self.out_indices, prune_norm=not norm)

    def init_weights(self) -> None:
        """Keep timm's initialisation or what was loaded."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, D, h, w), one a chosen block, from images (B, 3, H, W)."""
        maps = self.network.forward_intermediates(
            inputs, indices=self.out_indices, norm=self.norm, intermediates_only=True
        )
        return tuple(maps)
