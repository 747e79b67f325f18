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
        artifact_ratio: The ``ratio`` of :func:`adcam.ops.artifact_patches.find_artifacts`; 0 keeps
            every patch.
        similarity: The similarity of :func:`adcam.ops.common_neighbor.common_neighbor`.
        power: The exponent of that similarity.
        normalize: The normalisation of :func:`adcam.ops.diffusion.diffuse`.
        num_steps: The number of steps of the diffusion.
        alpha: The restart weight of the diffusion.
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
    """Find artefacts, clean, refine, diffuse and fill, as README.md says. (..., K, N) -> same.

    ``backend`` is ``"reference"`` for the references of all operations, or ``"torch"``, which lets
    each operation choose its own backend.
    """
    if not options.artifact_ratio:
        return _refine_and_diffuse(maps, attn, options, backend)
    missing = find_artifacts(attn, grid_hw, ratio=options.artifact_ratio)
    start = maps.masked_fill(missing[..., None, :], 0)
    kept = (~missing).to(attn.dtype)  # a product takes a sixth of the time of a mask of pairs
    clean = (attn * kept[..., :, None]).mul_(kept[..., None, :])
    spread = _refine_and_diffuse(start, clean, options, backend)
    return fill_patches(spread, missing, grid_hw)


def _refine_and_diffuse(
    maps: torch.Tensor, attn: torch.Tensor, options: RefineOptions, backend: str
) -> torch.Tensor:
    single = "reference" if backend == "reference" else "auto"
    product = single
    if options.exact and single == "auto" and has_product_kernel(attn, options.similarity):
        product = "triton_exact"
    affinity = common_neighbor(
        attn, similarity=options.similarity, power=options.power, backend=product
    )
    return diffuse(
        maps,
        affinity,
        normalize=options.normalize,
        num_steps=options.num_steps,
        alpha=options.alpha,
        backend=single,
    )
