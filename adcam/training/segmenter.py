"""Training a segmentation network on pseudo masks."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.dist import barrier, is_distributed, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.model import is_model_wrapper
from torch.utils.data import ConcatDataset, Dataset

from adcam.data.converted import read_converted_classes, refuse_other_numbers
from adcam.data.dataset import ImageDataset
from adcam.errors import AdcamError, join_some
from adcam.files import hash_values, read_json, write_bytes
from adcam.labeling.maps_file import load_maps
from adcam.labeling.output_folder import CONFIG_NAME, MAPS_DIR, masks_folder, read_output_folder
from adcam.metrics.miou import MeanIoU, compute_confusion
from adcam.progress import track
from adcam.settings import SegmentationSettings, load_settings
from adcam.structures import IGNORE_INDEX, ClassSet, Sample
from adcam.training.checkpoints import (
    find_checkpoint,
    forget_training,
    refuse_another_training,
    refuse_differences,
    write_description,
)
from adcam.training.prediction import (
    check_mmsegmentation,
    open_split,
    read_true_mask,
    write_masks,
)
from adcam.training.predictor import Predictor
from adcam.training.repeatable import (
    RepeatableSampler,
    balance_weights,
    hold_work_dir,
    start_processes,
    wrap_model,
)
from adcam.training.runner import TrainingParts, build_runner, keep_from_terminal
from adcam.training.segmenter_file import (
    SEGMENTER_NAME,
    build_network,
    check_heads,
    describe_training,
    reads_confidence,
    save_segmenter,
)

if TYPE_CHECKING:
    from adcam.seg.dataset import Confidence

logger = logging.getLogger(__name__)

_SHOWN = 10
_MASKS = "train_masks"
_CURE = "take another folder, or start over with --restart"


def load_segmentation_settings(
    path: str | Path, overrides: Mapping[str, Any] | None = None
) -> SegmentationSettings:
    """Read a config of ``configs/seg`` or of your own.

    Args:
        path: The file.
        overrides: Dotted keys to values, as ``--cfg-options``.

    Raises:
        AdcamError: It cannot be read, lacks a section, or has options that nothing reads; or
            mmsegmentation cannot be imported.
    """
    check_mmsegmentation()
    settings = load_settings(path, overrides, kind=SegmentationSettings)
    needed = ("data", "model", "train", "train_pipeline", "optim_wrapper")
    if missing := [name for name in needed if name not in settings]:
        raise AdcamError(f"{path}: a segmentation config needs the sections {missing}")
    _check_crops(path, settings)
    return settings


def _check_crops(path: str | Path, settings: SegmentationSettings) -> None:
    """Refuse crops of another size than batches are padded to: smaller ones fail or change nothing.

    Raises:
        AdcamError: ``train.crop_size`` and a crop of ``train_pipeline`` differ, and no later
            ``Resize`` brings the crop to ``train.crop_size``.
    """
    height, width = settings.train.crop_size
    for i, step in reversed([*enumerate(settings.train_pipeline)]):
        # mmcv's transform has (width, height); before it, crops may have any size.
        is_fitting = step.get("type") == "Resize" and not step.get("keep_ratio")
        if is_fitting and _as_pair(step.get("scale")) == (width, height):
            return
        crop = step.get("crop_size", (height, width))
        if step.get("type") == "RandomCrop" and _as_pair(crop) != (height, width):
            raise AdcamError(
                f"{path}: train_pipeline crops to {crop}, and train.crop_size is "
                f"{height}×{width}; change both, such as train.crop_size=[{height},{width}] "
                f"train_pipeline.{i}.crop_size=[{height},{width}]"
            )


def _as_pair(size: Any) -> tuple[Any, ...]:
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def check_segmentation(settings: SegmentationSettings) -> dict[str, Any]:
    """Find what would stop a training or spoil it, before it starts.

    Every mask is read: it must be there, of its image's size, an 8-bit PNG of indices, and hold
    only values of the classes. Classes that no training mask shows are logged as warnings.

    Returns:
        By split: ``images``, ``masks``, ``pixels`` by class name, and ``ignored`` pixels.
        JSON-serialisable.

    Raises:
        AdcamError: Something is wrong; the message names files, values and what would be right.
    """
    val_set = open_split(settings, _val_split(settings))
    return _check_sets(settings, _open_train_sets(settings), val_set)


def _check_sets(
    settings: SegmentationSettings, train: Mapping[str, ImageDataset], val_set: ImageDataset
) -> dict[str, Any]:
    check_heads(settings, next(iter(train.values())).class_set)
    splits = {**train, _val_split(settings): val_set}
    found = {split: _check_images(images, split) for split, images in splits.items()}
    pixels = [found[split]["pixels"] for split in train]
    absent = [name for name in pixels[0] if not any(counts[name] for counts in pixels)]
    if absent:
        logger.warning(
            "no mask of %s shows %s: the network cannot learn it",
            " or ".join(map(repr, train)),
            join_some(absent, _SHOWN),
        )
    return found


def train_segmenter(
    settings: SegmentationSettings,
    *,
    work_dir: str | Path,
    resume: bool = True,
    launcher: str = "none",
) -> Path:
    """Train as the settings say.

    Args:
        settings: What :func:`load_segmentation_settings` returned.
        work_dir: Where checkpoints and logs go.
        resume: Whether to resume from the newest checkpoint in ``work_dir`` that can be read.
        launcher: ``"none"``, ``"pytorch"`` (torchrun) or ``"slurm"``.

    Returns:
        ``work_dir/segmenter.safetensors``, the network after the last step. It is not chosen by
        its score: the validation images have the true masks that training must not know.

    Raises:
        AdcamError: As :func:`check_segmentation`; weights do not fit; ``work_dir`` holds a training
            of another network or on other data; another process works there; the training
            diverges; or it has ``train.confidence``, and several rounds or no loss that reads it.
    """
    train, work_dir = settings.train, Path(work_dir)
    if train.amp == "float16" and not torch.cuda.is_available():
        raise AdcamError("train.amp 'float16' needs a GPU; on a CPU take 'bfloat16' or 'none'")
    if train.confidence and settings.self_training.rounds > 1:
        raise AdcamError(
            "train.confidence weights pixels by the maps of their masks, and the masks that "
            "self_training makes have none; leave one of the two out"
        )
    if train.confidence and not reads_confidence(settings.model):
        raise AdcamError(
            "train.confidence is read by the loss ConfidenceCrossEntropy alone, and no head of the "
            "model has it; set model.decode_head.loss_decode to dict(type='ConfidenceCrossEntropy')"
        )
    keep_from_terminal()
    start_processes(launcher)
    with hold_work_dir(work_dir, again="the same command"):
        if settings.self_training.rounds == 1:
            return _train_once(settings, work_dir, resume, launcher)
        return _train_rounds(settings, work_dir, resume, launcher)


def _train_rounds(
    settings: SegmentationSettings, work_dir: Path, resume: bool, launcher: str
) -> Path:
    round_dirs = [work_dir / f"round_{i + 1}" for i in range(settings.self_training.rounds)]
    if not resume and is_main_process():
        for round_dir in round_dirs[1:]:
            forget_training(round_dir, SEGMENTER_NAME)
    for round_dir in round_dirs:
        path = round_dir / SEGMENTER_NAME
        if not (resume and path.is_file()):
            _train_once(settings, round_dir, resume, launcher)
        elif is_main_process():
            description = _describe(settings, _open_train_sets(settings))
            refuse_another_training(round_dir, description, cure=_CURE)
        if round_dir != round_dirs[-1]:
            settings = _with_masks_of(settings, path, round_dir / _MASKS)
    if is_main_process():
        write_bytes(work_dir / SEGMENTER_NAME, path.read_bytes())
    return work_dir / SEGMENTER_NAME


def _train_once(
    settings: SegmentationSettings, work_dir: Path, resume: bool, launcher: str
) -> Path:
    train = settings.train
    checkpoint = find_checkpoint(work_dir, cure=_CURE) if resume else None
    val_set = open_split(settings, _val_split(settings))
    train_sets = _open_train_sets(settings, labels=train.balance > 0)
    description: dict[str, Any] = {}
    if is_main_process():
        description = _describe(settings, train_sets)
        if checkpoint is not None:
            # What began once was checked; on COCO that takes minutes.
            refuse_another_training(work_dir, description, cure=_CURE)
        else:
            _check_sets(settings, train_sets, val_set)
    barrier()
    check_heads(settings, val_set.class_set)
    torch.manual_seed(train.seed)
    parts = _build_parts(settings, [*train_sets.values()], val_set)
    if is_main_process():
        if checkpoint is None:
            forget_training(work_dir, SEGMENTER_NAME)
            shutil.rmtree(work_dir / _MASKS, ignore_errors=True)
        write_description(work_dir, description)
    runner = build_runner(parts, settings, work_dir, checkpoint=checkpoint, launcher=launcher)
    runner.train()
    network = runner.model.module if is_model_wrapper(runner.model) else runner.model
    path = work_dir / SEGMENTER_NAME
    was_done = checkpoint is not None and checkpoint.stem == f"iter_{train.max_iters}"
    if is_main_process() and not (was_done and path.is_file()):
        save_segmenter(path, network, settings, val_set.class_set)
    return path


def _describe(settings: SegmentationSettings, train: Mapping[str, ImageDataset]) -> dict[str, Any]:
    """What decides the network that comes out, with a hash of the pseudo masks it learns from."""
    masks = settings.data.masks
    found = None if masks is None else read_output_folder(Path(masks).expanduser())
    hashes = None
    if found is not None:
        records = (record for images in train.values() for record in images.records)
        hashes = hash_values([found.entries.get(r.img_id, {}).get("mask") for r in records])
    return {**describe_training(settings), "mask_files": hashes}


def _build_parts(
    settings: SegmentationSettings, train_sets: Sequence[ImageDataset], val_set: ImageDataset
) -> TrainingParts:
    from adcam.seg.dataset import SegmentationDataset, WholeImages

    train = settings.train
    confidence = _read_confidence(settings) if train.confidence else None
    model = wrap_model(build_network(settings, sync=is_distributed()))
    sets = [
        SegmentationDataset(images, images.class_set, settings.train_pipeline, confidence)
        for images in train_sets
    ]
    shown = [record.class_ids or () for images in train_sets for record in images.records]
    train_set: Dataset[Any] = ConcatDataset(sets)
    train_set.metainfo = sets[0].metainfo  # type: ignore[attr-defined]
    # In float16 gradients are scaled; a classifier does without, as it always has.
    scaled = {"type": "AmpOptimWrapper"} if train.amp == "float16" else {}
    return TrainingParts(
        name="segmenter",
        model=model,
        train_set=train_set,
        sampler=RepeatableSampler(
            len(shown), train.seed, balance_weights(shown, train.balance) if train.balance else None
        ),
        val_set=WholeImages(val_set, val_set.class_set),
        metric=SegmentationScore(val_set.class_set),
        batch_size=train.batch_size,
        val_batch_size=1,
        collate="pseudo_collate",
        by_epoch=False,
        length=train.max_iters,
        val_interval=train.val_interval or train.max_iters,
        checkpoint_interval=train.checkpoint_interval or train.max_iters,
        optim_wrapper={**settings.optim_wrapper, **scaled},
        scope="mmseg",
    )


class SegmentationScore(BaseMetric):
    """mIoU of the validation images under mmengine, gathered over processes."""

    def __init__(self, class_set: ClassSet) -> None:
        super().__init__(collect_device="gpu")  # through the backend of the processes, as always
        self._num_classes = class_set.num_fg_classes + 1
        self._names = ("background", *class_set.classes)

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep the counts of a batch: those that are not zero, as most are."""
        for pred, target in data_samples:
            counts = compute_confusion(pred, target, num_classes=self._num_classes).ravel()
            cells = np.flatnonzero(counts)
            self.results.append((cells, counts[cells]))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """``mIoU``, ``aAcc`` and ``IoU/<class>`` in percent."""
        metric = MeanIoU(self._num_classes)
        for cells, counts in results:
            confusion = np.zeros((self._num_classes, self._num_classes + 1), dtype=np.int64)
            confusion.ravel()[cells] = counts
            metric.add_confusion(confusion)
        result = metric.compute()
        per_class = zip(self._names, result.iou_per_class, strict=True)
        return {
            "mIoU": result.miou,
            "aAcc": result.pixel_accuracy,
            **{f"IoU/{name}": iou for name, iou in per_class},
        }


