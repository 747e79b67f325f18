"""Segmentation networks: what is refused, and what a training writes, resumes and predicts."""

from __future__ import annotations

import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import read_scalars
from miniatures import write_coco, write_sbd, write_voc
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adcam.cli import main
from adcam.convert.data_sets import convert_coco, convert_sbd
from adcam.data.dataset import ImageDataset, Record
from adcam.data.open_images import open_images
from adcam.data.png import read_mask, voc_palette, write_mask
from adcam.data.shapes import make_shapes
from adcam.data.sources import build_classes, build_dataset, find_class_set
from adcam.errors import AdcamError
from adcam.evaluation.masks_on_disk import evaluate_masks
from adcam.labeling.graphs import GraphCache
from adcam.labeling.output_folder import OutputFolder, describe_files
from adcam.masks.crf import refine_batch
from adcam.settings import SegmentationSettings, SegTestSettings
from adcam.structures import ClassSet, Sample
from adcam.training import prediction, predictor, segmenter, segmenter_file

pytest.importorskip("mmseg", reason="mmsegmentation is not installed (extra `seg`)")

from adcam.seg.segmenter import Segmenter

# Warnings raised inside mmengine, mmsegmentation and tensorboard are theirs.
pytestmark = pytest.mark.filterwarnings("default")

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "seg"
TINY_VIT = {
    "model.backbone.backbone_kwargs": {
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
    },
    "model.decode_head.in_channels": 24,
    "model.decode_head.channels": 16,
}


def read_settings(root: Path, **options: Any) -> SegmentationSettings:
    """Four steps of a tiny network on `mini_shapes`."""
    crop = (32, 32)
    return segmenter.load_segmentation_settings(
        CONFIGS / "shapes" / "vit_fcn_shapes.py",
        {
            "data.root": str(root),
            **TINY_VIT,
            "train.max_iters": 4,
            "train.batch_size": 4,
            "train.num_workers": 0,
            "train.crop_size": crop,
            "train_pipeline.0.crop_size": crop,
            "train.log_interval": 1,
            "train.val_interval": 4,
            "train.checkpoint_interval": 2,
            **options,
        },
    )


@pytest.fixture
def settings(mini_shapes: Path) -> SegmentationSettings:
    return read_settings(mini_shapes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, mini_shapes: Path) -> Path:
    """A work_dir after four steps; read only."""
    work_dir = tmp_path_factory.mktemp("segmenter")
    path = segmenter.train_segmenter(read_settings(mini_shapes), work_dir=work_dir)
    assert path == work_dir / "segmenter.safetensors"
    return work_dir


@pytest.fixture
def own_shapes(tmp_path: Path, mini_shapes: Path) -> Path:
    """A copy of `mini_shapes` to damage."""
    return Path(shutil.copytree(mini_shapes, tmp_path / "shapes"))


def losses(work_dir: Path) -> dict[int, float]:
    """Loss of each step; of one trained twice, the later one."""
    return {line["step"]: line["loss"] for line in read_scalars(work_dir) if "loss" in line}


def test_check_counts_images_and_pixels(settings: SegmentationSettings, mini_shapes: Path) -> None:
    found = segmenter.check_segmentation(settings)
    assert {split: values["images"] for split, values in found.items()} == {"train": 40, "val": 15}
    masks = [read_mask(path) for path in (mini_shapes / "SegmentationClass").glob("train_*.png")]
    assert len(masks) == 40
    names = ("background", *build_classes("shapes").classes)
    expected = {name: sum(int((m == v).sum()) for m in masks) for v, name in enumerate(names)}
    assert found["train"]["pixels"] == expected
    assert found["train"]["ignored"] == sum(int((m == 255).sum()) for m in masks)
    json.dumps(found)


def mask_of(root: Path, img_id: str = "train_00003") -> Path:
    return root / "SegmentationClass" / f"{img_id}.png"


def spoil_missing(path: Path) -> str:
    path.unlink()
    return "no such file"


def spoil_size(path: Path) -> str:
    write_mask(path, np.zeros((48, 63), np.uint8), voc_palette())
    return "48×63 pixels"


def spoil_range(path: Path) -> str:
    mask = read_mask(path).copy()
    mask[0, 0] = 7
    write_mask(path, mask, voc_palette())
    return r"values \[7\]; legal are 0, 1, 2, 3, 4, 5, 6 and 255"


def spoil_rgb(path: Path) -> str:
    Image.open(path).convert("RGB").save(path)
    return "a colour mask .mode RGB.; `adcam convert recode-masks --colors TABLE`"


def spoil_16_bit(path: Path) -> str:
    Image.fromarray(read_mask(path).astype(np.uint16)).save(path)
    return "must be an 8-bit palette or grayscale PNG, got mode I;16"


@pytest.mark.parametrize("spoil", [spoil_missing, spoil_size, spoil_range, spoil_rgb, spoil_16_bit])
@pytest.mark.parametrize("pseudo", [False, True])
def test_bad_masks_are_told_before_training(
    own_shapes: Path, tmp_path: Path, spoil: Any, pseudo: bool
) -> None:
    settings = read_settings(own_shapes)
    path = mask_of(own_shapes)
    if pseudo:
        folder = shutil.copytree(own_shapes / "SegmentationClass", tmp_path / "out" / "masks")
        settings = settings.with_changes({"data.masks": str(tmp_path / "out")})
        path = Path(folder) / path.name
    message = spoil(path)
    with pytest.raises(ValueError, match=message) as raised:
        segmenter.train_segmenter(settings, work_dir=tmp_path / "run")
    assert str(path) in str(raised.value)
    assert "1 of 40 images cannot be used" in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_masks_without_a_palette_are_fine(own_shapes: Path) -> None:
    path = mask_of(own_shapes)
    Image.fromarray(read_mask(path)).save(path)
    assert segmenter.check_segmentation(read_settings(own_shapes))["train"]["masks"] == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.decode_head.num_classes": 6}, "num_classes is 6, but the data has 7 classes"),
        ({"data.val": "test"}, "no list for split 'test'"),
        ({"data.masks": "nowhere"}, "data.masks nowhere is no folder"),
        ({"weights": "gone.safetensors"}, "gone.safetensors: no such weights file"),
        ({"weights": "torchvision:resnet7"}, "no ImageNet weights of 'resnet7'"),
        ({"train.amp": "fp8"}, r"train\.amp must be 'none', 'bfloat16' or 'float16'"),
        pytest.param(
            {"train.amp": "float16"},
            "'float16' needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        ({"model.type": "CascadeEncoderDecoder"}, "model.type must be 'EncoderDecoder'"),
        ({"train.confidence": True}, "train.confidence needs data.masks"),
        ({"model.decode_head.type": "Foo"}, r"model cannot be used: .*Foo is not in"),
        ({"model.backbone.foo": 1}, r"model cannot be used: .*foo"),
        ({"train_pipeline.1.type": "Foo"}, r"train_pipeline\.1: .* cannot be used: .*Foo"),
    ],
)
def test_mistakes_of_a_config_are_told_before_training(
    settings: SegmentationSettings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdcamError, match=message):
        segmenter.train_segmenter(settings.with_changes(change), work_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim_wrapper.optimizer.type": "Foo"}, r"optim_wrapper={.*'Foo'.*} cannot be used"),
        ({"optim_wrapper.optimizer.lrr": 1}, r"optim_wrapper={.* cannot be used: .*lrr"),
        ({"param_scheduler.0.type": "Foo"}, r"param_scheduler=\[.* cannot be used: .*Foo"),
    ],
)
def test_mistakes_of_the_optimizer_are_no_tracebacks(
    settings: SegmentationSettings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdcamError, match=message):
        segmenter.train_segmenter(settings.with_changes(change), work_dir=tmp_path / "run")


