"""What a refined classifier says of each patch: the probabilities of the image's own classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adcam.errors import AdcamError
from adcam.method_options import RefinedOptions
from adcam.structures import TokenMaps


@dataclass(frozen=True)
class Refined(RefinedOptions):
    """What a head says that learnt from confident pixels (:mod:`adcam.models.refined_cam`)."""

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """No attention between patches is needed."""
        return ()

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return the probabilities (B, K, h, w) of class ids (B, K); an id may occur twice.

        Background and the classes of ``class_ids`` share a probability of 1; classes that the image
        does not show have none.

        Raises:
            AdcamError: If the network is no refined classifier, or an id is out of range.
        """
        if maps.pixel_logits is None:
            raise AdcamError(
                f"'refined' needs a refined classifier, and {maps.model} is none; "
                "`adcam refine` makes one"
            )
        batch, outputs, height, width = maps.pixel_logits.shape
        if class_ids.ndim != 2 or class_ids.shape[0] != batch:
            raise AdcamError(f"class_ids must be ({batch}, K), got {tuple(class_ids.shape)}")
        last = outputs - 2
        if class_ids.numel() and not 0 <= int(class_ids.min()) <= int(class_ids.max()) <= last:
            raise AdcamError(f"class_ids must lie in 0..{last}, got {class_ids.tolist()}")
        rows = class_ids + 1
        allowed = torch.zeros(batch, outputs, dtype=torch.bool, device=rows.device)
        allowed[:, 0] = True
        allowed.scatter_(1, rows, True)
        logits = maps.pixel_logits.masked_fill(~allowed[:, :, None, None], -torch.inf)
        index = rows[:, :, None, None].expand(-1, -1, height, width)
        return logits.softmax(dim=1).gather(1, index)
