"""Stages joined by bounded queues, and processes that die at their work."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from adcam.labeling import executor
from adcam.labeling.executor import (
    WorkerCrash,
    WorkerPool,
    num_processors,
    one_thread,
    run_ahead,
    submit_inline,
)


def work(item: int) -> tuple[int, int, int]:
    """What the tests' workers do; at module level, so that it pickles."""
    if item == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == -2:
        raise OSError("the disk is full")
    if item == -3:
        raise KeyError("a mistake in the code")
    if item == -4:
        signal.raise_signal(signal.SIGINT)
    return item * item, os.getpid(), torch.get_num_threads()


def test_results_come_in_order_whatever_takes_longer() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 * (5 - item))
        return item

    with ThreadPoolExecutor(5) as pool:
        results = run_ahead(lambda item: pool.submit(slow_first, item), range(5), max_ahead=5)
        assert list(results) == list(range(5))


def test_items_are_pulled_only_while_there_is_room() -> None:
    pulled: list[int] = []
    gate = threading.Event()

    def items() -> Iterator[int]:
        for item in range(20):
            pulled.append(item)
            yield item

    def wait(item: int) -> int:
        gate.wait(10)
        return item

    with ThreadPoolExecutor(4) as pool:
        results = run_ahead(lambda item: pool.submit(wait, item), items(), max_ahead=3)
        threading.Timer(0.1, gate.set).start()
        assert next(results) == 0
        assert pulled == [0, 1, 2]
        assert list(results) == list(range(1, 20))


def test_an_error_is_raised_when_it_is_its_turn() -> None:
    def submit(item: int) -> Future[int]:
        future: Future[int] = Future()
        if item == 2:
            future.set_exception(ValueError("two"))
        else:
            future.set_result(item)
        return future

    results = run_ahead(submit, range(4), max_ahead=4)
    assert (next(results), next(results)) == (0, 1)
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_inline_work_is_done_before_the_next_item_is_pulled() -> None:
    seen: list[str] = []

    def items() -> Iterator[int]:
        for item in range(3):
            seen.append(f"pull {item}")
            yield item

    results = run_ahead(submit_inline(lambda item: seen.append(f"do {item}")), items(), max_ahead=1)
    assert list(results) == [None] * 3
    assert seen == ["pull 0", "do 0", "pull 1", "do 1", "pull 2", "do 2"]


def test_a_killed_worker_costs_its_item_and_no_other() -> None:
    messages = []

    def once_more(
        item: int, crash: WorkerCrash, retry: Callable[[int], tuple[int, int, int]]
    ) -> tuple[int, int, int]:
        messages.append(str(crash))
        return retry(7)

    with WorkerPool(work, 2, on_crash=once_more) as pool:
        futures = [pool.submit(item) for item in (1, -1, 2, 3, 4)]
        results = [future.result() for future in futures]
        assert pool.has_lost_workers
    assert [value for value, _, _ in results] == [1, 49, 4, 9, 16]
    assert len(messages) == 1
    assert messages[0].startswith("it cost two worker processes, killed by SIGKILL")
    assert {threads for _, _, threads in results} == {1}
    pids = {pid for _, pid, _ in results}
    assert 2 <= len(pids) <= 3 and os.getpid() not in pids
    for pid in pids:  # all are gone with the pool
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_where_memory_is_short_one_process_fewer_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The item pays for no other's memory: it fails when it has been alone, twice."""
    kills = itertools.count()
    monkeypatch.setattr(executor, "count_memory_kills", lambda: next(kills))
    crashes: list[WorkerCrash] = []

    def note(item: int, crash: WorkerCrash, retry: object) -> tuple[int, int, int]:
        crashes.append(crash)
        return -1, 0, 0

    with WorkerPool(work, 2, on_crash=note) as pool:
        assert pool.submit(-1).result() == (-1, 0, 0)
        results = [future.result() for future in [pool.submit(item) for item in range(6)]]
    assert [value for value, _, _ in results] == [0, 1, 4, 9, 16, 25]
    assert len({pid for _, pid, _ in results}) == 1
    assert len(crashes) == 1 and "for lack of memory: try fewer" in str(crashes[0])
    (record,) = caplog.records
    assert record.message.endswith("killed a worker process; going on with 1")


