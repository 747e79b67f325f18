"""The refinement as a chain of the other operations: the specification."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adcam.ops.artifact_patches import fill_patches, find_artifacts
from adcam.ops.common_neighbor import common_neighbor, has_product_kernel
from adcam.ops.diffusion import diffuse


@dataclass(frozen=True)
class RefineOptions:
    """How maps are refined.

    Attributes:
        artifact_ratio: See :func:`adcam.ops.artifact_patches.find_artifacts`; 0 keeps every patch.
        similarity: See :func:`adcam.ops.common_neighbor.common_neighbor`.
        power: See there.
        normalize: See :func:`adcam.ops.diffusion.diffuse`.
        num_steps: See there.
        alpha: See there.
        exact: Whether a GPU multiplies in the precision of float32 and keeps the affinity in it.
            Otherwise both are float16, sums float32: maps differ by about 1e-4 of their maximum.
    """

    artifact_ratio: float = 0.0
    similarity: str = "resource_allocation"
    power: float = 2.0
    normalize: str = "sinkhorn"
    num_steps: int | None = 2
    alpha: float | None = None
    exact: bool = False


def refine_maps(
    maps: torch.Tensor,
    attn: torch.Tensor,
    grid_hw: tuple[int, int],
    options: RefineOptions,
    *,
    backend: str,
) -> torch.Tensor:
    """(..., K, N) -> same; see the package. ``"torch"`` lets each operation choose its backend."""
    single = "reference" if backend == "reference" else "auto"
    is_exact = options.exact and has_product_kernel(attn, options.similarity)
    product = "triton_exact" if is_exact and single == "auto" else single

    def refine(start: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        affinity = common_neighbor(
            attention,
            similarity=options.similarity,
            power=options.power,
            backend=product,
        )
        return diffuse(
            start,
            affinity,
            normalize=options.normalize,
            num_steps=options.num_steps,
            alpha=options.alpha,
            backend=single,
        )

    if not options.artifact_ratio:
        return refine(maps, attn)
    stray = find_artifacts(attn, grid_hw, ratio=options.artifact_ratio)
    start = maps.masked_fill(stray[..., None, :], 0)
    left = attn.masked_fill(stray[..., :, None] | stray[..., None, :], 0)
    refined = refine(start, left)
    return fill_patches(refined, stray, grid_hw)
