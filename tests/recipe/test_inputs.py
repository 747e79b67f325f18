"""What stages depend on: hashes that change with what matters, and with nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcam.data.dataset import ImageDataset
from adcam.data.png import voc_palette, write_mask
from adcam.data.sources import build_dataset
from adcam.recipe import inputs
from adcam.recipe.inputs import describe_images, hash_files_in, hash_masks
from adcam.settings import Settings


@pytest.fixture
def images(tmp_path: Path) -> ImageDataset:
    """Three photographs of one's own with labels, masks, and a list of two of them."""
    root = tmp_path / "photos"
    (root / "masks").mkdir(parents=True)
    for number, name in enumerate("abc"):
        Image.new("RGB", (9, 7), (40 * number, 0, 0)).save(root / f"{name}.png")
        write_mask(root / "masks" / f"{name}.png", np.ones((7, 9), np.uint8), voc_palette())
    (root / "labels.csv").write_text("image_id,labels\na,cat\nb,dog horse\nc,cat\n")
    (root / "val10.txt").write_text("a\nb\n")
    data = {
        "source": "folder",
        "root": str(root),
        "classes": ["cat", "dog", "horse"],
        "labels": "labels.csv",
        "mask_dir": "masks",
    }
    return build_dataset(Settings({"data": data}).data, "val10")


def test_own_data_keeps_its_names_and_values(images: ImageDataset) -> None:
    """The report of a recipe finds the scores of a list by the name of its split."""
    assert images.split == "val10"
    assert images.class_set.mask_values == (1, 2, 3)
    assert images.class_set.name != "voc12"


def test_labels_masks_and_sizes_count_and_places_do_not(
    images: ImageDataset, tmp_path: Path
) -> None:
    before = describe_images(images, masks=True)
    assert before["images"] == 2
    shutil.copytree(tmp_path / "photos", tmp_path / "moved")
    moved = ImageDataset(
        images.class_set,
        images.split,
        [
            replace(r, img_path=tmp_path / "moved" / r.img_path.name, mask_path=r.mask_path)
            for r in images.records
        ],
    )
    assert describe_images(moved, masks=True) == before
    relabelled = images.with_labels({"a": [1], "b": [1, 2]})
    assert describe_images(relabelled)["labels"] != before["labels"]
    boxed = [replace(r, boxes=((0, 0, 3, 3),)) for r in images.records]
    assert "boxes" in describe_images(ImageDataset(images.class_set, "val10", boxed))
    of_copies = [replace(r, boxes_hw=(9, 9)) for r in boxed]
    assert "boxes_hw" in describe_images(ImageDataset(images.class_set, "val10", of_copies))
    write_mask(tmp_path / "photos" / "masks" / "a.png", np.zeros((7, 9), np.uint8), voc_palette())
    changed = describe_images(images, masks=True)
    assert {key for key in before if changed[key] != before[key]} == {"masks"}


def test_a_mask_is_read_once_unless_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    hash_file = inputs.hash_file
    monkeypatch.setattr(inputs, "hash_file", lambda p: read.append(p.name) or hash_file(p))
    for name in ("a", "b"):
        write_mask(tmp_path / f"{name}.png", np.zeros((3, 4), np.uint8), voc_palette())
    before = hash_masks(tmp_path, ["a", "b", "a"])
    assert hash_masks(tmp_path, ["a", "b", "a"]) == before
    assert hash_masks(tmp_path, ["a", "b"]) != before
    assert read == ["a.png", "b.png"]
    write_mask(tmp_path / "b.png", np.ones((3, 4), np.uint8), voc_palette())
    assert hash_masks(tmp_path, ["a", "b", "a"]) != before
    assert read == ["a.png", "b.png", "b.png"]


def test_masks_and_files_are_hashed_as_they_lie(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.zeros((3, 4), np.uint8), voc_palette())
    before = hash_masks(tmp_path, ["a", "b"])
    write_mask(tmp_path / "b.png", np.zeros((3, 4), np.uint8), voc_palette())
    assert hash_masks(tmp_path, ["a", "b"]) != before
    path = str(tmp_path / "a.png")
    values = {"weights": path, "rates": (1.0, path), "name": "a.png that is not there"}
    digest = hash_files_in(values)["weights"]
    assert digest.startswith("file ")
    assert hash_files_in(values) == {
        "name": "a.png that is not there",
        "rates": [1.0, digest],
        "weights": digest,
    }
