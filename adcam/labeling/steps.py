"""The steps an image goes through: decode, network, refine, then a mask or boxes, write.

Each step takes what the one before returned, so that :mod:`adcam.labeling.run` can place them in
one process or in several. What becomes of the class maps is a :class:`Job`: a mask, or boxes. An
image that a step cannot handle becomes a :class:`Failed`, which the later steps pass on.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np
import torch

from adcam.data.images import fit_hw, fit_pixels, read_image, read_image_hw
from adcam.data.packed_images import PackedImage
from adcam.errors import lacks_memory, one_line
from adcam.labeling.inputs import Resizer, find_unread, plan_batches
from adcam.structures import ClassMaps, PseudoMask

if TYPE_CHECKING:
    from adcam.labeling.labeler_options import LabelerOptions
    from adcam.labeling.map_maker import MapMaker
    from adcam.labeling.mask_maker import MaskMaker

T = TypeVar("T")
Result = TypeVar("Result")

Seconds: TypeAlias = Mapping[str, float]

_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
NO_IMG = np.zeros((0, 0, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Task:
    """An image to label.

    Attributes:
        index: Its place in the data set.
        img_id: Its id.
        img_path: Its file.
        class_ids: Its classes, ``None`` to let the classifier decide.
        is_done: True for an image that only keeps its batch as it was: a batch computes each of
            its images in the company of the others, whose number can change the last bit.
        packed: Where the image is if it is no file of its own on this machine.
        problem: Why the image cannot be labelled, known before it is read; empty if it can.
    """

    index: int
    img_id: str
    img_path: Path
    class_ids: tuple[int, ...] | None
    is_done: bool = False
    problem: str = ""
    packed: PackedImage | None = None


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image, RGB uint8 (h, w, 3), the size of its file, and its pixels at every scale."""

    task: Task
    img: np.ndarray
    ori_hw: tuple[int, int]
    inputs: tuple[torch.Tensor, ...]
    seconds: Seconds

    def __reduce__(self) -> tuple[Any, ...]:
        """Arrays in place of tensors, which take ten times as long to pickle."""
        # Pixels lie as they do in an image, their three values side by side.
        sent = [x.movedim(0, -1).contiguous().numpy() for x in self.inputs]
        return _rebuild_decoded, (self.task, self.img, self.ori_hw, sent, self.seconds)


def _rebuild_decoded(
    task: Task,
    img: np.ndarray,
    ori_hw: tuple[int, int],
    arrays: Sequence[np.ndarray],
    seconds: Seconds,
) -> Decoded:
    inputs = tuple(torch.from_numpy(array).movedim(-1, 0) for array in arrays)
    return Decoded(task, img, ori_hw, inputs, seconds)


@dataclass(frozen=True, eq=False)
class Mapped:
    """An image with the maps (K, h, w) of its classes and the probability of every class (C,)."""

    task: Task
    img: np.ndarray
    ori_hw: tuple[int, int]
    maps: ClassMaps
    scores: np.ndarray
    seconds: Seconds


@dataclass(frozen=True, eq=False)
class Made:
    """What a job made of an image, whose pixels are dropped to save memory."""

    image: Mapped
    result: Any
    seconds: Seconds

    @property
    def task(self) -> Task:
        """The image's task."""
        return self.image.task


@dataclass(frozen=True)
class Failed:
    """An image that a step could not handle, and why."""

    task: Task
    error: str
    seconds: Seconds


@dataclass(frozen=True)
class Finished:
    """What the manifest says of an image, and the seconds of each step."""

    task: Task
    entry: Mapping[str, Any]
    seconds: Seconds


class Labeler(Protocol):
    """What the steps need of a :class:`adcam.labeling.labeler.PseudoLabeler`."""

    options: LabelerOptions
    map_maker: MapMaker
    mask_maker: MaskMaker

    def predict_class_ids(self, scores: np.ndarray) -> tuple[int, ...]:
        """Return the ids of the classes that an image shows by their probabilities (C,)."""


class Making(Protocol):
    """What becomes of the class maps of an image."""

    @property
    def step(self) -> str:
        """Name of the step between maps and files, such as ``"crf"``."""

    @property
    def device(self) -> str:
        """Where that step computes: ``"cpu"``, or the device of the network, for masks."""

    def needs_maps(self, task: Task) -> bool:
        """Tell whether an image's maps are needed on the host after the result is made."""

    def make(self, image: Mapped) -> Any:
        """Make the result of an image.

        Raises:
            AdcamError: The image has none.
        """

    def make_batch(self, images: Sequence[Mapped]) -> list[Any]:
        """Make the results of several images, together where that is faster.

        Raises:
            AdcamError: One of them has none.
        """


class Job(Making, Protocol):
    """What becomes of an image once its class maps are there; it goes to other processes."""

    def find_files(self, task: Task) -> Mapping[str, Path]:
        """Find the files of an image's result, by the manifest key that holds their hash.

        Raises:
            AdcamError: The image cannot have such files; the message says why.
        """

    def write(self, image: Mapped, result: Any) -> dict[str, Any]:
        """Write the files of an image and return its manifest entry.

        Raises:
            AdcamError: The image must not be written.
            OSError: A file cannot be written.
        """


