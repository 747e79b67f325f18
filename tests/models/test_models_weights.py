"""Weights from files: containers, prefixes, grids, damage, malice."""

from __future__ import annotations

import io
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from adcam.models.checkpoints import load_state_dict
from adcam.models.token_cam import TokenCAM
from adcam.models.weights import (
    find_weights,
    load_any_backbone_weights,
    load_backbone_weights,
    load_ts_cam_weights,
)

TINY = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def make_vit(name: str = "deit_tiny_patch16_224", *, seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    defaults = {"num_classes": 0, "global_pool": "", "img_size": 32, "dynamic_img_size": True}
    return timm.create_model(name, **{**defaults, **TINY, **options})


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[name], state[name]) for name in own)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    source, target = make_vit(seed=1), make_vit(seed=2)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path)
    assert not same(target, source.state_dict())
    load_backbone_weights(target, path)
    assert same(target, source.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state},
        lambda state: {"model_ema": state},
        lambda state: {"state_dict": {"model": state}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"backbone.{name}": value for name, value in state.items()},
        lambda state: {**state, "head.weight": torch.zeros(1000, 24), "head.bias": torch.zeros(1)},
    ],
)
def test_containers_and_prefixes(tmp_path: Path, wrap: Any) -> None:
    source, target = make_vit(seed=1), make_vit(seed=2)
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    load_backbone_weights(target, tmp_path / "w.pth")
    assert same(target, source.state_dict())


def test_token_cam_takes_a_path_and_computes_the_same(tmp_path: Path) -> None:
    source = TokenCAM("deit_tiny_patch16_224", num_fg_classes=3, img_size=32, backbone_kwargs=TINY)
    torch.save({"model": source.backbone.state_dict()}, tmp_path / "w.pth")
    torch.manual_seed(5)
    loaded = TokenCAM(
        "deit_tiny_patch16_224",
        num_fg_classes=3,
        img_size=32,
        weights=str(tmp_path / "w.pth"),
        backbone_kwargs=TINY,
    )
    inputs = torch.randn(1, 3, 24, 40)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.eval().backbone.forward_features(inputs),
            source.eval().backbone.forward_features(inputs),
        )


def test_float16_is_widened(tmp_path: Path) -> None:
    source, target = make_vit(seed=1), make_vit(seed=2)
    half = {name: value.half() for name, value in source.state_dict().items()}
    save_file(half, tmp_path / "w.safetensors")
    load_backbone_weights(target, tmp_path / "w.safetensors")
    assert same(target, {name: value.float() for name, value in half.items()})
    assert {value.dtype for value in target.state_dict().values()} == {torch.float32}


def test_the_norm_of_average_pooled_models_becomes_the_final_norm(tmp_path: Path) -> None:
    source = make_vit("vit_tiny_patch16_224", seed=1, global_pool="avg")
    nn.init.normal_(source.fc_norm.weight)
    target = make_vit("vit_tiny_patch16_224", seed=2)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_backbone_weights(target, tmp_path / "w.pth")
    assert torch.equal(target.norm.weight, source.fc_norm.weight)


@pytest.mark.parametrize("img_size", [24, 48, (24, 40)])
def test_another_grid_is_resampled(tmp_path: Path, img_size: Any) -> None:
    """A position embedding that is linear in the column stays so, away from the border."""
    source = make_vit(seed=1, img_size=64)  # 8×8
    with torch.no_grad():
        column = torch.arange(8.0).repeat(8)
        source.pos_embed[:, 1:] = column[None, :, None]
    target = make_vit(seed=2, img_size=img_size)
    height, width = target.patch_embed.grid_size
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_backbone_weights(target, tmp_path / "w.pth")
    grid = target.pos_embed[0, 1:].unflatten(0, (height, width))  # (h, w, D)
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])
    torch.testing.assert_close(grid, grid[:1].expand_as(grid), rtol=0, atol=1e-4)  # rows alike
    assert bool((grid[:, 1:] - grid[:, :-1] > 0.5).all())  # columns rise


