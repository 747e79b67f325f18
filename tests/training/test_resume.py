"""What a training resumes from, and what it refuses to: other settings, cut and hostile files."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import read_scalars

from adcam.errors import AdcamError
from adcam.models.checkpoints import load_state_dict
from adcam.models.classifier_file import load_classifier
from adcam.settings import Settings
from adcam.training import checkpoints
from adcam.training.checkpoints import find_checkpoint, read_checkpoint
from adcam.training.classifier import train_classifier

# Warnings raised inside mmengine and tensorboard are theirs.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, mini_settings: Settings) -> Path:
    """A work_dir after two epochs; copied by `work_dir`."""
    folder = tmp_path_factory.mktemp("finished")
    train_classifier(mini_settings, folder)
    return folder


@pytest.fixture
def work_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"train.epochs": 3}, "train.epochs: 2 -> 3"),
        ({"train.img_size": 40}, "train.img_size: 32 -> 40"),
        ({"model.backbone": "vit_small_patch16_224"}, '"vit_tiny_patch16_224" -> "vit_small'),
        ({"model.backbone_kwargs.depth": 3}, "model.backbone_kwargs.depth: 2 -> 3"),
        ({"optim_wrapper.optimizer.lr": 1.0}, "optim_wrapper.optimizer.lr: 0.003 -> 1.0"),
        ({"data.train": "val", "data.val": "train"}, 'data.train: "train" -> "val"'),
    ],
)
def test_another_training_is_refused_with_the_differences(
    work_dir: Path, mini_settings: Settings, changes: dict[str, Any], difference: str
) -> None:
    before = sorted(path.name for path in work_dir.iterdir())
    with pytest.raises(AdcamError, match=r"other settings \(found -> asked for\)") as caught:
        train_classifier(mini_settings.with_changes(changes), work_dir, resume=True)
    assert difference in str(caught.value)
    assert sorted(path.name for path in work_dir.iterdir()) == before


def test_other_classes_and_labels_are_differences(
    work_dir: Path, mini_settings: Settings, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(mini_settings.data.root, tmp_path / "data"))
    lines = (root / "labels.csv").read_text().splitlines()
    labels = [f"{line.partition(',')[0]},bear" for line in lines[1:]]
    (root / "labels.csv").write_text("\n".join([lines[0], *labels]) + "\n")
    changes = {"data.root": str(root), "data.classes": ["bear", "ox"]}
    with pytest.raises(AdcamError) as caught:
        train_classifier(mini_settings.with_changes(changes), work_dir, resume=True)
    assert "images.train.ox: (absent) -> 0" in str(caught.value)
    assert "data.classes" in str(caught.value)


def test_the_data_may_move_between_two_runs(
    work_dir: Path, mini_settings: Settings, tmp_path: Path
) -> None:
    before = load_classifier(work_dir / "classifier.safetensors").info["epoch"]
    root = Path(shutil.copytree(mini_settings.data.root, tmp_path / "moved"))
    train_classifier(mini_settings.with_changes({"data.root": str(root)}), work_dir, resume=True)
    assert load_classifier(work_dir / "classifier.safetensors").info["epoch"] == before
    assert json.loads((work_dir / "training.json").read_text())["data"]["root"] == str(root)


def test_how_a_training_is_watched_may_change(work_dir: Path, mini_settings: Settings) -> None:
    path = work_dir / "classifier.safetensors"
    before = load_classifier(path)
    path.unlink()
    (work_dir / "last_checkpoint").write_text("epoch_1.pth")
    watched = mini_settings.with_changes({"train.log_interval": 3, "train.num_workers": 1})
    train_classifier(watched, work_dir, resume=True)
    after = load_classifier(path)
    # The epoch that is resumed from is validated again, so that the best is the same.
    assert after.info["epoch"] == before.info["epoch"]
    assert after.info["val_map"] == before.info["val_map"]


def test_another_number_of_processes_is_refused(
    work_dir: Path, mini_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = json.loads((work_dir / "training.json").read_text())
    assert description["processes"] == 1
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "get_world_size", lambda: 2)
        with pytest.raises(AdcamError, match="processes: 1 -> 2"):
            train_classifier(mini_settings, work_dir, resume=True)
    # A folder of an earlier version does not say it, and had one.
    del description["processes"]
    (work_dir / "training.json").write_text(json.dumps(description))
    train_classifier(mini_settings, work_dir, resume=True)


def test_a_folder_without_a_description_is_refused(work_dir: Path, mini_settings: Settings) -> None:
    (work_dir / "training.json").unlink()
    with pytest.raises(AdcamError, match=r"no training\.json says what they were trained for"):
        train_classifier(mini_settings, work_dir, resume=True)


@pytest.mark.parametrize(
    "last", ["", "/elsewhere/epoch_2.pth", "gone.pth", "http://localhost:1/epoch_2.pth", "..", "\0"]
)
def test_whatever_last_checkpoint_says_a_checkpoint_of_the_folder_is_taken(
    work_dir: Path, last: str
) -> None:
    (work_dir / "last_checkpoint").write_text(last)
    assert find_checkpoint(work_dir, cure="") == work_dir / "epoch_2.pth"


def test_the_newest_checkpoint_that_can_be_read_is_taken_and_said(
    work_dir: Path, finished: Path, mini_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    newest = work_dir / "epoch_2.pth"
    newest.write_bytes(newest.read_bytes()[:5000])
    (work_dir / "last_checkpoint").write_text(str(newest))
    # Without the epoch that was lost, the file would not hold the best of both.
    train_classifier(mini_settings, work_dir, resume=True)
    assert "epoch_2.pth: cannot be read as a checkpoint" in caplog.text
    assert "trying another checkpoint" in caplog.text
    steps = [line["step"] for line in read_scalars(work_dir) if "loss" in line]
    assert steps == [*range(1, 9), *range(5, 9)]
    losses = {line["step"]: line["loss"] for line in read_scalars(work_dir) if "loss" in line}
    whole = {line["step"]: line["loss"] for line in read_scalars(finished) if "loss" in line}
    assert losses == whole


def test_if_no_checkpoint_can_be_read_the_folder_is_left_alone(
    work_dir: Path, mini_settings: Settings
) -> None:
    for path in work_dir.glob("epoch_*.pth"):
        path.write_bytes(b"")
    with pytest.raises(AdcamError, match=r"none of the checkpoints in .* can be read; take"):
        train_classifier(mini_settings, work_dir, resume=True)


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_checkpoint_that_holds_code_is_not_run(work_dir: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    checkpoint = torch.load(work_dir / "epoch_2.pth", weights_only=False)
    torch.save({**checkpoint, "extra": Canary(canary)}, work_dir / "epoch_2.pth")
    (work_dir / "epoch_1.pth").write_bytes(pickle.dumps(Canary(canary), protocol=2))
    with pytest.raises(AdcamError, match="none of the checkpoints"):
        find_checkpoint(work_dir, cure="")
    assert not canary.exists()
    torch.load(work_dir / "epoch_2.pth", weights_only=False)
    assert canary.exists()  # so the file would have run code


def test_the_config_inside_a_checkpoint_is_not_executed(
    work_dir: Path, mini_settings: Settings, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    checkpoint = torch.load(work_dir / "epoch_1.pth", weights_only=False)
    checkpoint["meta"]["config"] = f"open({str(canary)!r}, 'w').close()"
    checkpoint["message_hub"]["runtime_info"]["best_ckpt"] = str(tmp_path / "precious.pth")
    torch.save(checkpoint, work_dir / "epoch_1.pth")
    (work_dir / "last_checkpoint").write_text("epoch_1.pth")
    train_classifier(mini_settings, work_dir, resume=True)
    assert not canary.exists()
    read = read_checkpoint(work_dir / "epoch_1.pth")
    assert "config" not in read["meta"] and "best_ckpt" not in read["message_hub"]["runtime_info"]


@pytest.mark.parametrize("content", [{}, {"meta": 3}, [1], "text", {"state_dict": {}}])
def test_tensors_that_are_no_checkpoint_are_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "epoch_1.pth")
    with pytest.raises(AdcamError, match=r"epoch_1\.pth: is no checkpoint of a training"):
        read_checkpoint(tmp_path / "epoch_1.pth")


def test_a_training_that_diverges_says_so_and_keeps_no_such_checkpoint(
    tmp_path: Path, mini_settings: Settings
) -> None:
    optimizer = {"optimizer": {"type": "SGD", "lr": 1e30}, "_delete_": True}
    wild = mini_settings.with_changes({"optim_wrapper": optimizer, "train.epochs": 3})
    with pytest.raises(AdcamError, match=r"diverged at step \d+: the loss is (nan|inf)\. Lower"):
        train_classifier(wild, tmp_path / "run")
    for path in (tmp_path / "run").glob("*.pth"):
        state = read_checkpoint(path)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


def test_weights_that_are_not_finite_are_not_kept(
    tmp_path: Path, mini_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of an epoch spoils the weights; the loss of that step was still a number."""
    from adcam.training import classifier
    from adcam.training.classifier import ExportClassifier

    class Spoil(ExportClassifier):
        def after_train_epoch(self, runner: Any) -> None:
            next(runner.model.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(classifier, "ExportClassifier", Spoil)
    with pytest.raises(AdcamError, match=r"diverged at step .* is not finite"):
        train_classifier(mini_settings, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.pth"))
    assert not (tmp_path / "run" / "classifier.safetensors").exists()
    assert not (tmp_path / "run" / "training.json").exists()


class CraftedDtype:
    """Pickles as a number type whose flags would make NumPy take its bytes for pointers."""

    def __init__(self, code: str, flags: int) -> None:
        self.code, self.flags = code, flags

    def __reduce__(self) -> Any:
        return np.dtype, (self.code, False, True), (3, "<", None, None, None, -1, -1, self.flags)


class CraftedArray:
    """Pickles as an array of a crafted type."""

    def __init__(self, dtype: CraftedDtype) -> None:
        self.dtype = dtype

    def __reduce__(self) -> Any:
        build = np.empty(0).__reduce__()[0]
        return build, (np.ndarray, (0,), b"b"), (1, (1,), self.dtype, False, b"A" * 8)


@pytest.mark.parametrize("flags", [1, 27, 63])
def test_a_type_that_turns_numbers_into_pointers_loses_its_flags(
    work_dir: Path, flags: int
) -> None:
    path = work_dir / "epoch_1.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["state_dict"]["crafted"] = CraftedArray(CraftedDtype("f8", flags))
    torch.save(checkpoint, path)
    crafted = read_checkpoint(path)["state_dict"]["crafted"]
    assert crafted.dtype.flags == 0 and crafted.tolist() == np.frombuffer(b"A" * 8).tolist()


def test_arrays_of_objects_are_refused(work_dir: Path) -> None:
    path = work_dir / "epoch_1.pth"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["state_dict"]["crafted"] = CraftedArray(CraftedDtype("O8", 0))
    torch.save(checkpoint, path)
    with pytest.raises(AdcamError, match="arrays of 'O8' are not read"):
        read_checkpoint(path)


def test_histories_come_back_and_are_stored_as_plain_arrays(work_dir: Path, tmp_path: Path) -> None:
    path = work_dir / "epoch_2.pth"
    expected = torch.load(path, weights_only=False)["message_hub"]["log_scalars"]["train/loss"]
    read = read_checkpoint(path)
    found = read["message_hub"]["log_scalars"]["train/loss"]
    np.testing.assert_array_equal(found.data[0], expected.data[0])
    assert found.data[0].dtype == expected.data[0].dtype and found.mean() == expected.mean()
    torch.save(read, tmp_path / "epoch_3.pth")
    assert b"adcam.training.checkpoints" not in (tmp_path / "epoch_3.pth").read_bytes()
    again = read_checkpoint(tmp_path / "epoch_3.pth")["message_hub"]["log_scalars"]["train/loss"]
    np.testing.assert_array_equal(again.data[0], expected.data[0])


def test_a_checkpoint_cannot_have_files_elsewhere_deleted(work_dir: Path, tmp_path: Path) -> None:
    path = work_dir / "epoch_1.pth"
    checkpoint = torch.load(path, weights_only=False)
    info = checkpoint["message_hub"]["runtime_info"]
    info["best_ckpt_multi-label/mAP"] = str(tmp_path / "precious")
    torch.save(checkpoint, path)
    assert not [k for k in read_checkpoint(path)["message_hub"]["runtime_info"] if "best" in k]
    info["keep_ckpt_ids"] = ["a/../../precious"]  # mmengine makes file names of these
    torch.save(checkpoint, path)
    with pytest.raises(AdcamError, match="not named by numbers"):
        read_checkpoint(path)


def test_no_message_advises_to_load_a_hostile_file_otherwise(
    work_dir: Path, tmp_path: Path
) -> None:
    path = work_dir / "epoch_2.pth"
    for content in (Canary(tmp_path / "canary"), {"meta": Canary(tmp_path / "canary")}):
        path.write_bytes(pickle.dumps(content, protocol=4))
        with pytest.raises(AdcamError, match="is not read as a checkpoint") as caught:
            read_checkpoint(path)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_an_old_tar_checkpoint_is_refused_without_that_advice(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Canary(tmp_path / "canary"))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    old = bytearray(content.getvalue())
    for start in range(0, len(old), 512):  # the form of before 1988, which has no magic number
        if old[start + 257 : start + 262] == b"ustar":
            old[start + 257 : start + 265] = bytes(8)
            old[start + 148 : start + 156] = b" " * 8
            checksum = sum(old[start : start + 512])
            old[start + 148 : start + 156] = b"%06o\0 " % checksum
    path = tmp_path / "epoch_1.pth"
    path.write_bytes(old)
    for read in (read_checkpoint, load_state_dict):
        with pytest.raises(AdcamError, match="cannot be read without running code"):
            read(path)
    assert not (tmp_path / "canary").exists()
