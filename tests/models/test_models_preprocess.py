"""Input sizes and pixels against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adcam.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, compute_input_hw, to_inputs

SIDES = st.integers(1, 20_000)


@pytest.mark.parametrize(
    ("ori_hw", "scale", "expected"),
    [
        ((375, 500), 448, (384, 512)),  # VOC's usual picture
        ((500, 375), 448, (512, 384)),
        ((100, 100), 224, (224, 224)),
        ((1, 1), 224, (224, 224)),
        ((100, 5000), 224, (112, 448)),  # 50:1 counts as 4:1
        ((5000, 100), 224, (448, 112)),
        ((30, 40), 16, (16, 16)),
    ],
)
def test_known_sizes(ori_hw: tuple[int, int], scale: int, expected: tuple[int, int]) -> None:
    assert compute_input_hw(ori_hw, scale, (16, 16)) == expected


@settings(deadline=None)
@given(ori_hw=st.tuples(SIDES, SIDES), scale=st.integers(14, 1000), patch=st.sampled_from([8, 14]))
def test_sizes_fit_the_patch_and_the_area(ori_hw: tuple[int, int], scale: int, patch: int) -> None:
    height, width = compute_input_hw(ori_hw, scale, (patch, patch))
    assert height % patch == width % patch == 0
    assert min(height, width) >= patch
    ratio = min(max(ori_hw[0] / ori_hw[1], 0.25), 4)
    assert abs(height - scale * ratio**0.5) <= patch
    assert abs(width - scale / ratio**0.5) <= patch
    assert compute_input_hw(ori_hw[::-1], scale, (patch, patch)) == (width, height)


@settings(deadline=None)
@given(ori_hw=st.tuples(SIDES, SIDES))
def test_squares_on_demand(ori_hw: tuple[int, int]) -> None:
    assert compute_input_hw(ori_hw, 230, (16, 16), keep_ratio=False) == (224, 224)


def test_a_patch_that_is_not_square() -> None:
    assert compute_input_hw((100, 100), 64, (16, 8)) == (64, 64)
    assert compute_input_hw((100, 100), 40, (16, 8)) == (32, 40)


def test_a_scale_below_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one patch"):
        compute_input_hw((100, 100), 15, (16, 16))


@pytest.mark.parametrize("input_hw", [(32, 48), (96, 64), (37, 53), (64, 160)])
def test_equals_pillow_bicubic_then_normalise(input_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    img = rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)
    resized = Image.fromarray(img).resize(input_hw[::-1], Image.Resampling.BICUBIC)
    expected = (np.asarray(resized, dtype=np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    got = to_inputs(img, input_hw)
    assert got.dtype == torch.float32
    assert got.shape == (3, *input_hw)
    # One grey level of rounding is 1 / 255 / 0.225.
    np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), expected, rtol=0, atol=0.01751)
    difference = np.abs(got.permute(1, 2, 0).numpy() - expected)
    assert (difference < 1e-5).mean() > 0.95


def test_own_statistics_and_no_resize_are_exact() -> None:
    img = np.array([[[0, 255, 51]], [[102, 153, 204]]], dtype=np.uint8)  # 2×1
    got = to_inputs(img, (2, 1), mean=(0.5, 0.0, 0.2), std=(0.5, 1.0, 0.4))
    expected = torch.tensor([[[-1.0], [-0.2]], [[1.0], [0.6]], [[0.0], [1.5]]])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_the_image_is_neither_changed_nor_kept() -> None:
    img = np.full((8, 16, 3), 7, dtype=np.uint8)
    to_inputs(img, (8, 16)).zero_()
    assert (img == 7).all()
    read_only = img.copy()
    read_only.flags.writeable = False
    to_inputs(read_only, (8, 16))
    to_inputs(img[:, ::-1], (16, 16))


@pytest.mark.parametrize(
    "img",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_other_arrays_are_refused(img: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
        to_inputs(img, (16, 16))
