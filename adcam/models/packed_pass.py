"""One pass of a ViT over images of several sizes: their tokens side by side.

Everything in a block works token by token, save attention. So the tokens of all sizes can go
through it as one long row, and only the attention is computed size by size, each image within
itself. A GPU in small batches waits for its processor to launch operations; for DeiT-T at three
sizes these are 280 in place of 533.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from adcam.models.attention_capture import AttentionCapture


@dataclass(frozen=True)
class Packing:
    """Where the tokens of each size lie in the row.

    Attributes:
        shapes: For each size, the number of images and of tokens of an image.
    """

    shapes: tuple[tuple[int, int], ...]

    def split(self, packed: Tensor, *, dim: int) -> list[Tensor]:
        """Return the part of each size, its tokens' axis as two: images and tokens of an image.

        Args:
            packed: A tensor with all tokens along ``dim``.
            dim: The axis of the tokens, >= 0.
        """
        parts = packed.split([images * tokens for images, tokens in self.shapes], dim=dim)
        return [part.unflatten(dim, s) for part, s in zip(parts, self.shapes, strict=True)]


class PackedCapture(AttentionCapture):
    """Captures the attention of a pass in which several sizes lie side by side.

    Args:
        vit: A ViT of timm, each block of which has timm's ``Attention``.
        layer_sets: Sets of block indices whose patch-to-patch attention is averaged for each size.
        packing: Where the tokens of each size lie.

    Attributes:
        parts: What was captured of each size.
    """

    def __init__(self, vit: Any, layer_sets: Sequence[tuple[int, ...]], packing: Packing) -> None:
        super().__init__(vit)
        self._packing = packing
        self.parts = [AttentionCapture(vit, layer_sets) for _ in packing.shapes]

    def _attend(
        self,
        index: int,
        scale: float,
        fused: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: Mapping[str, Any],
    ) -> Tensor:
        """Attend within each image of each size; the tensors are (1, heads, all tokens, d)."""
        sizes = (self._split_heads(x) for x in (query, key, value))
        outputs = [
            part._attend(index, scale, fused, q, k, v, options)
            for part, q, k, v in zip(self.parts, *sizes, strict=True)
        ]
        rows = [output.transpose(1, 2).flatten(0, 1) for output in outputs]
        return torch.cat(rows).transpose(0, 1).unsqueeze(0)

    def _split_heads(self, packed: Tensor) -> list[Tensor]:
        """(1, heads, all tokens, d) -> (images, heads, tokens, d) of each size, without a copy."""
        return [part[0].transpose(0, 1) for part in self._packing.split(packed, dim=2)]


def can_pack(vit: Any) -> bool:
    """Whether a pass over several sizes at once gives what one over each would.

    It does not where autograd records, where a network has a forward pass of its own, or where a
    block computes its attention by separate products, which would be among all images.

    Args:
        vit: A ViT of timm.
    """
    return (
        not torch.is_grad_enabled()
        and not vit.training
        and type(vit).forward_features is VisionTransformer.forward_features
        and all(block.attn.fused_attn for block in vit.blocks)
    )


def run_packed(
    vit: Any, inputs: Sequence[Tensor], layer_sets: Sequence[tuple[int, ...]] = ()
) -> tuple[Packing, Tensor, list[AttentionCapture]]:
    """Run a ViT on images of several sizes, as ``forward_features`` does on those of one.

    The steps are those of timm/models/vision_transformer.py,
    ``VisionTransformer.forward_features``.

    Args:
        vit: A ViT for which :func:`can_pack` holds.
        inputs: The images of each size, (B, 3, H, W); H and W multiples of the patch.
        layer_sets: Sets of block indices whose patch-to-patch attention is averaged.

    Returns:
        Where the tokens of each size lie, the tokens (1, all tokens, D) after the last norm, and
        what was captured of each size.
    """
    embedded = [vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x)))) for x in inputs]
    packing = Packing(tuple((x.shape[0], x.shape[1]) for x in embedded))
    tokens = torch.cat([x.flatten(0, 1) for x in embedded]).unsqueeze(0)
    capture = PackedCapture(vit, layer_sets, packing)
    with capture:
        for block in vit.blocks:
            tokens = block(tokens)
    return packing, vit.norm(tokens), capture.parts
