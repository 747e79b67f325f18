"""What adcam is compared with: plain implementations that give the same results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from adcam.cams.ad_cam import ADCAM
from adcam.masks.crf import CRF_PARAMS
from adcam.metrics.localization import compute_iou
from adcam.models.preprocess import compute_input_hw, to_inputs
from adcam.ops.common_neighbor import reference as common_neighbor
from adcam.ops.diffusion import SINKHORN_ITERS
from adcam.ops.diffusion import reference as diffusion
from adcam.ops.token_attention import resolve_layers


def explicit_attention(q: Tensor, k: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of all heads at once, then the mean, as users of an extractor compute it."""
    attn = ((q * scale) @ k.mT).softmax(dim=-1)  # (B, heads, 1 + N, 1 + N)
    mean = attn.mean(dim=1)
    return mean[:, 1:, 1:], mean[:, 0, 1:]


@contextmanager
def all_attention(blocks: Sequence[nn.Module]) -> Any:
    """Keep every head of every block's attention, as ``timm.utils.AttentionExtract`` does.

    The fused kernel has no attention to keep, so it is switched off.

    Yields:
        A list that a forward pass fills: (B, heads, 1 + N, 1 + N) a block.
    """
    modules: list[Any] = [block.attn for block in blocks]
    fused = [module.fused_attn for module in modules]
    kept: list[Tensor] = []
    handles = [
        module.attn_drop.register_forward_hook(lambda _, __, attn: kept.append(attn))
        for module in modules
    ]
    for module in modules:
        module.fused_attn = False
    try:
        yield kept
    finally:
        for module, was_fused, handle in zip(modules, fused, handles, strict=True):
            module.fused_attn = was_fused
            handle.remove()


PLAIN = {
    "artifact_ratio": 0.0,
    "background_weight": 0.0,
    "clip_quantile": 0.985,
    "color_steps": 0,
}
"""Options of AD-CAM as attention and diffusion alone, the steps that the peers' recipe has too."""


def extract_attention(network: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Class maps (B, C, h, w) and all attention (L, B, heads, 1 + N, 1 + N)."""
    with torch.inference_mode(), all_attention(network.backbone.blocks) as kept:
        cam, _ = network.class_maps(inputs)
        return cam, torch.stack(kept)


def peers_recipe(
    network: Any,
    img: np.ndarray,
    class_ids: Sequence[int],
    *,
    scales: Sequence[int],
    flip: bool,
    threshold: float,
    crf: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Make the mask of one image as published code does: float32, one view of one scale at a time.

    All attention is kept in memory, and the CRF runs on the background and the present classes. The
    formulas are those of :data:`PLAIN`, so that the masks can be compared.

    Args:
        network: The classifier, a :class:`adcam.models.token_cam.TokenCAM`.
        img: The image, RGB uint8 (H, W, 3).
        class_ids: The present classes in ascending order, at least one.
        scales: The input sides in pixels.
        flip: Whether the mirrored image is used too.
        threshold: The background score, the same for all pixels.
        crf: A function from probabilities and image to what a CRF makes of the probabilities.

    Returns:
        (H, W) with 0 for background and 1, 2, … for the positions in ``class_ids``.
    """
    ori_hw = (img.shape[0], img.shape[1])
    mean, std = network.pixel_stats
    maps = torch.zeros(len(class_ids), *ori_hw)
    for scale in scales:
        input_hw = compute_input_hw(ori_hw, scale, network.patch_size)
        for mirrored in (False, True) if flip else (False,):
            inputs = to_inputs(img, input_hw, mean=mean, std=std)[None]
            grid = _ad_cam(network, inputs.flip(-1) if mirrored else inputs, class_ids)
            grid = _min_max(grid.flip(-1) if mirrored else grid)
            maps += F.interpolate(grid[None], size=ori_hw, mode="bilinear")[0]
    scores = _min_max(maps).numpy()
    prob = np.concatenate([np.full((1, *ori_hw), threshold, np.float32), scores])
    return crf(prob / prob.sum(axis=0), img).argmax(axis=0)


def _ad_cam(network: Any, inputs: Tensor, class_ids: Sequence[int]) -> Tensor:
    """(K, h, w) maps of one image."""
    method = ADCAM(**PLAIN)  # type: ignore[arg-type]
    cam, attn = extract_attention(network, inputs)
    attn = attn[:, 0].mean(dim=1)  # (L, 1 + N, 1 + N)
    cam = cam[0, list(class_ids)]
    cls_row = attn[list(resolve_layers(method.cls_layers, len(attn))), 0, 1:].mean(dim=0)
    shifted = cam - cam.amin(dim=(1, 2), keepdim=True)
    peak = shifted.amax(dim=(1, 2), keepdim=True)
    scaled = shifted / peak
    if len(cam) > 1:
        for k in range(len(cam)):
            rivals = torch.cat([scaled[:k], scaled[k + 1 :]]).amax(dim=0)
            shifted[k] = peak[k] * (scaled[k] - method.rival_weight * rivals).clamp_min(0)
    start = shifted * cls_row.view(1, *cam.shape[1:])
    patches = attn[list(resolve_layers(method.layers, len(attn))), 1:, 1:].mean(dim=0)
    affinity = common_neighbor.refine(patches, method.similarity, method.power)
    matrix = diffusion.transition(affinity, method.normalize, SINKHORN_ITERS)
    maps = diffusion.walk(start.flatten(1), matrix, method.num_steps or 0, None)
    return maps.minimum(maps.quantile(method.clip_quantile, dim=1, keepdim=True)).view(cam.shape)


def _min_max(maps: Tensor) -> Tensor:
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-8)


