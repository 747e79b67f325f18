"""Training, testing and using a segmentation network on pseudo masks."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import barrier, is_distributed, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint
from safetensors import safe_open
from safetensors.torch import save
from torch.utils.data import ConcatDataset, Dataset

from adcam.data.dataset import ImageDataset
from adcam.data.images import ImageError, read_image_hw
from adcam.data.open_images import open_images
from adcam.data.png import read_mask, write_mask
from adcam.data.sources import build_dataset, find_class_set
from adcam.errors import AdcamError
from adcam.files import hash_file, hash_or_none, hash_values, write_bytes, write_json
from adcam.installation import why_not_importable
from adcam.labeling.maps_file import load_maps
from adcam.labeling.output_folder import MAPS_DIR, MASK_DIR, RunFolder, diff_configs, masks_folder
from adcam.masks.crf import CRF_PARAMS, refine
from adcam.metrics.miou import MeanIoU, compute_confusion, name_classes
from adcam.models.checkpoints import load_state_dict
from adcam.models.weights import find_weights, load_any_backbone_weights
from adcam.progress import track
from adcam.settings import load_config
from adcam.structures import IGNORE_INDEX, ClassSet, Sample
from adcam.training.repeatable import (
    RUNS,
    RepeatableDataset,
    RepeatableSampler,
    RepeatableSteps,
    check_keys,
    fit_schedulers,
    start_processes,
    wrap_model,
)
from adcam.version import __version__

if TYPE_CHECKING:
    from adcam.seg.dataset import Confidence
    from adcam.seg.segmenter import Segmenter, SegViews

TRAIN_KEYS = (
    *("max_iters", "batch_size", "num_workers", "crop_size", "amp", "seed", "confidence"),
    *("val_interval", "checkpoint_interval", "log_interval"),
)
TEST_KEYS = ("split", "scales", "flip", "short_side", "crf", "labels", "min_prob")
DATA_KEYS = (
    *("source", "root", "classes", "labels", "train", "val", "mask_dir", "metadata"),
    *("expected_counts", "masks"),
)
SEGMENTER_NAME = "segmenter.safetensors"
SELF_TRAINING_KEYS = ("rounds", *(key for key in TEST_KEYS if key != "split"))
_TRAINING_NAME = "training.json"
_SHOWN = 10


def read_segmentation_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config of ``configs/seg`` or of your own.

    Args:
        path: The file.
        options: Dotted keys to values, as ``--cfg-options``.

    Raises:
        AdcamError: It cannot be read, lacks a section, or has options that nothing reads; or
            mmsegmentation cannot be imported.
    """
    if (reason := why_not_importable("mmseg.models")) is not None:
        raise AdcamError(f"segmentation networks need mmsegmentation: {reason}")
    config = load_config(path, options)
    needed = ("data", "model", "train", "train_pipeline", "test", "optim_wrapper")
    if missing := [key for key in (*needed, "param_scheduler") if key not in config]:
        raise AdcamError(f"{path}: a segmentation config needs the sections {missing}")
    check_keys(config.data, DATA_KEYS, "data")
    check_keys(config.train, TRAIN_KEYS, "train")
    check_keys(config.test, TEST_KEYS, "test")
    check_keys(config.get("self_training", {}), SELF_TRAINING_KEYS, "self_training")
    return config


def check_segmentation(config: Config) -> dict[str, Any]:
    """Find what would stop a training or spoil it, before it starts.

    Every mask is read: it must be there, of its image's size, an 8-bit PNG of indices, and hold
    only values of the classes.

    Returns:
        By split: ``images``, ``masks``, ``pixels`` by class name, and ``ignored`` pixels.
        JSON-serialisable.

    Raises:
        AdcamError: Something is wrong; the message names files, values and what would be right.
    """
    splits = {**_train_sets(config), config.data.val: _build_split(config, config.data.val)}
    check_heads(config, next(iter(splits.values())).class_set)
    return {split: _check_images(images, split) for split, images in splits.items()}


