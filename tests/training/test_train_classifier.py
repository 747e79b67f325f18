"""Training runs of seconds: what they write, resume, refuse and survive."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import read_scalars
from safetensors import safe_open

from adcam.data.augment import EvalDataset
from adcam.data.dataset import build_class_set
from adcam.data.sources import build_dataset
from adcam.errors import AdcamError
from adcam.labeling.calibrate import calibrate
from adcam.labeling.labeler import PseudoLabeler, hash_network
from adcam.models.classifier import Classifier
from adcam.models.classifier_file import LabelThresholds, load_classifier, save_classifier
from adcam.models.networks import build_network
from adcam.settings import Settings, TestViews
from adcam.training.classifier import ExportClassifier, MeanAveragePrecision, train_classifier

# Warnings raised inside mmengine and tensorboard are theirs.
pytestmark = pytest.mark.filterwarnings("default")


def train_lines(work_dir: Path) -> list[dict[str, Any]]:
    return [line for line in read_scalars(work_dir) if "loss" in line]


def val_maps(work_dir: Path) -> list[float]:
    return [line["mAP"] for line in read_scalars(work_dir) if "mAP" in line]


def compute_map(path: Path, settings: Settings, *, without: Sequence[str] = ()) -> float:
    """mAP of a classifier file on the validation split, by the definition, image by image."""
    model = Classifier(load_classifier(path).network).eval()
    images = build_dataset(settings.data, "val")
    view = EvalDataset(images, img_size=settings.train.img_size)
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
def finished(tmp_path_factory: pytest.TempPathFactory, mini_settings: Settings) -> Path:
    """A work_dir after the two epochs of `mini_settings`; copy it before changing it."""
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


def test_the_exported_classifier_is_the_best_one(finished: Path, mini_settings: Settings) -> None:
    loaded = load_classifier(finished / "classifier.safetensors")
    maps = val_maps(finished)
    assert loaded.info["val_map"] == pytest.approx(max(maps))
    assert loaded.info["epoch"] == 1 + int(np.argmax(maps))
    assert loaded.info["train_images"] == 40
    assert loaded.info["val_split"] == "val"
    assert loaded.class_set.name == "shapes"
    counts = build_dataset(mini_settings.data, "train").records
    for c, name in enumerate(loaded.class_set.classes):
        expected = sum(c in (record.class_ids or ()) for record in counts)
        assert loaded.info["train_counts"]["train"][name] == expected


def test_of_equal_scores_the_first_epoch_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for choose, expected in (("best", [1, 2, 5]), ("last", [1, 2, 3, 4, 5])):
        kept: list[int] = []

        def record(*args: Any, kept: list[int] = kept, **options: Any) -> None:
            kept.append(args[4]["epoch"])

        monkeypatch.setattr("adcam.training.classifier.save_classifier", record)
        path, classes = tmp_path / "classifier.safetensors", build_class_set("one", ["cat"])
        hook = ExportClassifier(path, {}, classes, {}, None, "mAP", choose, None, None)
        for epoch, score in enumerate((50.0, 70.0, 70.0, 60.0, 71.0), start=1):
            runner: Any = SimpleNamespace(model=SimpleNamespace(network=None), epoch=epoch)
            hook.after_val_epoch(runner, {"mAP": score})
        assert kept == expected


def test_validation_map_equals_its_definition(finished: Path, mini_settings: Settings) -> None:
    path = finished / "classifier.safetensors"
    expected = compute_map(path, mini_settings)
    assert load_classifier(path).info["val_map"] == pytest.approx(expected, abs=1e-3)


def test_the_same_seed_gives_the_same_weights_another_does_not(
    tmp_path: Path, finished: Path, mini_settings: Settings
) -> None:
    again = train_classifier(mini_settings, tmp_path / "again")
    assert again.read_bytes() == (finished / "classifier.safetensors").read_bytes()
    assert [line["loss"] for line in train_lines(tmp_path / "again")] == [
        line["loss"] for line in train_lines(finished)
    ]
    other = mini_settings.with_changes({"train.seed": 4, "train.epochs": 1})
    train_classifier(other, tmp_path / "other")
    assert train_lines(tmp_path / "other")[0]["loss"] != train_lines(finished)[0]["loss"]


class Killed(BaseException):
    """What ends the process half-way in these tests."""


def kill_at_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """End the run after the first epoch's checkpoint, before its classifier is written."""

    def killed(self: Any, runner: Any, metrics: Any = None) -> None:
        raise Killed

    monkeypatch.setattr(ExportClassifier, "after_val_epoch", killed)