def test_crops_are_of_the_size_that_batches_have(mini_shapes: Path) -> None:
    message = r"crops to \(32, 32\), and train\.crop_size is 16×24; change both, .*\[16,24\]"
    with pytest.raises(AdcamError, match=message):
        read_settings(mini_shapes, **{"train.crop_size": [16, 24]})
    from adcam.seg.dataset import SegmentationDataset

    for crop in ([16, 24], (16, 24)):  # as a command line or TOML has it, as Python has it
        both = {"train.crop_size": crop, "train_pipeline.0.crop_size": crop}
        settings = read_settings(mini_shapes, **both)
        images = build_dataset(settings.data, "train")
        crops = SegmentationDataset(images, images.class_set, settings.train_pipeline)
        assert crops[0]["inputs"].shape == (3, 16, 24)
    assert read_settings(
        mini_shapes, **{"train.crop_size": [16, 16], "train_pipeline.0.crop_size": 16}
    )


def test_a_crop_may_be_resized_to_the_size_that_batches_have(mini_shapes: Path) -> None:
    crop = {"type": "RandomCrop", "crop_size": [32, 32]}

    def read(*steps: dict[str, Any]) -> SegmentationSettings:
        return read_settings(mini_shapes, **{"train.crop_size": [16, 24], "train_pipeline": steps})

    fitting = {"type": "Resize", "scale": [24, 16]}  # width and height
    assert len(read(crop, fitting).train_pipeline) == 2
    for steps in (
        [fitting, crop],
        [crop, fitting, crop],
        [crop, {**fitting, "scale": [16, 24]}],
        [crop, {**fitting, "keep_ratio": True}],
    ):
        with pytest.raises(AdcamError, match=r"crops to \[32, 32\]"):
            read(*steps)


def test_a_list_is_a_size_where_it_names_one_and_else_a_choice(mini_shapes: Path) -> None:
    from adcam.seg.dataset import SegmentationDataset

    images = build_dataset(read_settings(mini_shapes).data, "train")

    def draw(**step: Any) -> set[int]:
        """The shorter sides of 16 draws."""
        drawn = SegmentationDataset(images, images.class_set, [step])
        return {min(drawn[0]["inputs"].shape[1:]) for _ in range(16)}

    assert draw(type="Resize", scale=[40, 48]) == {40}
    # As in the configs of mmsegmentation for Mask2Former.
    step = {"type": "RandomChoiceResize", "resize_type": "ResizeShortestEdge", "max_size": 99}
    assert draw(**step, scales=[40, 48]) == {40, 48}


def test_unknown_options_are_refused(mini_shapes: Path) -> None:
    with pytest.raises(ValueError, match="train: there is no key 'epochs'"):
        read_settings(mini_shapes, **{"train.epochs": 3})


def test_masks_of_0_and_255_name_the_cure(own_shapes: Path) -> None:
    for path in (own_shapes / "SegmentationClass").glob("*.png"):
        mask = read_mask(path)
        write_mask(path, np.where(mask > 0, np.uint8(255), np.uint8(0)), voc_palette())
    with pytest.raises(AdcamError, match=r"values are 0, 255, .* recode-masks MASKS --values"):
        segmenter.check_segmentation(read_settings(own_shapes))


def test_an_empty_split_is_refused(own_shapes: Path, settings: SegmentationSettings) -> None:
    (own_shapes / "ImageSets" / "Segmentation" / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="the list is empty"):
        segmenter.check_segmentation(read_settings(own_shapes))


def test_a_folder_holds_one_training(finished: Path, mini_shapes: Path, tmp_path: Path) -> None:
    work_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    (work_dir / "last_checkpoint").write_text(str(work_dir / "iter_4.pth"))
    before = (work_dir / "segmenter.safetensors").read_bytes()
    other = read_settings(mini_shapes, **{"train.max_iters": 5})
    with pytest.raises(ValueError, match=r"train\.max_iters: 4 -> 5\n.*--restart"):
        segmenter.train_segmenter(other, work_dir=work_dir)
    watched = read_settings(mini_shapes, **{"train.log_interval": 2, "test.flip": True})
    segmenter.train_segmenter(watched, work_dir=work_dir)  # all steps are done
    assert (work_dir / "segmenter.safetensors").read_bytes() == before
    segmenter.train_segmenter(other, work_dir=work_dir, resume=False)
    assert (work_dir / "iter_5.pth").is_file()


