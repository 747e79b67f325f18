"""adcam.refine: foreign maps and attention in every form, against the labeler's own pipeline."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import adcam
from adcam import AdcamError, PseudoLabeler
from adcam.cams import build_method
from adcam.models.classifier_file import load_classifier
from adcam.models.preprocess import to_inputs
from adcam.settings import TestViews

HEADS, TOKENS = 3, 17  # a class token and 4×4 patches


@pytest.fixture
def cam() -> Tensor:
    return torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def layers() -> list[Tensor]:
    """Four blocks (1, heads, T, T)."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, HEADS, TOKENS, TOKENS, generator=generator).mul(2).softmax(dim=-1)
        for _ in range(4)
    ]


@pytest.mark.parametrize("crf", [None, "none", "toco"])
def test_the_maps_of_a_classifier_become_what_the_labeler_makes(
    tiny_checkpoint: Path, crf: str | None
) -> None:
    img = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    loaded = load_classifier(tiny_checkpoint)
    network: Any = loaded.network
    for block in network.backbone.blocks:
        block.attn.qkv.weight.data *= 30  # a random network attends everywhere alike
    options: dict[str, Any] = {"views": TestViews((64,)), "device": "cpu", "crf": crf or "none"}
    label = PseudoLabeler(network, loaded.class_set, **options)(img, ["cat", "horse"])
    mean, std = network.pixel_stats
    inputs = to_inputs(img, (64, 64), mean=mean, std=std)[None]
    with torch.no_grad(), adcam.record_attention() as attention:
        cams = network.class_maps(inputs)[0][0, [0, 2]]
    got = adcam.refine(cams, attention, image=img, crf=crf)
    if crf is None:
        expected = np.stack([label.maps["cat"], label.maps["horse"]])
        np.testing.assert_allclose(got.numpy(), expected, atol=2e-5)
    else:
        values = np.array([0, 8, 13], dtype=np.uint8)  # VOC's cat and horse
        assert np.mean(values[got.numpy()] != label.mask) < 0.005


def test_every_form_of_attention_says_the_same(cam: Tensor, layers: list[Tensor]) -> None:
    expected = adcam.refine(cam, layers)
    assert expected.shape == (2, 4, 4)
    assert float(expected.min()) == 0 and float(expected.max()) == 1
    last = torch.stack(layers[2:])  # AD-CAM reads the last half
    forms: list[Any] = [
        tuple(layers),
        torch.stack(layers),
        torch.stack(layers)[:, 0],
        [block[0] for block in layers],
        [block.mean(dim=1)[0].numpy() for block in layers],
    ]
    for form in forms:
        torch.testing.assert_close(adcam.refine(cam, form), expected)
    # Averaged before, the class token's attention is of the same blocks as the patches'.
    same = adcam.refine(cam, layers, cls_layers="last:1/2")
    for averaged in (last.mean(dim=(0, 1, 2)), last.mean(dim=0), last.mean(dim=(0, 1)).numpy()):
        torch.testing.assert_close(adcam.refine(cam, averaged), same)


def test_arrays_give_arrays_and_half_precision_is_read(cam: Tensor, layers: list[Tensor]) -> None:
    expected = adcam.refine(cam, layers)
    got = adcam.refine(cam.numpy(), [block.numpy() for block in layers])
    assert isinstance(got, np.ndarray) and got.dtype == np.float32
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-6)
    half = adcam.refine(cam, [block.bfloat16() for block in layers])
    torch.testing.assert_close(half, expected, atol=0.05, rtol=0)


def test_an_image_may_be_read_only_or_backwards(cam: Tensor, layers: list[Tensor]) -> None:
    img = np.zeros((8, 8, 3), np.uint8)
    img.flags.writeable = False
    for form in (img, img[::-1, :, ::-1]):
        assert adcam.refine(cam, layers, image=form).shape == (2, 8, 8)


def test_maps_of_another_byte_order(cam: Tensor, layers: list[Tensor]) -> None:
    got = adcam.refine(cam.numpy().astype(">f4"), layers)
    np.testing.assert_array_equal(got, adcam.refine(cam.numpy(), layers))


@pytest.mark.parametrize("tokens", [torch.zeros(1, 7, 7, 3), torch.zeros(50, 3), (1, 2)])
def test_what_are_no_tokens_is_named(tokens: Any) -> None:
    with pytest.raises(AdcamError, match=r"tokens must be a tensor \(B, T, D\)"):
        adcam.tokens_to_grid(tokens)


def test_a_number_of_prefix_tokens_or_a_grid_that_is_none_is_named() -> None:
    for prefix in ("1", 1.5):
        with pytest.raises(AdcamError, match=f"must be a whole number, such as 1, got {prefix!r}"):
            adcam.tokens_to_grid(torch.zeros(1, 17, 8), num_prefix_tokens=prefix)  # type: ignore[arg-type]
    with pytest.raises(AdcamError, match=r"grid_hw must be \(rows, columns\)"):
        adcam.tokens_to_grid(torch.zeros(1, 17, 8), grid_hw=4)  # type: ignore[arg-type]
    one = adcam.tokens_to_grid(torch.zeros(1, 17, 8), num_prefix_tokens=np.int64(1))  # type: ignore[arg-type]
    assert one.shape == (1, 8, 4, 4)


