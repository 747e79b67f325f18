"""Training a classifier on image-level labels with mmengine's Runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from adcam.data.augment import EvalView, TrainView, class_counts
from adcam.data.dataset import ImageDataset
from adcam.data.sources import build_dataset
from adcam.errors import AdcamError
from adcam.files import hash_values
from adcam.metrics.classification import MultiLabelAP
from adcam.models.classifier import Classifier, InCA
from adcam.models.classifier_file import load_classifier, save_classifier
from adcam.models.networks import DEFAULT_KIND, build_network, network_options
from adcam.models.weights import load_ts_cam_weights
from adcam.structures import ClassSet
from adcam.training.repeatable import (
    RUNS,
    RepeatableDataset,
    RepeatableEpochs,
    RepeatableSteps,
    check_keys,
    fit_schedulers,
    start_processes,
    wrap_model,
)

CLASSIFIER_NAME = "classifier.safetensors"
TASKS = ("segmentation", "localization")
CHOICES = ("best", "last")
TRAIN_KEYS = (
    *("epochs", "img_size", "batch_size", "num_workers", "min_area", "jitter", "resize", "amp"),
    *("cls_token_loss", "choose", "seed", "val_interval", "log_interval"),
)


class MeanAveragePrecision(BaseMetric):
    """mAP of the validation images under mmengine, gathered over processes."""

    def __init__(self, class_set: ClassSet) -> None:
        # "gpu" gathers through the backend of the processes, "cpu" through files in the cwd.
        super().__init__(collect_device="gpu")
        self._class_set = class_set

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep scores and labels of a batch."""
        for score, target in data_samples:
            self.results.append((score.float().cpu().numpy(), target.cpu().numpy()))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """``mAP`` and ``AP/<class>`` in percent; an unreadable image has NaN labels and is dropped.

        Not earlier: gathering takes as many results from every process.
        """
        metric = MultiLabelAP(self._class_set.num_fg_classes)
        for score, target in results:
            if not np.isnan(target).any():
                metric.update(score[None], target[None])
        result = metric.compute()
        per_class = zip(self._class_set.classes, result.ap_per_class, strict=True)
        return {"mAP": result.mean_ap, **{f"AP/{name}": ap for name, ap in per_class}}


class Top1Accuracy(BaseMetric):
    """Share of the validation images, one class each, whose class scores highest."""

    def __init__(self) -> None:
        super().__init__(collect_device="gpu")

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep whether each image of a batch is right, NaN for an unreadable one."""
        for score, target in data_samples:
            right = float(target[score.argmax()])
            self.results.append(right)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """``top1`` in percent."""
        return {"top1": 100 * float(np.nanmean(results))}


class ExportClassifier(Hook):
    """Writes the classifier file after the best validation so far, or after every one."""

    def __init__(
        self,
        path: Path,
        network_options: dict[str, Any],
        class_set: ClassSet,
        info: dict[str, Any],
        best: float | None,
        *,
        score_name: str = "mAP",
        choose: str = "best",
    ) -> None:
        self._path = path
        self._network_options = network_options
        self._class_set = class_set
        self._info = info
        self._best = best
        self._score_name = score_name
        self._choose = choose
        self.has_run = False

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Compare with the best so far."""
        self.has_run = True
        score = float((metrics or {})[self._score_name])
        is_worse = self._best is not None and score <= self._best
        if not is_main_process() or (self._choose == "best" and is_worse):
            return
        self._best = score
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        info = {**self._info, _info_key(self._score_name): score, "epoch": runner.epoch}
        save_classifier(self._path, model.network, self._network_options, self._class_set, info)


