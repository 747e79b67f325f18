"""The classifier as mmengine trains it: normalisation, losses, mixed precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor
from torch.nn import functional as F

from adcam.errors import AdcamError
from adcam.models.adl import AttentionDropout
from adcam.models.losses import (
    DepthOutput,
    contrastive_attention_loss,
    foreground_consistency_loss,
    scale_class_maps,
    split_attention,
)
from adcam.models.nonlocal_cam import NonlocalCAM
from adcam.models.token_cam import TokenCAM, TrainMaps
from adcam.options import Section, check_choice, setting

AMP_DTYPES = {"none": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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

    def build_dropout(self) -> AttentionDropout | None:
        """Return the dropout of all depths, ``None`` if nothing is dropped."""
        if not (self.drop_foreground or self.drop_background):
            return None
        return AttentionDropout(
            drop_rate=self.drop_rate,
            drop_threshold=self.drop_threshold,
            fg_threshold=self.fg_threshold,
            drop_foreground=self.drop_foreground,
            drop_background=self.drop_background,
            layers=self.drop_layers,
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
                    split_attention(
                        output.attn,
                        fg_threshold=self.fg_threshold,
                        drop_threshold=self.drop_threshold,
                    ),
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


class Classifier(BaseModel):
    """Training of a network whose logits are averages of class maps.

    Args:
        network: The network to train.
        single_label: ``True`` if every image has exactly one class: then cross-entropy and softmax,
            as in TS-CAM and InCA, replace the multi-label soft margin and the sigmoid.
        amp: ``"none"``, ``"bfloat16"`` (also on CPUs; halves the time where the processor has
            AMX) or ``"float16"`` (needs mmengine's ``AmpOptimWrapper`` for loss scaling).
        cls_token_loss: Weight of the same loss on a linear head of the class token, used only in
            training. It keeps the class token looking at the classes: without it the token's last
            blocks get no gradient, and its attention stays what pre-training left. 0 for none.
        inca: The parts that InCA adds while training, ``None`` for none.

    Raises:
        AdcamError: For an unknown ``amp``, or a class-token loss without a class token.
    """

    def __init__(
        self,
        network: TokenCAM | NonlocalCAM,
        *,
        single_label: bool = False,
        amp: str = "none",
        cls_token_loss: float = 0.0,
        inca: InCA | None = None,
    ) -> None:
        super().__init__()
        check_choice("amp", amp, AMP_DTYPES)
        self.network = network
        self.single_label = single_label
        self.amp_dtype = AMP_DTYPES[amp]
        self.cls_token_loss = cls_token_loss
        self.cls_head = None
        if cls_token_loss > 0:
            if not isinstance(network, TokenCAM) or not network.backbone.has_class_token:
                raise AdcamError("cls_token_loss > 0, but the backbone has no class token")
            self.cls_head = torch.nn.Linear(network.backbone.embed_dim, network.head.out_channels)
        self.inca = inca
        self.dropout = None if inca is None else inca.build_dropout()
        mean, std = network.pixel_stats
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, inputs: Tensor, cls_label: Tensor | None = None, mode: str = "tensor") -> Any:
        """Loss, predictions or logits.

        Args:
            inputs: uint8 (B, 3, H, W).
            cls_label: float32 (B, C), multi-hot.
            mode: ``"loss"`` -> dict of losses; ``"predict"`` -> list of (probabilities (C,),
                labels (C,)) an image; ``"tensor"`` -> logits (B, C).

        Raises:
            AdcamError: For another mode, or one that needs labels without them.
        """
        check_choice("mode", mode, ("loss", "predict", "tensor"))
        inca = self.inca if mode == "loss" else None
        normalised = (inputs.float() - self.mean) / self.std
        with torch.autocast(
            inputs.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype != torch.float32
        ):
            maps = self.network.train_maps(
                normalised,
                layers=None if inca is None else inca.layers,
                dropout=None if inca is None else self.dropout,
            )
            cls_logits = None if self.cls_head is None else self.cls_head(maps.cls_token)
        logits = maps.cam.float().mean(dim=(2, 3))
        if mode == "tensor":
            return logits
        if cls_label is None:
            raise AdcamError(f"mode {mode!r} needs cls_label")
        if mode == "predict":
            scores = logits.softmax(dim=1) if self.single_label else logits.sigmoid()
            return list(zip(scores, cls_label, strict=True))
        losses = {"loss_patches": self._compare(logits, cls_label)}
        if cls_logits is not None:
            loss = self._compare(cls_logits.float(), cls_label)
            losses["loss_cls_token"] = self.cls_token_loss * loss
        if inca is not None:
            losses |= inca.compute_losses(maps, cls_label)
        return losses

    def _compare(self, logits: Tensor, cls_label: Tensor) -> Tensor:
        if self.single_label:
            return F.cross_entropy(logits, cls_label)
        return F.multilabel_soft_margin_loss(logits, cls_label)
