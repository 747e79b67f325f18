"""Scaling and fusing of maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch.nn import functional as F

from adcam.cams.fuse import fuse_batch, fuse_maps
from adcam.cams.normalize import min_max
from adcam.ops.color_diffusion import diffuse_by_color

MAPS = arrays(np.float32, (2, 3, 4), elements=st.floats(-1e6, 1e6, width=32))


@settings(deadline=None, max_examples=40)
@given(MAPS)
def test_min_max_spans_0_to_1_and_keeps_the_order(values: np.ndarray) -> None:
    maps = torch.from_numpy(values)
    scaled = min_max(maps)
    assert scaled.shape == maps.shape
    for before, after in zip(maps, scaled, strict=True):
        span = float(before.max() - before.min())
        if span <= 1e-8 * float(before.abs().max()):
            assert bool((after == 0).all())
        else:
            assert after.min() == 0
            assert after.max() == 1
            rank = before.flatten().argsort(stable=True)
            assert bool((after.flatten()[rank].diff() >= 0).all())


@settings(deadline=None, max_examples=40)
@given(MAPS, st.sampled_from([0.25, 2.0, 1024.0]))
def test_min_max_ignores_scale(values: np.ndarray, factor: float) -> None:
    maps = torch.from_numpy(values)
    torch.testing.assert_close(min_max(factor * maps), min_max(maps), rtol=0, atol=1e-6)


def test_min_max_exactly() -> None:
    maps = torch.tensor([[[-1.0, 0.0], [3.0, 1.0]], [[5.0, 5.0], [5.0, 5.0]]])
    expected = torch.tensor([[[0.0, 0.25], [1.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    assert torch.equal(min_max(maps), expected)


def test_min_max_takes_rounding_noise_for_constant() -> None:
    noisy = torch.full((1, 2, 3), 1e4, dtype=torch.float64)
    noisy[0, 0, 0] += 1e-9
    assert not min_max(noisy).any()
    small = torch.tensor([[[0.0, 1e-30]]])
    assert min_max(small).max() == 1  # small, but not constant
    slight = torch.tensor([[[1.0, 1.0 + 1e-6]]], dtype=torch.float64)
    assert min_max(slight).max() == 1  # a millionth, but not noise


def test_fuse_of_one_map_is_a_bilinear_resize() -> None:
    rng = np.random.default_rng(0)
    grid = rng.random((3, 5), dtype=np.float32)
    got = fuse_maps([torch.from_numpy(grid)[None, None]], (24, 60))[0].numpy()
    scaled = (grid - grid.min()) / (grid.max() - grid.min())
    resized = np.asarray(Image.fromarray(scaled).resize((60, 24), Image.Resampling.BILINEAR))
    expected = (resized - resized.min()) / (resized.max() - resized.min())
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_the_mirrored_view_comes_back_mirrored() -> None:
    """A network that sees well gives the mirrored map for the mirrored image: nothing changes."""
    grid = torch.tensor([[0.0, 1.0, 4.0], [2.0, 8.0, 3.0]])
    both = torch.stack([grid, grid.flip(-1)])[:, None]  # (2, 1, 2, 3)
    alone = fuse_maps([grid[None, None]], (10, 21))
    torch.testing.assert_close(fuse_maps([both], (10, 21)), alone, rtol=0, atol=1e-6)
    unmirrored = torch.stack([grid, grid])[:, None]
    assert (fuse_maps([unmirrored], (10, 21)) - alone).abs().max() > 0.2


def test_the_mirrored_view_exactly() -> None:
    views = torch.tensor([[[[0.0, 0.0, 2.0]]], [[[0.0, 4.0, 4.0]]]])  # (2, 1, 1, 3)
    # Scaled: (0, 0, 1) and, mirrored back, (1, 1, 0). Mean (.5, .5, .5) is constant.
    assert not fuse_maps([views], (1, 3)).any()
    views[0, 0, 0] = torch.tensor([0.0, 1.0, 2.0])
    # (0, .5, 1) and (1, 1, 0): mean (.5, .75, .5), scaled (0, 1, 0).
    assert torch.equal(fuse_maps([views], (1, 3)), torch.tensor([[[0.0, 1.0, 0.0]]]))


def test_every_scale_has_the_same_say() -> None:
    weak = torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]])
    strong = 1000 * torch.tensor([[[[0.0, 0.0], [1.0, 0.0]]]])
    got = fuse_maps([weak, strong], (2, 2))[0]
    assert torch.equal(got, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_scales_of_other_grids_meet_at_image_size() -> None:
    """A map that rises to the right does so whatever the grid; non-square throughout."""
    grids = [torch.arange(w).float().expand(2, 3, h, w).clone() for h, w in ((2, 4), (5, 7))]
    for grid in grids:
        grid[1] = grid[1].flip(-1)
    fused = fuse_maps(grids, (30, 40))
    assert fused.shape == (3, 30, 40)
    assert fused.dtype == torch.float32
    assert torch.allclose(fused, fused[:, :1].expand_as(fused), atol=1e-6)
    assert bool((fused[:, :, 1:] >= fused[:, :, :-1]).all())
    assert bool((fused[:, :, 0] == 0).all())
    assert bool((fused[:, :, -1] == 1).all())


def test_classes_do_not_mix_and_constant_maps_are_zero() -> None:
    grids = torch.rand(1, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    grids[0, 1] = 7.0
    fused = fuse_maps([grids], (8, 10))
    assert not fused[1].any()
    for k in (0, 2):
        assert torch.equal(fused[k], fuse_maps([grids[:, k : k + 1]], (8, 10))[0])
    # A constant map at one scale leaves the other's as it is.
    both = fuse_maps([grids, torch.ones(1, 3, 4, 4)], (8, 10))
    torch.testing.assert_close(both, fused, rtol=0, atol=1e-6)


def test_half_precision_grids() -> None:
    grid = torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    fused = fuse_maps([grid], (6, 8))
    assert fused.dtype == torch.float32
    assert torch.equal(fused, fuse_maps([grid.float()], (6, 8)))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "no maps"),
        ([(1, 2, 3, 4), (1, 3, 3, 4)], "must all be"),
        ([(1, 2, 3, 4), (2, 2, 3, 4)], "must all be"),
        ([(2, 3, 4)], "must all be"),
        ([(3, 2, 3, 4)], "V must be 1, or 2"),
    ],
)
def test_maps_that_do_not_fit(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse_maps([torch.zeros(shape) for shape in shapes], (8, 8))


def sharpen(grids: list[torch.Tensor], img: np.ndarray, hw: tuple[int, int], steps: int) -> Any:
    """The maps of one image, spread along its colours."""
    pixels, batch = [torch.from_numpy(img)], [grid[None] for grid in grids]
    return fuse_batch(batch, pixels, [hw], color_steps=steps)[0]


def test_sharpened_maps_end_where_the_colour_does() -> None:
    img = np.zeros((64, 96, 3), np.uint8)
    img[:, 40:] = 255  # an edge in the middle of the third patch of 16 pixels
    grid = torch.zeros(1, 1, 4, 6)
    grid[..., :3] = 1.0
    plain = fuse_maps([grid], (64, 96))[0].mean(0)
    sharp = sharpen([grid], img, (64, 96), 10)[0].mean(0)
    assert plain[40:48].mean() > 0.6  # the patch grid cannot tell
    assert sharp[42:].max() < plain[42:].max()
    assert sharp[36:40].mean() - sharp[41:45].mean() > 2 * (
        plain[36:40].mean() - plain[41:45].mean()
    )
    assert (sharp.min(), sharp.max()) == (0, 1)


def test_sharpening_runs_on_a_grid_four_times_as_fine_as_the_finest_scale() -> None:
    generator = torch.Generator().manual_seed(1)
    img = np.asarray(torch.randint(0, 256, (40, 60, 3), generator=generator), np.uint8)
    grids = [torch.rand(1, 2, h, w, generator=generator) for h, w in ((2, 4), (3, 5), (2, 3))]
    fine_hw = (4 * 3, 4 * 5)
    small = torch.from_numpy(img).permute(2, 0, 1)[None].float()
    small = F.interpolate(small, size=fine_hw, mode="area")[0]
    spread = diffuse_by_color(fuse_maps(grids, fine_hw), small, num_steps=2)
    expected = min_max(F.interpolate(spread[None], size=(40, 60), mode="bilinear")[0])
    got = sharpen(grids, img, (40, 60), 2)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_sharpening_takes_scales_and_mirrored_views() -> None:
    generator = torch.Generator().manual_seed(0)
    img = np.asarray(torch.randint(0, 256, (30, 50, 3), generator=generator), np.uint8)
    grids = [
        torch.rand(2, 3, 2, 4, generator=generator),
        torch.rand(2, 3, 3, 5, generator=generator),
    ]
    maps = sharpen(grids, img, (30, 50), 3)
    assert maps.shape == (3, 30, 50)
    assert maps.min() == 0
    assert maps.max() == 1
    # Mirrored, image and views are each other: the second view of a grid is mirrored back.
    image, mirror = np.ascontiguousarray(img[:, ::-1]), [grid.flip(0) for grid in grids]
    back = sharpen(mirror, image, (30, 50), 3).flip(-1)
    torch.testing.assert_close(back, maps, rtol=0, atol=1e-5)
