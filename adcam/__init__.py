"""adcam: pixel masks from image-level labels."""

import importlib

from adcam.version import __version__

__all__ = [
    "PseudoLabel",
    "PseudoLabeler",
    "__version__",
    "register_converter",
    "register_data_source",
    "register_method",
    "register_network",
]

_HOMES = {
    "PseudoLabel": "adcam.labeling.labeler",
    "PseudoLabeler": "adcam.labeling.labeler",
    "register_converter": "adcam.convert",
    "register_data_source": "adcam.data.sources",
    "register_method": "adcam.cams",
    "register_network": "adcam.models.networks",
}


def __getattr__(name: str) -> object:
    # Lazy, so that `import adcam` stays instant: all of them pull in torch.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'adcam' has no attribute {name!r}")
