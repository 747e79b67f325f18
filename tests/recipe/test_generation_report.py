"""The report of `adcam generate`: a page and a contact sheet, without any ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adcam.cli import main
from adcam.data.png import read_mask, voc_palette, write_mask
from adcam.data.voc import voc_class_set
from adcam.errors import AdcamError
from adcam.labeling.maps_file import load_maps
from adcam.recipe import generation_report
from adcam.recipe.generation_report import write_generation_report
from adcam.report.figures import display_palette

NUM_IMAGES = 7


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photographs with labels; the third is no image."""
    folder, lines = tmp_path / "photos", ["image,cat,dog,horse"]
    (folder / "in").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        name = f"in/{i}" if i % 2 else f"{i}"
        img = rng.integers(0, 256, (40, 64, 3), dtype=np.uint8)
        Image.fromarray(img).resize((400, 250)).save(folder / f"{name}.jpg")
        lines.append(f"{name}.jpg,{i % 2},{(i + 1) % 2},{int(i == 4)}")
    (folder / "2.jpg").write_bytes(b"no image")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(photos: Path, checkpoint: Path, *words: str) -> int:
    out, labels = photos.parent / "out", photos.parent / "labels.csv"
    head = ["generate", str(photos), "--out", str(out), "--labels", str(labels)]
    return main([*head, "--checkpoint", str(checkpoint), "--scales", "32", "--workers=0", *words])


