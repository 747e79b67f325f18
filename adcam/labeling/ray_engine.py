"""The steps of a run on a Ray cluster, by Ray Data: the same functions, so the same bytes.

Ray Data streams windows of images through pools of processes. It starts more processes of a pool
while work waits for it, holds back a step whose results nobody takes, and repeats what a machine
that died had under way. This module only says which function of :mod:`adcam.labeling.steps` runs in
which pool:

* with the network on the CPU, every process takes whole images, as the local engine's workers do;
* with GPUs, pools of CPU processes decode and finish images, and between them a pool of processes
  with a GPU, or a share of one, each, runs network and method.

Python and compiled code that may die of an image (decoders, CRF) run in a child of Ray's process
(:class:`adcam.labeling.executor.WorkerPool`): an image that kills it is recorded as failed, where
Ray would repeat it for ever. The image files, the output folder and the installation of adcam must
be reachable from every machine under the same paths. ray is imported here and nowhere else.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from adcam.errors import AdcamError
from adcam.labeling.executor import WorkerPool, num_processors
from adcam.labeling.inputs import window_size
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.run import isolate_crash, record_crash, worker_memory
from adcam.labeling.steps import (
    Decoded,
    Failed,
    Finished,
    Job,
    Made,
    Mapped,
    Task,
    decode,
    finish,
    infer_window,
    label_window,
    make_window,
)
from adcam.limits import read_limits, variable_of

_IMAGES_PER_TASK = 32
_TASKS_PER_PROCESS = 8
_STORE_BYTES = 200_000_000

Row = Mapping[str, bytes]
"""A row of Ray Data: one window, one image or one result, pickled. Ray itself pickles what its
processes send one another; nothing of it ever comes from a file."""


@dataclass(frozen=True)
class RayEngine:
    """Labels images on a Ray cluster (:class:`adcam.labeling.run.Engine`).

    Attributes:
        address: The cluster: ``"auto"`` for the one that this machine belongs to, or
            ``"host:port"``; ``None`` takes the one that this process is connected to, or that the
            variable ``RAY_ADDRESS`` names, and else starts one on this machine, which ends with
            the run.
        workers: Most processes of a pool; ``None`` for as many as the cluster has processors.
            More keep more of the cluster busy, and each holds torch and the network in memory.
        gpus_per_process: Share of a GPU that each process of the network gets, such as 0.5 for two
            processes a GPU; 0 keeps the network on the CPU.
        is_split: Whether decoding, network and the rest run in pools of their own; ``None`` does so
            with GPUs only, since on CPUs whole images in one process cost least.
        store_bytes: Size of the object store of a cluster that is started here; ``None`` for 200 MB
            without pools of their own, where only results pass, and else for Ray's default.

    Raises:
        AdcamError: A number is out of range.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_process: float = 0.0
    is_split: bool | None = None
    store_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise AdcamError(f"the Ray engine needs at least 1 worker, got {self.workers}")
        if not 0 <= self.gpus_per_process <= 8:
            raise AdcamError(
                f"a process can have a share of a GPU (0.25) or whole ones (1), got "
                f"{self.gpus_per_process}"
            )
        if self.gpus_per_process and self.is_split is False:
            raise AdcamError("with GPUs, the network runs in a pool of its own")

    def count_processes(self) -> int:
        """Count the processes that a pool may grow to."""
        return self.workers or num_processors()

    def label(
        self,
        windows: Iterable[Sequence[Task]],
        labeler: PseudoLabeler,
        job: Job,
        *,
        batch_size: int,
    ) -> Generator[Finished, None, None]:
        """Do all steps on all images, in any order (:class:`adcam.labeling.run.Engine`).

        Raises:
            AdcamError: There is no such cluster, or it lacks what a process asks for.
            OSError: A file cannot be written, for a reason that other files share.
        """
        rows = [{"data": pickle.dumps(tuple(window))} for window in windows]
        if not rows:
            return
        with self._connect() as ray:
            most = self._count_most(ray)
            steps = ray.put(
                pickle.dumps(_Steps(*_ship(labeler), job, batch_size, asdict(read_limits())))
            )
            data = ray.data.from_items(
                rows, override_num_blocks=_count_tasks(rows, most, batch_size)
            )
            pools = self._plan()
            # One pool takes what there is at once; several grow where work waits.
            first = most if len(pools) == 1 else 1
            for stage, resources in pools:
                data = data.flat_map(
                    stage,
                    fn_constructor_args=(steps,),
                    compute=ray.data.ActorPoolStrategy(
                        min_size=1, initial_size=first, max_size=most
                    ),
                    **resources,
                )
            try:
                for row in data.iter_rows():
                    finished: Finished = _load(row["data"])
                    yield finished
            except ray.exceptions.RayError as error:
                raise _explain(error) from error

    def _plan(self) -> list[tuple[type, dict[str, float]]]:
        """Plan the pools: the class of each and what its processes take of the cluster."""
        gpus = self.gpus_per_process
        if not (gpus > 0 if self.is_split is None else self.is_split):
            return [(_WholeImages, {"num_cpus": 1, "num_gpus": gpus})]
        # Beside others, a network process on a GPU takes no processor of its own.
        network = {"num_cpus": 0.0, "num_gpus": gpus} if gpus else {"num_cpus": 1.0}
        return [(_Decoding, {"num_cpus": 1}), (_Network, network), (_Finishing, {"num_cpus": 1})]

    def _count_most(self, ray: Any) -> int:
        resources = ray.cluster_resources()
        processors = int(resources.get("CPU", 0))
        if processors < 1:
            raise AdcamError("the Ray cluster has no processors to give (num_cpus=0 everywhere?)")
        needed = sum(resources["num_cpus"] for _, resources in self._plan())
        if processors < needed:
            raise AdcamError(
                f"the pools need {needed:g} processors, one process each at least, and the Ray "
                f"cluster has {processors}"
            )
        if self.gpus_per_process and not resources.get("GPU"):
            raise AdcamError("the Ray cluster has no GPU; take --device cpu")
        return min(self.workers or processors, processors)

    @contextmanager
    def _connect(self) -> Iterator[Any]:
        """Give the module ray, connected; a cluster that was started here ends with the block."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Its C++ side warns of every pool; what ends a run comes as an exception.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray
        import ray.data

        was_connected = ray.is_initialized()
        if not was_connected:
            self._start(ray)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        try:
            with _quiet("ray.data", "ray"):
                yield ray
        finally:
            if not was_connected:
                ray.shutdown()

    def _start(self, ray: Any) -> None:
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        options: dict[str, Any] = {}
        if address == "local":
            small = _STORE_BYTES if len(self._plan()) == 1 else None
            options = {
                "num_cpus": self.workers or num_processors(),
                "include_dashboard": False,
                "object_store_memory": self.store_bytes or small,
                # A cluster of one machine is nobody else's business.
                "_node_ip_address": "127.0.0.1",
            }
        try:
            with warnings.catch_warnings(), _own_sigterm():
                warnings.simplefilter("ignore")
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise AdcamError(f"no Ray cluster at address {address!r}: {first}") from error


@dataclass(frozen=True, eq=False)
class _Steps:
    """What every process gets: the labeler, pickled on the CPU, and the choices of the run."""

    labeler: bytes
    device: str
    job: Job
    batch_size: int
    limits: Mapping[str, int]

    def load_labeler(self) -> PseudoLabeler:
        """Load the labeler onto the CPU."""
        labeler: PseudoLabeler = _load(self.labeler)
        return labeler


class _Stage:
    """One step of the pipeline in a process of Ray: a row of pickled work in, rows out."""

    def __init__(self, steps: Any) -> None:
        import ray

        sent: _Steps = _load(ray.get(steps))
        # What --limits said where the run was started holds on every machine.
        os.environ.update({variable_of(name): str(most) for name, most in sent.limits.items()})
        self.prepare(sent)

    def __call__(self, row: Row) -> list[dict[str, bytes]]:
        return [{"data": pickle.dumps(item)} for item in self.work(_load(row["data"]))]

    def prepare(self, steps: _Steps) -> None:
        raise NotImplementedError

    def work(self, item: Any) -> Iterable[Any]:
        raise NotImplementedError


class _WholeImages(_Stage):
    """All steps of the images of a window, in a child process."""

    def prepare(self, steps: _Steps) -> None:
        labeler = steps.load_labeler()
        label = partial(label_window, labeler=labeler, job=steps.job, batch_size=steps.batch_size)
        self.pool = _make_pool(label, isolate_crash)

    def work(self, item: Sequence[Task]) -> list[Finished]:
        return self.pool.submit(item).result()


class _Decoding(_Stage):
    """Images read and resized, in a child process; a window stays together."""

    def prepare(self, steps: _Steps) -> None:
        labeler = steps.load_labeler()
        resizer, max_pixels = labeler.map_maker.resizer, labeler.options.max_pixels
        self.pool = _make_pool(
            partial(decode, resizer=resizer, max_pixels=max_pixels), record_crash
        )

    def work(self, item: Sequence[Task]) -> list[list[Decoded | Failed]]:
        return [[self.pool.submit(task).result() for task in item]]


class _Network(_Stage):
    """Network and method, and what else computes beside them."""

    def prepare(self, steps: _Steps) -> None:
        self.labeler = steps.load_labeler()
        self.labeler.assign_device(steps.device)
        self.job, self.batch_size = steps.job, steps.batch_size

    def work(self, item: list[Decoded | Failed]) -> Sequence[Mapped | Made | Failed]:
        images = infer_window(item, self.labeler, batch_size=self.batch_size)
        return images if self.job.device == "cpu" else make_window(images, self.job)


class _Finishing(_Stage):
    """Masks made and written, in a child process."""

    def prepare(self, steps: _Steps) -> None:
        self.pool = _make_pool(partial(finish, job=steps.job), record_crash)

    def work(self, item: Mapped | Made | Failed) -> list[Finished]:
        return [self.pool.submit(item).result()]


def _load(data: bytes) -> Any:
    """Load what a process of this run has pickled for another; nothing else gets here.

    Ray moves everything in this form. Who can put something else into a cluster's queues can start
    programs on it anyway.
    """
    return pickle.loads(data)


def _make_pool(function: Callable[[Any], Any], on_crash: Any) -> WorkerPool[Any, Any]:
    """Make a pool of one child process, which the limits of the run hold for."""
    return WorkerPool(function, 1, on_crash=on_crash, max_bytes=worker_memory())


def _ship(labeler: PseudoLabeler) -> tuple[bytes, str]:
    """Pickle a labeler on the CPU; other machines load it onto devices of their own."""
    device = str(labeler.device.type)
    labeler.assign_device("cpu")
    try:
        return pickle.dumps(labeler), device
    finally:
        labeler.assign_device(device)


def _count_tasks(rows: Sequence[Row], processes: int, batch_size: int) -> int:
    """Choose into how many tasks the windows are cut.

    A task of Ray costs some milliseconds, so that each gets several windows of one image; but every
    process should get several tasks, so that all end together and little is done twice if one dies.
    """
    windows_per_task = max(_IMAGES_PER_TASK // window_size(batch_size), 1)
    few = -(-len(rows) // windows_per_task)
    return min(len(rows), max(few, _TASKS_PER_PROCESS * processes))


def _explain(error: Exception) -> Exception:
    """Return what went wrong in a process of the cluster as it would have been raised here."""
    cause = getattr(error, "cause", None)
    while cause is not None and not isinstance(cause, OSError | AdcamError):
        cause = getattr(cause, "cause", None) or cause.__cause__
    if cause is not None:
        return cause
    text = str(error).strip().splitlines()
    return RuntimeError(f"the Ray run ended: {text[-1] if text else type(error).__name__}")


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this process does on SIGTERM; Ray would end it in a way of its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep Ray's reports of its plans off the terminal: progress is shown by adcam."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