def _with_masks_of(
    settings: SegmentationSettings, checkpoint: Path, out: Path
) -> SegmentationSettings:
    """The settings of the next round: the network's masks of the training images as its masks.

    What the network sees and may say is ``self_training``'s: image labels are known in training.
    """
    section = settings.to_dict().get("self_training", {})
    test = {key: value for key, value in section.items() if key != "rounds"}
    test["labels"] = settings.self_training.labels
    if is_main_process():
        predicting = settings.with_changes({"test": test})
        for split in settings.data.train:
            images = open_split(settings, split, labels=True)
            predictor = Predictor(predicting, checkpoint, images.class_set)
            if (config := out / CONFIG_NAME).is_file():
                refuse_differences(
                    f"{out} holds masks", read_json(config), predictor.description, cure=_CURE
                )
            for _ in track(write_masks(images, predictor, out), f"masks {split}", len(images)):
                pass
    barrier()
    return settings.with_changes({"data.masks": str(out)})


def _val_split(settings: SegmentationSettings) -> str:
    if settings.data.val is None:
        raise AdcamError("data.val must name the list of images that is validated on")
    return settings.data.val


def _open_train_sets(
    settings: SegmentationSettings, *, labels: bool = False
) -> dict[str, ImageDataset]:
    """Training images by split, with the pseudo masks of ``data.masks`` if it names any."""
    if not settings.data.train:
        raise AdcamError("data.train must name at least one list of images")
    sets = {split: open_split(settings, split, labels=labels) for split in settings.data.train}
    if (folder := settings.data.masks) is None:
        return sets
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise AdcamError(
            f"data.masks {path} is no folder; name the one that `adcam generate` made, or, if a "
            "training is to go on and its masks were moved, where they are now"
        )
    masks = masks_folder(path)
    own = read_output_folder(masks)
    known = read_converted_classes(masks) if own is None else own.class_set
    refuse_other_numbers(path, known, next(iter(sets.values())).class_set)
    return {
        split: ImageDataset(
            images.class_set,
            split,
            [replace(r, mask_path=masks / f"{r.img_id}.png") for r in images.records],
        )
        for split, images in sets.items()
    }


