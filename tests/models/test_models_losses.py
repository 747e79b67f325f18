"""InCA's masks and losses: the properties they must have, exact small cases, empty masks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adcam.models.losses import (
    AttentionMasks,
    contrastive_attention_loss,
    foreground_consistency_loss,
    scale_attention,
    scale_class_maps,
    split_attention,
)


def column(*values: float) -> Tensor:
    """An attention map (1, 1, 1, n)."""
    return torch.tensor(values).reshape(1, 1, 1, -1)


def places(*names: str) -> AttentionMasks:
    """Masks (B, 1, 1, n) in letters: f(oreground), p(eak, foreground too), b(ackground)."""
    fg = torch.tensor([[letter in "fp" for letter in name] for name in names])[:, None, None]
    peak = torch.tensor([[letter == "p" for letter in name] for name in names])[:, None, None]
    return AttentionMasks(fg, peak)


def row(*vectors: tuple[float, ...]) -> Tensor:
    """Features (1, D, 1, n), one vector a place."""
    return torch.tensor(vectors).T[None, :, None].contiguous()


def test_masks_exactly() -> None:
    masks = split_attention(
        torch.cat([column(0.0, 3.0, 3.1, 8.0, 10.0), column(1.0, 0.2, 0.3, 0.31, 0.79)]),
        fg_threshold=0.3,
        drop_threshold=0.8,
    )
    assert masks.fg[:, 0, 0].int().tolist() == [[0, 0, 1, 1, 1], [1, 0, 0, 1, 1]]
    assert masks.bg[:, 0, 0].int().tolist() == [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]]
    assert masks.drop[:, 0, 0].int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 1, 1]]


@given(
    seed=st.integers(0, 2**31),
    fg_threshold=st.floats(0, 0.99),
    drop_threshold=st.floats(0.01, 1),
    scale=st.sampled_from([2.0**-20, 1.0, 2.0**20]),
)
def test_masks_hold_together(
    seed: int, fg_threshold: float, drop_threshold: float, scale: float
) -> None:
    attn = scale * torch.rand(3, 1, 3, 5, generator=torch.Generator().manual_seed(seed))
    options = {"fg_threshold": fg_threshold, "drop_threshold": drop_threshold}
    masks = split_attention(attn, **options)
    assert not (masks.drop & ~masks.fg).any()
    assert torch.equal(masks.bg, ~masks.fg)
    # The strongest place is foreground, and dropped.
    best = attn.flatten(1).argmax(dim=1, keepdim=True)
    assert masks.fg.flatten(1).gather(1, best).all()
    assert not masks.drop.flatten(1).gather(1, best).any()
    scaled = split_attention(scale_attention(attn), **options)
    agree = (scaled.fg == masks.fg).float().mean() + (scaled.peak == masks.peak).float().mean()
    assert agree > 1.9  # rounding may move a place that lies on a threshold


def test_scaled_attention_spans_0_to_1() -> None:
    attn = torch.cat([column(-2.0, 1.0, 4.0), column(0.0, 0.0, 0.0), column(-1.0, -3.0, -2.0)])
    assert scale_attention(attn)[:, 0, 0].tolist() == [[0, 0.25, 1], [0, 0, 0], [0, 0, 0]]


def test_hinge_is_0_where_foregrounds_agree_and_the_background_is_far() -> None:
    same, orthogonal = (3.0, 0.0), (0.0, 0.1)  # at unit length a squared distance of 2
    features = row(same, same, orthogonal)
    for margin in (0.5, 2.0):
        loss = contrastive_attention_loss(features, places("pfb"), margin=margin)
        assert loss.item() == pytest.approx(0, abs=1e-6)
    loss = contrastive_attention_loss(features, places("pfb"), margin=2.5)
    assert loss.item() == pytest.approx(0.5)


def test_both_versions_by_hand() -> None:
    # foreground (1, 0) + (0, 1) -> 45°; dropped foreground (0, 1) alone; background 135°
    features = row((1.0, 0.0), (0.0, 1.0), (-5.0, 5.0))
    masks = places("pfb")
    near = far = 2 - 2 * math.cos(math.pi / 4)
    hinge = contrastive_attention_loss(features, masks, margin=0.25)
    assert hinge.item() == pytest.approx(near - far + 0.25)
    infonce = contrastive_attention_loss(features, masks, version="infonce", temperature=0.1)
    assert infonce.item() == pytest.approx(math.log(2), abs=1e-5)
    features = row((1.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    infonce = contrastive_attention_loss(features, masks, version="infonce", temperature=0.5)
    assert infonce.item() == pytest.approx(-math.log(math.e**2 / (math.e**2 + 1)), abs=1e-5)


@pytest.mark.parametrize("version", ["hinge", "infonce"])
def test_a_sample_with_an_empty_mask_is_skipped(version: str) -> None:
    features = torch.randn(4, 6, 1, 3, generator=torch.Generator().manual_seed(0))
    # the others lack background, dropped foreground, foreground
    masks = places("pfb", "pff", "ppb", "bbb")
    together = contrastive_attention_loss(features, masks, version=version)
    alone = contrastive_attention_loss(features[:1], places("pfb"), version=version)
    assert together.item() == pytest.approx(alone.item(), rel=1e-6)
    assert alone > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("version", ["hinge", "infonce"])
@pytest.mark.parametrize("value", [0.0, 1e-30, 3e4])
def test_nothing_is_ever_nan(dtype: torch.dtype, version: str, value: float) -> None:
    features = torch.full((3, 4, 2, 3), value, dtype=dtype, requires_grad=True)
    attn = torch.zeros(3, 1, 2, 3, dtype=dtype)
    attn[1, 0, 0] = value
    attn[2, 0, 0, 0] = 1
    masks = split_attention(attn, fg_threshold=0.3, drop_threshold=0.8)
    loss = contrastive_attention_loss(features, masks, version=version)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert features.grad is not None and features.grad.isfinite().all()


def test_gradient_parts_object_from_background() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 8, 4, 4, requires_grad=True)
    masks = split_attention(torch.rand(1, 1, 4, 4), fg_threshold=0.4, drop_threshold=0.9)
    optimizer = torch.optim.SGD([features], lr=20.0)
    for version in ("hinge", "infonce"):
        before = contrastive_attention_loss(features, masks, version=version).item()
        for _ in range(50):
            optimizer.zero_grad()
            contrastive_attention_loss(features, masks, version=version).backward()
            optimizer.step()
        after = contrastive_attention_loss(features, masks, version=version).item()
        assert after < max(0.2 * before, 0.05)


def test_scaled_class_maps_exactly() -> None:
    cam = torch.tensor([[[[1.0, 3.0]], [[-1.0, 0.0]], [[9.0, -9.0]]]])
    expected = torch.tensor([[[[0.0, 1.0]]]])
    assert torch.equal(scale_class_maps(cam, torch.tensor([[1.0, 0.0, 0.0]])), expected)
    # Two labels: the sum of their maps, 10 and -6; then a map of one value.
    assert torch.equal(scale_class_maps(cam, torch.tensor([[1.0, 0.0, 1.0]])), 1 - expected)
    assert torch.equal(scale_class_maps(cam, torch.zeros(1, 3)), torch.zeros(1, 1, 1, 2))


def test_consistency_exactly() -> None:
    last = torch.tensor([[[[0.0, 1.0]]]])
    early = [torch.tensor([[[[0.5, 1.0]]]]), torch.tensor([[[[0.0, 0.0]]]])]
    assert foreground_consistency_loss(early, last).item() == pytest.approx(0.125 + 0.5)
    assert foreground_consistency_loss([last.clone(), last.clone()], last).item() == 0
    assert foreground_consistency_loss([], last).item() == 0


def test_consistency_moves_the_early_maps_alone() -> None:
    torch.manual_seed(0)
    early = [torch.rand(2, 1, 6, 10, requires_grad=True) for _ in range(2)]
    last = torch.rand(2, 1, 3, 5, requires_grad=True)
    loss = foreground_consistency_loss(early, last)
    loss.backward()
    assert last.grad is None
    resized = torch.nn.functional.interpolate(last.detach(), size=(6, 10), mode="bilinear")
    for attn in early:
        expected = 2 * (attn - resized) / attn.numel()
        torch.testing.assert_close(attn.grad, expected.detach())


def test_consistency_of_equal_maps_of_other_sizes_is_0() -> None:
    early = [torch.full((2, 1, 6, 10), 0.25), torch.full((2, 1, 2, 2), 0.25).bfloat16()]
    assert foreground_consistency_loss(early, torch.full((2, 1, 3, 5), 0.25)).item() == 0
