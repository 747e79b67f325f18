"""Configs: all that ship load and build; overrides, classes, sources."""

from __future__ import annotations

import argparse
import json
import re
import runpy
from contextlib import suppress
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniatures import write_coco
from mmengine.config import DictAction
from PIL import Image

from adcam.cams import build_method
from adcam.convert.data_sets import convert_coco
from adcam.data import sources
from adcam.data.coco import COCO_CLASSES
from adcam.data.dataset import ImageDataset
from adcam.data.open_images import open_images
from adcam.data.sources import (
    build_classes,
    build_dataset,
    find_class_set,
    register_data_source,
)
from adcam.data.voc import VOC_CLASSES
from adcam.errors import AdcamError
from adcam.evaluation.masks_on_disk import evaluate_masks
from adcam.files import hash_file, hash_values
from adcam.labeling.generate import generate
from adcam.labeling.labeler import PseudoLabeler
from adcam.models.classifier_file import load_classifier
from adcam.models.token_cam import TokenCAM
from adcam.overrides import parse_overrides
from adcam.settings import (
    BOX_VIEWS,
    DataSettings,
    MethodSpec,
    SegmentationSettings,
    Settings,
    TestViews,
    load_settings,
)
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
    settings = load_settings(ROOT / path)
    assert settings.data.train and settings.data.val
    is_localization = settings.task == "localization"
    if "compare" in settings:
        rows = settings.compare.rows
        assert [row.build() for row in rows]
        assert {"cam", "ad_cam"} & {row.method for row in rows}
        if is_localization and "" not in {row.network for row in rows}:
            return  # it compares the classifiers of other configs
    for section in ("model", "train", "optim_wrapper", "param_scheduler"):
        assert section in settings
    if is_localization:
        assert "source" in settings.to_dict()["data"]
    else:
        assert build_classes(settings.data.classes or "").num_fg_classes >= 6
    assert {"epochs", "img_size", "batch_size", "amp", "seed"} <= settings.to_dict()["train"].keys()
    assert build_method(settings.cam.method, **settings.cam.method_options)


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.52), ("small", 21.67), ("base", 85.80)])
def test_deit_backbones_have_the_published_size(size: str, millions: float) -> None:
    """DeiT (arXiv 2012.12877, table 1: 5 M, 22 M, 86 M) without the classifier."""
    cfg = load_settings(ROOT / f"configs/voc12/adcam_deit-{size}_60e_voc12.py")
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
    cfg = load_settings(path)
    assert (cfg.data.root, cfg.model.weights) == ("data/VOC2012", "timm")
    monkeypatch.setenv("ADCAM_DATA_ROOT", "/somewhere/else")
    monkeypatch.setenv("ADCAM_WEIGHTS", "my weights.pth")
    cfg = load_settings(path)
    assert (cfg.data.root, cfg.model.weights) == ("/somewhere/else/VOC2012", "my weights.pth")


def test_overrides_reach_what_they_name_and_leave_the_rest() -> None:
    path = ROOT / "configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py"
    plain = load_settings(path)
    texts = ["train.epochs=3", "data.root=a b=c", "model.weights=None", "compare.rows.0.name=First"]
    changed = load_settings(path, parse_overrides([*texts, "optim_wrapper.optimizer.lr=2e-5"]))
    assert changed.train == replace(plain.train, epochs=3)
    assert changed.data.root == "a b=c"
    assert changed.model == replace(plain.model, weights=None)
    assert changed.compare.rows[0] == replace(plain.compare.rows[0], name="First")
    assert changed.compare.rows[1:] == plain.compare.rows[1:]
    optimizer = plain.optim_wrapper["optimizer"]
    assert changed.optim_wrapper["optimizer"] == {**optimizer, "lr": 2e-5}
    assert load_settings(path).to_dict() == plain.to_dict()


