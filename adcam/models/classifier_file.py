"""A trained classifier in one file: safetensors with its description in the header.

The header's ``adcam`` entry is JSON: how to build the network, the class set, where it came from.
Reading it never unpickles anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from adcam.errors import AdcamError
from adcam.files import write_bytes
from adcam.models.file_header import build_described_classes, read_description, refusing_damage
from adcam.models.networks import build_network
from adcam.models.nonlocal_cam import NonlocalCAM
from adcam.models.token_cam import TokenCAM
from adcam.models.weights import check_finite
from adcam.structures import ClassSet

FORMAT = 1


@dataclass(frozen=True)
class LabelThresholds:
    """The probability from which each class counts as present in an image without labels.

    Attributes:
        values: One probability a class, in the order of the classes. A larger value finds the class
            in fewer images.
        chosen_on: The split or folder whose image-level labels they were chosen on.
        num_images: The number of its images.

    Raises:
        AdcamError: A value is no probability.
    """

    values: tuple[float, ...]
    chosen_on: str
    num_images: int

    def __post_init__(self) -> None:
        if wrong := [value for value in self.values if not 0 <= value <= 1]:
            raise AdcamError(f"label thresholds must lie in [0, 1], got {wrong[0]}")


@dataclass(frozen=True)
class ClassifierFile:
    """The content of a classifier file.

    Attributes:
        network: The network, float32, in eval mode, on the CPU.
        class_set: The classes of the network.
        info: The origin of the network: scores, split names, hash of the configuration.
        label_thresholds: When each class counts as present; ``None`` where nobody calibrated it.
        network_options: The arguments of :func:`adcam.models.networks.build_network` that the
            network was built with.
        views: The scales at which it is meant to see images, by the names of
            :class:`adcam.settings.TestViews`; ``None`` where the file does not say.
    """

    network: TokenCAM | NonlocalCAM
    class_set: ClassSet
    info: Mapping[str, Any] = field(default_factory=dict)
    label_thresholds: LabelThresholds | None = None
    network_options: Mapping[str, Any] = field(default_factory=dict)
    views: Mapping[str, Any] | None = None


def save_classifier(
    path: str | Path,
    network: TokenCAM | NonlocalCAM,
    network_options: Mapping[str, Any],
    class_set: ClassSet,
    info: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    label_thresholds: LabelThresholds | None = None,
    views: Mapping[str, Any] | None = None,
) -> None:
    """Write a classifier, atomically.

    Args:
        path: The file to write, ``*.safetensors``.
        network: The network to store.
        network_options: Arguments of :func:`adcam.models.networks.build_network` that
            rebuild it, without weights.
        class_set: The classes of the network.
        info: JSON-serialisable provenance.
        dtype: The type of the stored floating-point tensors; ``float16`` halves the file.
        label_thresholds: When each class counts as present, where that is known.
        views: The scales at which commands show it images unless they are told others, by the names
            of :class:`adcam.settings.TestViews`.
    """
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous().cpu()
        for name, value in network.state_dict().items()
    }
    header = {
        "format": FORMAT,
        "network": dict(network_options),
        "class_set": asdict(class_set),
        "info": dict(info),
    }
    if label_thresholds is not None:
        header["label_thresholds"] = asdict(label_thresholds)
    if views is not None:
        header["views"] = dict(views)
    _write(path, tensors, header)


def save_label_thresholds(
    path: str | Path,
    thresholds: LabelThresholds,
    out: str | Path | None = None,
    *,
    views: Mapping[str, Any],
) -> None:
    """Write label thresholds into a classifier file, atomically; its tensors keep their bytes.

    Args:
        path: A classifier that :func:`load_classifier` reads.
        thresholds: The thresholds, one a class; those that the file holds are replaced.
        views: The scales at which they were chosen and hold, as for :func:`save_classifier`.
        out: The file to write; by default ``path`` itself.

    Raises:
        AdcamError: The number of thresholds is not that of the classes.
    """
    header = json.loads(read_description(path))
    if len(thresholds.values) != (num := len(header["class_set"]["classes"])):
        raise AdcamError(f"{path} has {num} classes, got {len(thresholds.values)} thresholds")
    header |= {"label_thresholds": asdict(thresholds), "views": dict(views)}
    _write(out or path, _read_tensors(path), header)


def load_classifier(path: str | Path) -> ClassifierFile:
    """Read a classifier written by :func:`save_classifier`.

    Args:
        path: A file that ``adcam train`` or :func:`save_classifier` wrote.

    Returns:
        The network, its classes and its origin.

    Raises:
        AdcamError: If the file is missing, no classifier of this project, of a newer format, its
            description cannot be used or asks for anything beside the file, or its tensors hold
            NaN or do not fit the network it describes.
    """
    path = Path(path)
    text = read_description(path)
    tensors = _read_tensors(path)
    with refusing_damage(path):
        header = json.loads(text)
        if header["format"] > FORMAT:
            raise AdcamError(
                f"format {header['format']} is newer than this version reads ({FORMAT})"
            )
        class_set = build_described_classes(header["class_set"])
        options = header["network"]
        if (weights := options.get("weights")) is not None:
            raise AdcamError(
                f"its description asks for the weights {weights!r}, but the weights of a "
                "classifier are its own tensors"
            )
        network = build_network(num_fg_classes=class_set.num_fg_classes, **options)
        network.load_state_dict(
            {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
        )
        info = header["info"]
        thresholds = _read_label_thresholds(header.get("label_thresholds"), class_set)
    check_finite(tensors, path)
    return ClassifierFile(network.eval(), class_set, info, thresholds, options, header.get("views"))


def _read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _write(path: str | Path, tensors: dict[str, torch.Tensor], header: Mapping[str, Any]) -> None:
    text = json.dumps(header, sort_keys=True)
    write_bytes(path, save(tensors, metadata={"adcam": text}))


def _read_label_thresholds(
    description: Mapping[str, Any] | None, class_set: ClassSet
) -> LabelThresholds | None:
    if description is None:
        return None
    found = LabelThresholds(**{**description, "values": tuple(description["values"])})
    if len(found.values) != class_set.num_fg_classes:
        raise ValueError(
            f"{len(found.values)} label thresholds for {class_set.num_fg_classes} classes"
        )
    return found
