"""ADL: what is dropped, how often, and nothing at evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adcam.models.inca import AttentionDropout, InCA

ATTN = torch.tensor([0.0, 0.3, 0.5, 0.8, 1.0]).reshape(1, 1, 1, 5)
FEATURES = torch.arange(1.0, 11.0).reshape(1, 2, 1, 5)


def make(**options: Any) -> AttentionDropout:
    return AttentionDropout(InCA(**{"drop_background": False, **options}))


def kept(**options: bool) -> list[int]:
    """Places that the drop mask leaves as they are."""
    dropout = make(drop_rate=1.0, drop_threshold=0.8, fg_threshold=0.3, **options)
    out = dropout(FEATURES, ATTN)
    mask = out != 0
    assert torch.equal(out, FEATURES * mask)  # no rescaling
    assert torch.equal(mask[:, :1], mask[:, 1:])  # all channels alike
    return mask[0, 0, 0].int().tolist()


def test_each_part_drops_its_own() -> None:
    assert kept() == [1, 1, 1, 0, 0]  # ADL keeps the background
    assert kept(drop_background=True) == [0, 0, 1, 0, 0]
    assert kept(drop_foreground=False, drop_background=True) == [0, 0, 1, 1, 1]
    assert kept(drop_foreground=False) == [1, 1, 1, 1, 1]


def test_otherwise_the_importance_map() -> None:
    out = make(drop_rate=0.0)(FEATURES, ATTN)
    torch.testing.assert_close(out, FEATURES / (1 + (-ATTN).exp()))


def test_one_draw_a_call_with_the_rate_asked_for() -> None:
    torch.manual_seed(0)
    dropout = make(drop_rate=0.75)
    attn, features = ATTN.expand(4, -1, -1, -1), FEATURES.expand(4, -1, -1, -1)
    dropped = []
    for _ in range(400):
        peak = dropout(features, attn)[:, 0, 0, 4]
        assert (peak == 0).all() or (peak > 0).all()  # the whole batch
        dropped.append(bool(peak[0] == 0))
    assert 0.68 < sum(dropped) / 400 < 0.82


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluation_is_the_identity(dtype: torch.dtype) -> None:
    dropout = make(drop_rate=1.0, drop_background=True)
    assert dropout(FEATURES.to(dtype), ATTN).dtype == dtype
    dropout.eval()
    features = FEATURES.to(dtype)
    assert dropout(features, ATTN) is features


def test_no_gradient_where_nothing_was_kept() -> None:
    features = FEATURES.clone().requires_grad_()
    out: Tensor = make(drop_rate=1.0, drop_background=True)(features, ATTN)
    out.sum().backward()
    assert features.grad is not None
    assert features.grad[0, 0, 0].tolist() == [0, 0, 1, 0, 0]
