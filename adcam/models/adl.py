"""ADL, the attention-based dropout layer: in training, hide what a classifier looks at most.

Choe and Shim, "Attention-based Dropout Layer for Weakly Supervised Object Localization", CVPR 2019
(arXiv 1908.10028). InCA (:mod:`adcam.models.losses`) drops the background as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adcam.errors import AdcamError
from adcam.models.losses import split_attention
from adcam.ops.token_attention import resolve_layers


class AttentionDropout(nn.Module):
    """Multiply features by a drop mask or by an importance map; the identity at evaluation.

    Each call draws once for the whole batch: with probability ``drop_rate`` the drop mask, else the
    importance map ``sigmoid(attn)``. What is kept is not scaled up.

    Args:
        drop_rate: Probability of the drop mask, in [0, 1]; larger hides more often.
        drop_threshold: Share of the attention's maximum from which a place counts as the most
            discriminative part; ADL takes 0.8 or 0.9.
        fg_threshold: Share of the attention's maximum below which a place counts as background;
            used where the background is dropped.
        drop_foreground: ``True`` drops the most discriminative part.
        drop_background: ``True`` drops the background, as InCA does; ADL keeps it.
        layers: The depths behind which something is dropped, of those whose attention is read;
            ``None`` for all of them.
    """

    def __init__(
        self,
        *,
        drop_rate: float = 0.75,
        drop_threshold: float = 0.8,
        fg_threshold: float = 0.3,
        drop_foreground: bool = True,
        drop_background: bool = False,
        layers: str | tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.thresholds = {"fg_threshold": fg_threshold, "drop_threshold": drop_threshold}
        self.drop_foreground = drop_foreground
        self.drop_background = drop_background
        self.layers = layers

    def find_depths(self, depths: tuple[int, ...], num_depths: int) -> tuple[int, ...]:
        """Return the depths behind which something is dropped.

        Args:
            depths: The depths whose attention is read.
            num_depths: How many the network has.

        Raises:
            AdcamError: If one of ``layers`` is not among ``depths``.
        """
        if self.layers is None:
            return depths
        chosen = resolve_layers(self.layers, num_depths)
        if not set(chosen) <= set(depths):
            raise AdcamError(f"drop_layers {chosen} must be among layers {depths}")
        return chosen

    def forward(self, features: Tensor, attn: Tensor) -> Tensor:
        """Return features of the same shape and dtype.

        Args:
            features: (B, D, h, w).
            attn: (B, 1, h, w), non-negative. ADL takes the channel mean of the features.
        """
        if not self.training:
            return features
        if torch.rand(()) >= self.drop_rate:
            return features * attn.sigmoid().to(features.dtype)
        masks = split_attention(attn, **self.thresholds)
        keep = torch.ones_like(masks.fg)
        if self.drop_foreground:
            keep = keep & ~masks.peak
        if self.drop_background:
            keep = keep & masks.fg
        return features * keep.to(features.dtype)
