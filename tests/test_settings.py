"""Configs: all that ship load and build; overrides, classes, sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import write_coco
from mmengine.config import Config
from PIL import Image

from adcam.cams import build_method
from adcam.convert.data_sets import convert_coco
from adcam.data.coco import COCO_CLASSES
from adcam.data.open_images import open_images
from adcam.data.sources import build_classes, build_dataset
from adcam.data.voc import VOC_CLASSES
from adcam.evaluation.compare import Row
from adcam.evaluation.compare_boxes import BoxRow
from adcam.evaluation.masks_on_disk import evaluate_masks
from adcam.files import hash_file, hash_values
from adcam.labeling.generate import generate
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.map_maker import Views
from adcam.models.classifier_file import load_classifier
from adcam.models.token_cam import TokenCAM
from adcam.recipe.compare import read_rows
from adcam.settings import load_config, parse_overrides
from adcam.training.classifier import train_classifier

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").rglob("*.py")
    # Neither trains a classifier; tests/training/test_segmenter.py has those of networks.
    if not {"_base_", "seg"} & set(path.parts) and path.stem != "pretrain_vit"
)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADCAM_DATA_ROOT", raising=False)
    monkeypatch.delenv("ADCAM_WEIGHTS", raising=False)


def test_there_is_one_for_every_size_of_deit_on_voc12() -> None:
    assert {f"configs/voc12/adcam_deit-{s}_60e_voc12.py" for s in ("tiny", "small", "base")} <= set(
        CONFIGS
    )


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_describes_a_training_run(path: str) -> None:
    cfg = load_config(ROOT / path)
    assert "data" in cfg
    is_localization = cfg.get("task") == "localization"
    if "compare" in cfg:
        rows = read_rows(cfg, BoxRow if is_localization else Row)
        assert [row.build() for row in rows]
        assert {"cam", "ad_cam"} & {row.method for row in rows}
        if is_localization and "" not in {row.network for row in rows}:
            return  # it compares the classifiers of other configs
    for section in ("model", "train", "optim_wrapper", "param_scheduler"):
        assert section in cfg
    if is_localization:
        assert {"source", "root", "train", "val"} <= cfg.data.keys()
    else:
        assert build_classes(cfg.data.classes).num_fg_classes >= 6
    assert {"epochs", "img_size", "batch_size", "amp", "seed"} <= cfg.train.keys()
    if "cam" in cfg:
        build_method(cfg.cam.method, **cfg.cam.method_options)


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.52), ("small", 21.67), ("base", 85.80)])
def test_deit_backbones_have_the_published_size(size: str, millions: float) -> None:
    """DeiT (arXiv 2012.12877, table 1: 5 M, 22 M, 86 M) without the classifier."""
    cfg = load_config(ROOT / f"configs/voc12/adcam_deit-{size}_60e_voc12.py")
    with torch.device("meta"):
        network = TokenCAM(
            cfg.model.backbone,
            num_fg_classes=20,
            img_size=cfg.model.img_size,
            drop_path_rate=0.0,
        )
    count = sum(p.numel() for p in network.backbone.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)
    assert network.depth == 12
    assert network.patch_size == (16, 16)


def test_environment_variables_name_data_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "configs/voc12/adcam_deit-tiny_60e_voc12.py"
    cfg = load_config(path)
    assert (cfg.data.root, cfg.model.weights) == ("data/VOC2012", "timm")
    monkeypatch.setenv("ADCAM_DATA_ROOT", "/somewhere/else")
    monkeypatch.setenv("ADCAM_WEIGHTS", "my weights.pth")
    cfg = load_config(path)
    assert (cfg.data.root, cfg.model.weights) == ("/somewhere/else/VOC2012", "my weights.pth")


def test_overrides_reach_what_they_name_and_leave_the_rest() -> None:
    path = ROOT / "configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py"
    plain = load_config(path)
    texts = ["train.epochs=3", "data.root=a b=c", "model.weights=None", "compare.rows.0.name=First"]
    cfg = load_config(path, parse_overrides([*texts, "optim_wrapper.optimizer.lr=2e-5"]))
    assert cfg.train.epochs == 3
    assert cfg.data.root == "a b=c"
    assert cfg.model.weights is None
    assert cfg.compare.rows[0].name == "First"
    assert cfg.optim_wrapper.optimizer.lr == 2e-5
    assert cfg.optim_wrapper.optimizer.weight_decay == plain.optim_wrapper.optimizer.weight_decay
    assert cfg.compare.rows[1] == plain.compare.rows[1]
    assert load_config(path).to_dict() == plain.to_dict()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("3", 3), ("1e-4", 1e-4), ("[1, 2]", [1, 2]), ("'7'", "7"), ("True", True)),
        *(("a/b", "a/b"), ("None", None), ("", ""), ("{'a': (1, 2)}", {"a": (1, 2)})),
        ("x==y", "x==y"),
    ],
)
def test_values_are_python_literals_or_text(text: str, value: Any) -> None:
    assert parse_overrides([f"key.sub={text}"]) == {"key.sub": value}


@pytest.mark.parametrize("text", ["train.epochs", "=3", ""])
def test_overrides_without_key_or_value(text: str) -> None:
    with pytest.raises(ValueError, match="key=value"):
        parse_overrides([text])


@pytest.mark.parametrize(
    "key",
    [
        *("trian.epochs", "train.epochs.more", "train.epochs.even.more"),
        *("compare.rows.99.name", "compare.rows.99"),
    ],
)
def test_overrides_of_sections_that_do_not_exist(key: str) -> None:
    path = ROOT / "configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py"
    with pytest.raises(ValueError, match=f"--cfg-options {key}: .*no section"):
        load_config(path, {key: 1})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "train = dict(epochs=3"),
        ("a.py", "_base_ = ['gone.py']"),
        ("a.py", "train = undefined_name"),
        ("a.py", "train = dict(epochs=1) + 2"),
        ("a.txt", "train = 3"),
        ("a.json", "{not json"),
    ],
)
def test_broken_configs_are_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: cannot be read as a config"):
        load_config(tmp_path / name)


def test_a_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.py: no such config"):
        load_config(tmp_path / "gone.py")


def test_classes(caplog: pytest.LogCaptureFixture) -> None:
    assert build_classes("voc").classes == VOC_CLASSES
    assert build_classes(["cow", "cat"]).mask_values == (10, 8)
    assert not caplog.records
    own = build_classes(["cat", "zebra"])
    assert own.mask_values == (1, 2)
    assert "['zebra']: not all VOC classes" in caplog.text
    with pytest.raises(ValueError, match="given twice"):
        build_classes(["cat", "cat"])
    assert build_classes("coco").num_classes == 81
    with pytest.raises(ValueError, match="'birds'"):
        build_classes("birds")


def write_folder(root: Path) -> dict[str, Any]:
    (root / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "c.png"):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(root / name)
    (root / "labels.csv").write_text("image_id,labels\na,zebra\nsub/b,cat zebra\nc,\n")
    (root / "few.txt").write_text("\ufeffsub/b\n\na.png\n", encoding="utf-8")
    return {
        "source": "folder",
        "root": str(root),
        "classes": ["cat", "zebra"],
        "labels": "labels.csv",
    }


def test_a_folder_with_labels_and_lists(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "set")
    everything = build_dataset(data, "all")
    assert {r.img_id: r.class_ids for r in everything.records} == {
        "a": (1,),
        "c": (),
        "sub/b": (0, 1),
    }
    assert [r.img_id for r in build_dataset(data, "few").records] == ["sub/b", "a"]
    unlabeled = build_dataset(data, "few", labels=False)
    assert {r.class_ids for r in unlabeled.records} == {None}
    masked = build_dataset({**data, "mask_dir": "masks"}, "few")
    assert masked.records[0].mask_path == tmp_path / "set" / "masks" / "sub" / "b.png"


def test_a_metadata_folder_of_wsolevaluation(tmp_path: Path) -> None:
    folder = tmp_path / "metadata" / "val"
    folder.mkdir(parents=True)
    (folder / "image_ids.txt").write_text("x/1.jpg\n")
    (folder / "class_labels.txt").write_text("x/1.jpg,1\n")
    (folder / "image_sizes.txt").write_text("x/1.jpg,6,4\n")
    (folder / "localization.txt").write_text("x/1.jpg,1,1,5,3\n")
    data = {
        "source": "wsol",
        "root": str(tmp_path),
        "metadata": "metadata",
        "classes": ["cat", "zebra"],
    }
    (record,) = build_dataset(data, "train-fullsup").records
    assert (record.class_ids, record.boxes) == ((1,), ((1, 1, 5, 3),))
    assert record.img_path == tmp_path / "x" / "1.jpg"
    (record,) = build_dataset(data, "val", labels=False).records
    assert record.class_ids is None
    with pytest.raises(ValueError, match="1 images, but val has 2"):
        build_dataset({**data, "expected_counts": {"val": 2}}, "val")
    del data["metadata"]
    with pytest.raises(ValueError, match=r"data\.metadata must name the folder"):
        build_dataset(data, "val")


@pytest.mark.parametrize(
    ("source", "file"), [("cub", r"classes\.txt"), ("ilsvrc", r"LOC_synset_mapping\.txt")]
)
def test_official_files_of_localisation_sets(tmp_path: Path, source: str, file: str) -> None:
    with pytest.raises(ValueError, match=f"{file}: cannot be read"):
        build_dataset({"source": source, "root": str(tmp_path)}, "train")


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        ({"source": "coco"}, "all", r"data.source must be one of .*'coco'"),
        ({"root": "/nowhere"}, "all", "ADCAM_DATA_ROOT"),
        ({"labels": "xml"}, "all", "needs source='voc'"),
        ({"labels": "gone.csv"}, "all", "gone.csv"),
        ({}, "many", r"many\.txt: the list of the split cannot be read"),
    ],
)
def test_wrong_data_sections(
    tmp_path: Path, change: dict[str, Any], split: str, message: str
) -> None:
    data = write_folder(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        build_dataset({**data, **change}, split)


def test_hashes_tell_content_not_order(tmp_path: Path) -> None:
    a = hash_values({"x": 1, "y": {"b": 2, "a": (1, 2)}})
    assert a == hash_values({"y": {"a": (1, 2), "b": 2}, "x": 1})
    assert a != hash_values({"x": 1, "y": {"b": 2, "a": (2, 1)}})
    assert len(a) == 16
    (tmp_path / "f").write_bytes(b"abc")
    assert hash_file(tmp_path / "f") == "ba7816bf8f01cfea"  # SHA-256 of "abc", FIPS 180-2


def write_mini_voc(root: Path) -> None:
    """VOC 2012's layout, six images of other sizes and one to two of the 20 classes each."""
    rng = np.random.default_rng(0)
    ids = [f"2007_00000{i}" for i in range(6)]
    for folder in ("JPEGImages", "Annotations", "SegmentationClassAug", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    for i, img_id in enumerate(ids):
        hw = (40 + 2 * i, 60 - 3 * i)
        img = rng.integers(0, 256, (*hw, 3), dtype=np.uint8)
        Image.fromarray(img).save(root / "JPEGImages" / f"{img_id}.jpg")
        for folder in ("SegmentationClassAug", "SegmentationClass"):
            Image.fromarray(np.full(hw, i + 1, np.uint8)).save(root / folder / f"{img_id}.png")
        objects = "".join(
            f"<object><name>{VOC_CLASSES[c]}</name><difficult>0</difficult></object>"
            for c in {i, 19 - i}
        )
        (root / "Annotations" / f"{img_id}.xml").write_text(
            f"<annotation><filename>{img_id}.jpg</filename>{objects}</annotation>"
        )
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train_aug.txt").write_text(
        "".join(f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n" for i in ids[:4])
    )
    (lists / "val.txt").write_text("".join(f"{i}\n" for i in ids[4:]))


@pytest.mark.filterwarnings("default")
def test_the_voc12_config_trains_on_a_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mini_voc(tmp_path / "VOC2012")
    monkeypatch.setenv("ADCAM_DATA_ROOT", str(tmp_path))
    path = ROOT / "configs/voc12/adcam_deit-tiny_60e_voc12.py"
    texts = [
        "model.backbone_kwargs={'embed_dim': 24, 'depth': 2, 'num_heads': 3}",
        *("model.weights=None", "model.img_size=32", "train.img_size=32"),
        *("train.epochs=1", "train.batch_size=4", "train.num_workers=0", "train.log_interval=1"),
    ]
    cfg = load_config(path, parse_overrides(texts))
    with pytest.raises(ValueError, match=r"4 images, but train_aug has 10582"):
        train_classifier(cfg, tmp_path / "run")

    counts = "data.expected_counts={'train_aug': 4, 'val': 2}"
    cfg = load_config(path, parse_overrides([*texts, counts]))
    assert cfg.train.amp == "bfloat16"
    file = load_classifier(train_classifier(cfg, tmp_path / "run"))
    assert file.class_set.classes == VOC_CLASSES
    assert file.info["train_images"] == 4
    assert file.info["train_counts"]["train_aug"]["aeroplane"] == 1
    (log,) = tmp_path.glob("run/*/vis_data/scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1]
    assert cfg.to_dict() == load_config(path, parse_overrides([*texts, counts])).to_dict()


@pytest.mark.filterwarnings("default")
def test_the_coco14_config_trains_generates_and_evaluates_on_a_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocotools")
    root = tmp_path / "coco14"
    write_coco(root, "train2014", "val2014")
    for split in ("train2014", "val2014"):
        convert_coco(root / "annotations" / f"instances_{split}.json", root, partial=True)
    monkeypatch.setenv("ADCAM_DATA_ROOT", str(tmp_path))
    path = ROOT / "configs/coco14/adcam_deit-small_60e_coco14.py"
    texts = [
        "model.backbone_kwargs={'embed_dim': 24, 'depth': 2, 'num_heads': 3}",
        *("model.weights=None", "model.img_size=32", "train.img_size=32"),
        *("train.epochs=1", "train.batch_size=2", "train.num_workers=0", "train.log_interval=1"),
    ]
    with pytest.raises(ValueError, match=r"2 images, but train2014_objects has 82081"):
        train_classifier(load_config(path, parse_overrides(texts)), tmp_path / "run")

    counts = "data.expected_counts={'train2014_objects': 2, 'val2014': 3}"
    cfg = load_config(path, parse_overrides([*texts, counts]))
    checkpoint = train_classifier(cfg, tmp_path / "run")
    file = load_classifier(checkpoint)
    assert file.class_set.classes == COCO_CLASSES and file.class_set.num_classes == 81
    assert file.info["train_counts"]["train2014_objects"]["cat"] == 1

    # The rest knows COCO by its folders of images and masks.
    labeler = PseudoLabeler.from_checkpoint(checkpoint, device="cpu", views=Views(scales=(32,)))
    images = open_images(
        root / "val2014", labeler.class_set, labels=root / "labels" / "val2014.csv"
    )
    result = generate(images, labeler, tmp_path / "out", labels="given", workers=0)
    assert (result.ok, len(result.failed)) == (3, 0)
    scores = evaluate_masks(tmp_path / "out", root / "masks" / "val2014")
    assert scores["num_images"] == 3
    assert {"background", "cat", "dog"} <= scores["iou_per_class"].keys()


@pytest.mark.parametrize("epochs", [1, 3, 10, 40])
def test_fewer_or_more_epochs_adapt_the_schedule(epochs: int) -> None:
    """Warm-up first, then a cosine that reaches 0 with the last step, whatever `train.epochs`."""
    from adcam.training.repeatable import fit_schedulers

    path = ROOT / "configs/voc12/adcam_deit-small_60e_voc12.py"
    cfg: Config = load_config(path, {"train.epochs": epochs})
    fitted = fit_schedulers(cfg.param_scheduler, cfg.train.epochs)
    assert fitted[0]["type"] == "LinearLR"
    assert fitted[0]["end"] == min(5, epochs)
    assert [entry["type"] for entry in fitted[1:]] == (["CosineAnnealingLR"] if epochs > 5 else [])
    assert all(entry["end"] <= epochs for entry in fitted)
    assert fitted[-1]["end"] == epochs
    assert "end" not in cfg.param_scheduler[1]
