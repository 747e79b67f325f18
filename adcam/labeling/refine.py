"""Anybody's class maps and attention -> maps refined as AD-CAM does, or a mask, in one call."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adcam.cams import build_method
from adcam.cams.ad_cam import ADCAM
from adcam.cams.fuse import fuse_batch
from adcam.cams.normalize import min_max
from adcam.errors import AdcamError
from adcam.labeling.labeler import ImageLike, convert_image
from adcam.labeling.mask_maker import MaskMaker
from adcam.masks.background import DEFAULT_RULE, BackgroundRule, parse_rule
from adcam.models.attention_recorder import RecordedAttention
from adcam.structures import ClassMaps, TokenMaps

ArrayLike: TypeAlias = Tensor | np.ndarray

_MOST_PREFIX = 16
"""More tokens before the patches than any published ViT has, so a larger number is a mistake."""
_MOST_SUM = 1.01
"""Rows of attention sum to 1, rounded to bfloat16 to at most 1.004; less without prefix tokens."""
_USUAL_PREFIX = (1, 0, 2, 5)
"""A class token; none (SigLIP); DeiT's two; a class token and four registers (DINOv2)."""


def refine(
    cam: ArrayLike | Sequence[ArrayLike],
    attention: ArrayLike | Sequence[ArrayLike],
    *,
    num_prefix_tokens: int | None = None,
    grid_hw: tuple[int, int] | None = None,
    image: ImageLike | Sequence[ImageLike] | None = None,
    crf: str | None = None,
    rule: str | float | BackgroundRule = DEFAULT_RULE,
    **options: Any,
) -> Any:
    """Refine any class maps by any attention, as AD-CAM does and with its defaults.

    The attention says which patches belong together; the maps are spread over them
    (:class:`adcam.cams.ad_cam.ADCAM`). With an image they also follow its colours.

    Args:
        cam: One map (h, w), the maps (K, h, w) of the K classes that one image shows, or those of a
            batch (B, K, h, w); torch or NumPy, any scale, larger for more evidence. On the grid of
            patches, or larger, such as at image size, and then averaged within each patch. With
            ``grid_hw`` also flat, (..., h * w). What pytorch-grad-cam returns for one image is such
            a map (1, H, W), what torch-cam returns for one layer a list of one (1, h, w); a list of
            maps (h, w) is stacked.
        attention: The attention after softmax, whose rows sum to 1, with or without its prefix
            tokens (class token, registers) before the patches: averaged, (T, T); per head, (heads,
            T, T); or a list or tuple with one of those, or (B, heads, T, T), a block, as Hugging
            Face's ``outputs.attentions`` (or ``outputs``) and ``adcam.record_attention()``. A
            tensor (layers, heads, T, T) or (layers, B, heads, T, T) counts as such a list. Of
            several blocks those are averaged that AD-CAM's ``layers`` names, by default the last
            half. For a batch the first size of each block is B.
        num_prefix_tokens: The number of tokens before the patches; ``None`` finds it.
        grid_hw: Height and width of the grid of patches; ``None`` finds it.
        image: The image as the network saw it (after a crop, not before), for colours and the CRF:
            a path, an array RGB uint8 (H, W, 3) or a Pillow image; a list for a batch.
        crf: ``None`` for maps. Otherwise a mask is made: by a dense CRF with this parameter set
            (:data:`adcam.masks.crf.CRF_PARAMS`, such as ``"toco"``), or ``"none"`` without one.
        rule: Where background ends in a mask, e.g. ``"0.4"``; a larger threshold keeps less. Only
            beside ``crf``.
        **options: Attributes of :class:`adcam.cams.ad_cam.ADCAM`, e.g. ``power=3``. ``init`` is
            ``"coupled"`` where there are prefix tokens, so that the attention of the first, the
            class token, weighs the maps; give ``init="cam"`` where the first one is a register.

    Returns:
        Maps in [0, 1], or a mask uint8, 0 background and i + 1 for map i. The sizes are those of
        ``cam``, of a mask without K, and then height and width of the grid or the image; a list of
        images gives a list, each result without B. A tensor on its device for a tensor, an array
        for an array.

    Raises:
        AdcamError: The sizes fit no grid of patches (the message says which numbers of prefix
            tokens would), values are not finite, the attention is no attention after softmax (it
            has negative values, or rows that sum to more than 1), the CRF lacks the image, or an
            option is not legal.

    Example:
        >>> attention = torch.softmax(torch.rand(12, 3, 17, 17), dim=-1)
        >>> refine(torch.rand(2, 4, 4), attention).shape
        torch.Size([2, 4, 4])
        >>> refine(torch.rand(2, 4, 4), attention, num_prefix_tokens=2)
        Traceback (most recent call last):
        ...
        adcam.errors.AdcamError: the attention has 17 tokens, of which 15 are patches after 2 \
prefix tokens, but the grid is 4×4 = 16 patches; num_prefix_tokens=1 would fit
    """
    if crf is None and rule != DEFAULT_RULE:
        raise AdcamError(f"rule={rule!r} says where background ends in a mask: give crf beside it")
    is_array = not _holds_tensor(cam)
    grid_hw, num_prefix_tokens = _read_grid(grid_hw), _read_prefix(num_prefix_tokens)
    maps = _read_maps(cam)
    blocks = _read_blocks(attention, _count_batch(maps, grid_hw))
    dtype = torch.promote_types(maps.dtype, blocks[0].dtype)
    maps, blocks = maps.to(dtype), [block.to(maps.device, dtype) for block in blocks]
    tokens = _check_tokens(blocks)
    if grid_hw is None:
        grid_hw, prefix = _find_grid(maps, tokens, num_prefix_tokens)
    else:
        prefix = (
            tokens - grid_hw[0] * grid_hw[1] if num_prefix_tokens is None else num_prefix_tokens
        )
    _check_grid(tokens, prefix, grid_hw)
    batch, shape = _to_batch(maps, grid_hw)
    method = _build_method(options, prefix)
    token_maps = _build_token_maps(batch, blocks, grid_hw, prefix, method)
    class_ids = torch.arange(batch.shape[1], device=batch.device).expand(len(batch), -1)
    with torch.no_grad():
        refined = method(token_maps, class_ids)
    if image is None:
        if crf is not None:
            raise AdcamError("a mask is as large as its image: give image=… beside crf")
        return _finish(min_max(refined.float()).reshape(*shape, *grid_hw), is_array)
    images = image if isinstance(image, list | tuple) else [image]
    is_list = images is image
    if len(images) != len(batch):
        raise AdcamError(f"the maps are of {len(batch)} images, but {len(images)} are given")
    results = [
        _finish_image(grid, convert_image(img), shape[-1:] if is_list else shape, method, crf, rule)
        for grid, img in zip(refined, images, strict=True)
    ]
    finished = [_finish(result.to(maps.device), is_array) for result in results]
    return finished if is_list else finished[0]


