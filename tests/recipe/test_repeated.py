"""Comparisons on several classifiers: each as it would be alone, then mean and spread."""

from __future__ import annotations

import csv
import io
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from adcam.cli import main
from adcam.data.shapes import make_shape_boxes
from adcam.data.sources import build_dataset
from adcam.errors import AdcamError
from adcam.models.classifier_file import save_classifier
from adcam.models.token_cam import TokenCAM
from adcam.recipe import classifiers, compare
from adcam.recipe.repeated import find_members, name_files, open_comparison
from adcam.recipe.stages import run_stages
from adcam.settings import Settings

NETWORK = {
    "backbone": "vit_tiny_patch16_224",
    "img_size": 32,
    "backbone_kwargs": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3},
}
VIEWS = {"scales": [32]}


def save_random(settings: Settings, path: Path, seed: int) -> Path:
    """A classifier that has learnt nothing, another one for each seed."""
    torch.manual_seed(seed)
    class_set = build_dataset(settings.data, str(settings.data.val)).class_set
    network = TokenCAM(num_fg_classes=class_set.num_fg_classes, **NETWORK)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    info = {"val_map": 50.0, "val_split": "val", "epoch": 1}
    save_classifier(path, network, NETWORK, class_set, info)
    return path


@pytest.fixture
def config(mini_cfg: Config) -> Config:
    """Two methods on few images."""
    rows = [
        {"name": name, "method": method, "views": VIEWS}
        for name, method in (("CAM", "cam"), ("AD-CAM", "ad_cam"))
    ]
    mini_cfg.compare = {
        "choose_on": "train",
        "report_on": "val",
        "choose_stride": 8,
        "report_stride": 3,
        "rows": rows,
    }
    return mini_cfg


def run(settings: Settings, work_dir: Path, **choices: Any) -> tuple[list[str], str]:
    """The stages that ran, and what was logged."""
    lines: list[str] = []
    opened = open_comparison(settings, work_dir, command="adcam")
    return run_stages(opened, log=lines.append, **choices), "\n".join(lines)


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


