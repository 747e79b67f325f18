"""The whole recipe on miniature data sets: what runs, is kept, goes on, and is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniatures import write_coco
from mmengine.config import Config
from PIL import Image

from adcam.cli import main
from adcam.convert.data_sets import convert_coco
from adcam.data.png import read_mask, voc_palette, write_mask
from adcam.data.sources import build_classes
from adcam.data.voc import VOC_CLASSES
from adcam.errors import AdcamError
from adcam.labeling.labeler_options import LabelerOptions, options_from_settings
from adcam.models.classifier_file import load_classifier, save_classifier
from adcam.recipe import run as recipe_module
from adcam.recipe.run import OF_REFINEMENT, STAGES, load_recipe, open_recipe
from adcam.recipe.stages import remake_report, run_stages
from adcam.settings import Settings, load_settings
from adcam.training.segmenter import load_segmentation_settings

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("mmseg")

# Warnings raised inside mmengine, mmseg and tensorboard are theirs.
pytestmark = pytest.mark.filterwarnings("default")

ALL = [item.name for item in STAGES if item.name not in OF_REFINEMENT]
TRAIN = ("2007_000032", "2007_000039", "2007_000063")
AUG = (*TRAIN, "2008_000008", "2011_003276")
VAL = ("2007_000033", "2007_000042")

NETWORK = """
data = dict(root="", train="train", val="val")
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3, bgr_to_rgb=True),
    backbone=dict(
        type="TimmViT",
        name="vit_tiny_patch16_224",
        img_size=32,
        backbone_kwargs=dict(patch_size=8, embed_dim=24, depth=2, num_heads=3),
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=24,
        in_index=0,
        channels=8,
        num_convs=1,
        concat_input=False,
        num_classes=@CLASSES@,
        loss_decode=dict(type="ConfidenceCrossEntropy"),
    ),
    test_cfg=dict(mode="whole"),
)
train = dict(
    max_iters=2, batch_size=2, num_workers=0, crop_size=(32, 32), amp="none", seed=0,
    log_interval=1,
)
train_pipeline = [dict(type="RandomCrop", crop_size=(32, 32)), dict(type="RandomFlip", prob=0.5)]
test = dict(scales=[1.0], flip=False, crf="none", labels="none")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False)]
"""


def write_voc12(root: Path) -> None:
    """VOC 2012 with SBD in its exact layout: five training images, two of val, none square."""
    lists = {"train": TRAIN, "train_aug": AUG, "val": VAL}
    for name, img_ids in lists.items():
        path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{img_id}\n" for img_id in img_ids))
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir()
    for seed, img_id in enumerate((*AUG, *VAL)):
        rng = np.random.default_rng(seed)
        img = rng.integers(0, 256, (40 + seed, 56, 3), dtype=np.uint8)
        Image.fromarray(img).save(root / "JPEGImages" / f"{img_id}.jpg")
        value = 1 + seed % 3
        (root / "Annotations" / f"{img_id}.xml").write_text(
            f"<annotation><object><name>{VOC_CLASSES[value - 1]}</name>"
            "<difficult>0</difficult></object></annotation>"
        )
        mask = np.zeros(img.shape[:2], np.uint8)
        mask[10:30, 8:40] = value
        mask[9] = 255
        if img_id in (*TRAIN, *VAL):
            write_mask(root / "SegmentationClass" / f"{img_id}.png", mask, voc_palette())
        if img_id in AUG:
            write_mask(root / "SegmentationClassAug" / f"{img_id}.png", mask, voc_palette())


def write_network(folder: Path, num_classes: int) -> str:
    """The config of a tiny network with so many outputs."""
    path = folder / f"network_{num_classes}.py"
    path.write_text(NETWORK.replace("@CLASSES@", str(num_classes)))
    return str(path)


def make_config(settings: Settings, folder: Path) -> Config:
    """The recipe on a miniature VOC 2012 in ``folder``, written there."""
    write_voc12(folder / "VOC2012")
    cfg = Config(settings.to_dict())
    cfg.data = {
        "source": "voc",
        "root": str(folder / "VOC2012"),
        "classes": "voc",
        "labels": "xml",
        "train": "train_aug",
        "val": "val",
        "expected_counts": {"train": 3, "val": 2, "train_aug": 5},
    }
    cfg.train.epochs = 1
    cfg.cam = {"scales": [32]}
    cfg.mask = {"rule": "constant:0.4"}
    cfg.recipe = {
        "learn_from": "train_aug",
        "evaluate": ["train", "val"],
        "test": "val",
        "network": {"config": write_network(folder, 21)},
    }
    return cfg


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, mini_settings: Settings) -> Path:
    """A folder with VOC2012, its recipe carried out in ``work``; copied by `place`."""
    folder = tmp_path_factory.mktemp("finished")
    ran, said = run(make_config(mini_settings, folder), folder / "work")
    assert ran == ALL
    assert said.count(" s\n") >= 5
    return folder


@pytest.fixture
def place(tmp_path: Path, finished: Path) -> Path:
    """A copy of `finished` to change."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def cfg(place: Path, mini_settings: Settings) -> Config:
    """The config of `place`, to change."""
    shutil.rmtree(place / "VOC2012")
    return make_config(mini_settings, place)