def _finish_image(
    grid: Tensor,
    img: np.ndarray,
    shape: tuple[int, ...],
    method: ADCAM,
    crf: str | None,
    rule: str | float | BackgroundRule,
) -> Tensor:
    """The maps (K, h, w) of one image at its size, or its mask; ``shape`` comes before the size."""
    hw, pixels = (img.shape[0], img.shape[1]), torch.from_numpy(img).to(grid.device)
    (maps,) = fuse_batch([grid[None, None]], [pixels], [hw], color_steps=method.color_steps)
    if crf is None:
        return maps.reshape(*shape, *hw)
    maker = MaskMaker(parse_rule(rule), None, crf, "lattice", tuple(range(1, len(maps) + 1)))
    found = ClassMaps(tuple(range(len(maps))), maps.cpu().numpy())
    return torch.from_numpy(maker(found, img, hw).mask).reshape(*shape[:-1], *hw)


def tokens_to_grid(
    tokens: Tensor, *, num_prefix_tokens: int | None = None, grid_hw: tuple[int, int] | None = None
) -> Tensor:
    """Drop prefix tokens and put patches on their grid: ``reshape_transform`` of pytorch-grad-cam.

    Args:
        tokens: (B, T, D), as the blocks of a ViT return them.
        num_prefix_tokens: The number of tokens before the patches; ``None`` takes the fewest that
            leave a square.
        grid_hw: Height and width of the grid; ``None`` for a square.

    Returns:
        (B, D, h, w).

    Raises:
        AdcamError: The tokens are no (B, T, D), or their patches not as many as the grid has cells.

    Example:
        >>> tokens_to_grid(torch.zeros(2, 201, 8)).shape  # a class token and four registers
        torch.Size([2, 8, 14, 14])
    """
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise AdcamError(
            f"tokens must be a tensor (B, T, D), as the blocks of a ViT return it, got {shape}"
        )
    count = tokens.shape[1]
    grid_hw, num_prefix_tokens = _read_grid(grid_hw), _read_prefix(num_prefix_tokens)
    if num_prefix_tokens is None:
        sides = range(min(_MOST_PREFIX + 1, count))
        squares = [i for i in sides if math.isqrt(count - i) ** 2 == count - i]
        wanted = squares[0] if squares else 0
        num_prefix_tokens = wanted if grid_hw is None else count - grid_hw[0] * grid_hw[1]
    patches = count - num_prefix_tokens
    side = math.isqrt(max(patches, 0))
    height, width = grid_hw or (side, side)
    if num_prefix_tokens < 0 or height * width != patches or not patches:
        raise AdcamError(
            f"{count} tokens, {num_prefix_tokens} of them before the patches, are no grid of "
            f"{height}×{width}; give num_prefix_tokens and grid_hw"
        )
    return tokens[:, num_prefix_tokens:].transpose(1, 2).unflatten(2, (height, width))