def test_several_files_give_mean_and_spread_and_each_table_as_alone(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(config.to_dict())
    files = [
        str(save_random(settings, tmp_path / place / "train" / "classifier.safetensors", seed))
        for seed, place in enumerate(("one", "two", "three"))
    ]
    config.dump(str(tmp_path / "c.py"))
    work = tmp_path / "work"
    listed = f"compare.checkpoint=[{','.join(files)}]"
    command = ["compare", str(tmp_path / "c.py"), "--work-dir", str(work), "--cfg-options", listed]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "against AD-CAM" in printed and " ± " in printed and "± images" in printed

    # Each classifier's table has the bytes that it has alone.
    alone = tmp_path / "alone"
    single = [*command[:3], str(alone), "--table-only", "--cfg-options"]
    assert main([*single, f"compare.checkpoint={files[1]}"]) == 0
    table = (work / "two" / "compare" / "compare.csv").read_bytes()
    assert (alone / "compare" / "compare.csv").read_bytes() == table

    rows = read_table(work / "compare" / "compare.csv")
    tables = {n: read_table(work / n / "compare" / "compare.csv") for n in ("one", "two", "three")}
    for i, row in enumerate(rows):
        values = [float(lines[i]["miou"]) for lines in tables.values()]
        assert [row[f"miou {name}"] for name in tables] == [f"{v:.2f}" for v in values]
        choosing = [float(lines[i]["miou_choosing"]) for lines in tables.values()]
        assert float(row["miou_choosing"]) == pytest.approx(statistics.mean(choosing), abs=0.011)
        assert float(row["miou"]) == pytest.approx(statistics.mean(values), abs=0.011)
        assert float(row["miou_std"]) == pytest.approx(statistics.stdev(values), abs=0.011)
    assert rows[1]["verdict"] == "reference"
    differences = [float(lines[0]["miou"]) - float(lines[1]["miou"]) for lines in tables.values()]
    assert float(rows[0]["difference"]) == pytest.approx(statistics.mean(differences), abs=0.011)
    assert float(rows[0]["difference_std"]) == pytest.approx(
        statistics.stdev(differences), abs=0.02
    )

    # The page shows the spread, and every classifier folded away.
    page = work / "report" / "report.html"
    text = page.read_text("utf-8")
    assert text.count('<details class="folded">') == 3
    assert "Classifier two" in text and " ± " in text
    report = json.loads((work / "report" / "report.json").read_text())
    folded = [section["folded"] for section in report["sections"]]
    assert folded == [False, False, *3 * [True], False]
    assert report["sections"][0]["title"] == "Explore the images (classifier one)"
    page.unlink()
    assert main(["report", str(work)]) == 0
    assert page.read_text("utf-8") == text


def test_every_classifier_has_stages_of_its_own(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds train; an interrupted or changed classifier leaves the others as they are."""
    trained: list[int] = []

    def fake_train(settings: Settings, folder: Path, *, resume: bool) -> None:
        assert resume
        trained.append(settings.train.seed)
        save_random(settings, folder / "classifier.safetensors", settings.train.seed)
        if len(trained) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(classifiers, "train_classifier", fake_train)
    config.compare.seeds = [5, 7]
    settings, work = Settings(config.to_dict()), tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        run(settings, work)
    assert (work / "seed-5" / "compare" / "compare.csv").is_file()
    assert not (work / "compare").exists()
    ran, said = run(settings, work)
    assert ran == ["seed-7/train", "seed-7/compare", "compare", "report"]
    assert "seed-7/train: resumes where it stopped" in said
    assert trained == [5, 7, 7]
    assert run(settings, work)[0] == []
    before = (work / "compare" / "compare.csv").read_bytes()

    # A classifier more: the others are kept.
    more = settings.with_changes({"compare.seeds": [5, 7, 9]})
    ran, said = run(more, work)
    assert ran == ["seed-9/train", "seed-9/compare", "compare", "report"]
    assert "seed-5/compare: nothing changed, kept" in said
    assert run(settings, work)[0] == ["compare", "report"]
    assert (work / "compare" / "compare.csv").read_bytes() == before

    # Parts of names choose stages.
    assert run(settings, work, redo=["seed-5/compare"])[0] == ["seed-5/compare"]
    assert run(settings, work, only=["seed-7"], redo=["seed-7"])[0] == [
        "seed-7/train",
        "seed-7/compare",
    ]
    assert run(settings, work, skip=["report", "train"], redo=["compare"])[0] == [
        "seed-5/compare",
        "seed-7/compare",
        "compare",
    ]
    with pytest.raises(AdcamError, match="no stage 'seed-6'; the stages are seed-5/train, "):
        run(settings, work, only=["seed-6"])
    shutil.rmtree(work / "seed-7" / "train")
    with pytest.raises(AdcamError, match="needs the result of 'seed-7/train', which is left out"):
        run(settings, work, skip=["train"])

    # Another reference changes the table alone.
    other = settings.with_changes({"compare.reference": "CAM"})
    assert run(other, work)[0] == ["seed-7/train", "compare", "report"]
    assert [row["verdict"] == "reference" for row in read_table(work / "compare" / "compare.csv")]


def test_one_seed_or_file_is_a_comparison_as_ever(config: Config, tmp_path: Path) -> None:
    settings = Settings(config.to_dict())
    one = open_comparison(settings.with_changes({"compare.seeds": [4]}), tmp_path)
    assert isinstance(one, compare.Comparison)
    source = one.sources[""]
    assert isinstance(source, Settings) and source.train.seed == 4
    for given in (["a.safetensors"], {"x": "a.safetensors"}, "a.safetensors"):
        changed = settings.with_changes({"compare.checkpoint": given})
        opened = open_comparison(changed, tmp_path)
        assert isinstance(opened, compare.Comparison)
        assert opened.sources[""] == Path("a.safetensors")


def test_files_that_are_not_there_are_named_before_any_work(config: Config, tmp_path: Path) -> None:
    settings = Settings(config.to_dict())
    there = save_random(settings, tmp_path / "there.safetensors", 0)
    listed = {"compare.checkpoint": [str(there), str(tmp_path / "gone.safetensors")]}
    with pytest.raises(AdcamError, match=r"gone/train.*there is no classifier .*gone\.safetensors"):
        run(settings.with_changes(listed), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_names_of_files() -> None:
    assert list(name_files(["~/w/a b.safetensors", "~/w/c.safetensors"])) == ["a_b", "c"]
    assert list(name_files(["x/1/train/c.safetensors", "x/2/train/c.safetensors"])) == ["1", "2"]
    assert list(name_files(["x/c.safetensors", "x/y/c.safetensors"])) == ["c", "y"]
    with pytest.raises(AdcamError, match="would both be called 'c'; give names"):
        name_files(["x/c.safetensors", "x/c.safetensors"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 1]}, r"holds a seed twice: \[1, 1\]"),
        ({"seeds": [-1]}, "at least 0, got -1"),
        ({"seeds": [1, 2], "checkpoint": "a"}, "give one of them"),
        ({"checkpoint": []}, "names no file"),
        ({"reference": "AD-CM"}, "must be 'CAM' or 'AD-CAM', got 'AD-CM'; did you mean 'AD-CAM'"),
        ({"checkpoint": {"train": "a", "b": "b"}}, "'train' cannot be the name"),
        ({"checkpoint": {"../x": "a", "b": "b"}}, "'../x' cannot be the name"),
    ],
)
def test_what_cannot_be_is_refused(config: Config, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdcamError, match=message):
        config.compare.update(changes)
        find_members(Settings(config.to_dict()))


def test_named_networks_are_trained_with_every_seed(config: Config, tmp_path: Path) -> None:
    config.compare.networks = {"own": {"options": {"train.epochs": 3}}, "file": "a.safetensors"}
    config.compare.rows[0].network = "own"
    config.compare.rows[1].network = "file"
    config.compare.seeds = [1, 2]
    settings = Settings(config.to_dict())
    found = find_members(settings)
    assert list(found) == ["seed-1", "seed-2"]
    sources = compare.find_sources(found["seed-2"], tmp_path)
    assert isinstance(sources["own"], Settings) and sources["file"] == Path("a.safetensors")
    assert (sources["own"].train.seed, sources["own"].train.epochs) == (2, 3)
    with pytest.raises(AdcamError, match="every row has a network that is a file"):
        find_members(settings.with_changes({"compare.rows.0.network": "file"}))
    listed = {"compare.seeds": [], "compare.checkpoint": ["a", "b"]}
    with pytest.raises(AdcamError, match=r"rows \['AD-CAM', 'CAM'\] have another"):
        settings.with_changes(listed)


def test_boxes_have_mean_and_spread_too(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    make_shape_boxes(root, num_train=20, num_val=9, num_test=9, size_hw=(40, 56), seed=0)
    config.task = "localization"
    config.data = {
        "source": "wsol",
        "root": str(root),
        "metadata": "metadata/shapes",
        "classes": "shapes",
        "train": "train-weaksup",
        "val": "train-fullsup",
    }
    config.compare = {
        "choose_on": "train-fullsup",
        "report_on": "test",
        "rows": config.compare.rows,
        "seeds": [1, 2],
    }
    monkeypatch.setattr(
        classifiers,
        "train_classifier",
        lambda settings, folder, resume: save_random(
            settings, folder / "classifier.safetensors", settings.train.seed
        ),
    )
    work = tmp_path / "work"
    run(Settings(config.to_dict()), work)
    rows = read_table(work / "compare" / "compare.csv")
    for i, row in enumerate(rows):
        values = [
            float(read_table(work / name / "compare" / "compare.csv")[i]["max_box_acc_v2"])
            for name in ("seed-1", "seed-2")
        ]
        assert float(row["max_box_acc_v2"]) == pytest.approx(statistics.mean(values), abs=0.011)
        assert {"gt_known_std", "top1_loc"} <= row.keys()
    text = (work / "report" / "report.html").read_text("utf-8")
    assert "MaxBoxAccV2, mean ± sample standard deviation over 2 classifiers" in text
    assert "true box" in text