def test_shapes_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    torch.save(make_vit(seed=1, embed_dim=48).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"wide\.pth.*48.*24"):
        load_backbone_weights(make_vit(seed=2), tmp_path / "wide.pth")


def test_missing_blocks_are_counted(tmp_path: Path) -> None:
    torch.save(make_vit(seed=1, depth=1).state_dict(), tmp_path / "shallow.pth")
    with pytest.raises(ValueError, match=r"Missing 12: \['blocks\.1\."):
        load_backbone_weights(make_vit(seed=2), tmp_path / "shallow.pth")


@pytest.mark.parametrize("img_size", [32, 48])
def test_distilled_weights_do_not_fit_a_model_without_that_token(
    tmp_path: Path, img_size: int
) -> None:
    source = make_vit("deit_tiny_distilled_patch16_224", seed=1, global_pool="token", img_size=32)
    torch.save(source.state_dict(), tmp_path / "distilled.pth")
    with pytest.raises(ValueError, match=r"distilled\.pth: weights do not fit"):
        load_backbone_weights(make_vit(seed=2, img_size=img_size), tmp_path / "distilled.pth")


def test_foreign_content_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(2, 2)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="do not fit"):
        load_backbone_weights(make_vit(seed=2), tmp_path / "resnet.pth")
    for content in ({"epoch": 3}, torch.zeros(3), [1, 2], {"model": {}}):
        torch.save(content, tmp_path / "none.pth")
        with pytest.raises(ValueError, match="holds no tensors by name"):
            load_state_dict(tmp_path / "none.pth")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.pth: no such weights file"):
        load_state_dict(tmp_path / "gone.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(ValueError, match="no such weights file"):
        load_state_dict(tmp_path / "folder.pth")


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "made-by-the-pickle"
    source, target = make_vit(seed=1), make_vit(seed=2)
    torch.save({"model": source.state_dict(), "x": _Malicious(victim)}, tmp_path / "evil.pth")
    load_backbone_weights(target, tmp_path / "evil.pth")
    assert same(target, source.state_dict())
    assert not victim.exists()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"x": _Malicious(victim)}))
    with pytest.raises(ValueError, match=r"plain\.pth: cannot be read as weights"):
        load_state_dict(tmp_path / "plain.pth")
    assert not victim.exists()