def _read_maps(cam: Any) -> Tensor:
    if not isinstance(cam, list | tuple):
        return _to_tensor(cam, "cam")
    parts = [_to_tensor(part, "cam") for part in cam]
    shapes = {tuple(part.shape) for part in parts}
    if len(parts) == 1 and parts[0].ndim > 2:
        return parts[0]
    if len(shapes) != 1 or parts[0].ndim != 2:
        raise AdcamError(
            f"a list of maps must hold one map (h, w) a class, of one size, got {sorted(shapes)}; "
            "maps of several layers of torch-cam are fused first, by its fuse_cams"
        )
    return torch.stack(parts)


def _build_method(options: dict[str, Any], prefix: int) -> ADCAM:
    init = "coupled" if prefix else "cam"
    method = cast("ADCAM", build_method("ad_cam", **{"init": init, **options}))
    if method.init == "coupled" and not prefix:
        raise AdcamError("init='coupled' needs the class token's attention, but none is there")
    return method


def _build_token_maps(
    batch: Tensor, blocks: list[Tensor], grid_hw: tuple[int, int], prefix: int, method: ADCAM
) -> TokenMaps:
    """The maps and the blocks (B, T, T) as a network of ours would hand them to the method."""
    patches = [block[:, prefix:, prefix:] for block in blocks]
    try:
        layer_sets = method.layer_sets(len(blocks))
    except ValueError as error:
        raise AdcamError(f"the attention has {len(blocks)} blocks: {error}") from error
    rows = [block[:, 0, prefix:] for block in blocks] if prefix else None
    return TokenMaps(
        logits=batch.new_zeros(batch.shape[:2]),
        cam=batch,
        grid_hw=grid_hw,
        depth=len(blocks),
        attn_cls2patch=None if rows is None else torch.stack(rows, dim=1),
        attn_patch2patch={
            layers: torch.stack([patches[i] for i in layers]).mean(dim=0) for layers in layer_sets
        },
    )


def _count_batch(maps: Tensor, grid_hw: tuple[int, int] | None) -> int | None:
    """The number of images of maps that are a batch, ``None`` for those of a single image."""
    ndim = maps.ndim + (grid_hw is not None and _is_flat(maps, grid_hw))
    if ndim not in (2, 3, 4):
        raise AdcamError(f"cam must be (h, w), (K, h, w) or (B, K, h, w), got {tuple(maps.shape)}")
    return len(maps) if ndim == 4 else None


def _is_flat(maps: Tensor, grid_hw: tuple[int, int]) -> bool:
    """Whether the last size of maps is the number of patches, and not the width of an image."""
    height, width = grid_hw
    is_image = maps.ndim > 1 and maps.shape[-2] * width == maps.shape[-1] * height
    return maps.shape[-1] == height * width and not is_image


def _read_grid(grid_hw: Any) -> tuple[int, int] | None:
    if grid_hw is None:
        return None
    try:
        height, width = (operator.index(size) for size in grid_hw)
    except (TypeError, ValueError) as error:
        raise AdcamError(
            f"grid_hw must be (rows, columns) of the patches, such as (14, 14), got {grid_hw!r}"
        ) from error
    return height, width


