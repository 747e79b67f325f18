"""InCA and ADL: their options, and what they drop in training.

ADL: Choe and Shim, "Attention-based Dropout Layer for Weakly Supervised Object Localization", CVPR
2019 (arXiv 1908.10028), hides what a classifier looks at most. InCA
(:mod:`adcam.models.losses`) drops the background as well, and compares what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adcam.errors import AdcamError
from adcam.models.losses import (
    AttentionMasks,
    DepthOutput,
    TrainMaps,
    contrastive_attention_loss,
    foreground_consistency_loss,
    scale_class_maps,
    split_attention,
)
from adcam.ops.token_attention import resolve_layers
from adcam.options import Section, setting


@dataclass(frozen=True)
class InCA(Section):
    """The parts that InCA adds to training; each can be used by itself.

    ADL is ``InCA(drop_background=False, contrastive=None, consistency_weight=0)`` on a network with
    ``attention="channel"``.

    Attributes:
        layers: The blocks of a ViT, or the depths 0 to 2 of a convolutional network, that InCA
            works on; ``"all"`` for all of them.
        fg_threshold: The share of the largest attention, in [0, 1), above which a place is
            foreground; a larger share takes less of the image for the object.
        drop_threshold: The share of the largest attention, in (0, 1], from which on a place is the
            most discriminative part; a larger share drops less.
        drop_rate: The probability, in [0, 1], that a step hides the most discriminative part; a
            larger one hides it more often.
        drop_foreground: Whether the most discriminative part is dropped.
        drop_background: Whether the background is dropped.
        drop_layers: Those of ``layers`` behind which something is dropped, ``None`` for all. What
            comes after learns from less, and batch statistics are counted on less.
        contrastive: ``"hinge"`` or ``"infonce"``, ``None`` for no contrastive attention loss.
        contrastive_on: What it compares: ``"features"`` of each of ``layers``, the mean of which is
            taken, or the class ``"maps"``, with the attention of the last of ``layers``. A ViT
            mixes all patches, so that even background of other features may speak for the class;
            its maps must be parted themselves.
        contrastive_weight: The weight λ_ca of that loss; a larger one parts object and background
            harder.
        margin: By how much the hinge wants background to be farther away than foreground.
        temperature: The temperature of InfoNCE; a smaller one weighs hard cases more.
        consistency_weight: The weight λ_fc of the foreground consistency loss; larger makes the
            maps that it compares more alike. 0 for none.
        consistency_on: What is pulled towards the attention of the last of ``layers``: that of the
            other ``"layers"``, or the class ``"maps"`` as well, which spread over the whole object
            where the attention does.
    """

    layers: str | tuple[int, ...] = "all"
    fg_threshold: float = setting(0.3, at_least=0, below=1)
    drop_threshold: float = setting(0.8, above=0, at_most=1)
    drop_rate: float = setting(0.75, at_least=0, at_most=1)
    drop_foreground: bool = True
    drop_background: bool = True
    drop_layers: str | tuple[int, ...] | None = None
    contrastive: str | None = setting("hinge", choices=("hinge", "infonce"))
    contrastive_on: str = setting("features", choices=("features", "maps"))
    contrastive_weight: float = 1.0
    margin: float = setting(1.0, above=0, at_most=4)
    temperature: float = setting(0.07, above=0)
    consistency_weight: float = 1.0
    consistency_on: str = setting("layers", choices=("layers", "maps"))

    def split(self, attn: Tensor) -> AttentionMasks:
        """Split attention maps (B, 1, h, w) by the thresholds."""
        return split_attention(
            attn, fg_threshold=self.fg_threshold, drop_threshold=self.drop_threshold
        )

    def compute_losses(self, maps: TrainMaps, cls_label: Tensor) -> dict[str, Tensor]:
        """Return the weighted ``loss_contrastive`` and ``loss_consistency`` of outputs.

        Args:
            maps: What the network showed of B images.
            cls_label: (B, C), multi-hot.
        """
        losses = {}
        if self.contrastive is not None:
            depth_outputs = maps.depth_outputs
            if self.contrastive_on == "maps":
                attn = F.interpolate(
                    depth_outputs[-1].attn, size=maps.cam.shape[2:], mode="bilinear"
                )
                depth_outputs = (DepthOutput(maps.cam, attn),)
            parts = [
                contrastive_attention_loss(
                    output.features,
                    self.split(output.attn),
                    version=self.contrastive,
                    margin=self.margin,
                    temperature=self.temperature,
                )
                for output in depth_outputs
            ]
            losses["loss_contrastive"] = self.contrastive_weight * torch.stack(parts).mean()
        if self.consistency_weight:
            *pulled, last = (output.attn for output in maps.depth_outputs)
            if self.consistency_on == "maps":
                pulled.append(scale_class_maps(maps.cam, cls_label))
            losses["loss_consistency"] = self.consistency_weight * foreground_consistency_loss(
                pulled, last
            )
        return losses


class AttentionDropout(nn.Module):
    """Multiply features by a drop mask or by an importance map; the identity at evaluation.

    Each call draws once for the whole batch: with probability ``drop_rate`` the drop mask, else the
    importance map ``sigmoid(attn)``. What is kept is not scaled up.

    Args:
        options: Which part is dropped how often, and its thresholds.
    """

    def __init__(self, options: InCA) -> None:
        super().__init__()
        self.options = options

    def find_depths(self, depths: tuple[int, ...], num_depths: int) -> tuple[int, ...]:
        """Return the depths behind which something is dropped.

        Args:
            depths: The depths whose attention is read.
            num_depths: How many the network has.

        Raises:
            AdcamError: If one of ``drop_layers`` is not among ``depths``.
        """
        if self.options.drop_layers is None:
            return depths
        chosen = resolve_layers(self.options.drop_layers, num_depths)
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
        options = self.options
        if torch.rand(()) >= options.drop_rate:
            return features * attn.sigmoid().to(features.dtype)
        masks = options.split(attn)
        keep = torch.ones_like(masks.fg)
        if options.drop_foreground:
            keep = keep & ~masks.peak
        if options.drop_background:
            keep = keep & masks.fg
        return features * keep.to(features.dtype)
