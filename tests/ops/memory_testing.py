"""How much memory an operation takes, for tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch


def peak_bytes(run: Callable[[], object]) -> int:
    """Most memory of the CPU that ``run`` holds at a time, beyond what was there before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held)