def test_an_empty_mapping_empties_what_is_there() -> None:
    counts = {"data.expected_counts": {"train": 3}}
    voc = load_settings(ROOT / "configs/voc12/adcam_deit-small_60e_voc12.py", counts)
    assert voc.data.expected_counts == {"train": 3, "val": 1449, "train_aug": 10582}
    assert voc.with_changes({"data.expected_counts": {}}).data.expected_counts == {}
    one = voc.with_changes({"data.expected_counts": {}, "data.expected_counts.val": 2})
    assert one.data.expected_counts == {"val": 2}
    assert load_settings(ANIMALS, {"data.expected_counts": {}}).data.expected_counts == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("3", 3), ("1e-4", 1e-4), ("[1, 2]", [1, 2]), ("'7'", "7"), ("True", True)),
        *(("a/b", "a/b"), ("None", None), ("", ""), ("{'a': (1, 2)}", {"a": (1, 2)})),
        *(("x==y", "x==y"), ("false", False), ("none", "none"), ("[train]", ["train"])),
        *(("a,b", ["a", "b"]), ("1,", [1]), ("(0.5,1)", (0.5, 1)), ("[]", []), ("a b", "a b")),
        *(("'a, b'", "a, b"), ('"a,b",["c]",1]', ["a,b", ["c]", 1]]), ("('(1', x)", ("(1", "x"))),
        *(("it's,'it's'", ["it's", "it's"]), ("''", ""), ("['a', 'b,c' ]", ["a", "b,c"])),
        *(("[(1,x),[2,[3]]]", [(1, "x"), [2, [3]]]), ("(1,2),3", [(1, 2), 3]), ("/d(1)", "/d(1)")),
    ],
)
def test_values_follow_the_rules_of_dict_action(text: str, value: Any) -> None:
    assert parse_overrides([f"key.sub={text}"]) == {"key.sub": value}
    if not {" ", "'", '"', "{"} & set(text) and text not in ("1,", ""):
        parser = argparse.ArgumentParser()
        parser.add_argument("--o", nargs="+", action=DictAction)
        assert parser.parse_args(["--o", f"key.sub={text}"]).o == {"key.sub": value}


def test_a_name_with_commas_stands_in_quotes() -> None:
    rows = "compare.rows.14.name='AD-CAM, a'"
    changed = load_settings(ANIMALS, parse_overrides([rows, 'compare.reference="AD-CAM, a"']))
    assert changed.compare.reference_row == "AD-CAM, a"
    with pytest.raises(AdcamError, match=r"reference must be text, got .*, a text with commas st"):
        load_settings(ANIMALS, parse_overrides([rows, "compare.reference=AD-CAM, a"]))


@pytest.mark.parametrize(
    "text", ["k=[1", "k=(1,2", "k=[1)", "k={1", "k={'a': b}", "k=[[1]", "k=(1"]
)
def test_brackets_without_partner(text: str) -> None:
    with pytest.raises(AdcamError, match=re.escape(text)):
        parse_overrides([text])


@pytest.mark.parametrize("text", ["train.epochs", "=3", ""])
def test_overrides_without_key_or_value(text: str) -> None:
    with pytest.raises(ValueError, match="key=value"):
        parse_overrides([text])


