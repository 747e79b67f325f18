"""The trained module: loss, predictions, normalisation, precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adcam.models.classifier import Classifier
from adcam.models.token_cam import TokenCAM

TINY = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
INPUTS = torch.randint(
    0, 256, (3, 3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
LABELS = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]])


def make(*, class_token: bool = True, **options: Any) -> Classifier:
    torch.manual_seed(0)
    network = TokenCAM(
        "vit_tiny_patch16_224",
        num_fg_classes=4,
        img_size=32,
        backbone_kwargs={**TINY, "class_token": class_token},
    )
    return Classifier(network, **options).eval()


def soft_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """-mean(y log σ(x) + (1-y) log(1-σ(x))), in float64."""
    p = logits.double().sigmoid()
    return -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()


@torch.no_grad()
def test_pixels_are_normalised_as_the_weights_expect() -> None:
    model = make()
    expected = model.network((INPUTS / 255.0 - 0.5) / 0.5)
    torch.testing.assert_close(model(INPUTS), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_loss_is_multi_label_soft_margin() -> None:
    model = make()
    losses = model(INPUTS, LABELS, mode="loss")
    assert losses.keys() == {"loss_patches"}
    expected = soft_margin(model(INPUTS), LABELS)
    torch.testing.assert_close(losses["loss_patches"].double(), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_class_token_loss_is_weighted_and_sees_the_class_token() -> None:
    model = make(cls_token_loss=0.25)
    assert model.cls_head is not None
    losses = model(INPUTS, LABELS, mode="loss")
    tokens = model.network.backbone.forward_features((INPUTS / 255.0 - 0.5) / 0.5)
    expected = 0.25 * soft_margin(model.cls_head(tokens[:, 0]), LABELS)
    torch.testing.assert_close(losses["loss_cls_token"].double(), expected, rtol=0, atol=1e-6)
    assert losses.keys() == {"loss_patches", "loss_cls_token"}


def test_class_token_loss_reaches_the_last_blocks_class_token_attention() -> None:
    """What the docstring claims: without it the class token's query there has no gradient."""
    grads = {}
    for weight in (0.0, 1.0):
        model = make(cls_token_loss=weight)
        qkv = model.network.backbone.blocks[-1].attn.qkv
        seen: list[Tensor] = []

        def keep(_module: Any, _args: Any, output: Tensor, seen: list[Tensor] = seen) -> None:
            output.retain_grad()
            seen.append(output)

        qkv.register_forward_hook(keep)
        sum(model(INPUTS, LABELS, mode="loss").values()).backward()
        grads[weight] = seen[0].grad[:, 0, :24].abs().max()  # type: ignore[index]
    assert grads[0.0] == 0
    assert grads[1.0] > 0


@torch.no_grad()
def test_predictions_are_probabilities_beside_labels() -> None:
    model = make()
    predictions = model(INPUTS, LABELS, mode="predict")
    assert len(predictions) == 3
    for (score, label), logits, expected in zip(predictions, model(INPUTS), LABELS, strict=True):
        torch.testing.assert_close(score, 1 / (1 + (-logits).exp()), rtol=0, atol=1e-6)
        assert torch.equal(label, expected)


def test_bfloat16_is_close_and_trains() -> None:
    full, half = make(), make(amp="bfloat16")
    with torch.no_grad():
        torch.testing.assert_close(half(INPUTS), full(INPUTS), rtol=0.05, atol=0.02)
        assert not torch.equal(half(INPUTS), full(INPUTS))
    loss = half(INPUTS, LABELS, mode="loss")["loss_patches"]
    assert loss.dtype == torch.float32
    loss.backward()
    grads = [p.grad for p in half.parameters()]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in grads)


def test_full_precision_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    with torch.no_grad():
        make()(INPUTS)
    assert not recwarn.list


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"amp must be one of .*bfloat16.*'fp16'"):
        make(amp="fp16")
    with pytest.raises(ValueError, match="no class token"):
        make(class_token=False, cls_token_loss=1.0)
    with pytest.raises(ValueError, match="mode must be one of"):
        make()(INPUTS, LABELS, mode="losses")
    with pytest.raises(ValueError, match="needs cls_label"):
        make()(INPUTS, mode="loss")
