"""adcam: pixel masks from image-level labels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from adcam.errors import AdcamError
from adcam.version import __version__

if TYPE_CHECKING:
    from adcam.cams import register_method
    from adcam.convert import register_converter
    from adcam.data.sources import register_data_source
    from adcam.labeling.labeler import PseudoLabeler
    from adcam.labeling.pseudo_label import PseudoLabel
    from adcam.labeling.refine import refine, tokens_to_grid
    from adcam.models.attention_recorder import record_attention
    from adcam.models.networks import register_network

__all__ = [
    "AdcamError",
    "PseudoLabel",
    "PseudoLabeler",
    "__version__",
    "record_attention",
    "refine",
    "register_converter",
    "register_data_source",
    "register_method",
    "register_network",
    "tokens_to_grid",
]

# Where each name is defined. It is imported when it is first used, so that `import adcam` stays
# instant: all of them need torch.
_HOMES = {
    "PseudoLabel": "adcam.labeling.pseudo_label",
    "PseudoLabeler": "adcam.labeling.labeler",
    "record_attention": "adcam.models.attention_recorder",
    "refine": "adcam.labeling.refine",
    "register_converter": "adcam.convert",
    "register_data_source": "adcam.data.sources",
    "register_method": "adcam.cams",
    "register_network": "adcam.models.networks",
    "tokens_to_grid": "adcam.labeling.refine",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'adcam' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