def train_classifier(
    cfg: Config, work_dir: str | Path, *, resume: bool = False, launcher: str = "none"
) -> Path:
    """Train as the config says.

    Args:
        cfg: Sections ``data``, ``model``, ``train``, ``optim_wrapper``, ``param_scheduler``;
            ``inca`` for :class:`adcam.models.classifier.InCA`. ``task`` is ``"segmentation"``
            (several classes an image, the default) or ``"localization"`` (one).
        work_dir: Where checkpoints, logs and ``classifier.safetensors`` go.
        resume: Continue from the newest checkpoint in ``work_dir``.
        launcher: ``"none"``, ``"pytorch"`` (torchrun) or ``"slurm"``.

    Returns:
        Path of the classifier: of the epoch with the best score on ``data.val`` (mAP, for one
        class an image Top-1 accuracy), or with ``train.choose="last"`` of the last one. Its
        ``chosen_on`` names that split, ``"oracle"`` where it is also ``data.test``, or is
        ``None``.

    Raises:
        AdcamError: If data, labels or weights are wrong; nothing is written before the checks.
    """
    work_dir = Path(work_dir)
    options = cfg.train
    task, choose = cfg.get("task", TASKS[0]), options.get("choose", CHOICES[0])
    _check_choice("task", task, TASKS)
    _check_choice("train.choose", choose, CHOICES)
    check_keys(options, TRAIN_KEYS, "train")
    network_options, only_for_training = _read_network_options(cfg)
    single_label = task == "localization"
    splits = [cfg.data.train] if isinstance(cfg.data.train, str) else list(cfg.data.train)
    train_sets = [build_dataset(cfg.data, split) for split in splits]
    val_set = build_dataset(cfg.data, cfg.data.val)
    for images in (*train_sets, val_set):
        images.check_files(masks=False)
        if single_label:
            _check_single_labels(images)
    class_set = val_set.class_set
    for images in train_sets:
        if images.class_set.classes != class_set.classes:
            raise AdcamError(
                f"{images.split!r} has {images.class_set.num_fg_classes} classes, "
                f"{val_set.split!r} has {class_set.num_fg_classes}, or others; name them in "
                "data.classes"
            )
    torch.manual_seed(options.seed)
    network = build_network(
        num_fg_classes=class_set.num_fg_classes, **only_for_training, **network_options
    )
    model: nn.Module = Classifier(
        network,
        single_label=single_label,
        amp=options.amp,
        cls_token_loss=options.get("cls_token_loss", 0.0),
        inca=_read_inca(cfg),
    )
    img_size = options.img_size
    train_view: ConcatDataset[dict[str, Tensor]] = ConcatDataset(
        [
            TrainView(
                images,
                img_size=img_size,
                min_area=options.min_area,
                jitter=options.jitter,
                resize=options.get("resize"),
            )
            for images in train_sets
        ]
    )
    info = {
        "config_hash": hash_values(cfg.to_dict()),
        "dataset": class_set.name,
        "train_splits": splits,
        "val_split": cfg.data.val,
        "chosen_on": _name_choice(cfg, choose),
        "train_images": len(train_view),
        "train_counts": {s: class_counts(d) for s, d in zip(splits, train_sets, strict=True)},
    }
    classifier_path = work_dir / CLASSIFIER_NAME
    # On a resume the file, not the checkpoint, knows the best: the checkpoint is older.
    best = None
    score_name = "top1" if single_label else "mAP"
    if resume and classifier_path.is_file():
        best = float(load_classifier(classifier_path).info[_info_key(score_name)])
    export = ExportClassifier(
        classifier_path,
        network_options,
        class_set,
        info,
        best,
        score_name=score_name,
        choose=choose,
    )
    start_processes(launcher)
    model = wrap_model(model)
    # Incomplete batches are dropped, so a set smaller than one makes a smaller batch.
    batch_size = min(options.batch_size, -(-len(train_view) // get_world_size()))
    workers = {"num_workers": options.num_workers, "persistent_workers": options.num_workers > 0}
    collate = {"type": "default_collate"}
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=batch_size,
            dataset=RepeatableDataset(train_view, options.seed),
            sampler=RepeatableEpochs(train_view, shuffle=True, seed=options.seed),
            collate_fn=collate,
            drop_last=True,
            **workers,
        ),
        val_dataloader=dict(
            batch_size=options.batch_size,
            dataset=EvalView(val_set, img_size=img_size),
            sampler={"type": "DefaultSampler", "shuffle": False},
            collate_fn=collate,
            **workers,
        ),
        val_evaluator=[Top1Accuracy() if single_label else MeanAveragePrecision(class_set)],
        train_cfg={
            "by_epoch": True,
            "max_epochs": options.epochs,
            "val_interval": options.get("val_interval", 1),
        },
        val_cfg={},
        optim_wrapper=cfg.optim_wrapper.to_dict(),
        param_scheduler=fit_schedulers(cfg.param_scheduler, options.epochs),
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": options.get("log_interval", 10)},
            # mmengine removes the oldest before it writes; a kill then must leave one whole.
            "checkpoint": {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 2},
        },
        custom_hooks=[RepeatableSteps(options.seed), export],
        visualizer={
            "type": "Visualizer",
            "vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
        },
        resume=resume,
        launcher=launcher,
        randomness={"seed": options.seed},
        cfg=Config({"adcam": cfg.to_dict()}),
        experiment_name=f"classifier_{next(RUNS)}",
    )
    runner.train()
    if not export.has_run:
        runner.val()  # resumed after the last epoch, which may have ended before its validation
    return classifier_path


