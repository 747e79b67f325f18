"""From one image to its class maps and mask: the whole pipeline as a Python object."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
import torch
from PIL import Image

from adcam.cams import METHODS, build_method
from adcam.cams.activation import DiffusionMethod
from adcam.data.images import (
    ImageError,
    convert_to_rgb,
    fit_hw,
    fit_pixels,
    read_image,
    read_image_hw,
)
from adcam.data.sources import build_classes
from adcam.errors import AdcamError, join_some
from adcam.files import to_plain
from adcam.labeling.device_steps import DeviceSteps
from adcam.labeling.executor import one_thread
from adcam.labeling.inputs import BATCH_SIZE, find_unread, read_in_groups
from adcam.labeling.labeler_options import LabelerOptions
from adcam.labeling.map_maker import MapMaker, Network
from adcam.labeling.mask_maker import MaskMaker, resize_mask
from adcam.labeling.pseudo_label import PseudoLabel, PseudoLabels
from adcam.labeling.steps import Decoded, Failed, Made, MaskMaking, Task, make
from adcam.masks.crf import CRF_PARAMS
from adcam.models.classifier_file import load_classifier
from adcam.ops.dense_crf import available_backends
from adcam.settings import TestViews
from adcam.structures import ClassMaps, ClassSet

if TYPE_CHECKING:
    from adcam.models.any_vit import AnyViT, Classes

ImageLike: TypeAlias = str | Path | np.ndarray | Image.Image
"""An image in any form: a file, an array, or an object of Pillow's."""

Labels: TypeAlias = Sequence[str] | None
"""Names of the classes in an image; ``None`` where they are not known."""

DEFAULT_LABEL_THRESHOLD = 0.5
"""The probability from which a class counts as present where nobody chose another."""