def _read_prefix(num_prefix_tokens: Any) -> int | None:
    try:
        return None if num_prefix_tokens is None else operator.index(num_prefix_tokens)
    except TypeError as error:
        raise AdcamError(
            f"num_prefix_tokens must be a whole number, such as 1, got {num_prefix_tokens!r}"
        ) from error


def _read_blocks(attention: Any, batch: int | None) -> list[Tensor]:
    """Every form of attention as one tensor (B, T, T) a block."""
    if hasattr(attention, "logits") or hasattr(attention, "last_hidden_state"):
        attention = getattr(attention, "attentions", None) or [None]  # an output of Hugging Face
    if isinstance(attention, RecordedAttention):
        parts = [block[:, None] for block in attention]
        if not parts:
            raise AdcamError(
                "no attention was recorded: run the network once inside record_attention(); one "
                "that is compiled, or has no attention (a CNN), cannot be used"
            )
        if len(sizes := sorted({len(block) for block in parts})) > 1:
            raise AdcamError(
                f"the recorded blocks attend in different numbers of parts, {sizes}; record one "
                "network, once, that attends among all patches (windows, as Swin's, cannot be used)"
            )
    elif isinstance(attention, list | tuple):
        parts = list(attention)
    else:
        whole = _to_tensor(attention, "attention")
        # Without a batch the four sizes of one tensor are (layers, heads, T, T), unless the first
        # is a batch of 1.
        is_stack = whole.ndim == 5 or (whole.ndim == 4 and batch is None and len(whole) > 1)
        parts = list(whole) if is_stack else [whole]
    if not parts or any(part is None for part in parts):
        raise AdcamError(
            "the attention holds nothing; load a model of Hugging Face with "
            "attn_implementation='eager' and call it with output_attentions=True, or record any "
            "model by adcam.record_attention()"
        )
    return [_mean_heads(_to_tensor(part, "attention"), batch) for part in parts]


def _mean_heads(block: Tensor, batch: int | None) -> Tensor:
    """One block, with or without heads and batch, as (B, T, T)."""
    if block.ndim not in (2, 3, 4) or block.shape[-1] != block.shape[-2] or not block.numel():
        raise AdcamError(
            "a block's attention must be (T, T), (heads, T, T) or (B, heads, T, T), got "
            f"{tuple(block.shape)}"
        )
    if block.ndim == 4:
        block = block.mean(dim=1)
    elif block.ndim == 3 and batch is None:
        block = block.mean(dim=0, keepdim=True)
    elif block.ndim == 2:
        block = block[None]
    if len(block) != (batch or 1):
        hint = "; maps (B, h, w), one an image, become a batch by cam[:, None]"
        raise AdcamError(
            f"the attention is of {len(block)} images, the maps are of {batch or 1}"
            + (hint if batch is None else "")
        )
    return block


def _check_tokens(blocks: list[Tensor]) -> int:
    """The number of tokens of all blocks.

    Raises:
        AdcamError: It differs, or values are no attention after softmax.
    """
    sizes = sorted({block.shape[-1] for block in blocks})
    if len(sizes) > 1:
        raise AdcamError(
            f"blocks attend among different numbers of tokens, {sizes}; give those of one network "
            "that attends among all patches (a text tower or windows, as Swin's, cannot be used)"
        )
    # NaN and infinite values spread to both numbers. A GPU is waited for once.
    found = [torch.stack((block.amin(), block.sum(dim=-1).amax())) for block in blocks]
    for low, most in torch.stack(found).tolist():
        if not (low >= 0 and most < math.inf):
            raise AdcamError(
                "the attention must be finite and >= 0, as it is after softmax; got values from "
                f"{low:.3g}, and rows that sum to up to {most:.3g}"
            )
        if most > _MOST_SUM:
            raise AdcamError(
                f"the rows of the attention must sum to 1, as they do after softmax; got up to "
                f"{most:.3g}. Apply softmax to scores over the last size, call eval() on a network "
                "with dropout, or divide by attention.sum(-1, keepdims=True)"
            )
    return sizes[0]


