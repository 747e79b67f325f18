"""MCTformer: a ViT with a class token for each class, whose attention is that class' map.

Xu et al., "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation", CVPR 2022,
arXiv 2203.02891 (V2), and MCTformer+ (arXiv 2308.03005). Read in ``models.py`` of
xulianuwa/MCTformer: no norm follows the last block, a 3×3 convolution on the patches gives one map
a class, and a class' logit is also the mean of its token's channels. timm's ViT computes the same
with C - 1 register tokens beside its class token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adcam.models.attention_capture import AttentionCapture
from adcam.models.token_cam import TokenCAM, keep_outputs
from adcam.structures import TokenMaps


class MCTformer(TokenCAM):
    """A :class:`adcam.models.token_cam.TokenCAM` with a token for each class.

    Args:
        decay: Of MCTformer+, how much less each next patch counts in the logit of a map whose
            patches are ranked by their score, in (0, 1]; a smaller one looks at fewer patches. 1 is
            their mean, as in MCTformer. All else is as in ``TokenCAM``.

    Raises:
        AdcamError: As ``TokenCAM``.
    """

    def __init__(
        self,
        backbone: str,
        *,
        num_fg_classes: int,
        img_size: int = 224,
        weights: str | Path | None = None,
        drop_path_rate: float = 0.0,
        backbone_kwargs: Mapping[str, Any] | None = None,
        decay: float = 1.0,
    ) -> None:
        tokens = {"reg_tokens": num_fg_classes - 1, "no_embed_class": True, "final_norm": False}
        super().__init__(
            backbone,
            num_fg_classes=num_fg_classes,
            img_size=img_size,
            weights=weights,
            drop_path_rate=drop_path_rate,
            backbone_kwargs={**(backbone_kwargs or {}), **tokens},
        )
        self.decay = decay

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, C), the mean of those of class tokens and of maps."""
        with keep_outputs([self.backbone.blocks[-1]]) as tokens:
            cam, _ = self.class_maps(inputs)
        return self._find_logits(cam, tokens[0])

    def token_maps(
        self,
        inputs: Tensor,
        *,
        layer_sets: Sequence[tuple[int, ...]] = (),
    ) -> TokenMaps:
        """As ``TokenCAM``, with the attention of each class' token in ``attn_classes2patch``."""
        capture = _AllRowsCapture(self.backbone, layer_sets)
        with capture, keep_outputs([self.backbone.blocks[-1]]) as tokens:
            cam = self.class_maps(inputs)[0].float()
        rows = torch.stack([capture.rows[i] for i in range(self.depth)], dim=1)  # (B, L, C, N)
        return TokenMaps(
            logits=self._find_logits(cam, tokens[0]),
            cam=cam,
            grid_hw=(cam.shape[2], cam.shape[3]),
            depth=self.depth,
            attn_cls2patch=rows.mean(dim=2),
            attn_patch2patch=capture.patch2patch,
            model=self.name,
            attn_classes2patch=rows,
        )

    def _find_logits(self, cam: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, C) of class maps (B, C, h, w) and all tokens (B, C + N, D), half each."""
        scores = cam.flatten(2).float().sort(dim=2, descending=True).values  # (B, C, N)
        places = torch.arange(scores.shape[2], device=scores.device, dtype=scores.dtype)
        weights = self.decay**places
        of_maps = (scores * weights).sum(dim=2) / weights.sum()
        of_tokens = tokens[:, : self.backbone.num_prefix_tokens].float().mean(dim=2)
        return (of_maps + of_tokens) / 2


class _AllRowsCapture(AttentionCapture):
    """Captures the rows of all prefix tokens, which are the class tokens.

    Attributes:
        rows: The rows of each block, (B, C, N), mean over heads.
    """

    def __init__(self, vit: Any, layer_sets: Sequence[tuple[int, ...]] = ()) -> None:
        super().__init__(vit, layer_sets)
        self.rows: dict[int, Tensor] = {}

    def _take_cls_row(
        self,
        index: int,
        query: Tensor,
        key: Tensor,
        scale: float,
        normalizers: Tensor | None = None,
    ) -> None:
        first = self._num_prefix_tokens
        products = query[:, :, :first].float() @ key.float().transpose(-2, -1) * scale
        self.rows[index] = products.softmax(dim=-1)[..., first:].mean(dim=1)


def convert_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Convert the tensors of a checkpoint of MCTformer's own code to this network's names.

    Key map: ``cls_token`` (1, C, D) and its position embedding are added up to
    ``backbone.cls_token`` and ``backbone.reg_token``; the patches' part of ``pos_embed``
    (1, C + N, D) of V2, or ``pos_embed_pat`` (1, N, D) of MCTformer+, becomes
    ``backbone.pos_embed``; ``norm.*``, which its code never applies, is dropped; ``head.*`` stays,
    and all else is behind ``backbone.``.

    Args:
        state: The tensors by name.

    Returns:
        The tensors, and whether they are of MCTformer+.
    """
    is_plus = "pos_embed_cls" in state
    classes = state["cls_token"].shape[1]
    if is_plus:
        of_classes, of_patches = state["pos_embed_cls"], state["pos_embed_pat"]
    else:
        position = state["pos_embed"]
        of_classes, of_patches = position[:, :classes], position[:, classes:]
    tokens = state["cls_token"].float() + of_classes.float()
    moved = {"backbone.cls_token": tokens[:, :1], "backbone.pos_embed": of_patches.float()}
    if classes > 1:
        moved["backbone.reg_token"] = tokens[:, 1:]
    skipped = ("cls_token", "pos_embed", "norm.")
    for name, value in state.items():
        if name.startswith("head."):
            moved[name] = value.float()
        elif not name.startswith(skipped):
            moved[f"backbone.{name}"] = value.float()
    return moved, is_plus