@dataclass(frozen=True)
class MaskMaking:
    """Turns class maps into masks; the maps are kept beside them.

    Attributes:
        mask_maker: Turns maps into a mask.
    """

    mask_maker: MaskMaker

    step: ClassVar[str] = "crf"  # with or without a CRF, everything from maps to mask

    @property
    def device(self) -> str:
        """Where masks are made."""
        return self.mask_maker.device

    def needs_maps(self, task: Task) -> bool:
        """Tell whether an image's maps are needed on the host: here they always are."""
        return True

    def make(self, image: Mapped) -> PseudoMask:
        """Make the mask of an image."""
        return self.mask_maker(image.maps, image.img, image.ori_hw)

    def make_batch(self, images: Sequence[Mapped]) -> list[PseudoMask]:
        """Make the masks of several images, together on a GPU."""
        return self.mask_maker.make_batch(
            [image.maps for image in images],
            [image.img for image in images],
            [image.ori_hw for image in images],
        )


def find_input_sizes(
    task: Task, *, resizer: Resizer, max_pixels: int
) -> tuple[tuple[int, int], ...] | None:
    """Find the sizes at which the network will see an image, by the head of its file.

    Returns:
        Height and width at every scale; ``None`` where there is no such file of its own.
    """
    if task.problem or task.packed is not None:
        return None
    return find_unread(lambda: resizer.find_sizes(fit_hw(read_image_hw(task.img_path), max_pixels)))


def decode(task: Task, *, resizer: Resizer, max_pixels: int) -> Decoded | Failed:
    """Read an image, bound its size, and resize it for the network."""
    if task.problem:
        return Failed(task, task.problem, {})
    start = time.perf_counter()
    try:
        img = read_image(task.img_path) if task.packed is None else task.packed.load()
        small = fit_pixels(img, max_pixels)
        inputs = resizer(small)
    except OSError as error:  # whatever the reason, the next image may be readable
        return Failed(task, one_line(error), {"decode": time.perf_counter() - start})
    except (ValueError, MemoryError, RuntimeError) as error:
        return _fail(task, error, {"decode": time.perf_counter() - start})
    seconds = {"decode": time.perf_counter() - start}
    return Decoded(task, small, (img.shape[0], img.shape[1]), inputs, seconds)


def infer_window(
    images: Sequence[Decoded | Failed], labeler: Labeler, *, batch_size: int
) -> list[Mapped | Failed]:
    """Run network and method on a few images, those of equal input sizes together.

    Args:
        images: The results of :func:`decode`.
        labeler: The network and the method.
        batch_size: Most images in a batch; each counts twice if it is also seen mirrored.

    Returns:
        In the order of ``images``, without those whose task is done.
    """
    results: list[Mapped | Failed] = [image for image in images if isinstance(image, Failed)]
    decoded = [image for image in images if isinstance(image, Decoded)]
    for indices in plan_batches([image.inputs for image in decoded], batch_size):
        batch = [decoded[i] for i in indices]
        if not all(image.task.is_done for image in batch):
            results += compute_in_halves(batch, partial(_infer_together, labeler=labeler))
    wanted = (result for result in results if not result.task.is_done)
    return sorted(wanted, key=lambda result: result.task.index)


def compute_in_halves(
    batch: Sequence[T], compute: Callable[[Sequence[T]], list[Result]]
) -> list[Result]:
    """Compute a batch; one that fails, for example because memory is short, goes in two halves.

    Args:
        batch: What is computed together.
        compute: What computes a batch. It is called again with each half of one that failed.

    Returns:
        The results in the order of ``batch``.
    """
    try:
        return compute(batch)
    except (ValueError, MemoryError, RuntimeError) as error:
        if len(batch) == 1 or not is_of_image(error):
            raise
    # Not while the error is handled, which keeps what the batch had in memory.
    half = len(batch) // 2
    return [*compute_in_halves(batch[:half], compute), *compute_in_halves(batch[half:], compute)]


def _infer_together(batch: Sequence[Decoded], labeler: Labeler) -> list[Mapped | Failed]:
    """Run network and method on images of equal input sizes; of several, an error is raised."""
    start = time.perf_counter()
    maker = labeler.map_maker
    try:
        passes = maker.run_inputs([image.inputs for image in batch])
        scores = passes.compute_scores()
        between = time.perf_counter()
        class_ids = [
            labeler.predict_class_ids(probs) if (ids := image.task.class_ids) is None else ids
            for image, probs in zip(batch, scores, strict=True)
        ]
        imgs, stays = [image.img for image in batch], labeler.mask_maker.device != "cpu"
        maps = maker.compute_maps(passes, class_ids, imgs, keep_on_device=stays)
    except (ValueError, MemoryError, RuntimeError) as error:
        if len(batch) > 1:
            raise
        seconds = {**batch[0].seconds, "network": time.perf_counter() - start}
        return [_fail(batch[0].task, error, seconds)]
    spent = {
        "network": (between - start) / len(batch),
        "refine": (time.perf_counter() - between) / len(batch),
    }
    return [
        Mapped(image.task, image.img, image.ori_hw, of_image, probs, {**image.seconds, **spent})
        for image, of_image, probs in zip(batch, maps, scores, strict=True)
    ]


