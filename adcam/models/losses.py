"""InCA's parts as pure functions: masks from an attention map, and the two losses on them.

After "In-sample Contrastive Learning and Consistent Attention for Weakly Supervised Object
Localization" (Ki et al., ACCV 2020, arXiv 2009.12063). Its abstract names the anchor (dropped
foreground), the positive (foreground) and the negative (background) of the contrastive attention
loss, and says that earlier attention is pulled to the later one. The formulas are this project's
own; docs/methods.md gives them with what is known and what is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class AttentionMasks:
    """Which places of an attention map count as what; boolean (B, 1, h, w) each.

    Attributes:
        fg: Foreground.
        peak: The most discriminative part.
    """

    fg: Tensor
    peak: Tensor

    @property
    def bg(self) -> Tensor:
        """Background: all that is not foreground."""
        return ~self.fg

    @property
    def drop(self) -> Tensor:
        """Dropped foreground: what the foreground is without its most discriminative part."""
        return self.fg & ~self.peak


@dataclass(frozen=True)
class DepthOutput:
    """What a network shows at one depth while it is trained.

    Attributes:
        features: (B, D, h, w), before anything is dropped.
        attn: (B, 1, h, w) in [0, 1], 1 at the place of most attention.
    """

    features: Tensor
    attn: Tensor


@dataclass(frozen=True)
class TrainMaps:
    """The outputs of a network that its losses read.

    Attributes:
        cam: (B, C, h, w) raw class maps; their average is the logit.
        cls_token: (B, D) class token after the last norm, ``None`` for networks without tokens.
        depth_outputs: Features and attention at the depths that InCA acts on, first to last.
    """

    cam: Tensor
    cls_token: Tensor | None
    depth_outputs: tuple[DepthOutput, ...] = ()


def scale_attention(attn: Tensor) -> Tensor:
    """Divide each map by its maximum; what is negative becomes 0.

    Args:
        attn: (B, 1, h, w).

    Returns:
        float32 (B, 1, h, w) in [0, 1]; a map without a positive value becomes 0.
    """
    attn = attn.float().clamp_min(0)
    return attn / attn.amax(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(attn.dtype).tiny)


def split_attention(attn: Tensor, *, fg_threshold: float, drop_threshold: float) -> AttentionMasks:
    """Foreground and most discriminative part of attention maps.

    Args:
        attn: (B, 1, h, w), non-negative; only its proportions count.
        fg_threshold: Share of the maximum above which a place is foreground, in [0, 1); larger
            takes less of the image for the object.
        drop_threshold: Share of the maximum from which on a place is most discriminative, in
            (0, 1]; larger drops less.
    """
    most = attn.amax(dim=(2, 3), keepdim=True)
    return AttentionMasks(attn > fg_threshold * most, attn >= drop_threshold * most)


def contrastive_attention_loss(
    features: Tensor,
    masks: AttentionMasks,
    *,
    version: str = "hinge",
    margin: float = 1.0,
    temperature: float = 0.07,
) -> Tensor:
    """Pull the dropped foreground of an image to its foreground and away from its background.

    With ``z`` the mean of the features below a mask, at unit length::

        hinge    max(0, |z_drop - z_fg|² - |z_drop - z_bg|² + margin)
        infonce  -log(exp(z_drop·z_fg / t) / (exp(z_drop·z_fg / t) + exp(z_drop·z_bg / t)))

    The only negative is the background of the same image. Masks carry no gradient.

    Args:
        features: (B, D, h, w), of any floating dtype; computed in float32.
        masks: The masks of the B images, from :func:`split_attention`.
        version: ``"hinge"`` or ``"infonce"`` (van den Oord et al., arXiv 1807.03748).
        margin: The margin of the hinge, in (0, 4]; larger asks for more distance to the background.
        temperature: The temperature of InfoNCE, positive; smaller makes it a harder threshold.

    Returns:
        Scalar: the mean over the images none of whose masks is empty; 0 if there is no such image.
    """
    z_fg, z_bg, z_drop = (_pool(features, mask) for mask in (masks.fg, masks.bg, masks.drop))
    if version == "hinge":
        near = (z_drop - z_fg).square().sum(dim=1)
        far = (z_drop - z_bg).square().sum(dim=1)
        losses = (near - far + margin).relu()
    else:
        losses = F.softplus((z_drop * (z_bg - z_fg)).sum(dim=1) / temperature)
    usable = torch.stack(
        [mask.flatten(1).any(dim=1) for mask in (masks.fg, masks.bg, masks.drop)]
    ).all(dim=0)
    # An empty mask has z = 0: finite, and without part in the mean.
    return (losses * usable).sum() / usable.sum().clamp_min(1)


def scale_class_maps(cam: Tensor, cls_label: Tensor) -> Tensor:
    """Add up the class maps of each image's labels and scale the sum from 0 to 1.

    Args:
        cam: (B, C, h, w), of either sign.
        cls_label: (B, C), multi-hot.

    Returns:
        float32 (B, 1, h, w) in [0, 1]; a map of one value everywhere becomes 0.
    """
    cam = torch.einsum("bchw,bc->bhw", cam.float(), cls_label.float()).unsqueeze(1)
    return scale_attention(cam - cam.amin(dim=(2, 3), keepdim=True))


def foreground_consistency_loss(maps: list[Tensor], reference: Tensor) -> Tensor:
    """Mean squared difference of each map to the reference, the attention of the last depth.

    The reference gets no gradient, and is resized (bilinear) to each map.

    Args:
        maps: Attention (B, 1, h_l, w_l) of earlier depths, or scaled class maps, in [0, 1].
        reference: (B, 1, h, w) in [0, 1].

    Returns:
        Scalar, the sum over the maps; 0 without any.
    """
    total = reference.new_zeros((), dtype=torch.float32)
    for attn in maps:
        goal = reference.detach().float()
        if goal.shape[2:] != attn.shape[2:]:
            goal = F.interpolate(goal, size=attn.shape[2:], mode="bilinear", align_corners=False)
        total = total + (attn.float() - goal).square().mean()
    return total


def _pool(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of the features below a mask at unit length, float32 (B, D); 0 for an empty mask."""
    weight = mask.float()
    total = (features.float() * weight).sum(dim=(2, 3))
    return F.normalize(total / weight.sum(dim=(2, 3)).clamp_min(1), dim=1, eps=1e-6)
