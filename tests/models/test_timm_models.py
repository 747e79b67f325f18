"""timm's networks: published weights without a network, hybrids, models without a head."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from adcam.errors import AdcamError
from adcam.models import timm_models
from adcam.models.imagenet_vit import ImageNetViT
from adcam.models.nonlocal_cam import NonlocalCAM
from adcam.models.token_cam import TokenCAM
from adcam.options import BACKBONE_OPTIONS

SMALL = {"depth": 1, "embed_dim": 24, "num_heads": 3}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a network and with an empty cache; its folder."""

    def refuse(*_args: object, **_options: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(timm_models.constants, "HF_HUB_OFFLINE", False)
    return tmp_path


def cache(folder: Path, repository: str, state: dict[str, torch.Tensor]) -> None:
    path = folder / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / "0123"
    path.mkdir(parents=True)
    save_file(state, path / "model.safetensors")


@pytest.mark.parametrize(
    ("build", "where"),
    [
        (
            lambda: TokenCAM("deit_tiny_patch16_224", num_fg_classes=2, weights="timm"),
            "timm/deit_tiny_patch16_224.fb_in1k/resolve/main/model.safetensors",
        ),
        (
            lambda: NonlocalCAM("resnet18", num_fg_classes=2, weights="timm"),
            "timm/resnet18",
        ),
        (
            lambda: ImageNetViT("deit_tiny_patch16_224", classes=["cat"]),
            "hf download timm/deit_tiny_patch16_224.fb_in1k model.safetensors",
        ),
    ],
)
def test_without_a_network_the_file_and_its_option_are_named_at_once(
    offline: Path, build: Any, where: str
) -> None:
    start = time.perf_counter()
    with pytest.raises(AdcamError, match=r"Name or service not known.*--weights FILE") as caught:
        build()
    assert where in str(caught.value)
    assert time.perf_counter() - start < 10


def test_the_cache_serves_without_a_network(offline: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_classes": 0, "global_pool": "", **SMALL}
    published = timm.create_model("deit_tiny_patch16_224", **options).state_dict()
    cache(offline, "timm/deit_tiny_patch16_224.fb_in1k", published)
    network = TokenCAM(
        "deit_tiny_patch16_224", num_fg_classes=2, weights="timm", backbone_kwargs=SMALL
    )
    loaded = network.backbone.state_dict()
    assert all(torch.equal(loaded[name], published[name]) for name in loaded)


def test_an_answer_of_the_host_lets_timm_try(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(request: urllib.request.Request, **_options: object) -> None:
        asked.append((request.method, request.full_url))
        raise urllib.error.HTTPError(request.full_url, 403, "Forbidden", None, None)  # type: ignore[arg-type]

    def fail(*_args: object, **options: object) -> None:
        assert options["pretrained"] is True
        raise OSError("403 Client Error")

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(AdcamError, match=r"403 Client Error.*--weights FILE"):
        TokenCAM("deit_tiny_patch16_224", num_fg_classes=2, weights="timm")
    assert [method for method, _ in asked] == ["HEAD"]


def test_hf_hub_offline_is_respected(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_models.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AdcamError, match="HF_HUB_OFFLINE is set"):
        TokenCAM("deit_tiny_patch16_224", num_fg_classes=2, weights="timm")


@pytest.mark.parametrize(
    ("name", "patch"),
    [("vit_small_r26_s32_224", 32), ("vit_tiny_r_s16_p8_224", 32), ("vit_base_r50_s16_224", 16)],
)
def test_hybrids_run_with_the_patch_that_their_convolutions_leave(name: str, patch: int) -> None:
    torch.manual_seed(0)
    network = TokenCAM(name, num_fg_classes=2, img_size=64, backbone_kwargs=SMALL).eval()
    assert network.patch_size == (patch, patch)
    with torch.no_grad():
        maps = network.token_maps(torch.randn(1, 3, 2 * patch, 3 * patch), layer_sets=((0,),))
    assert maps.grid_hw == (2, 3)
    assert maps.attn_patch2patch[(0,)].shape == (1, 6, 6)
    with pytest.raises(ValueError, match=f"not a multiple of the patch {patch}×{patch}"):
        network(torch.randn(1, 3, 2 * patch + 8, patch))


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_siglip_224", "vit_small_patch14_dinov2", "vit_base_patch16_dinov3"]
)
def test_models_without_a_head_are_refused_by_name(name: str) -> None:
    with pytest.raises(AdcamError, match=f"'{name}' has no classifier head.*deit_tiny"):
        ImageNetViT(name, classes=["cat"], weights=None)


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_small_patch14_dinov2"])
def test_models_without_a_head_serve_as_backbones(name: str) -> None:
    network = TokenCAM(name, num_fg_classes=2, img_size=56, backbone_kwargs=SMALL).eval()
    side = 2 * network.patch_size[0]
    with torch.no_grad():
        assert network.token_maps(torch.randn(1, 3, side, side)).grid_hw == (2, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_relpos_base_patch16_224", "'vit_relpos_base_patch16_224' cannot be built"),
        ("vit_base_patch16_xp_224", "ParallelScalingBlock"),
        ("eva02_base_patch14_224", "'eva02_base_patch14_224' .*is a Eva"),
    ],
)
def test_transformers_of_other_kinds_are_refused(name: str, message: str) -> None:
    with pytest.raises(AdcamError, match=message):
        TokenCAM(name, num_fg_classes=2, backbone_kwargs=SMALL)


def test_options_of_backbones_are_a_closed_list() -> None:
    opens = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
    assert not BACKBONE_OPTIONS & {*opens, "cache_dir", "block_fn", "features_only", "exportable"}
    with pytest.raises(AdcamError, match="no key 'dept'; did you mean 'depth'"):
        TokenCAM("deit_tiny_patch16_224", num_fg_classes=2, backbone_kwargs={"dept": 3})
