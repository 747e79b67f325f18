"""The method of refined classifiers: probabilities of the image's classes, diffused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from adcam.cams import build_method
from adcam.cams.refined import compute_probabilities
from adcam.errors import AdcamError
from adcam.ops.refinement import RefineOptions, reference
from adcam.structures import TokenMaps


def make_maps(logits: Tensor | None) -> TokenMaps:
    batch, outputs, height, width = (1, 4, 2, 3) if logits is None else logits.shape
    cam = torch.zeros(batch, outputs - 1, height, width)
    return TokenMaps(cam.mean(dim=(2, 3)), cam, (height, width), 1, pixel_logits=logits)


def ids(*rows: tuple[int, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1)


def test_a_case_by_hand() -> None:
    """Background 1, classes 3, 6 and 100, of which the image shows the first two."""
    logits = torch.tensor([1.0, 3.0, 6.0, 100.0]).log().view(1, 4, 1, 1)
    got = compute_probabilities(make_maps(logits), ids((0, 1)))
    torch.testing.assert_close(got.flatten(), torch.tensor([0.3, 0.6]))
    alone = compute_probabilities(make_maps(logits), ids((2,)))
    assert alone.item() == pytest.approx(100 / 101)


def test_a_class_named_twice_counts_once() -> None:
    logits = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    method = compute_probabilities
    got = method(make_maps(logits), ids((2, 2, 0), (1, 1, 1)))
    torch.testing.assert_close(got[:1, 1:], method(make_maps(logits[:1]), ids((2, 0))))
    torch.testing.assert_close(got[1:, :1], method(make_maps(logits[1:]), ids((1,))))
    assert torch.equal(got[1, 0], got[1, 2])


def test_absent_classes_change_nothing_and_the_rest_is_background() -> None:
    logits = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    changed = logits.clone()
    changed[:, 2] += 50  # class 1
    method = compute_probabilities
    got = method(make_maps(logits), ids((0, 2)))
    assert torch.equal(got, method(make_maps(changed), ids((0, 2))))
    assert ((got > 0) & (got < 1)).all() and (got.sum(dim=1) < 1).all()
    shifted = make_maps(logits + math.pi)
    torch.testing.assert_close(method(shifted, ids((0, 2))), got)


def with_attention(maps: TokenMaps, attn: Tensor) -> TokenMaps:
    """The same maps of a network of two blocks, whose last half has this attention."""
    return replace(maps, depth=2, attn_patch2patch={(1,): attn})


def test_probabilities_diffuse_as_the_start_of_ad_cam_does() -> None:
    generator = torch.Generator().manual_seed(2)
    plain = make_maps(torch.randn(2, 4, 3, 4, generator=generator))
    attn = torch.rand(2, 12, 12, generator=generator).softmax(dim=-1)
    maps, labels = with_attention(plain, attn), ids((0, 2), (1, 1))
    start = compute_probabilities(plain, labels)
    still = build_method("refined", num_steps=0)
    assert still.layer_sets(2) == ()
    assert torch.equal(still(plain, labels), start)
    for steps in (1, 3):
        method = build_method("refined", num_steps=steps)
        assert method.layer_sets(2) == ((1,),)
        options = RefineOptions(artifact_ratio=0.65, num_steps=steps)
        expected = reference.refine_maps(
            start.flatten(2), attn, (3, 4), options, backend="reference"
        )
        torch.testing.assert_close(method(maps, labels).flatten(2), expected)
    with pytest.raises(AdcamError, match="was not captured"):
        build_method("refined")(plain, labels)


def test_two_groups_that_attend_to_themselves_do_not_mix() -> None:
    """The noise of single patches goes; what the image holds apart stays apart."""
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    attn = (group[:, None] == group).float() / 3
    logits = torch.zeros(1, 4, 2, 3)
    logits[0, 1, 0] = torch.tensor([4.0, -4.0, 4.0])  # class 0 in the upper row, save one patch
    maps = with_attention(make_maps(logits), attn[None])
    options = {"num_steps": 1, "artifact_ratio": 0.0}
    got = build_method("refined", **options)(maps, ids((0,)))
    before = compute_probabilities(maps, ids((0,)))
    torch.testing.assert_close(got[0, 0, 0], before[0, 0, 0].mean().expand(3))
    torch.testing.assert_close(got[0, 0, 1], before[0, 0, 1])
    torch.testing.assert_close(got.sum(), before.sum())


def test_no_class_is_no_map() -> None:
    got = build_method("refined", num_steps=0)(make_maps(torch.zeros(2, 4, 2, 3)), ids((), ()))
    assert got.shape == (2, 0, 2, 3)
    maps = with_attention(make_maps(torch.zeros(2, 4, 2, 3)), torch.full((2, 6, 6), 1 / 6))
    assert build_method("refined")(maps, ids((), ())).shape == (2, 0, 2, 3)


@pytest.mark.parametrize(
    ("class_ids", "message"),
    [
        (ids((3,)), r"must lie in 0\.\.2, got \[\[3\]\]"),
        (ids((-1,)), r"must lie in 0\.\.2"),
        (ids((0,), (1,)), r"class_ids must be \(1, K\)"),
    ],
)
def test_classes_that_are_refused(class_ids: Any, message: str) -> None:
    with pytest.raises(AdcamError, match=message):
        build_method("refined")(make_maps(torch.zeros(1, 4, 2, 3)), class_ids)


def test_a_gpu_is_not_waited_for() -> None:
    """Fake tensors stand in for a GPU's: they have no values to look at."""
    with FakeTensorMode():
        maps = make_maps(torch.zeros(2, 4, 2, 3, device="cuda"))
        found = compute_probabilities(maps, torch.zeros(2, 2, dtype=torch.int64, device="cuda"))
    assert found.shape == (2, 2, 2, 3) and found.is_cuda


def test_other_networks_are_told_what_to_do() -> None:
    maps = replace(make_maps(None), model="resnet18")
    with pytest.raises(AdcamError, match=r"refined classifier, and resnet18 is none; `adcam refin"):
        build_method("refined")(maps, ids((0,)))
