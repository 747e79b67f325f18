"""Work in steps: results in order, a bounded number of items under way, processes that may die.

Importing this loads no torch, so that a command can start processes first and load it meanwhile.

:func:`run_ahead` joins two steps with a bounded queue: it pulls items from the step before and
hands them to threads or to a :class:`WorkerPool`, so that both run at once and memory does not
grow. Nothing here knows what an image is.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import LifoQueue
from types import ModuleType
from typing import Any, Generic, TypeVar

import numpy as np

from adcam.limits import find_memory_groups, offer_to_be_killed

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows
    resource = None

_logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# Forking this process after torch ran can deadlock. A server that has only loaded modules can be
# forked; macOS has such servers too, but its libraries refuse to be forked.
_FORKS = sys.platform == "linux"

_TRIES = 2
_LARGE = 1 << 16  # bytes of an array that is sent by itself
_FIRST_TO_KILL = 1000
_SENT_BACK = (OSError, ValueError, RuntimeError, MemoryError)


class WorkerCrash(Exception):  # noqa: N818  # what happened, not a caller's error
    """The process that had an item was killed: by a fault in compiled code, or for its memory.

    Args:
        message: What ended it, and what to do about it.
        is_memory: Whether the system says that memory was short.
    """

    def __init__(self, message: str, *, is_memory: bool = False) -> None:
        super().__init__(message)
        self.is_memory = is_memory


def run_ahead(
    submit: Callable[[T], Future[R]], items: Iterable[T], *, max_ahead: int
) -> Iterator[R]:
    """Yield results in the order of the items.

    Args:
        submit: The function that starts the work on an item.
        items: The items, which are pulled while fewer than ``max_ahead`` of them are under way.
        max_ahead: The bound on the items under way. A larger one evens out items that take longer
            than others, and costs memory.

    Raises:
        Exception: What the work on an item raised, when it is that item's turn.
    """
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(submit(item))
        while waiting and (len(waiting) >= max_ahead or waiting[0].done()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def submit_inline(function: Callable[[T], R]) -> Callable[[T], Future[R]]:
    """Return a ``submit`` that does the work at once, in the caller."""

    def submit(item: T) -> Future[R]:
        future: Future[R] = Future()
        future.set_result(function(item))
        return future

    return submit


class WorkerPool(Generic[T, R]):
    """Processes that call one function, each with one thread of computation.

    Unlike ``concurrent.futures.ProcessPoolExecutor``, a process that dies costs the item it had
    and no other: a thread waits for the answer to each item, so it is known which. If the system
    kills a process because memory is short, the pool continues with one process fewer, but never
    with none. Such a kill is no try of its item, since others may have taken the memory.

    A script that uses workers needs ``if __name__ == "__main__":`` (:mod:`multiprocessing`). On
    Linux they are forked from a server that has loaded what :func:`load_ahead` names, once for all
    of them; elsewhere each is a new process. They ignore Ctrl-C and SIGTERM, which the caller
    handles, and end with their caller whatever ends it, in the middle of an item if need be.

    Args:
        function: The function to call with an item; both must pickle. It is sent to each worker
            once.
        num_workers: The number of processes; each starts with its first item.
        on_crash: The function that returns the result of an item that has cost two processes, one
            after the other: the second try tells an item that kills from a process that was killed
            for other reasons. It is called in a thread of this process, with the item, the crash,
            and a function that gives an item to a new process.
        max_bytes: The memory that a worker may ask for; more is a ``MemoryError`` there. ``None``
            for as much as there is.
        meanwhile: The function that does the work in a thread of this process until a worker is
            up, so that nothing waits for processes to start. With it all processes start at once;
            with ``None`` each starts when its first item comes.
        modules: The names of modules that all workers need (:func:`load_ahead`).

    Attributes:
        has_lost_workers: Whether a process died, which may have left a file half-written.
    """

    def __init__(
        self,
        function: Callable[[T], R],
        num_workers: int,
        *,
        on_crash: Callable[[T, WorkerCrash, Callable[[T], R]], R],
        max_bytes: int | None = None,
        meanwhile: Callable[[T], R] | None = None,
        modules: Sequence[str] = (),
    ) -> None:
        load_ahead(modules)
        # Plain pickle: multiprocessing's own would move tensors to shared memory, which is small
        # in containers.
        self._function = pickle.dumps((function, max_bytes))
        self._on_crash = on_crash
        self._threads = ThreadPoolExecutor(num_workers)
        self._workers: list[_Worker] = []
        self._is_closed = False
        self._start_method = "forkserver" if _FORKS else "spawn"
        self.has_lost_workers = False
        self._meanwhile = meanwhile
        # A seat is a process that waits for an item, or `None` for one that is yet to start.
        self._seats: LifoQueue[_Worker | None] = LifoQueue()
        self._num_seats = num_workers
        self._lock = threading.Lock()
        for _ in range(num_workers):
            self._seats.put(None if meanwhile is None else self._start())

    def submit(self, item: T) -> Future[R]:
        """Start the work on an item."""
        return self._threads.submit(self._call, item)

    def __enter__(self) -> WorkerPool[T, R]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End the processes; after an error, the work they were doing is lost."""
        self._is_closed = True
        for worker in list(self._workers):
            worker.process.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()

    def _call(self, item: T, tries: int = _TRIES) -> R:
        worker = self._seats.get() or self._start()
        if self._meanwhile is not None and not worker.is_ready():
            self._seats.put(worker)
            return self._meanwhile(item)
        try:
            result: R = worker.call(item)
        except WorkerCrash as crash:
            self.has_lost_workers = True
            self._workers.remove(worker)
            is_last = not (crash.is_memory and self._give_up_seat())
            if is_last:
                self._seats.put(None)
            if self._is_closed:
                raise
            if tries > 1 or not is_last:
                return self._call(item, tries - is_last)
            return self._on_crash(item, crash, self._call)
        except BaseException:
            self._seats.put(worker)
            raise
        self._seats.put(worker)
        return result

    def _give_up_seat(self) -> bool:
        """Let one process fewer work from now on, unless it is the last."""
        with self._lock:
            if self._num_seats == 1:
                return False
            self._num_seats -= 1
        _logger.warning(
            "memory is short: the system killed a worker process; going on with %d", self._num_seats
        )
        return True

    def _start(self) -> _Worker:
        try:
            worker = _Worker(self._function, self._start_method)
        except (EOFError, ConnectionError):  # the system killed the server for its memory
            self._start_method = "spawn"
            worker = _Worker(self._function, self._start_method)
        self._workers.append(worker)
        if self._is_closed:  # it was started while the others were ended
            worker.process.kill()
        return worker