def read_report(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report" / "report.json").read_text("utf-8"))
    return report


def explored(report: dict[str, Any]) -> list[dict[str, Any]]:
    (block,) = [block for block in report["lead"] if block["kind"] == "explorer"]
    images: list[dict[str, Any]] = block["images"]
    return images


def test_masks_come_with_a_page_to_look_at(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = photos.parent / "out"
    assert run(photos, tiny_checkpoint) == 1  # one image failed
    assert f"report: {out / 'report' / 'report.html'}" in capsys.readouterr().err
    report = read_report(out)
    images = explored(report)
    assert sorted(image["id"] for image in images) == ["0", "4", "6", "in/1", "in/3", "in/5"]
    assert all(0 < image["confidence"] < 1 and image["iou"] == [None] for image in images)
    four = next(image for image in images if image["id"] == "4")
    assert four["classes"] == [12, 13]  # VOC's values of dog and horse
    # Maps of the explorer are those that --save-maps stores.
    maps = load_maps(out / "report" / "shown" / "in" / "1.npz")
    assert maps.class_maps.class_ids == (0,) and maps.ori_hw == (250, 400)
    with Image.open(out / "report" / "contact_sheet.jpg") as sheet:
        assert sheet.width > 6 * 160 and sheet.height == 168 + 32
        legend = np.asarray(sheet.crop((0, 0, sheet.width, 32)))
    squares = legend[9:23].reshape(-1, 3)
    for color in (display_palette(voc_class_set(["cat", "dog", "horse"]))[v] for v in (8, 12, 13)):
        assert (np.abs(squares.astype(int) - color).max(axis=1) < 12).sum() > 100
    titles = [section["title"] for section in report["sections"]]
    assert titles == ["A few images", "Classes", "Failed", "Where the time went"]
    for row in report["sections"][0]["blocks"][0]["rows"]:
        assert [picture["column"] for picture in row["pictures"]] == ["image", "map", "mask"]
    counts = {row[0]: row[2] for row in report["sections"][1]["blocks"][0]["rows"]}
    assert counts == {"cat": 3, "dog": 3, "horse": 1}
    (failed,) = report["sections"][2]["blocks"][1]["rows"]
    assert failed[0] == "2"
    page = (out / "report" / "report.html").read_text("utf-8")
    assert "adcam generate " in page and "--scales 32" in page


def test_the_number_of_images_is_bounded(photos: Path, tiny_checkpoint: Path) -> None:
    out = photos.parent / "out"
    run(photos, tiny_checkpoint, "--report-images", "2")
    assert len(explored(read_report(out))) == 2
    shown = out / "report" / "shown"
    assert len(list(shown.rglob("*.npz"))) == 2
    # Starting over with other settings leaves none of the maps of before.
    run(photos, tiny_checkpoint, "--report-images=100", "--overwrite", "--method", "cam")
    assert len(list(shown.rglob("*.npz"))) == 6
    run(photos, tiny_checkpoint, "--report-images=0", "--overwrite")
    assert not shown.exists()


def test_the_report_is_made_from_any_folder_of_masks(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run without a report, with its maps where it kept them; moved images are left out."""
    out = photos.parent / "out"
    run(photos, tiny_checkpoint, "--report-images=0", "--save-maps")
    assert not (out / "report").exists()
    (photos / "0.jpg").unlink()
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out == f"report: {out / 'report' / 'report.html'}\n"
    report = read_report(out)
    assert len(explored(report)) == 5
    assert all(image["confidence"] is None for image in explored(report))
    script = (out / "report" / "explorer" / "0.js").read_text()
    assert '"maps":[null]' not in script
    assert main(["verify", str(out)]) == 0


def test_the_legend_names_the_most_frequent_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}

    def draw(entries: list[tuple[str, Any]], *, width: int, rest: int) -> np.ndarray:
        drawn.update(names=[name for name, _ in entries], rest=rest)
        return np.zeros((0, width, 3), np.uint8)

    monkeypatch.setattr(generation_report, "draw_legend", draw)
    classes = [{"value": v, "name": f"n{v}", "color": [v, 0, 0]} for v in range(30)]
    classes[29]["name"] = "\u732b"  # in no font that is always there
    images = [{"classes": [29]}, {"classes": [29, *range(2, 27)]}]
    generation_report._draw_sheet_legend({"classes": classes, "images": images}, 300)
    assert drawn["names"] == ["mask value 29", *(f"n{v}" for v in range(2, 21))]
    assert drawn["rest"] == 6


def test_a_folder_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdcamError, match="holds no finished run"):
        write_generation_report(tmp_path)


def test_numbers_that_make_no_sense_are_refused(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, tiny_checkpoint, "--report-images=-1") == 2
    assert "--report-images must be at least 0" in capsys.readouterr().err
    assert run(photos, tiny_checkpoint, "--report-images=5", "--output-format", "tar") == 2
    assert "--report-images goes with results in files" in capsys.readouterr().err


def test_true_masks_score_the_run(
    photos: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, gt = photos.parent / "out", photos.parent / "gt"
    run(photos, tiny_checkpoint)
    (gt / "in").mkdir(parents=True)
    for name, value in (("0", None), ("in/1", 8)):
        mask = read_mask(out / "masks" / f"{name}.png")
        truth = mask if value is None else np.full_like(mask, value)
        write_mask(gt / f"{name}.png", truth, voc_palette())
    assert main(["report", str(out), "--gt", str(gt)]) == 0
    report = read_report(out)
    ious = {image["id"]: image["iou"][0] for image in explored(report)}
    assert ious.pop("0") == 100 and ious.pop("in/1") < 100
    assert set(ious.values()) == {None}
    assert report["headlines"][0]["label"] == "mean IoU"
    titles = [section["title"] for section in report["sections"]]
    assert titles[2:4] == ["By class", "Confusion matrix"]
    # What generate said of the run is not lost.
    assert titles[-1] == "Where the time went"
    assert "adcam generate " in (out / "report" / "report.html").read_text("utf-8")

    write_mask(gt / "0.png", np.zeros((3, 3), np.uint8), voc_palette())
    assert main(["report", str(out), "--gt", str(gt)]) == 2
    assert "0.png does not fit the mask of '0'" in capsys.readouterr().err
    assert main(["report", str(out), "--gt", str(photos)]) == 2
    assert "holds no <id>.png of any image" in capsys.readouterr().err
