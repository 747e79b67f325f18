"""Common-neighbour similarity: exact cases, brute-force oracle, and properties of methods.md."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from memory_testing import peak_bytes
from triton_testing import nan_poisoned

from adcam.ops.common_neighbor import (
    SIMILARITIES,
    available_backends,
    blocked,
    common_neighbor,
    neighbor_similarity,
)
from adcam.ops.common_neighbor.reference import COSINE_SIMILARITIES

DTYPES = (torch.float32, torch.float64)
ATOL = {torch.float32: 3e-6, torch.float64: 1e-14}
MEASURING = tuple(name for name in SIMILARITIES if name != "none")


def make_attn(
    *shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, sharpness: float = 1.5
) -> torch.Tensor:
    """Softmax of Gaussian logits, (..., N, N); larger ``sharpness`` gives sparser rows."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    return (logits * sharpness).softmax(dim=-1).to(dtype)


def brute_force(attn: torch.Tensor, similarity: str) -> torch.Tensor:
    """The definitions, written as loops over tokens in Python floats."""
    rows = [[value / sum(row) for value in row] for row in attn.tolist()]
    tokens = range(len(rows))
    received = [sum(rows[i][k] for i in tokens) for k in tokens]

    def walk(i: int, j: int) -> float:
        return sum(rows[i][k] * rows[j][k] / received[k] for k in tokens)

    def dot(i: int, j: int) -> float:
        return sum(rows[i][k] * rows[j][k] for k in tokens)

    def pair(i: int, j: int) -> float:
        if similarity == "resource_allocation":
            return walk(i, j) / math.sqrt(walk(i, i) * walk(j, j))
        if similarity == "cosine":
            return dot(i, j) / math.sqrt(dot(i, i) * dot(j, j))
        if similarity == "bhattacharyya":
            return sum(math.sqrt(rows[i][k] * rows[j][k]) for k in tokens)
        if similarity == "overlap":
            return 1 - sum(abs(rows[i][k] - rows[j][k]) for k in tokens) / 2
        return 1.0

    return torch.tensor([[pair(i, j) for j in tokens] for i in tokens], dtype=torch.float64)


