"""adcam: pixel masks from image-level labels."""

from adcam.version import __version__

__all__ = ["PseudoLabel", "PseudoLabeler", "__version__"]


def __getattr__(name: str) -> object:
    # Lazy, so that `import adcam` stays instant: the labeler pulls in torch and timm.
    if name in ("PseudoLabel", "PseudoLabeler"):
        from adcam.labeling import labeler

        return getattr(labeler, name)
    raise AttributeError(f"module 'adcam' has no attribute {name!r}")
