"""Network, methods and masks of many batches on one device, never waited for while it could work.

Four lanes, each a thread that fills a stream of the GPU: one copies the pixels of a batch there,
one runs the network, one makes the maps of classes that were looked for in the network's scores,
one makes the masks. A lane begins where an event says that the lane before has come to, so that the
GPU copies one batch, sees another and makes masks of a third, while this process already prepares
the next. Two threads wait: that of the maps for scores, while the GPU sees the next batch, and the
caller's for what is on its way back. Where classes are given, maps follow the network in its own
lane. On a CPU the lanes are threads and nothing else, by which all of this is tested.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from adcam.cams import Method
from adcam.labeling.executor import run_ahead, submit_inline
from adcam.labeling.graphs import GraphCache
from adcam.labeling.map_maker import Forward, MapMaker, Passes
from adcam.labeling.mask_maker import MaskMaker
from adcam.labeling.steps import is_of_image
from adcam.labeling.transfer import find_stream, send_back, send_bytes
from adcam.structures import ClassMaps, PseudoMask

Retry: TypeAlias = Callable[["Batch", bool], Any]
"""What becomes of a batch that failed, and whether that was for lack of memory."""

AHEAD = 2
"""Batches in a lane, the one at work included."""


class Lane:
    """A stream of a GPU, and a thread that fills it.

    Its work begins when all is done that the stream of who makes it has got so far.

    Args:
        device: The device; a CPU has no streams.
        name: What traces call its work.
        beside: The name of a lane whose stream this one fills instead of one of its own, so that
            each may free what both read.
    """

    def __init__(self, device: torch.device, name: str, *, beside: str | None = None) -> None:
        self._name = name
        is_gpu = device.type == "cuda"
        self._stream = find_stream(device, beside or name) if is_gpu else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._thread = ThreadPoolExecutor(1)

    def submit(self, function: Any, item: Any) -> Future[Any]:
        """Call a function in the thread, with its work in the stream."""
        return self._thread.submit(self._call, function, item)

    def close(self) -> None:
        """End the thread; what it has not begun is given up.

        What the GPU has got is waited for: who stops in the middle lets go of what it still reads.
        """
        self._thread.shutdown(cancel_futures=True)
        if self._stream is not None:
            self._stream.synchronize()

    def _call(self, function: Any, item: Any) -> Any:
        # Without a stream the one of the thread stays; the name is for traces.
        with torch.cuda.stream(self._stream), torch.profiler.record_function(self._name):
            return function(item)


@dataclass(frozen=True)
class MaskOrder:
    """Masks that are wanted.

    Attributes:
        maker: What makes them.
        method: The place of the method among those of the batch.
        images: The places of the images.
    """

    maker: MaskMaker
    method: int
    images: Sequence[int]


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of equal input sizes, those of equal sizes best in a row, and what is wanted of them.

    Attributes:
        origin: What the caller knows the batch by.
        imgs: The images, RGB uint8 (H, W, 3).
        inputs: Of each image the pixels at every scale, uint8 (3, h, w).
        maker: The network and its views.
        forward: What runs the network.
        methods: Those whose maps are wanted.
        choose: From the place of an image and its class probabilities (C,) to its classes.
        needs_scores: Whether ``choose`` looks at the probabilities.
        orders: The masks that are made where the maps are.
        wants_maps: Whether the maps of each image come back.
        map_hw: Height and width of the maps; by default those of each image.
        data_ids: The data set's id of each class of the network, where it has ids of its own. What
            comes back is in their order and goes by them; what ``choose`` returns does not.
    """

    origin: Any
    imgs: Sequence[np.ndarray]
    inputs: Sequence[Sequence[Tensor]]
    maker: MapMaker
    forward: Forward
    methods: Sequence[Method]
    choose: Callable[[int, np.ndarray], Iterable[int]]
    needs_scores: bool
    orders: Sequence[MaskOrder]
    wants_maps: Sequence[bool]
    map_hw: tuple[int, int] | None = None
    data_ids: Mapping[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """What was found of a batch, on the host.

    Attributes:
        batch: The batch.
        class_ids: The classes of each image, ascending.
        scores: The class probabilities, float32 (B, C).
        maps: The maps (K, H, W) of each image by each method; ``None`` where they are not wanted.
        masks: Of each order, mask and threshold by the place of the image; those of images without
            a class are left out.
        seconds: What network, methods and masks took this process for each image.
    """

    batch: Batch
    class_ids: Sequence[tuple[int, ...]]
    scores: np.ndarray
    maps: Sequence[Sequence[np.ndarray | None]]
    masks: Sequence[dict[int, tuple[np.ndarray, float]]]
    seconds: tuple[float, float, float]

    def make_mask(self, order: int, place: int) -> PseudoMask:
        """Return the mask of an image, at its size.

        Args:
            order: The place of the order.
            place: The place of the image.

        Raises:
            AdcamError: The maps were not finite.
        """
        maker, img = self.batch.orders[order].maker, self.batch.imgs[place]
        hw = (img.shape[0], img.shape[1])
        if place in self.masks[order]:
            return maker.describe(*self.masks[order][place], hw)
        # No class: background, by the steps for one image.
        no_maps = ClassMaps((), np.zeros((0, *hw), dtype=np.float32))
        return maker(no_maps, np.zeros((*hw, 3), dtype=np.uint8), hw)


@dataclass(frozen=True, eq=False)
class _OnDevice:
    """A batch in the lanes.

    It is kept until all is done, since what another lane reads must not be freed in the one that
    made it.

    Attributes:
        batch: The batch.
        mark: Says when all of this is there.
        inputs: The images at each scale, uint8 (B, 3, h, w).
        pixels: The images themselves, RGB uint8 (H, W, 3) each.
        seconds: What the steps so far took this process.
    """

    batch: Batch
    mark: torch.cuda.Event | None
    inputs: tuple[Tensor, ...]
    pixels: tuple[Tensor, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the network says; it is let go of in the stream that it was made in.

    Attributes:
        source: The batch.
        mark: Says when the scores are there, if they are waited for.
        passes: What the methods read.
        scores: The class probabilities, (B, C), on the host when the GPU has come that far.
        seconds: What the steps so far took this process.
    """

    source: _OnDevice
    mark: torch.cuda.Event | None
    passes: Passes
    scores: Tensor
    seconds: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Mapped:
    """The maps of a batch.

    Attributes:
        source: The batch.
        mark: Says when all of this is there.
        class_ids: The classes of each image.
        scores: As of :class:`_Seen`.
        maps: The maps (K, H, W) of each image by each method.
        seconds: What the steps so far took this process.
    """

    source: _OnDevice
    mark: torch.cuda.Event | None
    class_ids: tuple[tuple[int, ...], ...]
    scores: Tensor
    maps: Sequence[Sequence[Tensor]]
    seconds: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Returning:
    """What is on its way back to the host.

    Attributes:
        source: The maps on the device.
        mark: Says when all of this is there.
        maps: The maps of each image by each method; ``None`` where they are not wanted.
        masks: Of each order the masks of the images with a class, uint8, one after the other, and
            their thresholds.
        seconds: What all steps took this process.
    """

    source: _Mapped
    mark: torch.cuda.Event | None
    maps: Sequence[Sequence[Tensor | None]]
    masks: Sequence[tuple[Tensor, Tensor]]
    seconds: tuple[float, ...]


Step: TypeAlias = tuple[str, Callable[[Any], Any], type]
"""The name of a lane, what it does, and what with; it lets everything else pass."""


class Lanes:
    """Network, methods and masks of batches on one device.

    Args:
        device: The device.
        retry: What becomes of a batch that failed for a reason of its own. It is called in the lane
            where that happened, and its result passes the others.
    """

    def __init__(self, device: torch.device, retry: Retry) -> None:
        self._device = device
        self._retry = retry

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is done with a batch, lane by lane."""
        return (
            ("upload", self._upload, Batch),
            ("network", self._see, _OnDevice),
            ("maps", self._map, _Seen),
            ("masks", self._label, _Mapped),
        )

    def run(self, items: Iterable[Any]) -> Generator[Any, None, None]:
        """Do all steps on many batches.

        Args:
            items: :class:`Batch` es, and what keeps its place among them.

        Returns:
            In order, what was found of each batch (:class:`Found`), or what ``retry`` returned of
            it; and what is no batch, as it is.
        """
        with ExitStack() as stack:
            for name, step, kind in self.steps:
                lane = Lane(self._device, name, beside="network" if name == "maps" else None)
                stack.callback(lane.close)
                submit = partial(self._submit, lane, step, kind)
                items = run_ahead(submit, items, max_ahead=AHEAD)
            for item in items:
                yield self.collect(item) if isinstance(item, _Returning) else item

    def compute(self, batch: Batch) -> Found:
        """Do all steps on one batch, here and now."""
        item: Any = batch
        for _, step, kind in self.steps:
            item = step(item) if isinstance(item, kind) else item
        return self.collect(item)

    def _submit(self, lane: Lane, step: Any, kind: type, item: Any) -> Future[Any]:
        if isinstance(item, kind):
            return lane.submit(partial(self._try, step), item)
        return submit_inline(lambda item: item)(item)

    def _try(self, step: Any, item: Any) -> Any:
        """Do a step on a batch, or what is done instead where some image fails."""
        try:
            return step(item)
        except (ValueError, MemoryError, RuntimeError) as error:
            if not is_of_image(error):
                raise
            is_short = not isinstance(error, ValueError)
        # Not while the error is handled, which keeps what the batch had in memory. What of it the
        # GPU still reads here, another lane could overwrite.
        wait_for(mark_work(self._device))
        while not isinstance(item, Batch):
            item = item.batch if isinstance(item, _OnDevice) else item.source
        return self._retry(item, is_short)

    def _upload(self, batch: Batch) -> _OnDevice:
        """Send the pixels of a batch to the device in one piece."""
        start = time.perf_counter()
        views = [*zip(*batch.inputs, strict=True)]
        shapes = [tuple(of_scale[0].movedim(0, -1).shape) for of_scale in views]
        sources = [x.movedim(0, -1) for of_scale in views for x in of_scale]
        sources += [torch.from_numpy(np.ascontiguousarray(img)) for img in batch.imgs]
        there = send_bytes(sources, self._device)
        num, offset, inputs = len(batch.imgs), 0, []
        for shape in shapes:
            end = offset + num * shape[0] * shape[1] * shape[2]
            inputs.append(there[offset:end].view(num, *shape).movedim(-1, 1))
            offset = end
        flat = there[offset:].split([img.size for img in batch.imgs])
        pixels = [x.view(img.shape) for x, img in zip(flat, batch.imgs, strict=True)]
        seconds = time.perf_counter() - start
        return _OnDevice(batch, mark_work(self._device), tuple(inputs), tuple(pixels), (seconds,))

    def _see(self, source: _OnDevice) -> _Seen | _Mapped:
        """Run the network; where that decides nothing about classes, also the methods."""
        start = time.perf_counter()
        follow(source.mark)
        batch = source.batch
        passes = batch.maker.run_batch(source.inputs, run=batch.forward)
        scores = send_back(passes.compute_probabilities())
        mark = mark_work(self._device) if batch.needs_scores else None
        if batch.needs_scores and isinstance(batch.forward, GraphCache):
            passes = passes.copy()  # the next batch overwrites what a graph returned
        seconds = (*source.seconds, time.perf_counter() - start)
        seen = _Seen(source, mark, passes, scores, seconds)
        return seen if batch.needs_scores else self._map(seen)

    def _map(self, seen: _Seen) -> _Mapped:
        """Run the methods."""
        batch = seen.source.batch
        wait_for(seen.mark)
        start = time.perf_counter()
        class_ids = tuple(
            tuple(sorted(set(batch.choose(place, probs))))
            for place, probs in enumerate(seen.scores.numpy())
        )
        hws = [batch.map_hw or (img.shape[0], img.shape[1]) for img in batch.imgs]
        maps = [
            batch.maker.compute_on_device(
                seen.passes, class_ids, seen.source.pixels, hws, method=method
            )
            for method in batch.methods
        ]
        if batch.data_ids is not None:
            renamed = [[batch.data_ids[i] for i in ids] for ids in class_ids]
            maps = [
                [_reorder(x, ids) for x, ids in zip(of_method, renamed, strict=True)]
                for of_method in maps
            ]
            class_ids = tuple(tuple(sorted(ids)) for ids in renamed)
        seconds = (*seen.seconds, time.perf_counter() - start)
        return _Mapped(seen.source, mark_work(self._device), class_ids, seen.scores, maps, seconds)

    def _label(self, mapped: _Mapped) -> _Returning:
        """Make the masks that are wanted, and send back what is."""
        start = time.perf_counter()
        follow(mapped.mark)
        batch = mapped.source.batch
        with torch.inference_mode():
            masks = [_make_masks(order, mapped) for order in batch.orders]
            maps = [
                [
                    send_back(x) if is_wanted else None
                    for x, is_wanted in zip(of_method, batch.wants_maps, strict=True)
                ]
                for of_method in mapped.maps
            ]
        mark = mark_work(self._device)
        seconds = (*mapped.seconds, time.perf_counter() - start)
        return _Returning(mapped, mark, maps, masks, seconds)

    def collect(self, returning: Any) -> Found:
        """Wait for what the last of the steps has sent on its way back."""
        wait_for(returning.mark)
        mapped = returning.source
        batch = mapped.source.batch
        maps = [[x if x is None else x.numpy() for x in of_method] for of_method in returning.maps]
        masks = [
            dict(_split_masks(order, mapped, *sent))
            for order, sent in zip(batch.orders, returning.masks, strict=True)
        ]
        upload, network, methods, making = (x / len(batch.imgs) for x in returning.seconds)
        seconds = (upload + network, methods, making)
        return Found(batch, mapped.class_ids, mapped.scores.numpy(), maps, masks, seconds)


def mark_work(device: torch.device) -> torch.cuda.Event | None:
    """Return what says when the work so far in the current stream is done; ``None`` on a CPU."""
    if device.type != "cuda":
        return None
    # Who waits for it sleeps.
    return torch.cuda.current_stream(device).record_event(torch.cuda.Event(blocking=True))


def wait_for(mark: torch.cuda.Event | None) -> None:
    """Wait until the work before a mark is done."""
    if mark is not None:
        mark.synchronize()


def cache_graphs(maker: MapMaker) -> Forward:
    """Return the pass of a network, which on a GPU is replayed for sizes that come back."""
    is_fixed = getattr(maker.network, "has_fixed_course", False)
    return GraphCache(maker.forward) if maker.device.type == "cuda" and is_fixed else maker.forward


def follow(mark: torch.cuda.Event | None) -> None:
    """Let what the current stream gets from here on begin when the work before a mark is done."""
    if mark is not None:
        mark.wait()


def _reorder(maps: Tensor, ids: Sequence[int]) -> Tensor:
    """Return maps (K, H, W) in the ascending order of their ids."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    # An index would be copied to the device, and waited for.
    return maps if order == [*range(len(ids))] else torch.stack([maps[i] for i in order])


def _labelled(order: MaskOrder, mapped: _Mapped) -> list[int]:
    """The places of the images with a class."""
    return [place for place in order.images if mapped.class_ids[place]]


def _make_masks(order: MaskOrder, mapped: _Mapped) -> tuple[Tensor, Tensor]:
    """Make masks, and send them and their thresholds back."""
    left = _labelled(order, mapped)
    masks, thresholds = order.maker.label_on_device(
        [mapped.maps[order.method][i] for i in left],
        [mapped.class_ids[i] for i in left],
        [mapped.source.pixels[i] for i in left],
    )
    flat = torch.cat([mask.flatten() for mask in masks]) if masks else thresholds
    return send_back(flat), send_back(thresholds)


def _split_masks(
    order: MaskOrder, mapped: _Mapped, flat: Tensor, thresholds: Tensor
) -> Iterable[tuple[int, tuple[np.ndarray, float]]]:
    """Yield the place, the mask and the threshold of each image with a class."""
    array, offset = flat.numpy(), 0
    for place, threshold in zip(_labelled(order, mapped), thresholds.tolist(), strict=True):
        height, width = mapped.maps[order.method][place].shape[1:]
        end = offset + height * width
        yield place, (array[offset:end].reshape(height, width), threshold)
        offset = end
