"""Recorded attention against what each library itself says, and outputs that stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adcam import record_attention
from adcam.models.attention_capture import AttentionCapture
from adcam.models.attention_recorder import compute_weights

SMALL = {"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize("is_fused", [True, False])
def test_a_timm_vit_shows_what_the_capture_reads(is_fused: bool) -> None:
    torch.manual_seed(0)
    vit: Any = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    for block in vit.blocks:
        block.attn.fused_attn = is_fused
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = vit(inputs)
        with AttentionCapture(vit, [(1,)]) as capture:
            vit(inputs)
        with record_attention() as attention:
            output = vit(inputs)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert [tuple(block.shape) for block in attention] == [(2, 5, 5)] * 3
    torch.testing.assert_close(attention[1][:, 1:, 1:], capture.patch2patch[(1,)])
    torch.testing.assert_close(torch.stack(attention, 1)[:, :, 0, 1:], capture.cls2patch)


@pytest.mark.parametrize("masked", ["no", "bool", "float"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_of_torch(masked: str, need_weights: bool) -> None:
    torch.manual_seed(1)
    attend = nn.MultiheadAttention(8, num_heads=2, batch_first=True).eval()
    tokens = torch.randn(3, 6, 8)
    mask: Tensor | None = None
    if masked != "no":
        mask = torch.ones(6, 6, dtype=torch.bool).triu(1)  # True is left out
    if masked == "float":
        mask = torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1) > 0, float("-inf"))
    expected, weights = attend(tokens, tokens, tokens, attn_mask=mask)
    with record_attention() as attention:
        output, given = attend(tokens, tokens, tokens, attn_mask=mask, need_weights=need_weights)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(attention[0], weights)
    if need_weights:
        torch.testing.assert_close(given, weights)
    else:
        assert given is None


@pytest.mark.parametrize("options", [{"is_causal": True}, {"scale": 0.3}, {"enable_gqa": True}])
def test_options_of_the_fused_product(options: dict[str, Any]) -> None:
    torch.manual_seed(2)
    q, v = torch.randn(1, 4, 5, 8), torch.eye(5).expand(1, 4, 5, 5)
    k = torch.randn(1, 2 if "enable_gqa" in options else 4, 5, 8)
    # Values that are the unit matrix make the output the weights.
    weights = F.scaled_dot_product_attention(q, k, v[:, : k.shape[1]], **options)
    torch.testing.assert_close(compute_weights(q, k, **options), weights)
    with record_attention() as attention:
        F.scaled_dot_product_attention(q, k, v[:, : k.shape[1]], **options)
    torch.testing.assert_close(attention[0], weights.mean(dim=1))


def test_gradients_stay_and_what_is_no_self_attention_is_left_out() -> None:
    torch.manual_seed(3)
    tokens = torch.randn(1, 4, 8, requires_grad=True)
    attend = nn.MultiheadAttention(8, num_heads=2, batch_first=True)
    (expected,) = torch.autograd.grad(attend(tokens, tokens, tokens)[0].square().sum(), tokens)
    with record_attention() as attention:
        output = attend(tokens, tokens, tokens, need_weights=False)[0]
        attend(tokens[:, :1], tokens, tokens, need_weights=False)  # a query that pools
        torch.randn(1, 2, 3, 4).softmax(dim=-1)  # no square
        torch.randn(3, 3).softmax(dim=-1)  # no heads
        torch.randn(1, 2, 4, 4).softmax(dim=1)  # over classes
        F.softmax(torch.randn(1, 2, 4, 4), dim=-3)
    (gradient,) = torch.autograd.grad(output.square().sum(), tokens)
    torch.testing.assert_close(gradient, expected)
    assert len(attention) == 1 and not attention[0].requires_grad