@pytest.fixture
def fresh(tmp_path: Path, mini_settings: Settings) -> Config:
    """A config whose recipe was not carried out anywhere."""
    return make_config(mini_settings, tmp_path)


def run(config: Config, work_dir: Path, **choices: Any) -> tuple[list[str], str]:
    """Names of the stages that ran, and what was said."""
    lines: list[str] = []
    settings = Settings(config.to_dict())
    recipe = open_recipe(settings, work_dir, title="mini", command="adcam run mini.py")
    ran = run_stages(recipe, log=lines.append, **choices)
    return ran, "\n".join([*lines, ""])


def stage(work_dir: Path, name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((work_dir / name / "stage.json").read_text())
    return values


def test_voc12_goes_through_every_stage(finished: Path) -> None:
    work = finished / "work"
    made = {path.stem for path in (work / "generate" / "masks").glob("*.png")}
    assert made == {*AUG, *VAL}
    assert stage(work, "generate")["outputs"]["images"] == 7  # train_aug holds train
    predicted = read_mask(work / "test" / "masks" / f"{VAL[1]}.png")
    truth = read_mask(finished / "VOC2012" / "SegmentationClass" / f"{VAL[1]}.png")
    assert predicted.shape == truth.shape
    scores = json.loads((work / "test" / "scores.json").read_text())
    told = json.loads((work / "test" / "test_val.json").read_text())
    assert scores["miou"] == pytest.approx(told["miou"], abs=1e-9)  # both count alike
    assert scores["num_images"] == 2
    page = (work / "report" / "report.html").read_text("utf-8")
    for word in (
        *("Network against pseudo masks", "pseudo masks, val", "adcam run mini.py"),
        *("2008_000008", "constant:0.4", stage(work, "train")["outputs"]["classifier"]),
    ):
        assert (word in page) == (word != "2008_000008"), word  # pictures are of val


def test_a_finished_recipe_is_kept(place: Path, cfg: Config) -> None:
    before = {p: p.stat().st_mtime_ns for p in (place / "work").rglob("*") if p.is_file()}
    ran, said = run(cfg, place / "work")
    assert ran == []
    assert said.count("nothing changed, kept") == len(ALL)
    after = {p: p.stat().st_mtime_ns for p in (place / "work").rglob("*") if p.is_file()}
    written = {p.name for p in after if after[p] != before.get(p)}
    assert written == {"recipe.json"}


def test_the_report_is_made_again_from_the_files(place: Path) -> None:
    page = place / "work" / "report" / "report.html"
    before = page.read_text("utf-8")
    page.unlink()
    assert remake_report(load_recipe(place / "work")) == page
    assert page.read_text("utf-8") == before
    with pytest.raises(ValueError, match=r"recipe\.json: not the record of `adcam run`"):
        load_recipe(place)


@pytest.mark.parametrize(
    ("key", "value", "names", "said"),
    [
        ("mask.rule", "constant:0.9", ALL[1:], "labeler.rule"),
        ("recipe.network.options", {"test.flip": True}, ["test", "report"], "test.flip: false ->"),
        ("recipe.network.options", {"train.max_iters": 3}, ALL[3:], "train.max_iters: 2 -> 3"),
        (
            *("recipe.network.options", {"train.confidence": True}),
            *(ALL[3:], "train.confidence"),
        ),
        ("recipe.evaluate", ["train"], ["generate", "evaluate", "report"], "truth.val.images"),
    ],
)
def test_a_changed_config_is_noticed(
    place: Path, cfg: Config, key: str, value: Any, names: list[str], said: str
) -> None:
    cfg.merge_from_dict({key: value})
    ran, told = run(cfg, place / "work")
    assert ran == names
    assert said in told
    assert f"· {names[0]}: " in told
    assert run(cfg, place / "work")[0] == []


def test_a_recipe_with_a_refined_classifier(place: Path, cfg: Config) -> None:
    """Switched on in a finished folder, it adds two stages; off again, they play no part."""
    work = place / "work"
    before = stage(work, "generate")["outputs"]["files"]
    cfg.recipe.refine, cfg.recipe.network = True, None
    cfg.refine = {"scale": 32, "epochs": 1, "batch_size": 2, "rule": "constant:0.3"}
    ran, _ = run(cfg, work)
    assert ran == ["maps", "refine", "generate", "evaluate", "report"]
    made = {path.stem for path in (work / "maps" / "maps").glob("*.npz")}
    assert made == set(AUG)  # what is learnt from, and nothing else
    config = json.loads((work / "generate" / "config.json").read_text())["labeler"]
    assert (config["method"], config["rule"]) == ("refined", "constant:0.3")
    refined = stage(work, "refine")["outputs"]["classifier"]
    assert stage(work, "generate")["inputs"]["classifier"] == refined
    assert run(cfg, work)[0] == []
    assert remake_report(load_recipe(work)).is_file()

    for scale in (40, 32):  # other maps are learnt from again
        cfg.cam.scales = [scale]
        assert run(cfg, work, only=["maps", "refine"])[0] == ["maps", "refine"]
    cfg.refine.rule = "constant:0.4"
    assert run(cfg, work)[0][0] == "generate"
    cfg.refine.seed = 1
    ran, _ = run(cfg, work, skip=["refine"])
    assert not {"refine", "generate"} & set(ran)
    ran, said = run(cfg, work)
    assert ran[:2] == ["refine", "generate"] and "config.seed: 0 -> 1" in said
    (work / "refine" / "refined.safetensors").unlink()
    assert "generate" not in run(cfg, work)[0]  # the same bytes again

    cfg.recipe.refine = False
    assert run(cfg, work)[0][:2] == ["generate", "evaluate"]
    assert stage(work, "generate")["outputs"]["files"] == before


def test_changed_files_are_noticed(place: Path, cfg: Config) -> None:
    voc, work = place / "VOC2012", place / "work"
    truth = read_mask(voc / "SegmentationClass" / f"{VAL[0]}.png").copy()
    truth[0, 0] = 1
    write_mask(voc / "SegmentationClass" / f"{VAL[0]}.png", truth, voc_palette())
    ran, said = run(cfg, work)
    assert ran == ["evaluate", "test", "report"]
    assert "truth.val.masks" in said

    (work / "train" / "classifier.safetensors").write_bytes(b"torn")
    ran, said = run(cfg, work)
    assert ran[:2] == ["train", "generate"]
    assert "train/classifier.safetensors has changed since it was written" in said

    xml = voc / "Annotations" / f"{AUG[3]}.xml"
    xml.write_text(xml.read_text().replace("aeroplane", "bird"))
    ran, said = run(cfg, work, only=["train"])
    assert ran == ["train"]
    assert "images.train_aug.labels" in said


def test_an_edited_or_deleted_pseudo_mask_is_named_and_made_again(place: Path, cfg: Config) -> None:
    work = place / "work"
    scored, learned = (work / "generate" / "masks" / f"{i}.png" for i in (VAL[0], AUG[3]))
    before = scored.read_bytes(), learned.read_bytes()
    write_mask(scored, np.zeros_like(read_mask(scored)), voc_palette())
    learned.unlink()
    ran, said = run(cfg, work)
    assert ran == ["generate"]  # which gives the same bytes, so that nothing follows
    for clause in (f"{VAL[0]}.png has changed since it was written", f"{AUG[3]}.png is gone"):
        assert f"generate/masks/{clause}" in said
    assert (scored.read_bytes(), learned.read_bytes()) == before

    # A user's own mask is taken where he skips the stage, and the report says so.
    mine = np.ones_like(read_mask(learned))
    write_mask(learned, mine, voc_palette())
    ran, said = run(cfg, work, skip=["generate"])
    assert ran[0] == "segment"
    assert f"generate: left out and taken as it is, though generate/masks/{AUG[3]}.png" in said
    assert "changed: masks" in said
    page = (work / "report" / "report.html").read_text("utf-8")
    assert f"generate (generate/masks/{AUG[3]}.png has changed since it was written)" in page
    learned.unlink()
    with pytest.raises(AdcamError, match=rf"generate/masks/{AUG[3]}\.png is gone; run 'generate'"):
        run(cfg, work, only=["evaluate"])


def test_killed_between_stages_and_inside_one(
    fresh: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    with monkeypatch.context() as patch:

        def killed(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(recipe_module, "test_segmenter", killed)
        with pytest.raises(KeyboardInterrupt):
            run(fresh, work)
    assert stage(work, "test")["state"] == "running"
    assert run(fresh, work)[0] == ["test", "report"]

    # Inside the training of the network, after its last checkpoint.
    record = stage(work, "segment")
    digest = record["outputs"]["files"]["segmenter.safetensors"]
    (work / "segment" / "stage.json").write_text(
        json.dumps({**record, "state": "running", "outputs": {}})
    )
    (work / "segment" / "segmenter.safetensors").unlink()
    ran, said = run(fresh, work)
    assert ran == ["segment"]  # which gives the same bytes, so that nothing follows
    assert "segment: resumes where it stopped" in said
    assert stage(work, "segment")["outputs"]["files"]["segmenter.safetensors"] == digest

    # Between the renaming of a folder and its removal.
    (work / "evaluate").replace(work / ".evaluate.discarded")
    assert run(fresh, work)[0] == ["evaluate"]
    assert not (work / ".evaluate.discarded").exists()


def test_redo_changes_nothing_after_it_if_it_gives_the_same(place: Path, cfg: Config) -> None:
    ran, said = run(cfg, place / "work", redo=["generate"])
    assert ran == ["generate"]
    assert "generate: make pseudo masks again, as asked for" in said


def test_only_and_skip(fresh: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    with pytest.raises(ValueError, match=r"'test' needs the result of 'segment', which is left"):
        run(fresh, work, skip=["segment"])
    with pytest.raises(ValueError, match=r"'segment' needs the result of 'generate'"):
        run(fresh, work, only=["segment"])
    assert not work.exists()

    monkeypatch.setattr(recipe_module, "why_not_importable", lambda module: "not installed; pip …")
    with pytest.raises(ValueError, match=r"not installed.*with --skip segment test"):
        run(fresh, work)
    ran, _ = run(fresh, work, skip=["segment", "test"])
    assert ran == ["train", "generate", "evaluate", "report"]
    page = (work / "report" / "report.html").read_text("utf-8")
    assert "Pseudo masks from image labels" in page
    assert "Network against" not in page

    # What is skipped stays as it is, up to date or not.
    fresh.mask.rule = "constant:0.9"
    assert run(fresh, work, skip=["generate", "segment", "test"])[0] == ["report"]
    page = (work / "report" / "report.html").read_text("utf-8")
    assert "since it was skipped: generate." in page
    assert run(fresh, work, only=["generate"])[0] == ["generate"]


def test_a_recipe_without_a_network_and_with_a_classifier_given(
    fresh: Config, tmp_path: Path, finished: Path
) -> None:
    del fresh.recipe["network"], fresh.recipe["test"]
    fresh.recipe.classifier = str(finished / "work" / "train" / "classifier.safetensors")
    ran, _ = run(fresh, tmp_path / "work")
    assert ran == ["train", "generate", "evaluate", "report"]
    assert not (tmp_path / "work" / "train" / "classifier.safetensors").exists()
    made, known = tmp_path / "work" / "generate", finished / "work" / "generate"
    assert all(
        path.read_bytes() == (made / "masks" / path.name).read_bytes()
        for path in (known / "masks").glob("*.png")
    )


@pytest.mark.parametrize(
    ("cam", "views"),
    [
        ({}, {"scales": [48, 32], "flip": True, "keep_ratio": False}),
        ({"dtype": "bfloat16"}, {"scales": [48, 32], "flip": True, "keep_ratio": False}),
        ({"scales": [32]}, {"scales": [32], "flip": False, "keep_ratio": True}),
    ],
)
def test_a_given_classifier_is_used_at_the_views_that_it_names(
    fresh: Config, tmp_path: Path, tiny_checkpoint: Path, cam: dict[str, Any], views: dict[str, Any]
) -> None:
    found, path = load_classifier(tiny_checkpoint), tmp_path / "views.safetensors"
    named = {"scales": [48, 32], "flip": True, "keep_ratio": False}
    save_classifier(path, found.network, found.network_options, found.class_set, {}, views=named)
    del fresh.recipe["network"], fresh.recipe["test"]
    fresh.recipe.classifier, fresh.cam = str(path), cam
    recipe = open_recipe(Settings(fresh.to_dict()), tmp_path / "work")
    assert asdict(recipe.labeler_options["views"]) == {**views, "scales": tuple(views["scales"])}
    # What the refined classifier, and the report that is made again, go by.
    assert recipe.settings.cam.views == recipe.labeler_options["views"]
    assert recipe.settings.refine.scale == (448 if "scales" in cam else 48)
    assert recipe.settings.cam.dtype == cam.get("dtype", "float32")


def test_the_network_starts_from_the_classifier(
    fresh: Config, tmp_path: Path, finished: Path
) -> None:
    fresh.recipe.network.from_classifier = True
    fresh.recipe.classifier = str(finished / "work" / "train" / "classifier.safetensors")
    assert run(fresh, tmp_path / "work")[0] == ALL
    weights = stage(tmp_path / "work", "segment")["inputs"]["config"]["weights"]
    assert weights == f"file {stage(finished / 'work', 'train')['outputs']['classifier']}"


def test_an_unreadable_image_is_named_and_the_rest_goes_on(
    place: Path, cfg: Config, finished: Path
) -> None:
    work = place / "work"
    shutil.rmtree(work / "generate")
    image = place / "VOC2012" / "JPEGImages" / f"{AUG[4]}.jpg"
    whole = image.read_bytes()
    image.write_bytes(b"x" * len(whole))
    with pytest.raises(ValueError, match=r"1 of 7 images have no mask, such as 2011_003276"):
        run(cfg, work)
    image.write_bytes(whole)
    ran, said = run(cfg, work)
    assert ran == ["generate"]
    assert "generate: resumes where it stopped" in said


def test_strangers_and_damaged_records_are_refused(fresh: Config, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "train"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"train holds files, but no stage\.json"):
        run(fresh, tmp_path / "work")
    (folder / "stage.json").write_text('{"state": "done"}')
    with pytest.raises(ValueError, match=r"stage\.json is damaged"):
        run(fresh, tmp_path / "work")
    assert (folder / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"_delete_": True, "learn_from": "train"}}, "recipe lacks 'evaluate'"),
        ({"recipe.test": ["val"]}, r"recipe\.test must be text, got \['val'\]"),
        ({"recipe.tests": "val"}, r"recipe: there is no key 'tests'; did you mean 'test'"),
        ({"recipe.network.file": "x.py"}, r"recipe\.network: there is no key 'file'"),
        ({"recipe.network.config": "gone.py"}, r"gone\.py: no such config"),
        ({"recipe.network.options": {"trian.max_iters": 3}}, "no section 'trian'"),
        (
            {"recipe.network.options": {"model.decode_head.num_classes": 20}},
            "num_classes is 20, but the data has 21 classes",
        ),
        ({"recipe.learn_from": "train_all"}, "train_all"),
        ({"mask.rules": "constant:0.5"}, r"mask: there is no key 'rules'; did you mean 'rule'"),
        ({"recipe.test": "train_aug", "data.mask_dir": "SegmentationClass"}, "are missing"),
    ],
)
def test_bad_recipes_are_refused_before_anything_is_written(
    fresh: Config, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    fresh.merge_from_dict(change)
    with pytest.raises(ValueError, match=message):
        run(fresh, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_stage_that_does_not_exist(fresh: Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no stage 'tain'; the stages are train, generate"):
        run(fresh, tmp_path / "work", redo=["tain"])
    with pytest.raises(ValueError, match="--redo names stages that are left out: test"):
        run(fresh, tmp_path / "work", redo=["test"], skip=["test"])
    with pytest.raises(ValueError, match="no section 'recipe'"):
        open_recipe(Settings({}), tmp_path)


def test_the_command_line(
    place: Path, cfg: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    cfg.dump("mini.py")
    assert main(["run", "mini.py", "--work-dir", "work", "--only", "train", "evaluate"]) == 0
    said = capsys.readouterr()
    assert said.err.count("nothing changed, kept") == 2
    assert said.out == "report: work/report/report.html\n"
    assert main(["report", "work"]) == 0
    assert capsys.readouterr().out == "report: work/report/report.html\n"
    page = Path("work/report/report.html").read_text("utf-8")
    assert "mini: masks from labels, a network from masks" in page
    assert main(["run", "mini.py", "--work-dir", "new", "--only", "test"]) == 2
    assert "'test' needs the result of 'segment'" in capsys.readouterr().err


def test_coco14_goes_through_every_stage(tmp_path: Path, mini_cfg: Config) -> None:
    pytest.importorskip("pycocotools")
    coco = tmp_path / "coco14"
    write_coco(coco, "train2014", "val2014")
    for split in ("train2014", "val2014"):
        convert_coco(coco / "annotations" / f"instances_{split}.json", coco, partial=True)
    mini_cfg.data = {
        "source": "coco14",
        "root": str(coco),
        "classes": "coco",
        "train": "train2014_objects",
        "val": "val2014",
        "expected_counts": {"train2014_objects": 2, "val2014": 3},
    }
    mini_cfg.train.epochs = 1
    mini_cfg.cam = {"scales": [32]}
    mini_cfg.mask = {"two_threshold": [0.3, 0.6]}
    mini_cfg.recipe = {
        "learn_from": "train2014_objects",
        "evaluate": ["train2014_objects", "val2014"],
        "test": "val2014",
        "network": {"config": write_network(tmp_path, 81), "options": {"train.confidence": True}},
    }
    ran, _ = run(mini_cfg, tmp_path / "work")
    assert ran == ALL
    scores = json.loads((tmp_path / "work" / "test" / "scores.json").read_text())
    assert np.array(scores["confusion"]).shape == (81, 82)
    assert scores["num_images"] == 3
    assert len(scores["per_image"]) == 2  # one image shows no class
    assert (tmp_path / "work" / "generate" / "maps").is_dir()  # asked for by train.confidence
    page = (tmp_path / "work" / "report" / "report.html").read_text("utf-8")
    assert "toothbrush" in page
    assert run(mini_cfg, tmp_path / "work")[0] == []


@pytest.mark.parametrize(
    "name",
    [
        "voc12/adcam_deit-small_deeplabv3plus.py",
        "coco14/adcam_deit-small_deeplabv3plus.py",
        "voc_animals/adcam_deit-tiny_fcn.py",
        "shapes/adcam_shapes-vit_demo.py",
    ],
)
def test_configs_of_this_project_name_networks_that_fit(name: str) -> None:
    settings: Settings = load_settings(ROOT / "configs" / name)
    section = settings.recipe.network
    assert section is not None
    network = load_segmentation_settings(section.config, section.options)
    num_classes = build_classes(settings.data.classes or "voc").num_fg_classes + 1
    assert network.model["decode_head"]["num_classes"] == num_classes
    assert options_from_settings(settings.cam, settings.mask).keys() <= {
        f.name for f in fields(LabelerOptions)
    }