def test_resume_goes_on_with_the_next_epoch_as_if_never_killed(
    tmp_path: Path, finished: Path, mini_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_validation(patch)
        train_classifier(mini_settings, tmp_path)
    assert not (tmp_path / "classifier.safetensors").exists()
    path = train_classifier(mini_settings, tmp_path, resume=True)
    assert [(line["step"], line["loss"]) for line in train_lines(tmp_path)] == [
        (line["step"], line["loss"]) for line in train_lines(finished)
    ]
    # The epoch whose validation was lost is validated first, so that the same one is kept.
    whole = load_classifier(finished / "classifier.safetensors")
    assert load_classifier(path).info == whole.info


def test_resume_after_the_last_epoch_still_validates_it(
    tmp_path: Path, mini_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = mini_settings.with_changes({"train.epochs": 1})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_validation(patch)
        train_classifier(settings, tmp_path)
    path = train_classifier(settings, tmp_path, resume=True)
    assert len(train_lines(tmp_path)) == 4  # nothing was trained again
    assert load_classifier(path).info["val_map"] == pytest.approx(
        compute_map(path, mini_settings), abs=1e-3
    )


def test_a_training_that_starts_over_replaces_the_one_before_with_its_first_checkpoint(
    tmp_path: Path, finished: Path, mini_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    path, other = work_dir / "classifier.safetensors", mini_settings.with_changes({"train.seed": 1})

    def killed(self: Any, runner: Any, checkpoint: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ExportClassifier, "before_save_checkpoint", killed)
        train_classifier(other, work_dir)
    # Nor does it become the training of checkpoints that nobody described.
    described = (work_dir / "training.json").read_text()
    (work_dir / "training.json").unlink()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ExportClassifier, "before_save_checkpoint", killed)
        train_classifier(other, work_dir)
    with pytest.raises(AdcamError, match=r"no training\.json says what they were trained for"):
        train_classifier(other, work_dir, resume=True)
    (work_dir / "training.json").write_text(described)
    # Until then it is the training before that a resume goes on with.
    with pytest.raises(AdcamError, match=r"train\.seed: 3 -> 1"):
        train_classifier(other, work_dir, resume=True)
    assert train_classifier(mini_settings, work_dir, resume=True) == path
    assert path.read_bytes() == (finished / "classifier.safetensors").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_validation(patch)
        train_classifier(other, work_dir)
    assert [found.name for found in work_dir.glob("*.pth")] == ["epoch_1.pth"]
    assert not path.exists()
    train_classifier(other, work_dir, resume=True)
    fresh = train_classifier(other, tmp_path / "fresh")
    assert path.read_bytes() == fresh.read_bytes()


def test_a_better_earlier_classifier_outlives_a_resume(
    tmp_path: Path, finished: Path, mini_settings: Settings
) -> None:
    work_dir = tmp_path / "run"
    shutil.copytree(finished, work_dir)
    path = work_dir / "classifier.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["adcam"])
    whole = load_classifier(path)
    for val_map, kept in ((99.9, True), (0.1, False)):
        drawn = build_network(num_fg_classes=whole.class_set.num_fg_classes, **header["network"])
        info = {**whole.info, "val_map": val_map}
        save_classifier(path, drawn, header["network"], whole.class_set, info)
        before = load_classifier(path)
        (work_dir / "last_checkpoint").write_text("epoch_1.pth")  # one epoch is to be trained
        train_classifier(mini_settings, work_dir, resume=True)
        after = load_classifier(path)
        expected = before if kept else whole
        assert hash_network(after.network) == hash_network(expected.network)
        assert after.info == expected.info
        assert after.label_thresholds is not None and after.label_thresholds.chosen_on == "val"


def test_label_thresholds_are_chosen_at_the_views_of_the_config(
    tmp_path: Path, finished: Path, mini_settings: Settings
) -> None:
    views = TestViews(scales=(24, 40), flip=True, keep_ratio=False)
    changes = {f"cam.{k}": v for k, v in asdict(views).items()}
    settings = mini_settings.with_changes({**changes, "cam.max_pixels": 400})
    path = train_classifier(settings, shutil.copytree(finished, tmp_path / "run"), resume=True)
    images = build_dataset(settings.data, "val")

    def choose(views: TestViews, max_pixels: int = 400) -> LabelThresholds:
        labeler = PseudoLabeler.from_checkpoint(
            path, method="cam", views=views, max_pixels=max_pixels
        )
        return calibrate(images, labeler, progress=False).thresholds

    stored = load_classifier(path)
    assert TestViews.from_description(stored.views, path) == views
    assert stored.label_thresholds == choose(views)
    for other in ({"scales": (24,)}, {"flip": False}, {"keep_ratio": True}):
        assert choose(replace(views, **other)) != stored.label_thresholds
    assert choose(views, max_pixels=1 << 22) != stored.label_thresholds


def test_unreadable_images_neither_end_the_run_nor_count(
    tmp_path: Path, mini_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    shutil.copytree(mini_settings.data.root, root)
    (root / "JPEGImages" / "train_00003.png").write_bytes(b"")
    (root / "JPEGImages" / "val_00004.png").write_text("this is no image")
    settings = mini_settings.with_changes({"data.root": str(root), "train.epochs": 1})
    path = train_classifier(settings, tmp_path / "run")
    expected = compute_map(path, settings, without=["val_00004"])
    assert load_classifier(path).info["val_map"] == pytest.approx(expected, abs=1e-3)
    text = caplog.text
    assert "left out of training" in text
    assert "train_00003.png" in text
    assert "left out of validation" in text
    assert "val_00004.png" in text


def test_nan_labels_are_dropped_when_all_results_are_together(mini_settings: Settings) -> None:
    class_set = build_dataset(mini_settings.data, "val").class_set
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


def test_a_batch_larger_than_the_set(tmp_path: Path, mini_settings: Settings) -> None:
    train_classifier(
        mini_settings.with_changes({"train.batch_size": 64, "train.epochs": 1}), tmp_path
    )
    assert len(train_lines(tmp_path)) == 1


def test_bfloat16_trains(tmp_path: Path, mini_settings: Settings) -> None:
    settings = mini_settings.with_changes({"train.amp": "bfloat16", "train.epochs": 1})
    path = train_classifier(settings, tmp_path)
    losses = [line["loss"] for line in train_lines(tmp_path)]
    assert all(np.isfinite(losses))
    network = load_classifier(path).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in network.parameters())


def test_several_training_splits_are_joined(tmp_path: Path, mini_settings: Settings) -> None:
    changes = {"data.train": ["train", "val"], "train.epochs": 1, "train.batch_size": 11}
    info = load_classifier(train_classifier(mini_settings.with_changes(changes), tmp_path)).info
    assert info["train_images"] == 55
    assert info["train_splits"] == ["train", "val"]
    assert len(train_lines(tmp_path)) == 5


def test_unlabeled_images_are_refused_before_anything_is_written(
    tmp_path: Path, mini_settings: Settings
) -> None:
    root = tmp_path / "data"
    shutil.copytree(mini_settings.data.root, root)
    lines = (root / "labels.csv").read_text().splitlines()
    assert lines[2].startswith("train_00001,")
    (root / "labels.csv").write_text("\n".join(lines[:2] + lines[3:]) + "\n")
    settings = mini_settings.with_changes({"data.root": str(root)})
    with pytest.raises(
        AdcamError, match=r"labels.csv: 1 images of split 'train' have no entry.*'train_00001'"
    ):
        train_classifier(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.epoch": 3}, "train: there is no key 'epoch'; did you mean 'epochs'"),
        ({"model.weight": "x"}, "model: there is no key 'weight'; did you mean 'weights'"),
        ({"model.weights": "gone.pth"}, "gone.pth: no such weights file"),
        ({"model.backbone": "resnet18"}, "resnet18"),
        ({"train.amp": "fp8"}, r"train\.amp must be 'none', 'bfloat16' or 'float16', got 'fp8'"),
        ({"train.min_area": 0.0}, r"train\.min_area must be above 0 and at most 1, got 0\.0"),
        ({"data.val": "test"}, "no list for split 'test'"),
        ({"data.root": "nowhere"}, "data.root nowhere is no folder"),
        ({"train.epochs": 0}, r"train\.epochs must be at least 1, got 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path, mini_settings: Settings, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdcamError, match=message):
        train_classifier(mini_settings.with_changes(change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_train_one_classifier(tmp_path: Path, mini_settings: Settings) -> None:
    """torchrun on CPUs: odd numbers of images, one of them unreadable, gathered in full; and the
    same classifier as in one process."""
    root = tmp_path / "data"
    shutil.copytree(mini_settings.data.root, root)
    (root / "JPEGImages" / "val_00004.png").write_text("this is no image")
    settings = mini_settings.with_changes({"data.root": str(root), "train.batch_size": 8})
    (tmp_path / "mini.json").write_text(json.dumps(settings.to_dict()))
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            import torch
            from adcam.settings import load_settings
            from adcam.training.classifier import train_classifier

            torch.set_num_threads(1)
            train_classifier(load_settings(sys.argv[1]), sys.argv[2], launcher="pytorch")
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
            *(str(script), str(tmp_path / "mini.json"), str(tmp_path / "run")),
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
    expected = compute_map(path, settings, without=["val_00004"])
    assert load_classifier(path).info["val_map"] == pytest.approx(expected, abs=1e-3)
    # One process with twice the batch takes the same steps.
    train_classifier(settings.with_changes({"train.batch_size": 16}), tmp_path / "one")
    assert val_maps(tmp_path / "run") == pytest.approx(val_maps(tmp_path / "one"), abs=0.01)
    two, one = (load_classifier(tmp_path / n / path.name).network for n in ("run", "one"))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor, atol=1e-4, rtol=1e-4, msg=name)


def test_gradients_in_float32_are_exact_beside_those_in_bfloat16(mini_settings: Settings) -> None:
    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "gradient_precision.py"))
    errors: dict[str, dict[str, float]] = {}
    for variant, group, one_step, _, norm in tool["make_rows"](mini_settings, steps=2):
        assert float(norm) > 0
        errors.setdefault(variant, {})[group] = float(one_step)
    exact, rounded, rounded_patches = errors.values()
    assert {"patch embedding", "position embedding", "block 0", "block 1"} < exact.keys()
    assert max(exact.values()) < 0.01 < 0.1 < max(rounded.values()) < 30
    assert rounded["patch embedding"] < rounded_patches["patch embedding"]