def test_starting_over_takes_nothing_of_the_training_before(
    finished: Path,
    settings: SegmentationSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work_dir = Path(shutil.copytree(finished, tmp_path / "run"))
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(segmenter, "build_runner", None)  # killed before the first checkpoint
        segmenter.train_segmenter(settings, work_dir=work_dir, resume=False)
    assert not list(work_dir.glob("*.pth"))
    assert not (work_dir / "segmenter.safetensors").exists()


def write_pseudo_masks(root: Path, out: Path, class_set: ClassSet, images: ImageDataset) -> None:
    """The true masks, as `adcam generate` writes masks of these classes."""
    labeler = {"classes": class_set.classes, "mask_values": class_set.mask_values}
    with OutputFolder(out, {"adcam": "0", "labeler": labeler}, overwrite=True) as folder:
        for record in images.records:
            path = folder.mask_path(record.img_id)
            write_mask(path, read_mask(mask_of(root, record.img_id)), class_set.palette)
            entry = {"id": record.img_id, "image": str(record.img_path), "status": "ok"}
            folder.append({**entry, **describe_files({"mask": path})})


def test_masks_that_were_made_again_are_another_training(
    finished: Path, own_shapes: Path, tmp_path: Path
) -> None:
    out, work_dir = tmp_path / "out", Path(shutil.copytree(finished, tmp_path / "run"))
    settings = read_settings(own_shapes, **{"data.masks": str(out)})
    images = build_dataset(settings.data, "train")
    write_pseudo_masks(own_shapes, out, images.class_set, images)
    (work_dir / "training.json").write_text(
        json.dumps({**segmenter._describe(settings, {"train": images}), "processes": 1})
    )
    (work_dir / "last_checkpoint").write_text("iter_4.pth")
    segmenter.train_segmenter(settings, work_dir=work_dir)
    shutil.copyfile(mask_of(own_shapes, "train_00004"), mask_of(own_shapes))
    write_pseudo_masks(own_shapes, out, images.class_set, images)
    with pytest.raises(AdcamError, match=r"mask_files: .*\n.*--restart"):
        segmenter.train_segmenter(settings, work_dir=work_dir)
    shutil.rmtree(out)
    with pytest.raises(AdcamError, match=r"data\.masks .*out is no folder; .* were moved, where"):
        segmenter.train_segmenter(settings, work_dir=work_dir)


def test_masks_that_number_a_class_differently_are_refused(
    own_shapes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = read_settings(own_shapes, **{"data.masks": str(out)})
    images = build_dataset(settings.data, "train")
    names = images.class_set.classes
    other = replace(images.class_set, classes=(names[1], names[0], *names[2:]))
    write_pseudo_masks(own_shapes, out, other, images)
    cure = rf"order of the masks, {', '.join(other.classes)}, or .*--values 1=2,2=1 "
    for folder in (out, out / "masks"):
        with pytest.raises(
            AdcamError, match=f"{names[1]!r} is 1 in the masks .*, but 2.*{cure}"
        ) as told:
            segmenter.check_segmentation(settings.with_changes({"data.masks": str(folder)}))
    command = shlex.split(str(told.value).partition("the masks of adcam ")[2])
    assert main([*command[:-1], str(tmp_path / "recoded")]) == 0
    segmenter.check_segmentation(settings.with_changes({"data.masks": str(tmp_path / "recoded")}))


def test_training_writes_checkpoint_log_and_network(finished: Path) -> None:
    assert list(losses(finished)) == [1, 2, 3, 4]
    assert (finished / "iter_4.pth").is_file()
    assert list(finished.glob("*/vis_data/events.out.tfevents.*"))
    (scores,) = [line for line in read_scalars(finished) if "mIoU" in line]
    assert 0 < scores["mIoU"] < 100


def test_the_test_scores_equal_those_of_validation_and_of_evaluate(
    finished: Path, settings: SegmentationSettings, tmp_path: Path, mini_shapes: Path
) -> None:
    scores = prediction.test_segmenter(
        settings, finished / "segmenter.safetensors", work_dir=tmp_path, masks_out=tmp_path / "out"
    )
    assert json.loads((tmp_path / "test_val.json").read_text()) == scores
    (validation,) = [line for line in read_scalars(finished) if "mIoU" in line]
    assert scores["miou"] == pytest.approx(validation["mIoU"], abs=1e-3)
    ids = [f"val_{i:05d}" for i in range(15)]
    again = evaluate_masks(tmp_path / "out", mini_shapes / "SegmentationClass", ids=ids)
    assert again["iou_per_class"] == scores["iou_per_class"]
    assert np.sum(scores["confusion"]) == 15 * 48 * 64
    # The masks are there, so the second time nothing is computed.
    stamp = max(path.stat().st_mtime_ns for path in (tmp_path / "out" / "masks").iterdir())
    assert scores == prediction.test_segmenter(
        settings, finished / "segmenter.safetensors", work_dir=tmp_path, masks_out=tmp_path / "out"
    )
    assert stamp == max(path.stat().st_mtime_ns for path in (tmp_path / "out" / "masks").iterdir())


@pytest.mark.parametrize("writes", [False, True])
def test_a_test_reads_each_image_once(
    finished: Path,
    settings: SegmentationSettings,
    own_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writes: bool,
) -> None:
    load, seen = ImageDataset.load_image, Counter[int]()

    def count(images: ImageDataset, index: int) -> np.ndarray:
        seen[index] += 1
        return load(images, index)

    monkeypatch.setattr(ImageDataset, "load_image", count)
    settings = settings.with_changes({"data.root": str(own_shapes)})
    options = {"work_dir": tmp_path, "masks_out": tmp_path / "out" if writes else None}
    checkpoint = finished / "segmenter.safetensors"
    prediction.test_segmenter(settings, checkpoint, **options)
    assert seen == Counter(range(15))
    spoil_size(mask_of(own_shapes, "val_00003"))
    with pytest.raises(AdcamError, match=r"val_00003.png has 48×63 .* its image .* has 48×64"):
        prediction.test_segmenter(settings, checkpoint, **options)


def test_a_mask_may_lie_on_its_image_as_that_is_stored(tmp_path: Path) -> None:
    img = Image.new("RGB", (20, 10))
    img.getexif()[0x0112] = 6  # a quarter turn, which the data sets of as_stored take no notice of
    img.save(tmp_path / "turned.jpg", exif=img.getexif())
    write_mask(tmp_path / "turned.png", np.zeros((10, 20), np.uint8), voc_palette())
    record = Record("turned", tmp_path / "turned.jpg", mask_path=tmp_path / "turned.png")

    def read(record: Record) -> np.ndarray:
        images = ImageDataset(build_classes("shapes"), "val", [record])
        return prediction.read_true_mask(images, 0)

    assert read(replace(record, as_stored=True)).shape == (10, 20)
    with pytest.raises(AdcamError, match=r"has 10×20 .* its image .* has 20×10"):
        read(record)
    with pytest.raises(AdcamError, match="image 'turned' of 'val' has no mask"):
        read(replace(record, mask_path=None))


def test_mmsegmentations_metric_gives_the_same_numbers(
    finished: Path, settings: SegmentationSettings, tmp_path: Path, mini_shapes: Path
) -> None:
    from mmseg.evaluation import IoUMetric

    scores = prediction.test_segmenter(
        settings, finished / "segmenter.safetensors", work_dir=tmp_path, masks_out=tmp_path / "out"
    )
    areas = [
        IoUMetric.intersect_and_union(
            torch.from_numpy(read_mask(path)),
            torch.from_numpy(read_mask(mini_shapes / "SegmentationClass" / path.name)),
            7,
            255,
        )
        for path in sorted((tmp_path / "out" / "masks").glob("*.png"))
    ]
    assert len(areas) == 15
    # float64: mmsegmentation divides in float32, which alone is off by up to 1e-5 percent.
    totals = [sum(column).double() for column in zip(*areas, strict=True)]
    theirs = IoUMetric.total_area_to_metrics(*totals, metrics=["mIoU"])
    np.testing.assert_allclose(
        list(scores["iou_per_class"].values()), 100 * np.array(theirs["IoU"]), rtol=0, atol=1e-6
    )
    assert scores["miou"] == pytest.approx(100 * float(np.mean(theirs["IoU"])), abs=1e-6)


def test_restricted_to_labels_only_they_are_predicted(
    finished: Path, settings: SegmentationSettings, tmp_path: Path
) -> None:
    test = {"labels": "given", "crf": "toco", "flip": True, "scales": [1.0, 1.5]}
    settings = settings.with_changes({"test": test})
    prediction.test_segmenter(
        settings, finished / "segmenter.safetensors", work_dir=tmp_path, masks_out=tmp_path / "out"
    )
    images = build_dataset(settings.data, "val")
    for record in images.records:
        values = set(np.unique(read_mask(tmp_path / "out" / "masks" / f"{record.img_id}.png")))
        assert values <= {0, *(i + 1 for i in record.class_ids or ())}
    # Masks that were made from other labels are made again.
    root = Path(shutil.copytree(settings.data.root, tmp_path / "shapes"))
    first = images.records[0]
    name = images.class_set.classes[next(i for i in range(6) if i not in (first.class_ids or ()))]
    rows = (root / "labels.csv").read_text("utf-8").splitlines()
    changed = [f"{first.img_id},{name}" if x.startswith(f"{first.img_id},") else x for x in rows]
    (root / "labels.csv").write_text("\n".join(changed) + "\n", "utf-8")
    shutil.rmtree(root / "JPEGImages")
    (root / "JPEGImages").symlink_to(Path(settings.data.root) / "JPEGImages")
    prediction.test_segmenter(
        settings.with_changes({"data.root": str(root)}),
        finished / "segmenter.safetensors",
        work_dir=tmp_path,
        masks_out=tmp_path / "out",
    )
    lines = (tmp_path / "out" / "manifest.jsonl").read_text("utf-8").splitlines()
    (entry,) = [line for line in map(json.loads, lines) if line["id"] == first.img_id]
    assert entry["classes"] == [name]


def predict_together(model: predictor.Predictor, samples: Sequence[Sample]) -> list[np.ndarray]:
    """The masks of one group of images, which need not come in its order."""
    masks = dict(model.run([[*enumerate(samples)]]))
    return [masks[i] for i in range(len(samples))]  # type: ignore[misc]


def pass_for_gpu(model: predictor.Predictor, patch: pytest.MonkeyPatch) -> None:
    """Let a CPU do what a GPU would: lanes, batches, and graphs that are mere calls."""
    patch.setattr(model, "_is_on_device", True)
    network = model._segmenter
    graphs = GraphCache(network.run_network, capture=lambda function, *_: function)
    patch.setattr(model, "_forward", graphs if network.has_fixed_course else None)


@pytest.mark.parametrize("crf", ["none", "toco"])
def test_images_that_a_network_sees_alike_are_predicted_together_on_a_gpu(
    finished: Path, settings: SegmentationSettings, crf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probabilities stay on the device, here a CPU that passes for one."""
    test = {"labels": "given", "crf": crf, "min_prob": 0.4, "flip": True, "scales": [1.0, 1.5]}
    settings = settings.with_changes({"test": test})
    images = build_dataset(settings.data, "val")
    samples = [images[i] for i in range(5)]
    assert samples[0].ori_hw == (48, 64)
    samples[1] = replace(samples[1], img=samples[1].img[:30].copy())  # seen at 32×64
    samples[2] = replace(samples[2], img=samples[2].img[:47, :60].copy())  # as the whole images
    network = finished / "segmenter.safetensors"
    model = predictor.Predictor(settings, network, images.class_set)
    expected = [model(sample) for sample in samples]
    for mask, other in zip(predict_together(model, samples), expected, strict=True):
        np.testing.assert_array_equal(mask, other)
    pass_for_gpu(model, monkeypatch)
    refined: list[int] = []

    def count(probs: list[torch.Tensor], imgs: list[Any], *, crf: str) -> list[torch.Tensor]:
        refined.append(len(probs))
        return refine_batch(probs, imgs, crf=crf)

    monkeypatch.setattr(predictor, "refine_batch", count)
    run, seen = model._segmenter.run_network, []

    def look(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(inputs.shape))
        return run(inputs)

    monkeypatch.setattr(model, "_forward", look)
    for mask, other in zip(predict_together(model, samples), expected, strict=True):
        assert mask.dtype == np.uint8 and mask.shape == other.shape
        assert (mask == other).mean() > 0.99
    values = np.concatenate([mask.ravel() for mask in expected])
    assert (255 in values) == (crf == "none")
    # An image and its mirror image at each scale.
    large = [(4, 3, 48, 64), (4, 3, 64, 96)]
    assert Counter(seen) == dict.fromkeys([*large, (1, 3, 32, 64), (1, 3, 48, 96)], 2)
    assert refined == ([] if crf == "none" else [5])  # one CRF, whatever their sizes
    with pytest.raises(AdcamError, match="no labels to keep to"):
        predict_together(model, [replace(samples[0], class_ids=None)])


@pytest.mark.parametrize("crf", ["none", "toco"])
def test_a_batch_that_does_not_fit_goes_in_halves_and_an_image_alone_fails(
    finished: Path, settings: SegmentationSettings, crf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.with_changes({"test.crf": crf})
    images = build_dataset(settings.data, "val")
    samples = [images[i] for i in range(3)]
    model = predictor.Predictor(settings, finished / "segmenter.safetensors", images.class_set)
    expected = [model(sample) for sample in samples]
    pass_for_gpu(model, monkeypatch)
    predict_together(model, samples[:2])
    predict_together(model, samples[:2])
    graphs: Any = model._forward
    assert len(graphs._graphs) == 1
    compute, most = Segmenter.compute_on_device, []
    held: list[weakref.ref[np.ndarray]] = []
    fits = 1

    def little_memory(self: Any, imgs: Any, run: Any = None) -> list[torch.Tensor]:
        assert not held or held[-1]() is None  # let go of before parts are tried
        most.append(len(imgs))
        if len(imgs) > fits:
            large = np.zeros(8)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("no room")
        return compute(self, imgs, run)

    monkeypatch.setattr(Segmenter, "compute_on_device", little_memory)
    for mask, other in zip(predict_together(model, samples), expected, strict=True):
        np.testing.assert_array_equal(mask, other)  # alone, to the bit
    assert most == [3, 1, 2, 1, 1]
    assert {key[0][0][0] for key in graphs._graphs} == {1}  # that of two images was let go of
    fits = 0
    assert predict_together(model, samples[:2]) == [None, None]
    monkeypatch.setattr(Segmenter, "compute_on_device", compute)

    def no_memory(probs: list[torch.Tensor], imgs: list[Any], *, crf: str) -> list[torch.Tensor]:
        if len(probs) > 1:
            raise torch.OutOfMemoryError("no room")
        return refine_batch(probs, imgs, crf=crf)

    monkeypatch.setattr(predictor, "refine_batch", no_memory)
    assert all(mask is not None for mask in predict_together(model, samples))

    def mistake(self: Any, imgs: Any, run: Any = None) -> list[torch.Tensor]:
        raise RuntimeError("expected scalar type Float but found Half")

    monkeypatch.setattr(Segmenter, "compute_on_device", mistake)
    for num in (1, 3):
        with pytest.raises(RuntimeError, match="expected scalar type"):
            predict_together(model, samples[:num])


def test_a_lone_image_gets_the_memory_of_the_graphs(
    finished: Path, settings: SegmentationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = build_dataset(settings.data, "val")
    model = predictor.Predictor(settings, finished / "segmenter.safetensors", images.class_set)
    pass_for_gpu(model, monkeypatch)
    graphs: Any = model._forward
    for _ in range(2):
        (expected,) = predict_together(model, [images[0]])
    compute = Segmenter.compute_on_device

    def little_memory(self: Any, imgs: Any, run: Any = None) -> list[torch.Tensor]:
        if graphs._graphs:
            raise torch.OutOfMemoryError("no room")
        return compute(self, imgs, run)

    monkeypatch.setattr(Segmenter, "compute_on_device", little_memory)
    assert graphs._graphs
    np.testing.assert_array_equal(predict_together(model, [images[0]])[0], expected)


def test_images_seen_alike_are_found_in_the_whole_data_set_on_a_gpu(
    finished: Path,
    settings: SegmentationSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """64 photographs of eight shapes by turns, seen at 32×32 or 32×48."""
    rng = np.random.default_rng(0)
    for i in range(64):
        img = Image.fromarray(rng.integers(0, 256, (25, 37 + i % 8, 3), dtype=np.uint8))
        (tmp_path / "photos").mkdir(exist_ok=True)
        img.save(tmp_path / "photos" / f"{i:02}.png")
    class_set = find_class_set(settings.data)
    images = open_images(tmp_path / "photos", class_set, labels=None)
    model = predictor.Predictor(settings, finished / "segmenter.safetensors", class_set)
    one_by_one = [*prediction.write_masks(images, model, tmp_path / "cpu")]
    assert [index for index, _ in one_by_one] == [*range(64)]
    expected = dict(one_by_one)
    pass_for_gpu(model, monkeypatch)
    compute = Segmenter.compute_on_device
    sizes: list[int] = []

    def count(self: Any, imgs: Any, run: Any = None) -> list[torch.Tensor]:
        sizes.append(len(imgs))
        assert [img.shape[1] for img in imgs] == sorted(img.shape[1] for img in imgs)
        return compute(self, imgs, run)

    monkeypatch.setattr(Segmenter, "compute_on_device", count)
    for found in (
        prediction.predict_all(images, model),
        prediction.write_masks(images, model, tmp_path / "gpu"),
    ):
        sizes.clear()
        masks = dict(found)
        assert sizes == [32, 32]
        assert sorted(masks) == [*range(64)]
        for index, mask in masks.items():
            assert mask is not None and mask.shape == (25, 37 + index % 8)
            assert (mask == expected[index]).mean() > 0.99
    lines = (tmp_path / "gpu" / "manifest.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [x.img_id for x in images.records]
    # A second run reads its masks back, and says of each whose it is.
    sizes.clear()
    for index, mask in prediction.write_masks(images, model, tmp_path / "gpu"):
        np.testing.assert_array_equal(mask, masks[index])
    assert sizes == []
    # One that goes on has the same batches, and does not touch what is done.
    done = tmp_path / "gpu" / "masks" / "01.png"
    before = done.stat().st_mtime_ns
    (tmp_path / "gpu" / "masks" / "00.png").unlink()
    again = dict(prediction.write_masks(images, model, tmp_path / "gpu"))
    np.testing.assert_array_equal(again[0], masks[0])
    assert sizes == [32] and done.stat().st_mtime_ns == before


def test_images_are_read_while_one_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first prediction waits until others are read; in turns it would wait in vain."""
    read: list[int] = []
    others_are_read = threading.Event()

    def read_sample(images: object, item: Any) -> Any:
        read.append(item.index)
        if len(read) > 2:
            others_are_read.set()
        return replace(item, sample=Sample("a", np.zeros((1, 1, 3), np.uint8)))

    def predict(sample: Sample) -> np.ndarray:
        assert others_are_read.wait(60)
        predicted.append(sample)
        # Memory is bounded.
        assert len(read) <= len(predicted) + 2 + 1 + prediction._THREADS
        return np.full((1, 1), 7, np.uint8)

    predicted: list[Sample] = []
    monkeypatch.setattr(prediction, "_read", read_sample)
    monkeypatch.setattr(predictor.Predictor, "__call__", lambda self, sample: predict(sample))
    model = object.__new__(predictor.Predictor)
    model._is_on_device, model._memory = False, None
    model._segmenter = SimpleNamespace(  # type: ignore[assignment]
        device=torch.device("cpu"), views=SimpleNamespace(sizes=lambda hw: [hw])
    )
    images: Any = SimpleNamespace(__len__=lambda: 40)
    monkeypatch.setattr(predictor.Predictor, "plan", lambda self, x: ((i,) for i in range(40)))
    found = [(index, mask.item()) for index, mask in prediction.predict_all(images, model)]
    assert found == [(index, 7) for index in range(40)]


def test_a_classifier_is_no_network_to_predict_with(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["segment", "predict", str(tmp_path), "--checkpoint", str(tiny_checkpoint)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "this is a classifier, no network of `adcam segment`" in capsys.readouterr().err


def test_predict_any_folder_without_a_config_and_resume(
    finished: Path, settings: SegmentationSettings, tmp_path: Path
) -> None:
    folder = tmp_path / "photos" / "more"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.jpg")
    Image.fromarray(pixels[:20]).save(folder.parent / "b.png")
    (folder.parent / "broken.jpg").write_text("no image")
    network, out = finished / "segmenter.safetensors", tmp_path / "out"
    result = prediction.predict_segmenter(network, folder.parent, out)
    assert result["ok"] == 2
    assert list(result["failed"]) == ["broken"]
    with Image.open(out / "masks" / "more" / "a.png") as mask:
        assert (mask.mode, mask.size) == ("P", (51, 37))
    assert read_mask(out / "masks" / "b.png").shape == (20, 51)
    before = (out / "masks" / "b.png").stat().st_mtime_ns
    assert prediction.predict_segmenter(network, folder.parent, out) == result
    assert (out / "masks" / "b.png").stat().st_mtime_ns == before
    with pytest.raises(AdcamError, match="another configuration"):
        prediction.predict_segmenter(network, folder.parent, out, changes={"test.flip": True})
    # The config says the same as the file.
    prediction.predict_segmenter(network, folder.parent, tmp_path / "again", settings=settings)
    for name in ("more/a.png", "b.png"):
        again = (tmp_path / "again" / "masks" / name).read_bytes()
        assert again == (out / "masks" / name).read_bytes()
    prediction.predict_segmenter(
        network, folder.parent, tmp_path / "mirrored", changes={"test.flip": True}
    )
    mirrored = (tmp_path / "mirrored" / "masks" / "more" / "a.png").read_bytes()
    assert mirrored != (out / "masks" / "more" / "a.png").read_bytes()
    command = f"segment predict {folder.parent} --checkpoint {network} --out {out} --overwrite"
    assert main([*shlex.split(command), "--cfg-options", "test.flip=true"]) == 1  # broken.jpg
    assert (out / "masks" / "more" / "a.png").read_bytes() == mirrored
    # Other images of the same names are not taken for these.
    others = Path(shutil.copytree(folder.parent, tmp_path / "others"))
    Image.fromarray(pixels[:30]).save(others / "b.png")
    prediction.predict_segmenter(network, others, out, changes={"test.flip": True})
    assert read_mask(out / "masks" / "b.png").shape == (30, 51)
    # An image in an archive is named as `adcam generate` names it.
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.add(folder.parent / "b.png", "b.png")
    prediction.predict_segmenter(network, tmp_path / "b.tar", tmp_path / "packed")
    (line,) = (tmp_path / "packed" / "manifest.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["image"] == "../b.tar#b.png"


@pytest.mark.parametrize("on_device", [False, True])
def test_an_image_too_large_for_the_memory_costs_no_other(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_device: bool
) -> None:
    for name, width in (("a", 20), ("b", 40), ("c", 20)):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((16, width, 3), np.uint8)).save(path)
    compute = Segmenter.compute_on_device

    def compute_small(self: Any, imgs: Any, run: Any = None) -> list[torch.Tensor]:
        if any(img.shape[1] > 20 for img in imgs):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to …")
        return compute(self, imgs, run)

    monkeypatch.setattr(Segmenter, "compute_on_device", compute_small)
    build = prediction.Predictor

    def build_model(*args: Any) -> predictor.Predictor:
        model = build(*args)
        if on_device:
            pass_for_gpu(model, monkeypatch)
        return model

    monkeypatch.setattr(prediction, "Predictor", build_model)
    network = finished / "segmenter.safetensors"
    result = prediction.predict_segmenter(network, tmp_path / "photos", tmp_path / "out")
    assert result["ok"] == 2 and list(result["failed"]) == ["b"]
    assert "b.png: there is not enough memory for its 40×16 pixels" in result["failed"]["b"]
    names = sorted(path.name for path in (tmp_path / "out" / "masks").iterdir())
    assert names == ["a.png", "c.png"]


def rewrite_header(source: Path, target: Path, change: Any) -> Path:
    """A copy of a segmenter's file with another description."""
    with safe_open(source, framework="pt") as file:
        header = json.loads(file.metadata()["segmenter"])
    change(header)
    save_file(load_file(source), target, metadata={"segmenter": json.dumps(header)})
    return target


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("type", "subprocess.run"),
        ("type", "mmengine.config.Config"),
        ("type", ["ResNet"]),
        ("init_cfg", {"type": "Pretrained", "checkpoint": "http://localhost/evil.pth"}),
        ("name", "hf-hub:evil/network"),
        ("backbone_kwargs", {"checkpoint_path": "evil.pth"}),
        ("backbone_kwargs", {"pretrained_cfg": {"file": "evil.pth"}}),
        ("class_embed_path", "evil"),
        ("out_indices", [{"anything": "../evil.pth"}]),
        ("norm_cfg", {"type": "BN", "vocabulary": "evil.txt"}),
    ],
)
def test_a_hostile_description_is_refused(
    finished: Path, tmp_path: Path, key: str, value: Any
) -> None:
    def change(header: dict[str, Any]) -> None:
        header["settings"]["model"]["backbone"][key] = value

    path = rewrite_header(finished / "segmenter.safetensors", tmp_path / "a.safetensors", change)
    with pytest.raises(AdcamError, match=r"a\.safetensors: .* is not allowed in a file"):
        prediction.predict_segmenter(path, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.pop("settings"), "name its config with --config"),
        (
            lambda header: header["settings"].pop("model"),
            "no segmenter that can be built from its own",
        ),
        (
            lambda header: header.update(mask_values=None),
            "no segmenter that can be built from its own",
        ),
        (lambda header: header["settings"]["test"].update(scale=[1]), "did you mean 'scales'"),
    ],
)
def test_a_file_that_does_not_describe_its_network(
    finished: Path, tmp_path: Path, change: Any, message: str
) -> None:
    path = rewrite_header(finished / "segmenter.safetensors", tmp_path / "a.safetensors", change)
    with pytest.raises(AdcamError, match=message):
        prediction.predict_segmenter(path, tmp_path, tmp_path / "out")


def test_the_network_of_another_head_is_refused(
    finished: Path, settings: SegmentationSettings, tmp_path: Path
) -> None:
    network = finished / "segmenter.safetensors"
    other = settings.with_changes({"model.decode_head.channels": 8})
    with pytest.raises(ValueError, match="weights do not fit Segmenter"):
        prediction.test_segmenter(other, network, work_dir=tmp_path)
    other = settings.with_changes({"data.classes": ["a", "b", "c", "d", "e", "f"]})
    photos = Path(settings.data.root) / "JPEGImages"
    with pytest.raises(AdcamError, match="was trained for the classes"):
        prediction.predict_segmenter(network, photos, tmp_path / "out", settings=other)


def test_confidence_weights_come_from_the_maps(
    settings: SegmentationSettings, tmp_path: Path
) -> None:
    from adcam.labeling.maps_file import encode_maps
    from adcam.structures import ClassMaps, Sample

    class_set = build_classes("shapes")
    scores = np.stack([np.full((32, 32), 0.8), np.full((32, 32), 0.4)]).astype(np.float32)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a.npz").write_bytes(
        encode_maps(ClassMaps((1, 3), scores), class_set, (32, 32))
    )
    settings = settings.with_changes({"data.masks": str(tmp_path)})
    mask = np.zeros((32, 32), np.uint8)
    mask[:8], mask[8:16], mask[16:24] = class_set.mask_values[1], class_set.mask_values[3], 255
    weight = segmenter._read_confidence(settings)(
        Sample("a", np.zeros((32, 32, 3), np.uint8), mask=mask)
    )
    np.testing.assert_allclose(weight[0], 204)
    np.testing.assert_allclose(weight[8], 102)
    np.testing.assert_allclose(weight[31], 51)  # background: what the likeliest class leaves


