"""AD-CAM's refinement from start to refined maps, as one operation. README.md counts its cost."""

from __future__ import annotations

import math

import torch

from adcam.ops._backends import available_backends, choose_backend, triton_not_supported_reasons
from adcam.ops._checks import (
    check_choice,
    check_float,
    check_non_negative,
    check_square,
    without_autocast,
)
from adcam.ops._recompute import records_gradient
from adcam.ops.common_neighbor import SIMILARITIES
from adcam.ops.diffusion import NORMALIZATIONS, SINKHORN_ITERS
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

        stray = find_artifacts(attn, grid_hw, ratio=artifact_ratio)
        kept = (~stray).to(attn.dtype)
        clean = attn * kept[..., :, None] * kept[..., None, :]
        affinity = common_neighbor(clean, similarity=similarity, power=power)
        refined = diffuse(maps * kept[..., None, :], affinity, normalize=..., num_steps=..., ...)
        refined = fill_patches(refined, stray, grid_hw)

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
    check_float("maps", maps)
    check_square("attn", attn)
    check_choice("similarity", chosen_options.similarity, SIMILARITIES)
    check_choice("normalize", chosen_options.normalize, NORMALIZATIONS)
    check_non_negative("attn", attn, check_values)
    ratio = chosen_options.artifact_ratio
    if not (math.isfinite(ratio) and 0 <= ratio <= 1):
        raise ValueError(f"artifact_ratio must lie in [0, 1], got {ratio}")
    reasons = triton_not_supported_reasons(maps, attn)
    reasons += _triton_reasons(maps, attn, chosen_options)
    chosen = choose_backend(
        "refinement", backend, {"triton": reasons, "torch": [], "reference": []}
    )
    with without_autocast(attn):
        if chosen != "triton":
            return reference.refine_maps(maps, attn, grid_hw, chosen_options, backend=chosen)
        _check_for_kernels(maps, attn, grid_hw, chosen_options)
        from adcam.ops.refinement import triton_kernels

        return triton_kernels.refine_maps(
            maps, attn, grid_hw, chosen_options, num_iters=SINKHORN_ITERS
        )


def _triton_reasons(maps: torch.Tensor, attn: torch.Tensor, options: RefineOptions) -> list[str]:
    reasons = []
    if options.similarity not in ("resource_allocation", "cosine"):
        reasons.append(f"no kernel for similarity {options.similarity!r}")
    if options.normalize != "sinkhorn":
        reasons.append(f"no kernel for normalize={options.normalize!r}")
    if options.num_steps is None:
        reasons.append("the closed form needs the transition as a matrix")
    if torch.float64 in (maps.dtype, attn.dtype):
        reasons.append("no kernel for float64")
    if records_gradient(maps, attn):
        reasons.append("it has no gradient")
    return reasons


def _check_for_kernels(
    maps: torch.Tensor,
    attn: torch.Tensor,
    grid_hw: tuple[int, int],
    options: RefineOptions,
) -> None:
    """What the operations of the other backends check themselves."""
    if maps.ndim < 2 or maps.shape[:-2] != attn.shape[:-2] or maps.shape[-1] != attn.shape[-1]:
        raise ValueError(
            "maps must have shape (..., K, N) for an attention of shape (..., N, N), "
            f"got {tuple(maps.shape)} and {tuple(attn.shape)}"
        )
    if min(grid_hw) < 1 or grid_hw[0] * grid_hw[1] != attn.shape[-1]:
        raise ValueError(
            f"grid_hw must have {attn.shape[-1]} patches, got {grid_hw[0]}×{grid_hw[1]}"
        )
    power, num_steps, alpha = options.power, options.num_steps, options.alpha
    if not (math.isfinite(power) and power >= 0):
        raise ValueError(f"power must be finite and >= 0, got {power}")
    if num_steps is not None and num_steps < 0:
        raise ValueError(f"num_steps must be None or >= 0, got {num_steps}")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be None or lie in [0, 1], got {alpha}")
