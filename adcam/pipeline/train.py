"""Training a classifier on image-level labels with mmengine's Runner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.utils.data import ConcatDataset

from adcam.data.augment import EvalView, TrainView, class_counts
from adcam.metrics.classification import MultiLabelAP
from adcam.models.classifier import Classifier
from adcam.models.classifier_file import save_classifier
from adcam.models.token_cam import TokenCAM
from adcam.pipeline.config import build_dataset, hash_config
from adcam.structures import ClassSet

CLASSIFIER_NAME = "classifier.safetensors"


class MeanAveragePrecision(BaseMetric):
    """mAP of the validation images under mmengine, gathered over processes."""

    def __init__(self, class_set: ClassSet) -> None:
        super().__init__(collect_device="cpu")
        self._class_set = class_set

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep scores and labels of a batch; unreadable images carry NaN labels and are dropped."""
        for score, target in data_samples:
            if not target.isnan().any():
                self.results.append((score.float().cpu().numpy(), target.cpu().numpy()))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """``mAP`` and ``AP/<class>`` in percent."""
        metric = MultiLabelAP(self._class_set.num_fg_classes)
        for score, target in results:
            metric.update(score[None], target[None])
        result = metric.compute()
        per_class = zip(self._class_set.classes, result.ap_per_class, strict=True)
        return {"mAP": result.mean_ap, **{f"AP/{name}": ap for name, ap in per_class}}


class ExportClassifier(Hook):
    """Writes the classifier file whenever validation mAP reaches a new best."""

    # After mmengine's CheckpointHook, so that an interrupted write leaves both consistent.
    priority = "VERY_LOW"

    def __init__(
        self, path: Path, network_options: dict[str, Any], class_set: ClassSet, info: dict[str, Any]
    ) -> None:
        self._path = path
        self._network_options = network_options
        self._class_set = class_set
        self._info = info

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Compare with the best so far; the message hub carries it across a resume."""
        score = float((metrics or {})["mAP"])
        hub = runner.message_hub
        best = hub.get_info("exported_map") if "exported_map" in hub.runtime_info else None
        if best is not None and score <= best and self._path.is_file():
            return
        hub.update_info("exported_map", score)
        if not is_main_process():
            return
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
    if not resume:
        torch.manual_seed(options.seed)
    network = TokenCAM(
        num_fg_classes=class_set.num_fg_classes,
        weights=cfg.model.get("weights"),
        drop_path_rate=cfg.model.get("drop_path_rate", 0.0),
        **network_options,
    )
    model = Classifier(
        network, amp=options.amp, cls_token_loss=options.get("cls_token_loss", 0.0)
    )
    img_size = options.img_size
    train_view = ConcatDataset(
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
    batch_size = min(options.batch_size, len(train_view))
    workers = dict(num_workers=options.num_workers, persistent_workers=options.num_workers > 0)
    collate = dict(type="default_collate")
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=batch_size,
            dataset=train_view,
            sampler=dict(type="DefaultSampler", shuffle=True),
            collate_fn=collate,
            drop_last=True,
            **workers,
        ),
        val_dataloader=dict(
            batch_size=options.batch_size,
            dataset=EvalView(val_set, img_size=img_size),
            sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=collate,
            **workers,
        ),
        val_evaluator=[MeanAveragePrecision(class_set)],
        train_cfg=dict(
            by_epoch=True, max_epochs=options.epochs, val_interval=options.get("val_interval", 1)
        ),
        val_cfg=dict(),
        optim_wrapper=cfg.optim_wrapper.to_dict(),
        param_scheduler=_fit_schedulers(cfg.param_scheduler, options.epochs),
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=options.get("log_interval", 10)),
            checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1),
        ),
        custom_hooks=[ExportClassifier(classifier_path, network_options, class_set, info)],
        visualizer=dict(
            type="Visualizer",
            vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
        ),
        resume=resume,
        launcher=launcher,
        randomness=dict(seed=options.seed),
        cfg=Config(dict(adcam=cfg.to_dict())),
        experiment_name="classifier",
    )
    runner.train()
    return classifier_path


def _fit_schedulers(schedulers: Sequence[Any], epochs: int) -> list[dict[str, Any]]:
    """A scheduler without an end runs to the last epoch, so that ``train.epochs`` alone is changed.

    Parts that would begin after the last epoch are left out, and a warm-up ends with it.
    """
    return [
        {**entry, "end": min(entry.get("end", epochs), epochs)}
        for entry in schedulers
        if entry.get("begin", 0) < epochs
    ]
