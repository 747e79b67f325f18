"""The refinement as one operation: against its parts, and how much a GPU would do for it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from helpers import OpCounter
from triton_testing import (
    CAPABILITIES,
    Launch,
    compile_launch,
    interpreted,
    nan_poisoned,
    needs_triton,
    record_launches,
)

from adcam.ops import _launch
from adcam.ops.artifact_patches import fill_patches, find_artifacts
from adcam.ops.common_neighbor import common_neighbor
from adcam.ops.diffusion import diffuse
from adcam.ops.refinement import RefineOptions
from adcam.ops.refinement import refine_maps as refine_by_options


def make_attn(batch: int, grid_hw: tuple[int, int], strays: int, seed: int = 0) -> torch.Tensor:
    """Attention that falls off with distance, and in each image other patches that do not care."""
    height, width = grid_hw
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.arange(height * width) // width, torch.arange(height * width) % width
    distance = ((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2).double()
    noise = 0.1 * torch.randn(batch, *distance.shape, generator=generator, dtype=torch.float64)
    logits = -distance / 4 + noise
    for image in logits:
        chosen = torch.randperm(height * width, generator=generator)[:strays]
        image[chosen] = -8.0
        image[chosen[:, None], chosen] = 4
    return logits.softmax(dim=-1).float()


def make_maps(batch: int, num_maps: int, tokens: int) -> torch.Tensor:
    return torch.rand(batch, num_maps, tokens, generator=torch.Generator().manual_seed(1))


def refine_maps(
    maps: torch.Tensor, attn: torch.Tensor, grid_hw: Any, backend: str = "auto", **options: Any
) -> torch.Tensor:
    return refine_by_options(maps, attn, grid_hw, RefineOptions(**options), backend=backend)


def chain(maps: torch.Tensor, attn: torch.Tensor, grid_hw: Any, ratio: float) -> torch.Tensor:
    """AD-CAM's refinement written out."""
    stray = find_artifacts(attn, grid_hw, ratio=ratio)
    kept = (~stray).to(attn.dtype)
    clean = attn * kept[..., :, None] * kept[..., None, :]
    refined = diffuse(maps * kept[..., None, :], common_neighbor(clean))
    return fill_patches(refined, stray, grid_hw)


@pytest.mark.parametrize("ratio", [0.0, 0.65])
def test_the_cpu_computes_the_chain(ratio: float) -> None:
    maps, attn = make_maps(2, 3, 35), make_attn(2, (5, 7), 3)
    got = refine_maps(maps, attn, (5, 7), artifact_ratio=ratio, backend="torch")
    assert torch.equal(got, chain(maps, attn, (5, 7), ratio))
    slow = refine_maps(maps, attn, (5, 7), artifact_ratio=ratio, backend="reference")
    torch.testing.assert_close(got, slow, rtol=0, atol=1e-5)
    if ratio:
        assert find_artifacts(attn, (5, 7), ratio=ratio).sum(dim=-1).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("grid_hw", "ratio"), [((5, 7), 0.0), ((5, 7), 0.65), ((1, 17), 0.65), ((9, 2), 0.65)]
)
@interpreted
def test_interpreted(grid_hw: tuple[int, int], ratio: float) -> None:
    tokens = grid_hw[0] * grid_hw[1]
    maps, attn = make_maps(2, 2, tokens), make_attn(2, grid_hw, 3)
    want = refine_maps(maps, attn, grid_hw, artifact_ratio=ratio, backend="reference")
    for exact, atol in ((True, 1e-5), (False, 1e-3)):
        with nan_poisoned():
            got = refine_maps(
                maps, attn, grid_hw, artifact_ratio=ratio, exact=exact, backend="triton"
            )
        torch.testing.assert_close(got, want, rtol=0, atol=atol)


@interpreted
def test_interpreted_options() -> None:
    maps, attn = make_maps(1, 17, 20), make_attn(1, (4, 5), 0)
    for options in (
        {"num_steps": 3, "alpha": 0.7, "similarity": "cosine", "power": 1.0},
        {"num_steps": 1, "artifact_ratio": 1.0},  # half of all patches
        {"num_steps": 0, "artifact_ratio": 0.8},
    ):
        want, got = (
            refine_maps(maps, attn, (4, 5), exact=True, backend=backend, **options)
            for backend in ("reference", "triton")
        )
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@interpreted
def test_interpreted_tiny_attention_survives_half_precision() -> None:
    """A token that hardly anybody looks at, and rows of any size."""
    maps, attn = make_maps(1, 2, 30), make_attn(1, (5, 6), 0)
    attn[:, :, 11] *= 1e-4
    attn[:, 3] *= 1e-20
    attn[:, 5] *= 1e20
    want = refine_maps(maps, attn, (5, 6), backend="reference")
    got = refine_maps(maps, attn, (5, 6), backend="triton")
    torch.testing.assert_close(got, want, rtol=0, atol=1e-3)


@interpreted
def test_interpreted_refusals() -> None:
    maps, attn = make_maps(1, 2, 12), make_attn(1, (3, 4), 0)
    for reason, options in {
        "no kernel for similarity 'overlap'": {"similarity": "overlap"},
        "no kernel for normalize='row'": {"normalize": "row"},
        "the closed form": {"num_steps": None, "alpha": 0.5},
    }.items():
        with pytest.raises(RuntimeError, match=reason):
            refine_maps(maps, attn, (3, 4), backend="triton", **options)
        assert refine_maps(maps, attn, (3, 4), **options).shape == maps.shape
    with pytest.raises(RuntimeError, match="no gradient"):
        refine_maps(maps.requires_grad_(), attn, (3, 4), backend="triton")