class _Worker:
    """A process and the caller's end of its pipe."""

    def __init__(self, function: bytes, start_method: str) -> None:
        context: Any = multiprocessing.get_context(start_method)
        self._connection, theirs = context.Pipe()
        args = (theirs, dict(os.environ))
        self.process = context.Process(target=_serve, args=args, daemon=True)
        self.process.start()
        theirs.close()
        self._channel = _Channel(self._connection)
        # Sent when the process is up: what is too long for the pipe would wait for that.
        self._unsent: bytes | None = function
        self._is_ready = False
        self._kills, self._recount_at = 0, 0.0

    def is_ready(self) -> bool:
        """Tell whether the process waits for items, without waiting for it."""
        with suppress(EOFError, ConnectionError):  # died: `call` says so
            while not self._is_ready and self._connection.poll():
                self._prepare()
            return self._is_ready
        return True

    def _prepare(self) -> None:
        """Wait for the process to say that it is up, then that it has its function."""
        self._connection.recv()
        if self._unsent is None:
            self._is_ready = True
        else:
            self._connection.send_bytes(self._unsent)
            self._unsent = None

    def call(self, item: Any) -> Any:
        """Let the process work on an item and wait for what it says."""
        kills = self._count_kills()
        try:
            while not self._is_ready:
                self._prepare()
            self._channel.send(item)
            result, error = self._channel.receive()
        except (EOFError, ConnectionError) as died:
            self.close()
            code = self.process.exitcode
            if code is not None and code < 0:
                raise _explain_kill(-code, count_memory_kills() > kills) from died
            raise RuntimeError(
                f"a worker process ended with exit code {code}; what it printed says why"
            ) from died
        if error is not None:
            raise error
        return result

    def _count_kills(self) -> int:
        """What :func:`count_memory_kills` said within the last second: it reads several files."""
        if time.monotonic() >= self._recount_at:
            self._kills, self._recount_at = count_memory_kills(), time.monotonic() + 1
        return self._kills

    def close(self) -> None:
        self._channel.close()
        self.process.join()


