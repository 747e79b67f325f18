"""Vision transformers and CLIPs of Hugging Face's transformers: the one place that imports it.

A network is a model object or the path of a folder that ``save_pretrained`` wrote; nothing is
fetched, and no code of a folder runs.
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adcam.errors import AdcamError
from adcam.models.any_vit import ViTInterface, import_from_extra
from adcam.models.clip_text import TextImageModel

_ANY_SIZE = ("dinov2", "dinov2_with_registers")
"""Model types that resample their position embedding without being asked to."""


def read_transformers(model: nn.Module | str | Path, image_processor: Any = None) -> ViTInterface:
    """Say how an image classifier of transformers is run.

    Args:
        model: A ``...ForImageClassification``, or the folder of one.
        image_processor: Its image processor, which knows the channel means; ``None`` reads it from
            the folder.

    Raises:
        AdcamError: There is no such folder, it lacks a part, transformers is not installed, or the
            model is no classifier with patches.
    """
    if isinstance(model, str | Path):
        folder = _check_folder(model)
        image_processor = image_processor or _load("AutoImageProcessor", folder)
        model = _load("AutoModelForImageClassification", folder)
    network: Any = model
    config = getattr(network, "config", None)
    vision = getattr(config, "vision_config", None) or config
    patch, side = (getattr(vision, name, None) for name in ("patch_size", "image_size"))
    if config is None or patch is None or side is None:
        raise AdcamError(
            f"{type(model).__name__} is no image model of transformers with patches: its config "
            "has no patch_size and image_size"
        )
    labels = getattr(config, "id2label", None) or {}
    takes_size = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
    options = {"interpolate_pos_encoding": True} if takes_size else {}
    return ViTInterface(
        model=network,
        run=partial(_run_classifier, network, options),
        name=str(getattr(config, "model_type", type(model).__name__)),
        patch_size=_as_pair(patch),
        input_hw=_as_pair(side),
        pixel_stats=_read_stats(image_processor),
        takes_any_size=takes_size or getattr(config, "model_type", "") in _ANY_SIZE,
        labels=tuple(str(labels[i]) for i in sorted(labels)),
        multi_label=getattr(config, "problem_type", None) == "multi_label_classification",
    )


def read_transformers_clip(
    model: nn.Module | str | Path, tokenizer: Any = None, image_processor: Any = None
) -> TextImageModel:
    """Say how a CLIP of transformers is run.

    Args:
        model: A ``CLIPModel``, or the folder of one.
        tokenizer: Its tokenizer; ``None`` reads it from the folder.
        image_processor: Its image processor; ``None`` reads it from the folder.

    Raises:
        AdcamError: As :func:`read_transformers`, or it is no CLIP with a ViT.
    """
    if isinstance(model, str | Path):
        folder = _check_folder(model)
        tokenizer = tokenizer or _load("AutoTokenizer", folder)
        image_processor = image_processor or _load("AutoImageProcessor", folder)
        model = _load("AutoModel", folder)
    network: Any = model
    try:
        vision = network.config.vision_config
        norm = network.vision_model.encoder.layers[-1].layer_norm1
        scale = network.logit_scale
    except AttributeError as error:
        raise AdcamError(f"{type(model).__name__} is no CLIP of transformers ({error})") from error
    if tokenizer is None:
        raise AdcamError("give tokenizer=… beside a model object; a folder brings its own")

    return TextImageModel(
        model=network,
        encode_image=partial(_encode_image, network),
        encode_text=partial(_encode_text, network, tokenizer),
        norm=norm,
        logit_scale=float(scale.detach().exp()),
        name=str(network.config.model_type),
        patch_size=_as_pair(vision.patch_size),
        input_hw=_as_pair(vision.image_size),
        pixel_stats=_read_stats(image_processor),
    )


def _run_classifier(model: nn.Module, options: dict[str, Any], inputs: Tensor) -> Tensor:
    output: Any = model(pixel_values=inputs, **options)
    logits = getattr(output, "logits", None)
    if logits is None:
        raise AdcamError(
            f"{type(model).__name__} gives no logits; take its form for image classification"
        )
    return logits


def _encode_text(network: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    words = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    device = next(network.parameters()).device
    found = network.get_text_features(**{name: ids.to(device) for name, ids in words.items()})
    return _read_features(found)


def _encode_image(network: Any, inputs: Tensor) -> Tensor:
    found = network.get_image_features(pixel_values=inputs, interpolate_pos_encoding=True)
    return _read_features(found)


def _read_features(output: Any) -> Tensor:
    """Features (B, D): what transformers 4 returned, and version 5 keeps in an object."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _read_stats(image_processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = (getattr(image_processor, f"image_{name}", None) for name in ("mean", "std"))
    if mean is None or std is None:
        raise AdcamError(
            "give image_processor=… beside a model object (with image_mean and image_std, as "
            "AutoImageProcessor.from_pretrained returns it); a folder brings its own"
        )
    return tuple(map(float, mean)), tuple(map(float, std))


def _as_pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return int(size[0]), int(size[1])


def _check_folder(path: str | Path) -> str:
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise AdcamError(
            f"{folder} is no folder of a model (there is no config.json); `hf download NAME "
            "--local-dir FOLDER` makes one"
        )
    return str(folder)


def _load(kind: str, folder: str) -> Any:
    try:
        return getattr(import_from_extra("transformers"), kind).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise AdcamError(f"{folder}: {kind} cannot be read: {error}") from error
