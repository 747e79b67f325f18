"""Networks by kind: options that are refused, and a network from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import adcam
from adcam.errors import AdcamError
from adcam.models import networks
from adcam.models.classifier_file import load_classifier, save_classifier
from adcam.models.networks import build_network, network_options, register_network
from adcam.models.token_cam import TokenCAM
from adcam.structures import ClassSet

CLASSES = ClassSet("zoo", ("cat", "dog"), (1, 2), tuple((i, i, i) for i in range(256)))


class SmallCAM(TokenCAM):
    """A network as somebody else would write it."""

    def __init__(self, *, num_fg_classes: int, depth: int = 2) -> None:
        super().__init__(
            "vit_tiny_patch16_224",
            num_fg_classes=num_fg_classes,
            img_size=32,
            backbone_kwargs={"depth": depth, "embed_dim": 24, "num_heads": 3},
        )


@pytest.fixture
def small_kind(monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of a network that is registered for one test."""
    monkeypatch.setattr(networks, "_NETWORKS", dict(networks._NETWORKS))
    monkeypatch.setattr(networks, "NETWORKS", networks._NETWORKS)
    adcam.register_network("small_cam", SmallCAM)
    return "small_cam"


def test_a_network_from_outside_is_used_by_name(small_kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"kind": small_kind, "depth": 1}
    network = build_network(num_fg_classes=2, **options).eval()
    assert isinstance(network, SmallCAM)
    assert network.depth == 1
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, network, options, CLASSES, {})
    loaded = load_classifier(path).network
    inputs = torch.randn(1, 3, 32, 32)
    assert isinstance(loaded, SmallCAM)
    assert torch.equal(loaded(inputs), network(inputs))


def test_options_of_a_network_are_those_of_its_class(small_kind: str) -> None:
    assert network_options(small_kind) == {"depth": int}
    assert list(network_options("token_cam")) == [
        *("backbone", "img_size", "weights", "drop_path_rate", "backbone_kwargs")
    ]
    assert set(network_options("nonlocal_cam")) == {
        *("backbone", "weights", "attention", "out_stride", "frozen_parts", "backbone_kwargs")
    }


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mlp", {}, r"model\.kind must be .*nonlocal_cam.*got 'mlp'"),
        ("token_cams", {}, "did you mean 'token_cam'"),
        ("token_cam", {"bakbone": "x"}, "no key 'bakbone'; did you mean 'backbone'"),
        ("token_cam", {"backbone": 3}, "backbone .*must be text, got 3"),
        ("token_cam", {"backbone": "x", "img_size": "b"}, "img_size .*a whole number, got 'b'"),
        ("nonlocal_cam", {"backbone": "resnet18", "out_stride": None}, "out_stride .*got None"),
    ],
)
def test_wrong_options_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AdcamError, match=message):
        build_network(kind, num_fg_classes=2, **options)


@pytest.mark.parametrize(
    ("kind", "cls", "message"),
    [
        ("token_cam", SmallCAM, "there is a network 'token_cam' already"),
        ("linear", torch.nn.Linear, r"lacks \['depth', .*'the parameter num_fg_classes'\]"),
        ("text", "SmallCAM", "must be a subclass of torch.nn.Module, got 'SmallCAM'"),
    ],
)
def test_what_is_no_network_is_not_registered(kind: str, cls: Any, message: str) -> None:
    with pytest.raises(AdcamError, match=message):
        register_network(kind, cls)
    assert networks.NETWORKS.get(kind) is not cls