# Column sums 1/2, 1/2, 2: the third token is a sink. By hand, P = A D^-1 A^T is
# [[5/8, 1/8, 1/4], [1/8, 5/8, 1/4], [1/4, 1/4, 1/2]].
SINK = [[0.5, 0.0, 0.5], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("similarity", "first_second", "first_third"),
    [
        ("resource_allocation", 1 / 5, 1 / math.sqrt(5)),
        ("cosine", 1 / 2, 1 / math.sqrt(2)),
        ("bhattacharyya", 1 / 2, 1 / math.sqrt(2)),
        ("overlap", 1 / 2, 1 / 2),
        ("none", 1.0, 1.0),
    ],
)
def test_similarity_by_hand(
    dtype: torch.dtype, similarity: str, first_second: float, first_third: float
) -> None:
    got = neighbor_similarity(torch.tensor(SINK, dtype=dtype), similarity=similarity)
    x, y = first_second, first_third
    want = torch.tensor([[1, x, y], [x, 1, y], [y, y, 1]], dtype=dtype)
    torch.testing.assert_close(got, want, rtol=0, atol=ATOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_refined_attention_by_hand(dtype: torch.dtype) -> None:
    # Rows scaled by 2, 4 and 6 beforehand: only their direction may count.
    attn = torch.tensor(SINK, dtype=dtype) * torch.tensor([[2.0], [4.0], [6.0]], dtype=dtype)
    want = torch.tensor([[0.5, 0, 0.1], [0, 0.5, 0.1], [0, 0, 1]], dtype=dtype)
    torch.testing.assert_close(common_neighbor(attn), want, rtol=0, atol=ATOL[dtype])
    want_linear = want.clone()
    want_linear[:2, 2] = 0.5 / math.sqrt(5)
    torch.testing.assert_close(
        common_neighbor(attn, power=1), want_linear, rtol=0, atol=ATOL[dtype]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("tokens", [1, 2, 7, 15])
def test_similarity_equals_brute_force(dtype: torch.dtype, similarity: str, tokens: int) -> None:
    attn = make_attn(tokens, dtype=dtype, seed=tokens)
    got = neighbor_similarity(attn, similarity=similarity)
    assert got.dtype == dtype
    torch.testing.assert_close(
        got.double(), brute_force(attn, similarity), rtol=0, atol=ATOL[dtype]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("sharpness", [0.1, 3.0, 20.0])
def test_similarity_lies_in_unit_interval(
    dtype: torch.dtype, similarity: str, sharpness: float
) -> None:
    attn = make_attn(2, 63, dtype=dtype, sharpness=sharpness)
    sim = neighbor_similarity(attn, similarity=similarity)
    assert sim.min() >= 0
    assert sim.max() <= 1
    assert (sim.diagonal(dim1=-2, dim2=-1) == 1).all()
    torch.testing.assert_close(sim, sim.mT, rtol=0, atol=ATOL[dtype])
    if similarity != "none":
        assert sim.min() < 0.999


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_hop_walk_is_doubly_stochastic(dtype: torch.dtype) -> None:
    # S = P_ij / sqrt(P_ii P_jj) hides P up to a diagonal scaling; put the walk's own diagonal
    # back (P = A D^-1 A^T, from the definition) and its row sums must come out as 1.
    attn = make_attn(33, dtype=dtype)
    own = (attn**2 / attn.sum(dim=0)).sum(dim=1).sqrt()
    walk = neighbor_similarity(attn) * own[:, None] * own[None, :]
    for dim in (0, 1):
        torch.testing.assert_close(walk.sum(dim), torch.ones(33, dtype=dtype), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_refining_only_reduces(dtype: torch.dtype, similarity: str) -> None:
    attn = make_attn(3, 21, dtype=dtype)
    steps = [common_neighbor(attn, similarity=similarity, power=p) for p in (0, 0.5, 1, 2, 3)]
    torch.testing.assert_close(steps[0], attn, rtol=0, atol=ATOL[dtype])
    for weaker, stronger in itertools.pairwise(steps):
        assert (stronger <= weaker + ATOL[dtype]).all()
        assert (stronger >= 0).all()
        torch.testing.assert_close(
            stronger.diagonal(dim1=-2, dim2=-1),
            attn.diagonal(dim1=-2, dim2=-1),
            rtol=0,
            atol=ATOL[dtype],
        )
        if similarity != "none":
            assert stronger.sum() < weaker.sum() - 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_equal_rows_are_left_alone(dtype: torch.dtype, similarity: str) -> None:
    attn = make_attn(30, 19, dtype=dtype)[:, :1].expand(30, 19, 19)  # rounding passes 1 in some
    sim = neighbor_similarity(attn, similarity=similarity)
    torch.testing.assert_close(sim, torch.ones_like(sim), rtol=0, atol=ATOL[dtype])
    assert sim.max() <= 1
    refined = common_neighbor(attn, similarity=similarity, power=2)
    torch.testing.assert_close(refined, attn, rtol=0, atol=ATOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", MEASURING)
def test_disjoint_supports_are_cut(dtype: torch.dtype, similarity: str) -> None:
    # Token i attends to itself and, twice as much, to token i + 5, which attends to itself alone
    # in the second half: rows 0..4 share nothing with one another.
    attn = torch.zeros(10, 10, dtype=dtype)
    attn[:5, :5] = torch.eye(5)
    attn[:5, 5:] = 2 * torch.eye(5)
    attn[5:, 5:] = torch.eye(5)
    sim = neighbor_similarity(attn, similarity=similarity)
    assert (sim[:5, :5] - torch.eye(5)).abs().max() <= ATOL[dtype]
    assert sim[0, 5] > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_no_affinity_across_blocks(dtype: torch.dtype, similarity: str) -> None:
    attn = torch.block_diag(make_attn(4, seed=1), make_attn(7, seed=2)).to(dtype)
    refined = common_neighbor(attn, similarity=similarity)
    assert (refined[:4, 4:] == 0).all()
    assert (refined[4:, :4] == 0).all()
    alone = common_neighbor(make_attn(7, seed=2, dtype=dtype), similarity=similarity)
    torch.testing.assert_close(refined[4:, 4:], alone, rtol=0, atol=ATOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_permutation_equivariance(dtype: torch.dtype, similarity: str) -> None:
    attn = make_attn(15, dtype=dtype)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(3))
    got = common_neighbor(attn[order][:, order], similarity=similarity)
    want = common_neighbor(attn, similarity=similarity)[order][:, order]
    torch.testing.assert_close(got, want, rtol=0, atol=ATOL[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_batch_equals_single(dtype: torch.dtype, similarity: str) -> None:
    attn = make_attn(2, 3, 13, dtype=dtype)
    got = common_neighbor(attn, similarity=similarity)
    assert got.shape == attn.shape
    for i in range(2):
        for j in range(3):
            want = common_neighbor(attn[i, j], similarity=similarity)
            torch.testing.assert_close(got[i, j], want, rtol=0, atol=ATOL[dtype])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_input_is_not_changed(similarity: str) -> None:
    attn = make_attn(9)
    before = attn.clone()
    common_neighbor(attn, similarity=similarity)
    assert torch.equal(attn, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_dead_tokens(dtype: torch.dtype, similarity: str) -> None:
    # Token 2 is padding (neither gives nor gets), token 5 gives nothing, nobody attends to 7.
    attn = make_attn(11, dtype=dtype)
    attn[2], attn[:, 2] = 0, 0
    attn[5] = 0
    attn[:, 7] = 0
    refined = common_neighbor(attn, similarity=similarity)
    assert torch.isfinite(refined).all()
    assert (refined[[2, 5]] == 0).all()
    assert (refined[:, [2, 7]] == 0).all()
    if similarity != "none":
        sim = neighbor_similarity(attn, similarity=similarity)
        for token in (2, 5):
            assert sim[token, token] == 1
            assert sim[token].sum() == pytest.approx(1, abs=10 * ATOL[dtype])
        assert refined[:, 5].max() <= ATOL[dtype]
    # Padding must not move the others.
    kept = [i for i in range(11) if i != 2]
    alone = common_neighbor(attn[kept][:, kept], similarity=similarity)
    torch.testing.assert_close(refined[kept][:, kept], alone, rtol=0, atol=ATOL[dtype])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_tiny_and_huge_rows(similarity: str) -> None:
    attn = make_attn(9, dtype=torch.float32)
    scale = torch.tensor([1e-30, 1e30, 1, 1e-20, 1e20, 1, 1e-10, 1e10, 1]).float()[:, None]
    got = common_neighbor(attn * scale, similarity=similarity)
    torch.testing.assert_close(got, common_neighbor(attn, similarity=similarity), rtol=0, atol=3e-6)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_half_precision_is_computed_in_float32(half: torch.dtype, similarity: str) -> None:
    attn = make_attn(31, dtype=half)
    got = common_neighbor(attn, similarity=similarity)
    assert got.dtype == torch.float32
    assert torch.equal(got, common_neighbor(attn.float(), similarity=similarity))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_autocast_does_not_reach_inside(similarity: str) -> None:
    attn = make_attn(31, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = common_neighbor(attn, similarity=similarity)
    assert torch.equal(got, common_neighbor(attn, similarity=similarity))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradcheck(similarity: str, power: float) -> None:
    attn = make_attn(2, 5, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: common_neighbor(x, similarity=similarity, power=power), (attn,)
    )


@pytest.mark.parametrize("power", [0, 0.5, 1, 2])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradient_is_finite_at_zeros(similarity: str, power: float) -> None:
    attn = make_attn(9)
    attn[2], attn[:, 2], attn[5], attn[:, 7], attn[0, 1] = 0, 0, 0, 0, 0
    attn.requires_grad_()
    common_neighbor(attn, similarity=similarity, power=power).square().sum().backward()
    assert attn.grad is not None
    assert torch.isfinite(attn.grad).all()
    assert attn.grad.abs().sum() > 0


def test_a_sink_counts_less_than_other_neighbours() -> None:
    # Two groups that share nothing but a token everybody attends to.
    tokens, boosts, similarity_across = 25, (0.0, 2.0, 4.0), {}
    for similarity in ("resource_allocation", "cosine"):
        across = []
        for boost in boosts:
            generator = torch.Generator().manual_seed(0)
            logits = torch.randn(tokens, tokens, generator=generator, dtype=torch.float64) / 2
            group = torch.arange(tokens) < 9
            logits = logits + 2 * (group[:, None] == group[None, :])
            logits[:, -1] += boost
            sim = neighbor_similarity(logits.softmax(dim=-1), similarity=similarity)
            across.append(sim[group][:, ~group].mean().item())
        similarity_across[similarity] = across
    allocation, cosine = (similarity_across[s] for s in ("resource_allocation", "cosine"))
    assert cosine[0] < cosine[1] < cosine[2]
    for index in (1, 2):
        assert allocation[index] - allocation[0] < (cosine[index] - cosine[0]) / 2


# The blocked product against the reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("similarity", COSINE_SIMILARITIES)
@pytest.mark.parametrize(
    ("tokens", "rows"), [(1, 192), (2, 1), (7, 3), (63, 16), (64, 16), (196, 192), (197, 64)]
)
def test_blocked_equals_reference(
    dtype: torch.dtype, similarity: str, tokens: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "_ROWS", rows)
    attn = make_attn(2, tokens, dtype=dtype, seed=tokens)
    if tokens > 7:
        attn[0, 2], attn[0, :, 2], attn[1, 5], attn[1, :, 7] = 0, 0, 0, 0
    for power in (0, 0.5, 1, 2, 3):
        with nan_poisoned():
            got = common_neighbor(attn, similarity=similarity, power=power, backend="torch")
        want = common_neighbor(attn, similarity=similarity, power=power, backend="reference")
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, rtol=0, atol=ATOL[dtype])


def test_blocks_cover_all_rows_evenly() -> None:
    for tokens in (1, 127, 128, 129, 784, 1369, 2304):
        blocks = list(blocked._row_blocks(tokens))
        assert [row for block in blocks for row in range(*block)] == list(range(tokens))
        sizes = [end - start for start, end in blocks]
        assert max(sizes) <= blocked._ROWS and max(sizes) - min(sizes) <= 1


def test_blocked_takes_any_layout() -> None:
    attn = make_attn(2, 3, 20)
    for view in (attn.mT, attn[:, 1], attn[:, :, 1:, 1:], attn[:, :1].expand(2, 4, 20, 20)):
        got = common_neighbor(view, backend="torch")
        want = common_neighbor(view, backend="reference")
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    for shape in ((0, 0), (0, 5, 5), (2, 0, 0)):
        assert common_neighbor(torch.ones(shape), backend="torch").shape == shape


def test_padding_makes_a_batch_of_several_sizes() -> None:
    sizes = (20, 13, 7)
    batch = torch.zeros(3, 20, 20, dtype=torch.float64)
    for index, tokens in enumerate(sizes):
        batch[index, :tokens, :tokens] = make_attn(tokens)
    refined = common_neighbor(batch)
    for index, tokens in enumerate(sizes):
        torch.testing.assert_close(
            refined[index, :tokens, :tokens], common_neighbor(make_attn(tokens)), rtol=0, atol=1e-14
        )
        assert (refined[index, tokens:] == 0).all() and (refined[index, :, tokens:] == 0).all()


def test_memory_of_refining() -> None:
    tokens = 784
    attn = make_attn(tokens, dtype=torch.float32)
    peak = {
        name: peak_bytes(lambda name=name: common_neighbor(attn, backend=name)) / attn.nbytes
        for name in ("torch", "reference")
    }
    # The result and a block of rows; the input comes on top.
    assert peak["torch"] < 1.25 < 3.5 < peak["reference"]


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_second_derivative(backend: str) -> None:
    attn = make_attn(4, seed=4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: common_neighbor(x, backend=backend), (attn,))


def test_gradient_of_a_half_precision_input() -> None:
    attn = make_attn(9, dtype=torch.bfloat16).requires_grad_()
    (grad,) = torch.autograd.grad(common_neighbor(attn).square().sum(), attn)
    wide = attn.detach().float().requires_grad_()
    (want,) = torch.autograd.grad(common_neighbor(wide).square().sum(), wide)
    assert torch.equal(grad, want.bfloat16())


def test_no_gradient_is_kept_where_none_is_wanted() -> None:
    attn = make_attn(9).requires_grad_()
    with torch.no_grad():
        assert not common_neighbor(attn).requires_grad
    assert not common_neighbor(attn.detach()).requires_grad
    assert common_neighbor(attn).requires_grad


def test_backends() -> None:
    found = available_backends()
    assert list(found) == ["triton", "torch", "reference"]
    assert found["torch"] is None and found["reference"] is None
    with pytest.raises(RuntimeError, match="'torch' cannot run: similarity 'overlap' is not a mat"):
        common_neighbor(make_attn(3), similarity="overlap", backend="torch")
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run"):
        common_neighbor(make_attn(3), backend="triton")
    with pytest.raises(ValueError, match=r"backend must be one of.*'numpy'"):
        common_neighbor(make_attn(3), backend="numpy")


# Callers' mistakes


def test_unknown_similarity() -> None:
    with pytest.raises(ValueError, match=r"similarity.*resource_allocation.*none.*'jaccard'"):
        common_neighbor(make_attn(3), similarity="jaccard")
    with pytest.raises(ValueError, match="'jaccard'"):
        neighbor_similarity(make_attn(3), similarity="jaccard")


@pytest.mark.parametrize("power", [-1.0, math.nan, math.inf])
def test_illegal_power(power: float) -> None:
    with pytest.raises(ValueError, match=rf"power.*{power}"):
        common_neighbor(make_attn(3), power=power)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (2, 4, 3)])
def test_not_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., N, N\), got \(" + str(shape[0])):
        common_neighbor(torch.ones(shape))


@pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf])
def test_illegal_values(value: float) -> None:
    attn = make_attn(4, dtype=torch.float32)
    attn[1, 2] = value
    with pytest.raises(ValueError, match="attn must be finite and >= 0"):
        common_neighbor(attn)
    with pytest.raises(ValueError, match="attn must be finite and >= 0"):
        neighbor_similarity(attn)


def test_not_floating_point() -> None:
    with pytest.raises(ValueError, match=r"float32.*got torch\.int64"):
        common_neighbor(torch.ones(3, 3, dtype=torch.int64))
