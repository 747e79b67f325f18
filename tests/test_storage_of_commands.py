"""Commands whose storage refuses: they say so, and the same command goes on later."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import write_labelled_photos
from mmengine.config import Config
from storage_faults import read_tree, refuse_creations

from adcam.cli import main
from adcam.data.sources import build_classes
from adcam.models.classifier_file import save_classifier
from adcam.models.token_cam import TokenCAM
from adcam.settings import Settings

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_labelled_photos(tmp_path / "photos", 6)


@pytest.fixture
def masks(photos: Path, tiny_checkpoint: Path) -> Path:
    """An output folder of `adcam generate`, with its report."""
    out = photos.parent / "masks"
    assert main(generate(photos, tiny_checkpoint, out)) == 0
    return out


def generate(photos: Path, checkpoint: Path, out: Path) -> list[str]:
    return [
        *("generate", str(photos), "--checkpoint", str(checkpoint), "--out", str(out)),
        *("--labels", str(photos.parent / "labels.csv"), "--scales", "32", "--device", "cpu"),
        *("--workers", "0"),
    ]


def emptied(folder: Path) -> Callable[[], None]:
    return lambda: shutil.rmtree(folder, ignore_errors=True)


def test_boxes_are_found_again_after_storage_refused(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    words = [
        *("boxes", str(photos), "--checkpoint", str(tiny_checkpoint), "--threshold", "0.3"),
        *("--labels", str(tmp_path / "labels.csv"), "--scales", "32", "--device", "cpu"),
        *("--out", str(out / "boxes.csv"), "--score-maps", str(out / "maps"), "--workers", "0"),
    ]
    places = [0, 1, 2, 3, 4, 8, -2, -1]
    refuse_creations(words, out, places, capsys, emptied(out), lambda: read_tree(out))


@pytest.mark.parametrize("what", [("masks-to-coco", "file.json"), ("masks-to-yolo", "files")])
def test_conversions_go_on_after_storage_refused(
    masks: Path, tmp_path: Path, capsys: Capture, what: tuple[str, str]
) -> None:
    if what[0] == "masks-to-coco":
        pytest.importorskip("pycocotools")
    out = tmp_path / "out"
    words = ["convert", what[0], str(masks), "--out", str(out / what[1])]
    refuse_creations(words, out, [0, 1, 2, 3, -2, -1], capsys, emptied(out), lambda: read_tree(out))


def test_a_report_is_written_again_after_storage_refused(masks: Path, capsys: Capture) -> None:
    report = masks / "report"

    def read() -> dict[str, bytes]:
        files = (path for path in report.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}

    kept = {path.name: path.read_bytes() for path in (report / "shown").rglob("*.*")}
    assert kept, "what the report is made of is missing"
    refuse_creations(["report", str(masks)], masks, [0, 1, 2, -2, -1], capsys, lambda: None, read)


def test_a_project_is_set_up_again_after_storage_refused(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    project = tmp_path / "project"
    words = ["init", str(project), "--images", str(photos)]
    words += ["--labels", str(tmp_path / "labels.csv")]
    refuse_creations(
        words, project, [0, 1, 2, 3, 4, 5, -1], capsys, emptied(project), lambda: read_tree(project)
    )


@pytest.mark.filterwarnings("default")  # of mmengine
def test_a_recipe_goes_on_after_storage_refused(
    mini_cfg: Config, tmp_path: Path, capsys: Capture
) -> None:
    """A comparison on a classifier whose file says nothing of its training, and its report."""
    model = mini_cfg.model
    options = {key: model[key] for key in ("backbone", "img_size", "backbone_kwargs")}
    class_set = build_classes("shapes")
    network = TokenCAM(num_fg_classes=class_set.num_fg_classes, **options)
    save_classifier(tmp_path / "c.safetensors", network, options, class_set, {})
    mini_cfg.compare = {
        "choose_on": "val",
        "report_on": "val",
        "choose_stride": 4,
        "checkpoint": str(tmp_path / "c.safetensors"),
        "rows": [{"name": "CAM", "method": "cam", "views": {"scales": [32]}}],
    }
    Config(Settings(mini_cfg.to_dict()).to_dict()).dump(str(tmp_path / "mini.py"))
    work = tmp_path / "work"
    words = ["compare", str(tmp_path / "mini.py"), "--work-dir", str(work)]

    def read() -> dict[str, bytes]:
        table = {"compare.csv": (work / "compare" / "compare.csv").read_bytes()}
        masks = (work / "compare" / "masks").rglob("*.png")
        return table | {path.name: path.read_bytes() for path in masks}

    refuse_creations(words, work, [0, 3, -1], capsys, emptied(work), read)