def check_heads(config: Config, class_set: ClassSet) -> None:
    """Every head must have an output for background and each class.

    Raises:
        AdcamError: One has another number.
    """
    wanted = class_set.num_fg_classes + 1
    for name in ("decode_head", "auxiliary_head"):
        heads = config.model.get(name) or []
        for head in heads if isinstance(heads, list) else [heads]:
            if head.get("num_classes") != wanted:
                raise AdcamError(
                    f"model.{name}.num_classes is {head.get('num_classes')}, but the data has "
                    f"{wanted} classes: background and {class_set.num_fg_classes} of "
                    f"{class_set.name}"
                )


def train_segmenter(
    config: Config, *, work_dir: str | Path, resume: bool = True, launcher: str = "none"
) -> Path:
    """Train as the config says.

    Args:
        config: Of :func:`read_segmentation_config`.
        work_dir: Where checkpoints and logs go.
        resume: Go on from the newest checkpoint in ``work_dir``, if there is one.
        launcher: ``"none"``, ``"pytorch"`` (torchrun) or ``"slurm"``.

    Returns:
        ``work_dir/segmenter.safetensors``, the network after the last step. It is not chosen by
        its score: the validation images have the true masks that training must not know.

    Raises:
        AdcamError: As :func:`check_segmentation`; weights do not fit; or ``work_dir`` holds a
            training of another network or on other data.
    """
    work_dir = Path(work_dir)
    rounds = config.get("self_training", {}).get("rounds", 1)
    if rounds == 1:
        return _train_once(config, work_dir, resume, launcher)
    for number in range(1, rounds + 1):
        round_dir = work_dir / f"round_{number}"
        path = round_dir / SEGMENTER_NAME
        if not (resume and path.is_file()):
            _train_once(config, round_dir, resume, launcher)
        if number < rounds:
            config = _with_masks_of(config, path, round_dir / "train_masks")
    if is_main_process():
        write_bytes(work_dir / SEGMENTER_NAME, path.read_bytes())
    return work_dir / SEGMENTER_NAME


