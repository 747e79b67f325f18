"""Comparisons of a config: what is trained, what is refused, the same table every time."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from adcam.cli import main
from adcam.data.png import read_mask, voc_palette, write_mask
from adcam.data.shapes import make_shape_boxes
from adcam.data.sources import build_dataset
from adcam.errors import AdcamError
from adcam.evaluation.boxes_on_disk import evaluate_boxes, evaluate_pixels
from adcam.recipe import classifiers, compare
from adcam.recipe.compare import find_source, open_comparison, read_methods
from adcam.recipe.stages import run_stages
from adcam.settings import MethodSpec, Settings, TestViews, load_settings


def test_rows_from_a_config() -> None:
    cfg = Config(
        {
            "compare": {
                "choose_on": "train",
                "report_on": "val",
                "rows": [
                    {"name": "A", "method": "cam"},
                    {
                        "name": "B",
                        "method": "ad_cam",
                        "options": {"power": 3.0, "layers": [0, 1]},
                        "views": {"scales": [32, 64], "flip": True, "keep_ratio": False},
                        "crf": "irn",
                        "crf_thresholds": [0.3, 0.5],
                    },
                ],
            }
        }
    )
    a, b = Settings(cfg.to_dict()).compare.rows
    assert a == MethodSpec("A", "cam")
    assert b.views == TestViews((32, 64), flip=True, keep_ratio=False)
    assert b.crf_thresholds == (0.3, 0.5)
    assert b.build().layer_sets(4) == ((0, 1),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "A"}, "share a name"),
        ({"vews": {}}, r"rows\[1\]: there is no key 'vews'; did you mean 'views'"),
        ({"views": {"scale": [3]}}, r"rows\[1\]\.views: .* did you mean 'scales'"),
        ({"views": {"scales": []}}, "scales must hold at least one side"),
        ({"views": {"scales": [0]}}, r"views\.scales\[0\] must be at least 1, got 0"),
        ({"crf": "irn"}, "no crf_thresholds"),
    ],
)
def test_wrong_rows(change: dict[str, Any], message: str) -> None:
    rows = [{"name": "A", "method": "cam"}, {"name": "B", "method": "cam", **change}]
    with pytest.raises(ValueError, match=message):
        Settings({"compare": {"choose_on": "a", "report_on": "b", "rows": rows}})


def run(settings: Settings, work_dir: Path, **choices: Any) -> tuple[list[str], str]:
    """The stages that ran, and what was logged."""
    lines: list[str] = []
    table_only = choices.pop("table_only", False)
    comparison = open_comparison(settings, work_dir, command="adcam", table_only=table_only)
    return run_stages(comparison, log=lines.append, **choices), "\n".join([*lines, ""])


@pytest.fixture
def masks_cfg(mini_cfg: Config) -> Config:
    """One epoch, three methods, the last of them with a CRF."""
    mini_cfg.train.epochs = 1
    mini_cfg.compare = {
        "choose_on": "train",
        "report_on": "val",
        "choose_stride": 4,
        "report_stride": 3,
        "rows": [
            {"name": "CAM", "method": "cam", "views": {"scales": [32], "flip": True}},
            {"name": "AD-CAM", "method": "ad_cam", "views": {"scales": [32], "flip": True}},
            {
                "name": "AD-CAM + CRF",
                "method": "ad_cam",
                "views": {"scales": [32], "flip": True},
                "crf": "toco",
                "crf_thresholds": [0.3, 0.5],
            },
        ],
    }
    return mini_cfg


@pytest.mark.filterwarnings("default")  # of mmengine while it trains
def test_one_command_trains_once_and_repeats_itself(
    tmp_path: Path,
    masks_cfg: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work, settings = tmp_path / "a", Settings(masks_cfg.to_dict())
    assert run(settings, work)[0] == ["train", "compare", "report"]
    table = (work / "compare" / "compare.csv").read_bytes()
    page = (work / "report" / "report.html").read_bytes()
    comparison = open_comparison(settings, work)
    chosen_on = build_dataset(settings.data, "train").records[::4]
    assert [record.img_id for record in comparison.choose_set().records] == [
        record.img_id for record in chosen_on
    ]
    methods = read_methods(comparison)
    assert [method.name for method in methods] == ["CAM", "AD-CAM", "AD-CAM + CRF"]
    assert methods[2].crf == "toco" and methods[2].best_miou is None
    assert methods[1].threshold in methods[1].thresholds
    assert run(settings, work)[0] == []

    # The report again, from the files alone: no image goes through a network.
    monkeypatch.setattr(compare, "compare_methods", None)
    monkeypatch.setattr(compare, "load_classifier", None)
    shutil.rmtree(work / "report")
    assert main(["report", str(work)]) == 0
    assert run(settings, work)[0] == []
    assert (work / "report" / "report.html").read_bytes() == page
    monkeypatch.undo()

    # An edited mask and an edited table are named, and made again.
    mask = next((work / "compare" / "masks").glob("*.png"))
    before = mask.read_bytes()
    write_mask(mask, 0 * read_mask(mask) + 5, voc_palette())
    ran, said = run(settings, work)
    assert ran == ["compare"]
    assert f"compare/masks/{mask.name} has changed since it was written" in said
    assert mask.read_bytes() == before
    (work / "compare" / "compare.csv").write_text("forged")
    ran, said = run(settings, work)
    assert ran == ["compare"]
    assert "compare/compare.csv has changed since it was written" in said
    assert (work / "compare" / "compare.csv").read_bytes() == table

    # A replaced classifier is named, trained again, and gives the same.
    (work / "train" / "classifier.safetensors").write_bytes(b"other")
    ran, said = run(settings, work)
    assert ran == ["train"]
    assert "train/classifier.safetensors has changed since it was written" in said

    # A classifier that `adcam train` left, or that the config names, is taken as it is.
    for place in ("b", "c"):
        (tmp_path / place).mkdir()
    left = tmp_path / "b" / "classifier.safetensors"
    shutil.copy(work / "train" / "classifier.safetensors", left)
    monkeypatch.setattr(classifiers, "train_classifier", None)
    run(settings, tmp_path / "b", table_only=True, skip=["report"])
    assert (tmp_path / "b" / "compare" / "compare.csv").read_bytes() == table
    assert not (tmp_path / "b" / "compare" / "masks").exists()
    named = settings.with_changes({"compare.checkpoint": str(left)})
    run(named, tmp_path / "c", table_only=True, skip=["report"])
    assert (tmp_path / "c" / "compare" / "compare.csv").read_bytes() == table
    assert main(["report", str(tmp_path / "c")]) == 2
    assert "scores.json: no scores" in capsys.readouterr().err


def test_networks_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("train = dict(epochs=1, img_size=32, batch_size=4)\n")
    (tmp_path / "compare.py").write_text(
        "train = dict(epochs=1, img_size=32, batch_size=4, seed=7)\n"
        "compare = dict(\n"
        "    networks=dict(\n"
        "        stored='~/w/classifier.safetensors', other='other.py',\n"
        "        seeded=dict(config='other.py', options={'train.seed': 3}),\n"
        "        own=dict(options={'train.seed': 4}),\n"
        "    ),\n"
        "    choose_on='train', report_on='val',\n"
        "    rows=[dict(name='a', method='cam', network='own', views=dict(scales=[96]))],\n"
        ")\n"
    )
    settings: Settings = load_settings(tmp_path / "compare.py")
    assert settings.compare.rows == (MethodSpec("a", "cam", views=TestViews((96,)), network="own"),)

    def find(name: str) -> Any:
        return find_source(settings, name, tmp_path)

    assert find("stored") == Path.home() / "w" / "classifier.safetensors"
    seeds = {name: find(name).train.seed for name in ("other", "seeded", "own", "")}
    assert seeds == {"other": 0, "seeded": 3, "own": 4, "": 7}
    with pytest.raises(AdcamError, match=r"compare\.networks has no \['x'\]"):
        settings.with_changes({"compare.rows.0.network": "x"})
    with pytest.raises(AdcamError, match="no section 'compare'"):
        open_comparison(Settings({"task": "localization"}), tmp_path)


@pytest.fixture
def boxes_cfg(mini_cfg: Config, tmp_path: Path) -> Config:
    """One epoch on the generated localisation set, three methods."""
    root = tmp_path / "set"
    make_shape_boxes(root, num_train=20, num_val=9, num_test=12, size_hw=(40, 56), seed=0)
    mini_cfg.task = "localization"
    mini_cfg.data = {
        "source": "wsol",
        "root": str(root),
        "metadata": "metadata/shapes",
        "classes": "shapes",
        "train": "train-weaksup",
        "val": "train-fullsup",
    }
    mini_cfg.train.epochs = 1
    views = {"scales": [32], "keep_ratio": False}
    mini_cfg.compare = {
        "choose_on": "train-fullsup",
        "report_on": "test",
        "score_maps": True,
        "rows": [
            {"name": name, "method": method, "views": views}
            for name, method in (("CAM", "cam"), ("TS-CAM", "ts_cam"), ("AD-CAM", "ad_cam"))
        ],
    }
    return mini_cfg


def test_stored_maps_that_are_missing_are_named_before_the_training(
    boxes_cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = tmp_path / "theirs"
    boxes_cfg.compare.rows.append({"name": "stored", "score_maps": str(maps)})
    boxes_cfg.dump(str(tmp_path / "boxes.py"))
    work = tmp_path / "work"
    assert main(["compare", str(tmp_path / "boxes.py"), "--work-dir", str(work)]) == 2
    assert f"{maps} lacks the score maps of " in capsys.readouterr().err
    assert not (work / "train").exists()


@pytest.mark.filterwarnings("default")  # of mmengine while it trains
def test_the_generated_set_gives_the_table_the_maps_and_the_report(
    boxes_cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`adcam compare` at small size, then its maps scored again by `adcam evaluate`'s functions."""
    boxes_cfg.dump(str(tmp_path / "boxes.py"))
    work = tmp_path / "work"
    assert main(["compare", str(tmp_path / "boxes.py"), "--work-dir", str(work)]) == 0
    printed = capsys.readouterr().out
    assert "Boxes on test, percent; thresholds chosen on: train-fullsup" in printed
    table = work / "compare" / "compare.csv"
    lines = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [line["name"] for line in lines] == ["CAM", "TS-CAM", "AD-CAM"]
    stored = json.loads((work / "compare" / "compare.json").read_text())
    assert stored["split"] == "test" and len(stored["methods"][0]["ious"]) == 12
    metadata = Path(boxes_cfg.data.root) / "metadata"
    for line in lines:
        maps = work / "compare" / "score_maps" / line["name"].lower()
        again = evaluate_boxes(
            maps,
            metadata / "shapes" / "test",
            choose_maps_dir=maps,
            choose_metadata_dir=metadata / "shapes" / "val",
        )
        assert f"{again['max_box_acc_v2']:.2f}" == line["max_box_acc_v2"]
        oracle = evaluate_boxes(maps, metadata / "shapes" / "test", multi_contour=False)
        assert f"{oracle['box_acc']['0.5']:.2f}" == line["max_box_acc_oracle"]
        pixels = evaluate_pixels(maps, metadata / "shapes_masks" / "test", boxes_cfg.data.root)
        assert 0 < pixels["px_ap"] <= 100
    page = work / "report" / "report.html"
    text = page.read_text()
    for words in ("true box", "box found", "Top-1 Loc", "V2, oracle", "only a part", "IoU ≥ 0.7"):
        assert words in text
    assert "ignored or uncertain" not in text
    report = json.loads((work / "report" / "report.json").read_text())
    kinds = {block["kind"] for section in report["sections"] for block in section["blocks"]}
    assert kinds >= {"curves", "histograms", "shares", "per_class", "picture_grid", "time_table"}
    (explorer,) = report["sections"][0]["blocks"]
    assert explorer["kind"] == "explorer" and len(explorer["methods"]) == len(lines)
    assert len(explorer["images"]) == stored["methods"][0]["boxes"]["num_images"]
    scores = report["lead"][-2]
    assert scores["rows"][2][1] == stored["methods"][2]["boxes"]["max_box_acc_v2"]
    assert scores["rows"][2][-1] == pytest.approx(
        float(lines[2]["max_box_acc_v2_oracle"]), abs=5e-3
    )

    page.unlink()
    assert main(["report", str(work)]) == 0
    assert capsys.readouterr().out.endswith(f"report: {page}\n")
    assert page.read_text() == text
    assert main(["report", str(tmp_path / "set")]) == 2
    assert "set/recipe.json: not the record of" in capsys.readouterr().err
    boxes_cfg.compare.checkpoint = str(work / "train" / "classifier.safetensors")
    stored_maps = str(work / "compare" / "score_maps" / "cam")
    boxes_cfg.compare.rows.append({"name": "stored", "score_maps": stored_maps})
    boxes_cfg.compare.choose_on = "test"
    boxes_cfg.dump(str(tmp_path / "oracle.py"))
    place = tmp_path / "o"
    command = ["compare", str(tmp_path / "oracle.py"), "--work-dir", str(place)]
    assert main([*command, "--table-only"]) == 0
    assert "thresholds chosen on: oracle" in capsys.readouterr().out
    assert not (place / "report").exists()
    assert main(command) == 0
    assert (
        "All thresholds were chosen on test, the split reported (oracle)"
        in (place / "report" / "report.html").read_text()
    )
    table = place / "compare" / "compare.csv"
    first, *_, last = csv.DictReader(io.StringIO(table.read_text()))
    assert (last["name"], last["top1_loc"]) == ("stored", "")
    assert last["max_box_acc_v2_oracle"] == first["max_box_acc_v2_oracle"]
