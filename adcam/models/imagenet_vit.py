"""An ImageNet ViT with its own linear head as a classifier: masks without any training.

The head was trained on the class token alone, so its answers on patch tokens mean little. Class
maps come from the gradient instead: how much the class gains when the class token attends more to
a patch, read in the last blocks and rectified. It is the gradient part of attention times gradient
(Chefer et al., "Transformer Interpretability Beyond Attention Visualization", CVPR 2021, arXiv
2012.09838), rectified as in LeGrad (Bousselham et al., ICCV 2025, arXiv 2404.03214); the methods'
coupled start multiplies the attention in. docs/methods.md has what else was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from adcam.errors import AdcamError
from adcam.models.attention_capture import AttentionCapture
from adcam.models.imagenet_classes import resolve_classes
from adcam.models.known_names import NO_HEAD, check_timm_name
from adcam.models.timm_models import create_timm_model
from adcam.models.token_cam import check_plain_vit, compute_grid_hw, compute_patch_size
from adcam.models.weights import load_vit_weights
from adcam.ops.token_attention import resolve_layers
from adcam.structures import TokenMaps


class ImageNetViT(nn.Module):
    """A frozen timm ViT that answers for chosen ImageNet classes.

    Args:
        name: timm name of the vision_transformer family, e.g. ``"deit_tiny_patch16_224"``.
        classes: The C classes asked for, in the forms of
            :func:`adcam.models.imagenet_classes.resolve_classes`: ``"tabby cat"``, ``"dog"``,
            ``"n02123045"``, ``281``, ``"big cat=lion|tiger"``.
        weights: ``"timm"`` for timm's published weights of that name (needs a reachable hub), a
            path to ``.safetensors``/``.pth`` with the head in it, or ``None`` for random.
        img_size: Side in pixels of the position embedding, ``None`` for the model's own. Other
            input sizes work: it is resampled to their grid.
        layers: Blocks whose attention makes the class maps. Earlier ones tell classes
            apart less well; each costs its share of a backward pass.
        model_kwargs: Further arguments of ``timm.create_model`` (``num_classes``, ``depth``, …).

    Attributes:
        classes: Names of the C classes.
        class_groups: Output indices of the model that count as each class.

    Raises:
        AdcamError: If the model is no plain ViT with a linear head on its class token, a class
            cannot be found, or weights do not fit.
    """

    def __init__(
        self,
        name: str,
        *,
        classes: Sequence[str | int],
        weights: str | Path | None = "timm",
        img_size: int | None = None,
        layers: str | tuple[int, ...] = "last:1/3",
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        kwargs = dict(model_kwargs or {})
        # Before the weights are fetched, so that a mistyped class is refused at once.
        groups = resolve_classes(classes, num_outputs=_count_outputs(name, kwargs))
        self.vit = create_timm_model(
            name,
            weights=weights,
            load=load_vit_weights,
            prepare=_check_head,
            options={"img_size": img_size, "dynamic_img_size": True, **kwargs},
        )
        # Refuses attention that cannot be read now rather than at the first image.
        AttentionCapture(self.vit)
        # The tokens the head reads: DeiT's distilled models average a head on each of the two.
        self._num_readers = 2 if isinstance(self.vit, VisionTransformerDistilled) else 1
        self._explained = [self.vit.blocks[i].attn for i in resolve_layers(layers, self.depth)]
        for attn in self._explained:
            attn.fused_attn = False  # the fused kernel has no attention to differentiate by
        self.classes = tuple(groups)
        self.class_groups = tuple(groups.values())
        if any(len(indices) == self.vit.num_classes for indices in self.class_groups):
            raise AdcamError("a class that holds all outputs of the model is always present")
        leave_inference_mode(self).requires_grad_(False).eval()

    @property
    def depth(self) -> int:
        """Number of transformer blocks L."""
        return len(self.vit.blocks)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return compute_patch_size(self.vit)

    @property
    def pixel_stats(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel mean and standard deviation of RGB in [0, 1] that the weights expect."""
        cfg = self.vit.pretrained_cfg
        return tuple(cfg["mean"]), tuple(cfg["std"])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (B, C) of normalised images (B, 3, H, W), as in :meth:`token_maps`."""
        compute_grid_hw(inputs, self.patch_size)
        return compute_log_odds(self.vit(inputs).float(), self.class_groups)

    def token_maps(
        self,
        inputs: Tensor,
        *,
        layer_sets: Sequence[tuple[int, ...]] = (),
    ) -> TokenMaps:
        """Logits, class maps and attention of a batch: one forward pass, C short backward ones.

        The sigmoid of a logit is the softmax probability of the class, summed over its ImageNet
        classes. With ``A`` the attention of a block, ``Y_c`` the log-sum-exp of the outputs of
        class c, and r the tokens the head reads::

            cam_c = sum over blocks of mean over heads k and tokens r of ReLU(dY_c / dA[k, r, :])

        It is non-negative and finds what speaks for the class, however little it is attended to:
        use it through the coupled start, which weighs it by the attention. ``Y_c`` takes no
        notice of the other classes: the log odds in its place measured worse.

        Args:
            inputs: (B, 3, H, W) normalised images; H and W multiples of the patch.
            layer_sets: Sets of block indices whose patch-to-patch attention is wanted.

        Returns:
            The maps, float32 whatever the autocast dtype, without gradient. Works under
            ``torch.no_grad`` and ``torch.inference_mode``.

        Raises:
            AdcamError: If H or W does not fit the patch, or inputs are not (B, 3, H, W).
        """
        grid_hw = compute_grid_hw(inputs, self.patch_size)
        capture = _DetachedCapture(self.vit, layer_sets)
        # Nothing before the first tape asks for a gradient, so autograd records from there on.
        with torch.inference_mode(False), torch.enable_grad():
            with capture, _record_attention(self._explained) as attns:
                # A tensor made in inference mode cannot be recorded, a copy can.
                logits = self.vit(inputs.detach().clone()).float()  # (B, outputs)
            cams = [self._class_map(logits, attns, c) for c in range(len(self.classes))]
        return TokenMaps(
            logits=compute_log_odds(logits.detach(), self.class_groups),
            cam=torch.stack(cams, dim=1).unflatten(2, grid_hw),
            grid_hw=grid_hw,
            depth=self.depth,
            attn_cls2patch=capture.cls2patch,
            attn_patch2patch=capture.patch2patch,
            model=self.name,
        )

    def _class_map(self, logits: Tensor, attns: Sequence[Tensor], class_id: int) -> Tensor:
        """One class' map (B, N) from logits (B, outputs) and attentions (B, heads, T, T)."""
        score = logits[:, self.class_groups[class_id]].logsumexp(dim=1).sum()
        gradients = torch.autograd.grad(score, attns, retain_graph=True)
        patches = slice(self.vit.num_prefix_tokens, None)
        rows = [grad[:, :, : self._num_readers, patches].float().relu() for grad in gradients]
        return torch.stack(rows).mean(dim=(2, 3)).sum(dim=0)