def test_losses_that_read_confidence_are_known_by_their_class(
    settings: SegmentationSettings,
) -> None:
    from mmseg.registry import MODELS

    from adcam.seg.losses import ConfidenceCrossEntropy

    class Sharper(ConfidenceCrossEntropy):
        pass

    class ConfidenceCrossEntropyOfOthers(torch.nn.Module):
        pass

    def is_known(kind: str) -> bool:
        losses = ({"type": "DiceLoss"}, {"type": kind})
        return segmenter_file.reads_confidence(
            settings.with_changes({"model.decode_head.loss_decode": losses}).model
        )

    for kind in (Sharper, ConfidenceCrossEntropyOfOthers):
        MODELS.register_module(module=kind)
    try:
        assert is_known("ConfidenceCrossEntropy") and is_known("Sharper")
        assert not is_known("ConfidenceCrossEntropyOfOthers") and not is_known("Missing")
    finally:
        for kind in (Sharper, ConfidenceCrossEntropyOfOthers):
            del MODELS.module_dict[kind.__name__]


def test_images_of_rare_classes_are_drawn_more_often(mini_shapes: Path) -> None:
    def draws(balance: float) -> Counter[int]:
        settings = read_settings(mini_shapes, **{"train.balance": balance})
        val_set = segmenter.open_split(settings, "val")
        parts = segmenter._build_parts(settings, [images], val_set)
        return Counter(index for index, _ in itertools.islice(iter(parts.sampler), 100 * size))

    images = build_dataset(read_settings(mini_shapes).data, "train")
    size = len(images)
    shown = Counter(c for record in images.records for c in record.class_ids or ())
    most = max(shown.values())
    weights = [
        max((most / shown[c] for c in record.class_ids or ()), default=1.0)
        for record in images.records
    ]
    assert len(set(weights)) > 1
    drawn, alike = draws(1.0), draws(0)
    for index, weight in enumerate(weights):
        assert drawn[index] == pytest.approx(100 * size * weight / sum(weights), rel=0.1)
        assert alike[index] == 100


