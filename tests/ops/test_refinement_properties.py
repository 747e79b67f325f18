"""What the refinement as a whole keeps, by every backend that a CPU runs.

test_refinement.py compares the backends with one another, Triton's kernels among them, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from adcam.ops import diffusion
from adcam.ops.artifact_patches import find_artifacts
from adcam.ops.refinement import RefineOptions, refine_maps

pytestmark = pytest.mark.parametrize("backend", ["torch", "reference"])

GRID = (6, 8)
TOKENS = 48
OBJECT = torch.arange(TOKENS) % 8 < 3  # the three columns on the left
CLIQUE = [13, 15, 37, 39]  # background, no patch touches another
HUB = 29  # background

# Three rounds leave 0.0067 at most in the scenes below, 600 nothing but rounding.
ROUNDS = pytest.mark.parametrize(("rounds", "atol"), [(3, 0.01), (600, 1e-12)])
ARTIFACTS = pytest.mark.parametrize("ratio", [0.0, 0.65])


def make_attn(
    *, clique: list[int] | None = None, hub: int | None = None, noise: float = 0.3, seed: int = 0
) -> torch.Tensor:
    """Attention (N, N) that falls off with distance, and between object and background.

    Patches of ``clique`` attend to one another almost alone. Every patch gives about half of its
    attention to ``hub``.
    """
    y, x = torch.arange(TOKENS) // 8, torch.arange(TOKENS) % 8
    distance = ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2).double()
    generator = torch.Generator().manual_seed(seed)
    logits = noise * torch.randn(TOKENS, TOKENS, generator=generator, dtype=torch.float64)
    logits += (OBJECT[:, None] == OBJECT).double() - distance / 8
    if clique:
        logits[clique] = -3
        logits[torch.tensor(clique)[:, None], clique] = 3
    if hub is not None:
        logits[:, hub] = logits.logsumexp(dim=1)
    return logits.softmax(dim=-1)


def make_scene(ratio: float, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, with a clique where artefacts are taken out, and the patches that are kept."""
    attn = make_attn(clique=CLIQUE if ratio else None, **options)
    return attn, ~find_artifacts(attn, GRID, ratio=ratio)


