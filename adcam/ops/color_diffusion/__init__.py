"""Spread maps over pixels of like colour. Derivation: README.md beside this file."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from adcam.ops._backends import (
    choose_backend,
    summarize_reasons,
    triton_not_supported_reasons,
)
from adcam.ops._checks import at_least_float32, check_float, check_steps, without_autocast
from adcam.ops.color_diffusion import reference

__all__ = ["DILATIONS", "available_backends", "diffuse_by_color"]

DILATIONS = (1, 2, 4)
"""Distances of the neighbours by default, chosen on voc-animals train (docs/methods.md)."""


def diffuse_by_color(
    maps: torch.Tensor,
    img: torch.Tensor,
    *,
    num_steps: int = 10,
    dilations: Sequence[int] = DILATIONS,
    contrast: float = 0.3,
    distance_weight: float = 0.01,
    backend: str = "auto",
) -> torch.Tensor:
    """Replace each value, again and again, by the mean of neighbours of like colour.

    With eight neighbours j of pixel i at each distance of ``dilations`` and ``I`` the image::

        W_ij = (softmax_j(-mean_c((I_ic - I_jc) / (contrast * sigma_ic))^2)
                + distance_weight * softmax_j(-(|i - j| / (contrast * sigma_d))^2))
               / (1 + distance_weight)
        M_t  = W M_{t-1}                                                t = 1..num_steps

    where ``sigma_ic`` is the deviation of channel c over the neighbours of i, and ``sigma_d`` that
    of their distances. This is the pixel-adaptive refinement of AFA (Ru et al., CVPR 2022, arXiv
    2203.02664), with the weights scaled to sum 1 and with nearer neighbours.

    Args:
        maps: The maps, (..., K, H, W), floating point and finite.
        img: The image at the same size, (..., 3, H, W), with the same leading sizes; any scale of
            its values gives the same result.
        num_steps: Number of steps, >= 0. More steps spread wider; 0 returns ``maps``.
        dilations: Distances of the neighbours in pixels, each >= 1. Larger ones spread wider and
            jump over thin parts.
        contrast: > 0. Larger lets values cross stronger edges.
        distance_weight: >= 0. Larger smooths more, whatever the colours.
        backend: ``"triton"`` (GPU, no float64, no gradient), ``"reference"`` (any device) or
            ``"auto"`` for the first of them that can run.

    Returns:
        (..., K, H, W), at least float32. Values stay between the smallest and the largest of each
        map, and a constant map stays as it is.

    Raises:
        ValueError: If the sizes do not match, a tensor is not floating point, or an option is
            outside its legal set.
        RuntimeError: If the backend asked for cannot run here; the message holds the reason.

    Example:
        >>> img = torch.zeros(3, 4, 6); img[:, :, 3:] = 1  # a vertical edge
        >>> maps = torch.zeros(1, 4, 6); maps[0, 1, 1] = 1
        >>> spread = diffuse_by_color(maps, img, dilations=(1,))
        >>> bool(spread[..., :3].mean() > 10 * spread[..., 3:].mean())
        True
    """
    check_steps(num_steps)
    if not dilations or min(dilations) < 1:
        raise ValueError(f"dilations must be distances >= 1, got {tuple(dilations)}")
    if not (math.isfinite(contrast) and contrast > 0):
        raise ValueError(f"contrast must be > 0, got {contrast}")
    if not (math.isfinite(distance_weight) and distance_weight >= 0):
        raise ValueError(f"distance_weight must be >= 0, got {distance_weight}")
    check_float("maps", maps)
    check_float("img", img)
    if maps.ndim < 3 or img.shape != (*maps.shape[:-3], 3, *maps.shape[-2:]):
        raise ValueError(
            f"img must have shape {(*maps.shape[:-3], 3, *maps.shape[-2:])} for maps of shape "
            f"{tuple(maps.shape)}, got {tuple(img.shape)}"
        )
    reasons = triton_not_supported_reasons(maps, img, is_differentiable=False)
    chosen = choose_backend("color_diffusion", backend, {"triton": reasons, "reference": []})
    options = (num_steps, tuple(dilations), contrast, distance_weight)
    with without_autocast(maps):
        start, colors = at_least_float32(maps), at_least_float32(img)
        if chosen == "triton":
            from adcam.ops.color_diffusion import triton_kernels

            return triton_kernels.diffuse_by_color(start, colors, *options)
        return reference.diffuse_by_color(start, colors, *options)


def available_backends() -> dict[str, str | None]:
    """The backends of :func:`diffuse_by_color`, and why one cannot run on this machine.

    Returns:
        From each backend to ``None`` if it can run, else to the reason why not.
    """
    return summarize_reasons({"triton": triton_not_supported_reasons(), "reference": []})
