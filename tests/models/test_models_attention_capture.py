"""The attention read off the fused path against timm's own unfused softmax."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from adcam.models import attention_capture
from adcam.models.attention_capture import AttentionCapture
from adcam.ops.token_attention import attend_and_accumulate

TINY = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("deit_tiny_patch16_224", {}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 4}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "no class token": ("vit_tiny_patch16_224", {"class_token": False}),
    "qk_norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
}
PREFIX = {"deit": 1, "registers": 5, "distilled": 2, "no class token": 0, "qk_norm": 1}


def make_vit(kind: str, *, fused: bool) -> Any:
    """A small ViT whose attention is far from uniform; same weights for both values of `fused`."""
    name, options = KINDS[kind]
    torch.manual_seed(0)
    model = timm.create_model(
        name,
        num_classes=0,
        global_pool="token" if kind == "distilled" else "",
        img_size=32,
        dynamic_img_size=True,
        **TINY,
        **options,
    ).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
        nn.init.normal_(block.attn.qkv.weight, std=0.5)
    return model


def oracle_attention(kind: str, inputs: Tensor) -> list[Tensor]:
    """(B, heads, T, T) of every block, as timm's unfused path hands it to its dropout."""
    model = make_vit(kind, fused=False)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attn.attn_drop.register_forward_hook(lambda _m, _args, out: seen.append(out))
    with torch.no_grad():
        model.forward_features(inputs)
    return seen


def make_capture(model: Any, *layer_sets: tuple[int, ...]) -> AttentionCapture:
    return AttentionCapture(model, layer_sets)


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hw", [(32, 32), (24, 40), (40, 16)])
def test_equals_the_unfused_softmax(kind: str, hw: tuple[int, int]) -> None:
    model = make_vit(kind, fused=True)
    prefix = PREFIX[kind]
    assert model.num_prefix_tokens == prefix
    inputs = torch.randn(3, 3, *hw, generator=torch.Generator().manual_seed(1))
    layer_sets = ((0, 1, 2, 3), (2, 3), (1,))
    capture = make_capture(model, *layer_sets)
    with torch.no_grad(), capture:
        model.forward_features(inputs)

    attns = oracle_attention(kind, inputs)
    num_patches = hw[0] * hw[1] // 64
    assert len(attns) == 4
    assert attns[0].shape == (3, 3, prefix + num_patches, prefix + num_patches)
    for layers in layer_sets:
        expected = sum(attns[i].mean(dim=1)[:, prefix:, prefix:] for i in layers) / len(layers)
        torch.testing.assert_close(capture.patch2patch[layers], expected, rtol=0, atol=1e-5)
    if kind == "no class token":
        assert capture.cls2patch is None
    else:
        rows = torch.stack([attn.mean(dim=1)[:, 0, prefix:] for attn in attns], dim=1)
        torch.testing.assert_close(capture.cls2patch, rows, rtol=0, atol=1e-5)


def test_the_oracle_is_not_uniform() -> None:
    """Else the comparison above would hold for any transposition."""
    attn = oracle_attention("deit", torch.randn(1, 3, 24, 40))[0][0, 0]
    assert attn.std() > 0.05
    assert (attn - attn.T).abs().max() > 0.1