@pytest.mark.parametrize("prefix", ["backbone.", "module.base_encoder.", "model.vit.", "encoder."])
def test_whatever_stands_before_the_names_of_a_vit(tmp_path: Path, prefix: str) -> None:
    source, target = make_vit(seed=1), make_vit(seed=2)
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(2)}}, tmp_path / "w.ckpt")
    load_backbone_weights(target, tmp_path / "w.ckpt")
    assert same(target, source.state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_with_nan_name_the_file(tmp_path: Path, value: float) -> None:
    state = make_vit(seed=1).state_dict()
    state["norm.bias"][3] = value
    torch.save({**state, "unused": torch.tensor(value)}, tmp_path / "diverged.pth")
    with pytest.raises(ValueError, match=r"diverged\.pth: 1 tensors hold NaN.*'norm\.bias'"):
        load_backbone_weights(make_vit(seed=2), tmp_path / "diverged.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_value_errors_with_their_name(tmp_path: Path, kind: str) -> None:
    tensors = {"a": torch.randn(4, 4), "b": torch.zeros(3)}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        buffer = io.BytesIO()
        torch.save({"model": tensors}, buffer, _use_new_zipfile_serialization=kind == "zip")
        path.write_bytes(buffer.getvalue())
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for trial in range(80):
        damaged = bytearray(whole)
        if trial % 2:
            del damaged[rng.randrange(len(whole)) :]
        else:
            for _ in range(3):
                damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load_state_dict(path)  # damage to the numbers themselves cannot be seen
        except ValueError as error:
            assert str(error).startswith(str(path))
            refused += 1
    assert refused >= 40


def test_published_weights_are_found_in_the_caches_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(ValueError, match=r"resnet50-\w+\.pth: torchvision's weights .* Fetch http"):
        find_weights("torchvision:resnet50")
    with pytest.raises(ValueError, match="no ImageNet weights of 'resnet7'"):
        find_weights("torchvision:resnet7")
    path = tmp_path / "torch" / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_weights("torchvision:resnet50") == path

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(ValueError, match=r"hf download timm/deit_tiny_patch16_224\.fb_in1k"):
        find_weights("timm", "deit_tiny_patch16_224")
    name = "models--timm--deit_tiny_patch16_224.fb_in1k/snapshots/0123abcd/model.safetensors"
    file = tmp_path / "hf" / "hub" / name
    file.parent.mkdir(parents=True)
    file.touch()
    assert find_weights("timm", "deit_tiny_patch16_224") == file
    assert find_weights("timm:deit_tiny_patch16_224") == file
    with pytest.raises(ValueError, match=r"timm publishes no weights of 'nothing'.*--weights FILE"):
        find_weights("timm:nothing")

    assert find_weights(path) == path
    with pytest.raises(ValueError, match=r"gone\.pth: no such weights file; name a file"):
        find_weights("gone.pth")


def test_a_convnet_takes_torchvisions_names_without_their_classifier(tmp_path: Path) -> None:
    source = torchvision.models.resnet18(num_classes=5)
    target = torchvision.models.resnet18(num_classes=5)
    del target.fc
    path = tmp_path / "resnet.pth"
    torch.save(source.state_dict(), path)
    load_any_backbone_weights(target, path)
    assert same(target, source.state_dict())
    other = torchvision.models.resnet34(num_classes=5)
    del other.fc
    with pytest.raises(ValueError, match=r"do not fit ResNet"):
        load_any_backbone_weights(other, path)


def test_a_vit_is_told_from_a_convnet(tmp_path: Path) -> None:
    source, target = make_vit(seed=1), make_vit(seed=2)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    load_any_backbone_weights(target, tmp_path / "vit.safetensors")
    assert same(target, source.state_dict())


def make_ts_cam(*, num_fg_classes: int = 3, img_size: int = 32) -> TokenCAM:
    return TokenCAM(
        "deit_tiny_patch16_224",
        num_fg_classes=num_fg_classes,
        img_size=img_size,
        backbone_kwargs=TINY,
    ).eval()


def write_ts_cam(path: Path, **change: Any) -> TokenCAM:
    """A checkpoint as vasgaowei/TS-CAM's train_cam.py writes it, and the network in it."""
    torch.manual_seed(4)
    network = make_ts_cam()
    nn.init.normal_(network.head.bias)  # type: ignore[arg-type]
    state = {
        f"module.{name.removeprefix('backbone.')}": value
        for name, value in network.state_dict().items()
    }
    assert {"module.cls_token", "module.head.weight", "module.blocks.0.attn.qkv.weight"} <= set(
        state
    )
    torch.save({"epoch": 7, "state_dict": {**state, **change}, "best_map": np.float64(87.7)}, path)
    return network


@torch.no_grad()
def test_a_checkpoint_of_ts_cams_own_code(tmp_path: Path) -> None:
    source = write_ts_cam(tmp_path / "model_best.pth")
    target = make_ts_cam()
    inputs = torch.randn(2, 3, 24, 40)
    assert not torch.equal(target(inputs), source(inputs))
    load_ts_cam_weights(target, tmp_path / "model_best.pth")
    assert torch.equal(target(inputs), source(inputs))


def test_ts_cam_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth"
    write_ts_cam(path)
    with pytest.raises(
        ValueError, match=r"head\.weight is \(3, 24, 3, 3\) in the file, \(5, 24, 3, 3\)"
    ):
        load_ts_cam_weights(make_ts_cam(num_fg_classes=5), path)
    write_ts_cam(path, **{"module.head.weight": torch.zeros(3, 24)})
    with pytest.raises(ValueError, match="no TS-CAM checkpoint: its head must be a 3×3"):
        load_ts_cam_weights(make_ts_cam(), path)
    write_ts_cam(path, **{"module.norm.weight": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"model_best\.pth: weights do not fit"):
        load_ts_cam_weights(make_ts_cam(), path)
