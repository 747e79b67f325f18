"""Kills at random moments: nothing is lost, nothing doubled, and the bytes are the same.

The short form runs with all tests; the long one, marked slow, is 20 kills in a run of 300 images:
``python tests/labeling/test_chaos.py FOLDER [SEED]`` runs it alone and prints what it did.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcam.cli import main
from adcam.labeling.verify import verify_folder

NUM_IMAGES = 20
DEADLINE_S = 300


def make_photos(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / f"{number % 3}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8))
        coarse.resize((96 + number % 5, 80), Image.Resampling.BICUBIC).save(path)
    (folder / "0" / "bad.jpg").write_bytes(b"no picture")


def command(photos: Path, checkpoint: Path, out: Path, *options: str) -> list[str]:
    return [
        *("generate", str(photos), "--checkpoint", str(checkpoint), "--out", str(out)),
        *("--labels", "predicted", "--label-threshold", "0", "--scales", "64", "--device", "cpu"),
        *("--crf", "--save-maps", "--workers", "2", *options),
    ]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a run as the leader of a group of processes, as a shell or a batch system does."""
    return subprocess.Popen(
        [sys.executable, "-m", "adcam", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )


def workers_of(pid: int) -> list[int]:
    """The worker processes of a run, which its server has forked, or which it started itself."""
    parents, words = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        number = int(folder.name)
        try:
            parents[number] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words[number] = (folder / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue

    def find(parent: int, word: bytes) -> list[int]:
        return [n for n, said in words.items() if parents[n] == parent and word in said]

    forked = [n for server in find(pid, b"forkserver") for n in find(server, b"")]
    return forked + find(pid, b"spawn_main")


def count_lines(out: Path) -> int:
    manifest = out / "manifest.jsonl"
    return manifest.read_bytes().count(b"\n") if manifest.is_file() else 0


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> bool:
    """Whether the condition came true before the process ended."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


def read_run(out: Path) -> dict[str, object]:
    """Everything in an output folder; of the manifest all but the seconds."""
    tree: dict[str, object] = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.relative_to(out).parts[0] != "report"
    }
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_bytes().splitlines()]
    tree["manifest.jsonl"] = [
        [pair for pair in line.items() if pair[0] != "seconds"] for line in lines
    ]
    return tree


def assert_same(out: Path, whole: Path, num_images: int) -> None:
    """Nothing lost, nothing doubled, no orphan, and every byte as in the uninterrupted run."""
    found = verify_folder(out)
    assert (found.ok, found.failed, found.is_sound) == (num_images, 1, True), found
    resumed, expected = read_run(out), read_run(whole)
    assert resumed.keys() == expected.keys()
    assert [name for name in expected if resumed[name] != expected[name]] == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find workers")
def test_terminated_killed_and_with_a_dead_worker_the_bytes_are_the_same(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    make_photos(tmp_path / "photos", NUM_IMAGES)
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = command(tmp_path / "photos", tiny_checkpoint, out, "--workers", "1")
    assert main([*command(tmp_path / "photos", tiny_checkpoint, whole), "--workers", "0"]) == 1

    process = start(arguments)  # SIGTERM to all of its processes, as batch systems send it
    assert wait_until(lambda: count_lines(out) >= 2, process)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 143
    assert time.monotonic() - began < 4  # two seconds, and what a busy machine adds
    assert process.stderr is not None and "adcam generate: terminated" in process.stderr.read()
    process.stderr.close()
    assert b"killed by" not in (out / "manifest.jsonl").read_bytes()

    process = start(arguments)
    assert wait_until(lambda: count_lines(out) >= 6, process)
    orphans = workers_of(process.pid)
    assert orphans
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in orphans):
        time.sleep(0.02)
    assert not any(b"multiprocessing" in _words(pid) for pid in orphans), (
        "workers outlive their run"
    )

    process = start(arguments)
    assert wait_until(lambda: count_lines(out) >= 10 and workers_of(process.pid), process)
    os.killpg(process.pid, signal.SIGSTOP)  # or a quick machine might be done by then
    assert main(arguments) == 2  # a second run at the same time is refused
    os.killpg(process.pid, signal.SIGCONT)
    for pid in workers_of(process.pid)[:1]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == 1  # the bad image
    assert_same(out, whole, NUM_IMAGES)


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill_at_random(process: subprocess.Popen[str], out: Path, rng: random.Random) -> str:
    """Kill the group, the parent or a worker, while it starts or after some images."""
    whom = rng.choice(("group", "parent", "worker"))
    if whom != "worker" and rng.random() < 0.2:
        time.sleep(rng.uniform(0, 10))
    else:
        goal = count_lines(out) + rng.randint(1, 12)
        wait_until(lambda: count_lines(out) >= goal and workers_of(process.pid), process)
        time.sleep(rng.uniform(0, 0.2))
    if process.poll() is not None:
        return "none: it had ended"
    if whom == "worker":
        for pid in workers_of(process.pid)[:1]:
            os.kill(pid, signal.SIGKILL)
    elif whom == "parent":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    return whom


def run_long(folder: Path, checkpoint: Path, *, seed: int, num_images: int, kills: int) -> None:
    """The long form: kills until they are spent, then the run in peace, then two at once."""
    rng = random.Random(seed)
    make_photos(folder / "photos", num_images)
    out, whole = folder / "out", folder / "whole"
    arguments = command(folder / "photos", checkpoint, out)
    assert main(command(folder / "photos", checkpoint, whole)) == 1
    process = None
    for number in range(kills):
        process = process or start(arguments)
        killed = kill_at_random(process, out, rng)
        print(f"kill {number + 1}: {killed}, {count_lines(out)} lines", flush=True)
        if killed != "worker":
            process.communicate()
            process = None
    if process is not None:
        process.communicate()
    both = [start(arguments) for _ in range(2)]
    said = [run.communicate()[1] for run in both]
    codes = sorted(run.returncode for run in both)
    print("two at once:", codes, [text.strip().splitlines()[-1][:120] for text in said], flush=True)
    assert codes in ([1, 2], [1, 1]) and "Traceback" not in "".join(said)
    assert_same(out, whole, num_images)
    print(f"{num_images} images bit-equal after {kills} kills", flush=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random_moments(tmp_path: Path, tiny_checkpoint: Path) -> None:
    run_long(tmp_path, tiny_checkpoint, seed=0, num_images=300, kills=20)


if __name__ == "__main__":
    import torch

    from adcam.data.sources import build_classes
    from adcam.models.classifier_file import save_classifier
    from adcam.models.token_cam import TokenCAM

    torch.manual_seed(0)
    small = {"embed_dim": 24, "depth": 3, "num_heads": 2}
    network = {"backbone": "vit_tiny_patch16_224", "img_size": 32, "backbone_kwargs": small}
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    classes = build_classes(["cat", "dog", "horse"])
    made = TokenCAM(num_fg_classes=3, **network)
    save_classifier(target / "classifier.safetensors", made, network, classes, {})
    given = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    run_long(target, target / "classifier.safetensors", seed=given, num_images=300, kills=20)
