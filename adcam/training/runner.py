"""The one place that builds mmengine's Runner, for classifiers and for segmentation networks.

A config may pass ``default_hooks``, ``custom_hooks``, ``visualizer`` and ``env_cfg`` through; they
are merged with what every training here needs. mmengine's tables of hooks, parameters and
environment go to the log file, the terminal shows one line an epoch or interval.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from adcam.errors import AdcamError, reading_config
from adcam.files import name_in_error
from adcam.settings import SegmentationSettings, Settings
from adcam.training.checkpoints import read_checkpoint
from adcam.training.repeatable import RepeatableDataset, RepeatableSteps, fit_schedulers

_HALF_WRITTEN = ".adcam-checkpoint.tmp"
_RUNS = itertools.count()  # mmengine would share a logger among runs of one name and second

LINE_INTERVAL_S = 60.0
"""Seconds after which an epoch that takes long shows a line before it ends."""


@dataclass(frozen=True, kw_only=True)
class TrainingParts:
    """What one training has and another has not.

    Attributes:
        name: The name of the experiment in the log.
        model: The network with its losses; :func:`adcam.training.repeatable.wrap_model` wraps it.
        train_set: The training images, drawn by ``sampler``.
        sampler: The order of the training images.
        batch_size: How many training images make one step, in each process.
        collate: How images become a batch: ``"default_collate"`` or ``"pseudo_collate"``.
        by_epoch: Whether the training is counted in epochs; otherwise in steps.
        length: How many epochs or steps are trained.
        val_set: The validation images; ``None`` where nothing is validated.
        metric: The score of the validation images.
        val_batch_size: How many validation images go through the network at once.
        val_interval: How many epochs or steps lie between two validations.
        checkpoint_interval: How many epochs or steps lie between two checkpoints.
        hooks: What else happens during the training.
        optim_wrapper: mmengine's optimizer wrapper; by default as the config has it.
        scope: Where mmengine looks names of the config up, e.g. ``"mmseg"``.
    """

    name: str
    model: nn.Module
    train_set: Dataset[Any]
    sampler: Sampler[Any]
    batch_size: int
    collate: str
    by_epoch: bool
    length: int
    val_set: Dataset[Any] | None = None
    metric: BaseMetric | None = None
    val_batch_size: int = 1
    val_interval: int = 1
    checkpoint_interval: int = 1
    hooks: Sequence[Hook] = ()
    optim_wrapper: Mapping[str, Any] | None = None
    scope: str = "mmengine"


def build_runner(
    parts: TrainingParts,
    settings: Settings | SegmentationSettings,
    work_dir: Path,
    *,
    checkpoint: Path | None = None,
    launcher: str = "none",
) -> Runner:
    """Build mmengine's Runner.

    Args:
        parts: What is trained, on what, how long.
        settings: The config: its ``train``, ``optim_wrapper``, ``param_scheduler`` and what it
            passes through to mmengine.
        work_dir: Where checkpoints and logs go.
        checkpoint: The checkpoint to resume from; ``None`` starts at the first step.
        launcher: ``"none"``, ``"pytorch"`` (torchrun) or ``"slurm"``.
    """
    train = settings.train
    workers = {"num_workers": train.num_workers, "persistent_workers": train.num_workers > 0}
    loop: dict[str, Any] = {"by_epoch": True, "max_epochs": parts.length}
    if not parts.by_epoch:
        loop = {"type": "IterBasedTrainLoop", "max_iters": parts.length}
    visualizer = _read_visualizer(settings)
    has_curves = any("Tensorboard" in str(b.get("type")) for b in visualizer["vis_backends"] or ())
    progress = ProgressLines(
        parts.length,
        by_epoch=parts.by_epoch,
        interval=train.log_interval,
        curves=f"tensorboard --logdir {work_dir}" if has_curves else "",
    )
    optional = {} if settings.env_cfg is None else {"env_cfg": dict(settings.env_cfg)}
    return QuietRunner(
        model=parts.model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=parts.batch_size,
            dataset=RepeatableDataset(parts.train_set, train.seed),
            sampler=parts.sampler,
            collate_fn={"type": parts.collate},
            drop_last=parts.by_epoch,
            **workers,
        ),
        train_cfg={**loop, "val_interval": parts.val_interval},
        optim_wrapper=dict(parts.optim_wrapper or settings.optim_wrapper),
        param_scheduler=fit_schedulers(
            settings.param_scheduler, parts.length, by_epoch=parts.by_epoch
        ),
        default_hooks=merge_default_hooks(parts, settings),
        custom_hooks=[
            *(RepeatableSteps(train.seed), StopWhenDiverged(), progress, *parts.hooks),
            *map(dict, settings.custom_hooks),
        ],
        log_processor={"by_epoch": parts.by_epoch},
        visualizer=visualizer,
        load_from=None if checkpoint is None else str(checkpoint),
        resume=checkpoint is not None,
        launcher=launcher,
        randomness={"seed": train.seed},
        default_scope=parts.scope,
        cfg=Config({"adcam": settings.to_dict()}),
        experiment_name=f"{parts.name}_{next(_RUNS)}",
        **optional,
        **_describe_validation(parts, workers),
    )


def _describe_validation(parts: TrainingParts, workers: dict[str, Any]) -> dict[str, Any]:
    """What the Runner validates on, and how it scores; nothing without validation images."""
    if parts.val_set is None:
        return {}
    loader = dict(
        batch_size=parts.val_batch_size,
        dataset=parts.val_set,
        sampler={"type": "DefaultSampler", "shuffle": False},
        collate_fn={"type": parts.collate},
        **workers,
    )
    return {"val_dataloader": loader, "val_evaluator": [parts.metric], "val_cfg": {}}


def merge_default_hooks(
    parts: TrainingParts, settings: Settings | SegmentationSettings
) -> dict[str, Any]:
    """mmengine's default hooks with our intervals, and with what the config says on top.

    A hook that the config describes in part keeps our other values; ``None`` leaves one out.
    """
    ours: dict[str, Any] = {
        "logger": {
            "type": "LoggerHook",
            "interval": settings.train.log_interval,
            "log_metric_by_epoch": parts.by_epoch,
        },
        "checkpoint": {
            "type": "CheckpointHook",
            "by_epoch": parts.by_epoch,
            "interval": parts.checkpoint_interval,
            # mmengine removes the oldest before it writes; a kill then must leave one whole.
            "max_keep_ckpts": 2,
        },
    }
    for name, given in (settings.default_hooks or {}).items():
        both = isinstance(given, Mapping) and name in ours
        same = both and given.get("type", ours[name]["type"]) == ours[name]["type"]
        ours[name] = {**ours[name], **given} if same else given
    return ours


def _read_visualizer(settings: Settings | SegmentationSettings) -> dict[str, Any]:
    backends = [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}]
    return {"type": "Visualizer", "vis_backends": backends, **(settings.visualizer or {})}


class QuietRunner(Runner):
    """mmengine's Runner whose tables go to the log file and whose checkpoints hold no code."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Keep what is no warning from the terminal."""
        logger = super().build_logger(*args, **kwargs)
        keep_from_terminal(logger)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                # A full disk is reported once, by whatever needs the file.
                handler.handleError = lambda record: None  # type: ignore[method-assign]
        return logger

    def build_optim_wrapper(self, *args: Any, **kwargs: Any) -> Any:
        """Build the optimizer, for which a mistake in the config is the user's."""
        with reading_config(f"optim_wrapper={self._shown('optim_wrapper')}"):
            return super().build_optim_wrapper(*args, **kwargs)

    def build_param_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Build the schedule, for which a mistake in the config is the user's."""
        with reading_config(f"param_scheduler={self._shown('param_scheduler')}"):
            return super().build_param_scheduler(*args, **kwargs)

    def _shown(self, section: str) -> Any:
        return self.cfg.adcam.get(section)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint whole or not at all, and force it to the disk.

        Raises:
            OSError: It cannot be written; a folder that was removed is not built up again.
        """
        folder = Path(out_dir)
        path, temporary = folder / filename, folder / _HALF_WRITTEN
        if is_main_process() and not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        try:
            super().save_checkpoint(out_dir, _HALF_WRITTEN, *args, **kwargs)
            if is_main_process():
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise name_in_error(error, path) from error

    def load_checkpoint(
        self, filename: str, map_location: Any = "cpu", *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Read a checkpoint as tensors and plain values, and put its tensors into the model."""
        checkpoint = read_checkpoint(Path(filename), map_location)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        model.load_state_dict(checkpoint["state_dict"])
        self._has_loaded = True
        self.logger.info("resumed from %s", filename)
        return checkpoint


