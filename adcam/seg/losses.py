"""Losses for masks whose pixels differ in confidence."""

from __future__ import annotations

from typing import Any

from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from adcam.errors import AdcamError
from adcam.structures import IGNORE_INDEX


@MODELS.register_module()
class ConfidenceCrossEntropy(nn.Module):
    """Cross-entropy in which a pixel counts as much as its pseudo mask is trusted there.

    ``Σ w_i^γ CE_i / Σ w_i^γ`` over the pixels that are not 255, with w in [0, 1] from the soft maps
    that made the mask. Without a weight map all count alike, and it is mmsegmentation's
    ``CrossEntropyLoss(avg_non_ignore=True)``. This weighting is this project's choice.

    Args:
        gamma: Larger trusts only the surest pixels; 0 all alike.
        loss_weight: Factor of the loss.
        loss_name: Name in the log; only names that begin with ``loss`` are trained on.

    Attributes:
        weight_map: uint8 (B, H, W) of the batch at hand, set by the segmenter.
    """

    def __init__(
        self, *, gamma: float = 1.0, loss_weight: float = 1.0, loss_name: str = "loss_ce"
    ) -> None:
        super().__init__()
        if gamma < 0:
            raise AdcamError(f"gamma must be at least 0, got {gamma}")
        self.gamma = gamma
        self.loss_weight = loss_weight
        self.loss_name = loss_name
        self.weight_map: Tensor | None = None

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = IGNORE_INDEX,
        **kwargs: Any,
    ) -> Tensor:
        """Loss of logits (B, C, H, W) for indices (B, H, W)."""
        losses = F.cross_entropy(
            cls_score.float(), label, reduction="none", ignore_index=ignore_index
        )
        trust = (label != ignore_index).float()
        if self.weight_map is not None:
            trust = trust * (self.weight_map.to(trust.device).float() / 255) ** self.gamma
        if weight is not None:
            trust = trust * weight
        # A crop may hold nothing but ignored pixels.
        return self.loss_weight * (losses * trust).sum() / trust.sum().clamp(min=1e-6)


def is_confidence_loss(kind: str) -> bool:
    """Whether a registered name stands for :class:`ConfidenceCrossEntropy` or a class of its kind.

    Args:
        kind: A ``type`` of a config.
    """
    found = MODELS.get(kind)
    return isinstance(found, type) and issubclass(found, ConfidenceCrossEntropy)
