"""Training with one class an image: CUB, ILSVRC and wsolevaluation in miniature, every config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adcam.cli import main
from adcam.data.augment import EvalDataset
from adcam.data.sources import build_dataset
from adcam.errors import AdcamError
from adcam.labeling.labeler import PseudoLabeler
from adcam.models.classifier import Classifier
from adcam.models.classifier_file import load_classifier
from adcam.models.nonlocal_cam import NonlocalCAM
from adcam.settings import NonlocalCamSettings, Settings, TokenCamSettings, load_settings
from adcam.training.classifier import train_classifier

# Warnings raised inside mmengine and tensorboard are theirs.
pytestmark = pytest.mark.filterwarnings("default")

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [
    path.relative_to(ROOT).as_posix()
    for folder in ("cub", "ilsvrc")
    for path in sorted((ROOT / "configs" / folder).glob("*_*e_*.py"))
]
COLOURS = ((200, 40, 40), (40, 40, 200))
SMALL_VIT = {"patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3}
SMALL_RESNET = {"channels": (8, 12, 16, 20)}


def write_image(path: Path, class_id: int, seed: int) -> None:
    """A square of the class' colour on noise, 40×50 pixels."""
    rng = np.random.default_rng(seed)
    img = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    img[10:30, 12:36] = COLOURS[class_id]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(img).save(path, format="JPEG")


def write_cub(root: Path) -> None:
    """Two birds, eight images each, every other one for training."""
    folder = root / "CUB_200_2011"
    rows = [(i, i % 2, f"00{i % 2 + 1}.Bird/Bird_{i:04}.jpg") for i in range(16)]
    for i, class_id, name in rows:
        write_image(folder / "images" / name, class_id, i)
    tables = {
        "classes.txt": "1 001.Bird\n2 002.Bird\n",
        "images.txt": "".join(f"{i + 1} {name}\n" for i, _, name in rows),
        "image_class_labels.txt": "".join(f"{i + 1} {c + 1}\n" for i, c, _ in rows),
        "train_test_split.txt": "".join(f"{i + 1} {i // 2 % 2}\n" for i, _, _ in rows),
        "bounding_boxes.txt": "".join(f"{i + 1} 12.0 10.0 24.0 20.0\n" for i, _, _ in rows),
    }
    for name, text in tables.items():
        (folder / name).write_text(text)


def write_ilsvrc(root: Path) -> None:
    """Two synsets, four images each for training and for val."""
    folder = root / "ILSVRC"
    synsets = ("n01440764", "n02012849")
    lists, data = folder / "ImageSets" / "CLS-LOC", folder / "Data" / "CLS-LOC"
    lists.mkdir(parents=True)
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench\nn02012849 crane\n")
    train = [f"{synsets[i % 2]}/{synsets[i % 2]}_{i}" for i in range(8)]
    val = [f"ILSVRC2012_val_{i + 1:08}" for i in range(8)]
    for split, names in (("train_cls", train), ("val", val)):
        (lists / f"{split}.txt").write_text("".join(f"{n} {i}\n" for i, n in enumerate(names, 1)))
    annotations = folder / "Annotations" / "CLS-LOC" / "val"
    annotations.mkdir(parents=True)
    for i in range(8):
        write_image(data / "train" / f"{train[i]}.JPEG", i % 2, i)
        write_image(data / "val" / f"{val[i]}.JPEG", i % 2, 8 + i)
        (annotations / f"{val[i]}.xml").write_text(
            f"<annotation><object><name>{synsets[i % 2]}</name><bndbox><xmin>12</xmin>"
            "<ymin>10</ymin><xmax>36</xmax><ymax>30</ymax></bndbox></object></annotation>"
        )


