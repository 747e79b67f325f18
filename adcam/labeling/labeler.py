"""From one image to its class maps and mask: the whole pipeline as a Python object."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from adcam.cams import build_method
from adcam.data.images import fit_pixels, read_image
from adcam.data.png import write_mask
from adcam.data.sources import build_classes
from adcam.errors import AdcamError
from adcam.labeling.map_maker import (
    Network,
    compile_mlps,
    compute_batch_maps,
    compute_batch_scores,
    compute_scores,
    find_layer_sets,
    make_inputs,
    resolve_device,
    run_batch,
)
from adcam.labeling.mask_maker import Masking, resize_maps
from adcam.masks.background import BackgroundRule, parse_rule
from adcam.masks.crf import CRF_BACKENDS, CRF_PARAMS
from adcam.models.classifier_file import load_classifier
from adcam.ops.dense_crf import available_backends
from adcam.report.figures import overlay_mask, side_by_side
from adcam.settings import TestViews
from adcam.structures import ClassMaps, ClassSet, PseudoMask, TokenMaps

__all__ = [
    "DEFAULT_RULE",
    "DTYPES",
    "LabelerOptions",
    "PseudoLabel",
    "PseudoLabeler",
    "hash_network",
    "options_from_config",
    "resolve_device",
]

CRF_CHOICES = ("none", *CRF_BACKENDS)
DTYPES = ("float32", "bfloat16", "float16")

DEFAULT_RULE = BackgroundRule("constant", 0.58, "voc-animals train, ad_cam at 448")
"""Background rule where none is given, with the split, method and scale it was chosen on."""


@dataclass(frozen=True)
class LabelerOptions:
    """Every choice between the classifier and the mask; all of them change the result.

    Attributes:
        method: Key of :data:`adcam.cams.METHODS`.
        method_options: Options of the method, e.g. ``{"power": 3.0}``.
        views: Scales and mirroring.
        rule: Where background ends (:mod:`adcam.masks.background`).
        two_threshold: ``(low, high)`` background scores in place of ``rule``: what they disagree
            on becomes 255 (:mod:`adcam.masks.confident`).
        crf: ``"none"``, or who computes the dense CRF: ``"lattice"`` (ours, on the CPU),
            ``"lattice-gpu"`` (ours, on the network's GPU) or ``"pydensecrf"``.
        crf_params: Key of :data:`adcam.masks.crf.CRF_PARAMS`.
        dtype: Of the network: ``"float32"``, or ``"bfloat16"``/``"float16"`` by autocast, faster
            on a GPU and a little less exact.
        compile: Compile the network's MLPs with ``torch.compile``, in every process that runs it:
            seconds to half a minute before the first image, and the last bits change.
        label_threshold: Where no labels are given, classes with at least this probability are
            taken as present. Larger finds fewer.
        max_pixels: Larger images are labelled at this many pixels, and their masks enlarged
            (nearest). The token grid is far coarser, so that only a CRF would see the difference;
            time and memory stay bounded whatever the camera.

    Raises:
        AdcamError: A value is not legal.
    """

    method: str = "ad_cam"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    views: TestViews = field(default_factory=TestViews)
    rule: BackgroundRule = DEFAULT_RULE
    two_threshold: tuple[float, float] | None = None
    crf: str = "none"
    crf_params: str = "toco"
    dtype: str = "float32"
    compile: bool = False
    label_threshold: float = 0.5
    max_pixels: int = 1 << 22

    def __post_init__(self) -> None:
        build_method(self.method, **self.method_options)
        _check_choice("crf", self.crf, CRF_CHOICES)
        _check_choice("crf_params", self.crf_params, tuple(CRF_PARAMS))
        _check_choice("dtype", self.dtype, DTYPES)
        if self.two_threshold is not None:
            low, high = self.two_threshold
            if not 0 <= low <= high <= 1:
                raise AdcamError(f"two_threshold must be 0 <= low <= high <= 1, got {low}, {high}")
        if not 0 <= self.label_threshold <= 1:
            raise AdcamError(f"label_threshold must lie in [0, 1], got {self.label_threshold}")
        if self.max_pixels < 1:
            raise AdcamError(f"max_pixels must be at least 1, got {self.max_pixels}")


def options_from_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Read the sections ``cam`` and ``mask`` of a config as options of a labeler.

    ``cam`` holds ``method``, ``method_options``, ``scales``, ``flip``, ``keep_ratio``, ``dtype``,
    ``compile`` and ``max_pixels``; ``mask`` holds ``rule`` (text), ``chosen_on``,
    ``two_threshold``, ``crf``, ``crf_params`` and ``label_threshold``. Every key may be absent.

    Returns:
        Keyword arguments of :class:`LabelerOptions`, those that the config gives.

    Raises:
        AdcamError: A section holds another key, or a value is not legal.
    """
    cam, mask = dict(cfg.get("cam", {})), dict(cfg.get("mask", {}))
    legal = {
        "cam": ("method", "method_options", "dtype", "compile", "max_pixels", *_names(TestViews)),
        "mask": ("rule", "chosen_on", "two_threshold", "crf", "crf_params", "label_threshold"),
    }
    for name, section in (("cam", cam), ("mask", mask)):
        if unknown := sorted(section.keys() - set(legal[name])):
            raise AdcamError(f"config section {name!r} has no {unknown}; keys: {legal[name]}")
    views = {key: cam.pop(key) for key in _names(TestViews) if key in cam}
    if "scales" in views:
        views["scales"] = tuple(views["scales"])
    chosen_on = mask.pop("chosen_on", "given")
    options = {**cam, **mask}
    if views:
        options["views"] = TestViews(**views)
    if "rule" in mask:
        options["rule"] = parse_rule(str(mask["rule"]), chosen_on=chosen_on)
    if mask.get("two_threshold") is not None:
        options["two_threshold"] = tuple(mask["two_threshold"])
    return options


@dataclass(frozen=True, eq=False)
class PseudoLabel:
    """What a labeler says about one image.

    Attributes:
        img: RGB uint8 (h, w, 3), the image as it was labelled: at its own size, or smaller if it
            has more than ``max_pixels`` pixels.
        class_set: The classes.
        class_maps: Maps of the present classes, (K, h, w).
        pseudo_mask: The mask at the image's own size (H, W), with the rule that made it.
        probabilities: Of every class, float32 (C,).
    """

    img: np.ndarray
    class_set: ClassSet
    class_maps: ClassMaps
    pseudo_mask: PseudoMask
    probabilities: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """uint8 (H, W) of mask values: 0 = background, 255 = uncertain."""
        return self.pseudo_mask.mask

    @cached_property
    def maps(self) -> dict[str, np.ndarray]:
        """Score map of each present class by name, float32 (H, W) in [0, 1]."""
        score_maps = resize_maps(self.class_maps.score_maps, self.mask.shape)
        return {
            self.class_set.classes[i]: score_map
            for i, score_map in zip(self.class_maps.class_ids, score_maps, strict=True)
        }

    @property
    def scores(self) -> dict[str, float]:
        """Probability of every class by name, whether it was taken as present or not."""
        return dict(zip(self.class_set.classes, self.probabilities.tolist(), strict=True))

    def save(self, path: str | Path) -> None:
        """Write the mask as an 8-bit palette PNG, atomically.

        Raises:
            OSError: The file cannot be written.
        """
        write_mask(path, self.mask, self.class_set.palette)

    def show(self) -> Image.Image:
        """The image beside itself under the mask; a notebook displays what is returned."""
        height, width = self.img.shape[:2]
        mask = np.asarray(
            Image.fromarray(self.mask).resize((width, height), Image.Resampling.NEAREST)
        )
        overlay = overlay_mask(self.img, mask, self.class_set.palette)
        return Image.fromarray(side_by_side([self.img, overlay]))

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.show().save(buffer, format="PNG")
        return buffer.getvalue()


class PseudoLabeler:
    """Turns images with image-level labels into class maps and masks.

    Example:
        labeler = PseudoLabeler.from_checkpoint("classifier.safetensors", crf="lattice")
        label = labeler("dog.jpg", labels=["dog"])
        label.save("dog.png")

    Attributes:
        network: The classifier, on ``device`` and in eval mode.
        class_set: Its classes.
        options: Every other choice.
        device: Where the network runs.
        masking: From maps to a mask, by the same options.
    """

    def __init__(
        self,
        network: Network,
        class_set: ClassSet,
        *,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> None:
        """Put a classifier to work.

        Args:
            network: The classifier; it is moved to ``device``.
            class_set: Its classes, in the order of its outputs.
            device: E.g. ``"cpu"``, ``"cuda:1"``; ``None`` takes a GPU if there is one.
            **options: Attributes of :class:`LabelerOptions`; ``rule`` also as text
                (``"0.35"``, ``"power:4"``, ``"otsu"``).

        Raises:
            AdcamError: An option is unknown or not legal, the device does not exist, or the CRF
                backend cannot run here.
        """
        legal = _names(LabelerOptions)
        if unknown := sorted(options.keys() - set(legal)):
            raise AdcamError(f"PseudoLabeler has no option {unknown}; options: {list(legal)}")
        if isinstance(options.get("rule"), str):
            options["rule"] = parse_rule(options["rule"])
        self.options = LabelerOptions(**options)
        self.class_set = class_set
        self.device = resolve_device(device)
        crf = self.options.crf
        if crf == "lattice-gpu" and self.device.type == "cpu":
            raise AdcamError(
                "crf 'lattice-gpu' computes on the GPU of the network, but the device is "
                f"{str(self.device)!r}; take 'lattice'"
            )
        if crf == "pydensecrf" and (reason := available_backends()[crf]):
            raise AdcamError(f"the CRF backend {crf!r} cannot run here: {reason}")
        self.masking = Masking(
            self.options.rule,
            self.options.two_threshold,
            crf,
            self.options.crf_params,
            class_set.mask_values,
            str(self.device) if crf == "lattice-gpu" else "cpu",
        )
        self.weights_hash = hash_network(network)
        self.network = network
        if isinstance(network, torch.nn.Module):
            network.to(self.device).eval()
        self._method = build_method(self.options.method, **self.options.method_options)
        self._layer_sets = find_layer_sets(self._method, network)
        self._dtype: torch.dtype = getattr(torch, self.options.dtype)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, device: str | torch.device | None = None, **options: Any
    ) -> PseudoLabeler:
        """Load ``classifier.safetensors`` of ``adcam train``.

        Args:
            path: The file.
            device: As for the class.
            **options: Attributes of :class:`LabelerOptions`.

        Raises:
            AdcamError: The file is missing or no classifier, or an option is not legal.
        """
        loaded = load_classifier(path)
        return cls(loaded.network, loaded.class_set, device=device, **options)

    @classmethod
    def from_imagenet(
        cls,
        model_name: str,
        classes: Sequence[str],
        *,
        weights: str | None = "timm",
        device: str | torch.device | None = None,
        **options: Any,
    ) -> PseudoLabeler:
        """Use an ImageNet ViT with its own head; nothing is trained.

        Args:
            model_name: timm name, e.g. ``"deit_tiny_patch16_224"``.
            classes: As for :class:`adcam.models.imagenet_vit.ImageNetViT`: ``"tabby cat"``,
                ``"dog"``, ``"n02123045"``, ``"big cat=lion|tiger"``.
            weights: ``"timm"``, a path to weights with their head, or ``None`` for random.
            device: As for the class.
            **options: Attributes of :class:`LabelerOptions`.

        Raises:
            AdcamError: The model, a class, the weights or an option does not exist or fit.
        """
        from adcam.models.imagenet_vit import ImageNetViT

        network = ImageNetViT(model_name, classes=classes, weights=weights)
        return cls(network, build_classes(network.classes), device=device, **options)

    def __call__(
        self, image: str | Path | np.ndarray | Image.Image, labels: Sequence[str] | None = None
    ) -> PseudoLabel:
        """Label one image.

        Args:
            image: A path, RGB uint8 (H, W, 3), or a Pillow image.
            labels: Names of the classes in the image; ``[]`` for none of them. ``None`` takes
                those that the classifier finds (``label_threshold``).

        Returns:
            Maps, mask and scores; with no class the mask is all background.

        Raises:
            ImageError: The image cannot be read.
            AdcamError: A label is no class, or the array is no RGB image.
        """
        img = _to_rgb(image)
        class_ids = None if labels is None else self.find_class_ids(labels)
        small = fit_pixels(img, self.options.max_pixels)
        passes = self.run_network(small)
        probabilities = compute_scores(passes)
        if class_ids is None:
            class_ids = self.predict_class_ids(probabilities)
        maps = self.compute_maps(passes, class_ids, (small.shape[0], small.shape[1]))
        mask = self.compute_mask(maps, small, (img.shape[0], img.shape[1]))
        return PseudoLabel(small, self.class_set, maps, mask, probabilities)

    def find_class_ids(self, labels: Sequence[str]) -> tuple[int, ...]:
        """Ascending ids of class names.

        Raises:
            AdcamError: A name is unknown; the message lists the legal ones.
        """
        names = [labels] if isinstance(labels, str) else list(labels)
        classes = self.class_set.classes
        if unknown := [name for name in names if name not in classes]:
            raise AdcamError(f"unknown class {unknown[0]!r}; classes are {', '.join(classes)}")
        return tuple(sorted({classes.index(name) for name in names}))

    def predict_class_ids(self, probabilities: np.ndarray) -> tuple[int, ...]:
        """Ids of the classes (C,) with at least the probability ``label_threshold``."""
        return tuple(np.flatnonzero(probabilities >= self.options.label_threshold).tolist())

    def run_network(self, img: np.ndarray) -> list[TokenMaps]:
        """Token maps of every scale of RGB uint8 (h, w, 3): step one of a call."""
        return self.run_batch([self.make_inputs(img)])

    def make_inputs(self, img: np.ndarray) -> tuple[torch.Tensor, ...]:
        """What the network sees of an image (:func:`adcam.labeling.map_maker.make_inputs`)."""
        return make_inputs(self.network, img, self.options.views)

    def run_batch(self, inputs: Sequence[Sequence[torch.Tensor]]) -> list[TokenMaps]:
        """Token maps of images of equal input sizes (see :mod:`adcam.labeling.map_maker`)."""
        if self.options.compile:
            compile_mlps(self.network)  # here: a compiled module does not go to other processes
        return run_batch(
            self.network,
            inputs,
            self._layer_sets,
            flip=self.options.views.flip,
            device=self.device,
            dtype=self._dtype,
        )

    def compute_batch_scores(self, passes: Sequence[TokenMaps], num_images: int) -> np.ndarray:
        """Class probabilities of every image of a batch, (images, C) float32."""
        return compute_batch_scores(passes, num_images)

    def compute_maps(
        self, passes: Sequence[TokenMaps], class_ids: Sequence[int], hw: tuple[int, int]
    ) -> ClassMaps:
        """Maps of the present classes by the method, (K, h, w): step two."""
        return self.compute_batch_maps(passes, [class_ids], [hw])[0]

    def compute_batch_maps(
        self,
        passes: Sequence[TokenMaps],
        class_ids: Sequence[Sequence[int]],
        hws: Sequence[tuple[int, int]],
    ) -> list[ClassMaps]:
        """Maps of every image of a batch (:func:`adcam.labeling.map_maker.compute_batch_maps`)."""
        return compute_batch_maps(passes, class_ids, self._method, hws)

    def compute_mask(self, maps: ClassMaps, img: np.ndarray, ori_hw: tuple[int, int]) -> PseudoMask:
        """Mask at the size ``ori_hw`` from maps and image (h, w): step three."""
        return self.masking(maps, img, ori_hw)

    def describe(self) -> dict[str, Any]:
        """Everything that changes maps and masks, as JSON reads it back."""
        options = self.options
        two_threshold = options.two_threshold
        crf_params = asdict(CRF_PARAMS[options.crf_params])
        del crf_params["source"]
        description = {
            "network": type(self.network).__name__,
            "weights": self.weights_hash,
            # Which outputs of an ImageNet head count as each class; a trained head has one each.
            "class_groups": getattr(self.network, "class_groups", None),
            "classes": list(self.class_set.classes),
            "mask_values": list(self.class_set.mask_values),
            "device": self.device.type,
            "dtype": options.dtype,
            "compile": options.compile,
            "views": asdict(options.views),
            "method": options.method,
            "method_options": vars(self._method),
            "rule": str(options.rule) if two_threshold is None else "confident",
            "two_threshold": two_threshold,
            "chosen_on": options.rule.chosen_on if two_threshold is None else "given",
            "crf": options.crf,
            "crf_params": None
            if options.crf == "none"
            else {"name": options.crf_params, **crf_params},
            "label_threshold": options.label_threshold,
            "max_pixels": options.max_pixels,
        }
        as_json: dict[str, Any] = json.loads(json.dumps(description))
        return as_json


def hash_network(network: Network) -> str:
    """First 16 hex digits of the SHA-256 over names, types, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    state = network.state_dict() if isinstance(network, torch.nn.Module) else {}
    for name, tensor in sorted(state.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _to_rgb(image: str | Path | np.ndarray | Image.Image) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:  # over white, as read_image does
            rgba = upright.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            upright = Image.alpha_composite(white, rgba)
        return np.array(upright.convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise AdcamError(f"an image array must be RGB uint8 (H, W, 3), got {_shape_of(image)}")
    return image


def _shape_of(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


def _names(cls: Any) -> tuple[str, ...]:
    return tuple(item.name for item in fields(cls))


def _check_choice(name: str, value: str, legal: Sequence[str]) -> None:
    if value not in legal:
        raise AdcamError(f"{name} must be one of {list(legal)}, got {value!r}")