def test_a_batch_is_its_images(cam: Tensor, layers: list[Tensor]) -> None:
    other = [block.flip(-1).flip(-2) for block in layers]
    batch = [torch.cat(pair) for pair in zip(layers, other, strict=True)]
    got = adcam.refine(torch.stack([cam, cam.flip(0)]), batch)
    torch.testing.assert_close(got[0], adcam.refine(cam, layers))
    torch.testing.assert_close(got[1], adcam.refine(cam.flip(0), other))
    with pytest.raises(AdcamError, match=r"cam\[:, None\]"):
        adcam.refine(cam, batch)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 1), (1, 2)])
@pytest.mark.parametrize("as_array", [False, True])
def test_a_result_has_the_sizes_of_the_maps(
    layers: list[Tensor], shape: tuple[int, ...], as_array: bool
) -> None:
    maps: Any = torch.rand(*shape, 4, 4, generator=torch.Generator().manual_seed(0))
    image = np.zeros((8, 12, 3), np.uint8)
    given: list[Any] = [(maps, None), (maps.flatten(-2), (4, 4))]
    given += [([maps], None)] if len(shape) else []
    for cam, grid_hw in given:
        if as_array:
            cam = [maps.numpy()] if isinstance(cam, list) else cam.numpy()
        refine = partial(adcam.refine, cam, layers, grid_hw=grid_hw)
        assert refine().shape == (*shape, 4, 4)
        assert refine(image=image).shape == (*shape, 8, 12)
        assert refine(image=image, crf="none").shape == (*shape[:-1], 8, 12)
        (one,) = refine(image=[image])
        assert one.shape == (*shape[-1:], 8, 12)
        (mask,) = refine(image=(image,), crf="none")
        assert mask.shape == (8, 12)


def test_rows_that_rounding_or_dropped_tokens_change_are_attention(
    cam: Tensor, layers: list[Tensor]
) -> None:
    big = torch.randn(1, 2, 785, 785, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    for dtype in (torch.float16, torch.bfloat16):
        adcam.refine(torch.rand(28, 28), big.to(dtype).mean(dim=1)[0])
    adcam.refine(cam, [block[..., 1:, 1:] for block in layers])


def test_maps_of_any_size_and_shape(cam: Tensor, layers: list[Tensor]) -> None:
    expected = adcam.refine(cam, layers)
    large = cam.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    found = adcam.refine(large, layers, num_prefix_tokens=1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    with pytest.raises(AdcamError, match=r"fitting are .*=1 \(4×4\) or .*=8 \(3×3\)"):
        adcam.refine(cam.repeat(1, 12, 12), layers)  # so few patches leave a choice
    flat = adcam.refine(cam.flatten(1), layers, grid_hw=(4, 4))
    torch.testing.assert_close(flat, expected)
    one = adcam.refine(cam[0], layers)
    torch.testing.assert_close(one, adcam.refine(cam[:1], layers)[0])
    wide = adcam.refine(torch.rand(3, 32, 128), layers, num_prefix_tokens=1)
    assert wide.shape == (3, 2, 8)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_prefix_tokens_are_counted(cam: Tensor, prefix: int) -> None:
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 16 + prefix, 16 + prefix, generator=generator).softmax(dim=-1)
    found = adcam.refine(cam, attention)
    torch.testing.assert_close(adcam.refine(cam, attention, num_prefix_tokens=prefix), found)
    large = cam.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    found_large = adcam.refine(large, attention, num_prefix_tokens=prefix)
    torch.testing.assert_close(found_large, found, atol=1e-4, rtol=0)
    for wrong in {0, 1, 4, 5} - {prefix}:
        with pytest.raises(AdcamError, match=f"num_prefix_tokens={prefix}"):
            adcam.refine(cam, attention, num_prefix_tokens=wrong)


def test_it_is_the_method_with_its_defaults(cam: Tensor, layers: list[Tensor]) -> None:
    alone = adcam.refine(cam, [block[..., 1:, 1:] for block in layers])
    torch.testing.assert_close(adcam.refine(cam, layers, init="cam"), alone)
    assert not torch.allclose(adcam.refine(cam, layers, power=5), adcam.refine(cam, layers))
    still = adcam.refine(
        *(cam, layers),
        **{"init": "cam", "num_steps": 0, "background_weight": 0, "artifact_ratio": 0},
        rival_weight=0,
    )
    low, high = cam.amin(dim=(1, 2), keepdim=True), cam.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(still, (cam - low) / (high - low))
    assert build_method("ad_cam").init == "coupled"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": None}, "attn_implementation='eager'"),
        ({"attention": [torch.rand(17, 17), torch.rand(26, 26)]}, "different numbers of tokens"),
        ({"attention": torch.randn(17, 17)}, "after softmax"),
        ({"attention": torch.rand(17, 16)}, r"must be \(T, T\)"),
        ({"attention": torch.zeros(12, 0, 0)}, r"must be \(T, T\).*got \(12, 0, 0\)"),
        ({"attention": torch.full((17, 17), torch.nan)}, "finite and >= 0"),
        ({"attention": torch.eye(17).where(torch.eye(17) == 0, torch.inf)}, "finite and >= 0"),
        ({"attention": torch.rand(17, 17)}, "sum to 1, .* got up to .* softmax to scores"),
        ({"attention": torch.rand(17, 17).softmax(dim=0)}, "sum to 1"),
        ({"attention": torch.eye(50)}, "4×4 = 16"),
        ({"num_prefix_tokens": "1"}, "must be a whole number, such as 1, got '1'"),
        ({"num_prefix_tokens": 1.0}, "must be a whole number, such as 1, got 1.0"),
        ({"grid_hw": (4, 3)}, "neither on the grid"),
        ({"cam": torch.full((4, 4), float("nan"))}, "NaN"),
        ({"cam": torch.ones(4, 4, dtype=torch.int64)}, "floating point"),
        (
            {"cam": torch.rand(100, 70)},
            r"no grid of square patches .*\(4, 4\) if the network saw a square",
        ),
        ({"crf": "toco"}, "give image"),
        ({"rule": 0.4, "image": np.zeros((8, 8, 3), np.uint8)}, "rule=0.4 .* give crf"),
        ({"crf": "tocco", "image": np.zeros((8, 8, 3), np.uint8)}, "toco"),
        ({"image": [np.zeros((8, 8, 3), np.uint8)] * 2}, "1 images, but 2"),
        ({"pover": 2}, "pover"),
    ],
)
def test_mistakes_are_named(
    cam: Tensor, layers: list[Tensor], changes: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"cam": cam, "attention": layers, **changes}
    if given["attention"] is None:
        given["attention"] = (None,) * 4
    with pytest.raises(AdcamError, match=message):
        adcam.refine(given.pop("cam"), given.pop("attention"), **given)


