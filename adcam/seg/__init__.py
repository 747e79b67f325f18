"""Segmentation networks of mmsegmentation, trained on pseudo masks.

Importing a module of this package imports mmsegmentation: :mod:`adcam.training.segmenter` does it
when a command needs one. The import registers the parts that mmsegmentation lacks.
"""