def test_balance_needs_labels(own_shapes: Path) -> None:
    (own_shapes / "labels.csv").unlink()
    settings = read_settings(own_shapes, **{"train.balance": 0.5})
    with pytest.raises(AdcamError, match=r"labels\.csv"):
        segmenter.train_segmenter(settings, work_dir=own_shapes / "work")


def test_self_training_makes_the_masks_of_the_next_round(
    settings: SegmentationSettings, tmp_path: Path
) -> None:
    section = {"rounds": 2, "flip": True, "min_prob": 0.4}
    settings = settings.with_changes({"self_training": section})
    path = segmenter.train_segmenter(settings, work_dir=tmp_path)
    assert path == tmp_path / "segmenter.safetensors"
    assert path.read_bytes() == (tmp_path / "round_2" / "segmenter.safetensors").read_bytes()
    images = build_dataset(settings.data, "train")
    values: set[int] = set()
    for record in images.records:
        mask = read_mask(tmp_path / "round_1" / "train_masks" / "masks" / f"{record.img_id}.png")
        held = set(np.unique(mask).tolist())
        assert held <= {0, 255, *(i + 1 for i in record.class_ids or ())}
        values |= held
    assert 255 in values and len(values) > 2
    # Nothing is trained or predicted twice, and a lost last round is trained alone.
    (tmp_path / "round_2" / "segmenter.safetensors").unlink()
    before = (tmp_path / "round_1" / "segmenter.safetensors").stat().st_mtime_ns
    content = path.read_bytes()
    segmenter.train_segmenter(settings, work_dir=tmp_path)
    assert (tmp_path / "round_1" / "segmenter.safetensors").stat().st_mtime_ns == before
    assert path.read_bytes() == content