def test_recorded_images_and_windows_are_not_taken_for_heads(cam: Tensor) -> None:
    attend = torch.nn.MultiheadAttention(8, num_heads=2, batch_first=True)
    two, one = torch.rand(2, TOKENS, 8), torch.rand(1, TOKENS, 8)

    def record(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad(), adcam.record_attention() as attention:
            for tokens in inputs:
                attend(tokens, tokens, tokens)
        return attention

    with pytest.raises(AdcamError, match="attention is of 2 images, the maps are of 1"):
        adcam.refine(cam, record(two))
    with pytest.raises(AdcamError, match="windows, as Swin's"):
        adcam.refine(cam, record(two, one))
    with pytest.raises(AdcamError, match="no attention was recorded"):
        adcam.refine(cam, record())
    batch = adcam.refine(cam[None].expand(2, -1, -1, -1), record(two))
    torch.testing.assert_close(batch[:1], adcam.refine(cam[None], record(two[:1])))


def test_maps_of_a_photograph_do_not_decide_between_two_grids() -> None:
    maps = torch.rand(300, 400, generator=torch.Generator().manual_seed(0))
    attention = [torch.rand(2, 197, 197).softmax(dim=-1) for _ in range(3)]  # 14·14 + 1 = 12·16 + 5
    with pytest.raises(AdcamError, match=r"12×16 patches after 5 others, or 14×14 after 1 .*grid"):
        adcam.refine(maps, attention)
    assert adcam.refine(maps, attention, grid_hw=(14, 14)).shape == (14, 14)
    assert adcam.refine(maps, attention, num_prefix_tokens=5).shape == (12, 16)
    assert adcam.refine(maps[:280, :280], attention).shape == (14, 14)


@pytest.mark.parametrize("grid", [4, "4x4", (4,), (4.0, 4.0)])
def test_what_is_no_grid_is_named(cam: Tensor, layers: list[Tensor], grid: Any) -> None:
    with pytest.raises(AdcamError, match=r"grid_hw must be \(rows, columns\)"):
        adcam.refine(cam, layers, grid_hw=grid)


def test_no_maps_a_list_as_grid_and_a_number_as_rule(cam: Tensor, layers: list[Tensor]) -> None:
    with pytest.raises(AdcamError, match="no maps to refine"):
        adcam.refine(cam[:0], layers)
    torch.testing.assert_close(
        adcam.refine(cam, layers, grid_hw=[4, 4]),  # type: ignore[arg-type]
        adcam.refine(cam, layers),
    )
    image = np.zeros((16, 16, 3), np.uint8)
    masks = [adcam.refine(cam, layers, image=image, crf="none", rule=r) for r in (0.4, "0.4")]
    assert torch.equal(*masks)
