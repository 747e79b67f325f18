"""Artefact patches: exact cases, the similarity of the whole product, a planted clique."""

from __future__ import annotations

import itertools

import pytest
import torch

from adcam.ops.artifact_patches import (
    SIMILARITIES,
    fill_patches,
    find_artifacts,
    surroundings_similarity,
)
from adcam.ops.common_neighbor import common_neighbor, neighbor_similarity
from adcam.ops.diffusion import diffuse


def make_attention(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    return (logits * 1.5).softmax(dim=-1).to(dtype)


def plant_clique(grid_hw: tuple[int, int], clique: list[int]) -> torch.Tensor:
    """Attention that falls off with distance, but for patches that look at one another alone."""
    height, width = grid_hw
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([ys, xs], dim=-1).view(-1, 2).double()
    attn = (-torch.cdist(place, place).square() / 8).exp()
    attn[clique] = 0
    attn[:, clique] = 0
    attn[torch.tensor(clique)[:, None], torch.tensor(clique)] = 1
    return attn


def by_definition(attn: torch.Tensor, grid_hw: tuple[int, int], similarity: str) -> torch.Tensor:
    """The median over the patches that touch, patch by patch, from the whole similarity."""
    sim = neighbor_similarity(attn, similarity=similarity)
    height, width = grid_hw
    values = []
    for y in range(height):
        for x in range(width):
            around = [
                sim[y * width + x, i * width + j]
                for i in range(max(y - 1, 0), min(y + 2, height))
                for j in range(max(x - 1, 0), min(x + 2, width))
                if (i, j) != (y, x)
            ]
            values.append(torch.stack(around).median() if around else sim.new_ones(()))
    return torch.stack(values)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("grid_hw", [(1, 1), (1, 7), (6, 1), (2, 2), (3, 5), (7, 4)])
def test_agrees_with_the_definition(similarity: str, grid_hw: tuple[int, int]) -> None:
    attn = make_attention(grid_hw[0] * grid_hw[1])
    got = surroundings_similarity(attn, grid_hw, similarity=similarity)
    torch.testing.assert_close(got, by_definition(attn, grid_hw, similarity), rtol=0, atol=1e-12)


def test_a_batch_is_its_images_one_by_one() -> None:
    attn = make_attention(2, 3, 20)
    got = find_artifacts(attn, (4, 5), ratio=0.9)
    assert got.shape == (2, 3, 20)
    assert got.any()
    for i in range(2):
        for j in range(3):
            assert torch.equal(got[i, j], find_artifacts(attn[i, j], (4, 5), ratio=0.9))


def test_finds_a_planted_clique_and_nothing_else() -> None:
    clique = [9, 22, 40, 51]  # none touches another on a grid of 8 × 8
    found = find_artifacts(plant_clique((8, 8), clique), (8, 8))
    assert found.nonzero().flatten().tolist() == clique


def test_corners_of_a_sharp_object_are_found() -> None:
    """A limit (README.md): five of the eight patches around a corner are background."""
    inside = torch.zeros(8, 9, dtype=torch.bool)
    inside[2:6, 3:6] = True
    attn = (inside.flatten()[:, None] == inside.flatten()).float()
    found = find_artifacts(attn, (8, 9)).view(8, 9)
    assert found.nonzero().tolist() == [[2, 3], [2, 5], [5, 3], [5, 5]]


def test_what_all_patches_see_alike_has_no_artifacts() -> None:
    assert not find_artifacts(torch.ones(12, 12), (3, 4), ratio=1).any()


def test_a_larger_ratio_finds_more_and_zero_finds_none() -> None:
    attn = make_attention(30)
    found = [find_artifacts(attn, (5, 6), ratio=ratio) for ratio in (0.0, 0.5, 0.8, 1.0)]
    assert not found[0].any()
    for fewer, more in itertools.pairwise(found):
        assert not (fewer & ~more).any()
    assert found[-1].any()


def test_scaling_rows_changes_nothing() -> None:
    attn = make_attention(30)
    scaled = attn * torch.linspace(0.1, 9, 30, dtype=attn.dtype)[:, None]
    torch.testing.assert_close(
        surroundings_similarity(scaled, (5, 6)), surroundings_similarity(attn, (5, 6))
    )


def test_mirroring_the_grid_mirrors_the_result() -> None:
    attn = make_attention(20)
    order = torch.arange(20).view(4, 5).flip(1).flatten()
    mirrored = surroundings_similarity(attn[order][:, order], (4, 5))
    torch.testing.assert_close(mirrored, surroundings_similarity(attn, (4, 5))[order])


def test_without_artifacts_a_clique_does_not_outshine_an_object() -> None:
    clique = [9, 22, 40, 51]
    attn = plant_clique((8, 8), clique)
    start = torch.zeros(1, 64, dtype=torch.float64)
    start[0, [18, 19, 26, 27]] = 0.5  # the object, weakly lit
    start[0, clique] = 1.0
    naive = diffuse(start, common_neighbor(attn))
    assert naive[0].topk(4).indices.sort().values.tolist() == clique

    stray = find_artifacts(attn, (8, 8))
    kept = (~stray).double()
    clean = attn * kept[:, None] * kept
    spread = fill_patches(diffuse(start * kept, common_neighbor(clean)), stray, (8, 8))
    assert set(spread[0].topk(4).indices.tolist()) == {18, 19, 26, 27}


def test_fills_holes_from_their_border_inwards() -> None:
    maps = torch.tensor([[1.0, 9, 9, 9, 5]])
    missing = torch.tensor([False, True, True, True, False])
    # 1 and 5 are known; their neighbours take them, then the middle takes the mean of both.
    assert fill_patches(maps, missing, (1, 5)).tolist() == [[1, 1, 3, 5, 5]]
    assert fill_patches(maps, missing, (5, 1)).tolist() == [[1, 1, 3, 5, 5]]


def test_filled_values_stay_in_range_and_known_ones_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 3, 42, generator=generator)
    missing = torch.rand(2, 42, generator=generator) < 0.6
    filled = fill_patches(maps, missing, (6, 7))
    for image in range(2):
        known = maps[image][:, ~missing[image]]
        assert torch.equal(filled[image][:, ~missing[image]], known)
        assert (filled[image].amin(1) >= known.amin(1)).all()
        assert (filled[image].amax(1) <= known.amax(1)).all()


def test_maps_without_a_known_patch_stay() -> None:
    maps = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fill_patches(maps, torch.ones(6, dtype=torch.bool), (2, 3)), maps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: find_artifacts(a, (3, 3)), "grid_hw must have 6 patches, got 3×3"),
        (lambda a: find_artifacts(a, (2, 3), ratio=1.5), r"ratio must lie in \[0, 1\], got 1.5"),
        (lambda a: find_artifacts(a, (2, 3), similarity="overlap"), "similarity must be one of"),
        (lambda a: find_artifacts(-a, (2, 3)), "must be finite and >= 0"),
        (lambda a: find_artifacts(a[:4], (2, 3)), r"must have shape \(..., N, N\)"),
        (
            lambda a: fill_patches(a, torch.ones(5, dtype=torch.bool), (2, 3)),
            r"missing must be bool of shape \(6,\)",
        ),
    ],
)
def test_wrong_arguments_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(make_attention(6))  # type: ignore[operator]
