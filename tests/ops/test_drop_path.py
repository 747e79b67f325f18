"""Draws that are the same on every device: timm's on a CPU."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from timm.layers import DropPath
from torch._subclasses.fake_tensor import FakeTensorMode

from adcam.models.classifier import Classifier
from adcam.models.token_cam import TokenCAM
from adcam.ops.drop_path import SameDropPath

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale_by_keep", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_equals_timm_on_a_cpu(dtype: torch.dtype, scale_by_keep: bool, rate: float) -> None:
    x = torch.randn(64, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for cls in (DropPath, SameDropPath):
        torch.manual_seed(3)
        layer = cls(rate, scale_by_keep)
        results.append((layer(x), torch.rand(4)))  # what is drawn next is the same too
        assert layer.eval()(x) is x
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    dropped = (results[1][0] == 0).flatten(1).all(dim=1)
    assert dropped.float().mean() == pytest.approx(rate, abs=0.15)


def test_what_is_drawn_does_not_depend_on_the_device() -> None:
    """A tensor that is elsewhere takes its draws from the processor's generator."""
    torch.manual_seed(3)
    SameDropPath(0.5)(torch.ones(8, 2))
    after = torch.rand(4)
    torch.manual_seed(3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        result = SameDropPath(0.5)(torch.empty(8, 2, device="cuda"))
    assert result.device.type == "cuda"
    torch.manual_seed(3)
    SameDropPath(0.5)(torch.empty(8, 2, device="meta"))
    assert torch.equal(torch.rand(4), after)


def test_a_classifier_draws_so() -> None:
    network = TokenCAM(
        "deit_tiny_patch16_224",
        num_fg_classes=3,
        img_size=32,
        drop_path_rate=0.3,
        backbone_kwargs=SMALL,
    )
    kinds = Counter(type(module) for module in network.modules())
    assert kinds[DropPath] == 0
    rates = [m.drop_prob for m in network.modules() if isinstance(m, SameDropPath)]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def train_once(device: torch.device | str, *, seed: int = 3) -> list[torch.Tensor]:
    """The losses of a step of a classifier, and the length of each gradient."""
    torch.manual_seed(0)
    network = TokenCAM(
        "deit_tiny_patch16_224",
        num_fg_classes=3,
        img_size=32,
        drop_path_rate=0.5,
        backbone_kwargs=SMALL,
    )
    model = Classifier(network, cls_token_loss=0.5).train()
    inputs = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    cls_label = torch.eye(3).repeat(2, 1)
    model = model.to(device)
    torch.manual_seed(seed)
    losses = model(inputs.to(device), cls_label.to(device), mode="loss")
    torch.stack([*losses.values()]).sum().backward()
    lengths = [x.grad.norm() for x in model.parameters() if x.grad is not None]
    return [x.detach().cpu() for x in (*losses.values(), torch.stack(lengths))]


def test_a_step_follows_from_its_seed() -> None:
    first, again, other = train_once("cpu"), train_once("cpu"), train_once("cpu", seed=4)
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert (other[-1] / first[-1] - 1).abs().median() > 0.05


@pytest.mark.gpu
def test_gpu_takes_the_step_of_a_cpu(gpu: torch.device, full_float32: None) -> None:
    """Another draw would change gradients by much more than their rounding."""
    torch.testing.assert_close(train_once(gpu), train_once("cpu"), rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_gpu_draws_what_a_cpu_draws(gpu: torch.device) -> None:
    layer, x = SameDropPath(0.5), torch.ones(64, 3)
    torch.manual_seed(3)
    on_cpu = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x.to(gpu)).cpu(), on_cpu)
