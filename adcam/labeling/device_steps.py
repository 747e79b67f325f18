"""The steps between decoding and writing on a GPU: batches of images through its lanes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from adcam.errors import AdcamError
from adcam.labeling.graphs import free_graphs
from adcam.labeling.inputs import plan_batches
from adcam.labeling.lanes import Batch, Found, Lanes, MaskOrder, cache_graphs
from adcam.labeling.steps import (
    NO_IMG,
    Decoded,
    Failed,
    Labeler,
    Made,
    Making,
    Mapped,
    infer_window,
    make_window,
)
from adcam.structures import ClassMaps

Labelled: TypeAlias = Sequence[Mapped | Made | Failed]


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
        self._forward = cache_graphs(labeler.map_maker)
        self.lanes = Lanes(labeler.map_maker.device, self._retry)

    def run(self, groups: Iterable[Sequence[Decoded | Failed]]) -> Generator[Labelled, None, None]:
        """Do all steps on groups of images; each is divided into batches of equal input sizes.

        Args:
            groups: What decoding returned. Images of a group whose task is done only complete
                their batch.

        Returns:
            The results of each batch, without those of images that are done.
        """
        items = (item for group in groups for item in self._split(group))
        with closing(self.lanes.run(items)) as done:
            for item in done:
                results = self.describe(item) if isinstance(item, Found) else item
                yield [result for result in results if not result.task.is_done]

    def _split(self, group: Sequence[Decoded | Failed]) -> Iterator[Batch | list[Failed]]:
        """Yield the batches of a group, and those of its images that failed."""
        if failed := [image for image in group if isinstance(image, Failed)]:
            yield failed
        decoded = [image for image in group if isinstance(image, Decoded)]
        for indices in plan_batches([image.inputs for image in decoded], self._batch_size):
            images = sorted((decoded[i] for i in indices), key=_likeness)
            if not all(image.task.is_done for image in images):
                yield self.plan(images)

    def plan(self, images: Sequence[Decoded]) -> Batch:
        """Say what is wanted of images of equal input sizes."""

        def choose(place: int, probs: np.ndarray) -> Sequence[int]:
            given = images[place].task.class_ids
            return self._labeler.predict_class_ids(probs) if given is None else given

        maker, on_device = self._labeler.map_maker, self._job.device != "cpu"
        mask_maker = self._labeler.mask_maker
        return Batch(
            images,
            [image.img for image in images],
            [image.inputs for image in images],
            maker,
            self._forward,
            maker.methods[:1],
            choose,
            needs_scores=any(image.task.class_ids is None for image in images),
            orders=[MaskOrder(mask_maker, 0, range(len(images)))] if on_device else [],
            wants_maps=[not on_device or self._job.needs_maps(image.task) for image in images],
        )

    def _retry(self, batch: Batch, is_short: bool) -> Labelled:
        """Do the steps on halves of a batch, which for lack of memory get that of the graphs."""
        if is_short:
            free_graphs(self._forward)
        half = max(len(batch.origin) // 2, 1)
        mapped = infer_window(batch.origin, self._labeler, batch_size=half)
        return mapped if self._job.device == "cpu" else make_window(mapped, self._job)

    def describe(self, found: Found) -> Labelled:
        """Return what of a batch is to be written or still to be made."""
        steps = ("network", "refine", self._job.step)
        spent = dict(zip(steps, found.seconds, strict=True))
        results: list[Mapped | Made | Failed] = []
        for place, image in enumerate(found.batch.origin):
            ids, there = found.class_ids[place], found.maps[0][place]
            array = np.zeros((len(ids), 0, 0), np.float32) if there is None else there
            seconds = {**image.seconds, **spent}
            mapped = Mapped(
                image.task,
                image.img,
                image.ori_hw,
                ClassMaps(ids, array),
                found.scores[place],
                seconds,
            )
            if not found.masks:
                results.append(mapped)
                continue
            try:
                mask = found.make_mask(0, place)
            except AdcamError as error:
                results.append(Failed(image.task, str(error), seconds))
                continue
            results.append(Made(replace(mapped, img=NO_IMG), mask, seconds))
        return results


def _likeness(image: Decoded) -> tuple[Any, ...]:
    """Order by which images that are computed together stand side by side."""
    return (image.img.shape, len(image.task.class_ids or ()), image.task.index)