def crf_by_pydensecrf(prob: np.ndarray, img: np.ndarray, *, params: str) -> np.ndarray:
    """The CRF of the C++ package, with parameters of :data:`adcam.masks.crf.CRF_PARAMS`."""
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    chosen = CRF_PARAMS[params]
    num_labels, height, width = prob.shape
    crf = DenseCRF2D(width, height, num_labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(prob)))
    if chosen.gaussian is not None:
        crf.addPairwiseGaussian(sxy=chosen.gaussian[0], compat=chosen.gaussian[1])
    if chosen.bilateral is not None:
        sigma_xy, sigma_rgb, compat = chosen.bilateral
        crf.addPairwiseBilateral(
            sxy=sigma_xy, srgb=sigma_rgb, rgbim=np.array(img, order="C"), compat=compat
        )
    return np.array(crf.inference(chosen.num_iters)).reshape(prob.shape)


def save_mask(path: Any, mask: np.ndarray) -> None:
    """8-bit PNG without palette, as peers write it."""
    Image.fromarray(mask.astype(np.uint8)).save(path)


def plain_box_accuracy(
    maps: Sequence[Any], boxes: Sequence[Any], thresholds: Sequence[float], *, all_contours: bool
) -> float:
    """Mean over IoU 0.3, 0.5 and 0.7 of the best box accuracy, by one OpenCV call a threshold.

    Args:
        maps: The score maps, each (H, W) in [0, 1].
        boxes: The true boxes of each map, (n, 4).
        thresholds: The thresholds, each a share of a map's maximum.
        all_contours: Whether every contour gives a box; otherwise only the largest does.
    """
    import cv2

    hits = np.zeros((3, len(thresholds)))
    for score_map, true_boxes in zip(maps, boxes, strict=True):
        grey = (score_map * 255).astype(np.uint8)
        height, width = grey.shape
        for column, threshold in enumerate(thresholds):
            cut = int(threshold * grey.max())
            _, binary = cv2.threshold(grey, cut, 255, cv2.THRESH_BINARY)
            contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
            if contours and not all_contours:
                contours = [max(contours, key=cv2.contourArea)]
            found = [(0, 0, 0, 0)] if not contours else []
            for contour in contours:
                x, y, w, h = cv2.boundingRect(contour)
                found.append((x, y, min(x + w, width - 1), min(y + h, height - 1)))
            best = compute_iou(np.array(found), true_boxes).max()
            hits[:, column] += best >= np.array([0.3, 0.5, 0.7])
    return float(np.mean(hits.max(axis=1) * 100.0 / len(maps)))