def _train_once(config: Config, work_dir: Path, resume: bool, launcher: str) -> Path:
    from adcam.seg.dataset import SegmentationDataset, WholeImages

    options = config.train
    if options.amp == "float16" and not torch.cuda.is_available():
        raise AdcamError("train.amp 'float16' needs a GPU; on a CPU take 'bfloat16' or 'none'")
    start_processes(launcher)
    # What began once was checked; on COCO that takes minutes.
    begun = resume and find_latest_checkpoint(str(work_dir)) is not None
    if is_main_process():
        if begun:
            _refuse_another_training(work_dir, config)
        else:
            check_segmentation(config)
    barrier()
    train_sets = _train_sets(config)
    val_set = _build_split(config, config.data.val)
    check_heads(config, val_set.class_set)
    seed = options.seed
    torch.manual_seed(seed)
    confidence = _read_confidence(config) if options.get("confidence") else None
    model = wrap_model(_build_network(config, sync=is_distributed()))
    parts = [
        SegmentationDataset(images, images.class_set, config.train_pipeline, confidence)
        for images in train_sets.values()
    ]
    dataset: Dataset[Any] = ConcatDataset(parts)
    dataset.metainfo = parts[0].metainfo  # type: ignore[attr-defined]
    workers = {"num_workers": options.num_workers, "persistent_workers": options.num_workers > 0}
    amp_wrapper = {"type": "AmpOptimWrapper"} if options.amp == "float16" else {}
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=options.batch_size,
            dataset=RepeatableDataset(dataset, seed),
            sampler=RepeatableSampler(sum(len(part) for part in parts), seed),
            collate_fn={"type": "pseudo_collate"},
            **workers,
        ),
        val_dataloader=dict(
            batch_size=1,
            dataset=WholeImages(val_set, val_set.class_set),
            sampler={"type": "DefaultSampler", "shuffle": False},
            collate_fn={"type": "pseudo_collate"},
            **workers,
        ),
        val_evaluator=[SegmentationScore(val_set.class_set)],
        train_cfg={
            "type": "IterBasedTrainLoop",
            "max_iters": options.max_iters,
            "val_interval": options.get("val_interval", options.max_iters),
        },
        val_cfg={},
        optim_wrapper={**config.optim_wrapper.to_dict(), **amp_wrapper},
        param_scheduler=fit_schedulers(config.param_scheduler, options.max_iters),
        default_hooks={
            "logger": {
                "type": "LoggerHook",
                "interval": options.get("log_interval", 50),
                "log_metric_by_epoch": False,
            },
            "checkpoint": {
                "type": "CheckpointHook",
                "by_epoch": False,
                "interval": options.get("checkpoint_interval", options.max_iters),
                # mmengine removes the oldest before it writes; a kill then must leave one whole.
                "max_keep_ckpts": 2,
            },
        },
        custom_hooks=[RepeatableSteps(seed)],
        log_processor={"by_epoch": False},
        visualizer={
            "type": "Visualizer",
            "vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
        },
        default_scope="mmseg",
        resume=resume,
        launcher=launcher,
        randomness={"seed": seed},
        cfg=Config({"adcam": config.to_dict()}),
        experiment_name=f"segmenter_{next(RUNS)}",
    )
    if is_main_process():
        write_json(work_dir / _TRAINING_NAME, _describe_training(config))
    runner.train()
    network = runner.model.module if is_model_wrapper(runner.model) else runner.model
    path = work_dir / SEGMENTER_NAME
    if is_main_process():
        _save_segmenter(path, network, config, val_set.class_set)
    return path


def _describe_training(config: Config) -> dict[str, Any]:
    """What decides the network that comes out: all but how it is watched and tested."""
    values = {k: v for k, v in config.to_dict().items() if k not in ("test", "self_training")}
    watched = ("num_workers", "val_interval", "checkpoint_interval", "log_interval")
    values["train"] = {k: v for k, v in values["train"].items() if k not in watched}
    described: dict[str, Any] = json.loads(json.dumps(values))
    return described


def _refuse_another_training(work_dir: Path, config: Config) -> None:
    path = work_dir / _TRAINING_NAME
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if differences := diff_configs(found, _describe_training(config)):
        raise AdcamError(
            f"{work_dir} holds a training with another configuration (found -> asked for):\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nTake another folder, or start this one anew with --restart."
        )


def test_segmenter(
    config: Config,
    checkpoint: str | Path,
    *,
    work_dir: str | Path,
    masks_out: str | Path | None = None,
) -> dict[str, Any]:
    """Score a network on ``config.test.split``; counts are int64 (docs/metrics.md).

    Args:
        config: Of :func:`read_segmentation_config`.
        checkpoint: Of :func:`train_segmenter`.
        work_dir: ``test_<split>.json`` goes here.
        masks_out: Folder for the predicted masks, resumable as that of :func:`predict_segmenter`.

    Returns:
        As :func:`adcam.evaluation.masks_on_disk.evaluate_masks`, and ``confusion`` (rows true, cols
        predicted, the last one for 255), ``classes``, ``split``, ``checkpoint`` (its hash) and
        ``test`` (the config's section). JSON-serialisable.

    Raises:
        AdcamError: The checkpoint does not fit, or files of the split are wrong.
    """
    from adcam.seg.dataset import class_names, index_of_value

    split = config.test.get("split", config.data.val)
    images = _build_split(config, split, labels=config.test.get("labels", "none") == "given")
    if not any(record.mask_path for record in images.records):
        raise AdcamError(f"split {split!r} has no masks to score against")
    predictor = _Predictor(config, checkpoint, images.class_set)
    masks = (
        map(predictor, images)
        if masks_out is None
        else _write_masks(images, predictor, Path(masks_out))
    )
    table = index_of_value(images.class_set)
    metric = MeanIoU(images.class_set.num_fg_classes + 1)
    for index, mask in enumerate(track(masks, f"test {split}", len(images))):
        truth = images[index].mask
        if truth is None:
            raise AdcamError(f"image {images.records[index].img_id!r} of {split!r} has no mask")
        metric.update(table[mask], table[truth])
    result = metric.compute()
    names = class_names(images.class_set)
    scores = {
        **name_classes(result, dict(enumerate(names))),
        "classes": list(names),
        "confusion": result.confusion.tolist(),
        "split": split,
        "checkpoint": hash_file(checkpoint),
        "test": config.test.to_dict(),
    }
    write_json(Path(work_dir) / f"test_{split}.json", scores)
    return scores


