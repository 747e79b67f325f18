"""Every choice between a classifier and its masks, with the defaults, and as a config makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from adcam.errors import AdcamError
from adcam.masks.background import BackgroundRule, default_rule, parse_rule
from adcam.masks.crf import CRF_BACKENDS, CRF_PARAMS
from adcam.options import from_section
from adcam.settings import CamSettings, MaskSettings, Settings, TestViews


@dataclass(frozen=True)
class LabelerOptions:
    """Every choice between the classifier and the mask; all of them change the result.

    Attributes:
        method: The method that makes class maps, a key of :data:`adcam.cams.METHODS`.
        method_options: Options of the method, e.g. ``{"power": 3.0}``.
        views: The scales at which the network sees an image, and whether mirrored as well.
        rule: Where background ends (:mod:`adcam.masks.background`), also as text or a number
            (``"0.35"``, ``0.35``, ``"power:4"``, ``"otsu"``). ``None`` takes the rule that was
            chosen for the method (:func:`adcam.masks.background.default_rule`).
        two_threshold: ``(low, high)`` background scores in place of ``rule``: pixels that they
            disagree on become 255 (:mod:`adcam.masks.confident`).
        crf: ``"none"``, or the parameter set of a dense CRF that sharpens the edges of masks, a key
            of :data:`adcam.masks.crf.CRF_PARAMS`.
        crf_backend: What computes the CRF: ``"lattice"`` (ours, on the CPU), ``"lattice-gpu"``
            (ours, on the network's GPU), ``"pydensecrf"``, or ``"auto"``: ``"lattice-gpu"`` where
            the network runs on a GPU that has kernels for it, else ``"lattice"``.
        dtype: The precision of the network: ``"float32"``, or ``"bfloat16"``/``"float16"`` by
            autocast, faster on a GPU and a little less exact.
        compile: Whether to compile the network's MLPs with ``torch.compile``, in every process that
            runs it: seconds to half a minute before the first image, and the last bits change.
        label_threshold: The probability from which a class counts as present where no labels are
            given, one for all classes or one a class. Larger finds fewer. ``None`` takes those that
            the classifier file holds, or else 0.5.
        at_least_one: Whether the likeliest class counts as present where none reaches its threshold
            and no labels are given: for images that all show a class.
        max_pixels: Larger images are labelled at this many pixels, and their masks enlarged
            (nearest). The token grid is far coarser, so that only a CRF would see the difference;
            time and memory stay bounded whatever the camera.

    Raises:
        AdcamError: A value is not legal.
    """

    method: str = "ad_cam"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    views: TestViews = field(default_factory=TestViews)
    rule: BackgroundRule = None  # type: ignore[assignment]  # by the method, in __post_init__
    two_threshold: tuple[float, float] | None = None
    crf: str = "none"
    crf_backend: str = "auto"
    dtype: str = "float32"
    compile: bool = False
    label_threshold: float | tuple[float, ...] | None = None
    at_least_one: bool = False
    max_pixels: int = 1 << 22

    def __post_init__(self) -> None:
        given = vars(self)["rule"]
        rule = default_rule(self.method) if given is None else parse_rule(given)
        object.__setattr__(self, "rule", rule)
        if not isinstance(self.views, TestViews):
            raise AdcamError(
                "views must be an adcam.settings.TestViews, such as TestViews((448,), flip=True), "
                f"got {self.views!r}"
            )
        if self.crf in CRF_BACKENDS:
            raise AdcamError(
                f"crf={self.crf!r} names what computes the CRF; write crf='toco', "
                f"crf_backend={self.crf!r}, or another parameter set of {sorted(CRF_PARAMS)}"
            )
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        for kind in (CamSettings, MaskSettings):
            legal = {item.name for item in fields(kind)} - {"rule"}
            given = {name: value for name, value in values.items() if name in legal}
            from_section(kind, given, "labeler")


def options_from_settings(cam: CamSettings, mask: MaskSettings) -> dict[str, Any]:
    """Return sections of a config as keyword arguments of :class:`LabelerOptions`.

    Raises:
        AdcamError: The background rule is not legal.
    """
    options: dict[str, Any] = {
        "method": cam.method,
        "method_options": dict(cam.method_options),
        "views": cam.views,
        "two_threshold": mask.two_threshold,
        "crf": mask.crf,
        "crf_backend": mask.crf_backend,
        "dtype": cam.dtype,
        "compile": cam.compile,
        "label_threshold": mask.label_threshold,
        "at_least_one": mask.at_least_one,
        "max_pixels": cam.max_pixels,
    }
    if mask.rule is not None:
        options["rule"] = parse_rule(mask.rule, chosen_on=mask.chosen_on)
    return options


def refined_options(settings: Settings) -> dict[str, Any]:
    """Return the options of a labeler that labels with a refined classifier.

    Args:
        settings: Their section ``cam`` gives views and precision, ``refine`` steps and rule,
            ``mask`` everything else about masks.

    Raises:
        AdcamError: The background rule is not legal.
    """
    options = options_from_settings(settings.cam, settings.mask)
    rule = parse_rule(settings.refine.rule, chosen_on=settings.refine.chosen_on)
    steps = {"num_steps": settings.refine.num_steps}
    return options | {"method": "refined", "method_options": steps, "rule": rule}
