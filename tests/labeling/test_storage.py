"""Storage that fails in the middle of a run, clocks that step, links that somebody planted."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from storage_faults import ERRORS, read_tree, watch_creations

from adcam.cli import main
from adcam.labeling.status import read_status


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{seed}.png")
    return root


def command(photos: Path, checkpoint: Path, out: Path, *options: str) -> list[str]:
    return [
        *("generate", str(photos), "--checkpoint", str(checkpoint), "--out", str(out)),
        *("--labels", "predicted", "--label-threshold", "0", "--scales", "32", "--device", "cpu"),
        *("--save-maps", "--workers", "0", *options),
    ]


@pytest.mark.parametrize(
    "options", [(), ("--shard", "0/2"), ("--output-format", "tar", "--images-per-file", "2")]
)
def test_wherever_nothing_more_can_be_created_the_run_says_so_and_goes_on_later(
    photos: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
) -> None:
    """No inodes left, no quota, a disk that became read-only or broke: at every single place."""
    if "tar" in options:
        pytest.importorskip("pyarrow")
    whole = tmp_path / "whole"
    places: list[str] = []
    with watch_creations(whole, lambda _, path: places.append(os.path.relpath(path, whole))):
        assert main(command(photos, tiny_checkpoint, whole, *options)) == 0
    expected = read_tree(whole)
    capsys.readouterr()
    assert len(places) > 7
    for number, place in enumerate(places):
        # The first and the last of a kind in a folder are enough.
        like = [i for i, other in enumerate(places) if Path(other).parent == Path(place).parent]
        if number not in (like[0], like[-1]) and Path(place).parts[0] == "report":
            continue
        out = tmp_path / f"out-{number}"
        met = itertools.count()
        code = ERRORS[number % len(ERRORS)]

        def refuse(
            _: str, path: str, first: int = number, met: Any = met, code: int = code
        ) -> None:
            if next(met) >= first:
                raise OSError(code, os.strerror(code), path)

        words = command(photos, tiny_checkpoint, out, *options)
        with watch_creations(out, refuse):
            assert main(words) == 2, place
        said = capsys.readouterr().err
        assert "Traceback" not in said and os.strerror(code) in said and f"out-{number}" in said, (
            place,
            said,
        )
        assert list(out.rglob(".adcam-*")) == [], place
        assert main(words) == 0, place
        assert read_tree(out) == expected, place
        assert (out / "report/report.html").is_file() == (whole / "report/report.html").is_file()
        capsys.readouterr()


def snapshot(folder: Path) -> dict[str, Any]:
    """Every file below a folder, and whether it is still the same one."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize(
    "options",
    [
        *((), ("--overwrite",), ("--shard", "0/2")),
        *(("--output-format", "tar"), ("--output-format", "parquet", "--overwrite")),
    ],
)
def test_no_planted_link_is_written_through(
    photos: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
) -> None:
    """Every file and every folder of a run is once a link to another place."""
    if "--output-format" in options:
        pytest.importorskip("pyarrow")
    whole = tmp_path / "whole"
    assert main(command(photos, tiny_checkpoint, whole, *options)) == 0
    # One of a kind in each folder is enough.
    kinds = {(path.parent, path.suffix): path for path in sorted(whole.rglob("*"))}
    kinds |= {path: path for path in whole.rglob("*") if path.is_dir() or path.parent == whole}
    names = [path.relative_to(whole) for path in kinds.values()]
    names += [Path(".adcam-lock"), Path("shards/00000-of-00002.lock")]
    capsys.readouterr()
    for number, name in enumerate(names):
        outside, out = tmp_path / f"outside-{number}", tmp_path / f"out-{number}"
        shutil.copytree(whole, out)
        outside.mkdir()
        path = out / name
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            path.rename(outside / "it")
        else:
            (outside / "it").write_bytes(b"precious")
        path.symlink_to(outside / "it")
        before = snapshot(outside)
        code = main(command(photos, tiny_checkpoint, out, *options))
        said = capsys.readouterr().err
        assert "Traceback" not in said, name
        assert snapshot(outside) == before, name
        if code != 0:
            assert code == 2 and str(path) in said, (name, said)