def predict_segmenter(
    config: Config, checkpoint: str | Path, images: str | Path, out: str | Path
) -> dict[str, Any]:
    """Write a palette mask for every image.

    Run again, it goes on where it stopped (:mod:`adcam.labeling.output_folder`).

    Args:
        config: Of :func:`read_segmentation_config`; ``test.labels`` plays no part.
        checkpoint: Of :func:`train_segmenter`.
        images: A folder, a list or one image (:func:`adcam.data.open_images.open_images`).
        out: ``masks/<id>.png``, ``config.json`` and ``manifest.jsonl`` go here.

    Returns:
        ``masks`` (the folder), ``ok``, ``failed`` (error by image id).

    Raises:
        AdcamError: There are no images, or the checkpoint does not fit.
    """
    class_set = find_class_set(config.data)
    found = open_images(images, class_set, labels=None, leave_out=[Path(out)])
    settings = Config({**config.to_dict(), "test": {**config.test.to_dict(), "labels": "none"}})
    predictor = _Predictor(settings, checkpoint, class_set)
    failed: dict[str, str] = {}
    for _ in track(_write_masks(found, predictor, Path(out), failed), "predict", len(found)):
        pass
    return {
        "masks": str(Path(out) / MASK_DIR),
        "ok": len(found) - len(failed),
        "failed": failed,
    }


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


class _Predictor:
    """From a sample to its mask values, uint8 (H, W), as ``config.test`` says."""

    def __init__(self, config: Config, checkpoint: str | Path, class_set: ClassSet) -> None:
        from adcam.seg.dataset import value_of_index

        self.class_set = class_set
        self._test = config.test
        if (crf := self._test.get("crf", "none")) not in ("none", *CRF_PARAMS):
            raise AdcamError(f"test.crf must be 'none' or one of {sorted(CRF_PARAMS)}, got {crf!r}")
        if (labels := self._test.get("labels", "none")) not in ("none", "given"):
            raise AdcamError(f"test.labels must be 'none' or 'given', got {labels!r}")
        check_heads(config, class_set)
        self._segmenter = _build_network(config, sync=False, weights=False)
        _load_segmenter(self._segmenter, checkpoint, class_set)
        self._segmenter.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._values = value_of_index(class_set)
        self.description = {
            "adcam": __version__,
            "labeler": {
                "kind": "segmenter",
                "checkpoint": hash_file(checkpoint),
                "model": hash_values(config.model.to_dict()),
                "classes": list(class_set.classes),
                "mask_values": list(class_set.mask_values),
                "test": {k: v for k, v in self._test.to_dict().items() if k != "split"},
            },
        }

    def __call__(self, sample: Sample) -> np.ndarray:
        prob = self._segmenter.compute_probabilities(sample.img)
        indices = np.arange(len(prob))
        if self._test.get("labels", "none") == "given":
            if sample.class_ids is None:
                raise AdcamError(f"image {sample.img_id!r} has no labels to keep to")
            indices = np.array([0, *(i + 1 for i in sample.class_ids)])
            prob = prob[indices] / prob[indices].sum(axis=0)
        if (crf := self._test.get("crf", "none")) != "none":
            # The time of a CRF grows with its labels, and one that no pixel believes in never wins.
            likely = np.flatnonzero(prob.reshape(len(prob), -1).max(axis=1) >= _LIKELY)
            prob, indices = prob[likely], indices[likely]
            if len(prob) > 1:
                prob = refine(prob / prob.sum(axis=0), sample.img, crf=crf)
        mask = self._values[indices[prob.argmax(axis=0)]]
        mask[prob.max(axis=0) < self._test.get("min_prob", 0.0)] = IGNORE_INDEX
        return mask


