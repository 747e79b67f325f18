"""A trained segmentation network as one file: tensors, classes, and all that builds it again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save

from adcam.data.png import voc_palette
from adcam.errors import AdcamError
from adcam.files import hash_values, parse_json, write_bytes
from adcam.models.checkpoints import load_state_dict
from adcam.models.file_header import read_metadata
from adcam.models.weights import find_weights, fit_weights, load_any_backbone_weights
from adcam.settings import SegmentationSettings
from adcam.structures import ClassSet
from adcam.version import __version__

if TYPE_CHECKING:
    from adcam.seg.segmenter import Segmenter

SEGMENTER_NAME = "segmenter.safetensors"

_SOURCE_WORDS = ("init_cfg", "pretrained", "checkpoint", "ckpt", "path", "file", "dir", "url")
"""Words in keys of a network's description that make it read a file or ask the network."""


def build_network(
    settings: SegmentationSettings, *, sync: bool = False, initial: bool = True
) -> Segmenter:
    """Build the network of a config.

    Args:
        settings: The config.
        sync: Whether batch statistics are taken over all processes.
        initial: Whether the network is initialised, with ``weights`` if the config names any; a
            network whose tensors are loaded afterwards is not.

    Raises:
        AdcamError: The network or its weights do not exist, or do not fit.
    """
    import adcam.models.shapes_vit  # noqa: F401  # timm learns its name
    from adcam.seg.segmenter import SegViews, build_segmenter

    test, train = settings.test, settings.train
    segmenter = build_segmenter(
        settings.model,
        amp=train.amp,
        views=SegViews(scales=test.scales, flip=test.flip, short_side=test.short_side),
        crop_size=train.crop_size,
        sync=sync and torch.cuda.is_available(),
    )
    if initial:
        segmenter.init_weights()
        if settings.weights is not None:
            backbone: Any = segmenter.backbone
            path = find_weights(settings.weights, settings.model["backbone"].get("name"))
            load_any_backbone_weights(getattr(backbone, "network", backbone), path)
    return segmenter


def check_heads(settings: SegmentationSettings, class_set: ClassSet) -> None:
    """Every head must have an output for background and each class.

    Raises:
        AdcamError: One has another number.
    """
    wanted = class_set.num_fg_classes + 1
    for name in ("decode_head", "auxiliary_head"):
        heads = settings.model.get(name) or []
        for head in heads if isinstance(heads, list | tuple) else [heads]:
            if head.get("num_classes") != wanted:
                raise AdcamError(
                    f"model.{name}.num_classes is {head.get('num_classes')}, but the data has "
                    f"{wanted} classes: background and {class_set.num_fg_classes} of "
                    f"{class_set.name}"
                )


def reads_confidence(model: Mapping[str, Any]) -> bool:
    """Whether a network has a loss that weighs pixels by ``train.confidence``.

    Args:
        model: The ``model`` section of a config.
    """
    from adcam.seg.losses import is_confidence_loss

    return any(key == "type" and is_confidence_loss(value) for key, value in _walk(model))


def save_segmenter(
    path: Path, segmenter: Segmenter, settings: SegmentationSettings, class_set: ClassSet
) -> None:
    """Write a network with what a prediction needs; the same training gives the same bytes."""
    tensors = {name: value.cpu().contiguous() for name, value in segmenter.state_dict().items()}
    # Without the places of files: the same training in another folder gives the same bytes.
    trained = {k: v for k, v in describe_training(settings).items() if k != "weights"}
    trained["data"] = {k: v for k, v in trained["data"].items() if k not in ("root", "masks")}
    values = settings.to_dict()
    test = {k: v for k, v in values.get("test", {}).items() if k not in ("split", "labels")}
    header = {
        "adcam": __version__,
        "classes": list(class_set.classes),
        "max_iters": settings.train.max_iters,
        "config": hash_values(trained),
        "dataset": class_set.name,
        "mask_values": list(class_set.mask_values),
        "settings": {
            "model": _without_sources(values["model"]),
            "train": trained["train"],
            "test": test,
        },
    }
    write_bytes(path, save(tensors, metadata={"segmenter": json.dumps(header)}))


