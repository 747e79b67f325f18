"""The one place from which Triton kernels are launched, and the tiles they work in.

Nothing is tuned while a user waits. The best tiles of some GPUs are listed here; other GPUs take
the first tile of each list, which fits every GPU that the kernels run on.
``tools/benchmark/tune.py`` times all tiles on the GPU at hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's interpreter runs the kernels, on the CPU, for tests."""


@dataclass(frozen=True)
class Tile:
    """How a kernel divides its work.

    Attributes:
        sizes: Sides of its blocks, by the names of the kernel's arguments.
        num_warps: Warps of a program.
        num_stages: How many loads are under way at the same time.
    """

    sizes: Mapping[str, Any]
    num_warps: int
    num_stages: int


def _product(block: int, block_k: int, num_warps: int, num_stages: int) -> Tile:
    return Tile({"block": block, "block_k": block_k}, num_warps, num_stages)


def _scores(rows: int, columns: int, num_warps: int, num_stages: int) -> Tile:
    return Tile({"block_rows": rows, "block_columns": columns}, num_warps, num_stages)


def _rows(block_rows: int, group: int, per_thread: int) -> Tile:
    return Tile({"block_rows": block_rows, "group": group, "per_thread": per_thread}, 0, 1)


_ROW_TILES = (
    *(_rows(32, 4, 8), _rows(32, 2, 8), _rows(16, 4, 8), _rows(16, 2, 8)),
    *(_rows(32, 2, 16), _rows(64, 4, 8), _rows(32, 1, 16), _rows(16, 8, 4)),
)
"""Tiles of kernels whose programs hold whole rows. A program works through ``block_rows`` rows,
``group`` of them at a time. A thread has ``per_thread`` neighbouring numbers of each row of a
group, so that sums along the columns stay within the thread. The number of warps follows from the
length of a row (:func:`find_row_tile`) and is 0 here."""

TILES: dict[str, tuple[Tile, ...]] = {
    "common_neighbor, float16": (
        _product(64, 64, 4, 3),
        _product(128, 32, 8, 4),
        _product(128, 64, 8, 3),
        _product(128, 64, 8, 4),
        _product(128, 128, 8, 2),
    ),
    # Tiles of 128 want 8 warps, and in float32 they spill registers on sm_80.
    "common_neighbor, float32": (
        _product(64, 32, 8, 3),
        _product(64, 32, 4, 3),
        _product(128, 32, 8, 3),
    ),
    "token_attention, float16": (
        _scores(64, 64, 4, 2),
        _scores(64, 128, 4, 3),
        _scores(128, 64, 4, 3),
        _scores(128, 64, 8, 3),
        _scores(128, 128, 8, 2),
        _scores(128, 128, 8, 3),
    ),
    "token_attention, float32": (_scores(64, 32, 4, 2), _scores(64, 64, 4, 2)),
    "token_attention, wide float32": (_scores(32, 32, 4, 2), _scores(64, 32, 4, 2)),
    "prepare, short rows": _ROW_TILES,
    "prepare, long rows": _ROW_TILES,
    "walk, short rows": _ROW_TILES,
    "walk, long rows": _ROW_TILES,
    "two_hop_walk, short rows": _ROW_TILES,
    "two_hop_walk, long rows": (_ROW_TILES[4], *_ROW_TILES[:4], *_ROW_TILES[5:]),
}
"""All tiles of each kernel. The first is for GPUs that :data:`SHIPPED` does not name: it needs less
than 99 KiB of shared memory, which is what the smallest GPU from sm_86 on has."""

SHIPPED: dict[tuple[int, int], dict[str, int]] = {
    (8, 0): {
        "common_neighbor, float16": 1,
        "token_attention, float16": 3,
        "token_attention, wide float32": 1,
    },
    (9, 0): {
        "common_neighbor, float16": 3,
        "token_attention, float16": 1,
        "token_attention, wide float32": 1,
        "prepare, short rows": 2,
        "prepare, long rows": 4,
        "walk, short rows": 4,
        "walk, long rows": 4,
    },
}
"""The place of the best tile in its list, by compute capability (8.0: A100; 9.0: H100 and H200).
The tiles of 9.0 were timed on an H100. Those of 8.0 and of wide float32 were chosen by counting
operations and bytes (README.md of each operation)."""

_forced: dict[str, Tile] = {}


def find_tile(name: str, device: torch.device) -> Tile:
    """The tile of a kernel on a device.

    Args:
        name: A key of :data:`TILES`.
        device: Where the kernel will run.
    """
    if name in _forced:
        return _forced[name]
    if INTERPRETED:  # small tiles, so that the small inputs of tests have several
        return Tile({side: min(size, 16) for side, size in TILES[name][0].sizes.items()}, 4, 1)
    return TILES[name][SHIPPED.get(capability_of(device), {}).get(name, 0)]


def capability_of(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU, such as (9, 0); (0, 0) for another device.

    Args:
        device: Where a kernel will run.
    """
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@contextmanager
def force_tile(name: str, tile: Tile) -> Iterator[None]:
    """Use a tile in place of the shipped one.

    Args:
        name: A key of :data:`TILES`.
        tile: Any tile of its kind.
    """
    _forced[name] = tile
    try:
        yield
    finally:
        del _forced[name]


@dataclass(frozen=True)
class RowTile:
    """How a kernel that holds whole rows divides an (N, N) matrix.

    Attributes:
        block_rows: Rows of a program.
        group: Rows that it holds at a time.
        columns: The length of a row in the kernel: a power of 2 that is N or more.
        num_warps: Warps of a program.
    """

    block_rows: int
    group: int
    columns: int
    num_warps: int


def pad_row(tokens: int) -> int:
    """The length of a row in a kernel: a power of 2 that is N or more.

    All short rows get the same length, since kernels are compiled anew for each length.

    Args:
        tokens: N.
    """
    return max(16 if INTERPRETED else 512, 1 << (tokens - 1).bit_length())


def find_row_tile(kernel: str, tokens: int, device: torch.device) -> RowTile:
    """The tile of a kernel that holds whole rows.

    Args:
        kernel: ``"prepare"``, ``"walk"`` or ``"two_hop_walk"``.
        tokens: N.
        device: Where the kernel will run.
    """
    columns = pad_row(tokens)
    tile = find_tile(f"{kernel}, {'short' if columns <= 1024 else 'long'} rows", device)
    sizes = tile.sizes
    # Beyond 4,096 columns, fewer rows at a time keep their numbers in registers.
    group = max(1, min(sizes["group"], sizes["group"] * 4096 // columns))
    num_warps = min(16, max(1, columns // (32 * sizes["per_thread"])))
    return RowTile(sizes["block_rows"], group, columns, num_warps)


def launch(
    kernel: Any, grid: Sequence[int], *args: Any, is_exact: bool = False, **options: Any
) -> None:
    """Launch a kernel on the device of its first tensor.

    Args:
        kernel: What ``triton.jit`` made.
        grid: Its number of programs along each axis.
        *args: Its arguments in their order, tensors and numbers.
        is_exact: Whether each product is rounded before it is added, as in the reference, instead
            of being fused with the addition.
        **options: Further arguments by name, ``num_warps`` and ``num_stages``.
    """
    first = next(value for value in args if isinstance(value, torch.Tensor))
    with torch.cuda.device_of(first):  # Triton launches on the current device
        # Triton 3.9 warns where this option is left to its default.
        kernel[tuple(grid)](*args, enable_fp_fusion=not is_exact, **options)
