"""The kernel of the walk of two hops: interpreted, compiled ahead, on a GPU."""

from __future__ import annotations

import pytest
import torch
from ops.triton_testing import (
    CAPABILITIES,
    Launch,
    compile_launch,
    interpreted,
    nan_poisoned,
    needs_triton,
    record_launches,
)

from adcam.ops import _launch
from adcam.ops.two_hop_walk import two_hop_walk


def make_inputs(
    *leading: int, num_maps: int, tokens: int, device: str | torch.device = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(*leading, num_maps, tokens, generator=generator) - 0.2
    attn = (3 * torch.randn(*leading, tokens, tokens, generator=generator)).softmax(dim=-1)
    return maps.to(device), attn.to(device)


def check(maps: torch.Tensor, attn: torch.Tensor, num_steps: int = 1, atol: float = 2e-6) -> None:
    with nan_poisoned():
        got = two_hop_walk(maps, attn, num_steps=num_steps, backend="triton")
    want = two_hop_walk(
        maps.cpu().double(), attn.cpu().double(), num_steps=num_steps, backend="reference"
    )
    assert got.shape == maps.shape and got.dtype == torch.float32
    torch.testing.assert_close(got.cpu().double(), want, rtol=0, atol=atol)


@interpreted
def test_interpreted() -> None:
    check(*make_inputs(2, num_maps=3, tokens=33), num_steps=1)
    check(*make_inputs(num_maps=1, tokens=16), num_steps=3)
    check(*make_inputs(1, num_maps=6, tokens=20), num_steps=2)
    check(*make_inputs(num_maps=2, tokens=1), num_steps=1)
    maps, attn = make_inputs(num_maps=2, tokens=18)
    check(maps, attn.bfloat16(), num_steps=2)
    assert torch.equal(two_hop_walk(maps, attn, num_steps=0, backend="triton"), maps)


@interpreted
def test_interpreted_padding() -> None:
    """A token without attention keeps its value; a column without mass is nobody's neighbour."""
    maps, attn = make_inputs(num_maps=2, tokens=19)
    attn[3], attn[:, 7] = 0, 0
    check(maps, attn, num_steps=2)


@interpreted
def test_interpreted_refusals() -> None:
    maps, attn = make_inputs(num_maps=2, tokens=5)
    with pytest.raises(RuntimeError, match="no kernel for float64"):
        two_hop_walk(maps.double(), attn, backend="triton")
    with pytest.raises(RuntimeError, match="it has no gradient"):
        two_hop_walk(maps, attn.requires_grad_(), backend="triton")


def launches_of(
    images: int, num_maps: int, tokens: int, dtype: torch.dtype, capability: int | None = None
) -> list[Launch]:
    from adcam.ops.two_hop_walk import triton_kernels

    attn = torch.zeros(images, tokens, tokens, dtype=dtype)
    with record_launches(capability) as launches:
        triton_kernels.walk(torch.zeros(images, num_maps, tokens), attn, 2)
    return launches


@needs_triton
def test_one_launch_and_two_readings_a_step() -> None:
    (launch,) = launches_of(2, 3, 784, torch.float32)
    rows, columns = 25, 13  # blocks of 32 and 64
    assert launch.grid == (2 * 2 * (2 * rows + 3 * columns),)


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("num_maps", "tokens", "dtype"),
    [(3, 2304, torch.float32), (5, 785, torch.float16), (1, 784, torch.bfloat16)],
)
def test_compiles_as_launched(
    capability: int, num_maps: int, tokens: int, dtype: torch.dtype
) -> None:
    (launch,) = launches_of(2, num_maps, tokens, dtype, capability)
    compile_launch(launch, capability)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("tokens", [784, 785, 2304, 2305])
def test_compiles_in_every_tile(capability: int, tokens: int) -> None:
    name = f"two_hop_walk, {'short' if tokens <= 1024 else 'long'} rows"
    for tile in _launch.TILES[name]:
        with _launch.force_tile(name, tile):
            (launch,) = launches_of(2, 3, tokens, torch.float32)
            assert launch.values["block_rows"] == tile.sizes["block_rows"]
            compile_launch(launch, capability)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [63, 784, 2304])
@pytest.mark.parametrize("num_maps", [1, 3, 20])
def test_gpu(gpu: torch.device, tokens: int, num_maps: int) -> None:
    check(*make_inputs(2, num_maps=num_maps, tokens=tokens, device=gpu), num_steps=2)
