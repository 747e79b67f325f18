"""The options of each method, without torch.

The methods of :mod:`adcam.cams` inherit their options from here. Commands and configs read them
before torch is loaded, and refuse at once an option that does not exist or a value out of range.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from adcam.errors import AdcamError, naming
from adcam.ops.layers import check_layers
from adcam.options import Section, from_section, setting, suggest

SIMILARITIES = ("resource_allocation", "cosine", "bhattacharyya", "overlap", "none")
NORMALIZATIONS = ("sinkhorn", "row", "column", "none")
_INITS = ("coupled", "cam")


@dataclass(frozen=True)
class ClassMapOptions(Section):
    """Options that all methods share which start from class maps.

    Attributes:
        negatives: What happens to negative class evidence: ``"shift"`` subtracts each map's
            minimum, which keeps the order of weak patches (a body scores low, but above the
            background), ``"relu"`` cuts it off, ``"keep"`` leaves the maps as they are, whatever
            ``rival_weight``.
        rival_weight: Share of the strongest other class of the image that is subtracted from a
            class map, in [0, 1); a larger share separates classes harder.
    """

    negatives: str = setting("shift", choices=("shift", "relu", "keep"))
    rival_weight: float = setting(0.5, at_least=0, below=1)


@dataclass(frozen=True)
class DiffusionOptions(ClassMapOptions):
    """Options of methods that spread a start along the patch-to-patch attention.

    Attributes:
        init: Where the diffusion starts: ``"coupled"`` is the class maps times the class token's
            attention (TS-CAM's coupling, arXiv 2103.14862), ``"cam"`` the class maps alone.
        layers: Blocks whose patch-to-patch attention is averaged; see
            :func:`adcam.ops.token_attention.resolve_layers`.
        cls_layers: Blocks whose class-token attention is averaged for the coupled start. More
            blocks: wider, and less specific to the class.
    """

    init: str = setting("coupled", choices=_INITS)
    layers: str | tuple[int, ...] = "all"
    cls_layers: str | tuple[int, ...] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_layers(self, "layers", "cls_layers")


def _check_layers(section: Section, *names: str) -> None:
    for name in names:
        try:
            check_layers(getattr(section, name), name)
        except ValueError as error:
            raise AdcamError(str(error)) from error


@dataclass(frozen=True)
class TransCAMOptions(DiffusionOptions):
    """Options of :class:`adcam.cams.TransCAMForm`, which starts without the class token."""

    init: str = setting("cam", choices=_INITS)


@dataclass(frozen=True)
class CLIPESOptions(DiffusionOptions):
    """Options of :class:`adcam.cams.CLIPESForm`.

    Attributes:
        num_steps: Powers of the transition; more spreads further.
        box_threshold: Activation outside the bounding boxes of what exceeds this share of the
            range of a map is dropped before diffusion (the paper's 0.4); a larger share drops more,
            ``None`` keeps everything.
    """

    layers: str | tuple[int, ...] = "last:2/3"
    num_steps: int = setting(2, at_least=0)
    box_threshold: float | None = setting(None, at_least=0, below=1)


@dataclass(frozen=True)
class ADCAMOptions(DiffusionOptions):
    """Options of :class:`adcam.cams.ADCAM`.

    Attributes:
        similarity: How two patches' attentions are compared: ``"resource_allocation"``,
            ``"cosine"``, ``"bhattacharyya"``, ``"overlap"`` or ``"none"``.
        power: Exponent of the similarity; larger cuts links between unlike patches harder.
        normalize: ``"sinkhorn"``, ``"row"`` or ``"column"``.
        num_steps: Diffusion steps; more spreads further. ``None`` with ``alpha`` is the limit of
            infinitely many.
        alpha: Restart: share of the diffused map in each step, in [0, 1]; ``None`` for none.
        background_weight: How much the background that diffuses beside the classes counts against
            them; a larger weight lowers a map more where background arrives. 0 leaves it out. With
            ``rival_weight=0`` each class has its own background, without the other classes.
        clip_quantile: Quantile of each refined map at which its largest values are cut off, in
            (0, 1]. 1 cuts nothing; a smaller one gives more patches the top score.
        artifact_ratio: Share of the image's median agreement with the patches around it below which
            a patch is taken out of the diffusion and filled in afterwards
            (:mod:`adcam.ops.artifact_patches`), in [0, 1]. A larger share takes out more; 0 keeps
            every patch.
        walk: ``"refined"`` diffuses along the attention refined by common neighbours;
            ``"two_hop"`` is the quick form, in which maps walk to a neighbour and on to one of
            those who attend to it (:mod:`adcam.ops.two_hop_walk`). ``similarity``, ``power``,
            ``normalize``, ``num_steps``, ``alpha`` and ``artifact_ratio`` play no part in it.
        two_hop_steps: Number of steps of the quick form; more spreads further.
        exact: Whether a GPU refines in the precision of float32; otherwise it multiplies float16
            with sums in float32. A CPU is always exact.
        color_steps: Number of steps in which the maps spread along the colours of the image, on a
            grid four times finer than the patches (:mod:`adcam.ops.color_diffusion`). More steps
            smooth more; 0 leaves the maps as they are.
    """

    similarity: str = setting("resource_allocation", choices=SIMILARITIES)
    power: float = setting(2.0, at_least=0)
    normalize: str = setting("sinkhorn", choices=NORMALIZATIONS)
    num_steps: int | None = setting(2, at_least=0)
    alpha: float | None = setting(None, at_least=0, at_most=1)
    layers: str | tuple[int, ...] = "last:1/2"
    cls_layers: str | tuple[int, ...] = "last:1/3"
    background_weight: float = setting(0.35, at_least=0)
    clip_quantile: float = setting(1.0, above=0, at_most=1)
    artifact_ratio: float = setting(0.65, at_least=0, at_most=1)
    walk: str = setting("refined", choices=("refined", "two_hop"))
    two_hop_steps: int = setting(1, at_least=0)
    exact: bool = False
    color_steps: int = setting(10, at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps is None and self.alpha is None:
            raise AdcamError("num_steps=None is the limit of a walk with restart: give alpha too")
        if self.num_steps is None and self.alpha == 1:
            raise AdcamError("alpha must be below 1 where num_steps=None, got 1")


@dataclass(frozen=True)
class RefinedOptions(Section):
    """Options of :class:`adcam.cams.Refined`.

    Attributes:
        num_steps: Number of diffusion steps; more spreads further. 0 leaves the probabilities as
            they are, and needs no attention between patches.
        layers: Blocks whose patch-to-patch attention is averaged.
        artifact_ratio: As for AD-CAM: a larger share takes more patches out of the diffusion, and
            fills them in afterwards; 0 keeps every patch.
        color_steps: Number of steps in which the maps spread along the colours of the image, on a
            grid four times finer than the patches (:mod:`adcam.ops.color_diffusion`). More steps
            smooth more; 0 leaves the maps as they are.
    """

    num_steps: int = setting(1, at_least=0)
    layers: str | tuple[int, ...] = "last:1/2"
    artifact_ratio: float = setting(0.65, at_least=0, at_most=1)
    color_steps: int = setting(10, at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_layers(self, "layers")


METHOD_OPTIONS: Mapping[str, type[Section]] = MappingProxyType(
    {
        "cam": ClassMapOptions,
        "ts_cam": ClassMapOptions,
        "transcam_form": TransCAMOptions,
        "mctformer_form": DiffusionOptions,
        "clip_es_form": CLIPESOptions,
        "ad_cam": ADCAMOptions,
        "refined": RefinedOptions,
    }
)
"""The options of each method by its name, without those that a program registers."""


DEFAULT_RULES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ad_cam": ("steepest:0.56", "voc-animals train, ad_cam at 448"),
        "refined": ("steepest:0.52", "voc-animals train, refined at 448"),
    }
)
"""Where background ends by default, and what that was chosen on, by the method of the maps.

Maps of the other methods are made as AD-CAM's are, and take its rule.
"""


def known_methods() -> Mapping[str, type]:
    """The methods, or their options alone where no program has loaded the methods.

    Whoever registers a method loads them, so that none is missed.
    """
    cams = sys.modules.get("adcam.cams")
    return getattr(cams, "METHODS", METHOD_OPTIONS)


def check_method(method: str, options: Mapping[str, Any], where: str) -> None:
    """Refuse an unknown method, or options that it does not have.

    Raises:
        AdcamError: The method or an option is unknown, or a value has the wrong type or range; the
            message begins with ``where``.
    """
    methods = known_methods()
    with naming(where):
        if method not in methods:
            raise AdcamError(f"unknown method {method!r}{suggest(method, methods)}")
        from_section(methods[method], options, method)
