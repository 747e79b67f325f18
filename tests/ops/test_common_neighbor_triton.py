"""Triton kernels of the refinement against the reference: interpreted, compiled, on a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch
from triton_testing import (
    CAPABILITIES,
    Launch,
    compile_launch,
    interpreted,
    is_old_triton,
    nan_poisoned,
    needs_triton,
    on_each_gpu,
    record_launches,
)

from adcam.ops import _launch
from adcam.ops._backends import triton_package_reason
from adcam.ops.common_neighbor import common_neighbor

EXACT = 3e-6  # rounding of N-term sums in float32
HALF_PRODUCT = 1e-3  # operands of 11 bits
HALF = (torch.float16, torch.bfloat16)


def make_attn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    return (logits * 1.5).softmax(dim=-1).to(dtype)


def check(attn: torch.Tensor, *, similarity: str = "resource_allocation", power: float = 2.0):
    """Both products, exact and with float16 operands, against the reference."""
    options = {"similarity": similarity, "power": power}
    want = common_neighbor(attn.float(), backend="reference", **options)
    for exact in (True, False):
        with nan_poisoned():
            got = common_neighbor(attn, backend="triton_exact" if exact else "triton", **options)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=0, atol=EXACT if exact else HALF_PRODUCT)
        # Entries are of order 1/N: the tolerance above must not hide an answer that is all zero.
        assert (got.sum() - want.sum()).abs() < 1e-3 * want.sum()


def with_dead_tokens(attn: torch.Tensor) -> torch.Tensor:
    """Token 2 neither gives nor gets, token 5 gives nothing, nobody attends to 7."""
    attn[..., 2, :], attn[..., :, 2], attn[..., 5, :], attn[..., :, 7] = 0, 0, 0, 0
    return attn


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 63])
@interpreted
def test_interpreted(tokens: int) -> None:
    check(make_attn(2, tokens, seed=tokens))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("similarity", ["resource_allocation", "cosine"])
@interpreted
def test_interpreted_options(similarity: str, power: float) -> None:
    check(make_attn(21), similarity=similarity, power=power)
    block = torch.block_diag(make_attn(9), make_attn(12))  # similarities of exactly 0
    check(block, similarity=similarity, power=power)


@pytest.mark.parametrize("dtype", HALF)
@interpreted
def test_interpreted_half(dtype: torch.dtype) -> None:
    check(make_attn(33, dtype=dtype))


@interpreted
def test_interpreted_edges() -> None:
    check(with_dead_tokens(make_attn(2, 19)))
    check(make_attn(2, 3, 17).mT)  # not contiguous
    check(make_attn(3, 19)[:, :1].expand(3, 19, 19))  # equal rows: similarity 1
    scale = torch.tensor([1e-30, 1e30, 1, 1e-20, 1e20, 1, 1e-10, 1e10, 1])[:, None]
    got = common_neighbor(make_attn(9) * scale, backend="triton_exact")
    torch.testing.assert_close(
        got, common_neighbor(make_attn(9), backend="triton_exact"), rtol=0, atol=EXACT
    )
    assert common_neighbor(torch.ones(0, 5, 5), backend="triton").shape == (0, 5, 5)


@interpreted
def test_interpreted_gradient() -> None:
    attn = make_attn(2, 11).requires_grad_()
    weights = torch.rand(2, 11, 11, generator=torch.Generator().manual_seed(1))
    grads = [
        torch.autograd.grad((common_neighbor(attn, backend=backend) * weights).sum(), attn)[0]
        for backend in ("triton_exact", "reference")
    ]
    assert grads[1].abs().max() > 0.1
    torch.testing.assert_close(*grads, rtol=0, atol=3e-6)


@interpreted
def test_interpreted_refusals() -> None:
    with pytest.raises(RuntimeError, match="no kernel for similarity 'overlap'"):
        common_neighbor(make_attn(5), similarity="overlap", backend="triton")
    with pytest.raises(RuntimeError, match="no kernel for float64"):
        common_neighbor(make_attn(5).double(), backend="triton")
    assert common_neighbor(make_attn(5).double()).dtype == torch.float64


def launches_of(
    tokens: int,
    dtype: torch.dtype,
    half_product: bool,
    grid_hw: tuple[int, int] | None,
    capability: int | None = None,
) -> list[Launch]:
    """What a refinement launches before its walk."""
    from adcam.ops.common_neighbor import triton_kernels

    attn = torch.zeros(2, tokens, tokens, dtype=dtype)
    counters = torch.zeros(triton_kernels.count_counters(2), dtype=torch.int32)
    with record_launches(capability) as launches:
        triton_kernels.refine_for_walk(
            attn,
            "resource_allocation",
            2.0,
            half_product=half_product,
            counters=counters,
            grid_hw=grid_hw,
            artifact_ratio=0.65,
        )
        triton_kernels.refine(attn, "cosine", 1.5, half_product=half_product)
    return launches


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("grid_hw", "half_product"),
    # Triton tells multiples of 16 from others, and long rows have tiles of their own.
    [
        *(((28, 28), True), ((5, 157), True), ((48, 48), True), ((35, 35), True)),
        ((5, 157), False),
    ],
)
def test_compiles_as_launched(
    capability: int, grid_hw: tuple[int, int], half_product: bool
) -> None:
    tokens = grid_hw[0] * grid_hw[1]
    finding, leaving, product, *_ = launches_of(
        tokens, torch.float32, half_product, grid_hw, capability
    )
    assert [launch.name for launch in (finding, leaving, product)] == [
        *("prepare", "prepare", "gate_product"),
    ]
    for launch in (finding, leaving):
        compile_launch(launch, capability)
    assert "mma" in compile_launch(product, capability).asm["ptx"]


@needs_triton
@pytest.mark.parametrize(
    ("tokens", "dtype", "half_product", "capability"),
    on_each_gpu(
        itertools.product([1, 196, 785, 1024], [torch.float32, *HALF], [True, False]),
        never_slow=[
            (785, torch.float32, True),
            (196, torch.float16, True),
            (1024, torch.bfloat16, False),
        ],
    ),
)
def test_compiles_other_inputs(
    tokens: int, dtype: torch.dtype, half_product: bool, capability: int
) -> None:
    """No artefacts are looked for, with sums for a walk and without, by the cosine too."""
    launches = launches_of(tokens, dtype, half_product, None, capability)
    assert [launch.name for launch in launches] == ["prepare", "gate_product"] * 2
    for launch in launches:
        compile_launch(launch, capability)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("tokens", [784, 785, 2304, 2305])
def test_compiles_in_every_row_tile(capability: int, tokens: int) -> None:
    name = f"prepare, {'short' if tokens <= 1024 else 'long'} rows"
    for tile in _launch.TILES[name]:
        with _launch.force_tile(name, tile):
            launches = launches_of(tokens, torch.float32, True, (1, tokens))
            for launch in launches[:2]:
                assert launch.values["rows"] == tile.sizes["block_rows"]
                compile_launch(launch, capability)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("tokens", [785, 784])
def test_compiles_in_every_tile(capability: int, tokens: int) -> None:
    for half_product in (True, False):
        name = f"common_neighbor, {'float16' if half_product else 'float32'}"
        for tile in _launch.TILES[name]:
            with _launch.force_tile(name, tile):
                _, product, *_ = launches_of(tokens, torch.float32, half_product, None)
                ptx = compile_launch(product, capability).asm["ptx"]
                # On the tensor cores, and loaded while the tile before is multiplied. Copies that
                # do not wait take 4 bytes or more; odd rows of float16 are aligned to 2.
                assert "mma" in ptx
                if not is_old_triton() and capability <= 90:
                    assert ("cp.async" in ptx) == (tokens % 2 == 0 or not half_product)


def test_the_safe_tile_compiles_for_every_gpu() -> None:
    """sm_86, sm_89 and sm_120 have 99 KiB of shared memory, where sm_80 has 163."""
    if triton_package_reason() is not None:
        pytest.skip("no Triton")
    for half_product in (True, False):
        _, product, *_ = launches_of(784, torch.float32, half_product, None)
        assert compile_launch(product, 80).metadata.shared <= 99 << 10


@interpreted
def test_interpreted_illegal_values_give_nan() -> None:
    """Nobody waits for a check, so that a mistake must show: in its image, and only there."""
    from adcam.ops.common_neighbor import triton_kernels

    for value in (-0.1, float("nan"), float("inf")):
        attn = make_attn(3, 21)
        attn[1, 4, 7] = value
        for half_product in (True, False):
            got = triton_kernels.refine(attn, "resource_allocation", 2.0, half_product=half_product)
            assert got[1].isnan().all() and not got[[0, 2]].isnan().any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("tokens", [1, 63, 196, 784, 1369, 2304])
def test_gpu(gpu: torch.device, tokens: int, dtype: torch.dtype) -> None:
    check(make_attn(2, tokens, dtype=dtype).to(gpu))


@pytest.mark.gpu
def test_gpu_edges(gpu: torch.device) -> None:
    check(with_dead_tokens(make_attn(3, 197).to(gpu)))
    check(make_attn(2, 130).to(gpu).mT, similarity="cosine", power=0.5)
    attn = make_attn(65).to(gpu).requires_grad_()
    fast, slow = (
        torch.autograd.grad(common_neighbor(attn, backend=name).square().sum(), attn)[0]
        for name in ("triton_exact", "reference")
    )
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_gpu_addresses_beyond_32_bits(gpu: torch.device) -> None:
    attn = torch.rand(2, 33000, 33000, device=gpu, dtype=torch.float16)
    refined = common_neighbor(attn, backend="triton")
    sample = attn[1, -64:].float()
    assert torch.isfinite(refined[1, -64:]).all()
    own = torch.arange(33000 - 64, 33000, device=gpu)
    want = sample[torch.arange(64), own] / sample.sum(dim=-1)
    torch.testing.assert_close(refined[1, own, own], want, rtol=1e-3, atol=0)
