"""A machine whose processors are taken by others: commands slow down in proportion."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adcam.cli import let_waiting_threads_sleep
from adcam.data.shapes import make_shapes

CONFIG = """
data = dict(
    source="voc", root={root!r}, classes="shapes", labels="labels.csv", train="train", val="val"
)
model = dict(
    backbone="vit_tiny_patch16_224",
    img_size=96,
    weights=None,
    backbone_kwargs=dict(patch_size=8, embed_dim=96, depth=6, num_heads=3),
)
train = dict(epochs=2, img_size=96, batch_size=16, num_workers=0, amp="none", seed=0)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
"""

STEPS = """
import sys, time
if sys.argv[1] == "sleep":
    from adcam.cli import let_waiting_threads_sleep
    let_waiting_threads_sleep()
import torch
torch.set_num_threads(2)
torch.manual_seed(0)
net = torch.nn.Sequential(*[torch.nn.Linear(192, 192) for _ in range(24)])
x = torch.randn(512, 192)
start, steps = time.perf_counter(), 0
while time.perf_counter() - start < 5:
    net(x).square().mean().backward()
    steps += 1
print(steps / (time.perf_counter() - start))
"""


def wait(process: subprocess.Popen[bytes]) -> float:
    """Wait until a process ends; return the processor seconds that it and its children took."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def busy_processes() -> Iterator[list[float]]:
    """Two for each processor; in the end, the processor seconds that each of them got."""
    got: list[float] = []
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield got
    finally:
        for process in processes:
            process.kill()
        got += map(wait, processes)


def test_threads_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    let_waiting_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    let_waiting_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    let_waiting_threads_sleep()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.slow
def test_beside_busy_processes_threads_that_sleep_get_more_done() -> None:
    """Two busy processes for each processor; measured here 5 to 25 times as much."""
    own = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    env = {name: value for name, value in os.environ.items() if name not in own}

    def measure(how: str) -> float:
        command = [sys.executable, "-c", STEPS, how]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return float(done.stdout)

    with busy_processes():
        assert measure("sleep") > 1.5 * measure("spin")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one thread waits for no other")
def test_beside_busy_processes_a_training_slows_down_in_proportion(tmp_path: Path) -> None:
    """It takes no more of the processors than alone, and no longer than its share of them explains.

    What the work takes is measured with one thread, which waits for no other. The share is what the
    busy processes got, so that the machine may have other work. OMP_WAIT_POLICY=active fails both.
    """
    make_shapes(tmp_path, num_train=128, num_val=16, size_hw=(96, 96), seed=0)
    (tmp_path / "config.py").write_text(CONFIG.format(root=str(tmp_path)))
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}

    def train(name: str, **threads: str) -> tuple[float, float]:
        command = [sys.executable, "-m", "adcam", "train", "config.py", "--work-dir", name]
        start = time.perf_counter()
        with subprocess.Popen(
            command, env={**env, **threads}, cwd=tmp_path, stdout=subprocess.DEVNULL
        ) as process:
            processor = wait(process)
        assert process.returncode == 0
        return time.perf_counter() - start, processor

    _, work = train("alone", OMP_NUM_THREADS="1")
    start = time.perf_counter()
    with busy_processes() as got:
        seconds, processor = train("busy")
    share = sum(got) / len(got) / (time.perf_counter() - start)
    explained = work / share
    print(f"{processor / work:.2f} of {work:.1f} s, {seconds / explained:.2f} of {explained:.0f} s")
    assert processor < 1.5 * work and seconds < 1.5 * explained