ANIMALS = ROOT / "configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compare.choose_strde=3", "compare: there is no key 'choose_strde'; .*'choose_stride'"),
        ("data.clases=[x]", "data: there is no key 'clases'; did you mean 'classes'"),
        ("compare.rows.15.options.clip_quantile=abc", "'AD-CAM'.* must be a number, got 'abc'"),
        ("compare.rows.15.options.clip_quantil=1", "did you mean 'clip_quantile'"),
        ("compare.rows.14.method=adcam", "unknown method 'adcam'"),
        ("compare.rows.0.crf=toco", "has a CRF but no crf_thresholds"),
        ("compare.rows.0.rule=steep", "row 'CAM': background rule must be .*'steepest:"),
        ("compare.rows.0.crf=lattice", "crf must be 'none', .*'toco'.*, got 'lattice'"),
        ("compare.rows.0.network=x", r"compare\.networks has no \['x'\]"),
        ("compare.rows=[]", "rows must hold at least one"),
        ("compare.rows=x", r"compare\.rows\[0\] must be a section"),
        ("compare.rows.99.name=x", "compare.rows has no '99'"),
        ("compare.rows.99=x", "compare.rows has no '99'"),
        ("trian.epochs=3", "no section 'trian'; did you mean 'train'"),
        ("views.scales=3", "no section 'views'"),
        ("train.epochs.more=1", "train.epochs has no 'more'"),
        ("train.epochs.even.more=1", "train.epochs has no 'even'"),
        ("train.epochs=0", r"train\.epochs must be at least 1, got 0"),
        ("train.epochs=2.5", r"train\.epochs must be a whole number, got 2\.5"),
        ("train.epochs=true", r"train\.epochs must be a whole number, got True"),
        ("train.epochs={}", r"'train\.epochs': \{\}.* cannot be merged"),
        ("train.min_area=nan", r"train\.min_area must be a number, got nan"),
        ("train.amp=fp16", r"train\.amp must be 'none', 'bfloat16' or 'float16', got 'fp16'"),
        ("train=3", "train must be a section"),
        ("data.val=[a,b]", r"data\.val must be text"),
        ("data.train={'a':1}", r"'data\.train'.* cannot be merged"),
        ("data.root=None", r"data\.root must be text, got None"),
        ("data.expected_counts=[1]", r"data\.expected_counts must be"),
        (
            "model.kind=vit",
            r"model\.kind must be 'token_cam', 'nonlocal_cam', 'refined_cam' or 'mctformer', "
            "got 'vit'",
        ),
        ("model.attention=None", "model: there is no key 'attention'"),
        ("optim_wrapper.optimzer.lr=1", "optim_wrapper has no 'optimzer'; .*'optimizer'"),
        ("optim_wrapper=3", "optim_wrapper must be"),
        ("task=boxes", "task must be 'segmentation' or 'localization', got 'boxes'"),
        ("inca.layer=1", "inca: there is no key 'layer'; did you mean 'layers'"),
        ("mask.crf=lattice", r"mask\.crf must be 'none', .*'toco'"),
        ("mask.two_threshold=(0.9,0.1)", "two_threshold must be .low, high."),
        ("mask.two_threshold=0.9", "two_threshold must be 2 values"),
        ("cam.scales=[]", "cam: scales must hold"),
        ("recipe.evaluate=[val]", "recipe lacks 'learn_from'"),
    ],
)
def test_what_is_wrong_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(AdcamError, match=message) as caught:
        load_settings(ANIMALS, parse_overrides([text]))
    assert str(caught.value).startswith(str(ANIMALS))


def test_a_false_flag_is_false_and_none_is_none() -> None:
    texts = ["cam.flip=false", "model.weights=none", "cam.scales=320", "mask.crf=toco"]
    settings = load_settings(ANIMALS, parse_overrides([*texts, "inca.layers=(8,11)"]))
    assert settings.cam.flip is False and settings.cam.scales == (320,)
    assert settings.model.weights is None and settings.mask.crf == "toco"
    assert settings.inca is not None and settings.inca.layers == (8, 11)
    path = ROOT / "configs/seg/shapes/vit_fcn_shapes.py"
    network = load_settings(path, parse_overrides(["test.flip=false"]), kind=SegmentationSettings)
    assert network.test.flip is False


def test_settings_are_frozen_and_changes_give_new_ones() -> None:
    settings = load_settings(ANIMALS)
    with pytest.raises(AttributeError, match="with_changes"):
        settings.data = None  # type: ignore[assignment]
    with pytest.raises(FrozenInstanceError):
        settings.train.epochs = 3  # type: ignore[misc]
    changed = settings.with_changes({"data": {"root": "here", "_delete_": True}})
    assert changed.data == DataSettings("here")
    assert settings.data.train == ("train", "aux")
    settings.to_dict()["train"]["epochs"] = 77
    assert settings.to_dict()["train"]["epochs"] == 10
    with pytest.raises(AdcamError, match="no section 'recipe'"):
        settings.recipe  # noqa: B018


