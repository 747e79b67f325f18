"""Triton kernels of the diffusion against the reference: interpreted, compiled, on a GPU."""

from __future__ import annotations

import pytest
import torch
from triton_testing import (
    CAPABILITIES,
    Launch,
    compile_launch,
    interpreted,
    nan_poisoned,
    needs_triton,
    on_each_gpu,
    record_launches,
)

from adcam.ops import _launch
from adcam.ops._backends import triton_package_reason
from adcam.ops.diffusion import diffuse


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
    affinity = make_affinity(1, 2, 35)
    affinity[:, :, 2], affinity[..., 2], affinity[:, :, 5], affinity[..., 7] = 0, 0, 0, 0
    maps = make_maps(1, 2, 2, 35)
    check(maps, affinity)
    check(maps, affinity.mT)
    for factor in (1e-20, 1e20):
        torch.testing.assert_close(
            diffuse(maps, affinity * factor, backend="triton"),
            diffuse(maps, affinity, backend="reference"),
            rtol=0,
            atol=3e-6,
        )
    check(maps, torch.zeros(1, 2, 35, 35))
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


def launches_of(
    tokens: int,
    num_maps: int,
    images: int,
    has_sums: bool,
    *,
    exact: bool = False,
    capability: int | None = None,
) -> list[Launch]:
    from adcam.ops.diffusion import triton_kernels

    kind = torch.float16 if has_sums and not exact else torch.float32
    affinity = torch.zeros(images, tokens, tokens, dtype=kind)
    parts = torch.zeros(images, -(-tokens // 128), tokens)
    with record_launches(capability) as launches:
        triton_kernels.diffuse(
            torch.zeros(images, num_maps, tokens),
            affinity,
            num_iters=3,
            num_steps=2,
            alpha=None,
            sums=(parts, parts) if has_sums else None,
        )
    return launches


def test_one_launch() -> None:
    """Three rounds, two steps, three maps: four readings of an affinity that comes with its sums,
    and a ticket for each block of rows and of columns."""
    if triton_package_reason() is not None:
        pytest.skip("no Triton")
    (launch,) = launches_of(784, 3, 2, has_sums=True)
    rows, columns = 25, 13  # blocks of 32 and 64
    assert launch.grid == (2 * (4 * rows + (3 + 2 * 3) * columns),)
    assert launches_of(784, 3, 2, has_sums=False)[0].grid == (2 * (5 * rows + 9 * columns),)
    # Five maps are moved four and one at a time.
    assert launches_of(784, 5, 2, has_sums=True)[0].grid == (2 * (6 * rows + 13 * columns),)


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    # Triton tells multiples of 16 from others, and long rows have tiles of their own.
    ("tokens", "exact"),
    [(784, False), (785, False), (2304, False), (1225, False), (785, True)],
)
def test_compiles_as_launched(capability: int, tokens: int, exact: bool) -> None:
    (launch,) = launches_of(tokens, 3, 2, has_sums=True, exact=exact, capability=capability)
    compile_launch(launch, capability)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("tokens", [784, 785, 2304, 2305])
def test_compiles_in_every_tile(capability: int, tokens: int) -> None:
    name = f"walk, {'short' if tokens <= 1024 else 'long'} rows"
    for tile in _launch.TILES[name]:
        with _launch.force_tile(name, tile):
            (launch,) = launches_of(tokens, 3, 2, has_sums=True)
            assert launch.values["block_rows"] == tile.sizes["block_rows"]
            compile_launch(launch, capability)


@needs_triton
@pytest.mark.parametrize(
    ("tokens", "num_maps", "images", "has_sums", "capability"),
    on_each_gpu(
        # A number that is 1 becomes a constant: one token, one map, one image.
        [(1, 1, 1, True), (196, 2, 16, False), (1024, 16, 64, True)],
        never_slow=[(785, 20, 1, False)],
    ),
)
def test_compiles_other_sizes(
    tokens: int, num_maps: int, images: int, has_sums: bool, capability: int
) -> None:
    (launch,) = launches_of(tokens, num_maps, images, has_sums, capability=capability)
    compile_launch(launch, capability)


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