@pytest.mark.parametrize("on_device", [False, True])
def test_a_crf_takes_a_network_that_believes_in_no_class(on_device: bool) -> None:
    """As one of COCO's 81 classes does after a few steps."""
    prob = np.full((81, 12, 16), 1 / 81, np.float32)
    prob[7] += 0.01
    model = object.__new__(predictor.Predictor)
    model._test = SegTestSettings(crf="toco")
    model._values = np.arange(81, dtype=np.uint8)
    model._is_on_device, model._memory, model._forward = on_device, None, None
    network = SimpleNamespace(
        device=torch.device("cpu"),
        views=SimpleNamespace(sizes=lambda hw: [hw]),
        compute_probabilities=lambda img: prob,
        compute_on_device=lambda imgs, run: [torch.from_numpy(prob)[None]],
    )
    model._segmenter = network  # type: ignore[assignment]
    (mask,) = predict_together(model, [Sample("a", np.zeros((12, 16, 3), np.uint8))])
    assert mask.shape == (12, 16) and (mask == 7).all()


def test_rounds_refuse_other_settings_and_start_over(
    settings: SegmentationSettings,
    mini_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained, made = [], []

    def train_once(settings: SegmentationSettings, work_dir: Path, *args: Any) -> Path:
        trained.append(work_dir.name)
        segmenter.write_description(work_dir, segmenter.describe_training(settings))
        (work_dir / "segmenter.safetensors").write_bytes(b"network")
        return work_dir / "segmenter.safetensors"

    def write_masks(images: Any, model: Any, out: Path) -> list[None]:
        made.append(out.parent.name)
        out.mkdir(exist_ok=True)
        return []

    monkeypatch.setattr(segmenter, "_train_once", train_once)
    monkeypatch.setattr(segmenter, "write_masks", write_masks)
    model = SimpleNamespace(description={"labeler": {"test": {"flip": False}}})
    monkeypatch.setattr(segmenter, "Predictor", lambda *args: model)
    settings = settings.with_changes({"self_training": {"rounds": 2}})
    for number in (1, 2):
        (tmp_path / f"round_{number}").mkdir()
    segmenter.train_segmenter(settings, work_dir=tmp_path)
    segmenter.train_segmenter(settings, work_dir=tmp_path)
    assert trained == ["round_1", "round_2"] and made == ["round_1", "round_1"]
    other = settings.with_changes({"train.max_iters": 5})
    with pytest.raises(
        AdcamError, match=r"round_1 holds .*other settings.*\n.*4 -> 5\n.*--restart"
    ):
        segmenter.train_segmenter(other, work_dir=tmp_path)
    masks = tmp_path / "round_1" / "train_masks"
    (masks / "config.json").write_text('{"labeler": {"test": {"flip": true}}}')
    with pytest.raises(AdcamError, match=r"train_masks holds masks with other .*\n.*\n.*--restart"):
        segmenter.train_segmenter(settings, work_dir=tmp_path)
    (masks / "config.json").unlink()
    segmenter.train_segmenter(other, work_dir=tmp_path, resume=False)
    assert trained[2:] == ["round_1", "round_2"] and made[2:] == ["round_1"]
    # Killed in the first round, a start over leaves nothing of the second.
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(segmenter, "_train_once", None)
        segmenter.train_segmenter(other, work_dir=tmp_path, resume=False)
    assert not (tmp_path / "round_2" / "segmenter.safetensors").exists()
    with pytest.raises(AdcamError, match="read by the loss ConfidenceCrossEntropy alone"):
        loss = {"model.decode_head.loss_decode.type": "CrossEntropyLoss"}
        segmenter.train_segmenter(
            read_settings(mini_shapes, **{"train.confidence": True}, **loss), work_dir=tmp_path
        )
    with pytest.raises(AdcamError, match="masks that self_training makes have none"):
        segmenter.train_segmenter(
            settings.with_changes({"train.confidence": True}), work_dir=tmp_path
        )


def test_predict_takes_no_given_labels(tmp_path: Path) -> None:
    with pytest.raises(AdcamError, match="is for `adcam segment test`"):
        prediction.predict_segmenter(
            tmp_path / "x", tmp_path, tmp_path / "out", changes={"test.labels": "given"}
        )


def test_the_documented_commands_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADCAM_DATA_ROOT", raising=False)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    make_shapes(tmp_path / "data" / "shapes", num_train=4, num_val=2, size_hw=(96, 96), seed=0)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (70, 50)).save(tmp_path / "photos" / "a.jpg")
    text = (ROOT / "docs" / "segmentation.md").read_text("utf-8")
    commands = re.findall(r"^\$ adcam ((?:.*\\\n)*.+)$", text, flags=re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        assert main(shlex.split(command.replace("\\\n", " "))) == 0, command
    assert "nothing is wrong" in capsys.readouterr().out
    assert (tmp_path / "predicted" / "masks" / "a.png").is_file()
    assert (tmp_path / "work" / "segmenter" / "test_val.json").is_file()


@pytest.mark.slow
def test_the_table_of_costs_is_what_the_tool_prints() -> None:
    row = runpy.run_path(str(ROOT / "tools" / "segmentation_cost.py"))["row"]
    paths = sorted(CONFIGS.glob("voc12/*.py")) + sorted(CONFIGS.glob("coco14/*.py"))
    text = (ROOT / "docs" / "segmentation.md").read_text("utf-8")
    assert [line for line in map(row, paths) if line not in text] == []
    assert len(re.findall(r"^\| `(?:voc12|coco14)/", text, flags=re.MULTILINE)) == len(paths) == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such checkpoint"),
        ("version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("<!DOCTYPE html>", "a web page"),
        ("", "the file is empty"),
    ],
)
def test_what_is_no_network_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "segmenter.safetensors"
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(AdcamError, match=message):
        prediction.predict_segmenter(path, tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "words",
    ["", "x.py", "train", "predict photos --out x", "predict --checkpoint n", "train a.py photos"],
)
def test_commands_that_lack_something(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["segment", *words.split()])
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def write_config(settings: SegmentationSettings, path: Path) -> None:
    """Settings as a Python config, in which tuples stay tuples."""
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in settings.to_dict().items()))


