"""The second head of a refined classifier as mmengine trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor
from torch.nn import functional as F

from adcam.errors import AdcamError
from adcam.models.refined_cam import PixelHead
from adcam.structures import IGNORE_INDEX

FINE = 2
"""How many labels along each side a patch is compared with."""


class Refiner(BaseModel):
    """Training of a head on features that do not change.

    Args:
        head: The head to train.
    """

    def __init__(self, head: PixelHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, features: Sequence[Tensor], labels: Sequence[Tensor], mode: str = "loss"
    ) -> Any:
        """Loss of a batch; images may differ in size.

        Args:
            features: Floats (D, h, w) of each image.
            labels: uint8 (FINE h, FINE w) of each image: 0 for background, 1 + class id, 255 for
                "not known".
            mode: ``"loss"``, the only one.

        Returns:
            ``loss``, the mean cross-entropy of all pixels of the batch whose label is known; 0
            where none is.

        Raises:
            AdcamError: For another mode.
        """
        if mode != "loss":
            raise AdcamError(f"mode must be 'loss', got {mode!r}")
        total = torch.zeros((), device=labels[0].device)
        known = torch.zeros((), dtype=torch.long, device=labels[0].device)
        for of_image, target in zip(features, labels, strict=True):
            logits = self.head(of_image[None].float())
            fine = F.interpolate(
                logits, size=target.shape[-2:], mode="bilinear", align_corners=False
            )
            total = total + F.cross_entropy(
                fine, target[None].long(), ignore_index=IGNORE_INDEX, reduction="sum"
            )
            known = known + (target != IGNORE_INDEX).sum()
        return {"loss": total / known.clamp_min(1)}