def _find_grid(maps: Tensor, tokens: int, prefix: int | None) -> tuple[tuple[int, int], int]:
    """The grid of patches and the number of prefix tokens that maps (..., H, W) fit."""
    height, width = int(maps.shape[-2]), int(maps.shape[-1])
    if height * width <= tokens:
        right = tokens - height * width
        return (height, width), right if prefix is None else prefix
    # Larger maps: patches are squares, and there is a whole number of them.
    fits = {
        count: (height // side, width // side)
        for count in range(min(_MOST_PREFIX + 1, tokens))
        if (side := math.isqrt(height * width // (tokens - count))) > 0
        and height % side == width % side == 0
        and (height // side) * (width // side) == tokens - count
    }
    found = fits if prefix is None else {c: grid for c, grid in fits.items() if c == prefix}
    if len(found) == 1:
        ((count, grid),) = found.items()
        # A photograph of 3:4 fits 12×16 patches and five others, but most networks with as many
        # tokens saw a square of 14×14 and one: maps of the photograph's shape do not tell.
        usual = (i for i in _USUAL_PREFIX if math.isqrt(max(tokens - i, 0)) ** 2 == tokens - i)
        others = next(usual, None)
        if prefix is None and grid[0] != grid[1] and others is not None:
            rows = math.isqrt(tokens - others)
            raise AdcamError(
                f"{tokens} tokens may be {grid[0]}×{grid[1]} patches after {count} others, or "
                f"{rows}×{rows} after {others} if the network saw a square image; say which by "
                f"grid_hw={grid} or grid_hw=({rows}, {rows})"
            )
        return grid, count
    known = " or ".join(f"num_prefix_tokens={c} ({g[0]}×{g[1]})" for c, g in fits.items())
    sides = (math.isqrt(tokens - count) for count in range(min(_MOST_PREFIX + 1, tokens)))
    square = next((side for i, side in enumerate(sides) if side * side == tokens - i), 0)
    seen = f", ({square}, {square}) if the network saw a square image" if square else ""
    raise AdcamError(
        f"{tokens} tokens"
        + ("" if prefix is None else f", {prefix} of them before the patches,")
        + f" are no grid of square patches over maps of {height}×{width}; "
        + (f"fitting are {known}" if fits else f"give grid_hw=(rows, columns) of the patches{seen}")
    )


def _check_grid(tokens: int, prefix: int, grid_hw: tuple[int, int]) -> None:
    patches = grid_hw[0] * grid_hw[1]
    right = tokens - patches
    if min(grid_hw) >= 1 and prefix >= 0 and prefix == right <= _MOST_PREFIX:
        return
    shown = f"{grid_hw[0]}×{grid_hw[1]} = {patches}"
    if prefix == right or prefix < 0:
        raise AdcamError(
            f"the attention has {tokens} tokens, but the grid is {shown} patches, which would "
            f"leave {right} prefix tokens; is it the grid of this attention?"
        )
    would = f"; num_prefix_tokens={right} would fit" if 0 <= right <= _MOST_PREFIX else ""
    raise AdcamError(
        f"the attention has {tokens} tokens, of which {tokens - prefix} are patches after {prefix} "
        f"prefix tokens, but the grid is {shown} patches{would}"
    )


def _to_batch(maps: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, tuple[int, ...]]:
    """Maps as (B, K, h, w), averaged within patches, and the shape before the grid."""
    if _is_flat(maps, grid_hw):
        maps = maps.unflatten(-1, grid_hw)
    shape = tuple(maps.shape[:-2])
    if not maps.numel():
        raise AdcamError(f"there are no maps to refine, got {tuple(maps.shape)}")
    batch = maps.reshape(-1, shape[-1] if shape else 1, *maps.shape[-2:])
    if maps.shape[-2:] == grid_hw:
        return batch, shape
    if any(size < 2 * cells for size, cells in zip(maps.shape[-2:], grid_hw, strict=True)):
        raise AdcamError(
            f"maps of {maps.shape[-2]}×{maps.shape[-1]} are neither on the grid of "
            f"{grid_hw[0]}×{grid_hw[1]} patches nor at least twice as large"
        )
    return F.adaptive_avg_pool2d(batch, grid_hw), shape


def _holds_tensor(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, Tensor) for part in parts)


def _to_tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    if not isinstance(value, Tensor):
        raise AdcamError(f"{name} must be a tensor or an array, got {type(value).__name__}")
    value = value.detach()
    if not value.is_floating_point():
        raise AdcamError(f"{name} must be floating point, got {value.dtype}")
    value = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if name == "cam" and not value.isfinite().all():
        raise AdcamError("cam holds NaN or infinite values")
    return value


def _finish(result: Tensor, is_array: bool) -> Any:
    return result.cpu().numpy() if is_array else result
