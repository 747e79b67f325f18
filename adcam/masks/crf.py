"""Refinement of class maps and label maps with a dense CRF, under published parameter sets.

The CRF itself is :class:`adcam.ops.dense_crf.DenseCRF`. Give it the labels that are present alone
(background and the K classes of the image): its time grows with their number, and an absent label
can only do harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adcam.errors import AdcamError
from adcam.ops.dense_crf import MIN_PROB, DenseCRF, dense_crf_batch
from adcam.options import check_choice


@dataclass(frozen=True)
class CRFParams:
    """Kernels and number of updates of a dense CRF.

    Attributes:
        gaussian: ``(sigma_xy, compat)`` of the smoothness kernel.
        bilateral: ``(sigma_xy, sigma_rgb, compat)`` of the appearance kernel.
        num_iters: Mean-field updates.
        source: Repository and file that the numbers were read in.
    """

    gaussian: tuple[float, float] | None
    bilateral: tuple[float, float, float] | None
    num_iters: int
    source: str


CRF_PARAMS: dict[str, CRFParams] = {
    "psa": CRFParams((3, 3), (80, 13, 10), 10, "jiwoon-ahn/psa, tool/imutils.py, crf_inference"),
    "irn": CRFParams((3, 3), (50, 5, 10), 10, "jiwoon-ahn/irn, misc/imutils.py"),
    # CLIP-ES itself passes a BGR image less its mean, cast to uint8; here the image stays as it is.
    "clip_es": CRFParams((1, 3), (67, 3, 4), 10, "linyq2117/CLIP-ES, eval_cam_with_crf.py"),
    "toco": CRFParams((3, 3), (36, 3, 4), 10, "rulixiang/ToCo, tools/infer_cam_crf_label.py"),
    "weaktr": CRFParams(
        (3, 3),
        (83, 5, 3),
        10,
        "hustvl/WeakTr, OnlineRetraining/segm/eval/densecrf.py, crf_inference_voc12",
    ),
}
"""Parameter sets of published pipelines by name. SEAM uses ``psa``; ReCAM uses ``irn``."""

CRF_BACKENDS = {
    "auto": "auto",
    "lattice": "auto",
    "lattice-gpu": "auto",
    "pydensecrf": "pydensecrf",
}
"""What may compute the CRF, and its backend in :mod:`adcam.ops.dense_crf`.

``"lattice"`` is this project's own code on the CPU, ``"lattice-gpu"`` the same on a GPU,
``"pydensecrf"`` the C++ package. ``"auto"`` is the lattice on the device at hand.
"""


def build_refinement(
    img: NDArray[np.uint8],
    *,
    crf: str | CRFParams = "irn",
    backend: str = "auto",
    device: str = "cpu",
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Prepare an image for :func:`refine`: what depends on the image alone is computed once.

    Args:
        img: (H, W, 3) uint8.
        crf: A name in :data:`CRF_PARAMS`, or a set of your own.
        backend: A name in :data:`CRF_BACKENDS`, or a backend of
            :class:`adcam.ops.dense_crf.DenseCRF`.
        device: The device that computes; only ``"lattice-gpu"`` and ``"auto"`` use a GPU.

    Returns:
        A function from ``prob``, as for :func:`refine`, to its result; call it as often as needed.

    Raises:
        AdcamError: If the parameter set is unknown.
        ValueError: If the CRF refuses an argument.
        RuntimeError: If the backend cannot run here.
    """
    chosen = get_crf_params(crf)
    prepared = DenseCRF(
        img,
        gaussian=chosen.gaussian,
        bilateral=chosen.bilateral,
        backend=CRF_BACKENDS.get(backend, backend),
        device=device,
    )
    return partial(prepared.infer, num_iters=chosen.num_iters)


def refine_batch(
    probs: Sequence[torch.Tensor],
    imgs: Sequence[NDArray[np.uint8] | torch.Tensor],
    *,
    crf: str | CRFParams,
) -> list[torch.Tensor]:
    """Refine soft maps of several images on the device that they are on, as many at once as fit.

    Args:
        probs: (K+1, H, W) floating point in [0, 1] each, background first, on one device.
        imgs: (H, W, 3) uint8 each.
        crf: A name in :data:`CRF_PARAMS`, or a set of your own.

    Returns:
        (K+1, H, W) float32 each, on that device; sums to 1 over labels.

    Raises:
        AdcamError: If the parameter set is unknown.
        ValueError: If the CRF refuses an argument.
    """
    chosen = get_crf_params(crf)
    return dense_crf_batch(
        probs,
        [
            img if isinstance(img, torch.Tensor) else torch.from_numpy(np.array(img, order="C"))
            for img in imgs
        ],
        gaussian=chosen.gaussian,
        bilateral=chosen.bilateral,
        num_iters=chosen.num_iters,
    )


