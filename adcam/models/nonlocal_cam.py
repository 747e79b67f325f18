"""Convolutional classifiers with attention at three depths: plain CAM, ADL and InCA.

Training decides which one it is (:class:`adcam.models.inca.InCA`); at evaluation nothing is
dropped, and what remains of InCA is its non-local blocks. A vision transformer needs no
such block, since its own attend from everywhere to everywhere:
:meth:`adcam.models.token_cam.TokenCAM.train_maps` returns what InCA needs of it.

Trunks and where they are changed follow clovaai/wsolevaluation (``wsol/vgg.py``, ``resnet.py``,
``inception.py``): strides of 1 in place of 2 until the map has the size asked for, no dilation;
VGG16 and InceptionV3 get new 3×3 convolutions of 1,024 channels before the head (Zhou et al., CVPR
2016), and InceptionV3 ends with Mixed_6e. wsolevaluation has no EfficientNet-Lite (Google, 2020: an
EfficientNet without squeeze-and-excitation, with ReLU6); it is changed here as a ResNet is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adcam.errors import AdcamError
from adcam.models.inca import AttentionDropout
from adcam.models.losses import DepthOutput, TrainMaps, scale_attention
from adcam.models.timm_models import create_timm_model
from adcam.models.token_cam import compute_grid_hw
from adcam.models.weights import load_trunk_weights
from adcam.ops.token_attention import resolve_layers
from adcam.options import check_backbone_options
from adcam.structures import TokenMaps

ATTENTIONS = ("nonlocal", "channel")
OUT_STRIDES = (8, 16)
NUM_DEPTHS = 3
"""Depths of every such network at which attention is read."""
Steps = list[tuple[str, nn.Module]]


class NonLocalBlock(nn.Module):
    """Every place attends to every other: embedded Gaussian, added to its input.

    Wang et al., "Non-local Neural Networks", CVPR 2018 (arXiv 1711.07971). θ, φ and g are 1×1
    convolutions to half the channels; the output convolution starts at zero, so that weights
    trained without the block stay what they are.

    Args:
        channels: Channels D of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> the same shape."""
        query, key, value = (
            conv(features).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, N, D/2)
            for conv in (self.theta, self.phi, self.g)
        )
        # softmax(θ φᵀ) g; the paper divides by nothing.
        mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        mixed = mixed.squeeze(1).transpose(1, 2).unflatten(2, features.shape[2:])
        output: Tensor = features + self.out(mixed)
        return output


class NonlocalCAM(nn.Module):
    """Convolutional classifier whose logits are averages of class maps.

    Args:
        backbone: timm name of a VGG (``"vgg16"``), a ResNet (``"resnet50"``), ``"inception_v3"`` or
            an EfficientNet-Lite (``"tf_efficientnet_lite0"``).
        num_fg_classes: Number of foreground classes C.
        weights: ``None`` for random, ``"timm"`` for timm's published weights of that name (needs
            a reachable hub), or a path to ``.safetensors``/``.pth`` of timm or torchvision.
        attention: ``"nonlocal"`` puts a non-local block at each of the three depths (InCA),
            ``"channel"`` only reads the channel mean there (ADL). ``None`` leaves the depths alone
            (plain CAM).
        out_stride: Pixels between two places of the map: 16 is 14×14 at 224 px, 8 is 28×28, which
            costs about four times as much in the late layers.
        frozen_parts: How many of the three parts up to the depths keep the weights and batch
            statistics they begin with, 0 to 3. More trains faster and forgets less of ImageNet;
            the attention behind a frozen part still learns.
        backbone_kwargs: Further arguments of ``timm.create_model`` (``channels``, …).

    Raises:
        AdcamError: If the backbone or an option is unknown, or weights cannot be had or do not fit.
    """

    def __init__(
        self,
        backbone: str,
        *,
        num_fg_classes: int,
        weights: str | Path | None = None,
        attention: str | None = "nonlocal",
        out_stride: int = 16,
        frozen_parts: int = 0,
        backbone_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if attention not in (None, *ATTENTIONS):
            raise AdcamError(f"attention must be one of {ATTENTIONS} or None, got {attention!r}")
        if out_stride not in OUT_STRIDES:
            raise AdcamError(f"out_stride must be one of {OUT_STRIDES}, got {out_stride}")
        if not 0 <= frozen_parts <= NUM_DEPTHS:
            raise AdcamError(f"frozen_parts must lie in 0 to {NUM_DEPTHS}, got {frozen_parts}")
        self.name = backbone
        self.attention = attention
        self.out_stride = out_stride
        trunk = _build_trunk(backbone, weights, backbone_kwargs)
        self._pixel_stats = tuple(trunk.pretrained_cfg["mean"]), tuple(trunk.pretrained_cfg["std"])
        (split,) = (split for family, split in _SPLITS.items() if backbone.startswith(family))
        parts = split(trunk, out_stride)
        self.parts = nn.ModuleList(nn.Sequential(OrderedDict(steps)) for steps in parts)
        widths = _find_widths(self.parts)
        # One block behind each part but the last, which may be empty.
        self.attentions = nn.ModuleList(
            NonLocalBlock(width) if attention == "nonlocal" else nn.Identity()
            for width in widths[:-1]
        )
        self.head = nn.Conv2d(widths[-1], num_fg_classes, kernel_size=1)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)
        self._frozen = [*self.parts][:frozen_parts]
        for part in self._frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> NonlocalCAM:
        """Switch to training or back; frozen parts stay as in evaluation."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    @property
    def depth(self) -> int:
        """Number of attentions that :meth:`token_maps` returns: the last one, if there is any."""
        return 0 if self.attention is None else 1

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width in pixels that one place of the map stands for."""
        return self.out_stride, self.out_stride

    @property
    def pixel_stats(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel mean and standard deviation of RGB in [0, 1] that the weights expect."""
        return self._pixel_stats

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, C) of normalised images (B, 3, H, W)."""
        return self.train_maps(inputs).cam.mean(dim=(2, 3))

    def token_maps(
        self,
        inputs: Tensor,
        *,
        layer_sets: Sequence[tuple[int, ...]] = (),
    ) -> TokenMaps:
        """Return logits, class maps and, if the network has any, the attention of the last depth.

        It stands where a transformer has the attention of its class token, so method ``"ts_cam"``
        multiplies class maps by it. The channel mean shows where the network finds an object at
        all, the class maps which.

        Args:
            inputs: (B, 3, H, W) normalised images; H and W multiples of ``out_stride``.
            layer_sets: Must be empty.

        Returns:
            The maps, float32 whatever the autocast dtype, without attention of patches to patches.

        Raises:
            AdcamError: If attention is asked for, or the size does not fit.
        """
        if layer_sets:
            raise AdcamError(
                f"{self.name} is a convolutional network without attention of patches to patches; "
                f"blocks {sorted(layer_sets)} were asked for. Method 'cam' needs none"
            )
        last = None if self.attention is None else (len(self.attentions) - 1,)
        maps = self.train_maps(inputs, layers=last)
        cam = maps.cam.float()
        rows = [output.attn.float().flatten(2) for output in maps.depth_outputs]  # (B, 1, N)
        return TokenMaps(
            logits=cam.mean(dim=(2, 3)),
            cam=cam,
            grid_hw=(cam.shape[2], cam.shape[3]),
            depth=self.depth,
            attn_cls2patch=rows[0] if rows else None,
            model=self.name,
        )

    def train_maps(
        self,
        inputs: Tensor,
        *,
        layers: str | tuple[int, ...] | None = None,
        dropout: AttentionDropout | None = None,
    ) -> TrainMaps:
        """Return class maps, and features and attention at chosen depths.

        Args:
            inputs: (B, 3, H, W) normalised images.
            layers: Depths of 0, 1, 2 whose features and attention are returned, ``None`` for none.
            dropout: The dropout at ``layers`` or those of them that it names, ``None`` for none.

        Raises:
            AdcamError: If the size does not fit, or depths are asked for without attention.
        """
        if layers is not None and self.attention is None:
            raise AdcamError(f"{self.name} was built with attention=None: it has no depths to read")
        depths = () if layers is None else resolve_layers(layers, len(self.attentions))
        dropping = () if dropout is None else dropout.find_depths(depths, len(self.attentions))
        compute_grid_hw(inputs, self.patch_size)
        features = inputs
        depth_outputs = []
        for depth, attend in enumerate(self.attentions):
            features = attend(self.parts[depth](features))
            if depth not in depths:
                continue
            raw = features.mean(dim=1, keepdim=True)
            attn = scale_attention(raw)
            depth_outputs.append(DepthOutput(features, attn))
            if dropout is not None and depth in dropping:
                # ADL takes the mean as it is; the masks are the same.
                features = dropout(features, attn if self.attention == "nonlocal" else raw)
        features = self.parts[-1](features)
        return TrainMaps(self.head(features), None, tuple(depth_outputs))


def _build_trunk(name: str, weights: str | Path | None, kwargs: Mapping[str, Any] | None) -> Any:
    families = tuple(_SPLITS)
    if not name.startswith(families) or not timm.is_model(name):
        raise AdcamError(f"backbone must be a timm model of the families {families}, got {name!r}")
    return create_timm_model(
        name,
        weights=weights,
        load=load_trunk_weights,
        prepare=_remove_head,
        options=check_backbone_options(kwargs, name),
    )


def _remove_head(trunk: Any) -> None:
    for unused in ("fc", "head", "pre_logits", "AuxLogits", "classifier"):
        if hasattr(trunk, unused):
            delattr(trunk, unused)


def _split_vgg(trunk: Any, out_stride: int) -> list[Steps]:
    """Depths after pool3, before pool4 and after the last convolution; pool5 goes."""
    steps = [(f"features_{i}", module) for i, module in enumerate(trunk.features[:-1])]
    pools = [i for i, (_, module) in enumerate(steps) if isinstance(module, nn.MaxPool2d)]
    if out_stride == 8:
        steps[pools[3]] = (steps[pools[3]][0], nn.Identity())
    width = [m.out_channels for _, m in steps if isinstance(m, nn.Conv2d)][-1]
    first, second = pools[2] + 1, pools[3]
    return [steps[:first], steps[first:second], steps[second:], [*_extra_conv("conv6", width)]]


def _split_resnet(trunk: Any, out_stride: int) -> list[Steps]:
    """Depths after the first block of layer3, the first and the last of layer4."""
    for layer in (trunk.layer4,) if out_stride == 16 else (trunk.layer3, trunk.layer4):
        _unstride(layer)
    stem = ("conv1", "bn1", "act1", "maxpool")
    steps: Steps = [(name, getattr(trunk, name)) for name in stem if hasattr(trunk, name)]
    steps += [
        (f"layer{number}_{i}", block)
        for number in range(1, 5)
        for i, block in enumerate(getattr(trunk, f"layer{number}"))
    ]
    names = [name for name, _ in steps]
    first, second = names.index("layer3_0") + 1, names.index("layer4_0") + 1
    return [steps[:first], steps[first:second], steps[second:], []]


def _split_efficientnet_lite(trunk: Any, out_stride: int) -> list[Steps]:
    """Depths in the first blocks of stages 3 and 5, before their strides, and after the last layer.

    A block's own output is a linear projection of either sign, the mean of which says nothing.
    Attention is read where the block has widened its input and cut it off below zero: those two
    blocks have no shortcut, so they can be taken apart.
    """
    last_strides = [trunk.blocks[5][0]] if out_stride == 16 else [s[0] for s in trunk.blocks[3:6]]
    for block in last_strides:
        _unstride(block)
    steps: Steps = [("conv_stem", trunk.conv_stem), ("bn1", trunk.bn1)]
    cuts = []
    for i, stage in enumerate(trunk.blocks):
        for j, block in enumerate(stage):
            if j or i not in (3, 5):
                steps.append((f"blocks_{i}_{j}", block))
                continue
            names = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
            cuts.append(len(steps) + 2)
            steps += [(f"blocks_{i}_{j}_{name}", getattr(block, name)) for name in names]
    steps += [("conv_head", trunk.conv_head), ("bn2", trunk.bn2)]
    first, second = cuts
    return [steps[:first], steps[first:second], steps[second:], []]


# The trunk of timm's InceptionV3 up to where 7a begins; the oldest timm allowed has no such list.
_INCEPTION_NAMES = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Pool1"),
    *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "Pool2", "Mixed_5b", "Mixed_5c", "Mixed_5d"),
    *("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
)


def _split_inception(trunk: Any, out_stride: int) -> list[Steps]:
    """Depths after Mixed_5d, Mixed_6e and the last new convolution."""
    for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4a_3x3"):
        getattr(trunk, name).conv.padding = (1, 1)
    for pool in (trunk.Pool1, trunk.Pool2):
        pool.padding = 1
    trunk.Mixed_6a = _PaddedReduction(trunk.Mixed_6a, stride=2 if out_stride == 16 else 1)
    steps = [(name, getattr(trunk, name)) for name in _INCEPTION_NAMES]
    first = _INCEPTION_NAMES.index("Mixed_5d") + 1
    extra = [*_extra_conv("conv7a", 768), *_extra_conv("conv7b", 1024)]
    return [steps[:first], steps[first:], extra, []]


_SPLITS: Mapping[str, Callable[[Any, int], list[Steps]]] = {
    "vgg": _split_vgg,
    "resnet": _split_resnet,
    "inception_v3": _split_inception,
    "tf_efficientnet_lite": _split_efficientnet_lite,
}
"""By family, what makes four parts: one up to each depth, and what follows the last depth."""


class _PaddedReduction(nn.Module):
    """timm's InceptionB, padded so that sizes halve exactly or, with stride 1, stay."""

    def __init__(self, block: Any, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.branch3x3 = block.branch3x3
        self.branch3x3dbl = nn.Sequential(
            block.branch3x3dbl_1, block.branch3x3dbl_2, block.branch3x3dbl_3
        )
        for conv in (block.branch3x3.conv, block.branch3x3dbl_3.conv):
            conv.stride, conv.padding = (stride, stride), (1, 1)

    def forward(self, features: Tensor) -> Tensor:
        pooled = F.max_pool2d(features, 3, self.stride, padding=1)
        return torch.cat([self.branch3x3(features), self.branch3x3dbl(features), pooled], dim=1)


def _extra_conv(name: str, width: int) -> Steps:
    conv = nn.Conv2d(width, 1024, kernel_size=3, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return [(name, conv), (f"{name}_relu", nn.ReLU())]


def _unstride(layer: nn.Module) -> None:
    """Steps of 2 become steps of 1, in place."""
    for name, module in list(layer.named_modules()):
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)
        elif isinstance(module, nn.AvgPool2d):
            layer.set_submodule(name, nn.Identity())


@torch.no_grad()
def _find_widths(parts: nn.ModuleList) -> list[int]:
    """Channels behind each part."""
    was_training = parts.training
    parts.eval()  # nothing is counted into batch statistics
    features = torch.zeros(1, 3, 64, 64)
    widths = []
    for part in parts:
        features = part(features)
        widths.append(features.shape[1])
    parts.train(was_training)
    return widths
