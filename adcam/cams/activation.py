"""Where a method starts: the class maps of the present classes, alone or coupled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adcam.errors import AdcamError
from adcam.method_options import ClassMapOptions, DiffusionOptions
from adcam.ops.token_attention import resolve_layers
from adcam.structures import TokenMaps

_RIVALS_AT_ONCE = 4
"""How many classes have their rivals found together. More need fewer operations and more memory."""


@dataclass(frozen=True)
class ClassMapMethod(ClassMapOptions):
    """What all methods share: the class maps of the present classes."""

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """No patch-to-patch attention is needed."""
        return ()

    def select_cam(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return the class maps of chosen classes.

        Args:
            maps: Token maps of B images.
            class_ids: int64 (B, K) foreground ids in 0..C-1; an id may occur twice.

        Returns:
            (B, K, h, w).

        Raises:
            AdcamError: As :func:`check_class_ids`.
        """
        batch, classes, height, width = maps.cam.shape
        check_class_ids(class_ids, batch=batch, num_classes=classes)
        index = class_ids[:, :, None, None].expand(-1, -1, height, width)
        cam = torch.gather(maps.cam, 1, index)  # (B, K, h, w)
        if self.negatives == "keep":
            return cam
        if self.negatives == "shift":
            cam = cam - cam.amin(dim=(-2, -1), keepdim=True)
        else:
            cam = cam.relu()
        return subtract_rivals(cam, class_ids, weight=self.rival_weight)

    def read_class_token(
        self, maps: TokenMaps, class_ids: Tensor, layers: str | tuple[int, ...] = "all"
    ) -> Tensor:
        """Return the attention of the class token to the patches, averaged over heads and blocks.

        Args:
            maps: Token maps of B images.
            class_ids: int64 (B, K), which choose among the tokens of a network that has one a
                class.
            layers: Blocks that are averaged. Late ones look at the class, early ones everywhere.

        Returns:
            (B, 1, h, w), or (B, K, h, w) of a network with a token for each class; non-negative.

        Raises:
            AdcamError: If the model has no class token.
        """
        if maps.attn_cls2patch is None:
            raise AdcamError(
                f"{type(self).__name__} needs a class token, and {maps.model} has none; "
                "use 'cam', or 'ad_cam' with init='cam'"
            )
        chosen = resolve_layers(layers, maps.depth)
        if maps.attn_classes2patch is not None:
            parts = [maps.attn_classes2patch[:, layer] for layer in chosen]
            mean = torch.stack(parts, dim=1).mean(dim=1)  # (B, C, N)
            index = class_ids[:, :, None].expand(-1, -1, mean.shape[2])
            return torch.gather(mean, 1, index).unflatten(2, maps.grid_hw)
        # Indexing with the whole list would copy it to the device, and wait for that.
        rows = torch.stack([maps.attn_cls2patch[:, layer] for layer in chosen], dim=1)  # (B, l, N)
        return rows.mean(dim=1).unflatten(1, maps.grid_hw).unsqueeze(1)


@dataclass(frozen=True)
class DiffusionMethod(DiffusionOptions, ClassMapMethod):
    """What methods share that spread a start along the patch-to-patch attention."""

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """Return the sets of blocks whose patch-to-patch attention is needed."""
        return (resolve_layers(self.layers, depth),)

    def start_maps(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return the maps (B, K, h, w) that the diffusion starts from.

        Args:
            maps: Token maps of B images.
            class_ids: int64 (B, K).

        Raises:
            AdcamError: For a coupled start without a class token.
        """
        cam = self.select_cam(maps, class_ids)
        if self.init == "cam":
            return cam
        return cam * self.read_class_token(maps, class_ids, self.cls_layers)


def read_patch_attention(maps: TokenMaps, layers: str | tuple[int, ...]) -> Tensor:
    """Return the patch-to-patch attention averaged over blocks, (B, N, N).

    Args:
        maps: Token maps of B images.
        layers: The blocks; see :func:`adcam.ops.token_attention.resolve_layers`.

    Raises:
        AdcamError: If the forward pass was not asked for it.
    """
    chosen = resolve_layers(layers, maps.depth)
    if chosen not in maps.attn_patch2patch:
        raise AdcamError(
            f"the attention of blocks {chosen} was not captured; captured: "
            f"{sorted(maps.attn_patch2patch)}. Pass the method's layer_sets to token_maps"
        )
    return maps.attn_patch2patch[chosen]


def check_class_ids(class_ids: Tensor, *, batch: int, num_classes: int) -> None:
    """Refuse ids that are no classes.

    Ids on a GPU are not looked at, which would wait for the device: check them before.

    Args:
        class_ids: int64 ids.
        batch: The number of images B.
        num_classes: The number of classes C.

    Raises:
        AdcamError: If the shape is not (B, K), or an id is outside 0..C-1.
    """
    if class_ids.ndim != 2 or class_ids.shape[0] != batch:
        raise AdcamError(f"class_ids must be ({batch}, K), got {tuple(class_ids.shape)}")
    if class_ids.is_cuda or not class_ids.numel():
        return
    if not 0 <= int(class_ids.min()) <= int(class_ids.max()) < num_classes:
        raise AdcamError(f"class_ids must lie in 0..{num_classes - 1}, got {class_ids.tolist()}")


def subtract_rivals(cam: Tensor, class_ids: Tensor, *, weight: float) -> Tensor:
    """Subtract a share of the strongest other class map, each scaled to its maximum.

    A classifier finds a rider also where the horse is, since the two occur together. Which of the
    two a patch shows can be seen in the difference of their maps. An image of one class stays as it
    is.

    Args:
        cam: (B, K, h, w), non-negative.
        class_ids: (B, K); equal ids are no rivals.
        weight: The share to subtract, in [0, 1). 0 subtracts nothing; a larger share separates the
            classes harder and eats into what two of them have in common.

    Returns:
        (B, K, h, w), non-negative. A map that had a positive value keeps one.
    """
    if weight == 0 or cam.shape[1] <= 1:
        return cam
    peak = cam.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(cam.dtype).tiny)
    scaled = cam / peak
    others = class_ids[:, :, None] != class_ids[:, None, :]  # (B, K, K)
    # A few classes at a time: all pairs at once would take their number times the memory.
    rivals = [
        (scaled[:, None] * mask[:, :, :, None, None]).amax(dim=2)
        for mask in others.split(_RIVALS_AT_ONCE, dim=1)
    ]
    return (scaled - weight * torch.cat(rivals, dim=1)).relu() * peak