def refine(
    prob: NDArray[Any],
    img: NDArray[np.uint8],
    *,
    crf: str | CRFParams = "irn",
    backend: str = "auto",
) -> NDArray[np.float32]:
    """Refine soft maps of background and the present classes.

    Args:
        prob: (K+1, H, W) floating point in [0, 1], background first.
        img: (H, W, 3) uint8.
        crf: A name in :data:`CRF_PARAMS`, or a set of your own.
        backend: A name in :data:`CRF_BACKENDS`, or a backend of
            :class:`adcam.ops.dense_crf.DenseCRF`.

    Returns:
        (K+1, H, W) float32, sums to 1 over labels.

    Raises:
        AdcamError: If the parameter set is unknown.
        ValueError: If the CRF refuses an argument.
        RuntimeError: If the backend cannot run here.
    """
    return build_refinement(img, crf=crf, backend=backend)(prob)


def refine_labels(
    label: NDArray[Any],
    img: NDArray[np.uint8],
    num_labels: int,
    *,
    gt_prob: float = 0.7,
    crf: str | CRFParams = "irn",
    backend: str = "auto",
) -> NDArray[Any]:
    """Refine a hard label map, as IRN does before it trusts a map's foreground or background.

    Each pixel believes in its own label with ``gt_prob`` and shares the rest equally among the
    others (``unary_from_labels`` of pydensecrf with ``zero_unsure=False``).

    Args:
        label: (H, W) integers in 0..num_labels-1: positions among the present labels, not class
            values; there is no ignore value.
        img: (H, W, 3) uint8.
        num_labels: Number of labels that the result may use.
        gt_prob: In (0, 1), larger keeps the result closer to ``label``; above
            ``1 / num_labels`` for the label to be the likeliest.
        crf: A name in :data:`CRF_PARAMS`, or a set of your own.
        backend: A name in :data:`CRF_BACKENDS`, or a backend of
            :class:`adcam.ops.dense_crf.DenseCRF`.

    Returns:
        (H, W) likeliest labels, in the dtype of ``label``.

    Raises:
        AdcamError: If labels are not integers in range, ``gt_prob`` is out of range, or the
            parameter set is unknown.
        ValueError: If the CRF refuses an argument.
        RuntimeError: If the backend cannot run here.
    """
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise AdcamError(f"label must be (H, W) integers, got {label.shape} {label.dtype}")
    if num_labels < 1:
        raise AdcamError(f"num_labels must be at least 1, got {num_labels}")
    if label.size and not 0 <= label.min() <= label.max() < num_labels:
        raise AdcamError(
            f"label must lie in 0..{num_labels - 1}, got values {label.min()}..{label.max()}"
        )
    if num_labels == 1:
        return label.copy()
    other_prob = (1 - gt_prob) / (num_labels - 1)
    # Below MIN_PROB the CRF would clip and the formula would no longer be IRN's.
    if not (gt_prob > 0 and other_prob >= MIN_PROB):
        raise AdcamError(
            f"gt_prob must be above 0 and at most {1 - MIN_PROB * (num_labels - 1)} for "
            f"{num_labels} labels, got {gt_prob}"
        )
    present = np.arange(num_labels)[:, None, None] == label  # (num_labels, H, W)
    prob = np.where(present, np.float32(gt_prob), np.float32(other_prob))
    return refine(prob, img, crf=crf, backend=backend).argmax(axis=0).astype(label.dtype)


def get_crf_params(crf: str | CRFParams) -> CRFParams:
    """Return a parameter set by its name; a set of your own is returned as it is.

    Raises:
        AdcamError: If there is no set of that name. A backend's name is refused with the option
            that takes it.

    Example:
        >>> get_crf_params("toco").bilateral
        (36, 3, 4)
    """
    if isinstance(crf, CRFParams):
        return crf
    if crf in CRF_BACKENDS:
        raise AdcamError(
            f"crf names a parameter set, one of {sorted(CRF_PARAMS)}; {crf!r} is what computes it: "
            f"give crf_backend={crf!r} beside it, e.g. crf='toco'"
        )
    check_choice("crf", crf, CRF_PARAMS)
    return CRF_PARAMS[crf]
