"""Runs work of child.py, and watches how its results appear."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from measure import ROOT, Outcome, is_gpu

CHILD = Path(__file__).with_name("child.py")
INTERVAL = 0.05
"""Seconds between two looks at the results."""


@dataclass(frozen=True)
class Work:
    """A piece of work in a process of its own.

    Attributes:
        name: What it is, of ``WORKS`` in child.py.
        words: Its arguments.
        device: The device that it is given; for the CPU, GPUs are hidden from it.
        out: The folder of its own that everything it writes goes to, if anything.
        results: What grows by one with every image: a folder of PNGs or a file of lines in ``out``;
            ``None`` where nothing does.
    """

    name: str
    words: tuple[str, ...]
    device: str
    out: Path | None = None
    results: Path | None = None

    def run(self, trace: Path | None = None) -> Outcome:
        """Do the work; how fast its results appear is among the notes.

        Args:
            trace: A file for a trace of the work, which then takes longer.

        Raises:
            ValueError: The work failed.
        """
        if self.out is not None:
            shutil.rmtree(self.out, ignore_errors=True)
        hidden = {} if is_gpu(self.device) else {"CUDA_VISIBLE_DEVICES": ""}
        seen = [(0, 0.0)]  # how many results there were, after how many seconds
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            start = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, str(CHILD), str(trace or ""), self.name, *self.words],
                stdout=output,
                stderr=errors,
                env={**os.environ, **hidden, "PYTHONPATH": str(ROOT)},
            )
            has_ended = False
            while not has_ended:
                has_ended = process.poll() is not None
                if (count := self._count()) > seen[-1][0]:
                    seen.append((count, time.perf_counter() - start))
                time.sleep(0 if has_ended else INTERVAL)
            output.seek(0)
            errors.seek(0)
            if process.returncode:
                what = " ".join((self.name, *self.words[:1]))
                end = errors.read()[-2000:]
                raise ValueError(f"{what} ended with {process.returncode}: {end}")
            found = Outcome(**json.loads(output.read().splitlines()[-1]))
        return replace(found, notes={**_describe(seen[1:]), **found.notes})

    def _count(self) -> int:
        if self.results is None or not self.results.exists():
            return 0
        if self.results.is_file():
            return self.results.read_bytes().count(b"\n")
        return sum(path.suffix == ".png" for path in self.results.iterdir())


def _describe(seen: list[tuple[int, float]]) -> dict[str, float]:
    """When the first result was there, and how many came in a second from then on."""
    if not seen:
        return {}
    (first, start), (last, end) = seen[0], seen[-1]
    rate = {"images_per_s": (last - first) / (end - start)} if len(seen) > 1 else {}
    return {"first_image_s": start, **rate}
