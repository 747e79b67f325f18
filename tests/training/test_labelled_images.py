"""What would spoil the training of a classifier is said before its first step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adcam.errors import AdcamError
from adcam.settings import Settings
from adcam.training.classifier import train_classifier
from adcam.training.labelled_images import open_labelled_images


def change_labels(root: Path, change: Callable[[str, list[str]], list[str]]) -> None:
    header, *lines = (root / "labels.csv").read_text().splitlines()
    rows = []
    for line in lines:
        img_id, *names = line.split(",")
        rows.append(",".join([img_id, " ".join(change(img_id, " ".join(names).split()))]))
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")


def no_val_labels(root: Path) -> str:
    change_labels(root, lambda img_id, names: [] if img_id.startswith("val") else names)
    return r"none of the validation images \('val'\) shows any class"


def no_labels(root: Path) -> str:
    change_labels(root, lambda img_id, names: [])
    return r"none of the training images \('train'\) shows any class"


def empty_val_list(root: Path) -> str:
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    return "empty"


def broken_images(split: str) -> Callable[[Path], str]:
    def spoil(root: Path) -> str:
        for path in (root / "JPEGImages").glob(f"{split}_*"):
            path.write_text("no image")
        return f"none of the .* images of '{split}' can be read; the last: "

    spoil.__name__ = f"broken_{split}"
    return spoil


@pytest.mark.parametrize(
    "spoil",
    [no_val_labels, no_labels, empty_val_list, broken_images("val"), broken_images("train")],
    ids=lambda spoil: spoil.__name__,
)
def test_it_is_said_before_the_first_step(
    tmp_path: Path, mini_settings: Settings, spoil: Callable[[Path], str]
) -> None:
    root = Path(shutil.copytree(mini_settings.data.root, tmp_path / "data"))
    message = spoil(root)
    with pytest.raises(AdcamError, match=message):
        train_classifier(mini_settings.with_changes({"data.root": str(root)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_classes_that_no_image_shows_are_named(
    tmp_path: Path, mini_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(shutil.copytree(mini_settings.data.root, tmp_path / "data"))
    change_labels(root, lambda img_id, names: [n for n in names if n != "owl"])
    open_labelled_images(mini_settings.with_changes({"data.root": str(root)}))
    assert "1 of 6 classes are in none of the training images ('train') and cannot learn: owl" in (
        caplog.text
    )
    assert "cannot be scored: owl" in caplog.text


@pytest.mark.parametrize("key", ["data.train", "data.val"])
def test_lists_must_be_named(mini_settings: Settings, key: str) -> None:
    value = [] if key == "data.train" else None
    with pytest.raises(AdcamError, match=r"data\.train and data\.val must name lists"):
        open_labelled_images(mini_settings.with_changes({key: value}))
