"""Backend on pydensecrf, the Cython wrapper of Krähenbühl's C++ code (package pydensecrf2).

Imported when used: the package builds from source and does not build everywhere, so it is the
extra ``crf``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def not_supported_reasons() -> list[str]:
    """Why this backend cannot run here; nothing if it can."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError as error:
        return [f"{error}; install it with `pip install 'adcam[crf]'` (Python 3.10 to 3.12)"]
    return []


class MeanField:
    """An image and its kernels. pydensecrf ties its lattices to one number of labels: each
    inference builds them again.

    Args:
        img: (H, W, 3) uint8.
        gaussian: ``(sigma_xy, compat)`` or ``None``.
        bilateral: ``(sigma_xy, sigma_rgb, compat)`` or ``None``.
    """

    def __init__(
        self,
        img: NDArray[np.uint8],
        *,
        gaussian: tuple[float, float] | None,
        bilateral: tuple[float, float, float] | None,
    ) -> None:
        # The typed memory views of pydensecrf refuse read-only and non-contiguous arrays: hence
        # copies, here and below.
        self._img = np.array(img, order="C")
        self._gaussian = gaussian
        self._bilateral = bilateral

    def infer(self, unary: NDArray[np.float32], *, num_iters: int) -> NDArray[np.float32]:
        """Run mean field.

        Args:
            unary: (C, H, W) float32, ``-log`` of the probabilities.
            num_iters: Number of updates.

        Returns:
            (C, H, W) float32 marginals.
        """
        from pydensecrf.densecrf import DIAG_KERNEL, NORMALIZE_SYMMETRIC, DenseCRF2D

        num_labels, height, width = unary.shape
        kind = {"kernel": DIAG_KERNEL, "normalization": NORMALIZE_SYMMETRIC}
        crf = DenseCRF2D(width, height, num_labels)
        crf.setUnaryEnergy(np.array(unary.reshape(num_labels, -1), order="C"))
        if self._gaussian is not None:
            sigma_xy, compat = self._gaussian
            crf.addPairwiseGaussian(sxy=sigma_xy, compat=compat, **kind)
        if self._bilateral is not None:
            sigma_xy, sigma_rgb, compat = self._bilateral
            crf.addPairwiseBilateral(
                sxy=sigma_xy, srgb=sigma_rgb, rgbim=self._img, compat=compat, **kind
            )
        marginals: NDArray[np.float32] = np.array(crf.inference(num_iters), dtype=np.float32)
        return marginals.reshape(unary.shape)
