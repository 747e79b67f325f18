"""Images as training tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adcam.data.augment import EvalDataset, TrainDataset, class_counts, make_targets
from adcam.data.dataset import ImageDataset, Record, build_class_set

CLASSES = build_class_set("abc", ["a", "b", "c"])
LABELS = ((0, 2), (), (1,))


@pytest.fixture
def images(tmp_path: Path) -> ImageDataset:
    """Plain red, green and blue pictures of 30×50 pixels."""
    records = []
    for i, ids in enumerate(LABELS):
        img = np.zeros((30, 50, 3), np.uint8)
        img[..., i] = 200
        Image.fromarray(img).save(tmp_path / f"{i}.png")
        records.append(Record(str(i), tmp_path / f"{i}.png", ids))
    return ImageDataset(CLASSES, "few", records)


def break_image(images: ImageDataset, index: int) -> None:
    images.records[index].img_path.write_bytes(b"no image")


def test_targets_are_multi_hot(images: ImageDataset) -> None:
    assert make_targets(images).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert class_counts(images) == {"a": 1, "b": 1, "c": 1}


def test_crops_show_the_image_of_their_label(images: ImageDataset) -> None:
    view = TrainDataset(images, img_size=16, jitter=0.0)
    assert len(view) == 3
    for i, ids in enumerate(LABELS):
        item = view[i]
        assert item["inputs"].shape == (3, 16, 16)
        assert item["inputs"].dtype == torch.uint8
        assert torch.equal(item["inputs"].amax(dim=(1, 2)).nonzero()[:, 0], torch.tensor([i]))
        assert item["cls_label"].nonzero()[:, 0].tolist() == list(ids)


def test_crops_follow_the_seed_and_are_mirrored_half_the_time(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(0, 250, 5, dtype=np.uint8)[None, :, None], 30, axis=0)
    Image.fromarray(np.repeat(ramp, 3, axis=2)).save(tmp_path / "ramp.png")
    images = ImageDataset(CLASSES, "one", [Record("ramp", tmp_path / "ramp.png", ())])
    view = TrainDataset(images, img_size=16, min_area=0.9, jitter=0.0)
    torch.manual_seed(0)
    crops = [view[0]["inputs"] for _ in range(60)]
    torch.manual_seed(0)
    assert all(torch.equal(view[0]["inputs"], crop) for crop in crops)
    rising = sum(bool(crop[0, 8, -1] > crop[0, 8, 0]) for crop in crops)
    assert 15 <= rising <= 45


def test_jitter_changes_colours(images: ImageDataset) -> None:
    torch.manual_seed(0)
    values = {
        int(TrainDataset(images, img_size=8, jitter=0.5)[0]["inputs"].max()) for _ in range(9)
    }
    assert len(values) > 1


def test_whole_images_are_resized_to_squares(images: ImageDataset) -> None:
    item = EvalDataset(images, img_size=16)[2]
    assert item["inputs"].shape == (3, 16, 16)
    assert item["inputs"].flatten(1).unique(dim=1).tolist() == [[0], [0], [200]]
    assert item["cls_label"].tolist() == [0, 1, 0]


def test_the_next_image_takes_the_place_of_an_unreadable_one(
    images: ImageDataset, caplog: pytest.LogCaptureFixture
) -> None:
    break_image(images, 2)
    item = TrainDataset(images, img_size=16, jitter=0.0)[2]
    assert item["inputs"][0].max() == 200  # the first one: the search goes round
    assert item["cls_label"].tolist() == [1, 0, 1]
    assert "2.png" in caplog.text


def test_nothing_readable_at_all(images: ImageDataset) -> None:
    for i in range(3):
        break_image(images, i)
    with pytest.raises(ValueError, match="none of the 3 images of 'few' can be read"):
        TrainDataset(images, img_size=16)[1]


def test_an_unreadable_image_is_marked_for_validation(
    images: ImageDataset, caplog: pytest.LogCaptureFixture
) -> None:
    break_image(images, 0)
    view = EvalDataset(images, img_size=16)
    assert view[0]["inputs"].shape == (3, 16, 16)
    assert bool(view[0]["cls_label"].isnan().all())
    assert "0.png" in caplog.text
    assert view[2]["cls_label"].tolist() == [0, 1, 0]


@pytest.mark.parametrize("view", [TrainDataset, EvalDataset])
def test_unknown_labels_are_refused(images: ImageDataset, view: type) -> None:
    partly = images.with_labels({"0": [0], "2": [1]})
    with pytest.raises(ValueError, match=r"1 of 3 images of split 'few'.*'1'"):
        view(partly, img_size=16)


@pytest.mark.parametrize("min_area", [0.0, -0.1, 1.5])
def test_illegal_crops(images: ImageDataset, min_area: float) -> None:
    with pytest.raises(ValueError, match=r"min_area must lie in \(0, 1\]"):
        TrainDataset(images, img_size=16, min_area=min_area)
