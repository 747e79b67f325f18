"""Refining on miniatures: what is learnt, written, resumed, refused; the command."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import read_scalars
from PIL import Image
from safetensors.torch import load_file, save_file

from adcam.cli import main
from adcam.data.folder import load_folder
from adcam.data.png import read_mask
from adcam.data.sources import build_classes
from adcam.errors import AdcamError
from adcam.labeling.generate import generate
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.locks import FolderLock
from adcam.labeling.maps_file import encode_maps, load_maps
from adcam.models.classifier_file import load_classifier, save_classifier
from adcam.models.nonlocal_cam import NonlocalCAM
from adcam.models.refined_cam import RefinedCAM
from adcam.settings import RefineSettings, TestViews
from adcam.structures import ClassMaps
from adcam.training import refiner as refiner_module
from adcam.training.refiner import (
    StoredFeatures,
    build_refined,
    open_maps_folder,
    read_labels,
    train_refiner,
)

# Warnings raised inside mmengine and tensorboard are theirs.
pytestmark = pytest.mark.filterwarnings("default")

ROWS = {"a": "cat", "b c": "dog horse", "sub/ü": "", "sub/z": "horse", "v": "dog", "w": "cat"}
SETTINGS: dict[str, Any] = {"scale": 64, "epochs": 2, "batch_size": 2, "log_interval": 1}


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """Six images with a bright square where their maps, which are drawn, see their first class."""
    root = tmp_path_factory.mktemp("maps")
    rng = np.random.default_rng(0)
    for number, img_id in enumerate(ROWS):
        img = rng.integers(0, 80, (48 + 16 * (number % 2), 64, 3), dtype=np.uint8)
        img[16:32, 16:48, number % 3] += 150
        path = root / "photos" / f"{img_id}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(img).save(path)
    rows = "".join(f"{img_id},{labels}\n" for img_id, labels in ROWS.items())
    (root / "labels.csv").write_text("image_id,labels\n" + rows, "utf-8")
    labeler = PseudoLabeler.from_checkpoint(
        tiny_checkpoint, device="cpu", views=TestViews((64,)), method_options={"color_steps": 1}
    )
    images = load_folder(root / "photos", labels=root / "labels.csv", classes=labeler.class_set)
    generate(images, labeler, root / "out", maps_dtype="uint8", progress=False)
    return root / "out"


def settings(**changes: Any) -> RefineSettings:
    return RefineSettings(**{**SETTINGS, **changes})


def read_losses(work_dir: Path) -> list[float]:
    return [line["loss"] for line in read_scalars(work_dir) if "loss" in line]


def read_head(path: Path) -> dict[str, torch.Tensor]:
    return {name: x for name, x in load_file(path).items() if name.startswith("pixel_head.")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, maps: Path, tiny_checkpoint: Path) -> Path:
    work_dir = tmp_path_factory.mktemp("finished")
    path = train_refiner(settings(), tiny_checkpoint, maps, work_dir)
    assert path == work_dir / "refined.safetensors"
    return work_dir


def test_the_head_alone_is_learnt(finished: Path, tiny_checkpoint: Path) -> None:
    before, loaded = (
        load_classifier(tiny_checkpoint),
        load_classifier(finished / "refined.safetensors"),
    )
    assert isinstance(loaded.network, RefinedCAM)
    assert loaded.class_set == before.class_set
    after = loaded.network.state_dict()
    for name, value in before.network.state_dict().items():
        assert torch.equal(after[name], value), name
    torch.manual_seed(0)
    fresh, _ = build_refined(before, tiny_checkpoint)
    for name, value in fresh.pixel_head.state_dict().items():
        assert not torch.equal(after[f"pixel_head.{name}"], value), name
    assert loaded.info["refined"]["images"] == 6
    assert len(read_losses(finished)) == 2 * 3
    assert not (finished / "features").exists()


def test_it_learns_what_the_maps_say(maps: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """After thirty epochs, sure pixels get the label that the maps gave them, of every image."""
    chosen = settings(epochs=30, lr=1e-2, thresholds=(0.3, 0.6))
    path = train_refiner(chosen, tiny_checkpoint, maps, tmp_path)
    losses = read_losses(tmp_path)
    assert np.mean(losses[-6:]) < 0.3 * np.mean(losses[:6])
    network = load_classifier(path).network
    assert isinstance(network, RefinedCAM)
    labeler = PseudoLabeler.from_checkpoint(
        path, device="cpu", method="refined", method_options={"color_steps": 0, "num_steps": 0},
        views=TestViews((64,)), rule="0.5",
    )  # fmt: skip
    images = open_maps_folder(maps, labeler.class_set)
    right = total = 0
    for index, record in enumerate(images.records):
        labels = read_labels(images, index, maps, chosen.thresholds).numpy()
        names = [images.class_set.classes[i] for i in record.class_ids or ()]
        mask = labeler(record.img_path, labels=names).mask
        values = np.array([0, *images.class_set.mask_values])
        known = labels != 255
        right += int((mask[known] == values[labels[known]]).sum())
        total += int(known.sum())
    assert right > 0.85 * total


def test_labels_are_what_both_thresholds_agree_on(maps: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(maps, folder)
    class_set = build_classes(["cat", "dog", "horse"])
    scores = np.full((2, 64, 64), 0.1, dtype=np.float32)
    scores[0, :16], scores[1, 48:], scores[:, 16:32] = 0.9, 0.8, 0.5
    data = encode_maps(ClassMaps((1, 2), scores), class_set, (64, 64), stride=4)
    (folder / "maps" / "b c.npz").write_bytes(data)
    images = open_maps_folder(folder, class_set)
    labels = read_labels(images, images.index_of("b c"), folder, (0.3, 0.6)).numpy()
    assert set(labels[:12].ravel()) == {2} and set(labels[52:].ravel()) == {3}  # dog, horse
    assert set(labels[20:28].ravel()) == {255} and set(labels[36:44].ravel()) == {0}
    nothing = read_labels(images, images.index_of("sub/ü"), folder, (0.3, 0.6))
    assert not nothing.any()  # no class is all background


def test_half_of_the_images_are_mirrored_together_with_their_labels(tmp_path: Path) -> None:
    tensors = {
        "features": torch.arange(6.0).reshape(1, 2, 3).half(),
        "labels": torch.arange(24, dtype=torch.uint8).reshape(4, 6),
    }
    save_file(tensors, tmp_path / "0.safetensors")
    images = StoredFeatures([tmp_path / "0.safetensors"])
    random.seed(0)
    num_mirrored = 0
    for _ in range(40):
        item = images[0]
        is_mirrored = not torch.equal(item["features"], tensors["features"])
        for name, x in tensors.items():
            assert torch.equal(item[name], x.flip(-1) if is_mirrored else x)
        num_mirrored += is_mirrored
    assert 10 < num_mirrored < 30


def test_a_bound_takes_images_from_the_whole_list(maps: Path, tiny_checkpoint: Path) -> None:
    images = open_maps_folder(maps, load_classifier(tiny_checkpoint).class_set)
    for most, places in ((3, [0, 2, 4]), (4, [0, 1, 3, 4]), (6, list(range(6)))):
        kept = refiner_module._take_evenly(images, most)
        assert [images.index_of(record.img_id) for record in kept.records] == places


def test_a_run_repeats_itself_and_resumes(
    finished: Path,
    maps: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = read_head(finished / "refined.safetensors")
    shutil.copytree(finished, tmp_path / "work")
    work = tmp_path / "work"
    (work / "refined.safetensors").unlink()
    (work / "epoch_2.pth").unlink()  # killed in the second epoch
    (work / "last_checkpoint").write_text(str(work / "epoch_1.pth"))
    again = train_refiner(settings(), tiny_checkpoint, maps, work, resume=True)
    found = read_head(again)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    monkeypatch.setattr(refiner_module, "store_features", None)  # nothing is left to do
    train_refiner(settings(rule="0.3"), tiny_checkpoint, maps, work, resume=True)
    with pytest.raises(AdcamError, match=r"other settings.*\n  settings.seed: 0 -> 1"):
        train_refiner(settings(seed=1), tiny_checkpoint, maps, work, resume=True)


def test_features_that_are_there_are_kept_and_bounded(
    maps: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refiner_module, "build_runner", stop)
    chosen = settings(max_images=4)
    with pytest.raises(KeyboardInterrupt):
        train_refiner(chosen, tiny_checkpoint, maps, tmp_path)
    files = sorted((tmp_path / "features").iterdir())
    assert len(files) == 4
    shapes = {tuple(load_file(path)["labels"].shape) for path in files}
    assert shapes == {(6, 10), (8, 8)}  # 48×64 and 64×64 at 64 px, two labels a patch and side
    before = [path.stat().st_mtime_ns for path in files]
    with pytest.raises(KeyboardInterrupt):
        train_refiner(chosen, tiny_checkpoint, maps, tmp_path, resume=True)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_starting_over_takes_nothing_of_the_training_before(
    finished: Path,
    maps: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(refiner_module, "store_features", None)  # killed before the first epoch
        train_refiner(settings(seed=1), tiny_checkpoint, maps, work)
    assert not list(work.glob("epoch_*.pth")) and not (work / "refined.safetensors").exists()
    path = train_refiner(settings(seed=1), tiny_checkpoint, maps, work, resume=True)
    fresh = train_refiner(settings(seed=1), tiny_checkpoint, maps, tmp_path / "fresh")
    expected, found = read_head(fresh), read_head(path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    before = read_head(finished / "refined.safetensors")
    assert not torch.equal(
        before["pixel_head.classify.weight"], found["pixel_head.classify.weight"]
    )


def test_a_folder_in_use_is_refused(maps: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    try:
        with pytest.raises(AdcamError, match="is in use by process"):
            train_refiner(settings(), tiny_checkpoint, maps, tmp_path)
    finally:
        lock.release()


def test_an_unreadable_image_is_left_out(
    maps: Path, tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(maps.parent, tmp_path / "copy")
    (tmp_path / "copy" / "photos" / "a.png").write_bytes(b"no image")
    train_refiner(settings(epochs=1), tiny_checkpoint, tmp_path / "copy" / "out", tmp_path / "w")
    assert "a.png" in caplog.text
    assert load_classifier(tmp_path / "w" / "refined.safetensors").info["refined"]["images"] == 6


def test_what_is_refused(maps: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    class_set = build_classes(["cat", "dog", "horse"])
    with pytest.raises(AdcamError, match="was not written by `adcam generate`"):
        open_maps_folder(tmp_path, class_set)
    with pytest.raises(AdcamError, match=r"holds maps of .*'horse'.* but the classifier knows"):
        open_maps_folder(maps, build_classes(["cat", "dog"]))
    with pytest.raises(AdcamError, match=r"no map of 6 images has a score above 1\.0.*thresholds"):
        train_refiner(settings(thresholds=(0.5, 1.0)), tiny_checkpoint, maps, tmp_path / "w")
    with pytest.raises(AdcamError, match=r"thresholds must be \(low, high\)"):
        settings(thresholds=(0.6, 0.5))
    shutil.copytree(maps, tmp_path / "out")
    lines = (tmp_path / "out" / "manifest.jsonl").read_text("utf-8").splitlines()
    entries = [{**json.loads(line), "maps": None} for line in lines]
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (tmp_path / "out" / "manifest.jsonl").write_text(text, "utf-8")
    with pytest.raises(AdcamError, match=r"no maps of 6 of 6 images.*--save-maps"):
        open_maps_folder(tmp_path / "out", class_set)
    network = NonlocalCAM("resnet18", num_fg_classes=3, attention=None)
    options = {"kind": "nonlocal_cam", "backbone": "resnet18", "attention": None}
    save_classifier(tmp_path / "cnn.safetensors", network, options, class_set, {})
    with pytest.raises(AdcamError, match=r"cnn\.safetensors: resnet18 has no patch tokens"):
        train_refiner(settings(), tmp_path / "cnn.safetensors", maps, tmp_path / "w")


def call(args: Sequence[object]) -> int:
    return main([str(arg) for arg in args])


def test_the_command(
    maps: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, logged = tmp_path / "refined", tmp_path / "log.jsonl"
    changes = [f"refine.{name}={value}" for name, value in SETTINGS.items()]
    command = [
        *("refine", maps, "--checkpoint", tiny_checkpoint, "--out", out, "--device", "cpu"),
        *("--save-maps", "--workers", 0, "--log-json", logged),
        *("--cfg-options", "cam.scales=[64]", *changes),
    ]
    assert call(command) == 0
    assert len(logged.read_text("utf-8").splitlines()) == 2 + len(ROWS)
    entries = [json.loads(x) for x in (out / "manifest.jsonl").read_text("utf-8").splitlines()]
    assert [entry["id"] for entry in entries] == sorted(ROWS)
    assert {entry["rule"] for entry in entries} == {"steepest"}
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["labeler"]["method"] == "refined"
    assert config["labeler"]["method_options"]["num_steps"] == 0
    labeler = PseudoLabeler.from_checkpoint(
        out / "train" / "refined.safetensors",
        device="cpu",
        method="refined",
        method_options={"num_steps": 0},
        views=TestViews((64,)),
    )
    for img_id, labels in ROWS.items():
        expected = labeler(maps.parent / "photos" / f"{img_id}.png", labels=labels.split())
        assert np.array_equal(read_mask(out / "masks" / f"{img_id}.png"), expected.mask)
        assert load_maps(out / "maps" / f"{img_id}.npz").ori_hw == expected.mask.shape
    before = (out / "train" / "refined.safetensors").stat().st_mtime_ns
    assert call(command) == 0
    told = capsys.readouterr()
    assert "0 masks written, 6 were there" in told.err
    path = out / "train" / "refined.safetensors"
    said = f"generate IMAGES --checkpoint {path} --method refined --out DIR"
    assert said in told.out + told.err
    assert (out / "train" / "refined.safetensors").stat().st_mtime_ns == before
    assert call([*command, "refine.seed=1"]) == 2
    assert "settings.seed: 0 -> 1" in capsys.readouterr().err
    assert call([*command, "refine.seed=1", "--overwrite"]) == 0
    assert call(["refine", tmp_path / "nowhere", *command[2:]]) == 2
    assert "there is no such folder" in capsys.readouterr().err