class PseudoLabeler:
    """Turns images with image-level labels into class maps and masks.

    Example:
        labeler = PseudoLabeler.from_checkpoint("classifier.safetensors", crf="toco")
        label = labeler("dog.jpg", labels=["dog"])
        label.save("dog.png")

    Attributes:
        network: The classifier, on ``device`` and in eval mode.
        class_set: Its classes.
        options: Every other choice.
        map_maker: Turns an image into class maps.
        mask_maker: Turns class maps into a mask.
        weights_hash: A hash of the classifier's weights.
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
            device: For example ``"cpu"`` or ``"cuda:1"``; ``None`` takes a GPU if there is one.
            **options: Attributes of :class:`LabelerOptions`.

        Raises:
            AdcamError: An option is unknown or not legal, the device does not exist, or the CRF
                backend cannot run here.
        """
        legal = [item.name for item in fields(LabelerOptions)]
        if unknown := sorted(options.keys() - set(legal)):
            raise AdcamError(f"PseudoLabeler has no option {unknown}; options: {legal}")
        self.options = LabelerOptions(**options)
        self.class_set = class_set
        if len(self.label_thresholds) != len(class_set.classes):
            raise AdcamError(
                f"label_threshold must be one number, or one for each of the "
                f"{len(class_set.classes)} classes, got {len(self.label_thresholds)}"
            )
        self.weights_hash = hash_network(network)
        self.network = network
        self.map_maker = MapMaker(
            network,
            [build_method(self.options.method, **self.options.method_options)],
            views=self.options.views,
            device=device,
            dtype=getattr(torch, self.options.dtype),
            compile=self.options.compile,
        )
        backend, crf_device = place_masks(self.device, self.options.crf, self.options.crf_backend)
        self.mask_maker = MaskMaker(
            self.options.rule,
            self.options.two_threshold,
            self.options.crf,
            backend,
            class_set.mask_values,
            crf_device,
        )

    def __repr__(self) -> str:
        names = join_some(self.class_set.classes)
        return (
            f"PseudoLabeler({self.network.name}: {names}; {self.options.method} on {self.device})"
        )

    @property
    def _has_lanes(self) -> bool:
        """Whether images of a list go through the lanes of a GPU."""
        return self.device.type != "cpu"

    @property
    def device(self) -> torch.device:
        """The device that the network runs on."""
        return self.map_maker.device

    def assign_device(self, device: str | torch.device) -> None:
        """Assign the network to another device.

        Args:
            device: For example ``"cuda"``. If this machine lacks it, the network stays where it is,
                and another machine moves it.
        """
        self.map_maker.device = torch.device(device)
        is_there = self.device.type != "cuda" or torch.cuda.is_available()
        if isinstance(self.network, torch.nn.Module) and is_there:
            self.network.to(self.device)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, *, device: str | torch.device | None = None, **options: Any
    ) -> PseudoLabeler:
        """Load ``classifier.safetensors`` of ``adcam train``.

        Args:
            path: The file.
            device: As for the class.
            **options: Attributes of :class:`LabelerOptions`. The defaults of ``views`` and
                ``label_threshold`` are what the file says, if it does; its thresholds were chosen
                at its views, and at others the probabilities differ.

        Raises:
            AdcamError: The file is missing or no classifier, or an option is not legal.
        """
        loaded = load_classifier(path)
        if "views" not in options:
            options["views"] = TestViews.from_description(loaded.views, path)
        if options.get("label_threshold") is None and loaded.label_thresholds is not None:
            options["label_threshold"] = loaded.label_thresholds.values
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

    @classmethod
    def from_timm(
        cls,
        model: torch.nn.Module | str,
        classes: Classes = None,
        *,
        weights: str | Path | None = "timm",
        multi_label: bool = False,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> PseudoLabeler:
        """Use any ViT of timm with its own head, trained by anybody on anything.

        Args:
            model: The network, which is frozen, made float32 and from then on takes images of any
                size; or a name of ``timm.list_models()``.
            classes: The name of each output, in their order; or from the names of some classes to
                their output or outputs; of ImageNet's outputs also names as for
                :meth:`from_imagenet`.
            weights: For a name: ``"timm"``, a path, or ``None`` for random.
            multi_label: Whether each output is a yes or no of its own (trained with a sigmoid).
            device: As for the class.
            **options: Attributes of :class:`LabelerOptions`.

        Raises:
            AdcamError: The network is no ViT whose attention can be read, a class is not among its
                outputs, or an option is not legal.
        """
        from adcam.models.any_vit import AnyViT, read_timm

        interface = replace(read_timm(model, weights), multi_label=multi_label)
        return cls._from_any(AnyViT(interface, classes=classes), device, options)

    @classmethod
    def from_transformers(
        cls,
        model: torch.nn.Module | str | Path,
        classes: Classes = None,
        *,
        image_processor: Any = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> PseudoLabeler:
        """Use any image classifier of Hugging Face's transformers that is a vision transformer.

        Args:
            model: A ``...ForImageClassification``, which is frozen and made float32, or the folder
                of one; nothing is fetched.
            classes: Some of the model's own labels (``config.id2label``), or as for
                :meth:`from_timm`; ``None`` for all labels.
            image_processor: Of a model object, what ``AutoImageProcessor.from_pretrained`` returns.
            device: As for the class.
            **options: Attributes of :class:`LabelerOptions`.

        Raises:
            AdcamError: transformers or a part of the folder is missing, the attention cannot be
                read, a class is not among the outputs, or an option is not legal.
        """
        from adcam.models.any_vit import AnyViT
        from adcam.models.transformers_vit import read_transformers

        interface = read_transformers(model, image_processor)
        return cls._from_any(AnyViT(interface, classes=classes), device, options)

    @classmethod
    def from_clip(
        cls,
        model: torch.nn.Module | str | Path,
        classes: Sequence[str],
        *,
        weights: str | Path | None = None,
        tokenizer: Any = None,
        image_processor: Any = None,
        backgrounds: Sequence[str] | None = None,
        prompt: str | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> PseudoLabeler:
        """Use CLIP: any class that text can name, with the start of CLIP-ES; nothing is trained.

        As in CLIP-ES, the start is not multiplied by the class token's attention; give
        ``method_options={"init": "coupled"}`` to do so.

        Args:
            model: The folder of a CLIP of transformers, or its ``CLIPModel``; or a name of
                ``open_clip.list_models()``, or a model of open_clip.
            classes: Texts, which are the names of the classes, or ``"person=person|people"``.
            weights: For a name of open_clip: the file of its weights, ``None`` for random.
            tokenizer: Of a model object, its tokenizer.
            image_processor: Of a ``CLIPModel``, its image processor.
            backgrounds: Texts that compete with the classes; ``None`` for those of CLIP-ES.
            prompt: The sentence around each text, with ``{}`` in its place; ``None`` for CLIP-ES's.
            device: As for the class.
            **options: Attributes of :class:`LabelerOptions`.

        Raises:
            AdcamError: A package, file or tokenizer is missing, the model is no CLIP with a ViT, a
                text is given twice, or an option is not legal.
        """
        from adcam.models import clip_text, transformers_vit

        is_name = isinstance(model, str) and not Path(model).is_dir()
        if isinstance(model, Path) or (not is_name and not hasattr(model, "encode_image")):
            clip = transformers_vit.read_transformers_clip(model, tokenizer, image_processor)
        else:
            clip = clip_text.read_open_clip(model, weights, tokenizer)
        network = clip_text.CLIPText(
            clip,
            classes,
            backgrounds=clip_text.BACKGROUNDS if backgrounds is None else backgrounds,
            prompt=prompt or clip_text.PROMPT,
        )
        method = METHODS.get(options.get("method", "ad_cam"))
        if method is not None and issubclass(method, DiffusionMethod):
            options["method_options"] = {"init": "cam", **options.get("method_options", {})}
        return cls._from_any(network, device, options)

    @classmethod
    def _from_any(
        cls, network: AnyViT, device: str | torch.device | None, options: dict[str, Any]
    ) -> PseudoLabeler:
        """A labeler of a foreign network, which may take images of one size alone."""
        if options.get("compile"):
            raise AdcamError("compile=True: class maps from gradients need a network as it is")
        if network.fixed_hw is not None:
            options.setdefault("views", TestViews((network.fixed_hw[0],), keep_ratio=False))
        return cls(network, build_classes(network.classes), device=device, **options)

    @overload
    def __call__(self, image: ImageLike, labels: Labels = None) -> PseudoLabel: ...

    @overload
    def __call__(
        self,
        image: list[Any] | tuple[ImageLike, ...],
        labels: Sequence[Labels] | None = None,
    ) -> PseudoLabels: ...

    def __call__(
        self, image: ImageLike | list[Any] | tuple[ImageLike, ...], labels: Any = None
    ) -> PseudoLabel | PseudoLabels:
        """Label one image, or a list of images.

        Images of a list that the network sees at equal sizes share a batch on a GPU.

        Args:
            image: A path, an array or a Pillow image; or a list of them. Arrays are (H, W, 3) RGB,
                (H, W, 4) with transparency or (H, W) gray, of 8 or 16 bits; they and Pillow images
                are converted as :func:`adcam.data.images.read_image` converts a file.
            labels: Names of the classes in the image; ``[]`` for none of them. ``None`` takes
                those that the classifier finds (``label_threshold``). For a list of images, a list
                with the labels of each.

        Returns:
            Maps, mask and scores; with no class the mask is all background. A list for a list,
            which a notebook shows as a gallery.

        Raises:
            ImageError: The image cannot be read.
            AdcamError: A label is no class, the array is no image, or the network was put into
                training mode since.
        """
        if _is_in_training(self.network):
            raise AdcamError(
                "the network is in training mode, in which dropout makes every pass different: "
                "call its eval() first"
            )
        if not isinstance(image, list | tuple):
            return self._label(image, labels)
        each = [None] * len(image) if labels is None else labels
        # Neither a text nor names without an order are the labels of each image.
        is_list = hasattr(each, "__len__") and not isinstance(each, str | Mapping | Set)
        if not is_list or len(each) != len(image):
            raise AdcamError(
                f"a list of {len(image)} images needs a list with the labels of each, got "
                f"{labels!r:.80}"
            )
        if self._has_lanes:
            return PseudoLabels(self._label_in_lanes(image, each))
        return PseudoLabels(self._label(*one) for one in zip(image, each, strict=True))

    def _label(self, image: ImageLike, labels: Labels) -> PseudoLabel:
        """Label an image by itself."""
        given = None if labels is None else self.find_class_ids(labels)
        img = convert_image(image)
        small = fit_pixels(img, self.options.max_pixels)
        passes = self.map_maker.run([small])
        (scores,) = passes.compute_scores()
        class_ids = self.predict_class_ids(scores) if given is None else given
        (maps,) = self.map_maker.compute_maps(passes, [class_ids], [small])
        mask = self.mask_maker(maps, small, (img.shape[0], img.shape[1]))
        return PseudoLabel(small, self.class_set, maps, mask, scores)

    def _label_in_lanes(
        self, images: Sequence[ImageLike], labels: Sequence[Labels]
    ) -> list[PseudoLabel]:
        """Label images on a GPU as ``adcam generate`` does, those of equal input sizes together."""
        given = [None if names is None else self.find_class_ids(names) for names in labels]
        shown: dict[int, np.ndarray] = {}
        resizer, max_pixels = self.map_maker.resizer, self.options.max_pixels

        def find_sizes(index: int) -> Hashable:
            return find_unread(
                lambda: resizer.find_sizes(fit_hw(_find_hw(images[index]), max_pixels))
            )

        def read(index: int) -> Decoded:
            img = convert_image(images[index])
            small = shown[index] = fit_pixels(img, max_pixels)
            task = Task(index, f"image {index}", Path(), given[index])
            return Decoded(task, small, (img.shape[0], img.shape[1]), resizer(small), {})

        making = MaskMaking(self.mask_maker)
        results: dict[int, PseudoLabel] = {}
        indices = range(len(images))
        with (
            one_thread(),
            closing(read_in_groups(indices, find_sizes, read, batch_size=BATCH_SIZE)) as decoded,
        ):
            for batch in DeviceSteps(self, making, batch_size=BATCH_SIZE).run(decoded):
                for image in batch:
                    made = image if isinstance(image, Made) else make(image, making)
                    if isinstance(made, Failed):
                        raise AdcamError(f"{made.task.img_id}: {made.error}")
                    index, found = made.task.index, made.image
                    # A copy: the memory that a GPU writes to is scarce.
                    maps = ClassMaps(found.maps.class_ids, found.maps.score_maps.copy())
                    mask = resize_mask(made.result.mask, found.ori_hw).copy()
                    results[index] = PseudoLabel(
                        shown[index],
                        self.class_set,
                        maps,
                        replace(made.result, mask=mask),
                        found.scores.copy(),
                    )
        return [results[index] for index in range(len(images))]

    def find_class_ids(self, labels: Sequence[str]) -> tuple[int, ...]:
        """Return the ascending ids of class names.

        Raises:
            AdcamError: A name is unknown; the message lists the legal ones. Or there are no names,
                as in ``{"cat": 0, "dog": 1}``, where a 0 would mean no cat.
        """
        if isinstance(labels, Mapping) or not isinstance(labels, Iterable):
            raise AdcamError(f"labels must be a list of class names, got {labels!r:.80}")
        names = [labels] if isinstance(labels, str) else list(labels)
        classes = self.class_set.classes
        if unknown := [name for name in names if name not in classes]:
            raise AdcamError(f"unknown class {unknown[0]!r}; classes are {', '.join(classes)}")
        return tuple(sorted({classes.index(name) for name in names}))

    def predict_class_ids(self, scores: np.ndarray) -> tuple[int, ...]:
        """Return the ids of the classes whose score is at least their threshold.

        If no class reaches its threshold and there must be one (``at_least_one``), it is the class
        whose odds come nearest to those of its threshold.

        Args:
            scores: The probability of every class, (C,).
        """
        return find_present(scores, self.label_thresholds, at_least_one=self.options.at_least_one)

    @property
    def label_thresholds(self) -> tuple[float, ...]:
        """The probability from which each class counts as present."""
        given = self.options.label_threshold
        if given is None:
            given = DEFAULT_LABEL_THRESHOLD
        if isinstance(given, int | float):
            return (given,) * len(self.class_set.classes)
        return tuple(given)

    def describe_maps(self) -> dict[str, Any]:
        """Describe everything that changes class maps, as JSON reads it back."""
        options, thresholds = self.options, self.label_thresholds
        return to_plain(
            {
                "network": type(self.network).__name__,
                "weights": self.weights_hash,
                # Which outputs of an ImageNet head count as each class; a trained head has one.
                "class_groups": getattr(self.network, "class_groups", None),
                "classes": self.class_set.classes,
                "mask_values": self.class_set.mask_values,
                "device": self.device.type,
                "dtype": options.dtype,
                "compile": options.compile,
                "views": asdict(options.views),
                "method": options.method,
                "method_options": vars(self.map_maker.methods[0]),
                "at_least_one": options.at_least_one,
                "label_threshold": thresholds[0] if len(set(thresholds)) == 1 else thresholds,
                "max_pixels": options.max_pixels,
            }
        )

    def describe(self) -> dict[str, Any]:
        """Describe everything that changes maps and masks, as JSON reads it back."""
        options = self.options
        is_single, has_crf = options.two_threshold is None, options.crf != "none"
        return {
            **self.describe_maps(),
            "rule": str(options.rule) if is_single else "confident",
            "two_threshold": to_plain(options.two_threshold),
            "chosen_on": options.rule.chosen_on if is_single else "given",
            "crf": _describe_crf(options.crf) if has_crf else "none",
            "crf_backend": self.mask_maker.crf_backend if has_crf else None,
        }


def place_masks(device: torch.device, crf: str, backend: str) -> tuple[str, str]:
    """Choose what computes the CRF and where masks are made.

    Of a backend ``"auto"``, the faster of CPU and GPU is taken.

    Raises:
        AdcamError: The backend cannot run here.
    """
    if crf == "none" or backend == "auto":
        fastest = find_mask_device(device, crf)
        found = "lattice" if fastest == "cpu" else "lattice-gpu"
        return (found if backend == "auto" else backend), fastest
    if backend == "lattice-gpu":
        if device.type == "cpu":
            raise AdcamError(
                "crf_backend 'lattice-gpu' computes on the GPU of the network, but the device is "
                f"{str(device)!r}; take 'lattice'"
            )
        return backend, str(device)
    if backend != "lattice" and (reason := available_backends()[backend]):
        raise AdcamError(f"the CRF backend {backend!r} cannot run here: {reason}")
    return backend, "cpu"


def find_mask_device(device: torch.device, crf: str) -> str:
    """Find where masks are made soonest: where the network runs, or the CPU.

    With its kernels, a GPU refines an image sooner than a process on the CPU has received its
    maps; without them it is slower than 16 processes (README of adcam/ops/dense_crf).
    """
    is_there = device.type == "cuda" and (crf == "none" or available_backends()["triton"] is None)
    return str(device) if is_there else "cpu"


def find_present(
    scores: np.ndarray, thresholds: Sequence[float], *, at_least_one: bool = False
) -> tuple[int, ...]:
    """Return the ids of the classes that an image shows by its classifier's scores.

    Args:
        scores: The probability of every class, (C,).
        thresholds: The probability from which each class counts as present, (C,).
        at_least_one: Whether the class whose odds are the highest multiple of those of its
            threshold is present where none reaches its threshold.
    """
    needed = np.asarray(thresholds)
    present = np.flatnonzero(scores >= needed)
    if not len(present) and at_least_one:
        odds = [p / np.maximum(1 - p, 1e-12) for p in (scores, needed)]
        present = (odds[0] / np.maximum(odds[1], 1e-12)).argmax(keepdims=True)
    return tuple(present.tolist())


def _describe_crf(name: str) -> dict[str, Any]:
    params = asdict(CRF_PARAMS[name])
    del params["source"]
    return {"name": name, **to_plain(params)}


def hash_network(network: Network) -> str:
    """Return 16 hex digits of the SHA-256 over names, types, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    state = network.state_dict() if isinstance(network, torch.nn.Module) else {}
    for name, tensor in sorted(state.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _is_in_training(network: Network) -> bool:
    """Whether a part of a network is in training mode.

    A part with a ``train()`` of its own, such as one that is frozen, may keep the flag for ever;
    what lies within is asked all the same.
    """
    parts = network.modules() if isinstance(network, torch.nn.Module) else ()
    return any(part.training and type(part).train is torch.nn.Module.train for part in parts)


def _find_hw(image: ImageLike) -> tuple[int, int]:
    """Height and width of an image in any form, undecoded.

    Of a Pillow image without its EXIF turn: a thread that reads it may be at work on the same one.

    Raises:
        ValueError: The head of the file cannot be read, or this is no image.
    """
    if isinstance(image, str | Path):
        return read_image_hw(image)
    if isinstance(image, Image.Image):
        return image.height, image.width
    height, width = np.shape(image)[:2]
    return height, width


def convert_image(image: ImageLike) -> np.ndarray:
    """Return an image in any form as RGB uint8 (H, W, 3), upright.

    Args:
        image: A path, an array or a Pillow image, as for :class:`PseudoLabeler`.

    Raises:
        ImageError: The file cannot be read, or its samples are of a kind that is refused.
        AdcamError: An array is no image.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        try:
            return convert_to_rgb(image, "the Pillow image")
        except OSError as error:
            raise ImageError(f"the Pillow image cannot be decoded ({error})") from error
    if not isinstance(image, np.ndarray):
        raise AdcamError(
            f"an image is a path, an array or a Pillow image, got {type(image).__name__}"
        )
    channels = image.shape[2] if image.ndim == 3 else 1
    if (
        image.dtype.newbyteorder("=") not in (np.uint8, np.uint16)
        or image.ndim not in (2, 3)
        or channels not in (1, 3, 4)
        or not image.size
    ):
        raise AdcamError(
            "an image array must be (H, W, 3), (H, W, 4) or (H, W) of uint8 or uint16, got "
            f"{image.dtype} {image.shape}"
        )
    if image.dtype.itemsize == 2:
        image = (image >> 8).astype(np.uint8)  # as a file of 16 bits is read
    if channels == 3:
        # A copy, as the next frame may be read into the same array while a label shows this one.
        return np.array(image, order="C")
    if channels == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return convert_to_rgb(Image.fromarray(image), "the array")
