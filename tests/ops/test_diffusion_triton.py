"""Triton kernels of the diffusion against the reference: interpreted, compiled, on a GPU."""

from __future__ import annotations

import pytest
import torch
from triton_testing import CAPABILITIES, compile_ahead, interpreted, nan_poisoned, needs_triton

from adcam.ops.diffusion import diffuse

POINTERS = dict.fromkeys(
    [
        *("affinity", "own", "rows", "columns", "partial"),
        *("maps", "initial", "pulled", "pushed", "stepped"),
    ],
    "*fp32",
)
NUMBERS = {"tokens": "i32", "row_blocks": "i32", "num_maps": "i32", "alpha": "fp32"}


def make_affinity(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    return (logits * 1.5).softmax(dim=-1).float()


def make_maps(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def check(
    maps: torch.Tensor,
    affinity: torch.Tensor,
    *,
    num_steps: int = 2,
    alpha: float | None = None,
) -> None:
    with nan_poisoned():
        got = diffuse(maps, affinity, num_steps=num_steps, alpha=alpha, backend="triton")
    want = diffuse(maps, affinity, num_steps=num_steps, alpha=alpha, backend="reference")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=3e-6)


@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 63])
@pytest.mark.parametrize("num_maps", [1, 2])
@interpreted
def test_interpreted(tokens: int, num_maps: int) -> None:
    check(make_maps(2, num_maps, tokens), make_affinity(2, tokens))


@pytest.mark.parametrize(("num_steps", "alpha"), [(0, None), (1, None), (3, 0.6), (2, 0.0)])
@interpreted
def test_interpreted_options(num_steps: int, alpha: float | None) -> None:
    check(make_maps(2, 17, 35), make_affinity(2, 35), num_steps=num_steps, alpha=alpha)


@interpreted
def test_interpreted_edges() -> None:
    affinity = make_affinity(2, 3, 40)
    affinity[:, :, 2], affinity[..., 2], affinity[:, :, 5], affinity[..., 7] = 0, 0, 0, 0
    maps = make_maps(2, 3, 2, 40)
    check(maps, affinity)
    check(maps, affinity.mT)
    for factor in (1e-20, 1e20):
        torch.testing.assert_close(
            diffuse(maps, affinity * factor, backend="triton"),
            diffuse(maps, affinity, backend="reference"),
            rtol=0,
            atol=3e-6,
        )
    check(maps, torch.zeros(2, 3, 40, 40))
    check(make_maps(0, 9), make_affinity(9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@interpreted
def test_interpreted_half_is_read_as_float32(dtype: torch.dtype) -> None:
    check(make_maps(3, 33).to(dtype), make_affinity(33).to(dtype))


@interpreted
def test_interpreted_gradient() -> None:
    maps, affinity = make_maps(2, 3, 9).requires_grad_(), make_affinity(2, 9).requires_grad_()
    weights = make_maps(2, 3, 9, seed=2)
    fast, slow = (
        torch.autograd.grad(
            (diffuse(maps, affinity, backend=name) * weights).sum(), (maps, affinity)
        )
        for name in ("triton", "reference")
    )
    for got, want in zip(fast, slow, strict=True):
        assert want.abs().max() > 1e-3
        torch.testing.assert_close(got, want, rtol=0, atol=3e-6)


@interpreted
def test_interpreted_refusals() -> None:
    maps, affinity = make_maps(1, 5), make_affinity(5)
    with pytest.raises(RuntimeError, match="no kernel for normalize='row'"):
        diffuse(maps, affinity, normalize="row", backend="triton")
    with pytest.raises(RuntimeError, match="the closed form needs the transition"):
        diffuse(maps, affinity, num_steps=None, alpha=0.5, backend="triton")
    with pytest.raises(RuntimeError, match="no kernel for float64"):
        diffuse(maps.double(), affinity, backend="triton")


BLOCKS = {"block_rows": 32, "block_columns": 64}
KERNELS = [
    ("balance_rows", {"is_first": True, "is_last": False, **BLOCKS}),
    ("balance_rows", {"is_first": False, "is_last": False, **BLOCKS}),
    ("balance_rows", {"is_first": False, "is_last": True, **BLOCKS}),
    ("balance_columns", {"is_first": True, "block": 128}),
    ("balance_columns", {"is_first": False, "block": 128}),
    ("step_rows", {**BLOCKS, "block_maps": 16}),
    ("step_columns", {"block": 128}),
    # At launch, a number that is 1 becomes a constant: one token, one map, one block of rows.
    ("balance_rows", {"is_first": False, "is_last": False, **BLOCKS, "tokens": 1}),
    ("balance_columns", {"is_first": True, "block": 128, "tokens": 1, "row_blocks": 1}),
    ("step_rows", {**BLOCKS, "block_maps": 16, "tokens": 1, "num_maps": 1}),
    ("step_columns", {"block": 128, "tokens": 1, "row_blocks": 1}),
]


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("kernel", "constants"), KERNELS)
@pytest.mark.parametrize("divisor", ["", ":16"])  # Triton tells multiples of 16 from others
def test_kernels_compile(
    capability: int, kernel: str, constants: dict[str, bool | int], divisor: str
) -> None:
    from adcam.ops.diffusion import triton_kernels

    sizes = {name: f"{kind}{divisor}" for name, kind in NUMBERS.items() if kind == "i32"}
    types = {**POINTERS, **NUMBERS, **sizes}
    compile_ahead(getattr(triton_kernels, kernel), capability, signature=types, constants=constants)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 63, 196, 784, 1369, 2304])
@pytest.mark.parametrize("num_maps", [1, 2, 20])
def test_gpu(gpu: torch.device, tokens: int, num_maps: int) -> None:
    maps, affinity = make_maps(2, num_maps, tokens).to(gpu), make_affinity(2, tokens).to(gpu)
    check(maps, affinity)
    check(maps, affinity, num_steps=3, alpha=0.6)
    # Sums are taken in a fixed order: no run differs from another.
    assert torch.equal(
        diffuse(maps, affinity, backend="triton"), diffuse(maps, affinity, backend="triton")
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gpu_half(gpu: torch.device, dtype: torch.dtype) -> None:
    check(make_maps(3, 197).to(gpu, dtype), make_affinity(197).to(gpu, dtype))
