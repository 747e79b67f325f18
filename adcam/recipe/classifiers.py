"""The stage that trains classifiers, or takes one that is trained already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from adcam.data.sources import build_dataset
from adcam.files import hash_file
from adcam.models.classifier_file import load_classifier
from adcam.recipe.inputs import describe_images, hash_files_in
from adcam.settings import Settings
from adcam.training.classifier import CLASSIFIER_NAME, train_classifier

Source: TypeAlias = Settings | Path
"""Where a classifier comes from: settings to train it by, or its file."""

_SECTIONS = (
    *("task", "model", "train", "inca", "optim_wrapper", "param_scheduler"),
    *("custom_hooks", "custom_imports", "env_cfg"),
)


def find_classifier(source: Source, folder: Path) -> Path:
    """The file of a classifier: the given one, or the one that is trained in ``folder``."""
    return source if isinstance(source, Path) else folder / CLASSIFIER_NAME


def describe_classifier(source: Source) -> dict[str, Any]:
    """What a classifier is made from, as JSON values: settings, images and labels."""
    if isinstance(source, Path):
        return {"classifier": hash_file(source)}
    values = source.to_dict()
    splits = dict.fromkeys((*source.data.train, str(source.data.val)))
    return {
        "config": {name: hash_files_in(values[name]) for name in _SECTIONS if name in values},
        "images": {split: describe_images(build_dataset(source.data, split)) for split in splits},
    }


def make_classifier(source: Source, folder: Path) -> dict[str, Any]:
    """Train a classifier in a folder, or resume its training, unless it is given.

    Returns:
        The hash of its file under ``classifier``, and what the file says about its scores.
    """
    if not isinstance(source, Path):
        train_classifier(source, folder, resume=True)
    path = find_classifier(source, folder)
    info: Mapping[str, Any] = load_classifier(path).info
    scores = {key: info.get(key) for key in ("val_map", "val_top1", "val_split", "epoch")}
    return {"classifier": hash_file(path), **scores}
