"""Training a classifier on image-level labels with mmengine's Runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import ConcatDataset

from adcam.data.augment import EvalDataset, TrainDataset, class_counts
from adcam.data.dataset import ImageDataset
from adcam.files import hash_values
from adcam.labeling.calibrate import calibrate_file
from adcam.labeling.labeler import PseudoLabeler
from adcam.metrics.classification import MultiLabelAP
from adcam.models.classifier import Classifier
from adcam.models.classifier_file import load_classifier, save_classifier
from adcam.models.networks import build_network
from adcam.settings import Settings, TestViews
from adcam.structures import ClassSet
from adcam.training.checkpoints import (
    find_checkpoint,
    forget_training,
    refuse_another_training,
    write_description,
)
from adcam.training.labelled_images import LabelledImages, open_labelled_images
from adcam.training.layer_decay import decay_rates
from adcam.training.repeatable import (
    RepeatableEpochs,
    hold_work_dir,
    start_processes,
    wrap_model,
)
from adcam.training.runner import TrainingParts, build_runner, keep_from_terminal

CLASSIFIER_NAME = "classifier.safetensors"

_ONLY_FOR_TRAINING = ("weights", "drop_path_rate")
_CURE = "take another folder, or leave out --resume to start over"


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


@dataclass(eq=False)
class ExportClassifier(Hook):
    """Writes the classifier file after the best validation so far, or after every one."""

    path: Path
    network_options: dict[str, Any]
    class_set: ClassSet
    info: dict[str, Any]
    best: float | None
    score_name: str
    choose: str
    views: TestViews | None
    description: Mapping[str, Any] | None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take the place of the training before this one, which could be resumed until now."""
        if self.description is not None:
            forget_training(self.path.parent, self.path.name)
            write_description(self.path.parent, self.description)
            self.description = None

    def before_train(self, runner: Runner) -> None:
        """Validate the epoch that is resumed from, which may have ended before its validation."""
        every = runner.train_loop.val_interval
        done, is_last = runner.epoch, runner.epoch == runner.max_epochs
        if done and runner.val_loop is not None and (done % every == 0 or is_last):
            runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Compare with the best so far."""
        score = float((metrics or {})[self.score_name])
        is_better = self.best is None or score > self.best
        if not is_main_process() or (self.choose == "best" and not is_better):
            return
        self.best = score
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        info = {**self.info, _info_key(self.score_name): score, "epoch": runner.epoch}
        save_classifier(
            self.path,
            model.network,
            self.network_options,
            self.class_set,
            info,
            views=None if self.views is None else asdict(self.views),
        )


def train_classifier(
    settings: Settings, work_dir: str | Path, *, resume: bool = False, launcher: str = "none"
) -> Path:
    """Train as the settings say.

    Args:
        settings: A config with ``data``, ``model``, ``train`` and ``optim_wrapper``. ``task`` is
            ``"segmentation"`` (several classes an image) or ``"localization"`` (one).
        work_dir: Where checkpoints, logs and ``classifier.safetensors`` go.
        resume: Whether to continue from the newest checkpoint in ``work_dir`` that can be read.
        launcher: ``"none"``, ``"pytorch"`` (torchrun) or ``"slurm"``.

    Returns:
        Path of the classifier: of the epoch with the best score on ``data.val`` (mAP, for one
        class an image Top-1 accuracy), or with ``train.choose="last"`` of the last one. Its
        ``chosen_on`` names that split, ``"oracle"`` where it is also ``data.test``, or is
        ``None``. Where an image may show several classes, the file also holds label thresholds
        that were chosen on the labels of ``data.val`` (:mod:`adcam.labeling.calibrate`).

    Raises:
        AdcamError: Data, labels or weights are wrong; nothing is written before the checks. Or
            ``work_dir`` holds another training, another process works there, or the training
            diverges.
    """
    work_dir, train, is_single = Path(work_dir), settings.train, settings.task == "localization"
    keep_from_terminal()
    images = open_labelled_images(settings)
    torch.manual_seed(train.seed)
    model = _build_model(settings, images.class_set)
    optim_wrapper = decay_rates(settings.optim_wrapper, model, train.layer_decay)
    train_view = _build_train_view(settings, images)
    start_processes(launcher)
    with hold_work_dir(work_dir, again="the same command with --resume"):
        description = _describe_training(settings, images)
        checkpoint = _begin(description, work_dir, resume)
        new = description if checkpoint is None else None
        parts = TrainingParts(
            name="classifier",
            model=wrap_model(model),
            train_set=train_view,
            sampler=RepeatableEpochs(train_view, shuffle=True, seed=train.seed),
            val_set=EvalDataset(images.val, img_size=train.img_size),
            metric=Top1Accuracy() if is_single else MeanAveragePrecision(images.class_set),
            # Incomplete batches are dropped, so a set smaller than one makes a smaller batch.
            batch_size=min(train.batch_size, -(-len(train_view) // get_world_size())),
            val_batch_size=train.batch_size,
            collate="default_collate",
            by_epoch=True,
            length=train.epochs,
            val_interval=train.val_interval,
            hooks=[_build_export(settings, images, work_dir, new)],
            optim_wrapper=optim_wrapper,
        )
        runner = build_runner(parts, settings, work_dir, checkpoint=checkpoint, launcher=launcher)
        runner.train()
        path = work_dir / CLASSIFIER_NAME
        if not is_single and is_main_process():
            _calibrate(path, settings, images.val)
        barrier()
    return path


def _calibrate(path: Path, settings: Settings, images: ImageDataset) -> None:
    """Choose the label thresholds on images that the network did not learn from.

    At the sizes that it will label images at: its probabilities there differ from those at the size
    of its training.
    """
    cam = settings.cam
    labeler = PseudoLabeler.from_checkpoint(
        path, method="cam", views=cam.views, dtype=cam.dtype, max_pixels=cam.max_pixels
    )
    calibrate_file(path, images, labeler)


def _build_model(settings: Settings, class_set: ClassSet) -> Classifier:
    network = build_network(
        num_fg_classes=class_set.num_fg_classes, **_read_network_options(settings)
    )
    return Classifier(
        network,
        single_label=settings.task == "localization",
        amp=settings.train.amp,
        cls_token_loss=settings.train.cls_token_loss,
        inca=settings.inca,
    )


def _read_network_options(settings: Settings) -> dict[str, Any]:
    """The options of the network as the config gives them."""
    _ = settings.model  # which checks that there is one
    options: dict[str, Any] = settings.to_dict()["model"]
    return options


def _build_train_view(
    settings: Settings, images: LabelledImages
) -> ConcatDataset[dict[str, Tensor]]:
    train = settings.train
    return ConcatDataset(
        [
            TrainDataset(
                part,
                img_size=train.img_size,
                min_area=train.min_area,
                jitter=train.jitter,
                resize=train.resize,
            )
            for part in images.train
        ]
    )


def _begin(description: Mapping[str, Any], work_dir: Path, resume: bool) -> Path | None:
    """The checkpoint to resume from, once it is known that it belongs to this training."""
    checkpoint = find_checkpoint(work_dir, cure=_CURE) if resume else None
    if is_main_process() and checkpoint is not None:
        refuse_another_training(work_dir, description, cure=_CURE)
        write_description(work_dir, description)
    barrier()
    return checkpoint


def _describe_training(settings: Settings, images: LabelledImages) -> dict[str, Any]:
    """What decides the classifier that comes out: all but how the training is watched."""
    sections = ("task", "data", "model", "inca", "optim_wrapper", "param_scheduler")
    values = {k: v for k, v in settings.to_dict().items() if k in sections}
    train = settings.to_dict()["train"]
    values["train"] = {k: v for k, v in train.items() if k not in ("num_workers", "log_interval")}
    names = (*settings.data.train, str(settings.data.val))
    parts = zip(names, (*images.train, images.val), strict=True)
    values["images"] = {name: {"": len(part), **class_counts(part)} for name, part in parts}
    return values


def _build_export(
    settings: Settings,
    images: LabelledImages,
    work_dir: Path,
    description: Mapping[str, Any] | None,
) -> ExportClassifier:
    """The hook that writes the classifier; a training that resumes has no description to write."""
    score_name = "top1" if settings.task == "localization" else "mAP"
    path = work_dir / CLASSIFIER_NAME
    # On a resume the file, not the checkpoint, knows the best: the checkpoint is older.
    best = None
    if description is None and path.is_file():
        best = float(load_classifier(path).info[_info_key(score_name)])
    info = {
        "config_hash": hash_values(settings.to_dict()),
        "dataset": images.class_set.name,
        "train_splits": list(settings.data.train),
        "val_split": settings.data.val,
        "chosen_on": _name_choice(settings),
        "train_images": sum(len(part) for part in images.train),
        "train_counts": {
            name: class_counts(part)
            for name, part in zip(settings.data.train, images.train, strict=True)
        },
    }
    return ExportClassifier(
        path,
        {k: v for k, v in _read_network_options(settings).items() if k not in _ONLY_FOR_TRAINING},
        images.class_set,
        info,
        best,
        score_name,
        settings.train.choose,
        settings.named_views,
        description,
    )


def _name_choice(settings: Settings) -> str | None:
    """The split that the epoch is chosen on."""
    if settings.train.choose == "last":
        return None
    return "oracle" if settings.data.val == settings.data.test else settings.data.val


def _info_key(score_name: str) -> str:
    return f"val_{score_name.lower()}"
