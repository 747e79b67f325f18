"""The stages an image goes through: decode, network, refine, CRF, write.

Each stage takes what the one before gave, so that :mod:`adcam.labeling.generate` can place them in
one process or in several. An image that a stage cannot handle becomes a :class:`Failed`, which the
later stages pass on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from adcam.data.images import fit_pixels, read_image
from adcam.data.png import write_mask
from adcam.files import hash_or_none, write_bytes
from adcam.labeling.maps_file import encode_maps
from adcam.labeling.mask_maker import Masking
from adcam.structures import ClassMaps, ClassSet, PseudoMask

if TYPE_CHECKING:
    from adcam.labeling.labeler import PseudoLabeler

STAGES = ("decode", "network", "refine", "crf", "write")
"""In order; ``crf`` is everything from maps to mask, with or without a CRF."""

Seconds: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class Task:
    """An image to label.

    Attributes:
        index: Its place in the data set.
        img_path: Its file.
        class_ids: Its classes, ``None`` to let the classifier decide.
        mask_path: Where its mask goes.
        maps_path: Where its maps go, ``None`` for nowhere.
        is_done: True for an image that only keeps its batch as it was: a batch computes each of
            its images in the company of the others, whose number can change the last bit.
    """

    index: int
    img_path: Path
    class_ids: tuple[int, ...] | None
    mask_path: Path
    maps_path: Path | None
    is_done: bool = False


@dataclass(frozen=True)
class Decoded:
    """An image, RGB uint8 (h, w, 3), its own size, and what the network sees of it."""

    task: Task
    img: np.ndarray
    ori_hw: tuple[int, int]
    inputs: tuple[torch.Tensor, ...]
    seconds: Seconds


@dataclass(frozen=True)
class Mapped:
    """An image with the maps (K, h, w) of its classes."""

    task: Task
    img: np.ndarray
    ori_hw: tuple[int, int]
    maps: ClassMaps
    seconds: Seconds


@dataclass(frozen=True)
class Masked:
    """An image with its mask."""

    task: Task
    ori_hw: tuple[int, int]
    maps: ClassMaps
    mask: PseudoMask
    seconds: Seconds


@dataclass(frozen=True)
class Failed:
    """An image that a stage could not handle, and why."""

    task: Task
    error: str
    seconds: Seconds


@dataclass(frozen=True)
class Finished:
    """What the manifest says of an image, and the seconds of each stage."""

    task: Task
    entry: Mapping[str, Any]
    seconds: Seconds


@dataclass(frozen=True)
class Output:
    """From maps to files: all that the last stages need, without the network.

    Attributes:
        masking: From maps to a mask.
        class_set: Names, mask values and colours.
        maps_dtype: As :func:`adcam.labeling.maps_file.encode_maps`.
    """

    masking: Masking
    class_set: ClassSet
    maps_dtype: str


def decode(task: Task, labeler: PseudoLabeler) -> Decoded | Failed:
    """Read an image, bound its size, resize it for the network."""
    start = time.perf_counter()
    try:
        img = read_image(task.img_path)
        small = fit_pixels(img, labeler.options.max_pixels)
        inputs = labeler.make_inputs(small)
    except (ValueError, OSError, MemoryError) as error:
        return Failed(task, one_line(error), {"decode": time.perf_counter() - start})
    seconds = {"decode": time.perf_counter() - start}
    return Decoded(task, small, (img.shape[0], img.shape[1]), inputs, seconds)


def infer_window(
    images: Sequence[Decoded | Failed], labeler: PseudoLabeler, *, batch_size: int
) -> list[Mapped | Failed]:
    """Network and method on a few images, those of equal input sizes together.

    Args:
        images: Of :func:`decode`.
        labeler: The network and the method.
        batch_size: Most images in a batch; each counts twice if it is also seen mirrored.

    Returns:
        In the order of ``images``, without those whose task is done.
    """
    groups: dict[tuple[torch.Size, ...], list[Decoded]] = {}
    results: list[Mapped | Failed] = []
    for image in images:
        if isinstance(image, Failed):
            results.append(image)
        else:
            groups.setdefault(tuple(x.shape for x in image.inputs), []).append(image)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            if not all(image.task.is_done for image in batch):
                results += infer_batch(batch, labeler)
    wanted = (result for result in results if not result.task.is_done)
    return sorted(wanted, key=lambda result: result.task.index)


def infer_batch(batch: Sequence[Decoded], labeler: PseudoLabeler) -> list[Mapped | Failed]:
    """Network and method on images of equal input sizes.

    What fails for a batch, for lack of memory say, is tried again with each image alone.
    """
    start = time.perf_counter()
    try:
        passes = labeler.run_batch([image.inputs for image in batch])
        probabilities = labeler.compute_batch_scores(passes, len(batch))
        between = time.perf_counter()
        class_ids = [
            labeler.predict_class_ids(probability)
            if image.task.class_ids is None
            else image.task.class_ids
            for image, probability in zip(batch, probabilities, strict=True)
        ]
        hws = [(image.img.shape[0], image.img.shape[1]) for image in batch]
        maps = labeler.compute_batch_maps(passes, class_ids, hws)
    except (ValueError, MemoryError, torch.OutOfMemoryError) as error:
        if len(batch) > 1:
            return [result for image in batch for result in infer_batch([image], labeler)]
        seconds = {**batch[0].seconds, "network": time.perf_counter() - start}
        return [Failed(batch[0].task, one_line(error), seconds)]
    spent = {
        "network": (between - start) / len(batch),
        "refine": (time.perf_counter() - between) / len(batch),
    }
    return [
        Mapped(image.task, image.img, image.ori_hw, of_image, {**image.seconds, **spent})
        for image, of_image in zip(batch, maps, strict=True)
    ]


def make_mask(image: Mapped | Failed, output: Output) -> Masked | Failed:
    """Background rule and CRF on an image."""
    if isinstance(image, Failed):
        return image
    start = time.perf_counter()
    try:
        mask = output.masking(image.maps, image.img, image.ori_hw)
    except (ValueError, MemoryError, torch.OutOfMemoryError) as error:
        seconds = {**image.seconds, "crf": time.perf_counter() - start}
        return Failed(image.task, one_line(error), seconds)
    seconds = {**image.seconds, "crf": time.perf_counter() - start}
    return Masked(image.task, image.ori_hw, image.maps, mask, seconds)


def finish(image: Mapped | Masked | Failed, output: Output) -> Finished:
    """Make, where that is not done, and write the files of an image.

    Raises:
        OSError: A file cannot be written.
    """
    if isinstance(image, Mapped):
        return finish(make_mask(image, output), output)
    if isinstance(image, Failed):
        return Finished(image.task, {"status": "failed", "error": image.error}, image.seconds)
    task, mask, start = image.task, image.mask, time.perf_counter()
    write_mask(task.mask_path, mask.mask, output.class_set.palette)
    if task.maps_path is not None:
        data = encode_maps(image.maps, output.class_set, image.ori_hw, dtype=output.maps_dtype)
        write_bytes(task.maps_path, data)
    entry = {
        "status": "ok",
        "classes": [output.class_set.classes[i] for i in image.maps.class_ids],
        "labels": "predicted" if task.class_ids is None else "given",
        "rule": mask.rule,
        "threshold": mask.threshold,
        "chosen_on": mask.chosen_on,
        "ori_hw": list(image.ori_hw),
        "mask": hash_or_none(task.mask_path),
        "maps": None if task.maps_path is None else hash_or_none(task.maps_path),
    }
    return Finished(task, entry, {**image.seconds, "write": time.perf_counter() - start})


def label_window(
    tasks: Sequence[Task], labeler: PseudoLabeler, output: Output, *, batch_size: int
) -> list[Finished]:
    """All stages, one after the other, on a few images."""
    decoded = [decode(task, labeler) for task in tasks]
    return [
        finish(image, output) for image in infer_window(decoded, labeler, batch_size=batch_size)
    ]


def one_line(error: BaseException) -> str:
    """What an error says, or its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
