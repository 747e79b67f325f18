"""Two runs side by side: images of both, methods of both, and what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adcam.cli import main
from adcam.data.dataset import build_class_set
from adcam.errors import AdcamError
from adcam.recipe.beside import write_beside
from adcam.report.explorer import (
    ExploredImage,
    ExploredMethod,
    ExplorerWriter,
    PatchAttention,
    read_script,
)


def make_run(
    folder: Path, ids: str, iou: float, *, classes: tuple[str, ...] = ("cat", "dog"), side: int = 24
) -> Path:
    """A folder with the explorer of two methods."""
    methods = [ExploredMethod("CAM", iou - 9, "constant:0.3"), ExploredMethod("AD-CAM", iou)]
    writer = ExplorerWriter(folder / "report" / "explorer", methods, build_class_set("x", classes))
    for number, img_id in enumerate(ids):
        mask = np.full((side, side), int(iou) % 2, np.uint8)
        patches = np.full((2, 4, 4), number, np.uint8)
        image = ExploredImage(
            img_id,
            np.zeros((side, side, 3), np.uint8),
            [1],
            mask,
            {"CAM": np.full((1, 6, 6), int(iou), np.uint8)},
            {"CAM": mask, "AD-CAM": mask},
            {"CAM": iou - 9, "AD-CAM": iou + number},
            attention=PatchAttention((2, 2), *patches) if img_id == "b" else None,
        )
        writer.add(image)
    writer.finish()
    return folder


def read_report(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text("utf-8"))
    return report


def test_images_of_both_are_shown_with_the_methods_of_both(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "old", "abc", 50.0), make_run(tmp_path / "new", "cbd", 61.0)
    page = write_beside(old, new, tmp_path / "out")
    report = read_report(page.parent)
    explorer = report["sections"][0]["blocks"][0]
    names = [method["name"] for method in explorer["methods"]]
    assert names == ["CAM (old)", "AD-CAM (old)", "CAM (new)", "AD-CAM (new)"]
    assert [image["id"] for image in explorer["images"]] == ["b", "c"]
    assert explorer["images"][0]["iou"] == [41.0, 51.0, 52.0, 62.0]
    assert explorer["gain"] == [3, 1]
    values = read_script(page.parent / "explorer" / "0.js")
    # b is the second image of both runs.
    for own, folder in ((0, old), (2, new)):
        alone = read_script(folder / "report" / "explorer" / "1.js")
        assert values["maps"][own : own + 2] == alone["maps"]
        assert values["masks"][own : own + 2] == alone["masks"]
    assert read_script(page.parent / "explorer" / "0-attention.js")["grid_hw"] == [2, 2]
    table = report["lead"][0]
    assert [row[3] for row in table["rows"]] == [41.0, 51.5, 52.0, 61.5]
    scatter = report["sections"][1]["blocks"][0]
    assert scatter["names"] == ["b", "c"] and "better on 2 of 2" in scatter["caption"]


def test_masks_of_another_size_are_left_out(tmp_path: Path) -> None:
    old, new = (
        make_run(tmp_path / "1/run", "a", 50.0),
        make_run(tmp_path / "2/run", "a", 61.0, side=30),
    )
    page = write_beside(old, new, tmp_path / "out")
    values = read_script(page.parent / "explorer" / "0.js")
    assert values["masks"][2:] == values["maps"][2:] == [None, None]
    assert read_report(page.parent)["title"] == "run 1 and run 2"


def test_runs_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", "ab", 50.0)
    with pytest.raises(AdcamError, match="no image of old is in other"):
        write_beside(old, make_run(tmp_path / "other", "xy", 50.0), tmp_path / "out")
    swapped = make_run(tmp_path / "swapped", "ab", 50.0, classes=("dog", "cat"))
    with pytest.raises(AdcamError, match="mask value 1 is 'cat' in old and 'dog' in swapped"):
        write_beside(old, swapped, tmp_path / "out")
    with pytest.raises(AdcamError, match="make it first: adcam report"):
        write_beside(old, tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_option_that_does_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path), "--out", "x"]) == 2
    assert "--out goes with --beside" in capsys.readouterr().err
