"""The refinement by the kernels of its parts: six launches, four without artefacts, no wait."""

from __future__ import annotations

import torch

from adcam.ops._triton_functions import count_images
from adcam.ops.artifact_patches.triton_kernels import fill
from adcam.ops.common_neighbor import triton_kernels as common_neighbor
from adcam.ops.diffusion import SINKHORN_ITERS
from adcam.ops.diffusion import triton_kernels as diffusion
from adcam.ops.refinement.reference import RefineOptions


def refine_maps(
    maps: torch.Tensor,
    attn: torch.Tensor,
    grid_hw: tuple[int, int],
    options: RefineOptions,
) -> torch.Tensor:
    """As :func:`adcam.ops.refinement.reference.refine_maps`: (..., K, N) -> same, float32.

    The start of an artefact is not set to 0 here: its row and column are empty, so it moves no
    other patch, and it is filled in at the end.
    """
    steps = options.num_steps or 0
    if (steps == 0 and not options.artifact_ratio) or maps.numel() == 0:
        return maps.detach().to(torch.float32)
    tokens = attn.shape[-1]
    images = count_images(attn)
    first = common_neighbor.count_counters(images)
    # The counters of all kernels, set to zero by one launch.
    counters = attn.new_zeros(first + diffusion.count_counters(images), dtype=torch.int32)
    refined = common_neighbor.refine_for_walk(
        attn,
        options.similarity,
        options.power,
        half_product=not options.exact,
        counters=counters[:first],
        grid_hw=grid_hw if options.artifact_ratio else None,
        artifact_ratio=options.artifact_ratio,
    )
    walked = diffusion.diffuse(
        maps.reshape(images, -1, tokens),
        refined.affinity,
        num_iters=SINKHORN_ITERS,
        num_steps=steps,
        alpha=options.alpha,
        sums=(refined.gives, refined.receives),
        counters=counters[first:],
    )
    if refined.agreement is not None:
        walked = fill(walked, refined.agreement, grid_hw)
    return walked.reshape(maps.shape)
