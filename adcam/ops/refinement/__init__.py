"""AD-CAM's refinement from start to refined maps, as one operation. README.md counts its cost."""

from __future__ import annotations

import torch

from adcam.ops import common_neighbor, diffusion
from adcam.ops._backends import available_backends, choose_backend, triton_not_supported_reasons
from adcam.ops._checks import (
    check_grid,
    check_maps,
    check_non_negative,
    check_share,
    check_square,
    without_autocast,
)
from adcam.ops.refinement import reference
from adcam.ops.refinement.reference import RefineOptions

__all__ = ["RefineOptions", "available_backends", "refine_maps"]


def refine_maps(
    maps: torch.Tensor,
    attn: torch.Tensor,
    grid_hw: tuple[int, int],
    options: RefineOptions | None = None,
    *,
    check_values: bool | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Diffuse maps along attention that common neighbours refine, without artefact patches.

    It equals this, in fewer passes over the attention and without waiting for the device::

        missing = find_artifacts(attn, grid_hw, ratio=artifact_ratio)
        start = maps.masked_fill(missing[..., None, :], 0)
        clean = attn.masked_fill(missing[..., :, None] | missing[..., None, :], 0)
        affinity = common_neighbor(clean, similarity=similarity, power=power)
        spread = diffuse(start, affinity, normalize=normalize, num_steps=num_steps, alpha=alpha)
        refined = fill_patches(spread, missing, grid_hw)

    Args:
        maps: (..., K, N), finite; see :func:`adcam.ops.diffusion.diffuse`.
        attn: (..., N, N), finite and >= 0; see :func:`adcam.ops.common_neighbor.common_neighbor`.
        grid_hw: Height and width of the patch grid; their product is N.
        options: How; by default no patch is an artefact.
        check_values: Whether the values of ``attn`` are checked, which on a GPU waits for the
            device. ``None`` checks them elsewhere alone; Triton returns NaN for such an image.
        backend: ``"triton"`` (GPU; ``"resource_allocation"`` or ``"cosine"`` with ``"sinkhorn"``,
            not the closed form, not float64, no gradient), ``"torch"`` (the operations above, each
            by the backend that it chooses), ``"reference"`` or ``"auto"`` for the first of them
            that can run.

    Returns:
        (..., K, N), at least float32.

    Raises:
        ValueError: As the operations above.
        RuntimeError: If the backend asked for cannot run here; the message holds the reason.
    """
    chosen_options = options or RefineOptions()
    _check(maps, attn, grid_hw, chosen_options)
    check_non_negative("attn", attn, check_values)
    reasons = [
        *triton_not_supported_reasons(maps, attn, is_differentiable=False),
        *common_neighbor.find_missing_kernels(chosen_options.similarity),
        *diffusion.find_missing_kernels(chosen_options.normalize, chosen_options.num_steps),
    ]
    chosen = choose_backend(
        "refinement", backend, {"triton": reasons, "torch": [], "reference": []}
    )
    with without_autocast(attn):
        if chosen != "triton":
            return reference.refine_maps(maps, attn, grid_hw, chosen_options, backend=chosen)
        from adcam.ops.refinement import triton_kernels

        return triton_kernels.refine_maps(maps, attn, grid_hw, chosen_options)


def _check(
    maps: torch.Tensor, attn: torch.Tensor, grid_hw: tuple[int, int], options: RefineOptions
) -> None:
    check_share("artifact_ratio", options.artifact_ratio)
    common_neighbor.check_options(options.similarity, options.power)
    diffusion.check_options(options.normalize, options.num_steps, options.alpha)
    check_square("attn", attn)
    check_maps(maps, attn, "attention")
    check_grid(grid_hw, attn.shape[-1])
