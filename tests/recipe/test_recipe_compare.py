"""Comparisons of a config: what is trained, what is refused, the same table every time."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from adcam.cli import main
from adcam.data.shapes import make_shape_boxes
from adcam.evaluation.boxes_on_disk import evaluate_boxes, evaluate_pixels
from adcam.recipe import compare
from adcam.recipe.box_report import remake_box_report
from adcam.recipe.compare import (
    find_networks,
    read_rows,
    run_compare,
    run_compare_boxes,
)
from adcam.settings import MethodSpec, TestViews


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
    a, b = read_rows(cfg)
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
        read_rows(Config({"compare": {"choose_on": "a", "report_on": "b", "rows": rows}}))


@pytest.mark.filterwarnings("default")  # of mmengine while it trains
def test_one_command_trains_once_and_repeats_itself(
    tmp_path: Path, mini_cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini_cfg.train.epochs = 1
    mini_cfg.compare = {
        "choose_on": "train",
        "report_on": "val",
        "rows": [
            {"name": n, "method": m, "views": {"scales": [32], "flip": True}}
            for n, m in (("CAM", "cam"), ("AD-CAM", "ad_cam"))
        ],
    }
    trainings = []
    train = compare.train_classifier

    def count(*args: Any, **kwargs: Any) -> Path:
        trainings.append(1)
        return train(*args, **kwargs)

    monkeypatch.setattr(compare, "train_classifier", count)
    results = run_compare(mini_cfg, tmp_path / "a")
    first = (tmp_path / "a" / "compare.csv").read_bytes()
    assert [result.spec.name for result in results.found.results] == ["CAM", "AD-CAM"]
    run_compare(mini_cfg, tmp_path / "a")
    assert trainings == [1]
    assert (tmp_path / "a" / "compare.csv").read_bytes() == first
    run_compare(mini_cfg, tmp_path / "b")  # trained again, from scratch
    assert trainings == [1, 1]
    assert (tmp_path / "b" / "compare.csv").read_bytes() == first

    mini_cfg.compare.checkpoint = str(tmp_path / "a" / "classifier.safetensors")
    run_compare(mini_cfg, tmp_path / "c")
    assert trainings == [1, 1]
    assert (tmp_path / "c" / "compare.csv").read_bytes() == first

    mini_cfg.compare.dtype = "float8"
    with pytest.raises(ValueError, match=r"compare\.dtype must be one of .* got 'float8'"):
        run_compare(mini_cfg, tmp_path / "d")


def test_rows_and_networks_of_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = "train = dict(epochs=1, img_size=8, batch_size=1, seed={})\n"
    (tmp_path / "other.py").write_text(train.format(0))
    (tmp_path / "compare.py").write_text(
        train.format(7) + "compare = dict(\n"
        "    networks=dict(\n"
        "        stored='~/w/classifier.safetensors', other='other.py',\n"
        "        seeded=dict(config='other.py', options={'train.seed': 3}),\n"
        "        own=dict(options={'train.seed': 4}),\n"
        "    ),\n"
        "    choose_on='train', report_on='val',\n"
        "    rows=[dict(name='a', method='cam', network='own', views=dict(scales=[96]))],\n"
        ")\n"
    )
    cfg = Config.fromfile(str(tmp_path / "compare.py"))
    assert read_rows(cfg) == [MethodSpec("a", "cam", views=TestViews((96,)), network="own")]
    trained = {}

    def train(cfg: Config, work_dir: Path) -> Path:
        trained[work_dir.name] = cfg.train.seed
        return work_dir / "classifier.safetensors"

    monkeypatch.setattr(compare, "train_classifier", train)
    work = tmp_path / "work"
    (work / "other").mkdir(parents=True)

    def find(*names: str) -> dict[str, Path]:
        cfg.compare.rows = [{"name": name, "method": "cam", "network": name} for name in names]
        return find_networks(cfg, work)

    found = find("stored", "other", "seeded", "own")
    assert found["stored"] == Path.home() / "w" / "classifier.safetensors"
    assert found["seeded"] == work / "seeded" / "classifier.safetensors"
    assert trained == {"other": 0, "seeded": 3, "own": 4}
    (work / "other" / "classifier.safetensors").touch()
    trained.clear()
    find("other")
    assert trained == {}
    with pytest.raises(ValueError, match=r"compare\.networks has no \['x'\]"):
        find("x")
    with pytest.raises(ValueError, match="crf"):
        cfg.compare.rows = [{"name": "a", "method": "cam", "crf": 1}]
        read_rows(cfg)
    for wrong in ({"configs": "x"}, 5):
        cfg.compare.networks["wrong"] = wrong
        with pytest.raises(ValueError, match=r"compare\.networks\.wrong"):
            find("own")
    with pytest.raises(ValueError, match="no section 'compare'"):
        run_compare_boxes(Config({"task": "localization"}), work)


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
    lines = list(csv.DictReader(io.StringIO((work / "compare.csv").read_text())))
    assert [line["name"] for line in lines] == ["CAM", "TS-CAM", "AD-CAM"]
    stored = json.loads((work / "compare.json").read_text())
    assert stored["task"] == "localization" and stored["num_images"] == 12
    metadata = Path(boxes_cfg.data.root) / "metadata"
    for line in lines:
        maps = work / "score_maps" / line["name"].lower()
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
    page = (work / "report.html").read_text()
    for text in ("true box", "box found", "Top-1 Loc", "V2, oracle", "only a part", "IoU ≥ 0.7"):
        assert text in page
    assert "ignored or uncertain" not in page
    report = json.loads((work / "report.json").read_text())
    kinds = {block["kind"] for section in report["sections"] for block in section["blocks"]}
    assert kinds >= {"curves", "histograms", "shares", "per_class", "picture_grid", "time_table"}
    table = report["lead"][-2]
    assert table["rows"][2][1] == stored["rows"][2]["boxes"]["max_box_acc_v2"]

    first = (work / "compare.csv").read_bytes()
    (work / "report.html").unlink()
    assert main(["report", str(work)]) == 0
    assert capsys.readouterr().out.endswith(f"report: {work / 'report.html'}\n")
    assert "true box" in (work / "report.html").read_text()
    assert (work / "compare.csv").read_bytes() == first
    with pytest.raises(ValueError, match=r"set/compare\.json is no comparison by boxes"):
        remake_box_report(tmp_path / "set")
    boxes_cfg.compare.checkpoint = str(work / "classifier.safetensors")
    boxes_cfg.compare.rows.append(
        {"name": "stored", "score_maps": str(work / "score_maps" / "cam")}
    )
    boxes_cfg.compare.choose_on = "test"
    boxes_cfg.dump(str(tmp_path / "oracle.py"))
    command = ["compare", str(tmp_path / "oracle.py"), "--work-dir", str(tmp_path / "o")]
    assert main([*command, "--table-only"]) == 0
    assert "thresholds chosen on: oracle" in capsys.readouterr().out
    assert not (tmp_path / "o" / "report.html").exists()
    assert main(command) == 0
    page = (tmp_path / "o" / "report.html").read_text()
    assert "All thresholds were chosen on test, the split reported (oracle)" in page
    first, *_, stored = csv.DictReader(io.StringIO((tmp_path / "o" / "compare.csv").read_text()))
    assert (stored["name"], stored["top1_loc"]) == ("stored", "")
    assert stored["max_box_acc_v2_oracle"] == first["max_box_acc_v2_oracle"]


def test_a_wrong_dtype_is_refused(boxes_cfg: Config, tmp_path: Path) -> None:
    boxes_cfg.compare.dtype = "float8"
    with pytest.raises(ValueError, match=r"compare\.dtype must be one of .* got 'float8'"):
        run_compare_boxes(boxes_cfg, tmp_path / "w")
