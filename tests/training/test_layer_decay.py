"""Learning rates by block: what each parameter really gets from mmengine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from safetensors.torch import load_file
from torch import Tensor

from adcam.errors import AdcamError
from adcam.models.classifier import Classifier
from adcam.models.nonlocal_cam import NonlocalCAM
from adcam.models.token_cam import TokenCAM
from adcam.settings import Settings
from adcam.training.classifier import train_classifier
from adcam.training.layer_decay import decay_rates

DEPTH = 11  # of two digits: blocks.1 must not take in blocks.10
GIVEN: dict[str, Any] = {
    "type": "OptimWrapper",
    "optimizer": {"type": "AdamW", "lr": 1.0},
    "paramwise_cfg": {"custom_keys": {"network.head": {"lr_mult": 10.0}}},
}


def build(**vit: Any) -> Classifier:
    network = TokenCAM(
        "vit_tiny_patch16_224",
        num_fg_classes=2,
        img_size=16,
        backbone_kwargs={
            **{"patch_size": 8, "embed_dim": 12, "depth": DEPTH, "num_heads": 3},
            **vit,
        },
    )
    return Classifier(network, cls_token_loss=1.0)


def read_rates(model: Classifier, optim_wrapper: dict[str, Any]) -> dict[str, float]:
    optimizer = build_optim_wrapper(model, optim_wrapper).optimizer  # type: ignore[arg-type]
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: rate_of[id(p)] for name, p in model.named_parameters()}


def test_each_block_learns_at_its_share_of_the_next_ones_rate() -> None:
    model = build()
    rates = read_rates(model, decay_rates(GIVEN, model, 0.5))
    for i in range(DEPTH):
        names = [name for name in rates if name.startswith(f"network.backbone.blocks.{i}.")]
        assert names
        assert {rates[name] for name in names} == {0.5 ** (DEPTH - i)}
    first = 0.5 ** (DEPTH + 1)
    assert rates["network.backbone.cls_token"] == first
    assert rates["network.backbone.pos_embed"] == first
    assert rates["network.backbone.patch_embed.proj.weight"] == first
    assert rates["network.backbone.norm.weight"] == 1.0
    assert rates["cls_head.weight"] == 1.0
    assert rates["network.head.weight"] == 10.0


def test_a_register_learns_as_the_class_token_does() -> None:
    model = build(reg_tokens=2)
    rates = read_rates(model, decay_rates(GIVEN, model, 0.5))
    assert rates["network.backbone.reg_token"] == rates["network.backbone.cls_token"]


def test_one_changes_nothing_and_rates_of_the_config_win() -> None:
    model = build()
    assert decay_rates(GIVEN, model, 1.0) == GIVEN
    keys = {"network.backbone.blocks.3.": {"lr_mult": 7.0}}
    given = {**GIVEN, "paramwise_cfg": {"custom_keys": keys}}
    rates = read_rates(model, decay_rates(given, model, 0.5))
    assert rates["network.backbone.blocks.3.mlp.fc1.weight"] == 7.0
    assert rates["network.backbone.blocks.4.mlp.fc1.weight"] == 0.5 ** (DEPTH - 4)
    assert "network.backbone.blocks.4." not in keys  # the config's own keys are left alone


def test_a_network_without_blocks_is_refused_by_name() -> None:
    model = Classifier(NonlocalCAM("resnet18", num_fg_classes=2, attention=None))
    with pytest.raises(AdcamError, match=r"layer_decay is 0\.5, but a NonlocalCAM has no"):
        decay_rates(GIVEN, model, 0.5)


@pytest.mark.filterwarnings("default")  # warnings raised inside mmengine are its own
def test_a_training_takes_the_rates(tmp_path: Path, mini_settings: Settings) -> None:
    def train(**changes: Any) -> dict[str, Tensor]:
        changed = {f"train.{name}": value for name, value in {"epochs": 1, **changes}.items()}
        folder = tmp_path / str(changes)
        train_classifier(mini_settings.with_changes(changed), folder)
        return load_file(folder / "classifier.safetensors")

    kept, decayed = train(layer_decay=1e-6), train(layer_decay=1e-7)
    learnt = train()
    for name in (name for name in kept if ".blocks." in name):
        torch.testing.assert_close(kept[name], decayed[name], rtol=0, atol=1e-6)
    weights = [name for name in kept if ".blocks." in name and name.endswith(".weight")]
    assert all((kept[name] - learnt[name]).abs().max() > 1e-3 for name in weights)