def write_wsol(root: Path, name: str) -> None:
    """Two classes, eight images in each split of wsolevaluation's folders."""
    for number, split in enumerate(("train", "val", "test")):
        ids = [f"{split}/{i}.jpg" for i in range(8)]
        for i, image_id in enumerate(ids):
            write_image(root / "dataset" / name / image_id, i % 2, 8 * number + i)
        folder = root / "metadata" / name / split
        folder.mkdir(parents=True)
        tables = {
            "image_ids.txt": "{}",
            "class_labels.txt": "{},{label}",
            "image_sizes.txt": "{},50,40",
            "localization.txt": "{},12,10,36,30",
        }
        for table, line in tables.items():
            text = "".join(line.format(n, label=i % 2) + "\n" for i, n in enumerate(ids))
            (folder / table).write_text(text)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layouts below one folder, as `ADCAM_DATA_ROOT`; read only."""
    root = tmp_path_factory.mktemp("data")
    write_cub(root)
    write_ilsvrc(root)
    for name in ("CUB", "ILSVRC"):
        write_wsol(root, name)
    return root


@pytest.fixture
def load(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """A config of the repository, with a network and a schedule of seconds."""
    monkeypatch.setenv("ADCAM_DATA_ROOT", str(data_root))

    def load_small(path: str, **overrides: Any) -> Settings:
        settings = load_settings(ROOT / path)
        changes: dict[str, Any] = {
            "model.weights": None,
            "train": {"epochs": 1, "img_size": 32, "resize": 36, "batch_size": 4, "num_workers": 0},
        }
        if isinstance(settings.model, NonlocalCamSettings):
            changes |= {"model.backbone": "resnet18", "model.backbone_kwargs": SMALL_RESNET}
        else:
            changes |= {"model.img_size": 32, "model.backbone_kwargs": SMALL_VIT}
        if settings.data.source != "wsol":
            changes["data.expected_counts"] = {}
        settings = settings.with_changes(changes)
        return settings.with_changes(overrides) if overrides else settings

    return load_small


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_trains_and_its_maps_come_out(
    path: str, tmp_path: Path, load: Callable[..., Settings]
) -> None:
    settings = load(path)
    loaded = load_classifier(train_classifier(settings, tmp_path))
    assert loaded.class_set.num_fg_classes == 2
    assert 0 <= loaded.info["val_top1"] <= 100
    assert loaded.info["chosen_on"] == (
        None if settings.train.choose == "last" else "train-fullsup"
    )
    is_cnn = isinstance(loaded.network, NonlocalCAM)
    method = "cam" if is_cnn else "ad_cam"
    labeler = PseudoLabeler.from_checkpoint(tmp_path / "classifier.safetensors", method=method)
    img = np.zeros((40, 50, 3), np.uint8)
    passes = labeler.map_maker.run([img])
    (maps,) = labeler.map_maker.compute_maps(passes, [(1,)], [img])
    assert maps.score_maps.shape == (1, 40, 50)
    if not is_cnn:
        return
    coupled = partial(
        PseudoLabeler.from_checkpoint, tmp_path / "classifier.safetensors", method="ts_cam"
    )
    if loaded.network.attention is None:
        with pytest.raises(ValueError, match=r"resnet18: .*no attention to read; method 'cam'"):
            coupled()
    else:
        maker = coupled().map_maker
        (maps,) = maker.compute_maps(maker.run([img]), [(1,)], [img])
        assert maps.score_maps.shape == (1, 40, 50)


@pytest.mark.parametrize(
    ("path", "epochs", "lr", "drops", "batch_size"),
    [
        ("configs/cub/ts-cam_deit-small_60e_cub.py", 60, 5e-5, (30, 60), 128),
        ("configs/ilsvrc/ts-cam_deit-small_20e_ilsvrc.py", 20, 5e-4, (10, 12, 20), 256),
    ],
)
def test_ts_cams_schedules(
    path: str, epochs: int, lr: float, drops: tuple[int, ...], batch_size: int
) -> None:
    settings = load_settings(ROOT / path)
    assert (settings.train.epochs, settings.train.batch_size) == (epochs, batch_size)
    assert (settings.train.resize, settings.train.img_size) == (256, 224)
    optimizer = settings.optim_wrapper["optimizer"]
    assert optimizer == {"type": "AdamW", "lr": lr, "weight_decay": 0.05}
    assert isinstance(settings.model, TokenCamSettings) and settings.model.drop_path_rate == 0.1
    (steps,) = settings.param_scheduler
    assert steps == {"type": "MultiStepLR", "milestones": list(drops), "gamma": 0.1}
    assert settings.train.cls_token_loss == 0


def test_the_rate_drops_where_the_schedule_says(
    tmp_path: Path, load: Callable[..., Settings]
) -> None:
    settings = load(
        "configs/ilsvrc/ts-cam_deit-tiny_20e_ilsvrc.py",
        **{
            "train.epochs": 4,
            "train.log_interval": 1,
            "param_scheduler.0.milestones": [1, 3],
        },
    )
    train_classifier(settings, tmp_path)
    (log,) = tmp_path.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    rates = [line["lr"] for line in lines if "loss" in line]
    assert rates == pytest.approx([5e-4] * 2 + [5e-5] * 4 + [5e-6] * 2)


def test_cross_entropy_learns_two_colours(tmp_path: Path, load: Callable[..., Settings]) -> None:
    optimizer = {"type": "AdamW", "lr": 5e-3}
    changes = {
        "train.epochs": 8,
        "train.log_interval": 1,
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": optimizer, "_delete_": True},
        "param_scheduler": [],
    }
    settings = load("configs/cub/inca_resnet50_50e_cub.py", **changes)
    loaded = load_classifier(train_classifier(settings, tmp_path))
    (log,) = tmp_path.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in (line for line in lines if "loss" in line):
        parts = ("loss_patches", "loss_contrastive", "loss_consistency")
        assert line["loss"] == pytest.approx(sum(line[part] for part in parts), abs=1e-4)
    scores = [line["top1"] for line in lines if "top1" in line]
    assert loaded.info["val_top1"] == max(scores)
    assert loaded.info["epoch"] == 1 + scores.index(max(scores))
    assert max(scores) > 80


@pytest.mark.parametrize(
    ("config", "method"),
    [("ts-cam_deit-tiny_60e_cub", ""), ("inca_resnet50_50e_cub", " --method cam")],
)
def test_the_command_says_how_boxes_come_next(
    config: str,
    method: str,
    tmp_path: Path,
    load: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = load(f"configs/cub/{config}.py")
    monkeypatch.setattr("adcam.cli.train.load_settings", lambda args: settings)
    assert main(["train", f"cub/{config}", "--work-dir", str(tmp_path)]) == 0
    path = tmp_path / "classifier.safetensors"
    said = f"next: adcam boxes IMAGES --checkpoint {path}{method} --threshold T --out boxes.csv"
    assert capsys.readouterr().err.splitlines()[-1] == said


@pytest.mark.parametrize(("choose", "chosen_on"), [("last", None), ("best", "oracle")])
def test_which_epoch_is_kept_and_what_that_is_called(
    choose: str, chosen_on: str | None, tmp_path: Path, load: Callable[..., Settings]
) -> None:
    changes = {"train.choose": choose, "train.epochs": 3}
    # No epoch is better than the first.
    changes["optim_wrapper.optimizer.lr"] = 0.0
    settings = load("configs/cub/ts-cam_deit-tiny_60e_cub.py", **changes)
    info = load_classifier(train_classifier(settings, tmp_path)).info
    assert info["chosen_on"] == chosen_on
    assert info["epoch"] == (3 if choose == "last" else 1)


def test_top1_equals_its_definition_and_unreadable_images_do_not_count(
    data_root: Path, tmp_path: Path, load: Callable[..., Settings]
) -> None:
    shutil.copytree(data_root, tmp_path / "data")
    root = {"data.root": str(tmp_path / "data" / "dataset" / "CUB")}
    settings = load("configs/cub/inca_resnet50_50e_cub.py", **root)
    (tmp_path / "data" / "dataset" / "CUB" / "val" / "3.jpg").write_bytes(b"")
    loaded = load_classifier(train_classifier(settings, tmp_path / "run"))
    images = build_dataset(settings.data, "train-fullsup")
    view = EvalDataset(images, img_size=32)
    model = Classifier(loaded.network).eval()
    right = []
    for i, record in enumerate(images.records):
        if record.img_id != "val/3":
            with torch.no_grad():
                guess = int(model(view[i]["inputs"][None]).argmax())
            right.append((guess,) == record.class_ids)
    assert len(right) == 7
    assert loaded.info["val_top1"] == pytest.approx(100 * np.mean(right))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"task": "detection"}, "task must be 'segmentation' or 'localization', got 'detection'"),
        ({"train.choose": "first"}, r"train\.choose must be 'best' or 'last', got 'first'"),
        ({"model.kind": "cnn"}, r"model\.kind must be .*, got 'cnn'"),
        ({"model.img_size": 32}, "model: there is no key 'img_size'"),
        ({"inca.margins": 2.0}, "inca: there is no key 'margins'; did you mean 'margin'"),
        ({"inca.drop_rate": 2.0}, r"inca\.drop_rate must be at least 0 and at most 1, got 2\.0"),
        ({"train.resize": 16}, "resize must be at least img_size 32, got 16"),
        ({"train.cls_token_loss": 1.0}, "no class token"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    overrides: dict[str, Any], message: str, tmp_path: Path, load: Callable[..., Settings]
) -> None:
    with pytest.raises(ValueError, match=message):
        train_classifier(
            load("configs/cub/inca_resnet50_50e_cub.py", **overrides), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_splits_of_different_classes_are_refused(
    data_root: Path, tmp_path: Path, load: Callable[..., Settings]
) -> None:
    shutil.copytree(data_root, tmp_path / "data")
    labels = tmp_path / "data" / "metadata" / "CUB" / "val" / "class_labels.txt"
    labels.write_text(labels.read_text().replace("val/3.jpg,1", "val/3.jpg,2"))
    root = {"data.root": str(tmp_path / "data" / "dataset" / "CUB")}
    settings = load("configs/cub/inca_resnet50_50e_cub.py", **root)
    with pytest.raises(ValueError, match="'train-weaksup' has 2 classes, 'train-fullsup' has 3"):
        train_classifier(settings, tmp_path / "run")


def test_several_classes_an_image_are_refused(tmp_path: Path, mini_settings: Settings) -> None:
    settings = mini_settings.with_changes({"task": "localization"})
    with pytest.raises(AdcamError, match=r"'localization' needs one class an image; \d+ of 40"):
        train_classifier(settings, tmp_path / "run")