def test_errors_come_back_and_interrupts_do_not_reach_a_worker() -> None:
    def never(item: int, crash: WorkerCrash, retry: object) -> tuple[int, int, int]:
        raise crash

    with WorkerPool(work, 1, on_crash=never) as pool:
        pid = pool.submit(2).result()[1]
        with pytest.raises(OSError, match="the disk is full"):
            pool.submit(-2).result()
        assert pool.submit(-4).result()[:2] == (16, pid) and not pool.has_lost_workers
        with pytest.raises(RuntimeError, match="ended with exit code 1; what it printed says why"):
            pool.submit(-3).result()


def test_one_thread_for_a_while() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert 1 <= num_processors() <= (os.cpu_count() or 1)


def test_threads_that_overlap_all_compute_as_before_afterwards() -> None:
    before, found = torch.get_num_threads(), []
    inside = threading.Barrier(2)

    def compute(is_first: bool) -> None:
        if not is_first:
            inside.wait(60)
        with one_thread(), one_thread():
            if is_first:
                inside.wait(60)
            inside.wait(60)
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())

    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(compute, is_first) for is_first in (True, False)]:
                done.result(60)
            assert sorted(found) == [1, 1, 2, 2]
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(torch.get_num_threads).result(60) == 2
    finally:
        torch.set_num_threads(before)


def grow(number: int) -> tuple[int, np.ndarray, bytes]:
    return os.getpid(), np.full(1 << (10 + number % 8), number, dtype=np.float32), b"x" * 100_000


def test_until_processes_are_up_their_threads_do_the_work() -> None:
    with WorkerPool(grow, 2, on_crash=lambda *crash: crash, meanwhile=grow) as pool:  # type: ignore[arg-type,return-value]
        first = pool.submit(0).result()
        assert first[0] == os.getpid()
        deadline, own = time.monotonic() + 60, True
        while own and time.monotonic() < deadline:
            results = list(run_ahead(pool.submit, range(16), max_ahead=4))
            own = any(pid == os.getpid() for pid, _, _ in results)
            for number, (_, array, text) in enumerate(results):
                assert len(array) == 1 << (10 + number % 8) and (array == number).all()
                array[0] = 1  # as an array of one's own
                assert text == b"x" * 100_000
            time.sleep(0.1)
        assert not own


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks workers from a server")
@pytest.mark.parametrize("dies", [False, True])
def test_workers_have_what_was_loaded_ahead_and_todays_environment(
    dies: bool, tmp_path: Path
) -> None:
    end = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)" if dies else ""
    (tmp_path / "large.py").write_text(end)
    script = tmp_path / "script.py"
    script.write_text("""\
import os, sys
from adcam.labeling.executor import WorkerPool, load_ahead

def look(names):
    return "large" in sys.modules, *(os.environ.get(name) for name in names)

if __name__ == "__main__":
    os.environ.update(EARLIER="1")
    load_ahead(["large"])
    os.environ.pop("EARLIER")
    os.environ.update(LATER="2")
    with WorkerPool(look, 2, on_crash=print, modules=["large"]) as pool:
        print([pool.submit(["LATER", "EARLIER"]).result() for _ in range(3)])
""")
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # Where the server is killed, workers start without it.
    assert run.stdout.strip() == str([(not dies, "2", None)] * 3), run.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks workers from a server")
def test_workers_and_their_server_end_with_a_killed_caller(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("""\
import multiprocessing.forkserver, os, time
from adcam.labeling.executor import WorkerPool

def sleep(seconds):
    time.sleep(seconds)
    return os.getpid()

if __name__ == "__main__":
    with WorkerPool(sleep, 1, on_crash=print) as pool:
        worker = pool.submit(0).result()
        pool.submit(600)
        print(worker, multiprocessing.forkserver._forkserver._forkserver_pid, flush=True)
        time.sleep(600)
""")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        left = [Path("/proc") / pid for pid in caller.stdout.readline().split()]
        assert len(left) == 2 and all(path.is_dir() for path in left)
        caller.kill()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(map(is_running, left)):
        time.sleep(0.05)
    assert not [path for path in left if is_running(path)]


def is_running(process: Path) -> bool:
    """Tell whether a process runs; one that has ended may wait to be looked at by its parent."""
    try:
        return ") Z " not in (process / "stat").read_text()
    except OSError:
        return False
