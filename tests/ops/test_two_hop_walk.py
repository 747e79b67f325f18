"""The walk of two hops: properties of P, small exact cases, and the three ways to compute it."""

from __future__ import annotations

import pytest
import torch
from memory_testing import peak_bytes

from adcam.cams import build_method
from adcam.ops.token_attention import token_attention
from adcam.ops.two_hop_walk import (
    available_backends,
    two_hop_transition,
    two_hop_walk,
    two_hop_walk_of_tokens,
)
from adcam.structures import TokenMaps

BACKENDS = ("torch", "reference")


def make_attn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    return (1.5 * logits).softmax(dim=-1).to(dtype)


def make_maps(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(got: torch.Tensor, want: torch.Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=atol)


def test_the_matrix_by_hand() -> None:
    """Two tokens look at themselves and at a third, which looks at itself alone."""
    attn = torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 1]])
    # D = (1/2, 1/2, 2): P_11 = 1/4 / 1/2 + 1/4 / 2, P_12 = 1/4 / 2, P_13 = 1/2 / 2.
    close(two_hop_transition(attn), torch.tensor([[5, 1, 2], [1, 5, 2], [2, 2, 4]]) / 8, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_rows_and_columns_sum_to_one_and_it_is_symmetric(scale: float) -> None:
    matrix = two_hop_transition(make_attn(2, 23) * scale)
    close(matrix, matrix.mT)
    close(matrix.sum(dim=-1), torch.ones(2, 23, dtype=torch.float64))
    assert matrix.min() >= 0 and matrix.max() <= 1
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12  # steps cannot oscillate


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_sums_stay_and_constant_maps_are_fixed_points(backend: str, num_steps: int) -> None:
    maps, attn = make_maps(2, 3, 17) - 0.3, make_attn(2, 17)
    got = two_hop_walk(maps, attn, num_steps=num_steps, backend=backend)
    close(got.sum(dim=-1), maps.sum(dim=-1))
    constant = torch.full((2, 1, 17), 0.7, dtype=torch.float64)
    close(two_hop_walk(constant, attn, num_steps=num_steps, backend=backend), constant)
    if num_steps == 0:
        assert torch.equal(got, maps)
    else:  # and everything else moves towards the mean
        assert (got.std(dim=-1) < 0.8 * maps.std(dim=-1)).all()


def test_the_product_with_the_matrix() -> None:
    maps, attn = make_maps(2, 3, 19), make_attn(2, 19)
    matrix = two_hop_transition(attn)
    for num_steps, want in ((1, maps @ matrix), (2, maps @ matrix @ matrix)):
        for backend in BACKENDS:
            close(two_hop_walk(maps, attn, num_steps=num_steps, backend=backend), want)
    for dtype in (torch.float16, torch.bfloat16):
        got = two_hop_walk(maps.to(dtype), attn.to(dtype))
        assert got.dtype == torch.float32
        close(got, two_hop_walk(maps.to(dtype).float(), attn.to(dtype).float()), atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_relabelled_tokens_give_the_relabelled_result(backend: str) -> None:
    maps, attn = make_maps(2, 13), make_attn(13)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(2))
    shuffled = two_hop_walk(maps[:, order], attn[order][:, order], backend=backend)
    close(shuffled, two_hop_walk(maps, attn, backend=backend)[:, order])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_flows_between_blocks(backend: str) -> None:
    attn = torch.block_diag(make_attn(6), make_attn(7, seed=3))
    maps = torch.zeros(1, 13, dtype=torch.float64)
    maps[0, :6] = make_maps(6)
    got = two_hop_walk(maps, attn, num_steps=4, backend=backend)
    assert got[0, 6:].abs().max() == 0
    close(got[0, :6].sum(), maps.sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_without_attention_keep_their_value(backend: str) -> None:
    """As padding, and as a token that others look at."""
    attn, maps = make_attn(9), make_maps(2, 9)
    attn[2], attn[:, 2], attn[5], attn[:, 7] = 0, 0, 0, 0
    got = two_hop_walk(maps, attn, backend=backend)
    close(got[:, [2, 5]], maps[:, [2, 5]], atol=0)
    close(got.sum(dim=-1), maps.sum(dim=-1))
    close(got, maps @ two_hop_transition(attn))
    alone = [0, 1, 3, 4, 6, 7, 8]
    assert (got[:, alone] - maps[:, alone]).abs().min() > 1e-4


def test_hubs_are_discounted() -> None:
    """A sink that all look at ties two tokens less here than along the attention itself."""
    attn = torch.block_diag(make_attn(8), make_attn(8, seed=5))
    sunk = attn.clone()
    sunk[:, 15] += 1  # half of everybody's attention
    maps = torch.zeros(1, 16, dtype=torch.float64)
    maps[0, :7] = 1
    attended = (sunk / sunk.sum(dim=-1, keepdim=True)).mT
    received = attended.sum(dim=-1, keepdim=True)
    # What reaches the other block by way of the hub, had the two hops ignored how many look at it.
    plain = maps @ attended.mT @ attended
    plain *= maps.sum() / plain.sum()
    assert two_hop_walk(maps, sunk)[0, 8:15].sum() < 0.7 * plain[0, 8:15].sum()
    assert received[15] > 5


def test_a_planted_clique_does_not_outshine_a_block() -> None:
    """Four tokens that see one another and a block of forty, evenly lit: both keep their level."""
    attn = torch.block_diag(torch.ones(4, 4), 0.2 + make_attn(40) * 8).double()
    attn += 1e-3
    maps = torch.ones(1, 44, dtype=torch.float64)
    maps[0, ::3] = 0
    got = two_hop_walk(maps, attn, num_steps=2)
    assert got[0, :4].max() < 1.25 * got[0, 4:].mean()


def test_gradients_agree() -> None:
    maps, attn = make_maps(2, 7).requires_grad_(), make_attn(7).requires_grad_()
    weights = make_maps(2, 7, seed=4)
    grads = [
        torch.autograd.grad(
            (two_hop_walk(maps, attn, num_steps=2, backend=backend) * weights).sum(), (maps, attn)
        )
        for backend in BACKENDS
    ]
    for fast, slow in zip(*grads, strict=True):
        assert slow.abs().max() > 1e-3
        close(fast, slow)


def make_tokens(prefix: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    widths = ((3, 8), (2, 5))  # blocks of different heads
    return [
        tuple(
            torch.randn(2, heads, prefix + 21, dim, generator=generator, dtype=torch.float64)
            for _ in range(2)
        )
        for heads, dim in widths
    ]


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("max_rows", [1, 8, 100])
def test_streamed_from_tokens(prefix: int, max_rows: int) -> None:
    blocks, maps = make_tokens(prefix), make_maps(2, 3, 21)
    options = {"scale": 0.5, "num_prefix_tokens": prefix}
    attn = sum(token_attention(q, k, cls_index=None, **options)[0] for q, k in blocks)
    for num_steps in (0, 1, 2):
        want = two_hop_walk(maps, attn, num_steps=num_steps)
        got = two_hop_walk_of_tokens(
            maps, blocks, num_steps=num_steps, max_rows=max_rows, **options
        )
        close(got, want)


def test_the_streamed_form_never_holds_the_attention() -> None:
    q, k = torch.rand(2, 1, 1, 3000, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    maps = torch.rand(1, 2, 3000)
    peak = peak_bytes(
        lambda: two_hop_walk_of_tokens(maps, [(q, k)], scale=0.3, num_prefix_tokens=0, max_rows=100)
    )
    assert peak < 4 * 6 * 100 * 3000 < 4 * 3000**2 / 4


def test_refusals() -> None:
    maps, attn = make_maps(2, 5), make_attn(5)
    with pytest.raises(ValueError, match=r"num_steps must be >= 0, got -1"):
        two_hop_walk(maps, attn, num_steps=-1)
    with pytest.raises(ValueError, match=r"attn must be finite and >= 0"):
        two_hop_walk(maps, -attn)
    assert two_hop_walk(maps, -attn, check_values=False).shape == (2, 5)
    with pytest.raises(ValueError, match=r"maps must have shape \(..., K, N\)"):
        two_hop_walk(maps[..., :4], attn)
    q = torch.rand(1, 2, 6, 4)
    for message, arguments in {
        "at least one block": {"blocks": []},
        "max_rows must be >= 1": {"max_rows": 0},
        "scale must be > 0": {"scale": 0.0},
        "prefix tokens": {"num_prefix_tokens": 2},
    }.items():
        with pytest.raises(ValueError, match=message):
            two_hop_walk_of_tokens(
                torch.rand(1, 2, 5), **{"blocks": [(q, q)], "scale": 0.3, **arguments}
            )
    reasons = available_backends()
    assert reasons["torch"] is None and reasons["reference"] is None


def test_option_of_ad_cam() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = TokenMaps(
        logits=torch.zeros(2, 3),
        cam=torch.randn(2, 3, 4, 5, generator=generator),
        grid_hw=(4, 5),
        depth=1,
        attn_cls2patch=torch.rand(2, 1, 20, generator=generator),
        attn_patch2patch={(0,): make_attn(2, 20, dtype=torch.float32)},
        model="made by hand",
    )
    ids = torch.tensor([[0, 2], [1, 2]])
    method = build_method(
        "ad_cam", **{"walk": "two_hop", "background_weight": 0, "artifact_ratio": 0}
    )
    start = method.start_maps(maps, ids)
    want = two_hop_walk(start.flatten(2), maps.attn_patch2patch[0,]).unflatten(2, (4, 5))
    assert torch.equal(method(maps, ids), want)
    refined = build_method("ad_cam", **{"background_weight": 0, "artifact_ratio": 0})(maps, ids)
    assert (refined - want).abs().max() > 1e-3
    still = build_method(
        "ad_cam",
        **{"walk": "two_hop", "two_hop_steps": 0, "background_weight": 0, "artifact_ratio": 0},
    )
    assert torch.equal(still(maps, ids), start)