def test_a_folder_that_is_removed_while_a_run_works_in_it(
    photos: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = command(photos, tiny_checkpoint, out)
    met: list[str] = []

    def remove(kind: str, path: str) -> None:
        met.append(path)
        if sum(".tmp" in name and "/masks/" in name for name in met) == 2 and out.exists():
            shutil.rmtree(out)

    with watch_creations(out, remove):
        assert main(words) == 2
    assert str(out) in capsys.readouterr().err
    assert not (out / "config.json").exists() and not (out / "manifest.jsonl").exists()
    shutil.rmtree(out, ignore_errors=True)
    assert main(words) == main(command(photos, tiny_checkpoint, whole)) == 0
    assert read_tree(out) == read_tree(whole)


@pytest.mark.parametrize("options", [(), ("--output-format", "tar", "--images-per-file", "1")])
def test_a_clock_that_steps_backwards_changes_nothing(
    photos: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
) -> None:
    """Every look at the clock tells an hour less, and every file is as old as that."""
    if options:
        pytest.importorskip("pyarrow")
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert main(command(photos, tiny_checkpoint, whole, *options)) == 0
    now = itertools.count(1_700_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    rates = []

    def step(kind: str, path: str) -> None:
        for file in out.rglob("*"):
            os.utime(file, (stamp := next(now), stamp))
        if (out / "config.json").exists() and (out / ".adcam-lock").exists():
            rates.append(read_status(out).rate)

    log, metrics = tmp_path / "log.jsonl", tmp_path / "metrics.prom"
    words = command(photos, tiny_checkpoint, out, *options, "--log-json", str(log))
    with watch_creations(out, step):
        assert main([*words, "--metrics-file", str(metrics)]) == 0
    assert rates and all(rate is None or rate > 0 for rate in rates)
    assert read_tree(out) == read_tree(whole)
    for manifest in out.glob("manifest.jsonl"):
        lines = [json.loads(line) for line in manifest.read_bytes().splitlines()]
        assert all(0 <= line["seconds"] < 60 for line in lines)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", *["image"] * 3, "end"]
    assert all(seconds >= 0 for event in events for seconds in event.get("seconds", {}).values())
    assert main(["verify", str(out)]) == main(["status", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 images done" in printed and "images/s" not in printed


_IN_A_SMALL_FILE_SYSTEM = """
import ctypes, os, shutil, sys
libc = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000
if os.geteuid() != 0:
    if libc.unshare(NEW_MOUNTS | NEW_USER):
        sys.exit(f"SKIP: no mount name space of my own ({os.strerror(ctypes.get_errno())})")
elif libc.unshare(NEW_MOUNTS):
    sys.exit(f"SKIP: no mount name space of my own ({os.strerror(ctypes.get_errno())})")
place = os.fsencode(PLACE)
PRIVATE, RECURSIVE, READ_ONLY, REMOUNT = 1 << 18, 1 << 14, 1, 32
libc.mount(b"none", b"/", None, PRIVATE | RECURSIVE, None)
if libc.mount(b"tmpfs", place, b"tmpfs", 0, OPTIONS.encode()):
    sys.exit(f"SKIP: tmpfs cannot be mounted ({os.strerror(ctypes.get_errno())})")
from adcam.cli import main
try:
    code = main(WORDS)
    print("first:", code, flush=True)
    left = sorted(str(p) for p in __import__("pathlib").Path(PLACE).rglob(".adcam-*"))
    print("left:", left, flush=True)
    libc.mount(b"tmpfs", place, b"tmpfs", REMOUNT, b"size=64m,nr_inodes=10000")
    if READ_ONLY_FIRST:
        libc.mount(b"tmpfs", place, b"tmpfs", REMOUNT | READ_ONLY, b"")
        print("read-only:", main(WORDS), flush=True)
        libc.mount(b"tmpfs", place, b"tmpfs", REMOUNT, b"")
    print("again:", main(WORDS), "verify:", main(["verify", PLACE + "/out"]), flush=True)
    shutil.copytree(PLACE + "/out", COPY)
finally:
    libc.umount2(place, 2)
"""


@pytest.mark.parametrize(
    ("limit", "workers"),
    [
        ("nr_inodes=24,size=64m", "0"),
        pytest.param("nr_inodes=24,size=64m", "2", marks=pytest.mark.slow),
        pytest.param("size=100k", "0", marks=pytest.mark.slow),
    ],
)
def test_a_small_file_system_that_is_full_and_then_larger(
    tiny_checkpoint: Path, tmp_path: Path, limit: str, workers: str
) -> None:
    photos, place = tmp_path / "photos", tmp_path / "place"
    photos.mkdir()
    place.mkdir()
    for seed in range(20):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{seed:02d}.png")
    options = ("--workers", workers, "--report-images", "0")
    words = command(photos, tiny_checkpoint, place / "out", *options)
    values = {
        **{"PLACE": str(place), "OPTIONS": limit, "WORDS": words, "COPY": str(tmp_path / "copy")},
        "READ_ONLY_FIRST": workers == "0",
    }
    script = tmp_path / "script.py"
    lines = "".join(f"{key} = {value!r}\n" for key, value in values.items())
    guarded = _IN_A_SMALL_FILE_SYSTEM.replace("\n", "\n    ")
    script.write_text(f"{lines}if __name__ == '__main__':\n    {guarded}\n")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    if "SKIP: " in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert "first: 2" in done.stdout and "left: []" in done.stdout, done.stdout + done.stderr
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
    if workers == "0":
        assert "read-only: 2" in done.stdout and "Read-only file system" in done.stderr
    assert "again: 0 verify: 0" in done.stdout, done.stdout + done.stderr
    whole = tmp_path / "whole" / "out"
    assert main(command(photos, tiny_checkpoint, whole, *options)) == 0
    copy, expected = read_tree(tmp_path / "copy"), read_tree(whole)
    assert copy == expected
