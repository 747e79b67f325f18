"""Training runs of seconds: what they write, resume, refuse and survive."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import read_scalars
from mmengine.config import Config
from safetensors import safe_open

from adcam.data.augment import EvalView
from adcam.data.sources import build_dataset
from adcam.models.classifier import Classifier
from adcam.models.classifier_file import load_classifier, save_classifier
from adcam.training.classifier import ExportClassifier, MeanAveragePrecision, train_classifier

# Warnings raised inside mmengine and tensorboard are theirs.
pytestmark = pytest.mark.filterwarnings("default")


def train_lines(work_dir: Path) -> list[dict[str, Any]]:
    return [line for line in read_scalars(work_dir) if "loss" in line]


def val_maps(work_dir: Path) -> list[float]:
    return [line["mAP"] for line in read_scalars(work_dir) if "mAP" in line]


def compute_map(path: Path, cfg: Config, *, without: Sequence[str] = ()) -> float:
    """mAP of a classifier file on the validation split, by the definition, image by image."""
    model = Classifier(load_classifier(path).network).eval()
    images = build_dataset(cfg.data, "val")
    view = EvalView(images, img_size=cfg.train.img_size)
    kept = [i for i, record in enumerate(images.records) if record.img_id not in without]
    with torch.no_grad():
        scores = torch.cat([model(view[i]["inputs"][None]) for i in kept]).numpy()
    labels = torch.stack([view[i]["cls_label"] for i in kept]).numpy()
    present = [c for c in range(labels.shape[1]) if labels[:, c].any()]
    return 100 * float(np.mean([average_precision(scores[:, c], labels[:, c]) for c in present]))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the positives of the precision among what scores as high."""
    return float(np.mean([labels[scores >= s].mean() for s in scores[labels == 1]]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, mini_settings: Config) -> Path:
    """A work_dir after the two epochs of `mini_cfg`; copy it before changing it."""
    work_dir = tmp_path_factory.mktemp("finished")
    assert train_classifier(mini_settings, work_dir) == work_dir / "classifier.safetensors"
    return work_dir


def test_loss_falls_and_everything_is_logged(finished: Path) -> None:
    lines = train_lines(finished)
    assert [(line["epoch"], line["step"]) for line in lines] == [
        (1 + step // 4, 1 + step) for step in range(8)
    ]
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-3:]) < 0.97 * losses[0]
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss_patches"] + line["loss_cls_token"])
    assert len(val_maps(finished)) == 2
    assert lines[-1]["lr"] < 0.1 * lines[0]["lr"]  # the cosine ends with the last epoch


def test_files_of_a_run(finished: Path) -> None:
    # The last two: a kill while one is written leaves the other.
    assert {path.name for path in finished.glob("*.pth")} == {"epoch_1.pth", "epoch_2.pth"}
    assert list(finished.glob("*/vis_data/events.out.tfevents.*"))
    assert list(finished.glob("*.py"))  # the config


def test_the_exported_classifier_is_the_best_one(finished: Path, mini_cfg: Config) -> None:
    loaded = load_classifier(finished / "classifier.safetensors")
    maps = val_maps(finished)
    assert loaded.info["val_map"] == pytest.approx(max(maps))
    assert loaded.info["epoch"] == 1 + int(np.argmax(maps))
    assert loaded.info["train_images"] == 40
    assert loaded.info["val_split"] == "val"
    assert loaded.class_set.name == "shapes"
    counts = build_dataset(mini_cfg.data, "train").records
    for c, name in enumerate(loaded.class_set.classes):
        expected = sum(c in (record.class_ids or ()) for record in counts)
        assert loaded.info["train_counts"]["train"][name] == expected


def test_validation_map_equals_its_definition(finished: Path, mini_cfg: Config) -> None:
    path = finished / "classifier.safetensors"
    expected = compute_map(path, mini_cfg)
    assert load_classifier(path).info["val_map"] == pytest.approx(expected, abs=1e-3)