class _Channel:
    """Sends and receives through one end of a pipe; large arrays go past pickle, uncopied.

    Where a pipe is a pair of sockets, one call receives such an array straight into its memory,
    while other threads of Python go on.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        has_sockets = hasattr(socket, "AF_UNIX") and hasattr(socket, "MSG_WAITALL")
        self._socket = socket.socket(fileno=os.dup(connection.fileno())) if has_sockets else None

    def send(self, item: Any) -> None:
        """Send an object.

        Raises:
            ConnectionError: The other end is gone.
        """
        arrays: list[memoryview] = []

        def keep(buffer: pickle.PickleBuffer) -> bool:
            """Tell pickle whether to take a buffer itself."""
            raw = buffer.raw()
            if self._socket is None or raw.nbytes < _LARGE or raw.readonly:
                return True
            arrays.append(raw)
            return False

        data = pickle.dumps(item, protocol=5, buffer_callback=keep)
        self._connection.send((data, [array.nbytes for array in arrays]))
        for array in arrays:
            assert self._socket is not None
            self._socket.sendall(array)

    def receive(self) -> Any:
        """Wait for an object.

        Raises:
            EOFError: The other end is gone.
        """
        data, sizes = self._connection.recv()
        arrays = [np.empty(size, dtype=np.uint8) for size in sizes]
        for array in arrays:
            assert self._socket is not None
            if self._socket.recv_into(array.data, array.nbytes, socket.MSG_WAITALL) < array.nbytes:
                raise EOFError
        return pickle.loads(data, buffers=arrays)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._connection.close()


NETWORK = "adcam.labeling.labeler"
"""The module that workers need to run the network."""


def load_ahead(modules: Sequence[str]) -> None:
    """Let the server that workers are forked from load modules, while this process goes on.

    The first worker waits until they are loaded. Where the server runs already, and where processes
    are not forked, this does nothing.
    """
    if _FORKS:
        from multiprocessing import forkserver  # cannot be loaded on Windows

        forkserver.set_forkserver_preload(["adcam.labeling.fork_server", *modules])
        forkserver.ensure_running()
        atexit.unregister(end_server)
        atexit.register(end_server)


def end_server() -> None:
    """End the server that workers are forked from; the next worker starts another.

    It would outlive this process for a moment, and what its workers took not count as this
    process's. While it has workers, or this process others, it stays.
    """
    if _FORKS and not multiprocessing.active_children():
        from multiprocessing import forkserver

        server: Any = forkserver._forkserver
        if server._forkserver_pid is not None:
            os.kill(server._forkserver_pid, signal.SIGKILL)  # to free its modules takes a second
            server._stop()


def start_ahead(device: str, workers: int, module: str) -> None:
    """Let workers get ready, and a GPU wake up, while this process loads what it needs.

    Args:
        device: The device that the network will run on. Beside a CPU, the workers run it.
        workers: How many of them there will be.
        module: What they need apart from it.
    """
    if workers:
        load_ahead([NETWORK, module] if device == "cpu" else [module])
    if device.startswith("cuda"):
        threading.Thread(target=_wake, args=(device,), daemon=True).start()


def _wake(device: str) -> None:
    """Let the driver and the library of products load, which takes about a second."""
    import torch

    with suppress(RuntimeError, AssertionError):  # the command itself says what is wrong
        square = torch.ones(16, 16, device=device)
        torch.mm(square, square)


def _serve(connection: Connection, environment: Mapping[str, str]) -> None:
    """Answer items, after the function that answers them, until the caller closes its end.

    Args:
        connection: This end of the pipe.
        environment: The caller's environment; what this process was forked from may have an older
            one.
    """
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    # Whoever ends a run sends these to all of its processes; the caller decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    offer_to_be_killed(_FIRST_TO_KILL)
    limit_threads(1)
    with suppress(EOFError, ConnectionError):  # the caller is done, or dead
        connection.send(None)  # up
        call: Callable[[Any], Any]
        call, max_bytes = connection.recv()
        limit_memory(max_bytes)
        connection.send(None)  # ready
        channel = _Channel(connection)
        while True:
            item = channel.receive()
            try:
                answer: tuple[Any, Exception | None] = (call(item), None)
            except _SENT_BACK as error:
                answer = (None, error)
            channel.send(answer)


def _end_with_caller() -> None:
    """End this process with its caller: what it would still write, the next run is writing too."""
    caller = multiprocessing.parent_process()
    assert caller is not None
    wait([caller.sentinel])
    os._exit(1)


def _explain_kill(number: int, is_memory: bool) -> WorkerCrash:
    """Say what ended a process, and what to do about it."""
    what = f"it cost two worker processes, killed by {signal.Signals(number).name}"
    if is_memory:
        what += " for lack of memory: try fewer --workers, or allow the container more"
    return WorkerCrash(what, is_memory=is_memory and number == signal.SIGKILL)


def count_memory_kills() -> int:
    """Return how often the system has killed a process of this container for its memory.

    Where the container does not count, it is any process of the machine. 0 where the system does
    not say.
    """
    names = ("memory.events", "memory.oom_control")
    counts = [group / name for group in find_memory_groups() for name in names]
    for path in (*counts, Path("/proc/vmstat")):
        with suppress(OSError, ValueError):
            words = dict(line.split() for line in path.read_text("ascii").splitlines())
            if "oom_kill" in words:
                return int(words["oom_kill"])
    return 0


def limit_memory(max_bytes: int | None) -> None:
    """Bound the memory that this process may ask for; ``None`` and Windows set no bound."""
    if max_bytes is not None and resource is not None:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        if most == resource.RLIM_INFINITY or max_bytes < most:
            resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, most))


def limit_threads(num_threads: int) -> None:
    """Bound the threads that computations of this process use.

    More threads than processors cost more than they give: those that wait spin.
    """
    import torch

    torch.set_num_threads(num_threads)
    # Read by libraries that are not loaded yet (numba, OpenBLAS).
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(num_threads)


_ON_ONE_THREAD: dict[int, int] = {}
"""The Python threads inside :func:`one_thread`, and how many threads torch used there before."""
_SWITCHING = threading.Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread in this Python thread, and afterwards as before.

    torch counts for each Python thread. One that is new takes the number set last in any of them
    (``ATen/ParallelOpenMP.cpp`` of pytorch/pytorch): 1 while another is in here, where its own is
    therefore not the one from before.
    """
    import torch

    me = threading.get_ident()
    with _SWITCHING:
        if is_outermost := me not in _ON_ONE_THREAD:
            before = torch.get_num_threads()
            _ON_ONE_THREAD[me] = max(_ON_ONE_THREAD.values(), default=1) if before == 1 else before
            torch.set_num_threads(1)
    try:
        yield
    finally:
        if is_outermost:
            with _SWITCHING:
                torch.set_num_threads(_ON_ONE_THREAD.pop(me))


@contextmanager
def quick_turns() -> Iterator[None]:
    """Let the threads of this process wait for each other half a millisecond at most, not five.

    Threads that tell a GPU what to do need Python again after every operation. On an H100 with slow
    cores this made 128 masks a second of 115 to 119.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


MAX_WORKERS = 16
"""Most processes that are started unasked: each holds torch and, on a CPU, the network."""

DEVICE_WORKERS = 8
"""Most of them that decode and write for a GPU: 200 images a second keep two busy."""


def count_workers(*, has_gpu: bool, on_device: bool, neighbours: int = 1) -> int:
    """Return the processes that make best use of this machine; 0 where there is nothing to gain.

    These are its processors, less one that feeds a GPU.

    Args:
        has_gpu: Whether the network runs on a GPU.
        on_device: Whether masks are made there too, which leaves little to do.
        neighbours: Processes that share the machine, this one included.
    """
    processors = max(num_processors() // neighbours, 1)
    if has_gpu:
        return min(processors - 1, DEVICE_WORKERS if on_device else MAX_WORKERS)
    return min(processors, MAX_WORKERS) if processors > 1 else 0


def num_processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
