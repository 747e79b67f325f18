"""Mean field of the fully connected CRF: label marginals that follow the edges of an image."""

from adcam.ops.dense_crf.interface import MIN_PROB, available_backends, dense_crf

__all__ = ["MIN_PROB", "available_backends", "dense_crf"]
