"""Many images through the steps into an output folder: parallel, resumable, one path of numbers.

:mod:`adcam.labeling.generate` and :mod:`adcam.labeling.boxes` say what becomes of the class maps;
everything else about a run is here. Results do not depend on the number of processes, nor on how
often a run was interrupted: each image is decoded, batched and computed the same way in all cases.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch

from adcam.data.dataset import ImageDataset
from adcam.errors import AdcamError, join_some
from adcam.files import hash_bytes, hash_values
from adcam.labeling.device_steps import DeviceSteps
from adcam.labeling.executor import (
    NETWORK,
    WorkerCrash,
    WorkerPool,
    count_workers,
    one_thread,
    quick_turns,
    run_ahead,
    submit_inline,
)
from adcam.labeling.inputs import (
    BATCH_SIZE,
    READERS,
    in_groups,
    plan_groups,
    window_size,
)
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.manifest import Entry
from adcam.labeling.observe import Observer
from adcam.labeling.output_folder import OutputFolder, describe_image
from adcam.labeling.shards import WHOLE, Shard
from adcam.labeling.steps import (
    Failed,
    Finished,
    Job,
    Made,
    Mapped,
    Task,
    find_input_sizes,
    label_window,
    work_on,
)
from adcam.labeling.trace import record_trace
from adcam.limits import machine_memory, read_limits
from adcam.progress import track
from adcam.remote_files import is_url

if TYPE_CHECKING:
    from adcam.labeling.packed_folder import PackedFolder

ResultFolder: TypeAlias = "OutputFolder | PackedFolder"

LABEL_CHOICES = ("given", "predicted")

INLINE_LIMIT = 16
"""Up to this many images are labelled in this process: starting others takes longer."""


@dataclass(frozen=True)
class Failure:
    """An image without a result, and why."""

    img_id: str
    error: str


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        ok: Number of images that have got a result.
        skipped: Number of images that an earlier run had done.
        failed: The images that have no result, in the order of the data set.
        no_class: Ids of the images in which the classifier found no class, those of earlier runs
            included. Their results are empty: a mask of background, no boxes.
        seconds: Seconds of each step, summed over threads and processes; and ``total``, by the
            clock on the wall.
        parallelism: Number of threads or processes that each step was spread over.
        first_after: Seconds after which the first image was done.
        images_per_second: Images done in a second from then on; 0 with less than two.
        gpu_busy: Share of the time in which the GPU worked, in [0, 1], from a run that was recorded
            (:attr:`RunOptions.profile`); ``None`` from others.
    """

    ok: int
    skipped: int
    failed: tuple[Failure, ...]
    no_class: tuple[str, ...]
    seconds: Mapping[str, float]
    parallelism: Mapping[str, int]
    first_after: float = 0.0
    images_per_second: float = 0.0
    gpu_busy: float | None = None

    @property
    def shares(self) -> dict[str, float]:
        """Share of the wall time that a step kept its threads or processes busy, in [0, 1].

        Where the steps of one process come to about 1 together, the run waits for them.
        """
        total = max(self.seconds["total"], 1e-9)
        return {step: self.seconds[step] / total / n for step, n in self.parallelism.items()}

    def format_times(self) -> str:
        """Format the steps as a table: seconds, threads or processes, share of the wall time."""
        lines = ["step       seconds   in   share of wall time"]
        for step, share in self.shares.items():
            lines.append(
                f"{step:<8}{self.seconds[step]:>10.1f}{self.parallelism[step]:>5}{share:>10.0%}"
            )
        lines.append(f"{'total':<8}{self.seconds['total']:>10.1f}")
        if self.images_per_second:
            lines.append(
                f"first image after {self.first_after:.1f} s, then "
                f"{self.images_per_second:.3g} images/s"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return counts, failures by image id, and times, JSON-serialisable."""
        failed = {failure.img_id: failure.error for failure in self.failed}
        return {**vars(self), "failed": failed, "shares": self.shares}


class Engine(Protocol):
    """What computes the steps of a run, where that is not this process with its workers."""

    def label(
        self,
        windows: Iterable[Sequence[Task]],
        labeler: PseudoLabeler,
        job: Job,
        *,
        batch_size: int,
    ) -> Generator[Finished, None, None]:
        """Do all steps on all images, as :func:`adcam.labeling.steps.label_window` does them.

        Args:
            windows: Groups of images that are searched for equal input sizes.
            labeler: The network and the method.
            job: What becomes of the class maps.
            batch_size: Most images in a batch.

        Returns:
            What became of every image that is not done, in any order.
        """

    def count_processes(self) -> int:
        """Count the processes that the steps are spread over."""


@dataclass(frozen=True)
class RunOptions:
    """How a run goes about its images; of these, ``labels`` and ``batch_size`` change results.

    Attributes:
        labels: ``"given"`` takes the labels of the images, ``"predicted"`` what the classifier
            finds.
        workers: Number of processes beside this one, each with one thread; with 0 this process
            does everything. With the network on the CPU, each process takes whole images; with a
            GPU, this process runs the network and makes the masks, and the others decode and write.
            More need more memory.
        batch_size: Most images of equal input sizes that the network sees at once; ``None`` for 1
            on the CPU, where more gains nothing, else :data:`adcam.labeling.inputs.BATCH_SIZE`.
            Larger keeps a GPU busier and takes more of its memory; what does not fit is halved.
        shard: The part of the images to label. Every process is given the same images and another
            shard; they may work in one folder at the same time, on any machine that sees it.
            :func:`adcam.labeling.merge.merge_shards` joins what they have made.
        log_json: A file to which a line of JSON is added for the start, every image and the end.
        metrics_file: A file that holds the numbers so far in Prometheus' text format
            (:mod:`adcam.labeling.observe`).
        profile: A file for a trace of the run (:mod:`adcam.labeling.trace`); a run that is recorded
            is slower.
        progress: Whether to show progress on standard error.
        log: Called with a line of text now and then.
        engine: What computes the steps in place of this process and its workers, such as
            :class:`adcam.labeling.ray_engine.RayEngine`; ``None`` for these.
    """

    labels: str = "given"
    workers: int = 0
    batch_size: int | None = None
    shard: Shard = WHOLE
    log_json: Path | None = None
    metrics_file: Path | None = None
    profile: Path | None = None
    progress: bool = True
    log: Callable[[str], None] | None = None
    engine: Engine | None = None

    def __post_init__(self) -> None:
        if self.labels not in LABEL_CHOICES:
            raise AdcamError(f"labels must be one of {LABEL_CHOICES}, got {self.labels!r}")
        if self.workers < 0:
            raise AdcamError(f"workers must be at least 0, got {self.workers}")
        if self.batch_size is not None and self.batch_size < 1:
            raise AdcamError(f"batch_size must be at least 1, got {self.batch_size}")


class Run:
    """A data set, a labeler and the options of a run.

    Args:
        name: Shown before the progress, such as ``"generate"``.
        images: The images; class ids are matched to the labeler's classes by name.
        labeler: The classifier and every other choice.
        options: How to go about it.

    Attributes:
        batch_size: The batch size that ``options`` come to.

    Raises:
        AdcamError: Images lack labels, or a class is unknown to the labeler.
    """

    def __init__(
        self, name: str, images: ImageDataset, labeler: PseudoLabeler, options: RunOptions
    ) -> None:
        self.name = name
        self.images = images
        self.labeler = labeler
        self.options = options
        self._is_suspicious = False
        self._has_lost_workers = False
        self.batch_size = options.batch_size or (1 if self._on_cpu else BATCH_SIZE)
        self._class_ids = given_class_ids(images, labeler) if options.labels == "given" else None

    @property
    def _on_cpu(self) -> bool:
        """Whether the network runs on the CPU, so that processes take whole images."""
        return self.labeler.device.type == "cpu"

    def describe_labels(self) -> dict[str, Any]:
        """Describe where labels come from; a hash stands for those that are given."""
        if self._class_ids is None:
            return {"source": "predicted"}
        table = {
            record.img_id: self._names(ids)
            for record, ids in zip(self.images.records, self._class_ids, strict=True)
        }
        text = json.dumps(table, sort_keys=True)
        return {"source": "given", "images": len(table), "hash": hash_bytes(text.encode())}

    def check(self, job: Job) -> None:
        """Label a blank image, so that what fails for every image fails before writing.

        Raises:
            AdcamError: The image cannot be labelled.
        """
        if self.labeler.device.type == "cuda" and not torch.cuda.is_available():
            return  # the network runs on other machines than this one
        img = np.full((32, 48, 3), 128, dtype=np.uint8)
        maker = self.labeler.map_maker
        passes = maker.run([img])
        (maps,) = maker.compute_maps(passes, [(0,)], [img])
        task = Task(0, "blank", Path("blank"), (0,))
        job.make(Mapped(task, img, (32, 48), maps, passes.compute_scores()[0], {}))

    def into(self, folder: ResultFolder, job: Job, config: Mapping[str, Any]) -> RunResult:
        """Label the images that a folder of this configuration does not have yet.

        Raises:
            OSError: The folder cannot be written to.
        """
        progress = _Progress(("decode", "network", "refine", job.step, "write"))
        hashes = {"config": hash_values(config), "weights": self.labeler.weights_hash}
        root = "/" if is_url(folder.path) else os.path.realpath(folder.path)
        tasks = self._plan_all(folder, job, root, progress)
        num_left = len(tasks) - progress.skipped
        folder.note(lines=folder.num_lines, left=num_left)
        if progress.skipped and self.options.log is not None:
            self.options.log(f"{progress.skipped} of {len(tasks)} images are done already")
        workers = self.options.workers if num_left > INLINE_LIMIT else 0
        self._is_suspicious = folder.was_killed
        # A cluster does not say which of its processes died.
        self._has_lost_workers = self.options.engine is not None
        if folder.was_killed:
            workers = max(workers, 1)  # if an image did it, it costs a worker this time
        observer = self._observe(hashes, num_left, progress.skipped)
        with (
            observer,
            record_trace(self.options.profile, self.options.log) as trace,
            closing(self._finish_all(tasks, job, workers)) as finished,
        ):
            # Whatever ends this loop ends the workers.
            shown = self.options.progress
            for item in track(finished, self.name, num_left) if shown else finished:
                progress.add(item)
                entry = {
                    "id": item.task.img_id,
                    "image": describe_image(item.task, root),
                    **item.entry,
                    **hashes,
                    "seconds": round(sum(item.seconds.values()), 4),
                }
                folder.append(entry)
                observer.image(entry, item.seconds)
            rate = progress.compute_rate(num_left)
        folder.finish((task.img_id for task in tasks), lost_workers=self._has_lost_workers)
        index_of = self.images.index_of
        return RunResult(
            ok=num_left - len(progress.failed),
            skipped=progress.skipped,
            failed=tuple(sorted(progress.failed, key=lambda failure: index_of(failure.img_id))),
            no_class=tuple(sorted(progress.no_class, key=index_of)),
            seconds={**progress.seconds, "total": progress.measure_time()},
            parallelism=self._describe_parallelism(progress.seconds, job, workers),
            first_after=progress.first_after,
            images_per_second=rate,
            gpu_busy=trace.gpu_busy,
        )

    def _plan_all(
        self, folder: ResultFolder, job: Job, root: str, progress: _Progress
    ) -> list[Task]:
        """Plan the images that fall to this process; an earlier run may have done some of them."""
        # A GPU searches its part of the images for equal sizes, however they are divided.
        window = window_size(self.batch_size) if self._on_cpu else self.batch_size
        mine = folder.start([record.img_id for record in self.images.records], window=window)
        tasks = [self._plan(index, folder, job, root) for index in mine]
        for task in tasks:
            if task.is_done:
                progress.skip(task.img_id, folder[task.img_id])
        return tasks

    def _observe(self, hashes: Mapping[str, Any], left: int, skipped: int) -> Observer:
        """Begin the log and the metrics that the options ask for."""
        shard = str(self.options.shard)
        head = {"run": self.name, **hashes, "shard": shard, "device": str(self.labeler.device)}
        observer = Observer(self.options.log_json, self.options.metrics_file, {"shard": shard})
        observer.start({**head, "images": len(self.images)}, left=left, skipped=skipped)
        return observer

    def _plan(self, index: int, folder: ResultFolder, job: Job, root: str) -> Task:
        """Plan an image: what is known of it, and whether an earlier run has done it."""
        record = self.images.records[index]
        class_ids = None if self._class_ids is None else self._class_ids[index]
        expected: dict[str, Any] = {"image": describe_image(record, root)}
        if class_ids is not None:
            expected["classes"] = self._names(class_ids)
        task = Task(index, record.img_id, record.img_path, class_ids, packed=record.packed)
        try:
            is_done = folder.is_done(record.img_id, expected, job.find_files(task))
        except AdcamError as error:
            return replace(task, problem=str(error))
        return replace(task, is_done=is_done)

    def _finish_all(
        self, tasks: Sequence[Task], job: Job, workers: int
    ) -> Generator[Finished, None, None]:
        windows = _plan_windows(tasks, self.batch_size)
        if (engine := self.options.engine) is not None:
            return engine.label(windows, self.labeler, job, batch_size=self.batch_size)
        if self._on_cpu:
            return self._run_whole(windows, job, workers)
        return self._run_split(tasks, job, workers)

    def _run_whole(
        self, windows: Iterable[Sequence[Task]], job: Job, workers: int
    ) -> Generator[Finished, None, None]:
        """Do every step of an image in one process: this one, or one of ``workers``."""
        label = partial(label_window, labeler=self.labeler, job=job, batch_size=self.batch_size)
        if not workers:
            results = run_ahead(submit_inline(label), windows, max_ahead=1)
            yield from (item for window in results for item in window)
            return

        with WorkerPool(
            label,
            workers,
            on_crash=isolate_crash,
            max_bytes=worker_memory(),
            modules=[NETWORK],
        ) as pool:
            for window in run_ahead(pool.submit, windows, max_ahead=2 * workers):
                yield from window
            self._has_lost_workers = pool.has_lost_workers

    def _run_split(
        self, tasks: Sequence[Task], job: Job, workers: int
    ) -> Generator[Finished, None, None]:
        """Run network and method in this process; do the rest in ``workers``, or else in threads.

        Only this process gives work to the GPU: the network, and the CRF if it runs there too. On
        the CPU it computes with one thread, so that it does not slow the workers down.
        """
        maker = self.labeler.map_maker
        max_pixels = self.labeler.options.max_pixels
        sizing: dict[str, Any] = {"resizer": maker.resizer, "max_pixels": max_pixels}
        work = partial(work_on, job=job, **sizing)
        find_sizes: Callable[[Task], Hashable] = partial(find_input_sizes, **sizing)
        with one_thread(), quick_turns(), ExitStack() as stack:
            submit: Callable[[Any], Future[Any]]
            if workers:
                pool = WorkerPool(
                    work,
                    workers,
                    on_crash=record_crash,
                    max_bytes=worker_memory(),
                    # After a run that was killed, each image is opened and read in a process that
                    # may be lost.
                    meanwhile=None if self._is_suspicious else work,
                )
                submit = stack.enter_context(pool).submit
            else:
                threads = ThreadPoolExecutor(READERS)
                stack.callback(threads.shutdown, cancel_futures=True)
                submit = partial(threads.submit, work)
            if self._is_suspicious:
                find_sizes = stack.enter_context(_find_elsewhere(find_sizes))
            groups = plan_groups(
                tasks, find_sizes, batch_size=self.batch_size, is_done=attrgetter("is_done")
            )
            ahead = 2 * self.batch_size + workers
            decoded = in_groups(submit, groups, max_ahead=ahead)
            steps = DeviceSteps(self.labeler, job, batch_size=self.batch_size)
            with closing(steps.run(decoded)) as labelled:
                left = (image for batch in labelled for image in batch)
                yield from run_ahead(submit, left, max_ahead=ahead)
            self._has_lost_workers = bool(workers) and pool.has_lost_workers

    def _describe_parallelism(self, steps: Iterable[str], job: Job, workers: int) -> dict[str, int]:
        if (engine := self.options.engine) is not None:
            return dict.fromkeys(steps, engine.count_processes())
        if self._on_cpu:
            return dict.fromkeys(steps, max(workers, 1))
        alone = ("network", "refine", *([] if job.device == "cpu" else [job.step]))
        return {**dict.fromkeys(steps, workers or READERS), **dict.fromkeys(alone, 1)}

    def _names(self, class_ids: Iterable[int]) -> list[str]:
        return [self.labeler.class_set.classes[i] for i in class_ids]


class _Progress:
    """What became of the images so far, and how long it took.

    Args:
        steps: The names of the steps.

    Attributes:
        seconds: Seconds of each step, summed over threads and processes.
        first_after: Seconds after which the first image was done.
        skipped: Number of images that an earlier run had done.
        failed: The images that have no result.
        no_class: Ids of the images in which the classifier found no class.
    """

    def __init__(self, steps: Iterable[str]) -> None:
        self._start = time.perf_counter()
        self.seconds = dict.fromkeys(steps, 0.0)
        self.first_after = 0.0
        self.skipped = 0
        self.failed: list[Failure] = []
        self.no_class: list[str] = []

    def measure_time(self) -> float:
        """Return the seconds since this was made."""
        return time.perf_counter() - self._start

    def skip(self, img_id: str, entry: Entry) -> None:
        """Count an image that an earlier run has done."""
        self.skipped += 1
        self._count(img_id, entry)

    def add(self, item: Finished) -> None:
        """Count an image of this run."""
        self.first_after = self.first_after or self.measure_time()
        for step, spent in item.seconds.items():
            self.seconds[step] += spent
        self._count(item.task.img_id, item.entry)

    def _count(self, img_id: str, entry: Entry) -> None:
        if entry["status"] == "failed":
            self.failed.append(Failure(img_id, entry["error"]))
        elif entry["labels"] == "predicted" and not entry["classes"]:
            self.no_class.append(img_id)

    def compute_rate(self, num_images: int) -> float:
        """Compute the images done in a second since the first one was; 0 with less than two."""
        since_first = max(self.measure_time() - self.first_after, 1e-9)
        return (num_images - 1) / since_first if num_images > 1 else 0.0


def default_workers(labeler: PseudoLabeler, *, neighbours: int = 1) -> int:
    """Return the processes that make best use of this machine (:func:`count_workers`).

    On 2 processors without a GPU, whole images in 2 processes took the least time of what was
    tried (docs/performance.md).
    """
    on_device = labeler.mask_maker.device != "cpu"
    has_gpu = labeler.device.type != "cpu"
    return count_workers(has_gpu=has_gpu, on_device=on_device, neighbours=neighbours)


def given_class_ids(images: ImageDataset, labeler: PseudoLabeler) -> list[tuple[int, ...]]:
    """Return the class ids of every image, as the labeler counts them.

    Raises:
        AdcamError: Images have no labels, or one names a class that the labeler does not know.
    """
    missing = [record.img_id for record in images.records if record.class_ids is None]
    if missing:
        raise AdcamError(
            f"{len(missing)} of {len(images)} images have no labels: "
            f"{join_some(missing)}. Give them with --labels FILE.csv, or let the "
            "classifier decide with --labels predicted"
        )
    names = images.class_set.classes
    return [
        labeler.find_class_ids([names[i] for i in record.class_ids or ()])
        for record in images.records
    ]


def _plan_windows(tasks: Iterable[Task], batch_size: int) -> Iterator[tuple[Task, ...]]:
    """Yield groups of images that are searched for equal input sizes.

    With batches of one, these are the images that are left, one by one. Else they are windows of
    the whole data set, so that a resumed run computes the same batches as an uninterrupted one;
    windows that are done are left out.
    """
    left = (task for task in tasks if not task.is_done) if batch_size == 1 else iter(tasks)
    size = window_size(batch_size)
    while window := tuple(itertools.islice(left, size)):
        if not all(task.is_done for task in window):
            yield window


@contextmanager
def _find_elsewhere(find: Callable[[Task], Hashable]) -> Iterator[Callable[[Task], Hashable]]:
    """Find sizes in another process; those of an image that has cost two are unknown, ``None``."""
    pool: WorkerPool[Task, Hashable] = WorkerPool(
        find, 1, on_crash=lambda *_: None, max_bytes=worker_memory()
    )
    with pool:
        yield lambda task: pool.submit(task).result()


def isolate_crash(
    tasks: Sequence[Task], crash: WorkerCrash, retry: Callable[[Sequence[Task]], list[Finished]]
) -> list[Finished]:
    """Label the images of a window one by one after its process was killed: one of them did it."""
    wanted = [task for task in tasks if not task.is_done]
    if len(tasks) == 1:
        return [_crashed(task, crash) for task in wanted]
    return [item for task in wanted for item in retry((task,))]


def record_crash(
    item: Task | Mapped | Made | Failed, crash: WorkerCrash, retry: object
) -> Failed | Finished:
    """Record that the process which had an image was killed."""
    if isinstance(item, Task):
        return Failed(item, _explain(crash), {})
    return _crashed(item.task, crash)


def worker_memory() -> int | None:
    """Return the bytes that a worker may ask for.

    By default these are all there are, so that what asks for more fails by itself, before the
    system picks a process to kill.
    """
    return read_limits().worker_memory or machine_memory()


def _crashed(task: Task, crash: WorkerCrash) -> Finished:
    return Finished(task, {"status": "failed", "error": _explain(crash)}, {})


def _explain(crash: WorkerCrash) -> str:
    advice = "" if "memory" in str(crash) else "; if memory was short, try fewer --workers"
    return f"{crash}{advice}"
