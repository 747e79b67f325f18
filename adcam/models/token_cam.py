"""Any timm ViT with a convolutional head on its patch tokens: the TS-CAM classifier.

TS-CAM: Token Semantic Coupled Attention Map (Gao et al., ICCV 2021, arXiv 2103.14862). After the
last norm the prefix tokens are dropped, the patch tokens form a (D, h, w) grid, a 3×3 convolution
(padding 1, bias) gives one map per class, and their global average is the logit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adcam.models.shapes_vit  # noqa: F401  # timm learns its name
from adcam.errors import AdcamError
from adcam.models.attention_capture import AttentionCapture
from adcam.models.inca import AttentionDropout
from adcam.models.losses import DepthOutput, TrainMaps, scale_attention
from adcam.models.packed_pass import Packing, can_pack, run_packed
from adcam.models.timm_models import create_timm_model
from adcam.models.weights import load_backbone_weights
from adcam.ops.token_attention import resolve_layers
from adcam.options import check_backbone_options
from adcam.structures import TokenMaps


class TokenCAM(nn.Module):
    """ViT classifier whose logits are averages of class maps.

    Args:
        backbone: timm name of the vision_transformer family, e.g. ``"deit_small_patch16_224"``.
        num_fg_classes: Number of foreground classes C.
        img_size: Side the position embedding is built for, in pixels. Other sizes work: it is
            resampled to the grid of the input.
        weights: ``None`` for random, ``"timm"`` for timm's published weights of that name (needs
            a reachable hub), or a path to ``.safetensors``/``.pth``.
        drop_path_rate: Stochastic depth while training; larger regularises more.
        backbone_kwargs: Further arguments of ``timm.create_model`` (``embed_dim``, ``depth``, …).

    Raises:
        AdcamError: If the model is not a plain ViT, a further argument is none of its own, or
            weights cannot be had or do not fit.
    """

    has_fixed_course = True
    """A pass does the same whatever its inputs hold, so that a GPU can replay it as a graph."""

    def __init__(
        self,
        backbone: str,
        *,
        num_fg_classes: int,
        img_size: int = 224,
        weights: str | Path | None = None,
        drop_path_rate: float = 0.0,
        backbone_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = backbone
        self.backbone = build_backbone(
            backbone,
            img_size=img_size,
            weights=weights,
            drop_path_rate=drop_path_rate,
            **(backbone_kwargs or {}),
        )
        # Refuses attention that cannot be read now rather than after hours of training.
        AttentionCapture(self.backbone)
        self.head = nn.Conv2d(self.backbone.embed_dim, num_fg_classes, kernel_size=3, padding=1)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    @property
    def depth(self) -> int:
        """Number of transformer blocks L."""
        return len(self.backbone.blocks)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return compute_patch_size(self.backbone)

    @property
    def pixel_stats(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel mean and standard deviation of RGB in [0, 1] that the weights expect."""
        cfg = self.backbone.pretrained_cfg
        return tuple(cfg["mean"]), tuple(cfg["std"])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, C) of normalised images (B, 3, H, W)."""
        cam, _ = self.class_maps(inputs)
        return cam.mean(dim=(2, 3))

    def token_maps(
        self,
        inputs: Tensor,
        *,
        layer_sets: Sequence[tuple[int, ...]] = (),
    ) -> TokenMaps:
        """Logits, class maps and attention of a batch in one pass.

        Args:
            inputs: (B, 3, H, W) normalised images; H and W multiples of the patch.
            layer_sets: Sets of block indices whose patch-to-patch attention is wanted. Each set
                costs one (B, N, N) tensor; no set, no N×N work.

        Returns:
            The maps, float32 whatever the autocast dtype; gradients flow if enabled.

        Raises:
            AdcamError: If H or W does not fit the patch, or inputs are not (B, 3, H, W).
        """
        with AttentionCapture(self.backbone, layer_sets) as capture:
            cam, _ = self.class_maps(inputs)
        return self._to_maps(cam, capture)

    def token_maps_of_sizes(
        self, inputs: Sequence[Tensor], *, layer_sets: Sequence[tuple[int, ...]] = ()
    ) -> tuple[TokenMaps, ...]:
        """:meth:`token_maps` of images of several sizes, on a GPU in one pass.

        A subclass with a pass of its own runs that, size by size.

        Args:
            inputs: The normalised images of each size, (B, 3, H, W).
            layer_sets: Sets of block indices whose patch-to-patch attention is wanted.

        Raises:
            AdcamError: As :meth:`token_maps`.
        """
        if not self._packs(inputs, TokenCAM):
            return tuple(self.token_maps(x, layer_sets=layer_sets) for x in inputs)
        return self._packed_maps(inputs, layer_sets)[0]

    def _packs(self, inputs: Sequence[Tensor], owner: type[TokenCAM]) -> bool:
        """Whether one pass over all sizes is worth it, and computes what ``owner.token_maps`` does.

        On a CPU it takes 7 % longer than one pass over each size, whose tokens fit into the cache.
        """
        cls = type(self)
        is_same_pass = cls.token_maps is owner.token_maps and cls.class_maps is TokenCAM.class_maps
        is_worth_it = len(inputs) > 1 and inputs[0].is_cuda
        return is_worth_it and is_same_pass and can_pack(self.backbone)

    def _packed_maps(
        self, inputs: Sequence[Tensor], layer_sets: Sequence[tuple[int, ...]]
    ) -> tuple[tuple[TokenMaps, ...], Packing]:
        """The maps of each size from one pass, and where the tokens of each size lie in it."""
        grids = [compute_grid_hw(x, self.patch_size) for x in inputs]
        packing, packed, captures = run_packed(self.backbone, inputs, layer_sets)
        tokens = packing.split(packed[0], dim=0)
        maps = [
            self._to_maps(self._read_cam(of_size, grid_hw), capture)
            for of_size, grid_hw, capture in zip(tokens, grids, captures, strict=True)
        ]
        return tuple(maps), packing

    def _to_maps(self, cam: Tensor, capture: AttentionCapture) -> TokenMaps:
        cam = cam.float()
        return TokenMaps(
            logits=cam.mean(dim=(2, 3)),
            cam=cam,
            grid_hw=(cam.shape[2], cam.shape[3]),
            depth=self.depth,
            attn_cls2patch=capture.cls2patch,
            attn_patch2patch=capture.patch2patch,
            model=self.name,
        )

    def train_maps(
        self,
        inputs: Tensor,
        *,
        layers: str | tuple[int, ...] | None = None,
        dropout: AttentionDropout | None = None,
    ) -> TrainMaps:
        """Class maps, class token, and patch tokens with their attention at chosen blocks.

        The attention of a block is the class-token row, mean over heads, of it and all blocks
        before, as TS-CAM adds them up: one block alone attends to spots of the object. Tokens come
        with zero mean and unit variance: a few channels of huge values (Sun et al., "Massive
        Activations in Large Language Models", arXiv 2402.17762, also in ViTs) would decide every
        distance. With ``dropout``, patch tokens are dropped behind each block; the class token
        never is.

        Args:
            inputs: (B, 3, H, W) normalised images.
            layers: Blocks whose features and attention are returned, ``None`` for none.
            dropout: The dropout behind ``layers`` or those of them that it names, ``None`` for
                none.

        Raises:
            AdcamError: If the size does not fit, or blocks are asked for without a class token.
        """
        if layers is None:
            return TrainMaps(*self.class_maps(inputs))
        if not self.backbone.has_class_token:
            raise AdcamError(f"{self.name} has no class token whose attention to read")
        grid_hw = compute_grid_hw(inputs, self.patch_size)
        num_prefix = self.backbone.num_prefix_tokens
        blocks = resolve_layers(layers, self.depth)
        dropping = () if dropout is None else dropout.find_depths(blocks, self.depth)
        capture = AttentionCapture(self.backbone)
        depth_outputs: list[DepthOutput] = []

        def hook(
            index: int, block: nn.Module, args: tuple[Tensor, ...], tokens: Tensor
        ) -> Tensor | None:
            # It has the rows of the blocks so far, and is not None since there is a class token.
            rows = cast("Tensor", capture.cls2patch).mean(dim=1, keepdim=True)  # (B, 1, N)
            attn = scale_attention(rows.unflatten(2, grid_hw))
            patches = tokens[:, num_prefix:]
            plain = F.layer_norm(patches.float(), patches.shape[2:])
            depth_outputs.append(DepthOutput(to_grid(plain, grid_hw), attn))
            if dropout is None or index not in dropping:
                return None
            kept = dropout(to_grid(patches, grid_hw), attn).flatten(2).transpose(1, 2)
            return torch.cat([tokens[:, :num_prefix], kept], dim=1)

        handles = [self.backbone.blocks[i].register_forward_hook(partial(hook, i)) for i in blocks]
        try:
            with capture:
                cam, cls_token = self.class_maps(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return TrainMaps(cam, cls_token, tuple(depth_outputs))

    def class_maps(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Class maps (B, C, h, w) and the first token (B, D), the class token if there is one.

        Raises:
            AdcamError: As :meth:`token_maps`.
        """
        grid_hw = compute_grid_hw(inputs, self.patch_size)
        tokens = self.backbone.forward_features(inputs)  # (B, P + N, D)
        return self._read_cam(tokens, grid_hw), tokens[:, 0]

    def _read_cam(self, tokens: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """Class maps (B, C, h, w) of the tokens (B, P + N, D) behind the last norm."""
        patches = tokens[:, self.backbone.num_prefix_tokens :]  # (B, N, D)
        cam: Tensor = self.head(to_grid(patches, grid_hw))
        return cam


@contextmanager
def keep_outputs(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what modules put out while the context lasts, in the order in which they run.

    Yields:
        A list that fills while the network runs.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append(output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def to_grid(patches: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Return patch tokens (B, N, D) as a grid (B, D, h, w)."""
    return patches.transpose(1, 2).unflatten(2, grid_hw)


def build_backbone(
    name: str,
    *,
    img_size: int,
    weights: str | Path | None,
    drop_path_rate: float = 0.0,
    **kwargs: Any,
) -> Any:
    """Make a timm ViT without classifier that takes any input size its patches divide.

    Args:
        name: timm model name.
        img_size: Side in pixels of the position embedding's grid.
        weights: ``None``, ``"timm"`` or a path.
        drop_path_rate: Stochastic depth rate in [0, 1).
        **kwargs: Passed to ``timm.create_model``.

    Returns:
        The model (``timm.models.vision_transformer.VisionTransformer`` or a subclass).

    Raises:
        AdcamError: If the name is unknown, the model is no plain ViT, a further argument is none of
            its own, or weights cannot be had or do not fit.
    """
    backbone = create_timm_model(
        name,
        weights=weights,
        load=load_backbone_weights,
        prepare=check_plain_vit,
        options={
            "num_classes": 0,
            # Pooling plays no part, but a distilled model insists on its two tokens.
            "global_pool": "token" if "distilled" in name else "",
            "img_size": img_size,
            "dynamic_img_size": True,
            "drop_path_rate": drop_path_rate,
            **check_backbone_options(kwargs, name),
        },
    )
    precision = _FullPrecision()
    backbone.patch_embed.register_forward_pre_hook(precision.enter)
    backbone.patch_embed.register_forward_hook(precision.leave, always_call=True)
    return backbone


class _FullPrecision:
    """Hooks that compute a module outside of autocast while gradients are taken.

    Rounded to bfloat16, the embedded patches shift the gradients of the first blocks all in one
    direction: averaged over 16 batches, that of the position embedding is off by 32 %, which this
    reduces to 15 % at no cost in time (docs/methods.md#training).
    """

    def __init__(self) -> None:
        self._contexts: list[torch.autocast] = []

    def enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        (inputs,) = args
        device = inputs.device.type
        if not (torch.is_grad_enabled() and torch.is_autocast_enabled(device)):
            return None
        self._contexts.append(torch.autocast(device, enabled=False))
        self._contexts[-1].__enter__()
        return (inputs.float(),)

    def leave(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        while self._contexts:
            self._contexts.pop().__exit__(None, None, None)


def check_plain_vit(model: Any) -> None:
    """Refuse a network whose attention cannot be read.

    Raises:
        AdcamError: If it is no ``VisionTransformer`` of timm.
    """
    if not isinstance(model, timm.models.vision_transformer.VisionTransformer):
        raise AdcamError(
            f"the network is a {type(model).__name__}; a model of timm's VisionTransformer family "
            "(vit_*, deit_*) is needed, whose attention can be read"
        )


def compute_patch_size(vit: Any) -> tuple[int, int]:
    """Return the height and width in pixels that one token of a timm ViT stands for.

    In a hybrid, a convolutional network has made the image smaller before it is cut into patches.
    """
    ratio = getattr(vit.patch_embed, "feat_ratio", None)
    height, width = vit.patch_embed.patch_size if ratio is None else ratio(as_scalar=False)
    return int(height), int(width)


def compute_grid_hw(inputs: Tensor, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return the token grid (h, w) of a batch of images.

    Args:
        inputs: (B, 3, H, W).
        patch_size: Height and width of a patch in pixels.

    Raises:
        AdcamError: If inputs are not (B, 3, H, W), or H or W is not a multiple of the patch.
    """
    if inputs.ndim != 4 or inputs.shape[1] != 3:
        raise AdcamError(f"inputs must be (B, 3, H, W), got {tuple(inputs.shape)}")
    height, width = inputs.shape[-2:]
    if height % patch_size[0] or width % patch_size[1] or not height or not width:
        raise AdcamError(
            f"input size {height}×{width} (H×W) is not a multiple of the patch "
            f"{patch_size[0]}×{patch_size[1]}"
        )
    return height // patch_size[0], width // patch_size[1]
