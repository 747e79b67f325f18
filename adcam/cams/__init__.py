"""Methods that turn a classifier's token maps into class maps: one file each, one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from adcam.cams.ad_cam import ADCAM
from adcam.cams.cam import CAM
from adcam.cams.forms import CLIPESForm, MCTformerForm, TransCAMForm
from adcam.cams.ts_cam import TSCAM
from adcam.errors import AdcamError
from adcam.structures import TokenMaps

__all__ = [
    "ADCAM",
    "CAM",
    "METHODS",
    "TSCAM",
    "CLIPESForm",
    "MCTformerForm",
    "Method",
    "TransCAMForm",
    "build_method",
]


class Method(Protocol):
    """A frozen dataclass of options that maps token maps to class maps."""

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """Sets of block indices whose patch-to-patch attention the method reads."""
        ...

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """(B, K, h, w) maps of class ids (B, K), not yet scaled."""
        ...


METHODS: Mapping[str, Any] = {
    "cam": CAM,
    "ts_cam": TSCAM,
    "transcam_form": TransCAMForm,
    "mctformer_form": MCTformerForm,
    "clip_es_form": CLIPESForm,
    "ad_cam": ADCAM,
}
"""The class of each method by its name."""


def build_method(name: str, **options: Any) -> Method:
    """Make a method by name.

    Args:
        name: A key of :data:`METHODS`.
        **options: Attributes of the method's class.

    Raises:
        AdcamError: If the name or an option is unknown.
    """
    if name not in METHODS:
        raise AdcamError(f"unknown method {name!r}; methods: {sorted(METHODS)}")
    cls = METHODS[name]
    legal = cls.__dataclass_fields__
    unknown = sorted(options.keys() - legal.keys())
    if unknown:
        raise AdcamError(f"{name} has no option {unknown}; options: {sorted(legal)}")
    method: Method = cls(**options)
    return method