def make(image: Mapped | Failed, job: Making) -> Made | Failed:
    """Do the job's own step: background rule and CRF, or boxes."""
    if isinstance(image, Failed):
        return image
    start = time.perf_counter()
    try:
        result = job.make(image)
    except (ValueError, MemoryError, RuntimeError) as error:
        return _fail(image.task, error, {**image.seconds, job.step: time.perf_counter() - start})
    seconds = {**image.seconds, job.step: time.perf_counter() - start}
    return Made(replace(image, img=NO_IMG), result, seconds)


def make_window(images: Sequence[Mapped | Failed], job: Making) -> list[Made | Failed]:
    """Do the job's own step on a few images, together unless it computes on the CPU.

    If they fail together, for example because memory is short, each image is tried alone.
    """
    mapped = [image for image in images if isinstance(image, Mapped)]
    if job.device != "cpu" and len(mapped) > 1:
        start = time.perf_counter()
        try:
            results = iter(job.make_batch(mapped))
        except (ValueError, MemoryError, RuntimeError) as error:
            if not is_of_image(error):
                raise
        else:
            spent = {job.step: (time.perf_counter() - start) / len(mapped)}
            return [
                image
                if isinstance(image, Failed)
                else Made(replace(image, img=NO_IMG), next(results), {**image.seconds, **spent})
                for image in images
            ]
    return [make(image, job) for image in images]


def finish(image: Mapped | Made | Failed, job: Job) -> Finished:
    """Make, where that is not done, and write the result of an image.

    Raises:
        OSError: A file cannot be written, for a reason that other files share.
    """
    if isinstance(image, Mapped):
        return finish(make(image, job), job)
    if isinstance(image, Failed):
        return Finished(image.task, {"status": "failed", "error": image.error}, image.seconds)
    start = time.perf_counter()
    try:
        entry = job.write(image.image, image.result)
    except (ValueError, MemoryError, RuntimeError, OSError) as error:
        return finish(_fail(image.task, error, image.seconds), job)
    return Finished(image.task, entry, {**image.seconds, "write": time.perf_counter() - start})


def work_on(
    item: Task | Mapped | Made | Failed,
    *,
    job: Job,
    resizer: Resizer,
    max_pixels: int,
) -> Any:
    """Do what processes do beside a GPU: :func:`decode` an image, or :func:`finish` one."""
    if isinstance(item, Task):
        return decode(item, resizer=resizer, max_pixels=max_pixels)
    return finish(item, job)


def label_window(
    tasks: Sequence[Task], labeler: Labeler, job: Job, *, batch_size: int
) -> list[Finished]:
    """Do all steps, one after the other, on a few images."""
    resizer, max_pixels = labeler.map_maker.resizer, labeler.options.max_pixels
    decoded = [decode(task, resizer=resizer, max_pixels=max_pixels) for task in tasks]
    images: Sequence[Mapped | Made | Failed]
    images = infer_window(decoded, labeler, batch_size=batch_size)
    if job.device != "cpu":
        images = make_window(images, job)
    return [finish(image, job) for image in images]


def describe_classes(
    image: Mapped, names: Sequence[str], thresholds: Sequence[float]
) -> dict[str, Any]:
    """Describe the classes of an image for its manifest entry.

    Args:
        image: The image with the maps of its classes.
        names: The names of all classes.
        thresholds: The probability from which each class counts as found.

    Returns:
        ``classes`` and ``labels``, and where the classifier found no class a ``note`` that says so.
    """
    predicted = image.task.class_ids is None
    described: dict[str, Any] = {
        "classes": [names[i] for i in image.maps.class_ids],
        "labels": "predicted" if predicted else "given",
    }
    if predicted and not image.maps.class_ids:
        if len(set(thresholds)) == 1:
            needed, best = f"at least {thresholds[0]:g}; the highest", int(image.scores.argmax())
        else:
            best = int((image.scores / np.maximum(thresholds, 1e-9)).argmax())
            needed = f"at least its threshold; the nearest ({thresholds[best]:.3f})"
        described["note"] = (
            f"no class has a probability of {needed} is {names[best]} with {image.scores[best]:.3f}"
        )
    return described


def is_of_image(error: BaseException) -> bool:
    """Tell whether an error is about one image, so that the others can still be labelled.

    A lack of memory counts as one, since the next image may be smaller. Other runtime errors are
    mistakes in the program, and other system errors, such as a full disk, would meet every image.
    """
    if isinstance(error, OSError):
        return error.errno in _NAME_ERRORS
    if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
        return lacks_memory(error)
    return True


def _fail(task: Task, error: Exception, seconds: Seconds) -> Failed:
    """Return the failure of an image; what would meet every image is raised again."""
    if not is_of_image(error):
        raise error
    return Failed(task, one_line(error), seconds)
