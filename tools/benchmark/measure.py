"""Timing of several variants of one computation, side by side, on a machine that may be noisy."""

from __future__ import annotations

import ctypes
import datetime
import gc
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from child import read_peak

ROOT = Path(__file__).resolve().parents[2]
_MIB = 2**20

NOTES = ("images_per_s", "first_image_s", "gpu_busy")
"""Columns that only some cases fill: images per second from the first image to the last, the
seconds to the first, and the share of the time in which the GPU worked."""


@dataclass(frozen=True)
class Check:
    """How the result of a variant is compared with the plain reference.

    Attributes:
        error: A function from the result to its distance from the reference.
        tolerance: The largest distance with which the variant is timed.
        is_after: Whether the function looks at the files that the timed runs have left, and not at
            the result of a run before them: for work that takes minutes.
    """

    error: Callable[[Any], float]
    tolerance: float
    is_after: bool = False


@dataclass(frozen=True)
class Variant:
    """One way to do the work of a case.

    Attributes:
        run: A function that does the work once. Its result is ignored unless it is a
            :class:`Outcome`.
        dtype: The data type that the work is computed in.
        score: A function that returns the quality of the last result in percent. It is called
            once, after the timing.
        check: What its first result is compared with, or ``None`` for a variant that computes
            something else, such as a bare product.
        notes: A function that returns what the last run says of itself, by the names in ``NOTES``,
            unless its result does. It is called once, after the timing.
        graph: Whether a GPU also runs it as a CUDA graph: without the time that launching takes.
    """

    run: Callable[[], Any]
    dtype: str = "float32"
    score: Callable[[], float] | None = None
    check: Check | None = None
    notes: Callable[[], Mapping[str, float]] | None = None
    graph: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a variant that works in processes of its own says of a run.

    Attributes:
        peak_mib: The memory of the largest of them.
        seconds: What counts as its time in place of the time until it ended.
        notes: What else it says, by the names in ``NOTES``.
    """

    peak_mib: float
    seconds: float | None = None
    notes: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Timing:
    """The measurements of a variant.

    Attributes:
        wall: The seconds that each run took: elapsed time or, on a GPU, the time between two CUDA
            events.
        cpu: The processor seconds of each run, in this process and in those it waited for. On a
            busy machine they say more than elapsed time.
        peak_mib: The largest amount of memory in MiB that a run used beyond what was in use before.
        notes: What the last run said of itself.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    notes: Mapping[str, float] = field(default_factory=dict)


AS_GRAPH = ", as a graph"


class Graph:
    """A CUDA graph of a function without arguments, captured when it is called first."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self._graph: Any = None
        self._result: Any = None

    def __call__(self) -> Any:
        """Replay the graph; the result lies where the last one did."""
        if self._graph is None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):  # what is compiled, and what is chosen at a first call
                    self._run()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self._run()
        self._graph.replay()
        return self._result


def is_gpu(device: str) -> bool:
    """Whether the device is one of CUDA's."""
    return torch.device(device).type == "cuda"


def add_graphs(variants: Mapping[str, Variant], device: str) -> dict[str, Variant]:
    """On a GPU, add the variants that also run as CUDA graphs; a row holds both times."""
    graphs = {
        name + AS_GRAPH: replace(variant, run=Graph(variant.run))
        for name, variant in variants.items()
        if variant.graph and is_gpu(device)
    }
    return {**variants, **graphs}


def find_errors(variants: Mapping[str, Variant], *, is_after: bool = False) -> dict[str, float]:
    """Return the errors by name of the variants that have a check.

    Args:
        variants: The variants by name.
        is_after: Whether they have been timed, and checks of what they have left are due. The
            others are due before, and run their variant once.

    Raises:
        ValueError: An error is above the tolerance of its check, or no number.
    """
    errors = {}
    for name, variant in variants.items():
        if variant.check is None or variant.check.is_after != is_after:
            continue
        errors[name] = variant.check.error(None if is_after else variant.run())
        if not errors[name] <= variant.check.tolerance:  # true for NaN as well
            raise ValueError(
                f"{name} is not what the reference computes: its error {errors[name]:.3g} is above "
                f"{variant.check.tolerance:.3g}"
            )
    return errors


