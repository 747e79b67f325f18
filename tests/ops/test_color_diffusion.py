"""Diffusion along colour: exact small cases, the sum by definition, properties."""

from __future__ import annotations

import math

import pytest
import torch

from adcam.ops.color_diffusion import diffuse_by_color


def make_images(*leading: int, hw: tuple[int, int], channels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*leading, channels, *hw, generator=generator, dtype=torch.float64)


def step_by_definition(
    maps: torch.Tensor, img: torch.Tensor, dilations: tuple[int, ...], contrast: float, w: float
) -> torch.Tensor:
    """One step, pixel by pixel, with Python's numbers."""
    _, height, width = img.shape
    offsets = [
        (d * y, d * x)
        for d in dilations
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
        if (y, x) != (0, 0)
    ]
    lengths = torch.tensor([math.hypot(*offset) for offset in offsets], dtype=img.dtype)
    by_distance = (-((lengths / (contrast * lengths.std())) ** 2)).softmax(0)
    out = torch.zeros_like(maps)
    for y in range(height):
        for x in range(width):
            places = [
                (min(max(y + down, 0), height - 1), min(max(x + right, 0), width - 1))
                for down, right in offsets
            ]
            colors = torch.stack([img[:, i, j] for i, j in places])  # (O, C)
            scaled = (colors - img[:, y, x]) / (contrast * colors.std(0))
            by_color = (-(scaled**2).mean(1)).softmax(0)
            weights = (by_color + w * by_distance) / (1 + w)
            values = torch.stack([maps[:, i, j] for i, j in places])
            out[:, y, x] = (weights[:, None] * values).sum(0)
    return out


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4)])
def test_one_step_agrees_with_the_definition(dilations: tuple[int, ...]) -> None:
    maps = make_images(hw=(5, 7), channels=2, seed=0)
    img = make_images(hw=(5, 7), channels=3, seed=1)
    got = diffuse_by_color(
        maps, img, num_steps=1, dilations=dilations, contrast=0.4, distance_weight=0.05
    )
    want = step_by_definition(maps, img, dilations, 0.4, 0.05)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_steps_follow_one_another() -> None:
    maps = make_images(hw=(6, 6), channels=1, seed=0)
    img = make_images(hw=(6, 6), channels=3, seed=1)
    twice = diffuse_by_color(diffuse_by_color(maps, img, num_steps=1), img, num_steps=1)
    torch.testing.assert_close(diffuse_by_color(maps, img, num_steps=2), twice)
    assert torch.equal(diffuse_by_color(maps, img, num_steps=0), maps)


def test_a_constant_map_stays_and_values_stay_in_range() -> None:
    img = make_images(hw=(9, 8), channels=3, seed=1)
    constant = torch.full((1, 9, 8), 0.7, dtype=torch.float64)
    torch.testing.assert_close(diffuse_by_color(constant, img), constant)
    maps = make_images(hw=(9, 8), channels=3, seed=2)
    spread = diffuse_by_color(maps, img)
    assert (spread.amin((1, 2)) > maps.amin((1, 2))).all()
    assert (spread.amax((1, 2)) < maps.amax((1, 2))).all()


def test_an_edge_holds_what_no_edge_would_not() -> None:
    img = torch.zeros(3, 12, 12)
    img[:, :, 6:] = 1.0
    maps = torch.zeros(1, 12, 12)
    maps[:, :, :6] = 1.0
    held = diffuse_by_color(maps, img)
    assert held[..., :6].min() > 0.9
    assert held[..., 6:].max() < 0.1
    blurred = diffuse_by_color(maps, torch.zeros(3, 12, 12))
    assert blurred[..., 6].mean() > 0.2


def test_the_scale_of_the_colours_does_not_matter() -> None:
    maps = make_images(hw=(7, 7), channels=1, seed=0)
    img = make_images(hw=(7, 7), channels=3, seed=1)
    torch.testing.assert_close(
        diffuse_by_color(maps, 255 * img + 3), diffuse_by_color(maps, img), rtol=0, atol=1e-9
    )


def test_a_larger_contrast_lets_more_across() -> None:
    img = make_images(hw=(10, 10), channels=3, seed=1)
    maps = torch.zeros(1, 10, 10, dtype=torch.float64)
    maps[:, 5, 5] = 1
    spread = [diffuse_by_color(maps, img, contrast=c).square().sum() for c in (0.1, 0.5, 2.0)]
    assert spread[0] > spread[1] > spread[2]


def test_a_batch_is_its_images_one_by_one() -> None:
    maps = make_images(2, 3, hw=(6, 5), channels=2, seed=0)
    img = make_images(2, 3, hw=(6, 5), channels=3, seed=1)
    got = diffuse_by_color(maps, img)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(got[i, j], diffuse_by_color(maps[i, j], img[i, j]))


def test_no_map_and_half_precision() -> None:
    img = make_images(hw=(6, 5), channels=3, seed=1).float()
    assert diffuse_by_color(torch.zeros(0, 6, 5), img).shape == (0, 6, 5)
    maps = make_images(hw=(6, 5), channels=1, seed=0).half()
    spread = diffuse_by_color(maps, img)
    assert spread.dtype == torch.float32
    torch.testing.assert_close(spread, diffuse_by_color(maps.float(), img))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": -1}, "num_steps must be >= 0, got -1"),
        ({"dilations": ()}, "dilations must be distances >= 1"),
        ({"dilations": (0,)}, "dilations must be distances >= 1"),
        ({"contrast": 0.0}, "contrast must be > 0"),
        ({"distance_weight": -0.1}, "distance_weight must be >= 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diffuse_by_color(torch.zeros(1, 4, 4), torch.zeros(3, 4, 4), **options)  # type: ignore[arg-type]


def test_sizes_must_match() -> None:
    with pytest.raises(ValueError, match=r"img must have shape \(3, 4, 4\)"):
        diffuse_by_color(torch.zeros(1, 4, 4), torch.zeros(3, 4, 5))
