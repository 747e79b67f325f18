"""Trainings whose storage refuses, and two in one folder: both are told, and the first goes on."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import write_labelled_photos
from mmengine.config import Config
from safetensors.torch import load_file
from storage_faults import refuse_creations

from adcam.cli import main
from adcam.errors import AdcamError
from adcam.labeling.locks import LOCK_NAME, FolderLock
from adcam.models.classifier_file import load_classifier
from adcam.settings import Settings
from adcam.training.runner import ProgressLines

# Warnings raised inside mmengine and tensorboard are theirs.
pytestmark = pytest.mark.filterwarnings("default")

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]


def emptied(folder: Path) -> Callable[[], None]:
    return lambda: shutil.rmtree(folder, ignore_errors=True)


def read_tensors(path: Path) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in load_file(path).items()}


@pytest.fixture
def words(mini_cfg: Config, tmp_path: Path) -> list[str]:
    mini_cfg.cam = {"scales": [32], "flip": False}
    Config(Settings(mini_cfg.to_dict()).to_dict()).dump(str(tmp_path / "mini.py"))
    return ["train", str(tmp_path / "mini.py"), "--work-dir", str(tmp_path / "work"), "--resume"]


def test_a_classifier_is_trained_on_after_storage_refused(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    """Wherever it stops; also between the checkpoint of the best epoch and its validation."""
    work = tmp_path / "work"
    path = work / "classifier.safetensors"

    def read() -> Any:
        return read_tensors(path), load_classifier(path).info

    # The log, curves, both checkpoints, what names the last, and the classifier, twice.
    refuse_creations(words, work, [4, 9, 12, 13, 14, -5, -1], capsys, emptied(work), read)


def test_what_to_do_is_said_and_a_removed_folder_is_not_built_up_again(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    work, step = tmp_path / "work", ProgressLines.after_train_iter

    def remove(self: ProgressLines, runner: Any, *rest: Any, **options: Any) -> None:
        step(self, runner, *rest, **options)
        if runner.iter == 2:
            shutil.rmtree(work)

    monkeypatch.setattr(ProgressLines, "after_train_iter", remove)
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert str(work) in said and "No such file or directory" in said
    assert said.count("the same command with --resume resumes the training") == 1
    assert not work.exists()


@pytest.mark.skipif(not importlib.util.find_spec("mmseg"), reason="extra `seg`")
def test_a_segmenter_is_trained_on_after_storage_refused(
    mini_shapes: Path, tmp_path: Path, capsys: Capture
) -> None:
    from test_segmenter import read_settings

    work, config = tmp_path / "work", tmp_path / "mini.py"
    Config(read_settings(mini_shapes).to_dict()).dump(str(config))
    words = ["segment", "train", str(config), "--work-dir", str(work)]
    read = lambda: read_tensors(work / "segmenter.safetensors")  # noqa: E731
    refuse_creations(words, work, [1, 15, -1], capsys, emptied(work), read)


def test_a_refinement_goes_on_after_storage_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    maps, out = tmp_path / "maps", tmp_path / "out"
    photos = write_labelled_photos(tmp_path / "photos", 4)
    model = ["--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    given = ["--labels", str(tmp_path / "labels.csv"), "--scales", "32", "--save-maps"]
    assert main(["generate", str(photos), *model, *given, "--out", str(maps)]) == 0
    small = ["--cfg-options", "refine.epochs=1", "refine.scale=32", "refine.batch_size=2"]
    words = ["refine", str(maps), *model, "--out", str(out), *small, "--workers", "0"]

    def read() -> Any:
        masks = {path.name: path.read_bytes() for path in (out / "masks").iterdir()}
        return read_tensors(out / "train" / "refined.safetensors"), masks

    refuse_creations(words, out, [1, 5, 14, 20, -1], capsys, emptied(out), read)


def test_a_second_training_is_told_who_works_in_the_folder(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "kept.txt").write_text("kept")
    lock = FolderLock(work)
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{work} is in use by process {os.getpid()} on " in said and "another folder" in said
    assert sorted(path.name for path in work.iterdir()) == [LOCK_NAME, "kept.txt"]
    lock.release()
    assert main(words) == 0
    assert not (work / LOCK_NAME).exists()


def test_a_lock_does_not_live_on_in_the_children_of_a_killed_process(tmp_path: Path) -> None:
    """As the processes that read a training's images are: forked, and alive for a while."""
    script = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from adcam.labeling.locks import FolderLock\n"
        f"lock = FolderLock(Path({str(tmp_path)!r}))\n"
        "child = os.fork()\n"
        "if child == 0: time.sleep(60)\n"
        "print(child, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with pytest.raises(AdcamError, match=f"in use by process {process.pid} on"):
                FolderLock(tmp_path)
            process.kill()
            process.wait()
            os.kill(child, 0)  # the child is there
            lock = FolderLock(tmp_path)
            assert lock.was_killed
            lock.release()
        finally:
            os.kill(child, 9)
