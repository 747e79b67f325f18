"""Backend on pydensecrf, the Cython wrapper of Krähenbühl's C++ code (package pydensecrf2).

Imported when used: the package builds from source and does not build everywhere, so it is the
extra ``crf``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def unavailable_reason() -> str | None:
    """Return why this backend cannot run here, ``None`` if it can."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError as error:
        return f"{error}; install it with `pip install 'adcam[crf]'` (Python 3.10 to 3.12)"
    return None


def infer(
    unary: NDArray[np.float32],
    img: NDArray[np.uint8],
    *,
    gaussian: tuple[float, float] | None,
    bilateral: tuple[float, float, float] | None,
    num_iters: int,
) -> NDArray[np.float32]:
    """Run mean field; arguments as in :func:`adcam.ops.dense_crf.dense_crf`, already checked.

    Args:
        unary: (C, H, W) float32, ``-log`` of the probabilities.
        img: (H, W, 3) uint8.
        gaussian: ``(sigma_xy, compat)`` or ``None``.
        bilateral: ``(sigma_xy, sigma_rgb, compat)`` or ``None``.
        num_iters: Number of updates.

    Returns:
        (C, H, W) float32 marginals.
    """
    from pydensecrf.densecrf import DIAG_KERNEL, NORMALIZE_SYMMETRIC, DenseCRF2D

    num_labels, height, width = unary.shape
    kind = {"kernel": DIAG_KERNEL, "normalization": NORMALIZE_SYMMETRIC}
    # The typed memory views of pydensecrf refuse read-only and non-contiguous arrays: hence copies.
    crf = DenseCRF2D(width, height, num_labels)
    crf.setUnaryEnergy(np.array(unary.reshape(num_labels, -1), order="C"))
    if gaussian is not None:
        sigma_xy, compat = gaussian
        crf.addPairwiseGaussian(sxy=sigma_xy, compat=compat, **kind)
    if bilateral is not None:
        sigma_xy, sigma_rgb, compat = bilateral
        crf.addPairwiseBilateral(
            sxy=sigma_xy, srgb=sigma_rgb, rgbim=np.array(img, order="C"), compat=compat, **kind
        )
    marginals: NDArray[np.float32] = np.array(crf.inference(num_iters), dtype=np.float32)
    return marginals.reshape(unary.shape)
