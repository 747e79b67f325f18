"""Label thresholds from labelled images into the classifier file and out of it again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adcam import PseudoLabeler
from adcam.cli import main
from adcam.data.folder import load_folder
from adcam.errors import AdcamError
from adcam.labeling.calibrate import calibrate, calibrate_file
from adcam.labeling.inputs import BATCH_SIZE
from adcam.labeling.labeler import find_present
from adcam.labeling.map_maker import MapMaker
from adcam.models.classifier_file import LabelThresholds, load_classifier, save_label_thresholds
from adcam.settings import TestViews

ROWS = {"a": "cat", "b": "dog", "c": "cat dog", "d": ""}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for name in ROWS:
        Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(
            root / f"{name}.png"
        )
    lines = ["image,labels", *(f"{name},{labels}" for name, labels in ROWS.items())]
    (root / "labels.csv").write_text("\n".join(lines), "utf-8")
    return root


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_checkpoint, tmp_path / "classifier.safetensors"))


def load(path: Path, **options: object) -> PseudoLabeler:
    views = TestViews(scales=(32,))
    return PseudoLabeler.from_checkpoint(path, device="cpu", views=views, method="cam", **options)


def test_thresholds_go_into_the_file_and_are_the_default(photos: Path, checkpoint: Path) -> None:
    labeler = load(checkpoint)
    assert labeler.label_thresholds == (0.5, 0.5, 0.5)
    images = load_folder(photos, labels=photos / "labels.csv", classes=labeler.class_set)
    found = calibrate_file(checkpoint, images, labeler)
    assert found.num_shown == (2, 2, 0) and found.thresholds.num_images == 4
    stored = load_classifier(checkpoint)
    assert stored.label_thresholds == found.thresholds
    again = load(checkpoint)
    assert again.label_thresholds == found.thresholds.values
    assert again.weights_hash == labeler.weights_hash, "the tensors keep their bytes"
    assert again.describe() != labeler.describe()
    # One threshold for all classes remains possible, and so does one of one's own a class.
    assert load(checkpoint, label_threshold=0.3).label_thresholds == (0.3, 0.3, 0.3)
    assert load(checkpoint, label_threshold=[0.1, 0.2, 0.3]).label_thresholds == (0.1, 0.2, 0.3)
    with pytest.raises(AdcamError, match="one for each of the 3 classes, got 2"):
        load(checkpoint, label_threshold=(0.1, 0.2))


def test_predictions_are_those_of_the_labeler_however_images_are_batched(
    photos: Path, checkpoint: Path
) -> None:
    labeler = load(checkpoint)
    images = load_folder(photos, labels=photos / "labels.csv", classes=labeler.class_set)
    one, many = (calibrate(images, labeler, batch_size=n, progress=False) for n in (1, 3))
    assert one.thresholds.values == pytest.approx(many.thresholds.values, abs=1e-3)
    # The scores of `before` are those of what `--labels predicted` finds at 0.5.
    found = [set(labeler(photos / f"{name}.png").class_maps.class_ids) for name in ROWS]
    shown = [{"cat": {0}, "dog": {1}, "cat dog": {0, 1}, "": set()}[text] for text in ROWS.values()]
    correct = sum(len(a & b) for a, b in zip(found, shown, strict=True))
    total = sum(len(a) + len(b) for a, b in zip(found, shown, strict=True))
    assert one.before.f1 == pytest.approx(100 * 2 * correct / total)


def test_on_a_gpu_batches_are_full(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 photographs of four shapes by turns, of which one is damaged behind its head."""
    rng, lines, root = np.random.default_rng(0), ["image,labels"], tmp_path / "many"
    root.mkdir()
    shapes = [(32, 32), (48, 16), (16, 48), (16, 64)]
    for i in range(128):
        img = Image.fromarray(rng.integers(0, 255, (*shapes[i % 4], 3), dtype=np.uint8))
        img.save(root / f"{i:03}.png")
        lines.append(f"{i:03},{('cat', 'dog', 'cat dog')[i % 3]}")
    (root / "labels.csv").write_text("\n".join(lines), "utf-8")
    (root / "007.png").write_bytes((root / "007.png").read_bytes()[:200])
    labeler = load(checkpoint)
    images = load_folder(root, labels=root / "labels.csv", classes=labeler.class_set)
    sizes: list[int] = []
    forward = MapMaker.forward

    def count(self: MapMaker, *batches: torch.Tensor) -> Any:
        sizes.append(len(batches[0]))
        if len(batches[0]) > limit:
            raise torch.OutOfMemoryError("no room")
        return forward(self, *batches)

    monkeypatch.setattr(MapMaker, "forward", count)
    limit = BATCH_SIZE
    alone = calibrate(images, labeler, progress=False)
    assert sizes == [1] * 127
    monkeypatch.setattr(PseudoLabeler, "device", torch.device("cuda"))
    sizes.clear()
    found = calibrate(images, labeler, progress=False)
    assert sizes == [32, 32, 32, 31]  # 32 in a row have eight of each shape: 16 passes
    assert found.thresholds.num_images == alone.thresholds.num_images == 127
    assert found.thresholds.values == pytest.approx(alone.thresholds.values, abs=1e-3)
    limit = 16
    assert calibrate(images, labeler, progress=False).thresholds.values == pytest.approx(
        alone.thresholds.values, abs=1e-3
    )