def test_a_misspelt_section_is_refused_and_a_helper_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("views = 3\ndata = dict(root='x')\n")
    assert load_settings(path).data.root == "x"
    path.write_text("comparee = dict(rows=[])\n")
    with pytest.raises(AdcamError, match="'comparee' is no setting; did you mean 'compare'"):
        load_settings(path)


def test_sections_made_in_python_are_checked_too() -> None:
    with pytest.raises(AdcamError, match=r"TestViews\.scales\[0\] must be a whole number, got 1"):
        TestViews((1.5,))  # type: ignore[arg-type]
    with pytest.raises(AdcamError, match=r"DataSettings\.root must be text, got 3"):
        DataSettings(3)  # type: ignore[arg-type]
    assert TestViews([64]) == TestViews((64,))  # type: ignore[arg-type]
    with pytest.raises(AdcamError, match="a CRF but no crf_thresholds"):
        MethodSpec("a", "cam", crf="toco")
    with pytest.raises(AdcamError, match="row 'a' has a rule, so that there is no threshold"):
        MethodSpec("a", "cam", crf="toco", rule="otsu", crf_thresholds=(0.4,))


def test_networks_from_outside_are_checked_by_their_own_options() -> None:
    from adcam.models import networks
    from adcam.models.networks import register_network

    class Own(TokenCAM):
        def __init__(self, *, num_fg_classes: int, depth: int = 2) -> None:
            raise NotImplementedError

    register_network("own", Own)
    try:
        model = Settings({"model": {"kind": "own", "depth": 3}}).model
        assert (model.kind, model.backbone, model.weights) == ("own", "own", None)
        with pytest.raises(AdcamError, match="there is no key 'dept'; did you mean 'depth'"):
            Settings({"model": {"kind": "own", "dept": 3}})
    finally:
        del networks._NETWORKS["own"]


def test_the_page_of_all_keys_is_what_the_classes_say() -> None:
    make_page = runpy.run_path(str(ROOT / "tools" / "settings_page.py"))["make_page"]
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert make_page() == page, "python tools/settings_page.py > docs/settings.md"
    for words in ("| `choose_stride` | a whole number, at least 1 | `1` |", "`clip_quantile`"):
        assert words in page


def test_boxes_are_seen_as_their_protocols_say() -> None:
    rows = [{"name": "a", "method": "cam"}, {"name": "b", "method": "cam", "views": {"flip": True}}]
    compare = {"choose_on": "a", "report_on": "b", "rows": rows}
    masks = Settings({"compare": compare}).compare.rows
    boxes = Settings({"task": "localization", "compare": compare}).compare.rows
    assert [row.views for row in masks] == [TestViews(), TestViews(flip=True)]
    assert [row.views for row in boxes] == [BOX_VIEWS, TestViews(flip=True)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "train = dict(epochs=3"),
        ("a.py", "_base_ = ['gone.py']"),
        ("a.py", "train = undefined_name"),
        ("a.py", "train = dict(epochs=1) + 2"),
        ("a.txt", "train = 3"),
        ("a.json", "{not json"),
        ("a.py", "1 / 0"),
        ("a.py", "raise RuntimeError('stop')"),
        ("a.py", "assert False"),
        ("a.py", "exit(3)"),
    ],
)
def test_broken_configs_are_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: cannot be read as a config"):
        load_settings(tmp_path / name)


def test_variables_in_a_config_are_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.py").write_text("note = '{{$ADCAM_WEIGHTS:timm}}'")
    monkeypatch.setenv("ADCAM_WEIGHTS", "file.pth")
    with suppress(AdcamError):  # a section it needs is missing
        load_settings(tmp_path / "a.py")
    out, err = capfd.readouterr()
    assert "ADCAM_WEIGHTS" not in out + err


def test_a_missing_base_says_where_it_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("_base_ = ['gone.py']")
    with pytest.raises(AdcamError, match="Paths in _base_ begin at the folder of the config"):
        load_settings(tmp_path / "a.py")


def test_a_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.py: no such config"):
        load_settings(tmp_path / "gone.py")


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


