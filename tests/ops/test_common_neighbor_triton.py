"""Triton kernels of the refinement against the reference: interpreted, compiled, on a GPU."""

from __future__ import annotations

import pytest
import torch
from triton_testing import (
    CAPABILITIES,
    compile_ahead,
    interpreted,
    is_old_triton,
    nan_poisoned,
    needs_triton,
)

from adcam.ops.common_neighbor import common_neighbor

# float32: rounding of N-term sums. Half precision: its own operands, 11 bits each, in float16.
ATOL = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 1e-3}
HALF = (torch.float16, torch.bfloat16)


def make_attn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    return (logits * 1.5).softmax(dim=-1).to(dtype)


def check(attn: torch.Tensor, *, similarity: str = "resource_allocation", power: float = 2.0):
    with nan_poisoned():
        got = common_neighbor(attn, similarity=similarity, power=power, backend="triton")
    want = common_neighbor(attn.float(), similarity=similarity, power=power, backend="reference")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=ATOL[attn.dtype])
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
    got = common_neighbor(make_attn(9) * scale, backend="triton")
    torch.testing.assert_close(got, common_neighbor(make_attn(9)), rtol=0, atol=3e-6)
    assert common_neighbor(torch.ones(0, 5, 5), backend="triton").shape == (0, 5, 5)


@interpreted
def test_interpreted_gradient() -> None:
    attn = make_attn(2, 11).requires_grad_()
    weights = torch.rand(2, 11, 11, generator=torch.Generator().manual_seed(1))
    grads = [
        torch.autograd.grad((common_neighbor(attn, backend=backend) * weights).sum(), attn)[0]
        for backend in ("triton", "reference")
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


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("attn_type", ["*fp32", "*bf16", "*fp16"])
@pytest.mark.parametrize("tokens", ["i32", "i32:16"])  # as a launch with N = 785 and 784 does
def test_passes_compile(capability: int, attn_type: str, tokens: str) -> None:
    from adcam.ops.common_neighbor import triton_kernels

    types = dict.fromkeys(("row_scale", "column_scale", "received"), "*fp32")
    types |= {"attn": attn_type, "tokens": tokens}
    compile_ahead(
        triton_kernels.row_and_column_sums,
        capability,
        signature=types,
        constants={"rows": 16, "columns": 128},
    )
    features = "*fp32" if attn_type == "*fp32" else "*fp16"
    compile_ahead(
        triton_kernels.unit_features,
        capability,
        signature={**types, "features": features},
        constants={"columns": 1024},
    )


@needs_triton
@pytest.mark.parametrize(
    ("capability", "features", "index"),
    [
        *((capability, "*fp32", 0) for capability in CAPABILITIES),
        *((capability, "*fp16", 0) for capability in CAPABILITIES),
        *((80, "*fp32", index) for index in range(1, 5)),  # the least shared memory
    ],
)
def test_product_compiles(capability: int, features: str, index: int) -> None:
    from adcam.ops.common_neighbor import triton_kernels

    config = triton_kernels.CONFIGS[index]
    assert len(triton_kernels.CONFIGS) == 5, "every configuration is compiled"
    compiled = compile_ahead(
        triton_kernels.tuned_gate_product,
        capability,
        signature={
            "attn": "*fp32" if features == "*fp32" else "*bf16",
            "features": features,
            "row_scale": "*fp32",
            "refined": "*fp32",
            "tokens": "i32:16",
            "size_class": "i32",
        },
        constants={"power": 2.0, **config.kwargs},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    # The product is on the tensor cores, and is waited for asynchronously.
    ptx = compiled.asm["ptx"]
    assert {80: "mma.sync", 90: "mma", 100: "mma"}[capability] in ptx
    if not is_old_triton():  # which loads float32 on sm_90 without it
        assert "cp.async" in ptx


@needs_triton
@pytest.mark.parametrize("constants", [{"power": 1.5}, {"power": 0.0, "tokens": 1}])
def test_odd_sizes_and_any_power_compile(constants: dict[str, float]) -> None:
    from adcam.ops.common_neighbor import triton_kernels

    pointers = dict.fromkeys(("attn", "features", "row_scale", "refined"), "*fp32")
    compile_ahead(
        triton_kernels.gate_product,
        90,
        signature={**pointers, "tokens": "i32", "size_class": "i32"},
        constants={**constants, "block": 64, "block_k": 32},
    )


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
        for name in ("triton", "reference")
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
