"""Where a method starts: the class maps of the present classes, alone or coupled."""

from __future__ import annotations

import torch
from torch import Tensor

from adcam.errors import AdcamError
from adcam.ops.token_attention import check_layers, resolve_layers
from adcam.options import check_choice, check_range
from adcam.structures import TokenMaps

INITS = ("coupled", "cam")
NEGATIVES = ("shift", "relu", "keep")


def check_start_options(
    *,
    init: str = "cam",
    negatives: str,
    rival_weight: float,
    layers: str | tuple[int, ...] = "all",
    cls_layers: str | tuple[int, ...] = "all",
) -> None:
    """Refuse illegal options of a start when a method is built, not at its first image.

    Raises:
        AdcamError: If an option is outside its legal set.
    """
    check_choice("init", init, INITS)
    check_choice("negatives", negatives, NEGATIVES)
    check_range("rival_weight", rival_weight, "[0, 1)")
    try:
        check_layers(layers)
        check_layers(cls_layers, "cls_layers")
    except ValueError as error:
        raise AdcamError(str(error)) from error


def select_cam(
    maps: TokenMaps, class_ids: Tensor, *, negatives: str, rival_weight: float
) -> Tensor:
    """Return the class maps of chosen classes.

    Args:
        maps: Token maps of B images.
        class_ids: int64 (B, K) foreground ids in 0..C-1; an id may occur twice.
        negatives: What happens to negative evidence: ``"relu"`` cuts it off, ``"shift"`` subtracts
            each map's minimum, which keeps the order of weak patches (a body scores low, but above
            the background), ``"keep"`` leaves the maps as they are, whatever ``rival_weight``.
        rival_weight: Share of the strongest other class that is subtracted, in [0, 1); see
            :func:`subtract_rivals`.

    Returns:
        (B, K, h, w).

    Raises:
        AdcamError: If ``class_ids`` has another shape or holds an id outside 0..C-1, for an
            unknown ``negatives``, or a ``rival_weight`` outside its range.
    """
    batch, num_fg_classes, height, width = maps.cam.shape
    if class_ids.ndim != 2 or class_ids.shape[0] != batch:
        raise AdcamError(f"class_ids must be ({batch}, K), got {tuple(class_ids.shape)}")
    if class_ids.numel() and not 0 <= int(class_ids.min()) <= int(class_ids.max()) < num_fg_classes:
        raise AdcamError(f"class_ids must lie in 0..{num_fg_classes - 1}, got {class_ids.tolist()}")
    check_choice("negatives", negatives, NEGATIVES)
    index = class_ids[:, :, None, None].expand(-1, -1, height, width)
    cam = torch.gather(maps.cam, 1, index)  # (B, K, h, w)
    if negatives == "keep":
        return cam
    if negatives == "relu":
        return subtract_rivals(cam.relu(), class_ids, weight=rival_weight)
    low = cam.amin(dim=(-2, -1), keepdim=True)
    return subtract_rivals(cam - low, class_ids, weight=rival_weight)


def subtract_rivals(cam: Tensor, class_ids: Tensor, *, weight: float) -> Tensor:
    """Subtract a share of the strongest other class map, each scaled to its maximum.

    A classifier finds a rider on the horse too, since the two occur together; which of both a
    patch is shows in the difference of their maps. An image of one class stays as it is.

    Args:
        cam: (B, K, h, w), non-negative.
        class_ids: (B, K); equal ids are no rivals.
        weight: The share to subtract, in [0, 1). 0 subtracts nothing; a larger share separates the
            classes harder and eats into what two of them have in common.

    Returns:
        (B, K, h, w), non-negative. A map that had a positive value keeps one.

    Raises:
        AdcamError: If ``weight`` lies outside [0, 1).
    """
    check_range("rival_weight", weight, "[0, 1)")
    if weight == 0 or cam.shape[1] <= 1:
        return cam
    peak = cam.amax(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(cam.dtype).tiny)
    scaled = cam / peak
    others = class_ids[:, :, None] != class_ids[:, None, :]  # (B, K, K)
    # Class by class: with many, all pairs at once would take their number times the memory.
    rivals = [(scaled * mask[:, :, None, None]).amax(dim=1) for mask in others.unbind(dim=1)]
    return (scaled - weight * torch.stack(rivals, dim=1)).relu() * peak


def class_token_map(
    maps: TokenMaps, *, method: str, layers: str | tuple[int, ...] = "all"
) -> Tensor:
    """Return the attention of the class token to the patches, averaged over heads and blocks.

    Args:
        maps: Token maps of B images.
        method: Name of the calling method, for the error message.
        layers: Blocks that are averaged. Late ones look at the class, early ones everywhere.

    Returns:
        (B, 1, h, w), non-negative.

    Raises:
        AdcamError: If the model has no class token.
    """
    if maps.attn_cls2patch is None:
        raise AdcamError(
            f"{method} needs a class token, and {maps.model} has none; "
            "use 'cam', or 'ad_cam' with init='cam'"
        )
    rows = maps.attn_cls2patch[:, list(resolve_layers(layers, maps.depth))]  # (B, l, N)
    return rows.mean(dim=1).unflatten(1, maps.grid_hw).unsqueeze(1)


def start_maps(
    maps: TokenMaps,
    class_ids: Tensor,
    *,
    init: str,
    method: str,
    negatives: str,
    rival_weight: float,
    cls_layers: str | tuple[int, ...] = "all",
) -> Tensor:
    """Return the maps that a diffusion starts from.

    Args:
        maps: Token maps of B images.
        class_ids: int64 (B, K).
        init: ``"coupled"``, the class maps times the class token's attention (TS-CAM's coupling,
            arXiv 2103.14862), or ``"cam"``, the class maps alone.
        method: Name of the calling method, for error messages.
        negatives: What happens to negative evidence, ``"shift"``, ``"relu"`` or ``"keep"``; see
            :func:`select_cam`.
        rival_weight: Share of the strongest other class that is subtracted, in [0, 1).
        cls_layers: Blocks whose class-token attention is averaged.

    Returns:
        (B, K, h, w).

    Raises:
        AdcamError: For another ``init``, or a coupled start without a class token.
    """
    check_choice("init", init, INITS)
    cam = select_cam(maps, class_ids, negatives=negatives, rival_weight=rival_weight)
    if init == "cam":
        return cam
    return cam * class_token_map(maps, method=method, layers=cls_layers)


def patch_attention(maps: TokenMaps, layers: tuple[int, ...]) -> Tensor:
    """Return the patch-to-patch attention averaged over a set of blocks, (B, N, N).

    Raises:
        AdcamError: If the forward pass was not asked for that set.
    """
    if layers not in maps.attn_patch2patch:
        raise AdcamError(
            f"the attention of blocks {layers} was not captured; captured: "
            f"{sorted(maps.attn_patch2patch)}. Pass the method's layer_sets to token_maps"
        )
    return maps.attn_patch2patch[layers]
