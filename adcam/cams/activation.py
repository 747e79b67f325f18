"""Where a method starts: the class maps of the present classes, alone or coupled."""

from __future__ import annotations

import torch
from torch import Tensor

from adcam.structures import TokenMaps


def select_cam(maps: TokenMaps, class_ids: Tensor) -> Tensor:
    """Rectified class maps of chosen classes.

    Args:
        maps: Token maps of B images.
        class_ids: int64 (B, K), foreground ids in 0..C-1.

    Returns:
        (B, K, h, w), ReLU of the raw class maps.

    Raises:
        ValueError: If ``class_ids`` has another shape or holds an id outside 0..C-1.
    """
    batch, num_fg_classes, height, width = maps.cam.shape
    if class_ids.ndim != 2 or class_ids.shape[0] != batch:
        raise ValueError(f"class_ids must be ({batch}, K), got {tuple(class_ids.shape)}")
    if class_ids.numel() and not 0 <= int(class_ids.min()) <= int(class_ids.max()) < num_fg_classes:
        raise ValueError(
            f"class_ids must lie in 0..{num_fg_classes - 1}, got {class_ids.tolist()}"
        )
    index = class_ids[:, :, None, None].expand(-1, -1, height, width)
    return torch.gather(maps.cam, 1, index).relu()  # (B, K, h, w)


def class_token_map(maps: TokenMaps, *, method: str) -> Tensor:
    """Attention of the class token to the patches, mean over heads and all blocks.

    Args:
        maps: Token maps of B images.
        method: Name of the method that asks, for the error message.

    Returns:
        (B, 1, h, w), non-negative.

    Raises:
        ValueError: If the model has no class token.
    """
    if maps.attn_cls2patch is None:
        raise ValueError(
            f"{method} needs a class token, and this model has none; "
            "use 'cam', or 'ad_cam' with init='cam'"
        )
    return maps.attn_cls2patch.mean(dim=1).unflatten(1, maps.grid_hw).unsqueeze(1)


def start_maps(maps: TokenMaps, class_ids: Tensor, *, init: str, method: str) -> Tensor:
    """The maps a diffusion starts from.

    Args:
        maps: Token maps of B images.
        class_ids: int64 (B, K).
        init: ``"coupled"``, the class maps times the class token's attention (TS-CAM's coupling,
            arXiv 2103.14862), or ``"cam"``, the class maps alone.
        method: Name of the method that asks.

    Returns:
        (B, K, h, w), non-negative.

    Raises:
        ValueError: For another ``init``, or a coupled start without a class token.
    """
    if init == "cam":
        return select_cam(maps, class_ids)
    if init == "coupled":
        return select_cam(maps, class_ids) * class_token_map(maps, method=method)
    raise ValueError(f"init must be 'coupled' or 'cam', got {init!r}")


def patch_attention(maps: TokenMaps, layers: tuple[int, ...]) -> Tensor:
    """Patch-to-patch attention averaged over a set of blocks, (B, N, N).

    Raises:
        ValueError: If the forward pass was not asked for that set.
    """
    if layers not in maps.attn_patch2patch:
        raise ValueError(
            f"the attention of blocks {layers} was not captured; captured: "
            f"{sorted(maps.attn_patch2patch)}. Pass the method's layer_sets to token_maps"
        )
    return maps.attn_patch2patch[layers]
