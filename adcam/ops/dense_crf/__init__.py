"""Mean field of the fully connected CRF: label marginals that follow the edges of an image."""

from adcam.ops.dense_crf.interface import (
    MIN_PROB,
    DenseCRF,
    available_backends,
    dense_crf,
    dense_crf_batch,
)

__all__ = ["MIN_PROB", "DenseCRF", "available_backends", "dense_crf", "dense_crf_batch"]
