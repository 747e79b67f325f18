"""Times every tile of the Triton kernels on the GPU at hand and prints the table to ship.

usage: python tools/benchmark/tune.py [--device cuda:0] [--repeats 20]

The last line goes into ``SHIPPED`` of adcam/ops/_launch.py: from the compute capability of the GPU
to the fastest tile of each kernel over all sizes, as a place in its list.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from measure import Variant, measure

from adcam.ops import _launch
from adcam.ops._backends import triton_not_supported_reasons

SIZES = ((784, 16), (1024, 16), (2304, 16), (2304, 1))
"""Patches, in a square, and images."""


def work_of(name: str, tokens: int, batch: int, device: str) -> Callable[[], Any]:
    """A function that runs the kernel which a name of ``TILES`` stands for."""
    operation, _, kind = name.partition(", ")
    generator = torch.Generator().manual_seed(0)
    if operation in ("prepare", "walk", "two_hop_walk"):
        from adcam.ops import refinement, two_hop_walk

        attn = (8 * torch.rand(batch, tokens, tokens, generator=generator)).softmax(dim=-1)
        maps = torch.rand(batch, 3, tokens, generator=generator)
        if operation == "two_hop_walk":
            return partial(two_hop_walk.two_hop_walk, maps.to(device), attn.to(device))
        side = math.isqrt(tokens)
        options = refinement.RefineOptions(artifact_ratio=0.65)
        return partial(
            refinement.refine_maps, maps.to(device), attn.to(device), (side, side), options
        )
    if operation == "common_neighbor":
        from adcam.ops.common_neighbor import triton_kernels as kernels

        attn = (8 * torch.rand(batch, tokens, tokens, generator=generator)).softmax(dim=-1)
        return partial(
            kernels.refine,
            attn.to(device),
            "resource_allocation",
            2.0,
            half_product=kind == "float16",
        )
    from adcam.ops.token_attention import triton_kernels

    dtype = torch.bfloat16 if kind == "float16" else torch.float32
    channels = 128 if kind == "wide float32" else 64
    qkv = torch.randn(3, batch, 6, 1 + tokens, channels, generator=generator).to(device, dtype)
    q, k, _ = qkv.unbind()
    normalizers = triton_kernels.compute_normalizers(q, k, scale=0.125)
    return partial(
        triton_kernels.accumulate_blocks,
        None,
        [(q, k, normalizers)] * 4,
        scale=0.125,
        num_prefix_tokens=1,
    )


def sizes_of(name: str) -> list[tuple[int, int]]:
    """Those of ``SIZES`` that take the tile of a name."""
    if "rows" not in name:
        return [*SIZES]
    return [(tokens, batch) for tokens, batch in SIZES if ("short" in name) == (tokens <= 1024)]


def time_tiles(name: str, device: str, repeats: int) -> Iterator[tuple[int, int, list[float]]]:
    """Yield patches, images and the median seconds of each tile."""

    def forced(tile: _launch.Tile, work: Callable[[], Any]) -> Any:
        with _launch.force_tile(name, tile):
            return work()

    for tokens, batch in sizes_of(name):
        work = work_of(name, tokens, batch, device)
        variants = {
            str(index): Variant(partial(forced, tile, work))
            for index, tile in enumerate(_launch.TILES[name])
        }
        timings = measure(variants, device=device, repeats=repeats, max_seconds=60)
        yield tokens, batch, [statistics.median(timing.wall) for timing in timings.values()]


def main(argv: list[str] | None = None) -> int:
    """Time all tiles and print the table; 2 where there is no GPU to time them on."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda", help="such as cuda:1")
    parser.add_argument("--repeats", type=int, default=20, help="runs of each tile")
    args = parser.parse_args(argv)
    if reasons := triton_not_supported_reasons():
        print(f"nothing to time: {'; '.join(reasons)}", file=sys.stderr)
        return 2
    fastest = {}
    for name, tiles in _launch.TILES.items():
        shares = [0.0] * len(tiles)
        for tokens, batch, seconds in time_tiles(name, args.device, args.repeats):
            best = min(seconds)
            shares = [share + value / best for share, value in zip(shares, seconds, strict=True)]
            times = "  ".join(f"{index}: {1000 * s:.3f}" for index, s in enumerate(seconds))
            print(f"{name}, N = {tokens}, batch {batch}, ms   {times}", flush=True)
        fastest[name] = shares.index(min(shares))
    print(f"{torch.cuda.get_device_name(args.device)}: SHIPPED needs")
    print(f"    {torch.cuda.get_device_capability(args.device)}: {fastest},")
    return 0


if __name__ == "__main__":
    sys.exit(main())
