"""Classifier files: round trip, float16, and files that are none."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from adcam.errors import AdcamError
from adcam.models.classifier_file import (
    FORMAT,
    LabelThresholds,
    load_classifier,
    save_classifier,
    save_label_thresholds,
)
from adcam.models.file_header import read_described_views
from adcam.models.networks import build_network
from adcam.models.nonlocal_cam import NonlocalCAM
from adcam.models.token_cam import TokenCAM
from adcam.structures import ClassSet

OPTIONS: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "img_size": 32,
    "backbone_kwargs": {
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "reg_tokens": 4,
    },
}
PALETTE = tuple((i, (2 * i) % 256, (3 * i) % 256) for i in range(256))
CLASSES = ClassSet("zoo", ("Löwe", "polar bear"), (3, 8), PALETTE)
INFO = {"val_map": 71.25, "train_splits": ["train", "aux"], "note": "ünïcode"}


def make_network(seed: int = 0) -> TokenCAM:
    torch.manual_seed(seed)
    return TokenCAM(num_fg_classes=2, **OPTIONS).eval()


def write(path: Path, **options: Any) -> TokenCAM:
    network = make_network()
    save_classifier(path, network, OPTIONS, CLASSES, INFO, **options)
    return network


def rewrite_header(path: Path, change: dict[str, Any]) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["adcam"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"adcam": json.dumps({**header, **change})})


def test_label_thresholds_are_written_with_the_classifier(tmp_path: Path) -> None:
    thresholds = LabelThresholds((0.25, 0.75), chosen_on="train", num_images=7)
    write(tmp_path / "c.safetensors", label_thresholds=thresholds)
    assert load_classifier(tmp_path / "c.safetensors").label_thresholds == thresholds
    write(tmp_path / "none.safetensors")
    assert load_classifier(tmp_path / "none.safetensors").label_thresholds is None


def test_views_are_written_with_the_classifier(tmp_path: Path) -> None:
    views = {"scales": [64, 96], "flip": True, "keep_ratio": False}
    path = tmp_path / "c.safetensors"
    write(path, views=views)
    assert load_classifier(path).views == read_described_views(path) == views
    others = {**views, "scales": [80]}
    save_label_thresholds(path, LabelThresholds((0.2, 0.9), "val", 3), views=others)
    assert load_classifier(path).views == others
    write(tmp_path / "none.safetensors")
    assert load_classifier(tmp_path / "none.safetensors").views is None
    assert read_described_views(tmp_path / "none.safetensors") is None
    damaged = tmp_path / "damaged.safetensors"
    save_file({"a": torch.zeros(1)}, damaged, metadata={"adcam": "{"})
    with pytest.raises(AdcamError, match=r"damaged\.safetensors: this classifier cannot be used"):
        read_described_views(damaged)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "c.safetensors"
    network = write(path)
    loaded = load_classifier(path)
    assert loaded.class_set == CLASSES
    assert loaded.info == INFO
    assert not loaded.network.training
    assert loaded.network.state_dict().keys() == network.state_dict().keys()
    inputs = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        expected = network.token_maps(inputs, layer_sets=[(1,)])
        got = loaded.network.token_maps(inputs, layer_sets=[(1,)])
    assert torch.equal(got.cam, expected.cam)
    assert torch.equal(got.attn_patch2patch[(1,)], expected.attn_patch2patch[(1,)])


def test_float16_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    write(tmp_path / "full.safetensors")
    network = write(tmp_path / "half.safetensors", dtype=torch.float16)
    full, half = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("full", "half"))
    header = len(json.dumps({"palette": PALETTE}))
    assert half - header < 0.6 * (full - header)
    loaded = load_classifier(tmp_path / "half.safetensors").network
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())
    assert {p.dtype for p in network.parameters()} == {torch.float32}  # the source is untouched


def test_the_same_content_gives_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    write(tmp_path / "b.safetensors")
    write(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_classifier(path, make_network(1), OPTIONS, CLASSES, {"bad": object()})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_missing_and_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.safetensors: no such checkpoint"):
        load_classifier(tmp_path / "gone.safetensors")
    (tmp_path / "epoch_3.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"epoch_3\.pth.*for resuming only"):
        load_classifier(tmp_path / "epoch_3.pth")


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    write(path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        message = r"c\.safetensors: (not a readable safetensors file|the file is empty)"
        with pytest.raises(ValueError, match=message):
            load_classifier(path)
    path.write_bytes(b"this is text, not tensors" * 10)
    with pytest.raises(ValueError, match="not a readable"):
        load_classifier(path)


def test_bare_weights(tmp_path: Path) -> None:
    save_file(make_network().backbone.state_dict(), tmp_path / "deit.safetensors")
    with pytest.raises(ValueError, match=r"deit\.safetensors: these are bare weights"):
        load_classifier(tmp_path / "deit.safetensors")


def test_a_network_of_segment_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "s.safetensors", metadata={"segmenter": "{}"})
    with pytest.raises(ValueError, match=r"network of `adcam segment`, no classifier"):
        load_classifier(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1}, "newer than this version reads"),
        ({"network": {**OPTIONS, "backbone": "resnet18"}}, "resnet18"),
        ({"network": {**OPTIONS, "colour": 1}}, "colour"),
        ({"network": {"img_size": 32}}, "backbone"),
        ({"network": [1, 2]}, "cannot be used"),
        ({"network": {**OPTIONS, "kind": "mlp"}}, r"model\.kind must be 'token_cam'"),
        ({"info": None, "class_set": None}, "cannot be used"),
        ({"network": {**OPTIONS, "backbone_kwargs": {"depth": 3}}}, "do not fit|size mismatch"),
        ({"class_set": {"name": "zoo"}}, "classes"),
        (
            {
                "class_set": {
                    "name": "zoo",
                    "classes": ["a", "b", "c"],
                    "mask_values": [1, 2, 3],
                    "palette": PALETTE,
                }
            },
            "head.weight",
        ),
    ],
)
def test_descriptions_that_cannot_be_used(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "c.safetensors"
    write(path)
    rewrite_header(path, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_classifier(path)
    assert str(caught.value).startswith(str(path))


@torch.no_grad()
def test_a_convolutional_network_comes_back(tmp_path: Path) -> None:
    options = {
        "kind": "nonlocal_cam",
        "backbone": "resnet18",
        "attention": "nonlocal",
        "out_stride": 8,
        "backbone_kwargs": {"channels": [8, 12, 16, 20]},
    }
    torch.manual_seed(0)
    network = build_network(num_fg_classes=2, **options).eval()
    torch.nn.init.normal_(network.attentions[0].out.weight)  # type: ignore[union-attr, arg-type]
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, network, options, CLASSES, INFO)
    loaded = load_classifier(path).network
    assert isinstance(loaded, NonlocalCAM)
    assert not loaded.training
    inputs = torch.randn(1, 3, 48, 32)
    assert torch.equal(loaded.token_maps(inputs).cam, network.token_maps(inputs).cam)
    assert loaded.token_maps(inputs).grid_hw == (6, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone_kwargs": {"checkpoint_path": "FILE"}}, "no key 'checkpoint_path'"),
        ({"backbone_kwargs": {"pretrained_cfg": {"url": "http://host.invalid/w.pth"}}}, "cfg'"),
        ({"backbone_kwargs": {"pretrained_cfg_overlay": {"file": "FILE"}}}, "overlay'"),
        ({"backbone_kwargs": {"pretrained": True}}, "no key 'pretrained'"),
        ({"backbone_kwargs": {"cache_dir": "FILE"}}, "no key 'cache_dir'"),
        ({"backbone_kwargs": {"depth": {"a": 1}}}, r"depth must be a number.*got \{'a': 1\}"),
        ({"weights": "timm"}, "asks for the weights 'timm'"),
        ({"weights": "FILE"}, "asks for the weights '.*canary.pth'"),
        ({"backbone": "hf-hub:someone/else"}, "unknown timm model"),
        ({"backbone": "local-dir:/tmp"}, "unknown timm model"),
    ],
)
def test_reading_a_file_opens_no_other_and_asks_no_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    canary = tmp_path / "canary.pth"
    torch.save(make_network().backbone.state_dict(), canary)
    path = tmp_path / "c.safetensors"
    write(path)
    text = json.dumps({**OPTIONS, **options}).replace("FILE", str(canary))
    rewrite_header(path, {"network": json.loads(text)})

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("a file made this program open another file or a connection")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(AdcamError, match=message) as caught:
        load_classifier(path)
    assert str(caught.value).startswith(str(path))


def test_a_network_that_a_file_could_not_describe_is_refused_before_training() -> None:
    with pytest.raises(AdcamError, match=r"backbone_kwargs of 'vit_tiny.*'checkpoint_path'"):
        TokenCAM(
            "vit_tiny_patch16_224", num_fg_classes=2, backbone_kwargs={"checkpoint_path": "x.pth"}
        )


def test_weights_of_a_diverged_training_are_named(tmp_path: Path) -> None:
    network = make_network()
    with torch.no_grad():
        network.head.bias[0] = float("nan")  # type: ignore[index]
    path = tmp_path / "c.safetensors"
    save_classifier(path, network, OPTIONS, CLASSES, INFO)
    with pytest.raises(AdcamError, match=r"c\.safetensors: 1 tensors .*NaN.*\['head\.bias'\]"):
        load_classifier(path)


def test_a_page_or_a_pointer_in_place_of_a_classifier(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(AdcamError, match=r"c\.safetensors: is a Git LFS pointer"):
        load_classifier(path)
    path.write_bytes(b"<html>Please sign in</html>")
    with pytest.raises(AdcamError, match=r"c\.safetensors: is a web page"):
        load_classifier(path)


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    write(tmp_path / "c.safetensors")
    renamed = (tmp_path / "c.safetensors").rename(tmp_path / "classifier.bin")
    assert load_classifier(renamed).class_set == CLASSES
