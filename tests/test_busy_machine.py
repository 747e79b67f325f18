"""A machine whose processors are taken by others: commands slow down in proportion."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from adcam.cli import let_waiting_threads_sleep

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

    spin = "while True: pass"
    busy = [
        subprocess.Popen([sys.executable, "-c", spin]) for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        assert measure("sleep") > 1.5 * measure("spin")
    finally:
        for process in busy:
            process.kill()
            process.wait()