def test_refusals() -> None:
    maps, attn = make_maps(1, 2, 12), make_attn(1, (3, 4), 0)
    with pytest.raises(ValueError, match="attn must be finite and >= 0"):
        refine_maps(maps, -attn, (3, 4))
    with pytest.raises(ValueError, match=r"artifact_ratio must lie in \[0, 1\], got 2"):
        refine_maps(maps, attn, (3, 4), artifact_ratio=2)
    with pytest.raises(ValueError, match="grid_hw must have 12 patches"):
        refine_maps(maps, attn, (3, 5), artifact_ratio=0.5)


def count(
    tokens: int, grid_hw: tuple[int, int], ratio: float, dtype: torch.dtype = torch.float32
) -> tuple[list[Launch], list[str], list[str]]:
    """Launches of kernels, other launches, waits of one refinement of 16 images and 3 maps."""
    from adcam.ops.refinement import triton_kernels

    maps = torch.zeros(2, 3, tokens)
    attn = torch.zeros(2, tokens, tokens, dtype=dtype)
    with record_launches() as launches, OpCounter() as counter:
        triton_kernels.refine_maps(maps, attn, grid_hw, RefineOptions(artifact_ratio=ratio))
    return launches, counter.launched, counter.waited


@needs_triton
@pytest.mark.parametrize(("tokens", "grid_hw"), [(196, (14, 14)), (2304, (48, 48))])
@pytest.mark.parametrize("ratio", [0.0, 0.65])
def test_launches_and_waits(tokens: int, grid_hw: tuple[int, int], ratio: float) -> None:
    """At most six launches from start to refined maps, with artefacts out, and no wait."""
    launches, others, waits = count(tokens, grid_hw, ratio)
    names = [launch.name for launch in launches]
    if ratio:
        assert names == ["prepare", "prepare", "gate_product", "walk", "fill_map"]
    else:
        assert names == ["prepare", "gate_product", "walk"]
    assert others in (["zeros"], ["new_zeros"], ["zero_"])  # what the kernels count with
    assert len(names) + len(others) <= 6 and waits == []


@pytest.mark.parametrize(
    ("dtype", "ratio", "expected"),
    [
        (torch.float32, 0.0, 22),
        (torch.float32, 0.65, 34),
        (torch.float16, 0.0, 18),
        (torch.float16, 0.65, 26),
    ],
)
@interpreted
def test_bytes_as_the_readme_counts_them(dtype: torch.dtype, ratio: float, expected: int) -> None:
    """What the kernels read and write of (N, N), in bytes / N² of an image.

    A kernel reads the vectors many times, from the cache: they count once a kernel.
    """
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    tokens = 35
    launches: list[dict[str, torch.Tensor]] = []  # the matrices of each by name
    addresses: dict[tuple[int, str, str], list[int]] = defaultdict(list)

    def launch(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
        values = dict(zip(kernel.arg_names, args, strict=False))
        shapes = {name: getattr(value, "shape", ())[1:] for name, value in values.items()}
        launches.append({k: values[k] for k, hw in shapes.items() if hw == (tokens, tokens)})
        launch_it(kernel, grid, *args, **options)

    def see(how: str, pointers: Any, mask: Any) -> None:
        places = pointers.data[mask.data]
        for name, matrix in launches[-1].items():
            first = matrix.data_ptr()
            inside = (places >= first) & (places < first + matrix.nbytes)
            addresses[len(launches), name, how] += places[inside].tolist()

    def load(self: Any, pointers: Any, mask: Any, *args: Any) -> Any:
        see("read", pointers, mask)
        return load_it(self, pointers, mask, *args)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *args: Any) -> Any:
        see("write", pointers, mask)
        return store_it(self, pointers, value, mask, *args)

    launch_it = _launch.launch
    load_it, store_it = Builder.create_masked_load, Builder.create_masked_store
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_launch, "launch", launch)
        patch.setattr(Builder, "create_masked_load", load)
        patch.setattr(Builder, "create_masked_store", store)
        attn = make_attn(1, (5, 7), 3).to(dtype)
        refine_maps(make_maps(1, 3, tokens), attn, (5, 7), "triton", artifact_ratio=ratio)
    assert len(launches) == (5 if ratio else 3)
    moved = 0.0
    for (number, name, _), places in addresses.items():
        count = len({*places}) if name == "features" else len(places)
        moved += count * launches[number - 1][name].element_size() / tokens**2
    assert moved == expected


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_filling_compiles(capability: int) -> None:
    for tokens, grid_hw in ((2304, (48, 48)), (221, (13, 17))):
        compile_launch(count(tokens, grid_hw, 0.65)[0][-1], capability)


@pytest.mark.gpu
@pytest.mark.parametrize("grid_hw", [(14, 14), (28, 28), (32, 32), (37, 29), (48, 48)])
@pytest.mark.parametrize("ratio", [0.0, 0.65])
@pytest.mark.parametrize("batch", [1, 16])
def test_gpu(gpu: torch.device, grid_hw: tuple[int, int], ratio: float, batch: int) -> None:
    maps = make_maps(batch, 3, grid_hw[0] * grid_hw[1]).to(gpu)
    attn = make_attn(batch, grid_hw, 20).to(gpu)
    want = refine_maps(maps, attn, grid_hw, artifact_ratio=ratio, backend="reference")
    for exact, atol in ((True, 1e-5), (False, 1e-3)):
        with nan_poisoned():
            got = refine_maps(
                maps, attn, grid_hw, artifact_ratio=ratio, exact=exact, backend="triton"
            )
            again = refine_maps(
                maps, attn, grid_hw, artifact_ratio=ratio, exact=exact, backend="triton"
            )
        torch.testing.assert_close(got, want, rtol=0, atol=atol)
        assert torch.equal(got, again)  # sums in a fixed order: no run differs from another
