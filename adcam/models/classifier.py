"""The classifier as mmengine trains it: normalisation, loss, mixed precision."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor
from torch.nn import functional as F

from adcam.models.token_cam import TokenCAM

MODES = ("loss", "predict", "tensor")
AMP_DTYPES = {"none": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Classifier(BaseModel):
    """Multi-label training of a :class:`TokenCAM`.

    Args:
        network: What is trained.
        amp: ``"none"``, ``"bfloat16"`` (also on CPUs; halves the time where the processor has
            AMX) or ``"float16"`` (needs mmengine's ``AmpOptimWrapper`` for loss scaling).
        cls_token_loss: Weight of the same loss on a linear head of the class token, used only in
            training. It keeps the class token looking at the classes: without it the token's last
            blocks get no gradient, and its attention stays what pre-training left. 0 for none.

    Raises:
        ValueError: For an unknown ``amp``, or a class-token loss without a class token.
    """

    def __init__(
        self, network: TokenCAM, *, amp: str = "none", cls_token_loss: float = 0.0
    ) -> None:
        super().__init__()
        if amp not in AMP_DTYPES:
            raise ValueError(f"amp must be one of {sorted(AMP_DTYPES)}, got {amp!r}")
        if cls_token_loss > 0 and not network.backbone.has_class_token:
            raise ValueError("cls_token_loss > 0, but the backbone has no class token")
        self.network = network
        self.amp_dtype = AMP_DTYPES[amp]
        self.cls_token_loss = cls_token_loss
        self.cls_head = (
            torch.nn.Linear(network.backbone.embed_dim, network.head.out_channels)
            if cls_token_loss > 0
            else None
        )
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
            ValueError: For another mode, or one that needs labels without them.
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        normalised = (inputs.float() - self.mean) / self.std
        with torch.autocast(
            inputs.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype != torch.float32
        ):
            cam, cls_token = self.network.class_maps(normalised)
            cls_logits = self.cls_head(cls_token) if self.cls_head is not None else None
        logits = cam.float().mean(dim=(2, 3))
        if mode == "tensor":
            return logits
        if cls_label is None:
            raise ValueError(f"mode {mode!r} needs cls_label")
        if mode == "predict":
            return list(zip(logits.sigmoid(), cls_label, strict=True))
        losses = {"loss_patches": F.multilabel_soft_margin_loss(logits, cls_label)}
        if cls_logits is not None:
            loss = F.multilabel_soft_margin_loss(cls_logits.float(), cls_label)
            losses["loss_cls_token"] = self.cls_token_loss * loss
        return losses