def keep_from_terminal(logger: logging.Logger | None = None) -> None:
    """Let only errors of a logger reach the terminal; its file still gets everything.

    Args:
        logger: mmengine's logger of a run; by default the one that it has outside a run.
    """
    for handler in (logger or MMLogger.get_current_instance()).handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(max(handler.level, logging.ERROR))


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _loss_of(outputs: Mapping[str, Any]) -> float:
    return float(torch.as_tensor(outputs["loss"]).detach())


class StopWhenDiverged(Hook):
    """Ends a training whose loss or weights are no numbers, before a checkpoint keeps them."""

    priority = "VERY_HIGH"

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Look at the loss of the step.

        Raises:
            AdcamError: It is infinite or no number.
        """
        if not math.isfinite(loss := _loss_of(outputs)):
            raise AdcamError(self._describe(runner, f"the loss is {loss}"))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Look at the weights that are about to be written.

        Raises:
            AdcamError: One is infinite or no number.
        """
        for name, value in checkpoint["state_dict"].items():
            if isinstance(value, Tensor) and not torch.isfinite(value).all():
                raise AdcamError(self._describe(runner, f"{name} is not finite"))

    def _describe(self, runner: Runner, reason: str) -> str:
        return (
            f"the training diverged at step {runner.iter + 1}: {reason}. Lower "
            "optim_wrapper.optimizer.lr, set optim_wrapper.clip_grad, or take train.amp='none'; "
            f"what {runner.work_dir} holds is from before"
        )


