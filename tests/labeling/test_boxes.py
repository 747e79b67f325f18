"""Boxes of photographs: the files, resuming, one bad image among good ones."""

from __future__ import annotations

import csv
import json
import shlex
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcam.boxes import compute_boxes
from adcam.cli import main
from adcam.data.folder import load_folder
from adcam.data.score_maps import read_score_map
from adcam.labeling import executor
from adcam.labeling.boxes import BoxOptions, find_boxes
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.run import INLINE_LIMIT, RunOptions
from adcam.settings import TestViews

QUIET = RunOptions(progress=False)
COLUMNS = ["image_id", "class", "x0", "y0", "x1", "y1", "score"]


def make_photo(path: Path, seed: int, hw: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (hw[0] // 8, hw[1] // 8, 3)
    pixels = np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)
    Image.fromarray(pixels).resize((hw[1], hw[0])).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs and a damaged file."""
    root = tmp_path / "photos"
    make_photo(root / "a.jpg", 0, (40, 64))
    make_photo(root / "trip" / "b.jpg", 1, (64, 33))
    (root / "bad.jpg").write_text("no image")
    (root / "labels.csv").write_text("image_id,labels\na,dog\ntrip/b,cat\nbad,dog\n")
    return root


@pytest.fixture
def labeler(tiny_checkpoint: Path) -> PseudoLabeler:
    return PseudoLabeler.from_checkpoint(tiny_checkpoint, device="cpu", views=TestViews((64,)))


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def box_of(row: dict[str, str]) -> list[int]:
    return [int(row[key]) for key in ("x0", "y0", "x1", "y1")]


@pytest.mark.parametrize("command", ["generate", "boxes"])
def test_workers_get_ready_before_the_classifier_is_loaded(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(executor, "load_ahead", started.append)
    monkeypatch.setattr(executor, "_wake", lambda device: None)
    for name, count in (("many", 17), ("few", 3)):
        for i in range(count):
            make_photo(tmp_path / name / f"{i}.png", 0, (16, 16))

    (tmp_path / "broken").write_text("no classifier")

    def start(folder: str, device: str, workers: int = 3) -> None:
        words = [command, str(tmp_path / folder), "--device", device, "--workers", str(workers)]
        words += ["--checkpoint", str(tmp_path / "broken"), "--out", str(tmp_path / "o.csv")]
        assert main([*words, "--threshold", "0.4"]) != 0

    start("few", "cuda")
    start("few", "cpu")
    start("many", "cpu", workers=0)
    assert started == []
    start("many", "cuda")
    start("many", "cpu")
    job = {"generate": "mask_job", "boxes": "box_job"}[command]
    assert started == [
        [f"adcam.labeling.{job}"],
        ["adcam.labeling.labeler", f"adcam.labeling.{job}"],
    ]


def test_boxes_of_images(photos: Path, labeler: PseudoLabeler, tmp_path: Path) -> None:
    images = load_folder(photos, labels=photos / "labels.csv", classes=labeler.class_set)
    options = BoxOptions(0.4, "ts_cam", "train", image_root=photos, score_map_dir=tmp_path / "maps")
    result = find_boxes(images, labeler, tmp_path / "boxes.csv", options, run_options=QUIET)
    assert (result.run.ok, result.num_boxes) == (2, 2)
    assert [failure.img_id for failure in result.run.failed] == ["bad"]
    assert "bad.jpg" in result.run.failed[0].error
    rows = read_table(tmp_path / "boxes.csv")
    assert list(rows[0]) == COLUMNS
    assert [(row["image_id"], row["class"]) for row in rows] == [("a", "dog"), ("trip/b", "cat")]
    for row, name, (height, width) in zip(rows, ("a", "trip/b"), ((40, 64), (64, 33)), strict=True):
        label = labeler(photos / f"{name}.jpg", labels=[row["class"]])
        expected = compute_boxes(label.class_maps, rule="ts_cam", threshold=0.4)
        assert box_of(row) == expected.boxes[0].tolist()
        assert row["score"] == f"{label.scores[row['class']]:.4f}"
        x0, y0, x1, y1 = box_of(row)
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    score_map = read_score_map(tmp_path / "maps" / "trip" / "b.jpg.npy")
    assert score_map.shape == (224, 224) and (score_map.min(), score_map.max()) == (0, 1)

    find_boxes(images, labeler, tmp_path / "boxes.json", options, run_options=QUIET)
    coco = json.loads((tmp_path / "boxes.json").read_text())
    assert coco["info"] == {"rule": "ts_cam", "threshold": 0.4, "chosen_on": "train"}
    assert [image["file_name"] for image in coco["images"]] == ["a.jpg", "trip/b.jpg"]
    assert (coco["images"][1]["height"], coco["images"][1]["width"]) == (64, 33)
    annotation = coco["annotations"][1]
    assert annotation["image_id"] == coco["images"][1]["id"] == 3
    assert coco["categories"][annotation["category_id"] - 1]["name"] == "cat"
    x0, y0, x1, y1 = box_of(rows[1])
    assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    with pytest.raises(ValueError, match=r"boxes are written as \.csv or \.json"):
        find_boxes(images, labeler, tmp_path / "boxes.txt", options)


def test_a_score_map_lies_as_the_file_stores_the_photograph(
    labeler: PseudoLabeler, tmp_path: Path
) -> None:
    """As wsolevaluation sees it, while boxes are in the photograph as people see it."""
    photos = tmp_path / "photos"
    make_photo(photos / "upright.png", 0, (40, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored pixels are turned clockwise to be upright
    with Image.open(photos / "upright.png") as upright:
        stored = Image.fromarray(np.rot90(np.asarray(upright)))
    stored.save(photos / "turned.png", exif=exif)
    labels = {name: [1] for name in ("upright", "turned")}
    images = load_folder(photos, classes=labeler.class_set).with_labels(labels)
    options = BoxOptions(0.4, score_map_dir=tmp_path / "maps")
    find_boxes(images, labeler, tmp_path / "boxes.csv", options, run_options=QUIET)
    score_maps = {name: read_score_map(tmp_path / "maps" / f"{name}.png.npy") for name in labels}
    np.testing.assert_array_equal(score_maps["turned"], np.rot90(score_maps["upright"]))
    boxes: dict[str, list[list[int]]] = {name: [] for name in labels}
    for row in read_table(tmp_path / "boxes.csv"):
        boxes[row["image_id"]].append(box_of(row))
    assert boxes["turned"] == boxes["upright"] != []


def test_boxes_resume_and_do_not_depend_on_the_number_of_workers(
    labeler: PseudoLabeler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    for seed in range(INLINE_LIMIT + 2):
        make_photo(photos / f"{seed:02d}.png", seed, (40, 64 + 8 * (seed % 3)))
    (photos / "04.png").write_text("not a picture")
    images = load_folder(photos, classes=labeler.class_set)
    options = BoxOptions(0.4, score_map_dir=tmp_path / "maps")
    labeler.options = replace(labeler.options, label_threshold=0.0)
    plain = BoxOptions(0.4)
    for name, workers in (("alone", 0), ("together", 2)):
        run_options = replace(QUIET, labels="predicted", workers=workers)
        result = find_boxes(
            images, labeler, tmp_path / f"{name}.csv", plain, run_options=run_options
        )
        assert (result.run.ok, result.run.parallelism["boxes"]) == (17, max(workers, 1))
    alone = (tmp_path / "alone.csv").read_bytes()
    assert alone.count(b"\n") > 17
    assert (tmp_path / "together.csv").read_bytes() == alone

    one_class = images.with_labels({record.img_id: [1] for record in images.records})
    out = tmp_path / "resumed.csv"
    find_boxes(one_class, labeler, out, options, run_options=QUIET)
    table = out.read_bytes()
    manifest = tmp_path / "resumed.csv.run" / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    out.unlink()
    (tmp_path / "maps" / "01.png.npy").unlink()
    maps = {path: path.read_bytes() for path in (tmp_path / "maps").iterdir()}
    result = find_boxes(one_class, labeler, out, options, run_options=QUIET)
    assert (result.run.ok, result.run.skipped) == (12, 5)  # not 01, whose map is gone, nor 04
    assert (
        out.read_bytes() == table
        and maps.items()
        <= {path: path.read_bytes() for path in (tmp_path / "maps").iterdir()}.items()
    )
    with pytest.raises(ValueError, match=r"boxes\.threshold: 0\.4 -> 0\.5.*"):
        find_boxes(one_class, labeler, out, replace(options, threshold=0.5), run_options=QUIET)
    with pytest.raises(ValueError, match="--overwrite"):
        find_boxes(one_class, labeler, out, BoxOptions(0.3), run_options=QUIET)
    find_boxes(one_class, labeler, out, BoxOptions(0.3), run_options=QUIET, overwrite=True)
    assert out.read_bytes() != table


def test_classes_that_no_mask_can_show_have_boxes(
    photos: Path, labeler: PseudoLabeler, tmp_path: Path
) -> None:
    """As those of ILSVRC and of metadata folders."""
    class_set = replace(labeler.class_set, mask_values=())
    bare = PseudoLabeler(labeler.network, class_set, device="cpu", views=TestViews((64,)))
    for name, each in (("masks", labeler), ("none", bare)):
        images = load_folder(photos, classes=each.class_set).with_labels({"a": [1]}).subset(["a"])
        path = tmp_path / f"{name}.csv"
        find_boxes(images, each, path, BoxOptions(0.4), run_options=QUIET)
    assert len(read_table(tmp_path / "none.csv")) > 0
    assert (tmp_path / "none.csv").read_bytes() == (tmp_path / "masks.csv").read_bytes()


def test_large_images_get_boxes_in_their_own_pixels(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (photos / "bad.jpg").unlink()
    boxes = []
    for max_pixels in (1 << 20, 640):  # a.jpg at 40×64, and at half of each
        labeler = PseudoLabeler.from_checkpoint(tiny_checkpoint, max_pixels=max_pixels)
        images = load_folder(photos, classes=labeler.class_set).with_labels({"a": [1]})
        path = tmp_path / f"{max_pixels}.csv"
        options = BoxOptions(0.5, "ts_cam")
        find_boxes(images.subset(["a"]), labeler, path, options, run_options=QUIET)
        boxes.append(box_of(read_table(path)[0]))
    assert np.abs(np.subtract(boxes[0], boxes[1])).max() <= 8


def test_what_find_boxes_refuses(photos: Path, labeler: PseudoLabeler, tmp_path: Path) -> None:
    images, path = load_folder(photos, classes=labeler.class_set), tmp_path / "boxes.csv"
    with pytest.raises(ValueError, match="3 of 3 images have no labels: a, bad, trip/b"):
        find_boxes(images, labeler, path, BoxOptions(0.4), run_options=QUIET)
    with pytest.raises(ValueError, match=r"labels must be one of .*, got 'x'"):
        RunOptions(labels="x")
    both = images.with_labels({"a": [0, 1]}).subset(["a"])
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\), got 1.5"):
        find_boxes(both, labeler, path, BoxOptions(1.5), run_options=QUIET)
    assert not list(tmp_path.glob("boxes*"))
    options = BoxOptions(0.4, score_map_dir=tmp_path / "maps")
    (failure,) = find_boxes(both, labeler, path, options, run_options=QUIET).run.failed
    assert failure.error == "a score map is of one class, this image has 2"
    assert not (tmp_path / "maps").exists()
    (tmp_path / "maps").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "maps" / "trip").symlink_to(tmp_path / "elsewhere")
    one = images.with_labels({"trip/b": [0]}).subset(["trip/b"])
    options = replace(options, image_root=photos)
    (failure,) = find_boxes(one, labeler, tmp_path / "b.csv", options, run_options=QUIET).run.failed
    assert "is a symbolic link" in failure.error
    assert not list((tmp_path / "elsewhere").iterdir())


def test_boxes_command(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        f"boxes {photos} --checkpoint {tiny_checkpoint} --scales 64 --device cpu --workers 0 "
        f"--out {tmp_path}/boxes.json --threshold 0.4 --chosen-on birds/val"
    )
    assert main(shlex.split(command)) == 1
    captured = capsys.readouterr()
    assert "bad.jpg" in captured.err and "1 images failed" in captured.err
    assert captured.out.strip() == f"{tmp_path}/boxes.json"
    assert json.loads((tmp_path / "boxes.json").read_text())["info"]["chosen_on"] == "birds/val"
    (photos / "bad.jpg").unlink()
    (photos / "labels.csv").write_text("image_id,labels\na,dog\ntrip/b,cat\n")
    assert main(shlex.split(command)) == 2
    assert "another configuration" in capsys.readouterr().err
    assert main(shlex.split(f"{command} --overwrite --json {tmp_path}/numbers.json")) == 0
    assert json.loads((tmp_path / "numbers.json").read_text())["ok"] == 2
    assert main(shlex.split(command.replace("0.4", "1.5"))) == 2
    assert "threshold must lie in [0, 1), got 1.5" in capsys.readouterr().err


def test_boxes_of_images_in_archives(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shards").mkdir()
    for name in ("a.jpg", "trip/b.jpg"):
        with tarfile.open(tmp_path / "shards" / f"{Path(name).stem}.tar", "w") as archive:
            archive.add(photos / name, name)
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").put(f"{tmp_path}/shards/", "/boxes", recursive=True)
    # A folder of archives, one archive, and the folder named by URLs.
    folder = tmp_path / "shards"
    for number, images in enumerate(
        (folder, folder / "a.tar", f"file://{folder}", "memory://boxes")
    ):
        command = (
            f"boxes {images} --checkpoint {tiny_checkpoint} --scales 64 --device cpu --workers 0 "
            f"--labels predicted --at-least-one --out {tmp_path}/{number}.json --threshold 0.4"
        )
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
        found = json.loads((tmp_path / f"{number}.json").read_text())["images"]
        assert [image["file_name"] for image in found] == ["a.jpg", "b.jpg"][: len(found)]
