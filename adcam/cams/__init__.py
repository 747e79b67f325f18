"""Methods that turn a classifier's token maps into class maps, and the table of their names."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from adcam.cams.ad_cam import ADCAM
from adcam.cams.cam import CAM
from adcam.cams.forms import CLIPESForm, MCTformerForm, TransCAMForm
from adcam.cams.refined import Refined
from adcam.cams.ts_cam import TSCAM
from adcam.errors import AdcamError
from adcam.options import from_section, suggest
from adcam.structures import TokenMaps

__all__ = [
    "ADCAM",
    "CAM",
    "METHODS",
    "TSCAM",
    "CLIPESForm",
    "MCTformerForm",
    "Method",
    "Refined",
    "TransCAMForm",
    "build_method",
    "register_method",
]


class Method(Protocol):
    """A frozen dataclass of options that turns token maps into class maps.

    Where it has an option ``color_steps`` above 0, its maps, fused over scales and views, are then
    spread along the colours of the image (:func:`adcam.cams.fuse.fuse_batch`).
    """

    def layer_sets(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """Return the sets of block indices whose patch-to-patch attention the method reads."""
        ...

    def __call__(self, maps: TokenMaps, class_ids: Tensor) -> Tensor:
        """Return (B, K, h, w) maps of class ids (B, K), not yet scaled."""
        ...


_METHODS: dict[str, type[Method]] = {
    "cam": CAM,
    "ts_cam": TSCAM,
    "transcam_form": TransCAMForm,
    "mctformer_form": MCTformerForm,
    "clip_es_form": CLIPESForm,
    "ad_cam": ADCAM,
    "refined": Refined,
}
METHODS: Mapping[str, type[Method]] = MappingProxyType(_METHODS)
"""The class of each method by its name; :func:`register_method` adds to it."""


def register_method(name: str, cls: Callable[..., Method]) -> None:
    """Add a method, so that configs, commands and ``build_method`` know it by its name.

    Args:
        name: The name of the method, which must be new.
        cls: A frozen dataclass whose fields are the options and that behaves as :class:`Method`.
            The annotations of its fields are the types that options are checked against.

    Raises:
        AdcamError: If the name is taken, or the class is not such a dataclass.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Squared:
        ...     weight: float = 1.0
        ...
        ...     def layer_sets(self, depth):
        ...         return ()
        ...
        ...     def __call__(self, maps, class_ids):
        ...         return self.weight * CAM()(maps, class_ids) ** 2
        >>> register_method("squared", Squared)
        >>> build_method("squared", weight=0.5)
        Squared(weight=0.5)
    """
    if name in _METHODS:
        raise AdcamError(f"there is a method {name!r} already; methods: {sorted(_METHODS)}")
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and hasattr(cls, "layer_sets")):
        raise AdcamError(
            f"method {name!r} must be a dataclass with layer_sets() and __call__(), got {cls!r}"
        )
    _METHODS[name] = typing.cast("type[Method]", cls)


def build_method(name: str, **options: Any) -> Method:
    """Make a method by its name.

    Args:
        name: A key of :data:`METHODS`.
        **options: Attributes of the method's class.

    Raises:
        AdcamError: If the name is unknown, or an option is unknown, of another type or out of its
            range.

    Example:
        >>> build_method("cam", negatives="relu")
        CAM(negatives='relu', rival_weight=0.5)
    """
    if name not in METHODS:
        raise AdcamError(f"unknown method {name!r}{suggest(name, METHODS)}")
    return from_section(METHODS[name], options, name)
