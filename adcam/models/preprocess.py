"""From an RGB image to the network's input: the one place that resizes and normalises."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adcam.errors import AdcamError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel statistics of ImageNet, RGB in [0, 1] (timm/data/constants.py)."""


def compute_input_hw(
    ori_hw: tuple[int, int], scale: int, patch_size: tuple[int, int], *, keep_ratio: bool = True
) -> tuple[int, int]:
    """Size an image is resized to for one scale.

    Args:
        ori_hw: Height and width of the image.
        scale: Side in pixels of the square with as many pixels as the input will have; larger
            sees finer detail and costs more (attention grows with its fourth power).
        patch_size: Height and width of a patch; the result is a multiple of it.
        keep_ratio: Keep the aspect ratio (to the nearest patch), else a square.

    Returns:
        Height and width, each at least one patch.

    Raises:
        AdcamError: If the scale is smaller than a patch.
    """
    if scale < max(patch_size):
        raise AdcamError(f"scale must be at least one patch ({max(patch_size)} px), got {scale}")
    # A panorama of 50:1 would leave the grid one patch high: beyond 4:1 the ratio is not kept.
    ratio = min(max(ori_hw[0] / ori_hw[1], 0.25), 4.0) if keep_ratio else 1.0
    height, width = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
    return (
        max(round(height / patch_size[0]), 1) * patch_size[0],
        max(round(width / patch_size[1]), 1) * patch_size[1],
    )


def to_inputs(
    img: np.ndarray,
    input_hw: tuple[int, int],
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Tensor:
    """Resize and normalise one image: :func:`resize_img`, then :func:`normalize_pixels`.

    Args:
        img: RGB uint8 (H, W, 3).
        input_hw: Height and width of the result.
        mean: Channel means of RGB in [0, 1].
        std: Channel standard deviations.

    Returns:
        float32 (3, H, W).

    Raises:
        AdcamError: If the image is not uint8 (H, W, 3).
    """
    return normalize_pixels(resize_img(img, input_hw), *channel_stats((mean, std)))


def resize_img(img: np.ndarray, input_hw: tuple[int, int]) -> Tensor:
    """Resize one image, bicubic and antialiased.

    Args:
        img: RGB uint8 (H, W, 3).
        input_hw: Height and width of the result.

    Returns:
        uint8 (3, H, W).

    Raises:
        AdcamError: If the image is not uint8 (H, W, 3).
    """
    if img.dtype != np.uint8 or img.ndim != 3 or img.shape[2] != 3:
        raise AdcamError(f"img must be uint8 (H, W, 3), got {img.dtype} {img.shape}")
    tensor = torch.from_numpy(np.array(img, order="C")).permute(2, 0, 1)
    if tuple(tensor.shape[1:]) == tuple(input_hw):
        return tensor
    # What torchvision.transforms.v2 does with pixels, without the seconds that importing it takes.
    return F.interpolate(
        tensor[None], size=input_hw, mode="bicubic", align_corners=False, antialias=True
    )[0]


def normalize_pixels(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale pixels to [0, 1] and normalise them, on the device that they are on.

    Args:
        pixels: RGB uint8 (..., 3, H, W).
        mean: Channel means of RGB in [0, 1], (3, 1, 1) float32 on the same device.
        std: Channel standard deviations, as ``mean``.

    Returns:
        float32 (..., 3, H, W).
    """
    return pixels.float().div_(255).sub_(mean).div_(std)


def channel_stats(
    stats: tuple[tuple[float, ...], tuple[float, ...]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return channel means and deviations as :func:`normalize_pixels` takes them."""
    mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in stats)
    return mean.to(device), std.to(device)