def make_maps(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def refine(
    maps: torch.Tensor,
    attn: torch.Tensor,
    backend: str,
    ratio: float = 0.0,
    grid_hw: tuple[int, int] = GRID,
    **options: Any,
) -> torch.Tensor:
    options = {"artifact_ratio": ratio, **options}
    return refine_maps(maps, attn, grid_hw, RefineOptions(**options), backend=backend)


def close(got: torch.Tensor, want: torch.Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


@ARTIFACTS
@ROUNDS
@pytest.mark.parametrize("hub", [None, HUB])
def test_the_transition_is_symmetric_and_its_sums_are_one(
    backend: str,
    ratio: float,
    hub: int | None,
    rounds: int,
    atol: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert rounds != 3 or diffusion.SINKHORN_ITERS == 3
    monkeypatch.setattr(diffusion, "SINKHORN_ITERS", rounds)
    attn, kept = make_scene(ratio, hub=hub)
    # One step moves the i-th unit vector to column i of the transition.
    columns = refine(torch.eye(TOKENS).double(), attn, backend, ratio, num_steps=1)
    matrix = columns.mT[kept][:, kept]
    ones = torch.ones(int(kept.sum()), dtype=torch.float64)
    assert (matrix >= 0).all()
    close(matrix.sum(dim=0), ones, atol)
    close(matrix.sum(dim=1), ones, atol)
    close(matrix, matrix.mT)
    assert (matrix - torch.eye(len(ones))).abs().max() > 0.5  # and it is not the identity


@ARTIFACTS
@ROUNDS
def test_kept_patches_keep_their_sum(
    backend: str, ratio: float, rounds: int, atol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusion, "SINKHORN_ITERS", rounds)
    attn, kept = make_scene(ratio)
    maps = make_maps(3, TOKENS) * torch.tensor([[1.0], [1.0], [-1.0]])
    before, after = (m[:, kept].sum(dim=-1) for m in (maps, refine(maps, attn, backend, ratio)))
    close(after / before, torch.ones(3, dtype=torch.float64), atol)


@ARTIFACTS
@ROUNDS
def test_constant_maps_stay(
    backend: str, ratio: float, rounds: int, atol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All patches do, artefacts too: they are filled with what is around them."""
    monkeypatch.setattr(diffusion, "SINKHORN_ITERS", rounds)
    attn, _ = make_scene(ratio)
    maps = torch.tensor([[1.0], [-0.5]], dtype=torch.float64).expand(2, TOKENS)
    close(refine(maps, attn, backend, ratio), maps, 2 * atol)  # two steps


def test_kept_patches_are_refined_as_if_artifacts_were_not_there(backend: str) -> None:
    maps, (attn, kept) = make_maps(2, TOKENS), make_scene(0.65, hub=HUB)
    got = refine(maps, attn, backend, 0.65)[:, kept]
    alone = attn[kept][:, kept]
    close(got, refine(maps[:, kept], alone, backend, grid_hw=(1, len(alone))))


def test_permuted_patches(backend: str) -> None:
    maps, attn = make_maps(2, TOKENS), make_attn(clique=CLIQUE, hub=HUB)
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
    got = refine(maps[:, order], attn[order][:, order], backend)
    close(got, refine(maps, attn, backend)[:, order])


@pytest.mark.parametrize("ratio", [0.65, 0.97])
@pytest.mark.parametrize(
    "turn",
    [
        lambda grid: grid.flip(0),
        lambda grid: grid.flip(1),
        lambda grid: grid.mT,
        lambda grid: grid.rot90(1),
        lambda grid: grid.rot90(2),
        lambda grid: grid.rot90(3),
    ],
    ids=["upside down", "mirrored", "transposed", "left", "half turn", "right"],
)
def test_turned_grids_with_artifacts_out(
    backend: str, ratio: float, turn: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """The rule looks at the patches around a patch, so only what keeps those changes nothing."""
    maps, (attn, kept) = make_maps(2, TOKENS), make_scene(ratio)
    assert int((~kept).sum()) == {0.65: 4, 0.97: 13}[ratio]
    turned = turn(torch.arange(TOKENS).view(GRID))
    order, grid_hw = turned.flatten(), (turned.shape[0], turned.shape[1])
    got = refine(maps[:, order], attn[order][:, order], backend, ratio, grid_hw)
    close(got, refine(maps, attn, backend, ratio)[:, order])


@ARTIFACTS
def test_a_hub_neither_takes_nor_hands_out_activation(backend: str, ratio: float) -> None:
    # By cosines the object would lose a fifth of what it keeps without the hub. Without scaling of
    # columns every patch would take almost half of what the hub has.
    start = torch.stack([OBJECT, torch.arange(TOKENS) == HUB]).double()
    plain, _ = make_scene(ratio)
    attn, kept = make_scene(ratio, hub=HUB)
    without, spread = refine(start, plain, backend, ratio), refine(start, attn, backend, ratio)
    assert spread[0, HUB] < 0.2 * spread[0, OBJECT].min()
    assert spread[0, OBJECT].sum() > 0.9 * without[0, OBJECT].sum()
    assert spread[1, kept].sum() < 1.02  # the hub alone began with 1


def test_a_clique_in_one_image_of_a_batch(backend: str) -> None:
    # In the last image no patch agrees with those around it as patches of the others do.
    batch = torch.stack([make_attn(), make_attn(clique=CLIQUE, seed=1), make_attn(noise=2)])
    start = 0.5 * OBJECT.double().expand(3, 1, TOKENS)
    lit = start.clone()
    lit[..., CLIQUE] = 1
    left_in, refined = (refine(lit, batch, backend, ratio)[:, 0] for ratio in (0.0, 0.65))
    assert left_in[1, CLIQUE].min() > left_in[1, OBJECT].max()
    assert refined[1, CLIQUE].max() < refined[1, OBJECT].min()
    assert torch.equal(refined[1], refine(start, batch, backend, 0.65)[1, 0])
    close(refined[0], left_in[0])  # nothing is taken out
    for image in (0, 2):
        close(refined[image], refine(lit[image], batch[image], backend, 0.65)[0])


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_no_step_returns_the_start_with_artifacts_filled(backend: str, alpha: float | None) -> None:
    maps, (attn, kept) = make_maps(2, TOKENS), make_scene(0.65)
    assert (~kept).nonzero().flatten().tolist() == CLIQUE
    got = refine(maps, attn, backend, 0.65, num_steps=0, alpha=alpha)
    want = maps.clone()
    for patch in CLIQUE:
        y, x = patch // 8, patch % 8
        block = maps.view(2, *GRID)[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].flatten(1)
        want[:, patch] = (block.sum(dim=1) - maps[:, patch]) / (block.shape[1] - 1)
    assert torch.equal(got[:, kept], maps[:, kept])
    close(got, want)
    assert torch.equal(refine(maps, attn, backend, num_steps=0, alpha=alpha), maps)
