"""Pseudo masks for many images: resumable, and never stopped by one bad image."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adcam.data.dataset import ImageDataset
from adcam.errors import AdcamError
from adcam.files import hash_bytes, hash_values
from adcam.labeling.executor import (
    WorkerCrash,
    WorkerPool,
    num_processors,
    one_thread,
    run_ahead,
    submit_inline,
)
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.maps_file import MAPS_DTYPES
from adcam.labeling.output_folder import RunFolder
from adcam.labeling.steps import (
    STAGES,
    Decoded,
    Failed,
    Finished,
    Mapped,
    Masked,
    Output,
    Task,
    decode,
    finish,
    infer_window,
    label_window,
    make_mask,
)
from adcam.progress import track
from adcam.version import __version__

LABEL_CHOICES = ("given", "predicted")

MAX_WORKERS = 16
"""Most processes that are started unasked: each holds torch and, on a CPU, the network."""

FEW = 16
"""Up to this many images are labelled in this process: starting others takes longer."""

_READERS = 4
_WINDOW = 4  # batches
_SHOWN = 5


@dataclass(frozen=True)
class Failure:
    """An image without a mask, and why."""

    img_id: str
    error: str


@dataclass(frozen=True)
class GenerateResult:
    """What a run did.

    Attributes:
        ok: Number of masks written.
        skipped: Number of images that an earlier run had done.
        failed: Images that have no mask, in the order of the data set.
        seconds: Per stage of :data:`adcam.labeling.steps.STAGES`, summed over threads and
            processes; and ``total``, by the clock on the wall.
        lanes: Threads or processes that each stage was spread over.
    """

    ok: int
    skipped: int
    failed: tuple[Failure, ...]
    seconds: Mapping[str, float]
    lanes: Mapping[str, int]

    @property
    def shares(self) -> dict[str, float]:
        """Share of the wall time that a stage kept its threads or processes busy, in [0, 1].

        Where the stages of one lane come to about 1 together, the run waits for them.
        """
        total = max(self.seconds["total"], 1e-9)
        return {stage: self.seconds[stage] / total / self.lanes[stage] for stage in STAGES}

    def format_times(self) -> str:
        """The stages as a table: seconds, threads or processes, share of the wall time."""
        lines = ["stage      seconds   in   share of wall time"]
        for stage, share in self.shares.items():
            lines.append(
                f"{stage:<8}{self.seconds[stage]:>10.1f}{self.lanes[stage]:>5}{share:>10.0%}"
            )
        return "\n".join([*lines, f"{'total':<8}{self.seconds['total']:>10.1f}"])

    def to_dict(self) -> dict[str, Any]:
        """Counts, failures by image id, and times, JSON-serialisable."""
        return {
            "ok": self.ok,
            "skipped": self.skipped,
            "failed": {failure.img_id: failure.error for failure in self.failed},
            "seconds": dict(self.seconds),
            "lanes": dict(self.lanes),
            "shares": self.shares,
        }


def generate(
    images: ImageDataset,
    labeler: PseudoLabeler,
    out_dir: str | Path,
    *,
    labels: str = "given",
    save_maps: bool = False,
    maps_dtype: str = "uint8",
    overwrite: bool = False,
    workers: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
    report: Callable[[str], None] | None = None,
) -> GenerateResult:
    """Write ``masks/<id>.png`` of every image, with manifest and configuration beside them.

    Run again, it goes on where it stopped and tries failed images again
    (:mod:`adcam.labeling.output_folder`). Memory does not grow with the number of images. Masks,
    maps and the order of the manifest do not depend on ``workers``.

    Args:
        images: The images; class ids are matched to the labeler's classes by name.
        labeler: What makes the masks.
        out_dir: Folder of this run.
        labels: ``"given"``: those of ``images``; ``"predicted"``: what the classifier finds.
        save_maps: Also write ``maps/<id>.npz`` (:mod:`adcam.labeling.maps_file`).
        maps_dtype: ``"uint8"`` or ``"float16"``.
        overwrite: Start anew; what the folder's manifest lists is removed.
        workers: Processes beside this one, each with one thread; 0 does everything here, one image
            after the other. With the network on the CPU, each takes whole images; with a GPU, this
            process decodes and runs the network, and they make and write the masks. More need
            more memory. A script needs ``if __name__ == "__main__":`` around it to use them.
        batch_size: Most images of equal input sizes that the network sees at once; ``None`` for 1
            on the CPU, where more gains nothing, else 8. Larger keeps a GPU busier and takes more
            of its memory.
        progress: Show progress on standard error.
        report: Called with a line of text now and then.

    Returns:
        Counts, failures and seconds.

    Raises:
        AdcamError: Images lack labels, a class is unknown to the labeler, a number is out of range,
            or the folder holds another run; nothing has been written.
        OSError: The folder cannot be written to.
    """
    start = time.perf_counter()
    on_cpu = labeler.device.type == "cpu"
    if batch_size is None:
        batch_size = 1 if on_cpu else 8
    _check_options(labels, maps_dtype, workers, batch_size)
    class_ids = _given_class_ids(images, labeler) if labels == "given" else None
    _check_labeler(labeler)
    config = {
        "adcam": __version__,
        "labels": _describe_labels(images, labeler, class_ids),
        "labeler": labeler.describe(),
        "maps_dtype": maps_dtype if save_maps else None,
        "batch_size": batch_size,
    }
    folder = RunFolder(out_dir, config, overwrite=overwrite)
    hashes = {"config": hash_values(config), "weights": labeler.weights_hash}

    done = []
    for index, record in enumerate(images.records):
        expected: dict[str, Any] = {"image": _relative(record.img_path, folder.path)}
        if class_ids is not None:
            expected["classes"] = _names(labeler, class_ids[index])
        done.append(folder.is_done(record.img_id, expected))
    skipped = sum(done)
    num_left = len(images) - skipped
    if skipped and report is not None:
        report(f"{skipped} of {len(images)} images are done already")

    tasks = (
        Task(
            index,
            record.img_path,
            None if class_ids is None else class_ids[index],
            folder.mask_path(record.img_id),
            folder.maps_path(record.img_id) if save_maps else None,
            done[index],
        )
        for index, record in enumerate(images.records)
    )
    windows = _plan_windows(tasks, batch_size)
    output = Output(labeler.masking, labeler.class_set, maps_dtype)
    if num_left <= FEW:
        workers = 0
    run = _run_whole if on_cpu or not workers else _run_split
    spent = dict.fromkeys(STAGES, 0.0)
    failed = []
    with closing(
        run(windows, labeler, output, workers=workers, batch_size=batch_size)
    ) as finished:  # whatever ends this loop ends the workers
        for item in track(finished, "generate", num_left) if progress else finished:
            record = images.records[item.task.index]
            if item.entry["status"] == "failed":
                failed.append(Failure(record.img_id, item.entry["error"]))
            for stage, seconds in item.seconds.items():
                spent[stage] += seconds
            folder.append(
                {
                    "id": record.img_id,
                    "image": _relative(record.img_path, folder.path),
                    **item.entry,
                    **hashes,
                    "seconds": round(sum(item.seconds.values()), 4),
                }
            )
    folder.finish(record.img_id for record in images.records)
    lanes = dict.fromkeys(STAGES, max(workers, 1))
    if run is _run_split:
        lanes |= {"decode": _READERS, "network": 1, "refine": 1}
        if output.masking.crf_device != "cpu":
            lanes["crf"] = 1
    total = time.perf_counter() - start
    return GenerateResult(
        num_left - len(failed), skipped, tuple(failed), {**spent, "total": total}, lanes
    )


def default_workers(labeler: PseudoLabeler) -> int:
    """Processes that make best use of this machine: its processors, less one that feeds a GPU.

    On 2 processors without a GPU, whole images in 2 processes took the least time of what was
    tried (docs/performance.md); with one processor there is nothing to gain.
    """
    if labeler.device.type != "cpu":
        return min(num_processors() - 1, MAX_WORKERS)
    return min(num_processors(), MAX_WORKERS) if num_processors() > 1 else 0


def _run_whole(
    windows: Iterable[Sequence[Task]],
    labeler: PseudoLabeler,
    output: Output,
    *,
    workers: int,
    batch_size: int,
) -> Generator[Finished, None, None]:
    """Every stage of an image in one process: this one, or one of ``workers``."""
    label = partial(label_window, labeler=labeler, output=output, batch_size=batch_size)
    if not workers:
        results = run_ahead(submit_inline(label), windows, max_ahead=1)
        yield from (item for window in results for item in window)
        return

    def on_crash(
        tasks: Sequence[Task],
        crash: WorkerCrash,
        retry: Callable[[Sequence[Task]], list[Finished]],
    ) -> list[Finished]:
        if len(tasks) == 1:
            return [_crashed(tasks[0], crash)]
        wanted = [task for task in tasks if not task.is_done]
        return [item for task in wanted for item in retry((task,))]

    with WorkerPool(label, workers, on_crash=on_crash) as pool:
        for window in run_ahead(pool.submit, windows, max_ahead=2 * workers):
            yield from window


def _run_split(
    windows: Iterable[Sequence[Task]],
    labeler: PseudoLabeler,
    output: Output,
    *,
    workers: int,
    batch_size: int,
) -> Generator[Finished, None, None]:
    """Decoding in threads, network and method in this process, the rest in ``workers``.

    A GPU is fed by one process, also by the CRF if it is to compute there. What computes on the CPU
    here stays out of the workers' way.
    """

    def on_crash(image: Mapped | Masked | Failed, crash: WorkerCrash, retry: object) -> Finished:
        return _crashed(image.task, crash)

    def read(numbered: tuple[int, Task]) -> Future[tuple[int, Decoded | Failed]]:
        window, task = numbered
        return readers.submit(lambda: (window, decode(task, labeler)))

    with (
        one_thread(),
        ThreadPoolExecutor(_READERS) as readers,
        WorkerPool(partial(finish, output=output), workers, on_crash=on_crash) as pool,
    ):
        numbered = ((n, task) for n, window in enumerate(windows) for task in window)
        decoded = run_ahead(read, numbered, max_ahead=2 * _WINDOW * batch_size)
        mapped = (
            image
            for _, window in itertools.groupby(decoded, key=lambda pair: pair[0])
            for image in infer_window([x for _, x in window], labeler, batch_size=batch_size)
        )
        left: Iterator[Mapped | Masked | Failed] = mapped
        if output.masking.crf_device != "cpu":
            left = (make_mask(image, output) for image in mapped)
        yield from run_ahead(pool.submit, left, max_ahead=2 * workers)


def _plan_windows(tasks: Iterable[Task], batch_size: int) -> Iterator[tuple[Task, ...]]:
    """The images that are looked at together for such as share their input sizes.

    With batches of one, what is left to do, image by image. Else windows of the whole data set, so
    that a run goes on with the very batches that an uninterrupted one has; those that are done
    are left out.
    """
    left = (task for task in tasks if not task.is_done) if batch_size == 1 else iter(tasks)
    size = 1 if batch_size == 1 else _WINDOW * batch_size
    while window := tuple(itertools.islice(left, size)):
        if not all(task.is_done for task in window):
            yield window


def _crashed(task: Task, crash: WorkerCrash) -> Finished:
    return Finished(task, {"status": "failed", "error": str(crash)}, {})


def _check_options(labels: str, maps_dtype: str, workers: int, batch_size: int) -> None:
    if labels not in LABEL_CHOICES:
        raise AdcamError(f"labels must be one of {LABEL_CHOICES}, got {labels!r}")
    if maps_dtype not in MAPS_DTYPES:
        raise AdcamError(f"maps_dtype must be one of {MAPS_DTYPES}, got {maps_dtype!r}")
    if workers < 0:
        raise AdcamError(f"workers must be at least 0, got {workers}")
    if batch_size < 1:
        raise AdcamError(f"batch_size must be at least 1, got {batch_size}")


def _given_class_ids(images: ImageDataset, labeler: PseudoLabeler) -> list[tuple[int, ...]]:
    """Class ids of every image, as the labeler counts them."""
    missing = [record.img_id for record in images.records if record.class_ids is None]
    if missing:
        more = f", … ({len(missing) - _SHOWN} more)" if len(missing) > _SHOWN else ""
        raise AdcamError(
            f"{len(missing)} of {len(images)} images have no labels: "
            f"{', '.join(missing[:_SHOWN])}{more}. Give them with --labels FILE.csv, or let the "
            "classifier decide with --labels predicted"
        )
    names = images.class_set.classes
    return [
        labeler.find_class_ids([names[i] for i in record.class_ids or ()])
        for record in images.records
    ]


def _describe_labels(
    images: ImageDataset, labeler: PseudoLabeler, class_ids: Sequence[Sequence[int]] | None
) -> dict[str, Any]:
    if class_ids is None:
        return {"source": "predicted"}
    table = {
        record.img_id: _names(labeler, ids)
        for record, ids in zip(images.records, class_ids, strict=True)
    }
    text = json.dumps(table, sort_keys=True)
    return {"source": "given", "images": len(table), "hash": hash_bytes(text.encode())}


def _check_labeler(labeler: PseudoLabeler) -> None:
    """One blank image, so that what fails for every image fails before anything is written."""
    labeler(np.full((32, 48, 3), 128, dtype=np.uint8), labels=labeler.class_set.classes[:1])


def _names(labeler: PseudoLabeler, class_ids: Iterable[int]) -> list[str]:
    return [labeler.class_set.classes[i] for i in class_ids]


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
