"""A machine whose processors are taken by others: commands slow down in proportion."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
def busy_processes(each: int = 2) -> Iterator[list[float]]:
    """So many for each processor; in the end, the processor seconds that each of them got."""
    got: list[float] = []
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(each * (os.cpu_count() or 1))]
    try:
        yield got
    finally:
        for process in processes:
            process.kill()
        got += map(wait, processes)


VARIABLES = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


def test_threads_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(**given: str) -> dict[str, str]:
        for name in (*VARIABLES, "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        let_waiting_threads_sleep()
        return {name: os.environ[name] for name in VARIABLES if name in os.environ}

    assert find() == VARIABLES
    assert find(GOMP_SPINCOUNT="7") == {**VARIABLES, "GOMP_SPINCOUNT": "7"}
    assert find(KMP_BLOCKTIME="200") == {**VARIABLES, "KMP_BLOCKTIME": "200"}
    assert find(OMP_WAIT_POLICY="active") == {}


def run_command(folder: Path, words: Sequence[str], **env: str) -> float:
    """Run adcam with all threads unless ``env`` says otherwise; its processor seconds."""
    own = (*VARIABLES, "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    command = [sys.executable, "-m", "adcam", *words]
    with subprocess.Popen(
        command, env={**kept, **env}, cwd=folder, stdout=subprocess.DEVNULL
    ) as process:
        seconds = wait(process)
    assert process.returncode == 0
    return seconds


@pytest.mark.timeout(600)
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one thread waits for no other")
@pytest.mark.parametrize("command", ["train", "generate"])
def test_beside_busy_processes_a_command_takes_no_more_of_the_processors(
    tmp_path: Path, tiny_checkpoint: Path, command: str
) -> None:
    """Than with one thread, which waits for no other; both beside one busy process a processor.

    By the threads' own default, a training takes 1.5 times as much, of which two thirds is start.
    """
    num_train, words = {
        "train": (64, ["train", "config.py", "--work-dir"]),
        "generate": (
            3,
            [
                *("generate", "JPEGImages", "--checkpoint", str(tiny_checkpoint)),
                *("--labels", "predicted", "--scales", "800", "--out"),
            ],
        ),
    }[command]
    make_shapes(tmp_path, num_train=num_train, num_val=1, size_hw=(96, 96), seed=0)
    config = CONFIG.format(root=str(tmp_path)).replace("epochs=2", "epochs=3")
    (tmp_path / "config.py").write_text(config)
    with busy_processes(each=1):
        work = run_command(tmp_path, [*words, "one"], OMP_NUM_THREADS="1")
        processor = run_command(tmp_path, [*words, "all"])
    print(f"{processor / work:.2f} of {work:.1f} s")
    assert processor < 1.3 * work


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
    words = ["train", "config.py", "--work-dir"]
    work = run_command(tmp_path, [*words, "alone"], OMP_NUM_THREADS="1")
    start = time.perf_counter()
    with busy_processes() as got:
        processor = run_command(tmp_path, [*words, "busy"])
        seconds = time.perf_counter() - start
    share = sum(got) / len(got) / (time.perf_counter() - start)
    explained = work / share
    print(f"{processor / work:.2f} of {work:.1f} s, {seconds / explained:.2f} of {explained:.0f} s")
    assert processor < 1.5 * work and seconds < 1.5 * explained
