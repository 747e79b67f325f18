"""The most memory that a part of a program holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


@dataclass
class PeakMemory:
    """What was measured, once the block has ended.

    Attributes:
        host: The most bytes that this process held at once, without those of its worker processes;
            ``None`` where the system does not say (it is Linux that does).
        gpu: The most bytes that torch held on the GPU of this process; ``None`` without one.
    """

    host: int | None = None
    gpu: int | None = None


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the peak of the memory while a block runs.

    Example:
        with peak_memory() as peak:
            train()
        print(peak.host)
    """
    peak = PeakMemory()
    with suppress(OSError):  # not Linux, or not allowed: the peak is that of all so far
        (_PROCESS / "clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        yield peak
    finally:
        with suppress(OSError):
            status = (_PROCESS / "status").read_text()
            if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
                peak.host = 1024 * int(found[1])
        if torch.cuda.is_initialized():
            peak.gpu = torch.cuda.max_memory_allocated()
