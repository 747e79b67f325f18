"""The Runner that every training gets: what a config passes through, what the terminal shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from adcam.settings import Settings
from adcam.training import runner as runners
from adcam.training.classifier import train_classifier
from adcam.training.runner import TrainingParts, merge_default_hooks

# Warnings raised inside mmengine and tensorboard are theirs.
pytestmark = pytest.mark.filterwarnings("default")

SEEN: list[Any] = []


@HOOKS.register_module()
class Remember(Hook):
    """A hook as a user would write it."""

    def __init__(self, word: str) -> None:
        self.word = word

    def after_train_epoch(self, runner: Any) -> None:
        SEEN.append((self.word, runner.epoch, runner.visualizer, runner))


def test_what_a_config_passes_to_mmengine_gets_there(
    tmp_path: Path, mini_settings: Settings
) -> None:
    SEEN.clear()
    settings = mini_settings.with_changes(
        {
            "custom_hooks": [{"type": "Remember", "word": "hello"}],
            "default_hooks": {
                "checkpoint": {"max_keep_ckpts": 1},
                "timer": {"type": "IterTimerHook"},
            },
            "visualizer": {"vis_backends": [{"type": "LocalVisBackend"}]},
            "env_cfg": {"cudnn_benchmark": False},
        }
    )
    train_classifier(settings, tmp_path)
    assert [(word, epoch) for word, epoch, *_ in SEEN] == [("hello", 0), ("hello", 1)]
    assert set(SEEN[0][2]._vis_backends) == {"LocalVisBackend"}
    # Ours stay: an export after each validation, checkpoints each epoch, of which one is kept.
    assert [path.name for path in tmp_path.glob("*.pth")] == ["epoch_2.pth"]
    assert (tmp_path / "classifier.safetensors").is_file()
    assert not list(tmp_path.glob("*/vis_data/events.out.*"))


def parts(**changes: Any) -> TrainingParts:
    none: Any = None
    values: dict[str, Any] = {
        **dict.fromkeys(("model", "train_set", "sampler", "val_set", "metric"), none),
        **{"name": "x", "batch_size": 1, "val_batch_size": 1, "collate": "", "by_epoch": True},
        **{"length": 1, "val_interval": 1, **changes},
    }
    return TrainingParts(**values)


def test_default_hooks_are_merged_one_by_one(mini_settings: Settings) -> None:
    hooks = {"checkpoint": {"interval": 5}, "logger": None, "timer": {"type": "Own"}}
    merged = merge_default_hooks(parts(), mini_settings.with_changes({"default_hooks": hooks}))
    checkpoint = {"type": "CheckpointHook", "by_epoch": True, "interval": 5, "max_keep_ckpts": 2}
    assert merged == {"checkpoint": checkpoint, "logger": None, "timer": {"type": "Own"}}
    other = {"checkpoint": {"type": "OwnCheckpoints", "every": 3}}
    merged = merge_default_hooks(parts(), mini_settings.with_changes({"default_hooks": other}))
    assert merged["checkpoint"] == {"type": "OwnCheckpoints", "every": 3}
    assert merge_default_hooks(parts(), mini_settings)["logger"]["interval"] == 1


def test_the_terminal_shows_a_line_an_epoch_and_the_log_file_the_rest(
    tmp_path: Path, mini_settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    train_classifier(mini_settings.with_changes({"train.val_interval": 2}), tmp_path)
    said = capfd.readouterr()
    assert said.out == ""
    number = r"\d+\.\d"
    rate = rf"{number} images/s, 0:00:\d\d left"
    lines = [
        rf"training 2 epochs; curves: tensorboard --logdir {re.escape(str(tmp_path))}",
        rf"epoch 1/2: loss \d\.\d{{4}}, {rate}",
        rf"epoch 2/2: loss \d\.\d{{4}}, mAP {number}, {rate}",
    ]
    assert re.fullmatch("\n".join(lines) + "\n", said.err), said.err
    (log,) = tmp_path.glob("*/*.log")
    text = log.read_text()
    for words in ("Hooks will be executed", "System environment", "CheckpointHook", "mAP"):
        assert words in text


def test_an_epoch_that_takes_long_shows_lines_before_it_ends(
    tmp_path: Path,
    mini_settings: Settings,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runners, "LINE_INTERVAL_S", 0.0)
    train_classifier(mini_settings.with_changes({"train.epochs": 1}), tmp_path)
    assert capfd.readouterr().err.count("epoch 1/1: loss") == 5  # four steps, and the whole


def test_steps_are_counted_where_a_training_counts_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Fake:
        iter, epoch, max_iters, world_size = 0, 0, 4, 1
        train_dataloader = type("Loader", (), {"batch_size": 8})

    fake: Any = Fake()
    lines = runners.ProgressLines(4, by_epoch=False, interval=3)
    lines.before_train(fake)
    lines.before_train_epoch(fake)
    for fake.iter in range(4):
        lines.after_train_iter(fake, fake.iter, outputs={"loss": torch.tensor(float(fake.iter))})
        if fake.iter == 3:
            lines.after_val_epoch(fake, {"mIoU": 41.26, "IoU/cat": 3.0})
    lines.after_train_epoch(fake)
    lines.after_train(fake)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in said] == [
        "training 4 steps",
        "step 3/4: loss 1.0000",
        "step 4/4: loss 3.0000",
        "validation: mIoU 41.3",
    ]
