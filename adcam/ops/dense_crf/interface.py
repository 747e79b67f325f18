"""The public call of the dense CRF: checks its arguments and hands them to a backend.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"
(NeurIPS 2011, arXiv 1210.5644). Meaning of every number as in pydensecrf with a diagonal kernel,
symmetric normalisation and Potts compatibility; the derivation is in this folder's README.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

MIN_PROB = 1e-5
"""Probabilities are raised to this before the logarithm, as ``unary_from_softmax`` of pydensecrf
does; a larger value lets the pairwise terms overrule confident pixels more easily."""

_RANGE_SLACK = 1e-4
"""How far outside [0, 1] a probability may lie: rounding of an interpolation, not an error."""

ArrayT = TypeVar("ArrayT", NDArray[Any], torch.Tensor)


def available_backends() -> dict[str, str | None]:
    """Tell which backends can run here.

    Returns:
        From each backend's name to ``None`` if it can run, else to the reason why it cannot.
    """
    from adcam.ops.dense_crf import pydensecrf

    return {"lattice": None, "pydensecrf": pydensecrf.unavailable_reason()}


def dense_crf(
    prob: ArrayT,
    img: NDArray[np.uint8] | torch.Tensor,
    *,
    gaussian: tuple[float, float] | None = (3, 3),
    bilateral: tuple[float, float, float] | None = (50, 5, 10),
    num_iters: int = 10,
    backend: str = "auto",
) -> ArrayT:
    """Refine per-pixel label probabilities with a fully connected CRF.

    The energy of a labelling is the sum of ``-log(prob)`` over pixels plus, for every pair of
    pixels with different labels, the two kernels between them times their ``compat``. The result
    is its mean-field approximation, started from ``prob``. Not differentiable.

    Args:
        prob: (C, H, W) floating point, in [0, 1]; C >= 1 labels. Values below ``MIN_PROB`` count
            as ``MIN_PROB``. Scores that do not sum to 1 over labels are allowed: only their
            ratios matter.
        img: (H, W, 3) uint8, the image that ``prob`` belongs to. The order of the three channels
            does not change what the kernel means.
        gaussian: ``(sigma_xy, compat)`` of the smoothness kernel, or ``None`` to leave it out.
            ``sigma_xy`` in pixels: larger smooths over a wider neighbourhood.
            ``compat``: larger removes more small islands.
        bilateral: ``(sigma_xy, sigma_rgb, compat)`` of the appearance kernel, or ``None``.
            ``sigma_xy`` in pixels: larger couples pixels farther apart. ``sigma_rgb`` in grey
            levels of 0..255: larger lets labels cross stronger edges. ``compat``: larger makes
            labels follow the image rather than ``prob``.
        num_iters: Mean-field updates, >= 0; 0 returns the clipped, normalised ``prob``.
        backend: ``"lattice"`` (NumPy and SciPy, always there), ``"pydensecrf"`` (the C++ code,
            extra ``crf``) or ``"auto"``, which is ``"lattice"``.

    Returns:
        (C, H, W) float32 marginals that sum to 1 over labels: an array for an array, a tensor on
        the same device for a tensor. Both backends compute on the CPU.

    Raises:
        ValueError: Wrong shape, dtype or range, NaN, a kernel that makes no sense (sigma <= 0,
            compat < 0), or an unknown backend.
        RuntimeError: The backend asked for cannot run here; the message holds the reason.
    """
    if backend not in ("auto", "lattice", "pydensecrf"):
        raise ValueError(
            f"unknown dense CRF backend {backend!r}; choose 'auto', 'lattice' or 'pydensecrf'"
        )
    if num_iters < 0:
        raise ValueError(f"num_iters must be at least 0, got {num_iters}")
    _check_kernel("gaussian", gaussian, ("sigma_xy", "compat"))
    _check_kernel("bilateral", bilateral, ("sigma_xy", "sigma_rgb", "compat"))
    prob_array = _as_numpy(prob)
    img_array = _as_numpy(img)
    _check_arrays(prob_array, img_array)
    unary = -np.log(np.clip(prob_array.astype(np.float32), MIN_PROB, 1.0))

    if backend == "pydensecrf":
        from adcam.ops.dense_crf import pydensecrf

        if reason := pydensecrf.unavailable_reason():
            raise RuntimeError(f"the dense CRF backend 'pydensecrf' cannot run: {reason}")
        infer = pydensecrf.infer
    else:
        from adcam.ops.dense_crf import lattice

        infer = lattice.infer
    marginals = infer(unary, img_array, gaussian=gaussian, bilateral=bilateral, num_iters=num_iters)
    if isinstance(prob, torch.Tensor):
        return torch.from_numpy(marginals).to(prob.device)
    return marginals


def _as_numpy(array: NDArray[Any] | torch.Tensor) -> NDArray[Any]:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        # NumPy has no bfloat16.
        return (array.float() if array.is_floating_point() else array).numpy()
    return np.asarray(array)


def _check_arrays(prob: NDArray[Any], img: NDArray[Any]) -> None:
    if img.ndim != 3 or img.shape[2] != 3 or img.dtype != np.uint8:
        raise ValueError(f"img must be (H, W, 3) uint8, got {img.shape} {img.dtype}")
    if prob.ndim != 3 or not np.issubdtype(prob.dtype, np.floating):
        raise ValueError(f"prob must be (C, H, W) floating point, got {prob.shape} {prob.dtype}")
    if prob.size == 0:
        raise ValueError(f"prob must have at least one label and one pixel, got {prob.shape}")
    if prob.shape[1:] != img.shape[:2]:
        raise ValueError(
            f"prob is for images of (H, W) = {prob.shape[1:]} but img is {img.shape[:2]}"
        )
    low, high = prob.min(), prob.max()
    if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):  # also true for NaN
        raise ValueError(f"prob must lie in [0, 1] without NaN, got values in [{low}, {high}]")


def _check_kernel(name: str, values: Sequence[float] | None, fields: tuple[str, ...]) -> None:
    if values is None:
        return
    if len(values) != len(fields):
        raise ValueError(f"{name} must be ({', '.join(fields)}) or None, got {values!r}")
    for field, value in zip(fields, values, strict=True):
        lowest_is_legal = field == "compat"
        if not np.isfinite(value) or value < 0 or (value == 0 and not lowest_is_legal):
            bound = ">= 0" if lowest_is_legal else "> 0"
            raise ValueError(f"{field} of {name} must be finite and {bound}, got {value}")