def test_unreadable_and_unlabelled_images(
    photos: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labeler = load(checkpoint)
    (photos / "b.png").write_bytes(b"no image")
    images = load_folder(photos, labels=photos / "labels.csv", classes=labeler.class_set)
    found = calibrate(images, labeler, progress=False)
    assert found.thresholds.num_images == 3 and "left out" in caplog.text
    with pytest.raises(AdcamError, match="have no labels"):
        calibrate(load_folder(photos, classes=labeler.class_set), labeler, progress=False)


def test_the_command_writes_another_file_if_asked(
    photos: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = checkpoint.read_bytes(), checkpoint.with_name("new.safetensors")
    words = ["calibrate", str(photos), "--checkpoint", str(checkpoint), "--scales", "32"]
    assert main([*words, "--out", str(out), "--device", "cpu"]) == 0
    assert checkpoint.read_bytes() == before
    captured = capsys.readouterr()
    assert str(out) in captured.out and "no image shows horse:" in captured.err + captured.out
    assert load_classifier(out).label_thresholds is not None
    generated = [
        *("generate", str(photos), "--checkpoint", str(out), "--device", "cpu"),
        *("--workers", "0", "--report-images", "0"),
    ]
    for name, more, is_warned in (
        ("a", ["--labels", "predicted"], False),
        ("b", ["--labels", "predicted", "--flip"], True),
        ("c", ["--labels", "predicted", "--flip", "--label-threshold", "0.3"], False),
        ("d", ["--flip"], False),
    ):
        assert main([*generated, *more, "--out", str(photos.parent / name)]) == 0
        captured = capsys.readouterr()
        message = "were chosen at --scales 32, and this run looks at --scales 32 with --flip"
        assert (message in captured.err + captured.out) == is_warned, name
    (photos / "labels.csv").unlink()
    assert main(words) == 2
    assert "have no labels" in capsys.readouterr().err


def test_a_classifier_refuses_thresholds_of_other_classes(checkpoint: Path) -> None:
    with pytest.raises(AdcamError, match="has 3 classes, got 2"):
        save_label_thresholds(checkpoint, LabelThresholds((0.5, 0.5), "val", 3), views={})
    with pytest.raises(AdcamError, match=r"\[0, 1\], got 1.5"):
        LabelThresholds((1.5,), "val", 3)


def test_at_least_one_takes_the_class_nearest_to_its_threshold() -> None:
    scores, thresholds = np.array([0.3, 0.1]), (0.6, 0.12)
    assert find_present(scores, thresholds) == ()
    assert find_present(scores, thresholds, at_least_one=True) == (1,)
    assert find_present(scores, (0.6, 0.1), at_least_one=True) == (1,), "reached is present"
    assert find_present(scores, (0.2, 0.05), at_least_one=True) == (0, 1)
    assert find_present(np.array([0.0, 0.0]), (0.0, 0.5)) == (0,), "0 finds the class everywhere"
    assert len(find_present(np.zeros(2), (0.5, 1.0), at_least_one=True)) == 1
