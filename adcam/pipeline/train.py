"""Training a classifier on image-level labels with mmengine's Runner."""

from __future__ import annotations

from collections.abc import Sequence
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
from adcam.metrics.classification import MultiLabelAP
from adcam.models.classifier import Classifier
from adcam.models.classifier_file import load_classifier, save_classifier
from adcam.models.token_cam import TokenCAM
from adcam.pipeline.config import build_dataset, hash_config
from adcam.pipeline.training import (
    RUNS,
    RepeatableDataset,
    RepeatableEpochs,
    RepeatableSteps,
    check_keys,
    fit_schedulers,
    start_processes,
    wrap_model,
)
from adcam.structures import ClassSet

CLASSIFIER_NAME = "classifier.safetensors"
TRAIN_KEYS = (
    *("epochs", "img_size", "batch_size", "num_workers", "min_area", "jitter", "amp"),
    *("cls_token_loss", "seed", "val_interval", "log_interval"),
)
MODEL_KEYS = ("backbone", "img_size", "weights", "drop_path_rate", "backbone_kwargs")


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


class ExportClassifier(Hook):
    """Writes the classifier file whenever validation mAP reaches a new best."""

    def __init__(
        self,
        path: Path,
        network_options: dict[str, Any],
        class_set: ClassSet,
        info: dict[str, Any],
        best: float | None,
    ) -> None:
        self._path = path
        self._network_options = network_options
        self._class_set = class_set
        self._info = info
        self._best = best
        self.has_run = False

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Compare with the best so far."""
        self.has_run = True
        score = float((metrics or {})["mAP"])
        if not is_main_process() or (self._best is not None and score <= self._best):
            return
        self._best = score
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        info = {**self._info, "val_map": score, "epoch": runner.epoch}
        save_classifier(self._path, model.network, self._network_options, self._class_set, info)


def train_classifier(
    cfg: Config, work_dir: str | Path, *, resume: bool = False, launcher: str = "none"
) -> Path:
    """Train as the config says.

    Args:
        cfg: Sections ``data``, ``model``, ``train``, ``optim_wrapper``, ``param_scheduler``.
        work_dir: Where checkpoints, logs and ``classifier.safetensors`` go.
        resume: Continue from the newest checkpoint in ``work_dir``.
        launcher: ``"none"``, ``"pytorch"`` (torchrun) or ``"slurm"``.

    Returns:
        Path of the classifier with the best validation mAP.

    Raises:
        ValueError: If data, labels or weights are wrong; nothing is written before the checks.
    """
    work_dir = Path(work_dir)
    options = cfg.train
    check_keys(options, TRAIN_KEYS, "train")
    check_keys(cfg.model, MODEL_KEYS, "model")
    splits = [cfg.data.train] if isinstance(cfg.data.train, str) else list(cfg.data.train)
    train_sets = [build_dataset(cfg.data, split) for split in splits]
    val_set = build_dataset(cfg.data, cfg.data.val)
    for images in (*train_sets, val_set):
        images.check_files(masks=False)
    class_set = val_set.class_set
    network_options = {
        "backbone": cfg.model.backbone,
        "img_size": cfg.model.get("img_size", 224),
        "backbone_kwargs": dict(cfg.model.get("backbone_kwargs", {})),
    }
    torch.manual_seed(options.seed)
    network = TokenCAM(
        num_fg_classes=class_set.num_fg_classes,
        weights=cfg.model.get("weights"),
        drop_path_rate=cfg.model.get("drop_path_rate", 0.0),
        **network_options,
    )
    model: nn.Module = Classifier(
        network, amp=options.amp, cls_token_loss=options.get("cls_token_loss", 0.0)
    )
    img_size = options.img_size
    train_view: ConcatDataset[dict[str, Tensor]] = ConcatDataset(
        [
            TrainView(images, img_size=img_size, min_area=options.min_area, jitter=options.jitter)
            for images in train_sets
        ]
    )
    info = {
        "config_hash": hash_config(cfg.to_dict()),
        "dataset": class_set.name,
        "train_splits": splits,
        "val_split": cfg.data.val,
        "train_images": len(train_view),
        "train_counts": {s: class_counts(d) for s, d in zip(splits, train_sets, strict=True)},
    }
    classifier_path = work_dir / CLASSIFIER_NAME
    # On a resume the file, not the checkpoint, knows the best: the checkpoint is older.
    best = None
    if resume and classifier_path.is_file():
        best = float(load_classifier(classifier_path).info["val_map"])
    export = ExportClassifier(classifier_path, network_options, class_set, info, best)
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
        val_evaluator=[MeanAveragePrecision(class_set)],
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