def count_fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def count(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return fused(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_are_not_asked_for_stay_as_they_are(kind: str) -> None:
    model = make_vit(kind, fused=True)
    inputs = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model.forward_features(inputs)
        with make_capture(model):
            assert torch.equal(model.forward_features(inputs), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hw", [(32, 32), (24, 40)])
def test_output_of_captured_blocks(kind: str, hw: tuple[int, int]) -> None:
    model = make_vit(kind, fused=True)
    inputs = torch.randn(3, 3, *hw, generator=torch.Generator().manual_seed(1))
    capture = make_capture(model, (0, 1, 3))
    with torch.no_grad():
        want = model.forward_features(inputs)
        with capture:
            got = model.forward_features(inputs)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["deit", "qk_norm"])
def test_output_under_autocast_is_as_near_as_the_fused_one(kind: str) -> None:
    model = make_vit(kind, fused=True)
    inputs = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    capture = make_capture(model, (0, 1, 2, 3))
    with torch.no_grad():
        exact = model.forward_features(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fused = model.forward_features(inputs)
            with capture:
                got = model.forward_features(inputs)
    assert got.dtype == fused.dtype
    error, fused_error = ((x.float() - exact).abs().mean() for x in (got, fused))
    assert 0 < error < 1.2 * fused_error
    mean = capture.patch2patch[(0, 1, 2, 3)]
    assert mean.dtype == torch.float32
    expected = sum(a.mean(dim=1) for a in oracle_attention(kind, inputs)) / 4
    prefix = PREFIX[kind]
    assert (mean - expected[:, prefix:, prefix:]).abs().sum() < 0.05 * mean.sum()


def test_blocks_without_the_fused_path_are_read_as_well() -> None:
    inputs = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    means = []
    for fused in (True, False):
        model = make_vit("deit", fused=fused)
        capture = make_capture(model, (1, 2))
        with torch.no_grad(), capture:
            model.forward_features(inputs)
        means.append(capture.patch2patch[(1, 2)])
    torch.testing.assert_close(means[0], means[1], rtol=0, atol=1e-5)


def test_where_autograd_records_the_fused_path_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_vit("deit", fused=True)
    inputs = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    before = model.forward_features(inputs)
    calls = count_fused_calls(monkeypatch)
    capture = make_capture(model, (0, 1))
    with capture:
        during = model.forward_features(inputs)
    assert len(calls) == 4
    assert torch.equal(before, during)
    mean = capture.patch2patch[(0, 1)]
    mean.square().sum().backward()
    fused_grad = model.blocks[0].attn.qkv.weight.grad.clone()
    model.zero_grad()

    for block in model.blocks:
        block.attn.fused_attn = False
    seen: list[Tensor] = []
    for block in model.blocks[:2]:
        block.attn.attn_drop.register_forward_hook(lambda _m, _args, out: seen.append(out))
    model.forward_features(inputs)
    want = (seen[0] + seen[1]).mean(dim=1)[:, 1:, 1:] / 2
    torch.testing.assert_close(mean, want, rtol=0, atol=1e-5)
    want.square().sum().backward()
    torch.testing.assert_close(fused_grad, model.blocks[0].attn.qkv.weight.grad)


def test_dropout_and_masks_are_left_to_the_fused_path() -> None:
    model = make_vit("deit", fused=True)
    attn = model.blocks[0].attn
    tokens = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(9, 9, dtype=torch.bool).tril()

    def run(capture: AttentionCapture | None, **options: Any) -> Tensor:
        torch.manual_seed(2)
        with torch.no_grad(), capture or contextlib.nullcontext():
            return attn(tokens, **options)

    capture = make_capture(model, (0,))
    plain = run(None)
    masked = run(None, attn_mask=mask)
    assert not torch.allclose(plain, masked)
    assert torch.equal(run(capture, attn_mask=mask), masked)
    attn.train().attn_drop.p = 0.5
    dropped = run(None)
    assert not torch.allclose(plain, dropped)
    assert torch.equal(run(capture), dropped)
    assert capture.patch2patch[(0,)].shape == (2, 8, 8)


def test_no_layer_set_means_no_patch_attention() -> None:
    model = make_vit("deit", fused=True)
    capture = make_capture(model)
    inputs = torch.randn(2, 3, 24, 40)
    with torch.no_grad(), capture:
        model.forward_features(inputs)
    assert capture.patch2patch == {}
    assert capture.cls2patch is not None
    rows = torch.stack([a.mean(dim=1)[:, 0, 1:] for a in oracle_attention("deit", inputs)], dim=1)
    torch.testing.assert_close(capture.cls2patch, rows, rtol=0, atol=1e-5)


def test_hooks_go_away_also_after_an_exception() -> None:
    model = make_vit("deit", fused=True)
    at_rest = hooks_of(model)
    capture = make_capture(model, (0,))
    with torch.no_grad(), capture:
        assert hooks_of(model) == at_rest + 2 * 4
        model.forward_features(torch.randn(1, 3, 16, 24))
    assert hooks_of(model) == at_rest
    with pytest.raises(RuntimeError, match="half-way"), capture:
        raise RuntimeError("half-way")
    assert hooks_of(model) == at_rest


def test_a_second_pass_starts_anew() -> None:
    model = make_vit("deit", fused=True)
    capture = make_capture(model, (1, 2))
    first, second = torch.randn(2, 1, 3, 24, 40, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        with capture:
            model.forward_features(first)
        with capture:
            model.forward_features(second)
    attns = oracle_attention("deit", second)
    expected = (attns[1] + attns[2]).mean(dim=1)[:, 1:, 1:] / 2
    torch.testing.assert_close(capture.patch2patch[(1, 2)], expected, rtol=0, atol=1e-5)
    assert capture.cls2patch is not None
    assert capture.cls2patch.shape == (1, 4, 15)


def test_the_same_set_twice_is_counted_once() -> None:
    model = make_vit("deit", fused=True)
    capture = make_capture(model, (0, 1), (0, 1))
    inputs = torch.randn(1, 3, 16, 24)
    with torch.no_grad(), capture:
        model.forward_features(inputs)
    attns = oracle_attention("deit", inputs)
    expected = (attns[0] + attns[1]).mean(dim=1)[:, 1:, 1:] / 2
    torch.testing.assert_close(capture.patch2patch[(0, 1)], expected, rtol=0, atol=1e-5)


def test_each_block_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_vit("deit", fused=True)
    capture = make_capture(model, (0, 1, 2, 3), (2, 3), (1,))
    started: list[bool] = []

    def count(total: Tensor | None, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        started.append(total is None)
        return attend_and_accumulate(total, *args, **kwargs)

    monkeypatch.setattr(attention_capture, "attend_and_accumulate", count)
    with torch.no_grad(), capture:
        model.forward_features(torch.randn(1, 3, 16, 24))
    # Three sums: of block 0, of block 1, of blocks 2 and 3.
    assert started == [True, True, True, False]


@pytest.mark.parametrize("layers", [(), (1, 1), (4,), (-1,)])
def test_illegal_layer_sets_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"different blocks in 0\.\.3"):
        make_capture(make_vit("deit", fused=True), layers)


def test_attention_of_another_kind_is_refused() -> None:
    """Differential attention has q_norm and k_norm too, but subtracts two softmaxes."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, attn_layer="diff", **TINY)
    with pytest.raises(ValueError, match="DiffAttention"):
        AttentionCapture(model)
    with pytest.raises(ValueError, match="block 0"):
        model.blocks = nn.ModuleList([nn.Linear(2, 2)])
        AttentionCapture(model)
