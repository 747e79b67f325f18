"""The memory limit of a container: a control group of Linux whose processes the system kills."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from storage_faults import read_tree

from adcam.limits import find_memory_groups

MIB = 1 << 20


@dataclass
class MemoryGroup:
    """A group whose processes may take so much memory together."""

    path: Path

    def _find(self, *names: str) -> Path:
        return next(path for name in names if (path := self.path / name).is_file())

    def allow(self, num_bytes: int) -> None:
        self._find("memory.max", "memory.limit_in_bytes").write_text(str(num_bytes))

    def count_kills(self) -> int:
        path = self._find("memory.events", "memory.oom_control")
        return int(dict(line.split() for line in path.read_text().splitlines())["oom_kill"])

    def read_peak(self) -> int:
        return int(self._find("memory.peak", "memory.max_usage_in_bytes").read_text())

    def run(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run ``adcam`` in the group."""
        command = shlex.join([sys.executable, "-m", "adcam", *words])
        enter = f"echo $$ > {shlex.quote(str(self.path / 'cgroup.procs'))} && exec {command}"
        return subprocess.run(
            ["sh", "-c", enter],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "OMP_NUM_THREADS": "1",
            },
        )


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A group inside the one of this process; the test is skipped where none can be made."""
    reason = "this process belongs to no control group that bounds memory"
    for parent in find_memory_groups():
        path = parent / f"adcam-test-{os.getpid()}"
        try:
            path.mkdir()
        except OSError as error:
            reason = f"no control group can be made here ({error.strerror})"
            continue
        try:
            if any((path / name).is_file() for name in ("memory.max", "memory.limit_in_bytes")):
                yield MemoryGroup(path)
                return
            reason = f"groups inside {parent} do not bound memory"
        finally:
            deadline = time.monotonic() + 10
            while path.is_dir() and time.monotonic() < deadline:
                with suppress(OSError):  # a process in it is still ending
                    path.rmdir()
                time.sleep(0.05)
    pytest.skip(reason)


def read_results(out: Path) -> dict[str, Any]:
    return {name: value for name, value in read_tree(out).items() if "lock" not in name}


@pytest.mark.slow
def test_a_container_with_little_memory_loses_nothing_and_goes_on_with_more(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Two large photographs among small ones, for one of which there is room at a time, or none."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(20):
        pixels = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
        size = (6500, 6500) if seed in (7, 8) else (48, 40)
        Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(
            photos / f"{seed:02d}.png"
        )

    def command(out: str) -> list[str]:
        return [
            *("generate", str(photos), "--checkpoint", str(tiny_checkpoint)),
            *("--out", str(tmp_path / out), "--labels", "predicted", "--label-threshold", "0"),
            *("--scales", "32", "--device", "cpu", "--workers", "2", "--report-images", "0"),
            "--save-maps",
        ]

    with memory_group() as group:
        group.allow(1 << 40)
        done = group.run(command("whole"))
        assert done.returncode == 0, done.stderr
        peak, expected = group.read_peak(), read_results(tmp_path / "whole")
        for out, lacking in (("less", 160 * MIB), ("little", 500 * MIB)):
            kills = group.count_kills()
            group.allow(peak - lacking)
            done = group.run(command(out))
            assert "Traceback" not in done.stderr, done.stderr
            assert group.count_kills() > kills, done.stderr
            assert "memory is short" in done.stderr and "going on with 1" in done.stderr, (
                f"{done} with {(peak - lacking) // MIB} MiB"
            )
            if out == "less":  # one worker less is enough
                assert done.returncode == 0, done.stderr
            else:
                assert done.returncode == 1 and "2 of 20 images have no mask" in done.stderr
                for img_id in ("07", "08"):
                    assert "memory" in done.stderr.partition(f"  {img_id}: ")[2].splitlines()[0]
                made = {p: p.stat().st_mtime_ns for p in (tmp_path / out).rglob("masks/*")}
                assert len(made) == 18
                group.allow(1 << 40)
                done = group.run(command(out))
                assert done.returncode == 0 and "18 of 20 images are done" in done.stderr
                assert all(path.stat().st_mtime_ns == when for path, when in made.items())
            assert read_results(tmp_path / out) == expected
