"""A vision transformer that somebody else built and trained, as a classifier with class maps.

Nothing is trained and no library's code is copied: the network runs as it is, and its attention is
recorded on the way (:mod:`adcam.models.attention_recorder`). Class maps come from the gradient, as
in :mod:`adcam.models.imagenet_vit`: how much a class gains when the tokens that the head reads
attend more to a patch.
"""

from __future__ import annotations

import importlib
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from timm.layers import Format
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from adcam.errors import AdcamError
from adcam.models.attention_recorder import AttentionRecorder, compute_weights
from adcam.models.imagenet_classes import resolve_classes
from adcam.models.imagenet_vit import compute_log_odds, leave_inference_mode
from adcam.models.preprocess import IMAGENET_MEAN, IMAGENET_STD
from adcam.models.timm_models import create_timm_model
from adcam.models.token_cam import compute_grid_hw, compute_patch_size
from adcam.models.weights import load_vit_weights
from adcam.ops.token_attention import resolve_layers
from adcam.structures import TokenMaps, check_class_order

Classes: TypeAlias = Sequence[str | int] | Mapping[str, int | Sequence[int]] | None
"""Names of the classes, or the outputs of each by its name."""

_MOST_PREFIX = 16


@dataclass(frozen=True)
class ViTInterface:
    """How a network of some library is run.

    Attributes:
        model: The network.
        run: From normalised images (B, 3, H, W) to its outputs (B, outputs) before softmax.
        name: What errors call it.
        patch_size: Height and width of a patch in pixels.
        input_hw: Height and width of the images that it was trained on.
        pixel_stats: Channel mean and standard deviation of RGB in [0, 1] that it expects.
        takes_any_size: Whether it takes images of other sizes.
        labels: The name of each output, where the network says it.
        multi_label: Whether each output is a yes or no of its own (sigmoid) rather than one of
            all (softmax).
    """

    model: nn.Module
    run: Callable[[Tensor], Tensor]
    name: str
    patch_size: tuple[int, int]
    input_hw: tuple[int, int]
    pixel_stats: tuple[tuple[float, ...], tuple[float, ...]]
    takes_any_size: bool
    labels: tuple[str, ...] = ()
    multi_label: bool = False


