"""What a run does when: a trace of every thread and the GPU, for https://ui.perfetto.dev.

The trace is in the format of Chrome's, as ``torch.profiler`` writes it. It grows by about a
megabyte for every ten images, so take some hundred images for it.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adcam.files import write_bytes


@dataclass
class Trace:
    """What a trace says once it has ended.

    Attributes:
        gpu_busy: The share of the time from the GPU's first work to its last in which it worked, in
            [0, 1]; ``None`` without a trace or without work of a GPU.
    """

    gpu_busy: float | None = None


@contextmanager
def record_trace(path: Path | None, log: Callable[[str], None] | None = None) -> Iterator[Trace]:
    """Record the block, and write the trace when it ends without an error.

    Args:
        path: The file to write, such as ``trace.json`` or, smaller, ``trace.json.gz``; ``None``
            records nothing.
        log: Called with a line that says how busy the GPU was, if there was one.

    Yields:
        The trace, which is filled when the block ends.

    Raises:
        OSError: The file cannot be written.
    """
    trace = Trace()
    if path is None:
        yield trace
        return
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, experimental_config=_all_threads()) as profiler:
        yield trace
    results: Any = profiler.profiler
    spans = [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in results.kineto_results.events()
        if event.device_type().name == "CUDA"
    ]
    if spans:
        busy = measure_union(spans)
        trace.gpu_busy = busy / (max(end for _, end in spans) - min(start for start, _ in spans))
        if log is not None:
            share = f"{trace.gpu_busy:.0%} of the time from its first work"
            log(f"GPU busy for {busy / 1e9:.2f} s, {share}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"trace{''.join(path.suffixes[-2:])}"
        profiler.export_chrome_trace(str(file))
        write_bytes(path, file.read_bytes())
    if log is not None:
        log(f"The trace {path} can be looked at with https://ui.perfetto.dev")


def measure_union(spans: Iterable[tuple[int, int]]) -> int:
    """Measure how long at least one of several spans of time lasts, each from start to end."""
    total, reached = 0, None
    for start, end in sorted(spans):
        if reached is None or start > reached:
            total, reached = total + end - start, end
        elif end > reached:
            total, reached = total + end - reached, end
    return total


def _all_threads() -> Any:
    """Ask for every thread, where this torch can; others show the GPU and the calling thread."""
    from torch._C._profiler import _ExperimentalConfig

    if "profile_all_threads" in (inspect.getdoc(_ExperimentalConfig.__init__) or ""):
        return _ExperimentalConfig(profile_all_threads=True)
    return None