def leave_inference_mode(model: nn.Module) -> nn.Module:
    """Return a network whose tensors can take part in a gradient, wherever it was built.

    Those that were made inside ``torch.inference_mode`` cannot, and are replaced by copies.

    Args:
        model: The network, which is changed in place.
    """
    with torch.inference_mode(False):
        for module in model.modules():
            for name, weight in [*module.named_parameters(recurse=False)]:
                if weight.is_inference():
                    module.register_parameter(name, nn.Parameter(weight.clone(), False))
            for name, tensor in [*module.named_buffers(recurse=False)]:
                if tensor.is_inference():
                    setattr(module, name, tensor.clone())
    return model


def compute_log_odds(outputs: Tensor, groups: Sequence[tuple[int, ...]]) -> Tensor:
    """Return log(p / (1 - p)) of each class, which the sigmoid turns back into the probability p.

    Args:
        outputs: (B, outputs), before softmax.
        groups: The outputs of each of the C classes; p is the sum of their softmax.

    Returns:
        (B, C).
    """
    odds = []
    for indices in groups:
        rest = torch.ones(outputs.shape[1], dtype=torch.bool, device=outputs.device)
        rest[list(indices)] = False
        odds.append(outputs[:, ~rest].logsumexp(dim=1) - outputs[:, rest].logsumexp(dim=1))
    return torch.stack(odds, dim=1)


class _DetachedCapture(AttentionCapture):
    """Capture that leaves the recorded graph alone: its sums would keep every block's alive."""

    def _accumulate(self, index: int, query: Tensor, key: Tensor, scale: float) -> None:
        super()._accumulate(index, query.detach(), key.detach(), scale)


@contextmanager
def _record_attention(modules: Iterable[Any]) -> Iterator[list[Tensor]]:
    """Record the attention (B, heads, T, T) of each block after softmax, parts of one graph."""
    attns: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        attns.append(args[0].requires_grad_())

    handles = [attn.attn_drop.register_forward_pre_hook(record) for attn in modules]
    try:
        yield attns
    finally:
        for handle in handles:
            handle.remove()


def _count_outputs(name: str, kwargs: Mapping[str, Any]) -> int:
    check_timm_name(name)
    config = timm.get_pretrained_cfg(name)
    published = 0 if config is None else config.num_classes
    if not (num_outputs := kwargs.get("num_classes", published)):
        raise AdcamError(f"{name!r} {NO_HEAD}")
    return int(num_outputs)


def _check_head(vit: Any) -> None:
    check_plain_vit(vit)
    if not isinstance(vit.head, nn.Linear):
        raise AdcamError(f"it {NO_HEAD}")
    if vit.global_pool != "token":
        raise AdcamError(
            f"the head reads its tokens by global_pool={vit.global_pool!r}; only a head on the "
            "class token ('token') can be explained by that token's attention"
        )