class AnyViT(nn.Module):
    """A frozen network that answers for chosen outputs, with class maps and attention.

    Args:
        interface: The network and how it is run.
        classes: One name for each output, in their order; or from the name of each class to its
            output or outputs; or ``None`` for the network's own labels. Of a network that knows its
            labels, or has ImageNet's outputs, some of them: ``"tabby cat"``, ``"dog"``.
        layers: Blocks whose attention makes the class maps. Earlier ones tell classes apart less
            well; each costs its share of a backward pass.

    Attributes:
        classes: Names of the C classes.
        class_groups: The outputs that count as each class.
        patch_size: As in the interface, and so are ``name`` and ``pixel_stats``.
        fixed_hw: Height and width of the only images that it takes, ``None`` where it takes any.
        depth: Number of blocks that attend among all patches.
        num_prefix_tokens: Number of tokens before the patches.
        readers: The tokens before the patches that the head reads, found by their gradient.
        reads_patches: Whether it reads patches, as a head that averages them does.

    Raises:
        AdcamError: A class cannot be found, the network shows no attention or one that is not among
            all patches, or its head reads none of its tokens.
    """

    def __init__(
        self,
        interface: ViTInterface,
        *,
        classes: Classes = None,
        layers: str | tuple[int, ...] = "last:1/3",
    ) -> None:
        super().__init__()
        # In float32, as the gradients of float16 would vanish.
        self.model = leave_inference_mode(interface.model.float()).requires_grad_(False).eval()
        self._interface = interface
        self.name = interface.name
        self.patch_size = interface.patch_size
        self.pixel_stats = interface.pixel_stats
        self.fixed_hw = None if interface.takes_any_size else interface.input_hw
        self.depth, self.num_prefix_tokens, num_outputs = self._probe()
        self._explained = frozenset(resolve_layers(layers, self.depth))
        groups = find_outputs(classes, num_outputs, interface.labels)
        if not interface.multi_label and any(len(g) == num_outputs for g in groups.values()):
            raise AdcamError(
                f"a class that holds all {num_outputs} outputs of a softmax is always present; if "
                "each output is a yes or no of its own, say multi_label=True"
            )
        self.classes = tuple(groups)
        self.class_groups = tuple(groups.values())
        readers = self._find_readers()
        self.readers = tuple(i for i in readers if i < self.num_prefix_tokens)
        self.reads_patches = len(readers) > len(self.readers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, C) of normalised images (B, 3, H, W), as in :meth:`token_maps`."""
        self._check_size(inputs)
        return self._find_logits(self._interface.run(inputs).float())

    def token_maps(
        self, inputs: Tensor, *, layer_sets: Sequence[tuple[int, ...]] = ()
    ) -> TokenMaps:
        """Logits, class maps and attention of a batch: one forward pass, C short backward ones.

        With ``A`` the attention of a block, ``Y_c`` the log-sum-exp of the outputs of class c, and
        r the tokens that the head reads::

            cam_c = sum over blocks, heads k and tokens r of ReLU(dY_c / dA[k, r, :])

        The class token's attention is the mean of rows r: where the head averages patches, what
        they attend to together.

        Args:
            inputs: (B, 3, H, W) normalised images; H and W multiples of the patch.
            layer_sets: Sets of block indices whose patch-to-patch attention is wanted.

        Returns:
            The maps, float32 whatever the autocast dtype, without gradient.

        Raises:
            AdcamError: The size does not fit, or the network shows other attention than before.
        """
        grid_hw = self._check_size(inputs)
        with torch.inference_mode(False), torch.enable_grad():
            # A tensor made in inference mode cannot be recorded, a copy can.
            outputs, cams, blocks = self._explain(inputs.detach().clone())
        self._check_blocks(blocks, math.prod(grid_hw))
        first = self.num_prefix_tokens
        rows = [self._read(block)[..., first:].mean(dim=1) for block in blocks]
        patches = [block[:, first:, first:] for block in blocks]
        return TokenMaps(
            logits=self._find_logits(outputs),
            cam=torch.stack(cams, dim=1).unflatten(2, grid_hw),
            grid_hw=grid_hw,
            depth=self.depth,
            attn_cls2patch=torch.stack(rows, dim=1),
            attn_patch2patch={
                tuple(layers): torch.stack([patches[i] for i in layers]).mean(dim=0)
                for layers in layer_sets
            },
            model=self.name,
        )

    def _explain(self, inputs: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Outputs, class maps (B, N), and the attention of each block."""
        with GradientRecorder(self._explained) as recorder:
            outputs = self._interface.run(inputs).float()
        cams = [self._class_map(outputs, recorder.weights, c) for c in self.class_groups]
        return outputs.detach(), cams, recorder.blocks

    def _class_map(
        self, outputs: Tensor, weights: Sequence[Tensor], indices: tuple[int, ...]
    ) -> Tensor:
        """One class' map (B, N) from the attention (B, heads, T, T) of the explained blocks."""
        score = outputs[:, list(indices)].logsumexp(dim=1).sum()
        gradients = torch.autograd.grad(score, list(weights), retain_graph=True)
        first = self.num_prefix_tokens
        rows = [self._read(grad)[..., first:].float().relu() for grad in gradients]
        return torch.stack([part.sum(dim=(1, 2)) for part in rows]).sum(dim=0)

    def _read(self, attention: Tensor) -> Tensor:
        """The rows (…, R, T) of the tokens that the head reads."""
        rows = list(self.readers)
        if self.reads_patches:
            rows += range(self.num_prefix_tokens, attention.shape[-2])
        return attention[..., rows, :]

    def _find_logits(self, outputs: Tensor) -> Tensor:
        """(B, outputs) -> (B, C): log odds, which the sigmoid turns into probabilities."""
        if self._interface.multi_label:
            return torch.stack([outputs[:, list(i)].amax(dim=1) for i in self.class_groups], dim=1)
        return compute_log_odds(outputs, self.class_groups)

    def _probe(self) -> tuple[int, int, int]:
        """Run once to count the blocks that attend, the tokens before the patches, the outputs."""
        shape = (1, 3, *self._interface.input_hw)
        inputs = torch.zeros(shape, dtype=torch.float32, device=_find_device(self.model))
        grid = math.prod(compute_grid_hw(inputs, self.patch_size))
        recorder = AttentionRecorder()
        with torch.no_grad(), recorder:
            outputs = self._interface.run(inputs)
        if not recorder.blocks:
            raise AdcamError(
                f"{self.name}: no attention among tokens was seen; a vision transformer whose "
                "attention runs through torch is needed"
            )
        tokens = {block.shape[-1] for block in recorder.blocks}
        num_prefix_tokens = min(tokens) - grid
        if len(tokens) > 1 or not 0 <= num_prefix_tokens <= _MOST_PREFIX:
            raise AdcamError(
                f"{self.name}: its blocks attend among {sorted(tokens)} tokens, but an image of "
                f"{inputs.shape[-2]}×{inputs.shape[-1]} pixels has {grid} patches; every block "
                "must attend among all patches"
            )
        if outputs.ndim != 2 or outputs.shape[1] == 0:
            raise AdcamError(
                f"{self.name}: its output is {tuple(outputs.shape)}, and a classifier's is "
                "(B, outputs); is its head missing?"
            )
        return len(recorder.blocks), num_prefix_tokens, int(outputs.shape[1])

    def _find_readers(self) -> tuple[int, ...]:
        """The tokens whose attention in the last block reaches the output."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, 3, *self._interface.input_hw)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        with torch.inference_mode(False), torch.enable_grad():
            with GradientRecorder(frozenset({self.depth - 1})) as recorder:
                outputs = self._interface.run(noise.to(_find_device(self.model)))
            (gradient,) = torch.autograd.grad(
                outputs.float().logsumexp(dim=1).sum(), recorder.weights
            )
        rows = gradient[0].abs().amax(dim=(0, 2)).nonzero().flatten().tolist()
        if not rows:
            raise AdcamError(f"{self.name}: its head reads none of its tokens")
        return tuple(rows)

    def _check_size(self, inputs: Tensor) -> tuple[int, int]:
        grid_hw = compute_grid_hw(inputs, self.patch_size)
        hw = (int(inputs.shape[-2]), int(inputs.shape[-1]))
        if self.fixed_hw is not None and hw != self.fixed_hw:
            raise AdcamError(
                f"{self.name} takes images of {self.fixed_hw[0]}×{self.fixed_hw[1]} pixels alone, "
                f"got {hw[0]}×{hw[1]}; views=TestViews(({self.fixed_hw[0]},), keep_ratio=False)"
            )
        return grid_hw

    def _check_blocks(self, blocks: Sequence[Tensor], num_patches: int) -> None:
        expected = self.num_prefix_tokens + num_patches
        if len(blocks) != self.depth or any(block.shape[-1] != expected for block in blocks):
            raise AdcamError(
                f"{self.name}: expected {self.depth} blocks of {expected} tokens, saw "
                f"{[block.shape[-1] for block in blocks]}"
            )


class GradientRecorder(AttentionRecorder):
    """Records attention so that outputs can be differentiated by that of chosen blocks.

    Args:
        explained: The blocks that the gradient is taken by, counted from 0.

    Attributes:
        weights: The attention (B, heads, T, T) of these blocks, parts of one graph.
    """

    def __init__(self, explained: frozenset[int]) -> None:
        super().__init__()
        self.weights: list[Tensor] = []
        self._chosen = explained

    def on_product(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Attend by weights that are there to be differentiated by, in the chosen blocks."""
        if len(self.blocks) not in self._chosen:
            return super().on_product(query, key, value, **options)
        weights = self.on_weights(compute_weights(query, key, **options))
        repeats = query.shape[1] // value.shape[1]
        return weights.to(value.dtype) @ value.repeat_interleave(repeats, dim=1)

    def on_weights(self, weights: Tensor) -> Tensor:
        """Record weights (B, heads, T, T), those of the chosen blocks with their graph."""
        if len(self.blocks) in self._chosen:
            self.weights.append(weights.requires_grad_())
        return super().on_weights(weights)