def import_ts_cam(cfg: Config, checkpoint: str | Path, path: str | Path) -> None:
    """Turn a checkpoint of TS-CAM's own code into a classifier file.

    Args:
        cfg: The config whose ``model`` it is, and whose ``data`` name its classes.
        checkpoint: As for :func:`adcam.models.weights.load_ts_cam_weights`.
        path: The classifier to write. It says that its epoch was chosen on the test, "oracle": the
            authors keep the one that is best there.

    Raises:
        AdcamError: If the config, the data or the checkpoint is wrong.
    """
    class_set = build_dataset(cfg.data, cfg.data.val).class_set
    network_options, _ = _read_network_options(cfg)
    network = build_network(num_fg_classes=class_set.num_fg_classes, **network_options)
    load_ts_cam_weights(network, checkpoint)
    info = {"imported_from": Path(checkpoint).name, "chosen_on": "oracle"}
    save_classifier(path, network, network_options, class_set, info)


def _read_network_options(cfg: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """What rebuilds the network, and what only its training needs."""
    options = cfg.model.to_dict()
    kind = options.get("kind", DEFAULT_KIND)
    check_keys(options, ("kind", *network_options(kind)), "model")
    names = ("weights", "drop_path_rate")
    return options, {name: options.pop(name) for name in names if name in options}


def _read_inca(cfg: Config) -> InCA | None:
    if "inca" not in cfg:
        return None
    options = cfg.inca.to_dict()
    check_keys(options, tuple(item.name for item in fields(InCA)), "inca")
    if not isinstance(layers := options.get("layers", "all"), str):
        options["layers"] = tuple(layers)
    return InCA(**options)


def _name_choice(cfg: Config, choose: str) -> str | None:
    """The split that the epoch is chosen on."""
    if choose == "last":
        return None
    return "oracle" if cfg.data.val == cfg.data.get("test") else str(cfg.data.val)


def _info_key(score_name: str) -> str:
    return f"val_{score_name.lower()}"


def _check_single_labels(images: ImageDataset) -> None:
    several = [r for r in images.records if r.class_ids is not None and len(r.class_ids) != 1]
    if several:
        raise AdcamError(
            f"task 'localization' needs one class an image; {len(several)} of {len(images)} images "
            f"of split {images.split!r} have another number, the first is {several[0].img_id!r} "
            f"with {len(several[0].class_ids or ())}"
        )


def _check_choice(name: str, value: str, legal: Sequence[str]) -> None:
    if value not in legal:
        raise AdcamError(f"{name} must be one of {legal}, got {value!r}")
