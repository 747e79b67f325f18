"""The one loop of every comparison: images, network passes, maps of many methods, evaluators.

The loop knows no task. It reads each image once, lets each network see each set of views of it
once, and hands the maps of all methods to evaluators, which count what they are interested in
(the idea of ``inference_on_dataset`` in detectron2's ``evaluation/evaluator.py``). The results are
equal to the bit for any number of worker processes: on a CPU every image is computed by itself with
one thread, on a GPU in the same batches always, and evaluators count so that the order of the
images plays no part.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections import Counter
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

import torch

from adcam.data.dataset import ImageDataset
from adcam.errors import AdcamError
from adcam.evaluation.mapping import (
    Classifier,
    ImageMapper,
    MappedImage,
    MapTargets,
    MaskChoice,
    Prepared,
    Wanted,
    timed,
)
from adcam.labeling.executor import (
    NETWORK,
    WorkerCrash,
    WorkerPool,
    num_processors,
    one_thread,
    quick_turns,
    run_ahead,
    start_ahead,
    submit_inline,
)
from adcam.labeling.inputs import BATCH_SIZE, find_unread, read_in_groups
from adcam.labeling.map_maker import resolve_device
from adcam.settings import MethodSpec

Progress: TypeAlias = Callable[[Iterable[Any], str, int], Iterable[Any]]

INLINE_LIMIT = 40
"""Up to this many images are evaluated in the calling process: starting others takes longer."""

MAX_WORKERS = 16
"""Most worker processes that are started unasked: each holds torch and, on a CPU, the networks."""

T = TypeVar("T")

_WINDOW = 4  # images that a worker takes at once


@dataclass(frozen=True)
class LoopOptions:
    """How the loop computes; apart from the device and the type nothing changes a result.

    Attributes:
        device: The device that the networks run on; by default a GPU if there is one.
        dtype: The type that the networks compute in: ``float32``, or ``bfloat16`` or ``float16``
            by autocast.
        workers: The number of worker processes; 0 computes in this process. On a CPU each takes
            whole images, and with a GPU they evaluate while this process runs the networks. A
            script needs ``if __name__ == "__main__":`` around a call that starts workers.
        progress: A function that wraps the loop over images and shows how far it is:
            ``progress(iterable, description, total)``.
    """

    device: str | torch.device | None = None
    dtype: torch.dtype = torch.float32
    workers: int = 0
    progress: Progress | None = None


class Evaluator(Protocol):
    """Counts something over images; worker processes count on copies of it.

    The modules :mod:`adcam.evaluation.masks`, ``boxes`` and ``pictures`` hold those there are.
    """

    step: str
    """The name under which its time is recorded."""

    @property
    def choices(self) -> Sequence[MaskChoice]:
        """The masks that it asks an image for, where it wants the maps of their methods."""
        ...

    def wants(self, index: int) -> Collection[str]:
        """Name the methods whose maps of an image are needed; none leaves the image out."""
        ...

    def reset(self) -> None:
        """Forget everything that was counted."""
        ...

    def process(self, image: MappedImage) -> None:
        """Count one image."""
        ...

    def merge(self, other: Any) -> None:
        """Add what another instance counted on other images, earlier or later ones."""
        ...


@dataclass(frozen=True)
class EvaluationTimes:
    """Where the time of an evaluation went.

    Attributes:
        seconds: Time by step, summed over threads and processes: ``read``, ``network``,
            ``methods`` and the steps of the evaluators.
        total: Time by the clock on the wall.
        num_processes: The number of processes that worked on images.
    """

    seconds: Mapping[str, float]
    total: float
    num_processes: int


def evaluate(
    images: ImageDataset,
    specs: Sequence[MethodSpec],
    evaluators: Sequence[Evaluator],
    classifiers: Mapping[str, Classifier],
    *,
    targets: MapTargets | None = None,
    options: LoopOptions | None = None,
) -> EvaluationTimes:
    """Let evaluators count the maps of every image by every method.

    Args:
        images: The images with labels and ground truth.
        specs: The methods; those of the same network and views share its passes.
        evaluators: What to count; afterwards they hold the counts of all images.
        classifiers: The networks by name.
        targets: Which maps to make besides those of the labelled classes.
        options: Device, type, worker processes and progress.

    Raises:
        AdcamError: An image cannot be read, a network is not there or does not know a class, or
            the process that had an image was killed.
    """
    start = time.perf_counter()
    options = options or LoopOptions()
    device = resolve_device(options.device)
    mapper = ImageMapper(
        specs,
        classifiers,
        images.class_set,
        targets or MapTargets(),
        device=device,
        dtype=options.dtype,
    )
    indices = [i for i in range(len(images)) if _wanted(evaluators, i)]
    workers = options.workers if len(indices) > INLINE_LIMIT else 0
    run = _run_whole if device.type == "cpu" else partial(_run_split, batch_size=BATCH_SIZE)
    seconds: Counter[str] = Counter()
    # Whatever ends the loop ends the workers.
    with closing(run(_Job(images, mapper, evaluators), indices, workers)) as counted:
        done: Iterable[Any] = _merge(counted, evaluators, seconds)
        if options.progress is not None:
            done = options.progress(done, f"score {images.split}", len(indices))
        for _ in done:
            pass
    return EvaluationTimes(dict(seconds), time.perf_counter() - start, max(workers, 1))


def default_workers(device: str | torch.device | None = None) -> int:
    """Return the number of worker processes that suits this machine.

    On a CPU it is the number of processors, or 0 if there is one; with a GPU a processor is left
    for the process that feeds it.

    Args:
        device: The device that the networks run on; by default a GPU if there is one.
    """
    available = num_processors() - (resolve_device(device).type != "cpu")
    return min(available, MAX_WORKERS) if num_processors() > 1 else 0


def start_loop_early(options: LoopOptions, num_images: int) -> None:
    """Let the workers of a loop get ready while this process loads the networks.

    Args:
        options: How the loop will compute.
        num_images: How many images it will go through.
    """
    if num_images > INLINE_LIMIT:
        start_ahead(str(resolve_device(options.device)), options.workers, __name__)


@dataclass
class _Counted:
    """What copies of the evaluators counted on a few images."""

    evaluators: Sequence[Evaluator]
    num_images: int
    seconds: Counter[str]


class _Job:
    """Images, networks and empty evaluators; a worker process gets it once."""

    def __init__(
        self, images: ImageDataset, mapper: ImageMapper, evaluators: Sequence[Evaluator]
    ) -> None:
        self.images = images
        self.mapper = mapper
        self.evaluators = copy.deepcopy(list(evaluators))
        for evaluator in self.evaluators:
            evaluator.reset()

    def find_sizes(self, index: int) -> Hashable:
        """Find what tells whether images share passes, by the head of the file, if it has one."""
        names = _wanted(self.evaluators, index)
        return find_unread(lambda: self.mapper.find_sizes(self.images.read_hw(index), names))

    def read(self, index: int) -> Wanted:
        """Read an image with its ground truth, and ask which maps the evaluators want of it."""
        seconds: Counter[str] = Counter()
        with timed(seconds, "read"):
            sample = self.images[index]
        choices = frozenset(
            choice
            for evaluator in self.evaluators
            if evaluator.choices and evaluator.wants(index)
            for choice in evaluator.choices
        )
        return Wanted(index, sample, _wanted(self.evaluators, index), seconds, choices)

    def prepare(self, index: int) -> Prepared:
        """As :meth:`read`, and resize the image for the networks."""
        image = self.read(index)
        with timed(image.seconds, "read"):
            return self.mapper.prepare(image)

    def map_and_count(self, indices: Sequence[int]) -> _Counted:
        """Read, map and count images, one after the other."""
        images = (self.mapper.map_batch([self.read(index)])[0] for index in indices)
        return _count(images, self.evaluators)


def _count(images: Iterable[MappedImage], evaluators: Sequence[Evaluator]) -> _Counted:
    """Count images on copies of empty evaluators."""
    counted = _Counted(copy.deepcopy(evaluators), 0, Counter())
    for image in images:
        counted.num_images += 1
        counted.seconds.update(image.seconds)
        for evaluator in counted.evaluators:
            if evaluator.wants(image.index):
                with timed(counted.seconds, evaluator.step):
                    evaluator.process(image)
    return counted


def _merge(
    counted: Iterable[_Counted], evaluators: Sequence[Evaluator], seconds: Counter[str]
) -> Iterator[None]:
    """Add up what was counted, and yield once for each image."""
    for part in counted:
        for evaluator, other in zip(evaluators, part.evaluators, strict=True):
            evaluator.merge(other)
        seconds.update(part.seconds)
        yield from itertools.repeat(None, part.num_images)


def _wanted(evaluators: Iterable[Evaluator], index: int) -> set[str]:
    return {name for evaluator in evaluators for name in evaluator.wants(index)}


def _run_whole(job: _Job, indices: Sequence[int], workers: int) -> Generator[_Counted, None, None]:
    """Do all of an image in one process: this one, or one of the workers."""
    windows = [indices[i : i + _WINDOW] for i in range(0, len(indices), _WINDOW)]
    records = job.images.records
    yield from _run(job.map_and_count, windows, workers, lambda index: records[index].img_id)


def _run_split(
    job: _Job, indices: Sequence[int], workers: int, batch_size: int = 1
) -> Generator[_Counted, None, None]:
    """Read and resize in threads, run the networks in lanes, and count in the workers.

    On a GPU, images of equal input sizes share its passes and the CRFs of their masks, found as
    ``adcam generate`` finds them: results depend on the data, not on how the work is spread.
    """
    count = partial(_count, evaluators=job.evaluators)
    with (
        quick_turns(),
        closing(
            read_in_groups(indices, job.find_sizes, job.prepare, batch_size=batch_size)
        ) as read,
        closing(job.mapper.map_ahead(read, batch_size=batch_size)) as mapped,
    ):
        windows = ([one] for batch in mapped for one in batch)
        yield from _run(count, windows, workers, lambda image: image.sample.img_id, meanwhile=count)


def _run(
    count: Callable[[Sequence[T]], _Counted],
    windows: Iterable[Sequence[T]],
    workers: int,
    id_of: Callable[[T], str],
    meanwhile: Callable[[Sequence[T]], _Counted] | None = None,
) -> Generator[_Counted, None, None]:
    """Count window by window, in this process or in the workers.

    With ``meanwhile``, threads of this process count until the workers have started.
    """

    def on_crash(window: Sequence[T], crash: WorkerCrash, retry: object) -> NoReturn:
        img_ids = ", ".join(repr(id_of(item)) for item in window)
        raise AdcamError(
            f"an image could not be evaluated, one of {img_ids}: {crash}. If memory was short, "
            "try fewer workers"
        ) from crash

    with one_thread(), ExitStack() as stack:
        submit = submit_inline(count)
        if workers:
            # Without `meanwhile` the workers run the networks, and nothing goes on until they do.
            modules = [NETWORK] if meanwhile is None else []
            pool = WorkerPool(
                count, workers, on_crash=on_crash, meanwhile=meanwhile, modules=modules
            )
            submit = stack.enter_context(pool).submit
        yield from run_ahead(submit, windows, max_ahead=max(2 * workers, 1))