def find_outputs(
    classes: Classes, num_outputs: int, labels: Sequence[str] = ()
) -> dict[str, tuple[int, ...]]:
    """Find the outputs of a network that each class stands for.

    Args:
        classes: The names of the classes, or the outputs of each by its name, as :class:`AnyViT`
            takes them.
        num_outputs: The number of outputs.
        labels: The name of each output, where they are known; ``"tabby, tabby cat"`` holds two.

    Returns:
        The outputs by class name, in the order given.

    Raises:
        AdcamError: A class is unknown, or an output is out of range or given twice.

    Example:
        >>> find_outputs(["cat", "dog"], 2)
        {'cat': (0,), 'dog': (1,)}
        >>> find_outputs({"pet": [0, 1]}, 3)
        {'pet': (0, 1)}
    """
    if classes is None:
        if len(labels) != num_outputs:
            raise AdcamError(f"name the classes of the {num_outputs} outputs, in their order")
        return {name: (i,) for i, name in enumerate(labels)}
    check_class_order(classes)
    if isinstance(classes, Mapping):
        groups = {name: _read_outputs(name, found) for name, found in classes.items()}
    elif names := _match_labels(classes, labels):
        groups = names
    elif len(classes) == num_outputs:
        groups = {str(name): (i,) for i, name in enumerate(classes)}
    else:
        try:
            return resolve_classes(classes, num_outputs=num_outputs)
        except AdcamError as error:
            raise AdcamError(
                f"{error}; or name all {num_outputs} outputs, in their order ({len(classes)} are)"
            ) from error
    used = [i for group in groups.values() for i in group]
    if len(groups) != len(classes) or len(set(used)) != len(used) or not all(groups.values()):
        raise AdcamError(f"every class needs outputs of its own, got {groups}")
    if wrong := [i for i in used if not 0 <= i < num_outputs]:
        raise AdcamError(f"the network has the outputs 0..{num_outputs - 1}, got {wrong[0]}")
    return groups


