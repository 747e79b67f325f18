"""The small ViT of `adcam demo`, known to timm as ``shapes_vit``.

Two things let 0.9 million parameters and some minutes do what larger ViTs learn from ImageNet.

- *Attention starts as similarity.* Query and key weights are equal and near orthogonal, so that a
  token attends to those like it (mimetic initialisation: Trockman and Kolter, ICML 2023, arXiv
  2305.09828, who set their product near the identity); patch and position embedding start as
  cosine bases. Objects then group from the first step.
- *Convolutions beside the patch projection* see what a head looks like. Early convolutions make
  small ViTs train fast (Xiao et al., NeurIPS 2021, arXiv 2106.14881); the plain projection beside
  them keeps colour and texture, by which tokens are compared.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from timm.layers import LayerNorm2d, PatchEmbed
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from adcam.errors import AdcamError
from adcam.models.preprocess import IMAGENET_MEAN, IMAGENET_STD

_COLOUR_GAIN = 4.0  # weight of a patch's mean colour against its finer structure
_POSITION_GAIN = 0.7  # weight of position; larger makes attention more local
_SIMILARITY_GAIN = 3.0  # scale of query-key products; larger makes attention more selective
_MIXING_GAIN = 0.3  # share of the attended tokens in what a block adds
_WAVES = (0.25, 0.45, 0.8, 1.4)  # radians per patch of the position embedding


class ConvPatchEmbed(PatchEmbed):
    """timm's patch projection plus four small convolutions; patches are 8×8 pixels.

    (B, 3, H, W) -> what :class:`timm.layers.PatchEmbed` returns.
    """

    def __init__(self, *args: Any, embed_dim: int, **kwargs: Any) -> None:
        super().__init__(*args, embed_dim=embed_dim, **kwargs)
        if self.patch_size != (8, 8):
            raise AdcamError(f"shapes_vit needs patch_size 8, got {self.patch_size}")
        widths = (3, 32, 64, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), LayerNorm2d(after), nn.GELU()]
        layers += [nn.Conv2d(128, 128, 3, 1, 1), LayerNorm2d(128), nn.GELU()]
        self.convs = nn.Sequential(*layers, nn.Conv2d(128, embed_dim, 1))

    def forward(self, imgs: Tensor) -> Tensor:
        patches: Tensor = super().forward(imgs)  # (B, N, D), or (B, h, w, D) for a dynamic size
        fine = self.convs(imgs).permute(0, 2, 3, 1)
        return patches + fine.reshape(patches.shape)


@register_model
def shapes_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build the network; ``kwargs`` as for timm's ``VisionTransformer``.

    Raises:
        AdcamError: If timm's pretrained weights are asked for: this network has none there.
    """
    if pretrained:
        raise AdcamError("shapes_vit has no weights at timm; give a file, or None")
    for unused in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(unused, None)
    sizes = {"img_size": 96, "embed_dim": 128, "depth": 6, "num_heads": 4, "mlp_ratio": 2}
    vit = VisionTransformer(patch_size=8, embed_layer=ConvPatchEmbed, **{**sizes, **kwargs})
    vit.pretrained_cfg = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    start_from_similarity(vit)
    return vit


@torch.no_grad()
def start_from_similarity(vit: VisionTransformer) -> None:
    """Set embeddings to cosine bases and attention to similarity, in place."""
    dim = vit.embed_dim
    rotation = _random_orthogonal(dim)
    num_position = 4 * len(_WAVES)
    weight = vit.patch_embed.proj.weight
    basis = _colour_basis(weight.shape[-1], dim - 2 * num_position)
    basis = torch.cat([basis, torch.zeros(2 * num_position, basis.shape[1])])
    weight.copy_((rotation @ basis).view_as(weight))
    vit.patch_embed.proj.bias.zero_()

    position = torch.zeros(vit.patch_embed.num_patches, dim)
    position[:, -num_position:] = _position_basis(*vit.patch_embed.grid_size)
    vit.pos_embed.zero_()
    vit.pos_embed[0, vit.num_prefix_tokens :] = _POSITION_GAIN * position @ rotation.T

    for block in vit.blocks:
        same = _random_orthogonal(dim) * math.sqrt(_SIMILARITY_GAIN)
        mix = _random_orthogonal(dim) * math.sqrt(_MIXING_GAIN)
        value = mix + 0.02 * torch.randn(dim, dim)
        block.attn.qkv.weight.copy_(torch.cat([same, same, value]))
        block.attn.proj.weight.copy_(mix.T + 0.02 * torch.randn(dim, dim))
        block.mlp.fc2.weight.mul_(0.5)


def _colour_basis(side: int, num_rows: int) -> Tensor:
    """Two-dimensional cosines of each colour, long waves first: (rows, 3 * side * side)."""
    steps = torch.arange(side)
    cosines = torch.cos(math.pi * (steps + 0.5) * steps[:, None] / side) * math.sqrt(2 / side)
    cosines[0] /= math.sqrt(2)
    orders = [(u, v) for u in range(side) for v in range(side)]
    orders.sort(key=lambda uv: (sum(uv), uv))
    basis = torch.zeros(num_rows, 3, side, side)
    for row in range(num_rows):
        u, v = orders[row // 3]
        gain = _COLOUR_GAIN if u == v == 0 else 1.0
        basis[row, row % 3] = torch.outer(cosines[u], cosines[v]) * gain / side
    return basis.flatten(1)


def _position_basis(grid_h: int, grid_w: int) -> Tensor:
    """Sines and cosines of row and column: (grid_h * grid_w, 4 * waves)."""
    ys, xs = torch.meshgrid(torch.arange(grid_h), torch.arange(grid_w), indexing="ij")
    return torch.stack(
        [
            torch.sin(wave * axis.flatten() + phase)
            for wave in _WAVES
            for axis in (ys, xs)
            for phase in (0.0, math.pi / 2)
        ],
        dim=1,
    )


def _random_orthogonal(dim: int) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim))[0]
