"""The steps between decoding and writing on a GPU, which is never waited for while it could work.

Three lanes, each a thread with a stream of the GPU: one copies the pixels of a batch there, one
runs network and method, one makes the masks. A lane begins where an event says that the lane before
has come to, so that the GPU copies one batch, computes maps of another and masks of a third, while
this process already prepares the next. Only :meth:`DeviceSteps.collect` waits, for masks that are
on their way back. On a CPU the lanes are threads and nothing else, by which all of this is tested.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from adcam.errors import AdcamError
from adcam.labeling.executor import run_ahead
from adcam.labeling.graphs import GraphCache
from adcam.labeling.inputs import plan_batches
from adcam.labeling.map_maker import Forward, MapMaker
from adcam.labeling.steps import (
    NO_IMG,
    Decoded,
    Failed,
    Labeler,
    Made,
    Making,
    Mapped,
    infer_window,
    is_of_image,
    make_window,
)
from adcam.labeling.transfer import send_bytes
from adcam.structures import ClassMaps

Labelled: TypeAlias = Sequence[Mapped | Made | Failed]

_AHEAD = 2  # batches in a lane, the one at work included


class Lane:
    """A stream of a GPU, and the thread that fills it.

    Args:
        device: The device; a CPU has no streams.
        name: What traces call its work.
    """

    def __init__(self, device: torch.device, name: str) -> None:
        self._name = name
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1)

    def submit(self, function: Any, item: Any) -> Future[Any]:
        """Call a function in the thread, with its work in the stream."""
        return self._thread.submit(self._call, function, item)

    def mark(self) -> torch.cuda.Event | None:
        """Return what says when the work so far is done; ``None`` on a CPU."""
        if self._stream is None:
            return None
        return self._stream.record_event(torch.cuda.Event(blocking=True))  # who waits, sleeps

    @contextmanager
    def after(self, mark: torch.cuda.Event | None) -> Iterator[None]:
        """Let the work of the block begin when that before a mark is done."""
        if self._stream is not None and mark is not None:
            self._stream.wait_event(mark)
        yield

    def close(self) -> None:
        """End the thread; what it has not begun is given up."""
        self._thread.shutdown(cancel_futures=True)

    def _call(self, function: Any, item: Any) -> Any:
        # Without a stream the one of the thread stays; the name is for traces.
        with torch.cuda.stream(self._stream), torch.profiler.record_function(self._name):
            return function(item)


@dataclass(frozen=True, eq=False)
class _Uploaded:
    """A batch on the device.

    Attributes:
        images: The images, those of equal sizes in a row.
        batches: The images at each scale, uint8 (B, 3, h, w).
        pixels: The images themselves, RGB uint8 (H, W, 3) each.
        mark: Says when they are there.
        seconds: What it took this process.
    """

    images: tuple[Decoded, ...]
    batches: tuple[Tensor, ...]
    pixels: tuple[Tensor, ...]
    mark: torch.cuda.Event | None
    seconds: float


@dataclass(frozen=True, eq=False)
class _Inferred:
    """The maps of a batch, on the device.

    Attributes:
        source: The batch: kept until all is done, since what another lane reads must not be freed
            in the one that made it.
        class_ids: The classes of each image.
        maps: The maps (K, H, W) of each image.
        scores: The class probabilities, (B, C), on the host when ``mark`` has passed.
        mark: Says when all of this is there.
        seconds: What network and method took this process.
    """

    source: _Uploaded
    class_ids: tuple[tuple[int, ...], ...]
    maps: tuple[Tensor, ...]
    scores: Tensor
    mark: torch.cuda.Event | None
    seconds: tuple[float, float]


@dataclass(frozen=True, eq=False)
class _Returning:
    """What is on its way back to the host.

    Attributes:
        source: The batch.
        masks: The masks of the images with a class, uint8, one after the other, and
            their thresholds; ``None`` where masks are made on the CPU.
        maps: The maps of each image; ``None`` where nobody needs them.
        mark: Says when they are there.
        seconds: What the masks took this process.
    """

    source: _Inferred
    masks: tuple[Tensor, Tensor] | None
    maps: Sequence[Tensor | None]
    mark: torch.cuda.Event | None
    seconds: float


class DeviceSteps:
    """Network, method and masks of many batches on one device.

    Args:
        labeler: The network and every choice.
        job: What becomes of the class maps.
        batch_size: Most images in a batch.
    """

    def __init__(self, labeler: Labeler, job: Making, *, batch_size: int) -> None:
        self._labeler = labeler
        self._job = job
        self._batch_size = batch_size
        self._maker = labeler.map_maker
        self._device = labeler.map_maker.device
        self._forward = cache_graphs(self._maker)

    def run(self, groups: Iterable[Sequence[Decoded | Failed]]) -> Generator[Labelled, None, None]:
        """Do all steps on groups of images; each is divided into batches of equal input sizes.

        Args:
            groups: What decoding returned. Images of a group whose task is done only complete
                their batch.

        Returns:
            The results of each batch, without those of images that are done.
        """
        with ExitStack() as stack:
            lanes = [Lane(self._device, name) for name in ("upload", "network", "masks")]
            for lane in lanes:
                stack.callback(lane.close)
            items: Iterable[Any] = (batch for group in groups for batch in self._split(group))
            for lane, step in zip(lanes, (self._upload, self._infer, self._label), strict=True):
                submit = partial(lane.submit, partial(self._do, step, lane))
                items = run_ahead(submit, items, max_ahead=_AHEAD)
            for item in items:
                results = self.collect(item) if isinstance(item, _Returning) else item
                yield [result for result in results if not result.task.is_done]

    def _split(self, group: Sequence[Decoded | Failed]) -> Iterator[Sequence[Decoded | Failed]]:
        """Yield the batches of a group, and those of its images that failed."""
        if failed := [image for image in group if isinstance(image, Failed)]:
            yield failed
        decoded = [image for image in group if isinstance(image, Decoded)]
        for indices in plan_batches([image.inputs for image in decoded], self._batch_size):
            batch = sorted((decoded[i] for i in indices), key=_likeness)
            if not all(image.task.is_done for image in batch):
                yield batch

    def _do(self, step: Any, lane: Lane, item: Any) -> Any:
        """Do a step on a batch, unless a step before has done all of them or some image failed.

        What fails for a batch, for lack of memory say, goes through the steps for half of it.
        """
        if not isinstance(item, _Uploaded | _Inferred) and not isinstance(item[0], Decoded):
            return item
        try:
            return step(item, lane)
        except (ValueError, MemoryError, RuntimeError) as error:
            if not is_of_image(error):
                raise
            is_short = not isinstance(error, ValueError)
        if is_short and isinstance(self._forward, GraphCache):
            self._forward.free_memory()
        images = _images_of(item)
        mapped = infer_window(images, self._labeler, batch_size=max(len(images) // 2, 1))
        return mapped if self._job.device == "cpu" else make_window(mapped, self._job)

    def _upload(self, images: Sequence[Decoded], lane: Lane) -> _Uploaded:
        """Send the pixels of a batch to the device in one piece."""
        start = time.perf_counter()
        views = [*zip(*(image.inputs for image in images), strict=True)]
        shapes = [tuple(of_scale[0].movedim(0, -1).shape) for of_scale in views]
        sources = [x.movedim(0, -1) for of_scale in views for x in of_scale]
        sources += [torch.from_numpy(np.ascontiguousarray(image.img)) for image in images]
        there = send_bytes(sources, self._device)
        num, offset, batches = len(images), 0, []
        for shape in shapes:
            end = offset + num * shape[0] * shape[1] * shape[2]
            batches.append(there[offset:end].view(num, *shape).movedim(-1, 1))
            offset = end
        flat = there[offset:].split([image.img.size for image in images])
        pixels = [x.view(image.img.shape) for x, image in zip(flat, images, strict=True)]
        seconds = time.perf_counter() - start
        return _Uploaded(tuple(images), tuple(batches), tuple(pixels), lane.mark(), seconds)

    def _infer(self, batch: _Uploaded, lane: Lane) -> _Inferred:
        """Run network and method."""
        start = time.perf_counter()
        with lane.after(batch.mark):
            passes = self._maker.run_batch(batch.batches, run=self._forward)
            scores = passes.compute_probabilities().to("cpu", non_blocking=True)
            given = [image.task.class_ids for image in batch.images]
            if None in given:
                wait_for(lane.mark())
            class_ids = [
                self._labeler.predict_class_ids(probs) if ids is None else tuple(sorted(set(ids)))
                for ids, probs in zip(given, scores.numpy(), strict=True)
            ]
            between = time.perf_counter()
            hws = [(image.img.shape[0], image.img.shape[1]) for image in batch.images]
            maps = self._maker.compute_on_device(passes, class_ids, batch.pixels, hws)
            mark = lane.mark()
        seconds = (between - start, time.perf_counter() - between)
        return _Inferred(batch, tuple(class_ids), tuple(maps), scores, mark, seconds)

    def _label(self, batch: _Inferred, lane: Lane) -> _Returning:
        """Make the masks, where that is done on the device, and send back what is wanted."""
        start = time.perf_counter()
        with lane.after(batch.mark), torch.inference_mode():
            masks = None
            if self._job.device != "cpu":
                left = [i for i, ids in enumerate(batch.class_ids) if ids]
                made, thresholds = self._labeler.mask_maker.label_on_device(
                    [batch.maps[i] for i in left],
                    [batch.class_ids[i] for i in left],
                    [batch.source.pixels[i] for i in left],
                )
                flat = torch.cat([mask.flatten() for mask in made]) if made else thresholds
                masks = _to_host(flat), _to_host(thresholds)
            wanted = [
                masks is None or self._job.needs_maps(image.task) for image in batch.source.images
            ]
            maps = [_to_host(x) if w else None for x, w in zip(batch.maps, wanted, strict=True)]
            mark = lane.mark()
        return _Returning(batch, masks, maps, mark, time.perf_counter() - start)

    def collect(self, batch: _Returning) -> Labelled:
        """Wait for a batch, and return what is to be written or still to be made."""
        wait_for(batch.mark)
        inferred, images = batch.source, batch.source.source.images
        masks = iter(self._split_masks(batch))
        results: list[Mapped | Made | Failed] = []
        for i, image in enumerate(images):
            ids = inferred.class_ids[i]
            hw = (image.img.shape[0], image.img.shape[1])
            there = batch.maps[i]
            array = np.zeros((len(ids), 0, 0), np.float32) if there is None else there.numpy()
            maps = ClassMaps(ids, array)
            seconds = {**image.seconds, **_share(batch, len(images), self._job.step)}
            scores = inferred.scores[i].numpy()
            mapped = Mapped(image.task, image.img, image.ori_hw, maps, scores, seconds)
            if batch.masks is None:
                results.append(mapped)
                continue
            slim = replace(mapped, img=NO_IMG)
            try:
                mask = self._describe(next(masks) if ids else None, hw)
            except AdcamError as error:
                results.append(Failed(image.task, str(error), seconds))
                continue
            results.append(Made(slim, mask, seconds))
        return results

    def _split_masks(self, batch: _Returning) -> Iterator[tuple[np.ndarray, float]]:
        """Yield mask and threshold of each image with a class."""
        if batch.masks is None:
            return
        flat, thresholds = batch.masks[0].numpy(), batch.masks[1].tolist()
        offset, labelled = 0, iter(thresholds)
        for ids, image in zip(batch.source.class_ids, batch.source.source.images, strict=True):
            if ids:
                hw = image.img.shape[:2]
                end = offset + hw[0] * hw[1]
                yield flat[offset:end].reshape(hw), next(labelled)
                offset = end

    def _describe(self, found: tuple[np.ndarray, float] | None, hw: tuple[int, int]) -> Any:
        maker = self._labeler.mask_maker
        if found is None:  # no class: background, by the steps for one image
            no_maps = ClassMaps((), np.zeros((0, *hw), dtype=np.float32))
            return maker(no_maps, np.zeros((*hw, 3), dtype=np.uint8), hw)
        return maker.describe(*found)


def cache_graphs(maker: MapMaker) -> Forward:
    """Return the pass of a network, which on a GPU is replayed for sizes that come back."""
    is_fixed = getattr(maker.network, "has_fixed_course", False)
    return GraphCache(maker.forward) if maker.device.type == "cuda" and is_fixed else maker.forward


def wait_for(mark: torch.cuda.Event | None) -> None:
    """Wait until the work before a mark is done."""
    if mark is not None:
        mark.synchronize()


def _to_host(tensor: Tensor) -> Tensor:
    """Send a tensor to the host, into pinned memory, without waiting for it."""
    return tensor.to("cpu", non_blocking=True)


def _images_of(item: Any) -> Sequence[Decoded]:
    while hasattr(item, "source"):
        item = item.source
    return item.images if isinstance(item, _Uploaded) else item


def _likeness(image: Decoded) -> tuple[Any, ...]:
    """Order by which images that are computed together stand side by side."""
    return (image.img.shape, len(image.task.class_ids or ()), image.task.index)


def _share(batch: _Returning, num: int, step: str) -> dict[str, float]:
    """Seconds of each step that an image stands for."""
    network, refine = batch.source.seconds
    spent = {"network": batch.source.source.seconds + network, "refine": refine}
    return {name: x / num for name, x in {**spent, step: batch.seconds}.items()}