def _read_outputs(name: str, found: Any) -> tuple[int, ...]:
    """The outputs of a class, given as one number or several, of any library's integers."""
    try:
        if hasattr(found, "__index__") and not getattr(found, "ndim", 0):
            return (operator.index(found),)
        return tuple(sorted(map(operator.index, found)))
    except TypeError as error:
        raise AdcamError(
            f"class {name!r} must stand for an output or several, such as 3 or [3, 4], got "
            f"{found!r}"
        ) from error


def _match_labels(
    classes: Sequence[str | int], labels: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """The output of each class by the network's own labels; empty where one is not among them."""
    output_of: dict[str, int] = {}
    for i, label in enumerate(labels):
        for word in (label, *label.split(", ")):
            output_of.setdefault(word.strip().casefold(), i)
    found = {str(name): output_of.get(str(name).strip().casefold()) for name in classes}
    if not labels or None in found.values():
        return {}
    return {name: (i,) for name, i in found.items() if i is not None}


def read_timm(model: nn.Module | str, weights: str | Path | None = None) -> ViTInterface:
    """Say how a timm network is run; a plain ViT is made to take images of any size.

    Args:
        model: The network, with its head; or a name of ``timm.list_models()``.
        weights: For a name: ``"timm"``, a file, or ``None`` for random.

    Raises:
        AdcamError: It is no vision transformer with patches, or the weights do not fit.
    """
    if isinstance(model, str):
        network: nn.Module = create_timm_model(
            model, weights=weights, load=_load_weights, prepare=lambda _: None, options={}
        )
        return read_timm(network)
    model = getattr(model, "_orig_mod", model)  # torch.compile's hides attention and its gradient
    embed: Any = getattr(model, "patch_embed", None)
    if getattr(embed, "patch_size", None) is None or not hasattr(embed, "img_size"):
        raise AdcamError(f"{type(model).__name__} has no patch_embed as timm's ViTs have")
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    side = embed.img_size or config.get("input_size", (3, 224, 224))[1:]
    stats = tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD))
    name = str(config.get("architecture") or type(model).__name__)
    size = embed.patch_size
    patch = (size, size) if isinstance(size, int) else compute_patch_size(model)
    return ViTInterface(
        model=model,
        run=model,
        name=name,
        patch_size=patch,
        input_hw=(int(side[0]), int(side[1])),
        pixel_stats=stats,
        takes_any_size=_free_size(model),
    )


def _free_size(model: Any) -> bool:
    """Let a timm ViT resample its position embedding to each image; whether it can."""
    if getattr(model, "dynamic_img_size", None) is None:
        return False
    if getattr(getattr(model, "rope", None), "feat_shape", None) and not model.dynamic_img_size:
        return False  # its rotary embedding is built for one grid
    if not model.dynamic_img_size:
        # What dynamic_img_size=True gives its patch_embed (timm/models/vision_transformer.py).
        model.dynamic_img_size = True
        model.patch_embed.strict_img_size = False
        model.patch_embed.flatten = False
        model.patch_embed.output_fmt = Format.NHWC
    return True


def _load_weights(vit: nn.Module, path: str | Path) -> None:
    if not isinstance(vit, VisionTransformer):
        raise AdcamError("weights from a file need a ViT of timm's VisionTransformer family")
    load_vit_weights(vit, path)


def _find_device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def import_from_extra(package: str) -> ModuleType:
    """A package that the extra ``clip`` brings.

    Args:
        package: ``"open_clip"`` or ``"transformers"``.

    Raises:
        AdcamError: It cannot be imported; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise AdcamError(
            f"this needs {package}, which cannot be imported ({error}); pip install 'adcam[clip]'"
        ) from error
