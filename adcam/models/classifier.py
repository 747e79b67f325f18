"""The classifier as mmengine trains it: normalisation, losses, mixed precision."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor
from torch.nn import functional as F

from adcam.errors import AdcamError
from adcam.models.inca import AttentionDropout, InCA
from adcam.models.nonlocal_cam import NonlocalCAM
from adcam.models.token_cam import TokenCAM
from adcam.options import check_choice

AMP_DTYPES = {"none": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
        self.dropout = None
        if inca is not None and (inca.drop_foreground or inca.drop_background):
            self.dropout = AttentionDropout(inca)
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
