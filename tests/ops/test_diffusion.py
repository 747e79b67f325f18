"""Diffusion: exact cases, convergence bound of Sinkhorn, and properties of methods.md."""

from __future__ import annotations

import math

import pytest
import torch
from memory_testing import peak_bytes

from adcam.ops.common_neighbor import SIMILARITIES, common_neighbor
from adcam.ops.diffusion import (
    NORMALIZATIONS,
    available_backends,
    diffuse,
    reference,
    scaling,
    transition,
)

DTYPES = (torch.float32, torch.float64)
ATOL = {torch.float32: 3e-6, torch.float64: 1e-13}


def make_affinity(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """Positive, not symmetric, (..., N, N)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    return (logits * 1.5).softmax(dim=-1).to(dtype)


def make_maps(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)


def close(got: torch.Tensor, want: torch.Tensor | list, atol: float | None = None) -> None:
    want = torch.as_tensor(want, dtype=got.dtype)
    torch.testing.assert_close(got, want, rtol=0, atol=ATOL[got.dtype] if atol is None else atol)


# Exact cases


@pytest.mark.parametrize("dtype", DTYPES)
def test_transition_by_hand(dtype: torch.dtype) -> None:
    affinity = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=dtype)
    close(transition(affinity, normalize="row"), [[1 / 2, 1 / 2], [0, 1]])
    close(transition(affinity, normalize="column"), [[1, 1 / 2], [0, 1 / 2]])
    close(transition(affinity, normalize="none"), affinity)
    # Columns first: [[1, 1/2], [0, 1/2]], then rows: [[2/3, 1/3], [0, 1]].
    close(transition(affinity, num_iters=1), [[2 / 3, 1 / 6], [1 / 6, 1]])
    # Again: [[1, 1/4], [0, 3/4]], then [[4/5, 1/5], [0, 1]].
    close(transition(affinity, num_iters=2), [[4 / 5, 1 / 10], [1 / 10, 1]])
    # Again: [[1, 1/6], [0, 5/6]], then [[6/7, 1/7], [0, 1]]; three rounds is the default.
    close(transition(affinity), [[6 / 7, 1 / 14], [1 / 14, 1]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_map_is_a_column_vector(dtype: torch.dtype) -> None:
    matrix = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0.5, 0, 0, 0]], dtype=dtype)
    maps = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 8]], dtype=dtype)
    one = diffuse(maps, matrix, normalize="none", num_steps=1)
    close(one, [[2, 3, 4, 0.5], [0, 0, 8, 0]])
    two = diffuse(maps, matrix, normalize="none", num_steps=2)
    close(two, [[3, 4, 0.5, 1], [0, 8, 0, 0]])
    push = diffuse(maps, matrix.mT, normalize="none", num_steps=1)
    close(push, [[2, 1, 2, 3], [4, 0, 0, 0]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_path_graph_by_hand(dtype: torch.dtype) -> None:
    path = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]], dtype=dtype)
    maps = torch.tensor([[6, 0, 0, 0]], dtype=dtype)
    close(diffuse(maps, path, normalize="row", num_steps=1), [[3, 2, 0, 0]])
    close(diffuse(maps, path, normalize="row", num_steps=2), [[5 / 2, 5 / 3, 2 / 3, 0]])
    close(diffuse(maps, path, normalize="column", num_steps=1), [[3, 3, 0, 0]])
    close(diffuse(maps, path, normalize="row", num_steps=1, alpha=0.5), [[9 / 2, 1, 0, 0]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_restart_by_hand(dtype: torch.dtype) -> None:
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=dtype)
    maps = torch.tensor([[1.0, 0.0]], dtype=dtype)
    got = [diffuse(maps, swap, normalize="row", num_steps=n, alpha=0.5) for n in (1, 2, 3)]
    close(torch.cat(got), [[1 / 2, 1 / 2], [3 / 4, 1 / 4], [5 / 8, 3 / 8]])
    close(diffuse(maps, swap, normalize="row", num_steps=None, alpha=0.5), [[2 / 3, 1 / 3]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_default_is_two_steps_of_the_default_transition(dtype: torch.dtype) -> None:
    affinity, maps = make_affinity(2, 9, dtype=dtype), make_maps(2, 3, 9, dtype=dtype)
    matrix = transition(affinity)
    close(diffuse(maps, affinity), maps @ matrix @ matrix)


# Properties


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_converged_sinkhorn_is_doubly_stochastic(dtype: torch.dtype, similarity: str) -> None:
    affinity = common_neighbor(make_affinity(2, 25, dtype=dtype), similarity=similarity)
    matrix = transition(affinity, num_iters=400)
    ones = torch.ones(2, 25, dtype=dtype)
    assert (matrix >= 0).all()
    for dim in (-1, -2):
        close(matrix.sum(dim), ones)
    close(matrix, matrix.mT)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sinkhorn_error_obeys_the_contraction_bound(dtype: torch.dtype) -> None:
    # Franklin and Lorenz (Linear Algebra Appl. 114/115, 1989): in Hilbert's metric one round
    # brings the scaling closer by kappa^2, kappa = tanh(Delta / 4), Delta the matrix' diameter.
    matrix = make_affinity(15, dtype=dtype)
    logs = matrix.double().log()
    ratios = logs[:, None, :] - logs[None, :, :]
    diameter = (ratios.amax(dim=-1) - ratios.amin(dim=-1)).max()
    contraction = torch.tanh(diameter / 4).item() ** 2

    def spread(num_iters: int) -> float:
        # Symmetrising made column sum c_i out of (1 + c_i) / 2.
        columns = 2 * transition(matrix, num_iters=num_iters).double().sum(dim=-1) - 1
        return math.log(columns.max() / columns.min())

    first, third = spread(1), spread(3)
    assert third <= contraction**2 * first + ATOL[dtype]
    assert third < first / 10
    row_sums = transition(matrix).sum(dim=-1)
    # Rows average to 1 and symmetrising halved the error of the columns.
    assert (row_sums - 1).abs().max() <= math.expm1(third) / 2 + ATOL[dtype]
    assert (row_sums - 1).abs().max() < 0.02
    assert (row_sums - 1).abs().max() > 1e-6, "three rounds are not exact: use more if that matters"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("normalize", "dim"), [("row", -1), ("column", -2)])
def test_row_and_column_sums(dtype: torch.dtype, normalize: str, dim: int) -> None:
    matrix = transition(make_affinity(3, 17, dtype=dtype), normalize=normalize)
    assert (matrix >= 0).all()
    close(matrix.sum(dim), torch.ones(3, 17, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("alpha", [None, 0.3, 1.0])
def test_constant_map_is_a_fixed_point(
    dtype: torch.dtype, num_steps: int, alpha: float | None
) -> None:
    affinity = make_affinity(13, dtype=dtype)
    maps = torch.tensor([[0.7], [-2.0]], dtype=dtype).expand(2, 13)
    close(diffuse(maps, affinity, normalize="row", num_steps=num_steps, alpha=alpha), maps)
    balanced = transition(affinity, num_iters=300)
    close(diffuse(maps, balanced, normalize="none", num_steps=num_steps, alpha=alpha), maps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_steps", "alpha"), [(1, None), (4, None), (3, 0.6), (None, 0.6)])
def test_doubly_stochastic_transition_conserves_mass(
    dtype: torch.dtype, num_steps: int | None, alpha: float | None
) -> None:
    affinity, maps = make_affinity(13, dtype=dtype), make_maps(3, 13, dtype=dtype)
    balanced = transition(affinity, num_iters=300)
    for matrix, normalize in ((balanced, "none"), (affinity, "column")):
        got = diffuse(maps, matrix, normalize=normalize, num_steps=num_steps, alpha=alpha)
        close(got.sum(dim=-1), maps.sum(dim=-1), atol=10 * ATOL[dtype])
        assert (got - maps).abs().max() > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_no_steps_or_no_travel_is_identity(dtype: torch.dtype, normalize: str) -> None:
    affinity, maps = make_affinity(11, dtype=dtype), make_maps(2, 11, dtype=dtype)
    assert torch.equal(diffuse(maps, affinity, normalize=normalize, num_steps=0), maps)
    assert torch.equal(diffuse(maps, affinity, normalize=normalize, num_steps=0, alpha=0.5), maps)
    close(diffuse(maps, affinity, normalize=normalize, num_steps=4, alpha=0.0), maps)
    close(diffuse(maps, affinity, normalize=normalize, num_steps=None, alpha=0.0), maps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_restart_with_alpha_one_is_the_plain_walk(dtype: torch.dtype, normalize: str) -> None:
    affinity, maps = make_affinity(11, dtype=dtype), make_maps(2, 11, dtype=dtype)
    got = diffuse(maps, affinity, normalize=normalize, num_steps=3, alpha=1.0)
    close(got, diffuse(maps, affinity, normalize=normalize, num_steps=3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.85])
def test_closed_form_is_the_limit_of_the_walk(
    dtype: torch.dtype, normalize: str, alpha: float
) -> None:
    affinity, maps = make_affinity(2, 11, dtype=dtype), make_maps(2, 3, 11, dtype=dtype)
    walked = diffuse(maps, affinity, normalize=normalize, num_steps=300, alpha=alpha)
    closed = diffuse(maps, affinity, normalize=normalize, num_steps=None, alpha=alpha)
    close(closed, walked, atol=10 * ATOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize(("num_steps", "alpha"), [(5, None), (5, 0.5), (None, 0.5)])
def test_no_flow_across_blocks(
    dtype: torch.dtype, normalize: str, num_steps: int | None, alpha: float | None
) -> None:
    first, second = make_affinity(4, seed=2, dtype=dtype), make_affinity(7, seed=3, dtype=dtype)
    maps = make_maps(1, 11, dtype=dtype)
    maps[:, 4:] = 0
    options = {"normalize": normalize, "num_steps": num_steps, "alpha": alpha}
    got = diffuse(maps, common_neighbor(torch.block_diag(first, second)), **options)
    assert (got[:, 4:] == 0).all()
    close(got[:, :4], diffuse(maps[:, :4], common_neighbor(first), **options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", ["sinkhorn", "row", "column"])
@pytest.mark.parametrize("similarity", [s for s in SIMILARITIES if s != "none"])
def test_disjoint_supports_give_the_identity(
    dtype: torch.dtype, normalize: str, similarity: str
) -> None:
    # Each token attends to one other alone, so no two rows share a neighbour and the refined
    # affinity is zero: a token without neighbours keeps its own activation.
    cycle = torch.eye(7, dtype=dtype).roll(1, dims=1)
    refined = common_neighbor(cycle, similarity=similarity)
    assert refined.abs().max() == 0
    assert torch.equal(transition(refined, normalize=normalize), torch.eye(7, dtype=dtype))
    # Token 0 alone has self-attention beside it, the others only themselves.
    own = torch.diag_embed(torch.arange(1, 8, dtype=dtype))
    refined = common_neighbor(own, similarity=similarity)
    close(transition(refined, normalize=normalize), torch.eye(7, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", ["sinkhorn", "row", "column"])
def test_dead_tokens_keep_their_activation(dtype: torch.dtype, normalize: str) -> None:
    affinity = make_affinity(9, dtype=dtype)
    affinity[4], affinity[:, 4] = 0, 0
    matrix = transition(affinity, normalize=normalize)
    close(matrix[4], torch.eye(9)[4])
    close(matrix[:, 4], torch.eye(9)[4])
    kept = [i for i in range(9) if i != 4]
    alone = transition(affinity[kept][:, kept], normalize=normalize)
    close(matrix[kept][:, kept], alone)
    maps = make_maps(2, 9, dtype=dtype)
    close(diffuse(maps, affinity, normalize=normalize, num_steps=3)[:, 4], maps[:, 4])


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_that_only_give_or_only_receive(dtype: torch.dtype) -> None:
    no_row = make_affinity(9, dtype=dtype)
    no_row[4] = 0
    close(transition(no_row, normalize="row")[4], torch.eye(9)[4])
    no_column = make_affinity(9, dtype=dtype)
    no_column[:, 4] = 0
    close(transition(no_column, normalize="column")[:, 4], torch.eye(9)[4])
    # Row and column sums of 1 leave such a token nothing but itself.
    for affinity in (no_row, no_column):
        matrix = transition(affinity, num_iters=2000)
        close(matrix[4], torch.eye(9)[4], atol=1e-3)
        close(matrix.sum(dim=-1), torch.ones(9), atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", ["sinkhorn", "row", "column"])
def test_transition_ignores_scale(dtype: torch.dtype, normalize: str) -> None:
    affinity = make_affinity(9, dtype=dtype)
    affinity[4] = 0
    want = transition(affinity, normalize=normalize)
    for factor in (1e-20, 3.0, 1e20):
        close(transition(affinity * factor, normalize=normalize), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize(("num_steps", "alpha"), [(2, None), (3, 0.5), (None, 0.5)])
def test_permutation_equivariance(
    dtype: torch.dtype, normalize: str, num_steps: int | None, alpha: float | None
) -> None:
    affinity, maps = make_affinity(15, dtype=dtype), make_maps(2, 15, dtype=dtype)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(3))
    options = {"normalize": normalize, "num_steps": num_steps, "alpha": alpha}
    got = diffuse(maps[:, order], affinity[order][:, order], **options)
    close(got, diffuse(maps, affinity, **options)[:, order])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize(("num_steps", "alpha"), [(2, None), (3, 0.5), (None, 0.5)])
def test_batch_equals_single(
    dtype: torch.dtype, normalize: str, num_steps: int | None, alpha: float | None
) -> None:
    affinity, maps = make_affinity(2, 3, 13, dtype=dtype), make_maps(2, 3, 4, 13, dtype=dtype)
    options = {"normalize": normalize, "num_steps": num_steps, "alpha": alpha}
    got = diffuse(maps, affinity, **options)
    assert got.shape == maps.shape
    assert got.dtype == dtype
    for i in range(2):
        for j in range(3):
            close(got[i, j], diffuse(maps[i, j], affinity[i, j], **options))


def test_inputs_are_not_changed() -> None:
    affinity, maps = make_affinity(9), make_maps(2, 9)
    affinity[3] = 0
    kept_affinity, kept_maps = affinity.clone(), maps.clone()
    for normalize in NORMALIZATIONS:
        diffuse(maps, affinity, normalize=normalize, alpha=0.5)
    assert torch.equal(affinity, kept_affinity)
    assert torch.equal(maps, kept_maps)


# Sink tokens: one background token that everybody attends to


def sink_attention(seed: int, boost: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (25, 25) of 9 foreground and 16 background tokens, the last one a sink."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(25, 25, generator=generator, dtype=torch.float64) / 2
    foreground = torch.arange(25) < 9
    logits = logits + 2 * (foreground[:, None] == foreground[None, :])
    logits[:, -1] += boost
    return logits.softmax(dim=-1), foreground


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("boost", [2.0, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_sink_raises_background_less_than_without_refinement(
    dtype: torch.dtype, boost: float, seed: int
) -> None:
    # Each token hands its activation to those it attends to, M_1 = R^T M_0, without Sinkhorn.
    def raised(similarity: str) -> float:
        mass = []
        for attn, foreground in (sink_attention(seed, 0.0), sink_attention(seed, boost)):
            refined = common_neighbor(attn.to(dtype), similarity=similarity)
            start = foreground[None].to(dtype)
            spread = diffuse(start, refined.mT, normalize="none", num_steps=1)
            mass.append(spread[:, ~foreground].sum().item())
        return mass[1] - mass[0]

    assert 0 < raised("resource_allocation") < raised("none") / 2
    assert raised("resource_allocation") < raised("cosine") / 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("boost", [2.0, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_sink_under_sinkhorn(dtype: torch.dtype, boost: float, seed: int) -> None:
    def share(similarity: str, boost: float) -> float:
        attn, foreground = sink_attention(seed, boost)
        refined = common_neighbor(attn.to(dtype), similarity=similarity)
        spread = diffuse(foreground[None].to(dtype), refined)
        return (spread[:, ~foreground].sum() / spread.sum()).item()

    allocation, cosine = share("resource_allocation", boost), share("cosine", boost)
    assert allocation < share("none", boost) / 2
    assert allocation - share("resource_allocation", 0) < (cosine - share("cosine", 0)) / 2


def test_converged_sinkhorn_alone_cancels_a_column_factor() -> None:
    # Why the raise is measured without Sinkhorn above: on unrefined attention, balancing undoes
    # any factor on a column, so there is nothing left for refinement to improve on.
    attn = make_affinity(13)
    boosted = attn * torch.tensor([1.0] * 12 + [50.0])
    close(
        transition(boosted / boosted.sum(dim=-1, keepdim=True), num_iters=300),
        transition(attn, num_iters=300),
    )


# Numerics


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_gradcheck_of_transition(normalize: str) -> None:
    affinity = make_affinity(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: transition(x, normalize=normalize), (affinity,))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize(("num_steps", "alpha"), [(2, None), (2, 0.5), (None, 0.5)])
def test_gradcheck_of_diffuse(normalize: str, num_steps: int | None, alpha: float | None) -> None:
    maps, affinity = make_maps(2, 3, 5).requires_grad_(), make_affinity(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m, a: diffuse(m, a, normalize=normalize, num_steps=num_steps, alpha=alpha),
        (maps, affinity),
    )


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_gradient_is_finite_at_dead_tokens(normalize: str) -> None:
    affinity = make_affinity(7)
    affinity[2], affinity[:, 2], affinity[4], affinity[:, 5] = 0, 0, 0, 0
    affinity.requires_grad_()
    diffuse(make_maps(1, 7), affinity, normalize=normalize).square().sum().backward()
    assert affinity.grad is not None
    assert torch.isfinite(affinity.grad).all()
    assert affinity.grad.abs().sum() > 0


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [None, 0.5])
def test_half_precision_is_computed_in_float32(half: torch.dtype, alpha: float | None) -> None:
    affinity, maps = make_affinity(15, dtype=half), make_maps(2, 15, dtype=half)
    got = diffuse(maps, affinity, alpha=alpha)
    assert got.dtype == torch.float32
    assert torch.equal(got, diffuse(maps.float(), affinity.float(), alpha=alpha))
    assert transition(affinity).dtype == torch.float32


def test_mixed_dtypes_take_the_wider() -> None:
    affinity, maps = make_affinity(7, dtype=torch.float32), make_maps(2, 7)
    got = diffuse(maps, affinity)
    assert got.dtype == torch.float64
    close(got, diffuse(maps, affinity.double()))
    assert diffuse(maps.half(), affinity.bfloat16()).dtype == torch.float32


def test_autocast_does_not_reach_inside() -> None:
    affinity, maps = make_affinity(31, dtype=torch.float32), make_maps(2, 31, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        walked = diffuse(maps, affinity)
        closed = diffuse(maps, affinity, num_steps=None, alpha=0.5)
    assert torch.equal(walked, diffuse(maps, affinity))
    assert torch.equal(closed, diffuse(maps, affinity, num_steps=None, alpha=0.5))


# The scaling vectors against the reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("tokens", [1, 2, 17, 63, 197])
def test_scaling_equals_reference(dtype: torch.dtype, normalize: str, tokens: int) -> None:
    affinity, maps = make_affinity(2, tokens, dtype=dtype), make_maps(2, 3, tokens, dtype=dtype)
    if tokens > 7:
        affinity[0, 2], affinity[0, :, 2], affinity[1, 5], affinity[1, :, 7] = 0, 0, 0, 0
    for num_steps, alpha in ((0, None), (1, None), (2, None), (5, 0.6)):
        got, want = (
            diffuse(
                maps, affinity, normalize=normalize, num_steps=num_steps, alpha=alpha, backend=name
            )
            for name in ("torch", "reference")
        )
        assert got.dtype == dtype
        close(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("num_iters", [1, 2, 20])
def test_the_vectors_stand_for_the_transition(
    dtype: torch.dtype, normalize: str, num_iters: int
) -> None:
    affinity = make_affinity(2, 13, dtype=dtype)
    affinity[0, 4] = 0
    scaled = scaling.scale(affinity, normalize, num_iters)
    identity = torch.eye(13, dtype=dtype).expand(2, 13, 13)
    # Map i is the i-th unit vector: row i of the result is column i of T.
    close(scaled.apply(identity).mT, reference.transition(affinity, normalize, num_iters))


@pytest.mark.parametrize("shape", [(784,), (2, 300)])
def test_memory_of_diffusing(shape: tuple[int, ...]) -> None:
    affinity = make_affinity(*shape, dtype=torch.float32)
    maps = make_maps(*shape[:-1], 2, shape[-1], dtype=torch.float32)
    peak = {
        name: peak_bytes(lambda name=name: diffuse(maps, affinity, backend=name)) / affinity.nbytes
        for name in ("torch", "reference")
    }
    assert peak["torch"] < 0.1 < 1.5 < peak["reference"]


def test_sums_below_the_normal_numbers_stay_finite() -> None:
    affinity = make_affinity(9, dtype=torch.float32)
    affinity[3] *= 1e-40  # such a row has no inverse sum in float32
    for backend in ("torch", "reference"):
        assert torch.isfinite(diffuse(make_maps(2, 9).float(), affinity, backend=backend)).all()


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_second_derivative(backend: str) -> None:
    maps, affinity = make_maps(1, 3).requires_grad_(), make_affinity(3).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda m, a: diffuse(m, a, backend=backend), (maps, affinity)
    )


def test_padding_makes_a_batch_of_several_sizes() -> None:
    sizes = (20, 13, 7)
    affinity = torch.zeros(3, 20, 20, dtype=torch.float64)
    maps = torch.zeros(3, 2, 20, dtype=torch.float64)
    for index, tokens in enumerate(sizes):
        affinity[index, :tokens, :tokens] = make_affinity(tokens)
        maps[index, :, :tokens] = make_maps(2, tokens)
    spread = diffuse(maps, affinity)
    for index, tokens in enumerate(sizes):
        close(spread[index, :, :tokens], diffuse(make_maps(2, tokens), make_affinity(tokens)))


def test_backends() -> None:
    found = available_backends()
    assert list(found) == ["triton", "torch", "reference"]
    assert found["torch"] is None and found["reference"] is None
    maps, affinity = make_maps(1, 3), make_affinity(3)
    with pytest.raises(RuntimeError, match="'torch' cannot run: the closed form needs"):
        diffuse(maps, affinity, num_steps=None, alpha=0.5, backend="torch")
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run"):
        diffuse(maps, affinity, backend="triton")
    with pytest.raises(ValueError, match=r"backend must be one of.*'numpy'"):
        diffuse(maps, affinity, backend="numpy")


# Callers' mistakes


def test_unknown_normalization() -> None:
    pattern = r"normalize.*sinkhorn.*row.*column.*none.*'softmax'"
    with pytest.raises(ValueError, match=pattern):
        diffuse(make_maps(1, 3), make_affinity(3), normalize="softmax")
    with pytest.raises(ValueError, match=pattern):
        transition(make_affinity(3), normalize="softmax")


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_illegal_alpha(alpha: float) -> None:
    for num_steps in (2, None):
        with pytest.raises(ValueError, match=rf"alpha.*\[0, 1\], got {alpha}"):
            diffuse(make_maps(1, 3), make_affinity(3), num_steps=num_steps, alpha=alpha)


def test_illegal_number_of_steps() -> None:
    with pytest.raises(ValueError, match="num_steps must be None or >= 0, got -1"):
        diffuse(make_maps(1, 3), make_affinity(3), num_steps=-1)
    with pytest.raises(ValueError, match="num_iters must be >= 1, got 0"):
        transition(make_affinity(3), num_iters=0)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_closed_form_needs_a_restart(alpha: float | None) -> None:
    with pytest.raises(ValueError, match=rf"num_steps=None needs alpha in \[0, 1\), got {alpha}"):
        diffuse(make_maps(1, 3), make_affinity(3), num_steps=None, alpha=alpha)


def test_closed_form_that_diverges() -> None:
    # Spectral radius 3: alpha 0.3 settles, 1/3 is singular, 0.5 would give a negative solution.
    matrix = torch.ones(3, 3, dtype=torch.float64)
    maps = make_maps(2, 3)
    settled = diffuse(maps, matrix, normalize="none", num_steps=None, alpha=0.3)
    close(settled, diffuse(maps, matrix, normalize="none", num_steps=400, alpha=0.3), atol=1e-12)
    for alpha in (0.5, 0.9):
        with pytest.raises(ValueError, match=rf"alpha = {alpha} times the spectral radius"):
            diffuse(maps, matrix, normalize="none", num_steps=None, alpha=alpha)
    for tokens in (1, 3):
        singular = 2 * torch.eye(tokens, dtype=torch.float64)
        with pytest.raises(ValueError, match="spectral radius"):
            diffuse(maps[:, :tokens], singular, normalize="none", num_steps=None, alpha=0.5)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 4, 3)])
def test_not_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"affinity must have shape \(\.\.\., N, N\)"):
        transition(torch.ones(shape))
    with pytest.raises(ValueError, match=r"affinity must have shape \(\.\.\., N, N\)"):
        diffuse(torch.ones(1, 3), torch.ones(shape))


@pytest.mark.parametrize(
    ("maps", "affinity"),
    [((2, 4), (3, 3)), ((3,), (3, 3)), ((2, 1, 3), (3, 3)), ((1, 3), (2, 3, 3)), ((3, 2), (3, 3))],
)
def test_shapes_that_do_not_match(maps: tuple[int, ...], affinity: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., K, N\).*got \(.*\) and \("):
        diffuse(torch.ones(maps), torch.ones(affinity))


@pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf])
def test_illegal_values(value: float) -> None:
    affinity = make_affinity(4, dtype=torch.float32)
    affinity[1, 2] = value
    with pytest.raises(ValueError, match="affinity must be finite and >= 0"):
        transition(affinity)
    with pytest.raises(ValueError, match="affinity must be finite and >= 0"):
        diffuse(torch.ones(1, 4), affinity)


def test_not_floating_point() -> None:
    with pytest.raises(ValueError, match=r"maps must have a dtype.*torch\.int64"):
        diffuse(torch.ones(1, 3, dtype=torch.int64), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"affinity must have a dtype.*torch\.uint8"):
        diffuse(torch.ones(1, 3), torch.ones(3, 3, dtype=torch.uint8))