TRAIN_SCRIPT = """
    import os
    import sys
    import torch
    from adcam.training import segmenter

    torch.set_num_threads(1)
    launcher = "pytorch" if "RANK" in os.environ else "none"
    segmenter.train_segmenter(
        segmenter.load_segmentation_settings(sys.argv[1]), work_dir=sys.argv[2], launcher=launcher
    )
    if launcher == "pytorch":
        torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path, mini_shapes: Path) -> None:
    """torchrun on CPUs: the images of a step are those of one process with twice the batch."""
    settings = read_settings(mini_shapes, **{"train.batch_size": 2, "train.max_iters": 3})
    # Batch statistics are of each process alone; without them the mean gradient is the same.
    head = {"norm_cfg": {"type": "GN", "num_groups": 1}, "dropout_ratio": 0}
    settings = settings.with_changes({"model.decode_head": head})
    write_config(settings, tmp_path / "config.py")
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TRAIN_SCRIPT))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
            *(str(script), str(tmp_path / "config.py"), str(tmp_path / "two")),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    settings = settings.with_changes({"train.batch_size": 4})
    segmenter.train_segmenter(settings, work_dir=tmp_path / "one")
    assert list(losses(tmp_path / "two")) == [1, 2, 3]
    two, one = (
        [line["mIoU"] for line in read_scalars(tmp_path / name) if "mIoU" in line]
        for name in ("two", "one")
    )
    assert two == pytest.approx(one, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_and_resumed_as_if_never_killed(
    tmp_path: Path, mini_shapes: Path, num_workers: int
) -> None:
    """kill -9 while a checkpoint is written: the same batches, crops and losses follow."""
    settings = read_settings(
        mini_shapes,
        **{
            "train.max_iters": 60,
            "train.checkpoint_interval": 10,
            "train.val_interval": 25,
            "train.num_workers": num_workers,
            "model.backbone.drop_path_rate": 0.3,
        },
    )
    segmenter.train_segmenter(settings, work_dir=tmp_path / "whole")
    write_config(settings, tmp_path / "config.py")
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TRAIN_SCRIPT))
    command = [sys.executable, str(script), str(tmp_path / "config.py"), str(tmp_path / "run")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (tmp_path / "run" / "iter_20.pth").exists():
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert max(losses(tmp_path / "run")) < 60
    assert not (tmp_path / "run" / "segmenter.safetensors").exists()
    subprocess.run(command, env=env, check=True, capture_output=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    whole, resumed = ((tmp_path / n / "segmenter.safetensors") for n in ("whole", "run"))
    assert whole.read_bytes() == resumed.read_bytes()


def shrink(size: int) -> dict[str, Any]:
    """Options that make any config of configs/seg a matter of seconds."""
    return {
        "weights": None,
        "train.max_iters": 2,
        "train.batch_size": 2,
        "train.num_workers": 0,
        "train.crop_size": (size, size),
        "train_pipeline.1.crop_size": (size, size),
        "train_pipeline.0.scale": (8 * size, size),
        "train.val_interval": 2,
        "test.short_side": size,
    }


def run_every_stage(settings: SegmentationSettings, tmp_path: Path, images: Path) -> None:
    segmenter.check_segmentation(settings)
    network = segmenter.train_segmenter(settings, work_dir=tmp_path / "run")
    scores = prediction.test_segmenter(settings, network, work_dir=tmp_path / "run")
    assert 0 <= scores["miou"] <= 100
    result = prediction.predict_segmenter(network, images, tmp_path / "predicted")
    assert result["failed"] == {}
    assert len(list((tmp_path / "predicted" / "masks").rglob("*.png"))) == result["ok"] > 0


def configs_of(folder: str) -> list[Any]:
    """SegmentationSettingss of a folder; most are left to the slow tests."""
    names = sorted(path.name for path in (CONFIGS / folder).glob("*.py"))
    return [
        pytest.param(name, marks=[] if "v3plus_r50" in name else [pytest.mark.slow])
        for name in names
    ]


NAMES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.py")
    if "_base_" not in path.parts
)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_has_an_output_for_each_class(name: str) -> None:
    settings = segmenter.load_segmentation_settings(CONFIGS / name)
    segmenter_file.check_heads(settings, build_classes(settings.data.classes or ""))
    assert settings.train_pipeline[-1]["type"] != "PackSegInputs"  # done after weights are attached
    crops = [t["crop_size"] for t in settings.train_pipeline if t["type"] == "RandomCrop"]
    assert [tuple(crop) for crop in crops] == [tuple(settings.train.crop_size)]
    assert settings.data.val not in settings.data.train


@pytest.mark.parametrize("name", configs_of("voc12"))
def test_the_voc_configs_run_through_every_stage(name: str, tmp_path: Path) -> None:
    root = tmp_path / "VOC2012"
    write_voc(root)
    write_sbd(tmp_path / "benchmark_RELEASE")
    convert_sbd(tmp_path / "benchmark_RELEASE", root, partial=True)
    masks = shutil.copytree(root / "SegmentationClassAug", tmp_path / "out" / "masks").parent
    options = {
        **shrink(64),
        "data.root": str(root),
        "data.masks": str(masks),
        "data.expected_counts": {"train_aug": 4, "val": 2},
    }
    settings = segmenter.load_segmentation_settings(CONFIGS / "voc12" / name, options)
    run_every_stage(settings, tmp_path, root / "JPEGImages")


@pytest.mark.parametrize("name", configs_of("coco14"))
def test_the_coco_configs_run_through_every_stage(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    root = tmp_path / "coco"
    write_coco(root, "train2014", "val2014")
    for split in ("train2014", "val2014"):
        convert_coco(root / "annotations" / f"instances_{split}.json", root, partial=True)
    masks = shutil.copytree(root / "masks" / "train2014", tmp_path / "out" / "masks").parent
    options = {
        **shrink(64),
        "data.root": str(root),
        "data.masks": str(masks),
        "data.expected_counts": {"train2014_objects": 2, "val2014": 3},
    }
    settings = segmenter.load_segmentation_settings(CONFIGS / "coco14" / name, options)
    run_every_stage(settings, tmp_path, root / "val2014")


def test_a_small_cnn_as_the_student(mini_shapes: Path, tmp_path: Path) -> None:
    """EfficientNet-Lite0 with random weights, on other data of as many classes."""
    settings = segmenter.load_segmentation_settings(
        CONFIGS / "voc_animals" / "efficientnet-lite0_fcn_voc-animals.py",
        {
            **shrink(48),
            "data.root": str(mini_shapes),
            "data.classes": "shapes",
            "data.train": ["train"],
            "data.expected_counts": {},
            "train.amp": "none",
        },
    )
    run_every_stage(settings, tmp_path, mini_shapes / "JPEGImages")
    weights = load_file(tmp_path / "run" / "segmenter.safetensors")
    assert "backbone.network.blocks.6.0.conv_pwl.weight" in weights