_LIKELY = 0.05


def _write_masks(
    images: ImageDataset, predictor: _Predictor, out: Path, failed: dict[str, str] | None = None
) -> Iterator[np.ndarray | None]:
    """Masks of all images, those that an earlier run wrote read back from the folder.

    An image that cannot be read ends the run, or, where there is a ``failed``, is noted in it.
    """
    folder = RunFolder(out, predictor.description)
    for index, record in enumerate(images.records):
        path = folder.mask_path(record.img_id)
        if folder.is_done(record.img_id, {}):
            yield read_mask(path)
            continue
        entry = {"id": record.img_id, "image": str(record.img_path)}
        try:
            sample = Sample(record.img_id, images.load_image(index), record.class_ids)
        except ImageError as error:
            if failed is None:
                raise
            failed[record.img_id] = str(error)
            folder.append({**entry, "status": "failed", "error": str(error)})
            yield None
            continue
        mask = predictor(sample)
        write_mask(path, mask, images.class_set.palette)
        hashes = {"mask": hash_or_none(path), "maps": None}
        folder.append({**entry, "status": "ok", **hashes})
        yield mask
    folder.finish(record.img_id for record in images.records)


def _with_masks_of(config: Config, checkpoint: Path, out: Path) -> Config:
    """The config of the next round: the network's masks of the training images in place of the old.

    What the network sees and may say is ``self_training``'s: image labels are known in training.
    """
    section = {key: value for key, value in config.self_training.items() if key != "rounds"}
    if is_main_process():
        settings = copy.deepcopy(config)
        settings.test = {**config.test, "labels": "given", **section}
        splits = [config.data.train] if isinstance(config.data.train, str) else config.data.train
        for split in splits:
            images = _build_split(config, split, labels=True)
            predictor = _Predictor(settings, checkpoint, images.class_set)
            for _ in track(_write_masks(images, predictor, out), f"masks {split}", len(images)):
                pass
    barrier()
    following = copy.deepcopy(config)
    following.data.masks = str(out)
    return following


def _build_split(config: Config, split: str, *, labels: bool = False) -> ImageDataset:
    images = build_dataset(config.data, split, labels=labels)
    if not len(images):
        raise AdcamError(f"split {split!r} is empty")
    return images


def _train_sets(config: Config) -> dict[str, ImageDataset]:
    """Training images by split, with the pseudo masks of ``data.masks`` if it names any."""
    splits = [config.data.train] if isinstance(config.data.train, str) else config.data.train
    sets = {split: _build_split(config, split) for split in splits}
    if (folder := config.data.get("masks")) is None:
        return sets
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise AdcamError(f"data.masks {path} is no folder; `adcam generate` makes one")
    masks = masks_folder(path)
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
    for index, record in enumerate(track(images.records, f"check {split}", len(images))):
        try:
            mask = images.load_mask(index)
            if mask is None:
                raise AdcamError(f"{record.img_id}: there is no mask")
            image_hw = read_image_hw(record.img_path)
            if mask.shape != image_hw:
                raise AdcamError(
                    f"{record.mask_path}: {mask.shape[0]}×{mask.shape[1]} pixels (height × width), "
                    f"but its image {record.img_path} has {image_hw[0]}×{image_hw[1]}"
                )
            counts += np.bincount(mask.ravel(), minlength=256)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
        more = f"\n  … and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise AdcamError(
            f"split {split!r}: {len(problems)} of {len(images)} images cannot be used:\n"
            f"{shown}{more}"
        )
    names = (images.class_set.name_of_value(v) for v in (0, *images.class_set.mask_values))
    values = [int(counts[v]) for v in (0, *images.class_set.mask_values)]
    return {
        "images": len(images),
        "masks": len(images),
        "pixels": dict(zip(names, values, strict=True)),
        "ignored": int(counts[IGNORE_INDEX]),
    }


