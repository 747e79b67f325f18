"""RefinedCAM: what it adds to the classifier, and what its head reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from adcam.data.sources import build_classes
from adcam.models.classifier_file import load_classifier, save_classifier
from adcam.models.networks import build_network
from adcam.models.refined_cam import RefinedCAM
from adcam.models.token_cam import TokenCAM

TINY = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
OPTIONS: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "img_size": 32,
    "backbone_kwargs": TINY,
}


def make_network(**kwargs: Any) -> RefinedCAM:
    torch.manual_seed(0)
    options = {**OPTIONS, "backbone_kwargs": {**TINY, **kwargs}}
    network = build_network("refined_cam", num_fg_classes=3, **options)
    assert isinstance(network, RefinedCAM)
    return network.eval()


@torch.no_grad()
def test_it_is_the_classifier_with_one_more_output() -> None:
    network = make_network()
    plain = TokenCAM(num_fg_classes=3, **OPTIONS).eval()
    state = network.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    inputs = torch.randn(2, 3, 24, 40)
    expected = plain.token_maps(inputs, layer_sets=[(1, 2)])
    got = network.token_maps(inputs, layer_sets=[(1, 2)])
    assert torch.equal(got.cam, expected.cam)
    assert torch.equal(got.attn_patch2patch[(1, 2)], expected.attn_patch2patch[(1, 2)])
    assert expected.pixel_logits is None and got.pixel_logits is not None
    assert got.pixel_logits.shape == (2, 4, 3, 5)
    features = network.pixel_features(inputs)
    torch.testing.assert_close(network.pixel_head(features), got.pixel_logits)


@pytest.mark.parametrize(
    ("depth", "layers"), [(1, (0,)), (2, (0, 1)), (4, (1, 2, 3)), (6, (2, 3, 5)), (12, (5, 8, 11))]
)
@torch.no_grad()
def test_features_are_the_tokens_of_three_blocks_each_plain(
    depth: int, layers: tuple[int, ...]
) -> None:
    network = make_network(depth=depth, reg_tokens=2)
    seen = {}
    for number, block in enumerate(network.backbone.blocks):
        block.register_forward_hook(lambda *args, n=number: seen.__setitem__(n, args[2]))
    features = network.pixel_features(torch.randn(1, 3, 16, 24))
    expected = [F.layer_norm(seen[i][0, 3:], (24,)) for i in layers]  # after class and registers
    rows = features[0].flatten(1).T  # patches in row-major order
    torch.testing.assert_close(rows, torch.cat(expected, dim=1))


def test_a_file_brings_it_back(tmp_path: Path) -> None:
    network = make_network()
    path = tmp_path / "refined.safetensors"
    options = {**OPTIONS, "kind": "refined_cam"}
    save_classifier(path, network, options, build_classes(["cat", "dog", "cow"]), {})
    loaded = load_classifier(path)
    assert loaded.network_options == options
    inputs = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        got, expected = loaded.network.token_maps(inputs), network.token_maps(inputs)
    assert got.pixel_logits is not None and expected.pixel_logits is not None
    assert torch.equal(got.pixel_logits, expected.pixel_logits)
