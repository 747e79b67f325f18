"""Refining a classifier on the pixels that its class maps are sure of."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from adcam.data.dataset import ImageDataset, Record
from adcam.data.images import ImageError
from adcam.errors import AdcamError
from adcam.files import hash_file, hash_values, to_plain, write_bytes
from adcam.labeling.executor import one_thread
from adcam.labeling.map_maker import MapMaker
from adcam.labeling.maps_file import load_maps
from adcam.labeling.output_folder import read_output_folder, result_files
from adcam.masks.confident import compute_confident_mask
from adcam.models.classifier_file import ClassifierFile, load_classifier, save_classifier
from adcam.models.networks import build_network
from adcam.models.refined_cam import RefinedCAM
from adcam.models.token_cam import TokenCAM
from adcam.progress import track
from adcam.settings import RefineSettings, Settings, TestViews
from adcam.structures import IGNORE_INDEX, ClassSet
from adcam.training.checkpoints import (
    TRAINING_NAME,
    find_checkpoint,
    forget_training,
    refuse_another_training,
    write_description,
)
from adcam.training.refiner_model import FINE, Refiner
from adcam.training.repeatable import RepeatableEpochs, hold_work_dir
from adcam.training.runner import TrainingParts, build_runner, keep_from_terminal

REFINED_NAME = "refined.safetensors"

UNREAD = ("num_steps", "rule", "chosen_on", "log_interval")
"""The settings of a refinement that do not change the head."""

logger = logging.getLogger(__name__)

_FEATURES = "features"
_CURE = "take another folder, or start over with --overwrite"


class StoredFeatures(Dataset[dict[str, Tensor]]):
    """Features and labels of images on disk, half of them mirrored.

    Args:
        paths: The files of :func:`store_features`; one is in memory at a time.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``features`` float16 (D, h, w) and ``labels`` uint8 (FINE h, FINE w)."""
        tensors = load_file(self._paths[index])
        return (
            {name: x.flip(-1) for name, x in tensors.items()} if random.random() < 0.5 else tensors
        )


def store_features(
    network: RefinedCAM,
    images: ImageDataset,
    maps: Path,
    folder: Path,
    settings: RefineSettings,
) -> list[Path]:
    """Write the features and labels of images, each once: the classifier does not change.

    Files that are there already are kept. An unreadable image is reported and left out.

    Args:
        network: The classifier.
        images: The images.
        maps: The output folder that holds their maps.
        folder: Where the files go.
        settings: Thresholds, scale and precision.

    Returns:
        The files, in the order of the images.

    Raises:
        AdcamError: No image can be read, no map is sure of any class, or a maps file is damaged.
    """
    maker = MapMaker(
        network, [], views=TestViews((settings.scale,)), dtype=getattr(torch, settings.dtype)
    )
    paths, has_class = [], False
    for index in track(range(len(images)), "features", len(images)):
        path = folder / f"{index:06d}.safetensors"
        if not path.is_file():
            try:
                img = images.load_image(index)
            except ImageError as error:
                logger.warning("left out of training: %s", error)
                continue
            features = _compute_features(maker, network, img)
            labels = read_labels(images, index, maps, settings.thresholds)
            fine_hw = (FINE * features.shape[1], FINE * features.shape[2])
            small = F.interpolate(labels[None, None].float(), size=fine_hw, mode="nearest-exact")
            tensors = {"features": features.half(), "labels": small[0, 0].byte()}
            write_bytes(path, save(tensors))
        paths.append(path)
        labels = load_file(path)["labels"]
        has_class = has_class or bool(((labels > 0) & (labels != IGNORE_INDEX)).any())
    if not paths:
        raise AdcamError(f"none of the {len(images)} images of {maps} can be read")
    if not has_class:
        low, high = settings.thresholds
        raise AdcamError(
            f"{maps}: no map of {len(images)} images has a score above {high}, so that there is no "
            f"class to learn; lower refine.thresholds, which are {low} and {high}"
        )
    return paths


def _compute_features(maker: MapMaker, network: RefinedCAM, img: np.ndarray) -> Tensor:
    """The features (D, h, w) of an image, on the CPU; one thread, as maps are made."""
    (inputs,) = maker.make_inputs(img)
    is_half = maker.dtype != torch.float32
    with one_thread(), torch.autocast(maker.device.type, dtype=maker.dtype, enabled=is_half):
        return network.pixel_features(inputs[None].to(maker.device))[0].cpu()


def read_labels(
    images: ImageDataset, index: int, maps: Path, thresholds: tuple[float, float]
) -> Tensor:
    """Return what the maps of an image are sure of, uint8 (H, W): 0, 1 + class id, else 255.

    Args:
        images: The images.
        index: The position of the image.
        maps: The output folder that holds its maps.
        thresholds: The low and the high background score.

    Raises:
        AdcamError: The maps file is missing, damaged or of other classes.
    """
    path = result_files(maps, images.records[index].img_id)["maps"]
    stored = load_maps(path)
    if stored.classes != images.class_set.classes:
        raise AdcamError(f"{path}: its classes are {list(stored.classes)}, not the classifier's")
    low, high = thresholds
    mask = compute_confident_mask(
        stored.upsample(),
        mask_values=range(1, len(stored.classes) + 1),
        fg_threshold=high,
        bg_threshold=low,
    )
    return torch.from_numpy(mask.mask)


def open_maps_folder(folder: str | Path, class_set: ClassSet) -> ImageDataset:
    """Open the images whose maps an output folder holds, with the labels that they were given.

    Args:
        folder: What ``adcam generate --save-maps`` wrote.
        class_set: The classes of the classifier that is refined.

    Raises:
        AdcamError: The folder is no output folder, was made for other classes, or lacks maps.
    """
    found = read_output_folder(folder)
    if found is None:
        raise AdcamError(f"{folder} was not written by `adcam generate`, which makes the maps")
    if found.class_set.classes != class_set.classes:
        raise AdcamError(
            f"{folder} holds maps of {list(found.class_set.classes)}, but the classifier knows "
            f"{list(class_set.classes)}"
        )
    done = {i: entry for i, entry in found.entries.items() if entry["status"] == "ok"}
    if not done:
        raise AdcamError(f"{folder} holds no finished image")
    if without := [img_id for img_id, entry in done.items() if not entry.get("maps")]:
        raise AdcamError(
            f"{folder} has no maps of {len(without)} of {len(done)} images, such as "
            f"{without[0]!r}; make them with `adcam generate --save-maps`"
        )
    ids = {name: number for number, name in enumerate(class_set.classes)}
    records = [
        Record(img_id, found.image_paths[img_id], tuple(sorted(ids[n] for n in entry["classes"])))
        for img_id, entry in done.items()
    ]
    return ImageDataset(class_set, found.path.name, records)


def train_refiner(
    settings: RefineSettings,
    classifier: str | Path,
    maps: str | Path,
    work_dir: str | Path,
    *,
    resume: bool = False,
) -> Path:
    """Train the second head of a refined classifier on the pixels that maps are sure of.

    Memory does not grow with the number of images, and ``max_images`` bounds what lies on the disk
    meanwhile.

    Args:
        settings: How it is trained.
        classifier: The file of the classifier, which is a vision transformer's.
        maps: The output folder with the images and their maps.
        work_dir: Where checkpoints, logs and ``refined.safetensors`` go.
        resume: Whether to continue what ``work_dir`` holds.

    Returns:
        Path of the refined classifier.

    Raises:
        AdcamError: The classifier, the maps or the settings do not fit one another; no head is
            trained then. Or ``work_dir`` holds another training, another process works there, or
            the training diverges.
    """
    work_dir, maps = Path(work_dir), Path(maps)
    keep_from_terminal()
    loaded = load_classifier(classifier)
    images = _take_evenly(open_maps_folder(maps, loaded.class_set), settings.max_images)
    images.check_files(masks=False)
    torch.manual_seed(settings.seed)
    network, options = build_refined(loaded, classifier)
    description = _describe_training(settings, classifier, images, maps)
    with hold_work_dir(work_dir, again="the same command"):
        resumes = resume and (work_dir / TRAINING_NAME).is_file()
        if resumes:
            refuse_another_training(work_dir, description, cure=_CURE)
        else:
            forget_training(work_dir, REFINED_NAME)
            shutil.rmtree(work_dir / _FEATURES, ignore_errors=True)
        path = work_dir / REFINED_NAME
        if not path.is_file():
            write_description(work_dir, description)
            features = store_features(network, images, maps, work_dir / _FEATURES, settings)
            _train_head(network, features, settings, work_dir, resumes=resumes)
            info = {**loaded.info, "refined": description}
            save_classifier(
                path,
                network,
                options,
                loaded.class_set,
                info,
                label_thresholds=loaded.label_thresholds,
                views=asdict(TestViews((settings.scale,))),
            )
        shutil.rmtree(work_dir / _FEATURES, ignore_errors=True)
        return path


def _train_head(
    network: RefinedCAM,
    features: Sequence[Path],
    settings: RefineSettings,
    work_dir: Path,
    *,
    resumes: bool,
) -> None:
    dataset = StoredFeatures(features)
    parts = TrainingParts(
        name="refiner",
        model=Refiner(network.pixel_head),
        train_set=dataset,
        sampler=RepeatableEpochs(dataset, shuffle=True, seed=settings.seed),
        batch_size=min(settings.batch_size, len(dataset)),
        collate="pseudo_collate",
        by_epoch=True,
        length=settings.epochs,
    )
    checkpoint = find_checkpoint(work_dir, cure=_CURE) if resumes else None
    runner = build_runner(parts, _build_runner_settings(settings), work_dir, checkpoint=checkpoint)
    runner.train()


def _take_evenly(images: ImageDataset, most: int) -> ImageDataset:
    """At most so many images, evenly spread over the list."""
    if len(images) <= most:
        return images
    positions = [number * len(images) // most for number in range(most)]
    return images.subset(images.records[i].img_id for i in positions)


def build_refined(loaded: ClassifierFile, path: str | Path) -> tuple[RefinedCAM, dict[str, Any]]:
    """Give a classifier the second head, not trained yet.

    Args:
        loaded: The classifier; of one that is refined already, the second head starts over.
        path: Its file, which errors name.

    Returns:
        The network, and the options that build it.

    Raises:
        AdcamError: The classifier is no vision transformer's.
    """
    if not isinstance(loaded.network, TokenCAM):
        raise AdcamError(
            f"{path}: {loaded.network.name} has no patch tokens; `adcam refine` needs a classifier "
            "on a vision transformer"
        )
    options = {**loaded.network_options, "kind": "refined_cam"}
    network = build_network(num_fg_classes=loaded.class_set.num_fg_classes, **options)
    assert isinstance(network, RefinedCAM)
    kept = loaded.network.state_dict()
    fresh = {name: value for name, value in network.state_dict().items() if "pixel_head." in name}
    network.load_state_dict({**kept, **fresh})
    return network, options


def _describe_training(
    settings: RefineSettings, classifier: str | Path, images: ImageDataset, maps: Path
) -> dict[str, Any]:
    """What decides the head that comes out."""
    found = read_output_folder(maps)
    assert found is not None
    values = to_plain(asdict(settings))
    return {
        "settings": {name: values[name] for name in values if name not in UNREAD},
        "classifier": hash_file(classifier),
        "maps": hash_values([(r.img_id, found.entries[r.img_id]["maps"]) for r in images.records]),
        "images": len(images),
    }


def _build_runner_settings(settings: RefineSettings) -> Settings:
    """The settings of the Runner: rates and their course are the same for every refinement."""
    names = ("epochs", "batch_size", "seed", "log_interval")
    train = {name: getattr(settings, name) for name in names}
    return Settings(
        {
            "train": {**train, "img_size": settings.scale, "num_workers": 0},
            "optim_wrapper": {
                "type": "OptimWrapper",
                "optimizer": {"type": "AdamW", "lr": settings.lr, "weight_decay": 0.01},
                "clip_grad": {"max_norm": 1.0},
            },
            "param_scheduler": [
                {
                    "type": "LinearLR",
                    "start_factor": 0.05,
                    "begin": 0,
                    "end": 1,
                    "convert_to_iter_based": True,
                },
                {"type": "CosineAnnealingLR", "begin": 1, "convert_to_iter_based": True},
            ],
        }
    )
