"""What a refined classifier says of each patch, spread along the refined attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adcam.cams.activation import check_class_ids, read_patch_attention
from adcam.errors import AdcamError
from adcam.method_options import RefinedOptions
from adcam.ops.refinement import RefineOptions, refine_maps
from adcam.ops.token_attention import resolve_layers
from adcam.structures import TokenMaps


@dataclass(frozen=True)
class Refined(RefinedOptions):
    """Probabilities of a head that learnt from confident pixels, diffused as AD-CAM's start is.

    The head is that of :mod:`adcam.models.refined_cam`. It judges each patch nearly by itself; the
    attention refined by common neighbours says which patches of this image belong together.
    """

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """Return the set of blocks whose attention the diffusion needs, none without a step."""
        return (resolve_layers(self.layers, depth),) if self.num_steps else ()

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return maps (B, K, h, w) of class ids (B, K); an id may occur twice.

        Background and the classes of ``class_ids`` share a probability of 1; classes that the image
        does not show have none.

        Raises:
            AdcamError: If the network is no refined classifier, an id is out of range, or the
                forward pass was not asked for the attention.
        """
        start = compute_probabilities(maps, class_ids)
        if not self.num_steps:
            return start
        attn = read_patch_attention(maps, self.layers)
        options = RefineOptions(artifact_ratio=self.artifact_ratio, num_steps=self.num_steps)
        return refine_maps(start.flatten(2), attn, maps.grid_hw, options).reshape(start.shape)


def compute_probabilities(maps: TokenMaps, class_ids: Tensor) -> Tensor:
    """Return the probabilities of an image's classes among themselves and background.

    Args:
        maps: Token maps of B images of a refined classifier.
        class_ids: int64 (B, K).

    Returns:
        (B, K, h, w), in [0, 1].

    Raises:
        AdcamError: If the network is no refined classifier, or as :func:`check_class_ids`.
    """
    if maps.pixel_logits is None:
        raise AdcamError(
            f"'refined' needs a refined classifier, and {maps.model} is none; "
            "`adcam refine` makes one"
        )
    batch, outputs, height, width = maps.pixel_logits.shape
    check_class_ids(class_ids, batch=batch, num_classes=outputs - 1)
    rows = class_ids + 1
    allowed = torch.zeros(batch, outputs, dtype=torch.bool, device=rows.device)
    allowed[:, 0] = True
    allowed.scatter_(1, rows, True)
    logits = maps.pixel_logits.masked_fill(~allowed[:, :, None, None], -torch.inf)
    index = rows[:, :, None, None].expand(-1, -1, height, width)
    return logits.softmax(dim=1).gather(1, index)