def _build_network(config: Config, *, sync: bool, weights: bool = True) -> Segmenter:
    from adcam.seg.segmenter import SegViews, build_segmenter

    test = config.test
    views: SegViews = SegViews(
        scales=tuple(test.get("scales", (1.0,))),
        flip=test.get("flip", False),
        short_side=test.get("short_side"),
    )
    segmenter = build_segmenter(
        config.model,
        amp=config.train.amp,
        views=views,
        crop_size=tuple(config.train.crop_size),
        sync=sync and torch.cuda.is_available(),
    )
    segmenter.init_weights()
    if weights and (source := config.get("weights")) is not None:
        backbone: Any = segmenter.backbone
        path = find_weights(source, config.model.backbone.get("name"))
        load_any_backbone_weights(getattr(backbone, "network", backbone), path)
    return segmenter


def _save_segmenter(path: Path, segmenter: Segmenter, config: Config, class_set: ClassSet) -> None:
    tensors = {name: value.cpu().contiguous() for name, value in segmenter.state_dict().items()}
    # Without the places of files: the same training in another folder gives the same bytes.
    settings = {k: v for k, v in _describe_training(config).items() if k != "weights"}
    settings["data"] = {k: v for k, v in settings["data"].items() if k not in ("root", "masks")}
    header = {
        "adcam": __version__,
        "classes": list(class_set.classes),
        "max_iters": config.train.max_iters,
        "config": hash_values(settings),
    }
    write_bytes(path, save(tensors, metadata={"segmenter": json.dumps(header)}))


def _load_segmenter(segmenter: Segmenter, checkpoint: str | Path, class_set: ClassSet) -> None:
    """Load tensors of :func:`train_segmenter`, or of mmsegmentation where names are the same."""
    checkpoint = Path(checkpoint)
    if checkpoint.suffix == ".safetensors" and checkpoint.is_file():
        with safe_open(checkpoint, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("segmenter", "{}"))
        if (trained := header.get("classes", list(class_set.classes))) != list(class_set.classes):
            raise AdcamError(
                f"{checkpoint}: was trained for the classes {trained}, but the config has "
                f"{list(class_set.classes)}"
            )
    own = segmenter.state_dict()
    state = load_state_dict(checkpoint)
    wrong = [
        f"{name}: {tuple(state[name].shape) if name in state else 'missing'} in the file, "
        f"{tuple(value.shape)} in the network"
        for name, value in own.items()
        if name not in state or state[name].shape != value.shape
    ]
    if wrong:
        raise AdcamError(
            f"{checkpoint}: does not fit the network of the config, {len(wrong)} tensors differ: "
            + "; ".join(wrong[:5])
        )
    segmenter.load_state_dict({name: state[name] for name in own})


def _read_confidence(config: Config) -> Confidence:
    """From a sample to how far its pseudo mask is trusted, read from the maps that made it.

    The score of the pixel's class; of background, what the likeliest class leaves.
    """
    if config.data.get("masks") is None:
        raise AdcamError("train.confidence needs data.masks, the folder of `adcam generate`")
    folder = Path(config.data.masks).expanduser() / MAPS_DIR
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
