"""The demo: its stages, its report without mmsegmentation or weights, and the whole of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adcam.cli import main
from adcam.demo import demo
from adcam.demo.demo import Demo, make_network_section, make_photo_section, open_demo
from adcam.errors import AdcamError
from adcam.recipe import compare
from adcam.recipe.stages import find_damage, run_stages
from adcam.report.figures import picture_row
from adcam.report.model import PictureGrid, Section, Text


def run(found: Demo, *names: str) -> tuple[list[str], str]:
    lines: list[str] = []
    return run_stages(found, only=names, log=lines.append), "\n".join([*lines, ""])


def text_of(section: Section) -> str:
    (block,) = section.blocks
    assert isinstance(block, Text)
    return block.paragraphs[0]


@pytest.mark.parametrize("task", ["segmentation", "localization"])
def test_the_generated_set_is_kept_and_mended(tmp_path: Path, task: str) -> None:
    found = open_demo(tmp_path, task=task, quick=True)
    assert run(found, "data")[0] == ["data"]
    assert run(found, "data")[0] == []
    assert json.loads((tmp_path / "data" / "meta.json").read_text())["seed"] == 0
    picture = sorted((tmp_path / "data").rglob("*00003.png"))[0]
    before = picture.read_bytes()
    picture.write_bytes(b"torn")
    name = picture.relative_to(tmp_path).as_posix()
    assert find_damage(tmp_path / "data") == [
        f"{name.removeprefix('data/')} has changed since it was written"
    ]
    ran, said = run(found, "data")
    assert ran == ["data"]
    assert f"{name} has changed since it was written" in said
    assert picture.read_bytes() == before


def test_options_are_kept_for_the_report(tmp_path: Path) -> None:
    found = open_demo(tmp_path, quick=True, weights="w.pth")
    run(found, "data")
    again = demo.load_demo(tmp_path)
    assert (again.options, again.command) == (found.options, "adcam demo --quick")
    assert again.settings.to_dict() == found.settings.to_dict()
    assert found.settings.train.epochs == 2
    assert found.settings.demo.num_train == 120
    names = ["data", "train", "compare", "network", "photographs", "report"]
    assert [stage.name for stage in found.stages] == names
    boxes = open_demo(tmp_path / "b", task="localization")
    assert [stage.name for stage in boxes.stages] == ["data", "train", "compare", "report"]
    assert sorted(boxes.comparison.sources) == ["", "adl", "inca"]
    scratch = open_demo(tmp_path / "c", from_scratch=True)
    assert (scratch.settings.model.weights, scratch.settings.train.epochs) == (None, 20)
    for options, message in (
        ({"task": "boxes"}, "task must be 'segmentation' or 'localization'"),
        ({"task": "localization", "weights": "w"}, "takes no weights"),
    ):
        with pytest.raises(AdcamError, match=message):
            open_demo(tmp_path, **options)  # type: ignore[arg-type]
    (tmp_path / "recipe.json").write_text('{"recipe": "demo", "title": "", "command": ""}')
    with pytest.raises(AdcamError, match="not a demo of `adcam demo`"):
        demo.load_demo(tmp_path)


def test_without_mmsegmentation_the_demo_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "not installed; pip install 'adcam[seg]'"
    found = open_demo(tmp_path, quick=True)
    assert "was left out" in text_of(make_network_section(found))
    monkeypatch.setattr(demo, "why_not_importable", lambda module: reason)
    stage = next(stage for stage in found.stages if stage.name == "network")
    assert stage.files(found) == []
    assert "hint" in stage.describe(found)
    assert "pip install 'adcam[seg]'" in stage.run(found, tmp_path / "network")["hint"]
    assert not list(tmp_path.iterdir())


def test_photographs_are_labelled_where_there_are_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(open_demo(tmp_path), "photographs")[0] == ["photographs"]
    assert "adcam demo --weights timm" in text_of(make_photo_section(open_demo(tmp_path)))

    def label(weights: str) -> list[Any]:
        img = np.zeros((8, 12, 3), np.uint8)
        maps = {"CAM": np.zeros((8, 12))}
        return [picture_row(weights, img, score_maps=maps, palette=[(0, 0, 0)] * 256)]

    monkeypatch.setattr(demo, "label_photos", label)
    found = open_demo(tmp_path, weights="timm")
    ran, said = run(found, "photographs")
    assert ran == ["photographs"]
    assert 'weights: null -> "timm"' in said
    (grid,) = make_photo_section(found).blocks
    assert isinstance(grid, PictureGrid)
    assert (grid.rows[0].img_id, grid.columns) == ("timm", ["image", "CAM"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of mmengine, mmseg and tensorboard
def test_the_quick_demo_resumes_and_its_report_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mmseg")
    with monkeypatch.context() as patch:

        def killed(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(demo, "open_recipe", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stages(open_demo(tmp_path, quick=True))
    assert run(open_demo(tmp_path, quick=True))[0] == ["network", "photographs", "report"]
    page = tmp_path / "report" / "report.html"
    text = page.read_text("utf-8")
    assert "A network that learns from the masks" in text
    assert "The network is better on" in text
    assert (tmp_path / "network" / "test" / "scores.json").is_file()
    assert run(open_demo(tmp_path, quick=True))[0] == []

    monkeypatch.setattr(compare, "load_classifier", killed)
    page.unlink()
    assert main(["report", str(tmp_path)]) == 0
    assert page.read_text("utf-8") == text
