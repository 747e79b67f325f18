"""The trained module: loss, predictions, normalisation, precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from adcam.models.classifier import Classifier
from adcam.models.inca import InCA
from adcam.models.losses import DepthOutput, TrainMaps, split_attention
from adcam.models.nonlocal_cam import NonlocalCAM
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


@torch.no_grad()
def test_single_labels_are_compared_by_cross_entropy() -> None:
    model = make(single_label=True, cls_token_loss=1.0)
    labels = torch.eye(4)[[2, 0, 3]]
    losses = model(INPUTS, labels, mode="loss")
    log_p = model(INPUTS).double().log_softmax(dim=1)
    expected = -(log_p[0, 2] + log_p[1, 0] + log_p[2, 3]) / 3
    torch.testing.assert_close(losses["loss_patches"].double(), expected, rtol=0, atol=1e-6)
    scores = torch.stack([score for score, _ in model(INPUTS, labels, mode="predict")])
    torch.testing.assert_close(scores.double(), log_p.exp(), rtol=0, atol=1e-6)


def make_cnn(**options: Any) -> Classifier:
    torch.manual_seed(0)
    network = NonlocalCAM(
        "resnet18", num_fg_classes=4, backbone_kwargs={"channels": (8, 12, 16, 20)}
    )
    return Classifier(network, single_label=True, **options)


IMAGES = torch.randint(
    0, 256, (3, 3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
ONE_HOT = torch.eye(4)[[2, 0, 3]]
NO_DROP = {"drop_foreground": False, "drop_background": False}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"loss_patches", "loss_contrastive", "loss_consistency"}),
        ({"contrastive": None}, {"loss_patches", "loss_consistency"}),
        ({"contrastive": "infonce", "consistency_weight": 0}, {"loss_patches", "loss_contrastive"}),
        ({"contrastive": None, "consistency_weight": 0}, {"loss_patches"}),
        (
            {"contrastive": None, "consistency_on": "maps", "layers": (1,)},
            {"loss_patches", "loss_consistency"},
        ),
    ],
)
@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_each_part_of_inca_goes_by_itself(
    kind: str, options: dict[str, Any], names: set[str]
) -> None:
    inca = InCA(**options)
    model = make_cnn(inca=inca) if kind == "cnn" else make(single_label=True, inca=inca)
    images = IMAGES if kind == "cnn" else INPUTS
    labels = ONE_HOT if kind == "cnn" else torch.eye(4)[[2, 0, 3]]
    losses = model.train()(images, labels, mode="loss")
    assert losses.keys() == names
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_incas_losses_are_weighted_means_over_its_depths() -> None:
    plain = InCA(contrastive_weight=1.0, consistency_weight=1.0, margin=2.0, **NO_DROP)
    network = make_cnn().eval().network
    maps, labels = network.train_maps(torch.randn(2, 3, 64, 80), layers="all"), torch.eye(4)[:2]
    once = plain.compute_losses(maps, labels)
    more = InCA(contrastive_weight=0.5, consistency_weight=3.0, margin=2.0).compute_losses(
        maps, labels
    )
    assert once["loss_contrastive"] > 0
    torch.testing.assert_close(more["loss_contrastive"], 0.5 * once["loss_contrastive"])
    torch.testing.assert_close(more["loss_consistency"], 3 * once["loss_consistency"])
    single = [
        plain.compute_losses(replace(maps, depth_outputs=(output,)), labels)["loss_contrastive"]
        for output in maps.depth_outputs
    ]
    torch.testing.assert_close(once["loss_contrastive"], torch.stack(single).mean())


@torch.no_grad()
def test_the_contrast_of_class_maps() -> None:
    """Of maps that are the attention itself: foreground and background are opposite."""
    attn = torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    attn /= attn.amax(dim=(2, 3), keepdim=True)
    cam = (attn - 0.3).sign().expand(-1, 3, -1, -1)
    depth_outputs = (
        DepthOutput(torch.randn(2, 5, 8, 12), torch.rand(2, 1, 8, 12)),
        DepthOutput(cam, attn),
    )
    inca = InCA(contrastive_on="maps", margin=4.0, consistency_weight=0.0)

    def contrast(cam: Tensor, depth_outputs: tuple[DepthOutput, ...]) -> float:
        losses = inca.compute_losses(TrainMaps(cam, None, depth_outputs), torch.eye(3)[:2])
        return losses["loss_contrastive"].item()

    assert contrast(cam, depth_outputs) < 1e-5
    assert contrast(cam.abs(), depth_outputs) == pytest.approx(4)
    contrast(cam, depth_outputs[:1])  # the attention may be of another size


def test_the_consistency_of_class_maps() -> None:
    """A map that is the attention, but for an offset and a factor, loses nothing by it."""
    torch.manual_seed(0)
    attn = torch.rand(2, 1, 4, 6)
    attn -= attn.amin(dim=(2, 3), keepdim=True)
    attn /= attn.amax(dim=(2, 3), keepdim=True)
    early, last = (
        DepthOutput(torch.randn(2, 5, 8, 12), torch.rand(2, 1, 8, 12)),
        DepthOutput(torch.randn(2, 5, 4, 6), attn.requires_grad_()),
    )
    inca = InCA(contrastive=None, consistency_on="maps", consistency_weight=2.0)
    labels = torch.eye(3)[[2, 0]]

    def consistency(cam: Tensor, *outputs: DepthOutput) -> Tensor:
        return inca.compute_losses(TrainMaps(cam, None, outputs), labels)["loss_consistency"]

    cam = torch.randn(2, 3, 4, 6)
    cam[[0, 1], [2, 0]] = 5 * attn.detach().squeeze(1) - 3
    assert consistency(cam, last).item() < 1e-12
    # Earlier attention counts beside the maps, as it does without them.
    alone = replace(inca, consistency_on="layers").compute_losses(
        TrainMaps(cam, None, (early, last)), labels
    )
    torch.testing.assert_close(consistency(cam, early, last), alone["loss_consistency"])
    # The map of the label is pulled, towards the attention; other maps and the attention stay.
    cam = torch.randn(2, 3, 4, 6, requires_grad=True)
    loss = consistency(cam, last)
    (grad,) = torch.autograd.grad(loss, cam, retain_graph=True)
    assert grad[[0, 1], [2, 0]].abs().amin(dim=0).max() > 0
    assert grad[[0, 0, 1, 1], [0, 1, 1, 2]].abs().max() == 0
    assert torch.autograd.grad(loss, last.attn, allow_unused=True) == (None,)
    with torch.no_grad():
        assert consistency(cam - 0.1 * grad, last) < loss


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@torch.no_grad()
def test_inca_plays_no_part_in_predictions(kind: str) -> None:
    images, make_one = (IMAGES, make_cnn) if kind == "cnn" else (INPUTS, make)
    with_it, without = make_one(inca=InCA()).train(), make_one().train()
    with_it.network.eval(), without.network.eval()
    for mode in ("tensor", "predict"):
        got = with_it(images, ONE_HOT, mode=mode)
        expected = without(images, ONE_HOT, mode=mode)
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a[0], b[0])


@torch.no_grad()
def test_a_vits_depth_outputs_are_normalised_tokens_and_class_token_rows_so_far() -> None:
    network = make().network.eval()
    inputs = torch.randn(2, 3, 24, 40)
    depth_outputs = network.train_maps(inputs, layers="all").depth_outputs
    maps = network.token_maps(inputs)
    assert maps.attn_cls2patch is not None
    tokens: list[Tensor] = []
    for block in network.backbone.blocks:
        block.register_forward_hook(lambda _m, _a, out: tokens.append(out[:, 1:]))
    network(inputs)
    for index, output in enumerate(depth_outputs):
        row = maps.attn_cls2patch[:, : index + 1].sum(dim=1).reshape(2, 1, 3, 5)
        torch.testing.assert_close(output.attn, row / row.amax(dim=(2, 3), keepdim=True))
        patch = tokens[index][:, 7]  # row 1, column 2
        expected = (patch - patch.mean(1, keepdim=True)) / (
            patch.var(1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        torch.testing.assert_close(output.features[:, :, 1, 2], expected, rtol=0, atol=1e-5)


def test_a_vit_drops_patch_tokens_and_never_the_class_token() -> None:
    model = make(inca=InCA(layers=(1,), drop_rate=1.0, contrastive=None, consistency_weight=0))
    network = model.network.eval()
    assert model.dropout is not None
    torch.nn.init.normal_(network.backbone.blocks[1].attn.qkv.weight, std=0.5)  # else all alike
    seen: list[Tensor] = []
    network.backbone.norm.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    inputs = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        output = network.train_maps(inputs, layers=(1,)).depth_outputs[0]
        network.train_maps(inputs, layers=(1,), dropout=model.dropout.train())
    kept = split_attention(output.attn, fg_threshold=0.3, drop_threshold=0.8).drop.flatten(1)
    torch.testing.assert_close(seen[1][:, 0], seen[0][:, 0])
    torch.testing.assert_close(seen[1][:, 1:], seen[0][:, 1:] * kept[:, :, None])
    assert kept.any() and not kept.all()


def test_class_token_rows_get_the_consistency_gradient() -> None:
    options = {"contrastive": None, "consistency_weight": 1.0, **NO_DROP}
    model = make(single_label=True, inca=InCA(**options))
    model(INPUTS, torch.eye(4)[[2, 0, 3]], mode="loss")["loss_consistency"].backward()
    first, last = (block.attn.qkv.weight.grad for block in model.network.backbone.blocks)
    assert first is not None and first.abs().max() > 0
    assert last is None or last.abs().max() == 0  # the reference


def test_full_precision_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    with torch.no_grad():
        make()(INPUTS)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"drop_rate": value}, "at least 0 and at most 1") for value in (-0.1, 1.5)),
        *(({"fg_threshold": value}, "at least 0 and below 1") for value in (-0.1, 1.0)),
        *(({"drop_threshold": value}, "above 0 and at most 1") for value in (0.0, 1.1)),
        *(({"margin": value}, "above 0 and at most 4") for value in (0.0, 5.0)),
        ({"temperature": 0.0}, "above 0"),
        ({"contrastive": "triplet"}, "'hinge' or 'infonce'"),
        ({"contrastive_on": "logits"}, "'features' or 'maps'"),
    ],
)
def test_bad_options_of_inca(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"InCA\.{next(iter(options))} must be {message}, got"):
        InCA(**options)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"amp must be .*'bfloat16'.*'fp16'"):
        make(amp="fp16")
    with pytest.raises(ValueError, match="no class token"):
        make(class_token=False, cls_token_loss=1.0)
    with pytest.raises(ValueError, match="no class token"):
        make_cnn(cls_token_loss=1.0)
    with pytest.raises(ValueError, match="no class token"):
        make(class_token=False, inca=InCA())(INPUTS, LABELS, mode="loss")
    with pytest.raises(ValueError, match="mode must be 'loss', 'predict' or 'tensor'"):
        make()(INPUTS, LABELS, mode="losses")
    with pytest.raises(ValueError, match="needs cls_label"):
        make()(INPUTS, mode="loss")
