"""Training with one class an image: CUB, ILSVRC and wsolevaluation in miniature, every config."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from adcam.data.augment import EvalView
from adcam.data.sources import build_dataset
from adcam.labeling.labeler import PseudoLabeler
from adcam.models.classifier import Classifier
from adcam.models.classifier_file import load_classifier
from adcam.models.networks import build_network
from adcam.models.nonlocal_cam import NonlocalCAM
from adcam.settings import load_config
from adcam.training.classifier import import_ts_cam, train_classifier

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
def load(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """A config of the repository, with a network and a schedule of seconds."""
    monkeypatch.setenv("ADCAM_DATA_ROOT", str(data_root))

    def load_small(path: str, **overrides: Any) -> Config:
        cfg = load_config(ROOT / path)
        if "kind" in cfg.model:
            cfg.model.update(backbone="resnet18", backbone_kwargs=SMALL_RESNET)
        else:
            cfg.model.update(img_size=32, backbone_kwargs=SMALL_VIT)
        cfg.model.weights = None
        cfg.train.update(epochs=1, img_size=32, resize=36, batch_size=4, num_workers=0)
        if cfg.data.source != "wsol":
            cfg.data.expected_counts = None
        cfg.merge_from_dict(overrides)
        return cfg

    return load_small


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_trains_and_its_maps_come_out(
    path: str, tmp_path: Path, load: Callable[..., Config]
) -> None:
    cfg = load(path)
    loaded = load_classifier(train_classifier(cfg, tmp_path))
    assert loaded.class_set.num_fg_classes == 2
    assert 0 <= loaded.info["val_top1"] <= 100
    assert loaded.info["chosen_on"] == (None if cfg.train.choose == "last" else "train-fullsup")
    is_cnn = isinstance(loaded.network, NonlocalCAM)
    method = "cam" if is_cnn else "ad_cam"
    labeler = PseudoLabeler.from_checkpoint(tmp_path / "classifier.safetensors", method=method)
    passes = labeler.run_network(np.zeros((40, 50, 3), np.uint8))
    assert labeler.compute_maps(passes, (1,), (40, 50)).score_maps.shape == (1, 40, 50)
    if is_cnn:
        with pytest.raises(ValueError, match=r"resnet18: .*no attention to read; method 'cam'"):
            PseudoLabeler.from_checkpoint(tmp_path / "classifier.safetensors", method="ts_cam")


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
    cfg = load_config(ROOT / path)
    assert (cfg.train.epochs, cfg.train.batch_size) == (epochs, batch_size)
    assert (cfg.train.resize, cfg.train.img_size) == (256, 224)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", lr, 0.05)
    assert cfg.model.drop_path_rate == 0.1
    (steps,) = cfg.param_scheduler
    assert (steps.type, tuple(steps.milestones), steps.gamma) == ("MultiStepLR", drops, 0.1)
    assert cfg.train.get("cls_token_loss", 0.0) == 0


def test_the_rate_drops_where_the_schedule_says(
    tmp_path: Path, load: Callable[..., Config]
) -> None:
    cfg = load("configs/ilsvrc/ts-cam_deit-tiny_20e_ilsvrc.py")
    cfg.train.update(epochs=4, log_interval=1)
    cfg.param_scheduler[0].milestones = [1, 3]
    train_classifier(cfg, tmp_path)
    (log,) = tmp_path.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    rates = [line["lr"] for line in lines if "loss" in line]
    assert rates == pytest.approx([5e-4] * 2 + [5e-5] * 4 + [5e-6] * 2)


def test_cross_entropy_learns_two_colours(tmp_path: Path, load: Callable[..., Config]) -> None:
    cfg = load("configs/cub/inca_resnet50_50e_cub.py")
    cfg.train.update(epochs=8, log_interval=1)
    cfg.optim_wrapper = {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 5e-3}}
    cfg.param_scheduler = []
    loaded = load_classifier(train_classifier(cfg, tmp_path))
    (log,) = tmp_path.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in (line for line in lines if "loss" in line):
        parts = ("loss_patches", "loss_contrastive", "loss_consistency")
        assert line["loss"] == pytest.approx(sum(line[part] for part in parts), abs=1e-4)
    scores = [line["top1"] for line in lines if "top1" in line]
    assert loaded.info["val_top1"] == max(scores)
    assert loaded.info["epoch"] == 1 + scores.index(max(scores))
    assert max(scores) > 80


@pytest.mark.parametrize(("choose", "chosen_on"), [("last", None), ("best", "oracle")])
def test_which_epoch_is_kept_and_what_that_is_called(
    choose: str, chosen_on: str | None, tmp_path: Path, load: Callable[..., Config]
) -> None:
    cfg = load("configs/cub/ts-cam_deit-tiny_60e_cub.py", **{"train.choose": choose})
    cfg.train.epochs = 3
    cfg.optim_wrapper.optimizer.lr = 0.0  # no epoch is better than the first
    info = load_classifier(train_classifier(cfg, tmp_path)).info
    assert info["chosen_on"] == chosen_on
    assert info["epoch"] == (3 if choose == "last" else 1)


def test_top1_equals_its_definition_and_unreadable_images_do_not_count(
    data_root: Path, tmp_path: Path, load: Callable[..., Config]
) -> None:
    cfg = load("configs/cub/inca_resnet50_50e_cub.py")
    shutil.copytree(data_root, tmp_path / "data")
    cfg.data.root = str(tmp_path / "data" / "dataset" / "CUB")
    (tmp_path / "data" / "dataset" / "CUB" / "val" / "3.jpg").write_bytes(b"")
    loaded = load_classifier(train_classifier(cfg, tmp_path / "run"))
    images = build_dataset(cfg.data, "train-fullsup")
    view = EvalView(images, img_size=32)
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
        ({"task": "detection"}, r"task must be one of \('segmentation', 'localization'\)"),
        ({"train.choose": "first"}, r"train\.choose must be one of .*got 'first'"),
        ({"model.kind": "cnn"}, r"model\.kind must be one of .*got 'cnn'"),
        ({"model.img_size": 32}, r"'model' has no \['img_size'\]; legal are .*'out_stride'"),
        ({"inca.margins": 2.0}, r"'inca' has no \['margins'\]; legal are .*'margin'"),
        ({"inca.drop_rate": 2.0}, r"drop_rate must lie in \[0, 1\], got 2\.0"),
        ({"train.resize": 16}, "resize must be at least img_size 32, got 16"),
        ({"train.cls_token_loss": 1.0}, "no class token"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    overrides: dict[str, Any], message: str, tmp_path: Path, load: Callable[..., Config]
) -> None:
    cfg = load("configs/cub/inca_resnet50_50e_cub.py", **overrides)
    with pytest.raises(ValueError, match=message):
        train_classifier(cfg, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_ts_cams_own_code_becomes_a_classifier(
    tmp_path: Path, load: Callable[..., Config]
) -> None:
    cfg = load("configs/cub/ts-cam_deit-tiny_60e_cub.py")
    torch.manual_seed(1)
    source = build_network(
        num_fg_classes=2, backbone="deit_tiny_patch16_224", img_size=32, backbone_kwargs=SMALL_VIT
    )
    state = {
        f"module.{name.removeprefix('backbone.')}": value
        for name, value in source.state_dict().items()
    }
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "model_best.pth")
    import_ts_cam(cfg, tmp_path / "model_best.pth", tmp_path / "classifier.safetensors")
    loaded = load_classifier(tmp_path / "classifier.safetensors")
    assert loaded.class_set.classes == ("001.Bird", "002.Bird")
    assert loaded.info == {"imported_from": "model_best.pth", "chosen_on": "oracle"}
    inputs = torch.randn(1, 3, 32, 48)
    assert torch.equal(loaded.network(inputs), source.eval()(inputs))


def test_splits_of_different_classes_are_refused(
    data_root: Path, tmp_path: Path, load: Callable[..., Config]
) -> None:
    shutil.copytree(data_root, tmp_path / "data")
    labels = tmp_path / "data" / "metadata" / "CUB" / "val" / "class_labels.txt"
    labels.write_text(labels.read_text().replace("val/3.jpg,1", "val/3.jpg,2"))
    cfg = load("configs/cub/inca_resnet50_50e_cub.py")
    cfg.data.root = str(tmp_path / "data" / "dataset" / "CUB")
    with pytest.raises(ValueError, match="'train-weaksup' has 2 classes, 'train-fullsup' has 3"):
        train_classifier(cfg, tmp_path / "run")


def test_several_classes_an_image_are_refused(tmp_path: Path, mini_cfg: Config) -> None:
    mini_cfg.task = "localization"
    with pytest.raises(ValueError, match=r"'localization' needs one class an image; \d+ of 40"):
        train_classifier(mini_cfg, tmp_path / "run")
