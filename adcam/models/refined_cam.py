"""A classifier that also tells background from classes: TokenCAM with a second head on patches.

The classifier is frozen. The head reads the patch tokens of three of its blocks and learns from the
pixels that class maps are sure of (:mod:`adcam.training.refiner`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adcam.models.token_cam import TokenCAM, compute_grid_hw, keep_outputs, to_grid
from adcam.structures import TokenMaps


class PixelHead(nn.Module):
    """Features of patches to logits: a 1×1 convolution, a 3×3 one with a shortcut, a 1×1 one.

    Args:
        in_channels: Number of channels of the features.
        out_channels: Number of logits.
        channels: Number of channels in between; more fit more detail, errors included.
        dropout: Share of the feature channels that a training step leaves out; a larger one makes
            the head rely on more of them.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, channels: int = 128, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.reduce = nn.Conv2d(in_channels, channels, kernel_size=1)
        self.mix = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.classify = nn.Conv2d(channels, out_channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, out_channels, h, w) of features (B, in_channels, h, w)."""
        hidden = F.gelu(self.reduce(self.dropout(features)))
        return self.classify(hidden + F.gelu(self.mix(hidden)))


class RefinedCAM(TokenCAM):
    """A :class:`adcam.models.token_cam.TokenCAM` whose token maps have ``pixel_logits`` as well.

    The features are the patch tokens of the blocks at half, three quarters and the end of the
    depth, each with zero mean and unit variance: early blocks know edges, late ones classes. The
    new head has C + 1 outputs, background first. Arguments and errors are those of ``TokenCAM``.
    """

    def __init__(
        self,
        backbone: str,
        *,
        num_fg_classes: int,
        img_size: int = 224,
        weights: str | Path | None = None,
        drop_path_rate: float = 0.0,
        backbone_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            backbone,
            num_fg_classes=num_fg_classes,
            img_size=img_size,
            weights=weights,
            drop_path_rate=drop_path_rate,
            backbone_kwargs=backbone_kwargs,
        )
        depth = self.depth
        ends = dict.fromkeys(max(depth * quarters // 4 - 1, 0) for quarters in (2, 3, 4))
        self._feature_layers = tuple(ends)
        width = len(self._feature_layers) * self.backbone.embed_dim
        self.pixel_head = PixelHead(width, num_fg_classes + 1)

    def token_maps(
        self,
        inputs: Tensor,
        *,
        layer_sets: Sequence[tuple[int, ...]] = (),
    ) -> TokenMaps:
        """As ``TokenCAM``, with ``pixel_logits`` from the same pass."""
        with self._keep_tokens() as tokens:
            maps = super().token_maps(inputs, layer_sets=layer_sets)
        return self._add_logits(maps, tokens)

    def token_maps_of_sizes(
        self, inputs: Sequence[Tensor], *, layer_sets: Sequence[tuple[int, ...]] = ()
    ) -> tuple[TokenMaps, ...]:
        """As ``TokenCAM``, with ``pixel_logits`` from the same pass."""
        if not self._packs(inputs, RefinedCAM):
            return tuple(self.token_maps(x, layer_sets=layer_sets) for x in inputs)
        with self._keep_tokens() as packed:
            maps, packing = self._packed_maps(inputs, layer_sets)
        blocks = [packing.split(tokens[0], dim=0) for tokens in packed]
        return tuple(map(self._add_logits, maps, zip(*blocks, strict=True)))

    def _add_logits(self, maps: TokenMaps, tokens: Sequence[Tensor]) -> TokenMaps:
        """Run the new head on the tokens (B, P + N, D) of the blocks that it reads."""
        logits = self.pixel_head(self._to_features(tokens, maps.grid_hw))
        return replace(maps, pixel_logits=logits.float())

    def pixel_features(self, inputs: Tensor) -> Tensor:
        """Return the features (B, D, h, w) that the new head reads, without gradients.

        Args:
            inputs: (B, 3, H, W) normalised images.

        Raises:
            AdcamError: If H or W does not fit the patch.
        """
        grid_hw = compute_grid_hw(inputs, self.patch_size)
        with torch.no_grad(), self._keep_tokens() as tokens:
            self.backbone.forward_features(inputs)
        return self._to_features(tokens, grid_hw)

    def _keep_tokens(self) -> AbstractContextManager[list[Tensor]]:
        """Collect what the blocks of the features put out, (B, P + N, D) each, first to last."""
        return keep_outputs(self.backbone.blocks[i] for i in self._feature_layers)

    def _to_features(self, tokens: Sequence[Tensor], grid_hw: tuple[int, int]) -> Tensor:
        patches = [block[:, self.backbone.num_prefix_tokens :].float() for block in tokens]
        plain = [to_grid(F.layer_norm(part, part.shape[2:]), grid_hw) for part in patches]
        return torch.cat(plain, dim=1)
