"""The networks that a config or a classifier file names by their ``kind``."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from adcam.errors import AdcamError
from adcam.models.mctformer import MCTformer
from adcam.models.nonlocal_cam import NonlocalCAM
from adcam.models.refined_cam import RefinedCAM
from adcam.models.token_cam import TokenCAM
from adcam.options import check_choice, check_options

DEFAULT_KIND = "token_cam"
"""The kind of a network where none is given."""

_OFFERS = ("depth", "patch_size", "pixel_stats", "token_maps", "train_maps")
_NETWORKS: dict[str, Any] = {}
NETWORKS: Mapping[str, Any] = MappingProxyType(_NETWORKS)
"""The class of each network by its kind; :func:`register_network` adds to it."""


def register_network(kind: str, cls: type[nn.Module]) -> None:
    """Add a network, so that configs (``model.kind``) and classifier files know it by its kind.

    Args:
        kind: The name of the network, which must be new.
        cls: A ``torch.nn.Module`` that behaves as :class:`adcam.models.token_cam.TokenCAM`. Its
            constructor takes the keyword ``num_fg_classes``; its other parameters are the options
            of a config's ``model``, and their annotations are the types that are checked.

    Raises:
        AdcamError: If the kind is taken, or the class lacks something that a network must offer.

    Example:
        >>> class Small(TokenCAM):
        ...     def __init__(self, *, num_fg_classes: int, depth: int = 2) -> None:
        ...         super().__init__(
        ...             "deit_tiny_patch16_224",
        ...             num_fg_classes=num_fg_classes,
        ...             backbone_kwargs={"depth": depth, "embed_dim": 24, "num_heads": 3},
        ...         )
        >>> register_network("small", Small)
        >>> build_network("small", num_fg_classes=5, depth=1).depth
        1
    """
    if kind in _NETWORKS:
        raise AdcamError(f"there is a network {kind!r} already; networks: {sorted(_NETWORKS)}")
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise AdcamError(f"network {kind!r} must be a subclass of torch.nn.Module, got {cls!r}")
    missing = [name for name in _OFFERS if not hasattr(cls, name)]
    if "num_fg_classes" not in inspect.signature(cls).parameters:
        missing.append("the parameter num_fg_classes")
    if missing:
        raise AdcamError(f"network {kind!r} lacks {missing}; TokenCAM shows what they do")
    _NETWORKS[kind] = cls


def network_options(kind: str) -> dict[str, Any]:
    """Return the options of a network and their types.

    Args:
        kind: A key of :data:`NETWORKS`.

    Raises:
        AdcamError: If the kind is unknown.

    Example:
        >>> sorted(network_options("nonlocal_cam"))
        ['attention', 'backbone', 'backbone_kwargs', 'frozen_parts', 'out_stride', 'weights']
    """
    check_choice("model.kind", kind, NETWORKS)
    init = NETWORKS[kind].__init__
    hints = typing.get_type_hints(init)
    parameters = [name for name in inspect.signature(init).parameters if name != "self"]
    return {name: hints.get(name, Any) for name in parameters if name != "num_fg_classes"}


def build_network(
    kind: str = DEFAULT_KIND, *, num_fg_classes: int, **options: Any
) -> TokenCAM | NonlocalCAM:
    """Make a network by the name of its kind.

    Args:
        kind: A key of :data:`NETWORKS`.
        num_fg_classes: Number of foreground classes.
        **options: Further arguments of its class.

    Returns:
        The network; one that was registered from outside behaves as the two named here.

    Raises:
        AdcamError: If the kind or an option is unknown, an option is of another type, or the class
            refuses a value.
    """
    checked = check_network_options(kind, options)
    network: TokenCAM | NonlocalCAM = NETWORKS[kind](num_fg_classes=num_fg_classes, **checked)
    return network


def check_network_options(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a network converted to their types.

    Raises:
        AdcamError: If the kind or an option is unknown, or an option is of another type.
    """
    return check_options(options, network_options(kind), f"model (kind {kind!r})")


register_network("token_cam", TokenCAM)
register_network("nonlocal_cam", NonlocalCAM)
register_network("refined_cam", RefinedCAM)
register_network("mctformer", MCTformer)