def describe_training(settings: SegmentationSettings) -> dict[str, Any]:
    """What decides the network that comes out: all but how it is watched and tested."""
    values = {k: v for k, v in settings.to_dict().items() if k not in ("test", "self_training")}
    watched = ("num_workers", "val_interval", "checkpoint_interval", "log_interval")
    values["train"] = {k: v for k, v in values["train"].items() if k not in watched}
    described: dict[str, Any] = json.loads(json.dumps(values))
    return described


def read_segmenter_file(path: str | Path) -> tuple[SegmentationSettings, ClassSet]:
    """Read the sections ``model``, ``train`` and ``test`` of a network, and its classes.

    A file may come from a stranger: descriptions that would read files, ask the network or name
    anything but networks of mmsegmentation are refused.

    Raises:
        AdcamError: It is no file of ``adcam segment train``, an old one, or a hostile one.
    """
    header = _read_header(Path(path))
    if "settings" not in header:
        raise AdcamError(
            f"{path}: does not say how its network is built; name its config with --config"
        )
    try:
        values = header["settings"]
        _refuse_sources(values["model"])
        class_set = ClassSet(
            str(header["dataset"]),
            tuple(map(str, header["classes"])),
            tuple(int(value) for value in header["mask_values"]),
            voc_palette(),
        )
        chosen = {name: values[name] for name in ("model", "train", "test")}
        return SegmentationSettings(chosen, str(path)), class_set
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise AdcamError(
            f"{path}: is no segmenter that can be built from its own description ({error}); name "
            "its config with --config"
        ) from error


def load_segmenter(segmenter: Segmenter, checkpoint: str | Path, class_set: ClassSet) -> None:
    """Load tensors of ``adcam segment train``, or of mmsegmentation where names are the same.

    Raises:
        AdcamError: The file cannot be read, is for other classes, or does not fit the network.
    """
    checkpoint = Path(checkpoint)
    if checkpoint.suffix == ".safetensors" and checkpoint.is_file():
        header = _read_header(checkpoint)
        if (trained := header.get("classes", list(class_set.classes))) != list(class_set.classes):
            raise AdcamError(
                f"{checkpoint}: was trained for the classes {trained}, but the config has "
                f"{list(class_set.classes)}"
            )
    fit_weights(segmenter, load_state_dict(checkpoint), checkpoint)


def _read_header(path: Path) -> dict[str, Any]:
    metadata = read_metadata(path, f"`adcam segment train` writes {SEGMENTER_NAME}")
    if "adcam" in metadata:
        raise AdcamError(
            f"{path}: this is a classifier, no network of `adcam segment`; `adcam generate` makes "
            "masks with it"
        )
    text = metadata.get("segmenter", "{}")
    header: dict[str, Any] = parse_json(text, f"{path}, metadata", what="a segmenter's header")
    return header


def _names_a_source(key: str) -> bool:
    return any(word in key.lower().replace("drop_path", "") for word in _SOURCE_WORDS)


def _without_sources(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_sources(v) for k, v in value.items() if not _names_a_source(k)}
    if isinstance(value, list | tuple):
        return [_without_sources(item) for item in value]
    return value


def _refuse_sources(model: Any) -> None:
    """Refuse what would read a file, ask the network or import an object by its dotted name."""
    for key, value in _walk(model):
        legal = r"[\w.-]*" if key == "name" else r"[\w-]*"  # timm's names have dots
        is_odd = isinstance(value, str) and not re.fullmatch(legal, value)
        is_odd_type = key == "type" and not (isinstance(value, str) and value.isidentifier())
        if is_odd or is_odd_type or (_names_a_source(key) and value is not None):
            raise ValueError(f"{key}={value!r} is not allowed in a file")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key), item
            yield from _walk(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield "", item
            yield from _walk(item)
