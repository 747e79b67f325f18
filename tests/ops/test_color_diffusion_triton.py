"""The kernels of the diffusion along colour: interpreted, compiled ahead, on a GPU."""

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

from adcam.ops.color_diffusion import diffuse_by_color


def make_inputs(
    *leading: int, num_maps: int, hw: tuple[int, int], device: str | torch.device = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(*leading, num_maps, *hw, generator=generator)
    img = torch.randint(0, 256, (*leading, 3, *hw), generator=generator).float()
    img[..., : hw[0] // 2, :] = 30.0  # neighbours of one colour
    return maps.to(device), img.to(device)


def check(maps: torch.Tensor, img: torch.Tensor, **options: object) -> None:
    with nan_poisoned():
        got = diffuse_by_color(maps, img, backend="triton", **options)  # type: ignore[arg-type]
    want = diffuse_by_color(
        maps.double().cpu(),
        img.double().cpu(),
        backend="reference",
        **options,  # type: ignore[arg-type]
    )
    assert got.shape == maps.shape and got.dtype == torch.float32
    torch.testing.assert_close(got.cpu().double(), want, rtol=0, atol=2e-6)


@interpreted
def test_interpreted() -> None:
    check(*make_inputs(num_maps=2, hw=(9, 17)), num_steps=3)
    check(*make_inputs(2, num_maps=5, hw=(7, 20)), num_steps=2, dilations=(1,))
    check(*make_inputs(num_maps=1, hw=(5, 5)), num_steps=1, contrast=0.7, distance_weight=0.5)
    maps, img = make_inputs(num_maps=1, hw=(4, 4))
    assert diffuse_by_color(maps, img, num_steps=0, backend="triton") is maps


@interpreted
def test_interpreted_refusals() -> None:
    maps, img = make_inputs(num_maps=1, hw=(4, 4))
    with pytest.raises(RuntimeError, match="no kernel for float64"):
        diffuse_by_color(maps.double(), img.double(), backend="triton")
    with pytest.raises(RuntimeError, match="it has no gradient"):
        diffuse_by_color(maps.requires_grad_(), img, backend="triton")


def launches_of(images: int, num_maps: int, hw: tuple[int, int], steps: int) -> list[Launch]:
    from adcam.ops.color_diffusion import triton_kernels

    maps, img = make_inputs(images, num_maps=num_maps, hw=hw)
    with record_launches() as launches:
        triton_kernels.diffuse_by_color(maps, img, steps, (1, 2, 4), 0.3, 0.01)
    return launches


@needs_triton
def test_one_launch_a_step_for_all_images() -> None:
    names = [launch.name for launch in launches_of(8, 3, (112, 112), 10)]
    assert names == ["weigh_colors"] + ["step_by_color"] * 10


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("num_maps", "hw"), [(3, (112, 112)), (1, (45, 77))])
def test_compiles_as_launched(capability: int, num_maps: int, hw: tuple[int, int]) -> None:
    for launch in launches_of(2, num_maps, hw, 1):
        compile_launch(launch, capability)


@pytest.mark.gpu
@pytest.mark.parametrize("num_maps", [1, 3, 20])
@pytest.mark.parametrize("hw", [(112, 112), (45, 77)])
def test_gpu(gpu: torch.device, num_maps: int, hw: tuple[int, int]) -> None:
    check(*make_inputs(2, num_maps=num_maps, hw=hw, device=gpu))