def test_the_same_seed_gives_the_same_weights_another_does_not(
    tmp_path: Path, finished: Path, mini_cfg: Config
) -> None:
    again = train_classifier(mini_cfg, tmp_path / "again")
    assert again.read_bytes() == (finished / "classifier.safetensors").read_bytes()
    assert [line["loss"] for line in train_lines(tmp_path / "again")] == [
        line["loss"] for line in train_lines(finished)
    ]
    mini_cfg.train.seed = 4
    mini_cfg.train.epochs = 1
    train_classifier(mini_cfg, tmp_path / "other")
    assert train_lines(tmp_path / "other")[0]["loss"] != train_lines(finished)[0]["loss"]


class Killed(BaseException):
    """What ends the process half-way in these tests."""


def kill_at_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """End the run after the first epoch's checkpoint, before its classifier is written."""

    def killed(self: Any, runner: Any, metrics: Any = None) -> None:
        raise Killed

    monkeypatch.setattr(ExportClassifier, "after_val_epoch", killed)


def test_resume_goes_on_with_the_next_epoch_as_if_never_killed(
    tmp_path: Path, finished: Path, mini_cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_validation(patch)
        train_classifier(mini_cfg, tmp_path)
    assert not (tmp_path / "classifier.safetensors").exists()
    path = train_classifier(mini_cfg, tmp_path, resume=True)
    assert [(line["step"], line["loss"]) for line in train_lines(tmp_path)] == [
        (line["step"], line["loss"]) for line in train_lines(finished)
    ]
    assert load_classifier(path).info["epoch"] == 2


def test_resume_after_the_last_epoch_still_validates_it(
    tmp_path: Path, mini_cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini_cfg.train.epochs = 1
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_validation(patch)
        train_classifier(mini_cfg, tmp_path)
    path = train_classifier(mini_cfg, tmp_path, resume=True)
    assert len(train_lines(tmp_path)) == 4  # nothing was trained again
    assert load_classifier(path).info["val_map"] == pytest.approx(
        compute_map(path, mini_cfg), abs=1e-3
    )


def test_a_better_earlier_classifier_outlives_a_resume(
    tmp_path: Path, finished: Path, mini_cfg: Config
) -> None:
    work_dir = tmp_path / "run"
    shutil.copytree(finished, work_dir)
    (work_dir / "last_checkpoint").write_text(str(work_dir / "epoch_2.pth"))
    path = work_dir / "classifier.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["adcam"])
    for val_map, kept in ((99.9, True), (0.1, False)):
        loaded = load_classifier(path)
        save_classifier(
            path,
            loaded.network,
            header["network"],
            loaded.class_set,
            {**loaded.info, "val_map": val_map},
        )
        before = path.read_bytes()
        mini_cfg.train.epochs += 1
        train_classifier(mini_cfg, work_dir, resume=True)
        assert (path.read_bytes() == before) == kept
    assert load_classifier(path).info["epoch"] == 4


def test_unreadable_images_neither_end_the_run_nor_count(
    tmp_path: Path, mini_cfg: Config, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    shutil.copytree(mini_cfg.data.root, root)
    (root / "JPEGImages" / "train_00003.png").write_bytes(b"")
    (root / "JPEGImages" / "val_00004.png").write_text("this is no image")
    mini_cfg.data.root = str(root)
    mini_cfg.train.epochs = 1
    path = train_classifier(mini_cfg, tmp_path / "run")
    expected = compute_map(path, mini_cfg, without=["val_00004"])
    assert load_classifier(path).info["val_map"] == pytest.approx(expected, abs=1e-3)
    text = caplog.text
    assert "left out of training" in text
    assert "train_00003.png" in text
    assert "left out of validation" in text
    assert "val_00004.png" in text


def test_nan_labels_are_dropped_when_all_results_are_together(mini_cfg: Config) -> None:
    class_set = build_dataset(mini_cfg.data, "val").class_set
    metric = MeanAveragePrecision(class_set)
    label = torch.zeros(class_set.num_fg_classes)
    label[0] = 1
    good = (torch.full_like(label, 0.9), label)
    other = (torch.full_like(label, 0.1), torch.zeros_like(label))
    black = (torch.full_like(label, 0.95), torch.full_like(label, torch.nan))
    metric.process(None, [good, black, other])
    assert len(metric.results) == 3  # one per image, else processes of unequal length mix up
    result = metric.evaluate(size=3)
    assert result["mAP"] == pytest.approx(100)
    assert result[f"AP/{class_set.classes[0]}"] == pytest.approx(100)


def test_a_batch_larger_than_the_set(tmp_path: Path, mini_cfg: Config) -> None:
    mini_cfg.train.update(batch_size=64, epochs=1)
    train_classifier(mini_cfg, tmp_path)
    assert len(train_lines(tmp_path)) == 1


def test_bfloat16_trains(tmp_path: Path, mini_cfg: Config) -> None:
    mini_cfg.train.amp = "bfloat16"
    mini_cfg.train.epochs = 1
    path = train_classifier(mini_cfg, tmp_path)
    losses = [line["loss"] for line in train_lines(tmp_path)]
    assert all(np.isfinite(losses))
    network = load_classifier(path).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in network.parameters())


def test_several_training_splits_are_joined(tmp_path: Path, mini_cfg: Config) -> None:
    mini_cfg.data.train = ["train", "val"]
    mini_cfg.train.epochs = 1
    mini_cfg.train.batch_size = 11
    info = load_classifier(train_classifier(mini_cfg, tmp_path)).info
    assert info["train_images"] == 55
    assert info["train_splits"] == ["train", "val"]
    assert len(train_lines(tmp_path)) == 5


def test_unlabeled_images_are_refused_before_anything_is_written(
    tmp_path: Path, mini_cfg: Config
) -> None:
    root = tmp_path / "data"
    shutil.copytree(mini_cfg.data.root, root)
    lines = (root / "labels.csv").read_text().splitlines()
    assert lines[2].startswith("train_00001,")
    (root / "labels.csv").write_text("\n".join(lines[:2] + lines[3:]) + "\n")
    mini_cfg.data.root = str(root)
    with pytest.raises(
        ValueError, match=r"1 images of split 'train' have no labels.*'train_00001'"
    ):
        train_classifier(mini_cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.epoch": 3}, r"'train' has no \['epoch'\]; legal are .*'epochs'"),
        ({"model.weight": "x"}, r"'model' has no \['weight'\]"),
        ({"model.weights": "gone.pth"}, "gone.pth: no such weights file"),
        ({"model.backbone": "resnet18"}, "resnet18"),
        ({"train.amp": "fp8"}, "amp must be one of"),
        ({"train.min_area": 0.0}, "min_area must lie in"),
        ({"data.val": "test"}, "no list for split 'test'"),
        ({"data.root": "nowhere"}, "data.root nowhere is no folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path, mini_cfg: Config, change: dict[str, Any], message: str
) -> None:
    mini_cfg.merge_from_dict(change)
    with pytest.raises(ValueError, match=message):
        train_classifier(mini_cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_one_classifier(tmp_path: Path, mini_cfg: Config) -> None:
    """torchrun on CPUs: odd numbers of images, one of them unreadable, gathered in full."""
    root = tmp_path / "data"
    shutil.copytree(mini_cfg.data.root, root)
    (root / "JPEGImages" / "val_00004.png").write_text("this is no image")
    mini_cfg.data.root = str(root)
    mini_cfg.train.batch_size = 8
    mini_cfg.dump(str(tmp_path / "mini.py"))
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            import torch
            from mmengine.config import Config
            from adcam.training.classifier import train_classifier

            torch.set_num_threads(1)
            train_classifier(Config.fromfile(sys.argv[1]), sys.argv[2], launcher="pytorch")
            print("world", torch.distributed.get_world_size(), flush=True)
            torch.distributed.destroy_process_group()
            """
        )
    )
    folder = tmp_path / "cwd"
    folder.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
            *(str(script), str(tmp_path / "mini.py"), str(tmp_path / "run")),
        ],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("world 2") == 2
    assert not list(folder.iterdir())  # results are not gathered through files in the cwd
    # 40 images, 2 processes, batches of 8: two whole batches each, two epochs.
    assert len(train_lines(tmp_path / "run")) == 4
    path = tmp_path / "run" / "classifier.safetensors"
    expected = compute_map(path, mini_cfg, without=["val_00004"])
    assert load_classifier(path).info["val_map"] == pytest.approx(expected, abs=1e-3)
