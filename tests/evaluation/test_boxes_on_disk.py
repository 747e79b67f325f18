"""Localisation on files: maps against metadata, boxes written and read back, the commands."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcam.cli import main
from adcam.data.folder import load_folder
from adcam.data.score_maps import read_score_map, write_score_map
from adcam.evaluation.boxes_on_disk import evaluate_boxes, evaluate_pixels
from adcam.labeling.boxes import find_boxes, write_boxes
from adcam.labeling.labeler import PseudoLabeler
from adcam.metrics.localization import MaxBoxAccuracy
from adcam.settings import TestViews

HW = (16, 24)


def make_split(folder: Path, seed: int, *, masks: bool = False) -> dict[str, np.ndarray]:
    """Metadata of five images of 32×48 pixels with a box each, and maps that nearly show it."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tables: dict[str, list[str]] = {name: [] for name in ("image_ids", "class_labels")}
    tables |= {name: [] for name in ("image_sizes", "localization")}
    maps = {}
    for number in range(5):
        image_id = f"{folder.name}/{number}.jpg"
        x0, y0 = (int(v) for v in generator.integers(0, 10, size=2))
        x1, y1 = x0 + int(generator.integers(8, 30)), y0 + int(generator.integers(8, 20))
        tables["image_ids"].append(image_id)
        tables["class_labels"].append(f"{image_id},{number % 2}")
        tables["image_sizes"].append(f"{image_id},48,32")
        tables["localization"].append(
            f"{image_id},{number}.png,{number}_ignore.png"
            if masks
            else f"{image_id},{x0},{y0},{x1},{y1}"
        )
        score_map = 0.3 * generator.random(HW)
        score_map[y0 // 2 : y1 // 2, x0 // 2 : x1 // 2] += 0.7 * generator.random()
        maps[image_id] = score_map / score_map.max()
    for name, lines in tables.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return maps


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    for seed, name in enumerate(("val", "test")):
        for image_id, score_map in make_split(tmp_path / "birds" / name, seed).items():
            write_score_map(tmp_path / f"{name}_maps", image_id, score_map)
    return tmp_path


def test_boxes_are_scaled_to_the_map_and_scored(splits: Path) -> None:
    result = evaluate_boxes(splits / "test_maps", splits / "birds" / "test")
    metric = MaxBoxAccuracy()
    for line in (splits / "birds" / "test" / "localization.txt").read_text().splitlines():
        image_id, *numbers = line.split(",")
        score_map = read_score_map(splits / "test_maps" / f"{image_id}.npy")
        metric.update(score_map, [[int(n) // 2 for n in numbers]], class_id=0)
    expected = metric.compute()
    assert result["box_acc"] == {str(k): v for k, v in expected.box_acc.items()}
    assert result["max_box_acc_v2"] == expected.max_box_acc_v2 > 0
    assert (result["split"], result["chosen_on"]) == ("birds/test", "oracle")
    assert result["num_images"] == 5 and set(result["box_acc_per_class"]) == {"0", "1"}
    json.dumps(result, allow_nan=False)


def test_files_give_wsolevaluations_own_values(
    shared_dir: Path, voc_animals: Path, tmp_path: Path
) -> None:
    stored = np.load(shared_dir / "golden" / "wsol_boxes.npz", allow_pickle=False)
    image_ids = stored["image_ids"].tolist()
    (tmp_path / "animals" / "val").mkdir(parents=True)
    for name in ("image_ids", "class_labels", "image_sizes", "localization"):
        text = (voc_animals / "metadata" / "val" / f"{name}.txt").read_text()
        kept = [line for line in text.splitlines() if line.split(",")[0] in image_ids]
        (tmp_path / "animals" / "val" / f"{name}.txt").write_text("\n".join(kept))
    for image_id, levels in zip(image_ids, stored["score_maps_u8"], strict=True):
        write_score_map(tmp_path / "maps", image_id, levels / 255)
    values = json.loads((shared_dir / "golden" / "wsol_boxes.json").read_text())["metrics"]
    for multi_contour in (False, True):
        result = evaluate_boxes(
            tmp_path / "maps", tmp_path / "animals" / "val", multi_contour=multi_contour
        )
        expected = values[f"step=0.001,multi_contour={multi_contour}"]
        assert result["max_box_acc_v2"] == expected["mean"]
        assert list(result["box_acc"].values()) == list(expected["box_acc"].values())


def test_thresholds_of_another_split_are_named(splits: Path) -> None:
    arguments = (splits / "test_maps", splits / "birds" / "test")
    chosen = evaluate_boxes(splits / "val_maps", splits / "birds" / "val")
    result = evaluate_boxes(
        *arguments,
        choose_maps_dir=splits / "val_maps",
        choose_metadata_dir=splits / "birds" / "val",
    )
    assert result["chosen_on"] == result["policy"]["chosen_on"] == "birds/val"
    assert result["best_thresholds"] == chosen["best_thresholds"]
    oracle = evaluate_boxes(*arguments)
    assert result["max_box_acc_v2"] <= oracle["max_box_acc_v2"]
    with pytest.raises(ValueError, match="give both its maps and metadata"):
        evaluate_boxes(*arguments, choose_maps_dir=splits / "val_maps")


def test_missing_maps_and_boxes(splits: Path) -> None:
    (splits / "test_maps" / "test" / "3.jpg.npy").unlink()
    with pytest.raises(ValueError, match=r"lacks the score maps of 1 of 5 images, .*3\.jpg\.npy"):
        evaluate_boxes(splits / "test_maps", splits / "birds" / "test")
    (splits / "birds" / "val" / "localization.txt").unlink()
    with pytest.raises(ValueError, match=r"val: boxes need localization\.txt with five columns"):
        evaluate_boxes(splits / "val_maps", splits / "birds" / "val")
    with pytest.raises(ValueError, match="names no masks"):
        evaluate_pixels(splits / "val_maps", splits / "birds" / "val", splits)


def test_perfect_maps_have_a_pixel_average_precision_of_100(tmp_path: Path) -> None:
    for number, image_id in enumerate(make_split(tmp_path / "open" / "val", 0, masks=True)):
        mask = np.zeros(HW, dtype=np.uint8)
        mask[3:9, 4 : 9 + number] = 255
        Image.fromarray(mask).save(tmp_path / f"{number}.png")
        Image.fromarray(255 - mask[::-1]).save(tmp_path / f"{number}_ignore.png")
        write_score_map(tmp_path / "maps", image_id, mask / 255)
    result = evaluate_pixels(tmp_path / "maps", tmp_path / "open" / "val", tmp_path)
    assert result["px_ap"] == pytest.approx(100)
    assert (result["split"], result["num_images"]) == ("open/val", 5)
    assert (
        main(
            shlex.split(
                f"evaluate {tmp_path}/maps --metadata {tmp_path}/open/val --mask-root {tmp_path}"
            )
        )
        == 0
    )


def test_evaluate_command(splits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"evaluate {splits}/test_maps --metadata {splits}/birds/test"
    assert main(shlex.split(f"{command} --json {splits}/scores.json")) == 0
    printed = capsys.readouterr().out
    scores = json.loads((splits / "scores.json").read_text())
    assert f"{scores['max_box_acc_v2']:.2f}" in printed
    assert "5 images; boxes of all contours; thresholds chosen on: oracle" in printed
    choose = f"--choose-maps {splits}/val_maps --choose-metadata {splits}/birds/val"
    assert main(shlex.split(f"{command} {choose} --largest-contour")) == 0
    printed = capsys.readouterr().out
    assert "the largest contour; thresholds chosen on: birds/val" in printed
    assert main(shlex.split(f"{command} --mask-root {splits} --largest-contour")) == 2
    assert "no threshold to choose" in capsys.readouterr().err


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs, one of them too small to matter, one damaged file."""
    generator = np.random.default_rng(0)
    root = tmp_path / "photos"
    (root / "trip").mkdir(parents=True)
    for name, hw in (("a.jpg", (40, 64)), ("trip/b.jpg", (64, 33))):
        pixels = generator.integers(0, 255, (hw[0] // 8, hw[1] // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((hw[1], hw[0])).save(root / name)
    (root / "bad.jpg").write_text("no image")
    (root / "labels.csv").write_text("image_id,labels\na,dog\ntrip/b,cat\nbad,dog\n")
    return root


@pytest.fixture
def labeler(tiny_checkpoint: Path) -> PseudoLabeler:
    return PseudoLabeler.from_checkpoint(tiny_checkpoint, device="cpu", views=TestViews((64,)))


def test_boxes_of_images(photos: Path, labeler: PseudoLabeler, tmp_path: Path) -> None:
    images = load_folder(photos, labels=photos / "labels.csv", classes=labeler.class_set)
    found = list(
        find_boxes(
            images,
            labeler,
            rule="ts_cam",
            threshold=0.4,
            chosen_on="train",
            image_root=photos,
            score_map_dir=tmp_path / "maps",
        )
    )
    assert [image.file_name for image in found] == ["a.jpg", "bad.jpg", "trip/b.jpg"]
    first, bad, second = found
    assert bad.error is not None and "bad.jpg" in bad.error
    assert (first.ori_hw, second.ori_hw) == ((40, 64), (64, 33))
    assert (first.boxes.class_ids, second.boxes.class_ids) == ((1,), (0,))
    for image in (first, second):
        x0, y0, x1, y1 = image.boxes.boxes[0].tolist()
        assert 0 <= x0 < x1 <= image.ori_hw[1] and 0 <= y0 < y1 <= image.ori_hw[0]
    score_map = read_score_map(tmp_path / "maps" / "trip" / "b.jpg.npy")
    assert score_map.shape == (224, 224) and (score_map.min(), score_map.max()) == (0, 1)

    write_boxes(tmp_path / "boxes.csv", found, labeler.class_set)
    with (tmp_path / "boxes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image_id"], row["class"]) for row in rows] == [("a", "dog"), ("trip/b", "cat")]
    assert [int(rows[1][key]) for key in ("x0", "y0", "x1", "y1")] == second.boxes.boxes[0].tolist()

    write_boxes(tmp_path / "boxes.json", found, labeler.class_set)
    coco = json.loads((tmp_path / "boxes.json").read_text())
    assert coco["info"] == {"rule": "ts_cam", "threshold": 0.4, "chosen_on": "train"}
    assert [image["file_name"] for image in coco["images"]] == ["a.jpg", "trip/b.jpg"]
    assert (coco["images"][1]["height"], coco["images"][1]["width"]) == (64, 33)
    annotation = coco["annotations"][1]
    assert annotation["image_id"] == coco["images"][1]["id"]
    assert coco["categories"][annotation["category_id"] - 1]["name"] == "cat"
    x0, y0, x1, y1 = second.boxes.boxes[0].tolist()
    assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    with pytest.raises(ValueError, match=r"boxes are written as \.csv or \.json"):
        write_boxes(tmp_path / "boxes.txt", found, labeler.class_set)


def test_classes_that_no_mask_can_show_have_boxes(photos: Path, labeler: PseudoLabeler) -> None:
    """As those of ILSVRC and of metadata folders."""
    class_set = replace(labeler.class_set, mask_values=())
    bare = PseudoLabeler(labeler.network, class_set, device="cpu", views=TestViews((64,)))
    found = []
    for each in (labeler, bare):
        images = load_folder(photos, classes=each.class_set).with_labels({"a": [1]}).subset(["a"])
        (image,) = find_boxes(images, each, threshold=0.4)
        found.append(image)
    assert len(found[0].boxes.boxes) and found[0].boxes.class_ids == found[1].boxes.class_ids
    np.testing.assert_array_equal(found[0].boxes.boxes, found[1].boxes.boxes)
    np.testing.assert_array_equal(found[0].scores, found[1].scores)


def test_large_images_get_boxes_in_their_own_pixels(photos: Path, tiny_checkpoint: Path) -> None:
    (photos / "bad.jpg").unlink()
    boxes = []
    for max_pixels in (1 << 20, 640):  # a.jpg at 40×64, and at half of each
        labeler = PseudoLabeler.from_checkpoint(tiny_checkpoint, max_pixels=max_pixels)
        images = load_folder(photos, classes=labeler.class_set).with_labels({"a": [1]})
        (image,) = find_boxes(images.subset(["a"]), labeler, rule="ts_cam", threshold=0.5)
        boxes.append(image.boxes.boxes[0])
    assert np.abs(boxes[0] - boxes[1]).max() <= 8


def test_what_find_boxes_refuses(photos: Path, labeler: PseudoLabeler, tmp_path: Path) -> None:
    images = load_folder(photos, classes=labeler.class_set)
    with pytest.raises(ValueError, match="3 of 3 images have no labels, such as a, bad, trip/b"):
        list(find_boxes(images, labeler, threshold=0.4))
    with pytest.raises(ValueError, match="labels must be 'given' or 'predicted', got 'x'"):
        list(find_boxes(images, labeler, threshold=0.4, labels="x"))
    both = images.with_labels({"a": [0, 1]}).subset(["a"])
    (image,) = find_boxes(both, labeler, threshold=0.4, score_map_dir=tmp_path / "maps")
    assert image.error == "a score map is of one class, this image has 2"
    assert not (tmp_path / "maps").exists()


def test_boxes_command(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        f"boxes {photos} --checkpoint {tiny_checkpoint} --scales 64 --device cpu "
        f"--out {tmp_path}/boxes.json --threshold 0.4 --chosen-on birds/val"
    )
    assert main(shlex.split(command)) == 1
    captured = capsys.readouterr()
    assert "bad.jpg" in captured.err and "1 images failed" in captured.err
    assert captured.out.strip() == f"{tmp_path}/boxes.json"
    assert json.loads((tmp_path / "boxes.json").read_text())["info"]["chosen_on"] == "birds/val"
    (photos / "bad.jpg").unlink()
    (photos / "labels.csv").write_text("image_id,labels\na,dog\ntrip/b,cat\n")
    assert main(shlex.split(command)) == 0
    assert main(shlex.split(command.replace("0.4", "1.5"))) == 2
    assert "threshold must lie in [0, 1), got 1.5" in capsys.readouterr().err