def test_own_data_keeps_its_name_its_splits_and_values_from_1(tmp_path: Path) -> None:
    root = tmp_path / "my pets"
    for name in ("a", "b"):
        path = root / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path)
    (root / "l.csv").write_text("image_id,labels\na,dog\nb,horse cat\n")
    (root / "val10.txt").write_text("b\n")
    data = {"source": "folder", "root": str(root), "labels": "l.csv"}
    images = build_dataset({**data, "classes": ["cat", "dog", "horse"]}, "val10")
    assert (images.split, images.class_set.name) == ("val10", "my pets")
    assert images.class_set.mask_values == (1, 2, 3)
    assert images.class_set == find_class_set({**data, "classes": ["cat", "dog", "horse"]})
    assert build_dataset({**data, "classes": "voc"}, "all").class_set.mask_values[7] == 8
    voc = {**data, "source": "voc", "classes": ["cat", "dog", "horse"]}
    assert find_class_set(voc).mask_values == (8, 12, 13)


def test_a_data_source_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))
    with pytest.raises(AdcamError, match="there is a data source 'voc' already"):
        register_data_source("voc", lambda data, split, labels: pytest.fail("not called"))
    wanted = ImageDataset(build_classes("voc"), "x", [])
    register_data_source("mine", lambda data, split, labels: wanted)
    assert build_dataset({"source": "mine", "root": str(tmp_path)}, "x") is wanted


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        ({"source": "coco"}, "all", r"data.source must be 'voc', .*got 'coco'"),
        ({"root": "/nowhere"}, "all", "ADCAM_DATA_ROOT"),
        ({"labels": "xml"}, "all", "needs source='voc'"),
        ({"labels": "gone.csv"}, "all", "gone.csv"),
        ({}, "many", r"many\.txt: cannot be read as a list"),
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
    cfg = load_settings(path, parse_overrides(texts))
    with pytest.raises(ValueError, match=r"4 images, but train_aug has 10582"):
        train_classifier(cfg, tmp_path / "run")

    counts = "data.expected_counts={'train_aug': 4, 'val': 2}"
    cfg = load_settings(path, parse_overrides([*texts, counts]))
    assert cfg.train.amp == "bfloat16"
    file = load_classifier(train_classifier(cfg, tmp_path / "run"))
    assert file.class_set.classes == VOC_CLASSES
    assert file.info["train_images"] == 4
    assert file.info["train_counts"]["train_aug"]["aeroplane"] == 1
    (log,) = tmp_path.glob("run/*/vis_data/scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1]
    assert cfg.to_dict() == load_settings(path, parse_overrides([*texts, counts])).to_dict()


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
        train_classifier(load_settings(path, parse_overrides(texts)), tmp_path / "run")

    counts = "data.expected_counts={'train2014_objects': 2, 'val2014': 3}"
    cfg = load_settings(path, parse_overrides([*texts, counts]))
    checkpoint = train_classifier(cfg, tmp_path / "run")
    file = load_classifier(checkpoint)
    assert file.class_set.classes == COCO_CLASSES and file.class_set.num_classes == 81
    assert file.info["train_counts"]["train2014_objects"]["cat"] == 1

    # The rest knows COCO by its folders of images and masks.
    labeler = PseudoLabeler.from_checkpoint(checkpoint, device="cpu", views=TestViews(scales=(32,)))
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
    cfg = load_settings(path, {"train.epochs": epochs})
    fitted = fit_schedulers(cfg.param_scheduler, cfg.train.epochs, by_epoch=True)
    assert fitted[0]["type"] == "LinearLR"
    assert fitted[0]["end"] == min(5, epochs)
    assert [entry["type"] for entry in fitted[1:]] == (["CosineAnnealingLR"] if epochs > 5 else [])
    assert all(entry["end"] <= epochs for entry in fitted)
    assert fitted[-1]["end"] == epochs
    assert "end" not in cfg.param_scheduler[1]
    steps = [{"by_epoch": False, "end": 8}, {"by_epoch": False, "begin": 8}]
    assert fit_schedulers(steps, epochs, by_epoch=True) == steps  # mmengine counts their steps