def measure(
    variants: Mapping[str, Variant], *, device: str, repeats: int, max_seconds: float
) -> dict[str, Timing]:
    """Run the variants alternately, so that other load on the machine affects all of them.

    Each variant runs once without being measured, to compile code and fill caches. It then runs
    ``repeats`` times, or less often, but at least once, if ``max_seconds`` have passed. Each round
    begins with another variant.

    Args:
        variants: The variants by name.
        device: ``"cpu"`` or the name of a CUDA device.
        repeats: How often each variant is measured.
        max_seconds: The time limit for all variants together, without the unmeasured runs.
    """
    timings = {name: Timing() for name in variants}
    if repeats > 1:
        for variant in variants.values():
            variant.run()
    names = list(variants)
    gc.collect()
    start = time.perf_counter()
    for turn in range(repeats):
        if turn and time.perf_counter() - start > max_seconds:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            _run_once(variants[name], timings[name], device)
    return timings


def _run_once(variant: Variant, timing: Timing, device: str) -> None:
    cpu_before = _cpu_seconds()
    if not is_gpu(device):
        before = _reset_peak()
        start = time.perf_counter()
        result = variant.run()
        timing.wall.append(time.perf_counter() - start)
        peak_mib = read_peak() - before
    else:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        start_event = torch.cuda.Event(enable_timing=True)
        end_event = torch.cuda.Event(enable_timing=True)
        start_event.record()
        result = variant.run()
        end_event.record()
        torch.cuda.synchronize(device)
        timing.wall.append(start_event.elapsed_time(end_event) / 1000)
        peak_mib = (torch.cuda.max_memory_allocated(device) - before) / _MIB
    timing.cpu.append(_cpu_seconds() - cpu_before)
    if isinstance(result, Outcome):
        peak_mib, timing.notes = result.peak_mib, result.notes
        if result.seconds is not None:
            timing.wall[-1] = result.seconds
    timing.peak_mib = max(timing.peak_mib, peak_mib)


def _cpu_seconds() -> float:
    own, waited = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + waited.ru_utime + waited.ru_stime


def _reset_peak() -> float:
    """Reset the peak of this process' resident memory, and return what it uses now, in MiB.

    This works on Linux only (proc(5), ``/proc/pid/clear_refs``). Elsewhere the peak is that since
    the process started.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but is still held is not in use
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return read_peak()


def make_rows(
    case: str,
    size: int,
    batch: int,
    device: str,
    variants: Mapping[str, Variant],
    timings: Any,
    errors: Mapping[str, float],
) -> list[dict[str, Any]]:
    """One line of the CSV for each variant; the others are compared with the first.

    On a GPU it also has the milliseconds by call and, where a variant ran as one, as a CUDA graph.
    """
    first = next(iter(timings.values()))
    own, own_cpu = statistics.median(first.wall), statistics.median(first.cpu)
    about = describe_environment(device)
    rows = []
    for name, timing in timings.items():
        if name.endswith(AS_GRAPH):
            continue
        median = statistics.median(timing.wall)
        graph = timings.get(name + AS_GRAPH)
        low, high = np.percentile(timing.wall, [25, 75])
        score, take_notes = variants[name].score, variants[name].notes
        notes = {**timing.notes, **({} if take_notes is None else take_notes())}
        rows.append(
            {
                "case": case,
                "size": size,
                "batch": batch,
                "variant": name,
                "dtype": variants[name].dtype,
                "median_s": f"{median:.6g}",
                "iqr_s": f"{high - low:.3g}",
                "ms_call": f"{1000 * median:.4g}" if is_gpu(device) else "",
                "ms_graph": f"{1000 * statistics.median(graph.wall):.4g}" if graph else "",
                "cpu_median_s": f"{statistics.median(timing.cpu):.6g}",
                "times_ours": f"{median / own:.3f}",
                "times_ours_cpu": f"{statistics.median(timing.cpu) / max(own_cpu, 1e-9):.3f}",
                "peak_mib": f"{timing.peak_mib:.1f}",
                "error": f"{errors[name]:.3g}" if name in errors else "",
                "score": "" if score is None else f"{score():.2f}",
                **{key: f"{notes[key]:.4g}" if key in notes else "" for key in NOTES},
                "runs": len(timing.wall),
                **about,
            }
        )
    return rows


def describe_environment(device: str) -> dict[str, Any]:
    """Device, threads, versions, commit and date, without which a number means nothing."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
    )
    return {
        "device": device,
        "processor": _processor() if device == "cpu" else torch.cuda.get_device_name(device),
        "processors": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "timm": metadata.version("timm"),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
