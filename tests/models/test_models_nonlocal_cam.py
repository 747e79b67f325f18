"""Convolutional networks: sizes, depths, the non-local block, what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from adcam.cams import METHODS, build_method
from adcam.labeling.map_maker import find_layer_sets
from adcam.models.inca import AttentionDropout, InCA
from adcam.models.nonlocal_cam import NonLocalBlock, NonlocalCAM

ADL = InCA(drop_background=False, drop_rate=1.0)
SMALL = {"channels": (8, 12, 16, 20)}


def make(backbone: str = "resnet18", *, seed: int = 0, **options: Any) -> NonlocalCAM:
    torch.manual_seed(seed)
    kwargs = SMALL if backbone.startswith("resnet") else {}
    return NonlocalCAM(backbone, num_fg_classes=3, **{"backbone_kwargs": kwargs, **options}).eval()


def random_images(*hw: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *hw, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("backbone", "out_stride", "grids"),
    [
        ("resnet18", 16, [(4, 6), (4, 6), (4, 6)]),
        ("resnet18", 8, [(8, 12), (8, 12), (8, 12)]),
        ("resnet10t", 16, [(4, 6), (4, 6), (4, 6)]),
        ("resnet10t", 8, [(8, 12), (8, 12), (8, 12)]),
        ("inception_v3", 16, [(8, 12), (4, 6), (4, 6)]),
        ("inception_v3", 8, [(8, 12), (8, 12), (8, 12)]),
        ("vgg16", 16, [(8, 12), (8, 12), (4, 6)]),
        ("vgg16", 8, [(8, 12), (8, 12), (8, 12)]),
        ("tf_efficientnet_lite0", 16, [(8, 12), (4, 6), (4, 6)]),
        ("tf_efficientnet_lite0", 8, [(8, 12), (8, 12), (8, 12)]),
    ],
)
@torch.no_grad()
def test_sizes_at_each_depth(backbone: str, out_stride: int, grids: list[tuple[int, int]]) -> None:
    network = make(backbone, out_stride=out_stride)
    inputs = random_images(64, 96, batch=1)
    maps = network.token_maps(inputs)
    assert maps.grid_hw == (64 // out_stride, 96 // out_stride)
    assert network.patch_size == (out_stride, out_stride)
    assert maps.cam.shape == (1, 3, *maps.grid_hw)
    assert maps.depth == 1 and dict(maps.attn_patch2patch) == {}
    torch.testing.assert_close(maps.logits, maps.cam.flatten(2).mean(dim=2))
    torch.testing.assert_close(network(inputs), maps.logits)
    depth_outputs = network.train_maps(inputs, layers="all").depth_outputs
    assert [tuple(output.features.shape[2:]) for output in depth_outputs] == grids
    for output in depth_outputs:
        assert output.attn.shape == (1, 1, *output.features.shape[2:])
        assert (output.attn.min() >= 0, output.attn.max()) == (True, 1)


@pytest.mark.parametrize(
    ("backbone", "widths"),
    [
        ("vgg16", (256, 512, 512)),
        ("resnet50", (1024, 2048, 2048)),
        ("inception_v3", (288, 768, 1024)),
        ("tf_efficientnet_lite0", (240, 672, 1280)),
    ],
)
def test_depths_of_the_papers_networks(backbone: str, widths: tuple[int, ...]) -> None:
    network = NonlocalCAM(backbone, num_fg_classes=2)
    assert tuple(block.theta.in_channels for block in network.attentions) == widths
    last = [list(part._modules)[-1] for part in network.parts if part._modules]
    assert (
        last
        == {
            "vgg16": ["features_16", "features_22", "features_29", "conv6_relu"],
            "resnet50": ["layer3_0", "layer4_0", "layer4_2"],
            "inception_v3": ["Mixed_5d", "Mixed_6e", "conv7b_relu"],
            "tf_efficientnet_lite0": ["blocks_3_0_bn1", "blocks_5_0_bn1", "bn2"],
        }[backbone]
    )


@torch.no_grad()
def test_a_new_non_local_block_is_the_identity_and_then_the_formula() -> None:
    torch.manual_seed(0)
    block = NonLocalBlock(6)
    features = torch.randn(2, 6, 3, 5)
    assert torch.equal(block(features), features)
    torch.nn.init.normal_(block.out.weight)
    tokens = features.flatten(2)  # (B, D, N)
    theta, phi, g = (
        torch.einsum("ed,bdn->ben", conv.weight[:, :, 0, 0], tokens) + conv.bias[:, None]
        for conv in (block.theta, block.phi, block.g)
    )
    attn = torch.einsum("bei,bej->bij", theta, phi).softmax(dim=2)
    mixed = torch.einsum("bij,bej->bei", attn, g)
    expected = tokens + torch.einsum("de,bei->bdi", block.out.weight[:, :, 0, 0], mixed)
    torch.testing.assert_close(block(features), expected.reshape(features.shape))


@torch.no_grad()
def test_weights_of_a_published_network_give_its_features(tmp_path: Path) -> None:
    """Before a non-local block has learnt anything, and with the strides of the original."""
    torch.manual_seed(5)
    plain = timm.create_model("resnet18", **SMALL).eval()
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
    path = tmp_path / "resnet18.pth"
    torch.save({n: v for n, v in plain.state_dict().items() if "num_batches" not in n}, path)
    network = make(weights=str(path))
    inputs = random_images(64, 96)
    output = network.train_maps(inputs, layers=(0,)).depth_outputs[0]
    expected = plain.layer3[0](
        plain.layer2(plain.layer1(plain.maxpool(plain.act1(plain.bn1(plain.conv1(inputs))))))
    )
    torch.testing.assert_close(output.features, expected)


@torch.no_grad()
def test_an_efficientnet_lite_is_the_published_one_before_its_last_stride(tmp_path: Path) -> None:
    """And behind it with stride 1; what is read for attention is not negative."""
    torch.manual_seed(5)
    name = "tf_efficientnet_lite0"
    plain = timm.create_model(name).eval()
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
    path = tmp_path / "lite0.pth"
    torch.save(plain.state_dict(), path)
    network = make(name, weights=str(path), attention="channel")
    inputs = random_images(112, 80)
    outputs = network.train_maps(inputs, layers="all").depth_outputs
    stem = plain.blocks[:3](plain.bn1(plain.conv_stem(inputs)))
    first = plain.blocks[3][0]
    torch.testing.assert_close(outputs[0].features, first.bn1(first.conv_pw(stem)))
    last = plain.blocks[5][0]
    widened = last.bn1(last.conv_pw(plain.blocks[3:5](stem)))
    torch.testing.assert_close(outputs[1].features, widened)
    last.conv_dw.stride = (1, 1)
    torch.testing.assert_close(outputs[2].features, plain.forward_features(inputs))
    for output in outputs:
        assert output.features.min() == 0
        assert output.features.mean() > 0


def test_frozen_parts_stay_as_they_are_and_the_attention_behind_them_learns() -> None:
    network = make("tf_efficientnet_lite0", frozen_parts=2).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network(random_images(64, 64)).square().sum().backward()
    optimizer.step()
    moved = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    frozen = ("parts.0.", "parts.1.")
    assert not [name for name in moved if name.startswith(frozen)]
    assert {name for name in before if "parts.2." in name and "running_mean" in name} <= moved
    assert {f"attentions.{depth}.out.weight" for depth in range(3)} <= moved
    assert network.parts[2].training and not network.eval().parts[2].training


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(timm.create_model("resnet18", channels=(4, 4, 4, 4)).state_dict(), path)
    with pytest.raises(ValueError, match=r"do not fit ResNet.*wrong shape \d+: .*layer1"):
        make(weights=str(path))


def test_dropping_happens_only_in_training() -> None:
    torch.manual_seed(0)
    network = make(attention="channel")
    dropout = AttentionDropout(ADL)
    inputs = random_images(64, 64)
    plain = network.train_maps(inputs, layers="all").cam
    assert torch.equal(network.train_maps(inputs, layers="all", dropout=dropout.eval()).cam, plain)
    assert not torch.equal(
        network.train_maps(inputs, layers="all", dropout=dropout.train()).cam, plain
    )
    assert torch.equal(network.train_maps(inputs, dropout=dropout).cam, plain)


def test_dropping_may_happen_at_some_of_the_depths_that_are_read() -> None:
    network = make(attention="channel")
    inputs = random_images(64, 64)

    def read(**options: Any) -> list[Tensor]:
        dropout = AttentionDropout(replace(ADL, **options))
        maps = network.train_maps(inputs, layers=(1, 2), dropout=dropout)
        return [output.features for output in maps.depth_outputs] + [maps.cam]

    plain = network.train_maps(inputs, layers=(1, 2))
    last, both = read(drop_layers=(2,)), read()
    assert torch.equal(last[1], plain.depth_outputs[1].features)  # nothing was dropped before
    assert not torch.equal(last[2], plain.cam)
    assert not torch.equal(both[1], last[1])
    with pytest.raises(ValueError, match=r"drop_layers \(0,\) must be among layers \(1, 2\)"):
        read(drop_layers=(0,))


def test_adl_takes_the_channel_mean_as_it_is() -> None:
    seen = []

    class Watch(AttentionDropout):
        def forward(self, features: Tensor, attn: Tensor) -> Tensor:
            seen.append((features, attn))
            return features

    inputs = random_images(64, 64)
    make(attention="channel").train_maps(inputs, layers="all", dropout=Watch(ADL))
    assert len(seen) == 3
    for features, attn in seen:
        assert torch.equal(attn, features.mean(dim=1, keepdim=True))
    seen.clear()
    make().train_maps(inputs, layers="all", dropout=Watch(ADL))
    for features, attn in seen:
        mean = features.mean(dim=1, keepdim=True)
        torch.testing.assert_close(attn, mean / mean.amax(dim=(2, 3), keepdim=True))


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"refined"}))
def test_only_cam_works_and_the_others_name_the_network(name: str) -> None:
    network = make(attention=None)
    method = build_method(name)
    maps = network.token_maps(random_images(32, 48))
    class_ids = torch.tensor([[0, 2], [1, 1]])
    if name == "cam":
        assert find_layer_sets(method, network) == ()
        assert method(maps, class_ids).shape == (2, 2, 2, 3)
        return
    with pytest.raises(ValueError, match=r"resnet18: .*no attention.*'cam'"):
        find_layer_sets(method, network)
    with pytest.raises(ValueError, match=r"resnet18|without transformer blocks"):
        method(maps, class_ids)


def test_the_last_attention_couples_with_the_class_maps() -> None:
    """Where the channel mean is low, nothing is found, whatever the class maps say."""
    network = make(attention="channel").eval()
    inputs, class_ids = random_images(32, 48), torch.tensor([[0, 2], [1, 1]])
    with torch.no_grad():
        maps = network.token_maps(inputs)
        last = network.train_maps(inputs, layers="all").depth_outputs[-1]
    assert maps.attn_cls2patch is not None
    torch.testing.assert_close(maps.attn_cls2patch, last.attn.flatten(2))
    method = build_method("ts_cam")
    assert find_layer_sets(method, network) == ()
    cam = build_method("cam")(maps, class_ids)
    torch.testing.assert_close(method(maps, class_ids), cam * last.attn)
    with pytest.raises(ValueError, match=r"without attention of patches"):
        network.token_maps(inputs, layer_sets=find_layer_sets(build_method("ad_cam"), network))


def test_attention_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match=r"resnet18 is a convolutional network without attention"):
        make().token_maps(random_images(32, 32), layer_sets=[(0,)])
    with pytest.raises(ValueError, match="resnet18 was built with attention=None"):
        make(attention=None).train_maps(random_images(32, 32), layers="all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "deit_tiny_patch16_224"}, "backbone must be a timm model of the families"),
        ({"backbone": "resnet_of_mine"}, "backbone must be a timm model"),
        ({"attention": "global"}, "attention must be one of"),
        ({"frozen_parts": 4}, "frozen_parts must lie in 0 to 3, got 4"),
        ({"out_stride": 4}, r"out_stride must be one of \(8, 16\), got 4"),
        ({"backbone_kwargs": {"widths": 3}}, "no key 'widths'"),
        ({"backbone_kwargs": {"patch_size": 8}}, "cannot be built with"),
        ({"weights": "gone.pth"}, "no such weights file"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
    with pytest.raises(ValueError, match="not a multiple of the patch 16×16"):
        make()(random_images(40, 64))


def test_bfloat16_trains_without_nan() -> None:
    network = make().train()
    with torch.autocast("cpu", torch.bfloat16):
        maps = network.train_maps(
            random_images(64, 64, batch=4),
            layers="all",
            dropout=AttentionDropout(InCA(drop_background=False)),
        )
    loss = maps.cam.float().square().mean() + sum(s.attn.mean() for s in maps.depth_outputs)
    loss.backward()
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)