class ProgressLines(Hook):
    """One line on standard error an epoch or interval: loss, score, rate, time left.

    Args:
        length: How many epochs or steps are trained.
        by_epoch: Whether lines count epochs.
        interval: How many steps lie between two lines where lines count steps.
        curves: What shows the curves, for the first line; ``""`` where nothing does.
    """

    priority = "LOWEST"

    def __init__(self, length: int, *, by_epoch: bool, interval: int, curves: str = "") -> None:
        self._curves = curves
        self._length = length
        self._by_epoch = by_epoch
        self._interval = interval
        self._head = self._tail = ""

    def before_train(self, runner: Runner) -> None:
        """Start the clocks, and say where the curves are."""
        if is_main_process():
            unit = ("epoch" if self._by_epoch else "step") + ("s" if self._length != 1 else "")
            length = f"training {self._length} {unit}"
            _log(f"{length}; curves: {self._curves}" if self._curves else length)
        self._start, self._first = time.monotonic(), runner.iter
        self._start_interval()

    def before_train_epoch(self, runner: Runner) -> None:
        """Show what the last epoch left."""
        self._flush()
        if self._by_epoch:
            self._start_interval()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Count the step, and show a line where one is due."""
        self._loss += _loss_of(outputs)
        self._steps += 1
        done = runner.iter + 1
        is_due = not self._by_epoch and (done % self._interval == 0 or done == self._length)
        is_long = time.monotonic() - self._shown > LINE_INTERVAL_S
        if is_due or (self._by_epoch and is_long):
            self._head, self._tail = self._format(runner, done)
            self._flush()
            if is_due:
                self._start_interval()

    def after_train_epoch(self, runner: Runner) -> None:
        """Keep the line of an epoch until its score is known."""
        if self._by_epoch:
            self._head, self._tail = self._format(runner, runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Show the score, on the line of the epoch if there is one."""
        scores = [f"{k} {v:.1f}" for k, v in (metrics or {}).items() if "/" not in k]
        self._head += (", " if self._head else "validation: ") + ", ".join(scores)
        self._flush()
        self._start_interval()

    def after_train(self, runner: Runner) -> None:
        """Show what is left."""
        self._flush()

    def _start_interval(self) -> None:
        self._interval_start = self._shown = time.monotonic()
        self._loss, self._steps = 0.0, 0

    def _format(self, runner: Runner, done: int) -> tuple[str, str]:
        """A line in two parts; a score stands between them."""
        now = time.monotonic()
        total = runner.max_iters
        left = (now - self._start) / max(done - self._first, 1) * (total - done)
        batch = runner.train_dataloader.batch_size * runner.world_size
        rate = batch * self._steps / max(now - self._interval_start, 1e-9)
        at = f"epoch {min(runner.epoch + 1, self._length)}" if self._by_epoch else f"step {done}"
        return (
            f"{at}/{self._length}: loss {self._loss / max(self._steps, 1):.4f}",
            f", {rate:.1f} images/s, {timedelta(seconds=round(left))} left",
        )

    def _flush(self) -> None:
        if self._head and is_main_process():
            _log(self._head + self._tail)
        self._head, self._tail, self._shown = "", "", time.monotonic()