def _check_images(images: ImageDataset, split: str) -> dict[str, Any]:
    """Read every mask; all problems of a split in one error."""
    counts = np.zeros(256, dtype=np.int64)
    problems: list[str] = []
    for index in track(range(len(images)), f"check {split}", len(images)):
        try:
            counts += np.bincount(read_true_mask(images, index).ravel(), minlength=256)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
        more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise AdcamError(
            f"split {split!r}: {len(problems)} of {len(images)} images cannot be used:\n"
            f"{shown}{more}"
        )
    values = [int(counts[v]) for v in (0, *images.class_set.mask_values)]
    if not sum(values[1:]):
        found = np.flatnonzero(counts).tolist()
        cure = (
            "; where 255 is the object, `adcam convert recode-masks MASKS --values 255=1 "
            "--classes NAME` helps"
        )
        raise AdcamError(
            f"split {split!r}: no mask shows a class; their values are "
            f"{', '.join(map(str, found))}, but the classes have "
            f"{', '.join(map(str, images.class_set.mask_values))}"
            f"{cure if found in ([255], [0, 255]) else ''}"
        )
    names = (images.class_set.name_of_value(v) for v in (0, *images.class_set.mask_values))
    return {
        "images": len(images),
        "masks": len(images),
        "pixels": dict(zip(names, values, strict=True)),
        "ignored": int(counts[IGNORE_INDEX]),
    }


def _read_confidence(settings: SegmentationSettings) -> Confidence:
    """From a sample to how far its pseudo mask is trusted, read from the maps that made it.

    The score of the pixel's class; of background, what the likeliest class leaves.
    """
    if settings.data.masks is None:
        raise AdcamError("train.confidence needs data.masks, the folder of `adcam generate`")
    folder = Path(settings.data.masks).expanduser() / MAPS_DIR
    if not folder.is_dir():
        raise AdcamError(
            f"train.confidence needs the maps of the pseudo masks, but there is no {folder}; make "
            "them with `adcam generate --save-maps`"
        )

    def confidence(sample: Sample) -> np.ndarray:
        stored = load_maps(folder / f"{sample.img_id}.npz")
        maps = stored.upsample()
        trust = 1 - maps.score_maps.max(axis=0, initial=0)
        for class_id, score_map in zip(maps.class_ids, maps.score_maps, strict=True):
            trust = np.where(sample.mask == stored.mask_values[class_id], score_map, trust)
        return np.rint(255 * trust).astype(np.uint8)

    return confidence
