"""A segmentation network that turns images into masks: on a GPU, in lanes that do not wait.

There, images that the network sees at equal sizes go through it together, whatever their own sizes.
One lane copies their bytes to the GPU, one runs the network, one sends the masks back
(:mod:`adcam.labeling.lanes`). A CRF has two lanes of its own: which labels an image may have
is known only when the host has looked, and the network does not wait for that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from adcam.data.dataset import ImageDataset, Record
from adcam.errors import AdcamError
from adcam.files import hash_file, hash_values
from adcam.labeling.executor import run_ahead
from adcam.labeling.graphs import GraphCache, free_graphs
from adcam.labeling.inputs import BATCH_SIZE, find_unread, plan_groups
from adcam.labeling.lanes import AHEAD, Lane, follow, mark_work, wait_for
from adcam.labeling.output_folder import describe_image
from adcam.labeling.steps import compute_in_halves, is_of_image
from adcam.labeling.transfer import send_back, send_bytes
from adcam.masks.crf import refine, refine_batch
from adcam.ops.dense_crf import available_backends
from adcam.settings import SegmentationSettings
from adcam.structures import IGNORE_INDEX, ClassSet, Sample
from adcam.training.segmenter_file import build_network, check_heads, load_segmenter
from adcam.version import __version__

if TYPE_CHECKING:
    from adcam.seg.segmenter import Segmenter

T = TypeVar("T")

_LIKELY = 0.05
_STRETCH = 32  # images on a GPU whose masks are refined together, of any size
_BYTES_PER_PIXEL = 1500  # of what a network sees, its activations; docs/performance.md
_BYTES_PER_LABEL = 12  # and pixel: logits and probabilities, as large as the image
_MEMORY_SHARE = 4  # a batch may take one such part of the GPU's memory
_GRAPHS = 16  # for each scale; inputs and coarse logits of all take a tenth of the memory
_NOTHING = torch.empty(0)


class Predictor:
    """A network that turns samples into mask values.

    Args:
        settings: The config; its ``test`` says what the network sees and may say.
        checkpoint: The network's file.
        class_set: The classes of the network.

    Raises:
        AdcamError: The file does not fit the network.
    """

    def __init__(
        self, settings: SegmentationSettings, checkpoint: str | Path, class_set: ClassSet
    ) -> None:
        from adcam.seg.dataset import value_of_index

        self.class_set = class_set
        self._test = settings.test
        check_heads(settings, class_set)
        self._segmenter = build_network(settings, initial=False)
        load_segmenter(self._segmenter, checkpoint, class_set)
        self._segmenter.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._forward = _cache_graphs(self._segmenter)
        self._values = value_of_index(class_set)
        self._memory = _find_memory(self._segmenter.device)
        # Without kernels, the CRF is faster on the CPU.
        has_crf, reason = self._test.crf != "none", available_backends()["triton"]
        self._is_on_device = torch.cuda.is_available() and not (has_crf and reason)
        values = settings.to_dict()
        self.description = {
            "adcam": __version__,
            "labeler": {
                "kind": "segmenter",
                "checkpoint": hash_file(checkpoint),
                "model": hash_values(values["model"]),
                "classes": list(class_set.classes),
                "mask_values": list(class_set.mask_values),
                "test": {k: v for k, v in values.get("test", {}).items() if k != "split"},
            },
        }

    def describe(self, record: Record, root: str) -> dict[str, Any]:
        """Say what the mask of an image is made from: the image, and labels if it keeps to them.

        Args:
            record: The image.
            root: The folder of the mask (:func:`adcam.labeling.output_folder.describe_image`).
        """
        described: dict[str, Any] = {"image": describe_image(record, root)}
        if self._test.labels == "given" and record.class_ids is not None:
            described["classes"] = [self.class_set.classes[i] for i in record.class_ids]
        return described

    def __call__(self, sample: Sample) -> np.ndarray:
        """Mask values of a sample, uint8 (H, W).

        Raises:
            AdcamError: Its labels are to be kept to, and it has none.
        """
        prob = self._segmenter.compute_probabilities(sample.img)
        indices = self._find_indices(sample)
        if len(indices) < len(prob):
            prob = prob[indices] / prob[indices].sum(axis=0)
        if (crf := self._test.crf) != "none":
            likely = _find_likely(torch.from_numpy(prob)).numpy()
            prob, indices = prob[likely], indices[likely]
            if len(prob) > 1:
                prob = refine(prob / prob.sum(axis=0), sample.img, crf=crf)
        mask = self._values[indices[prob.argmax(axis=0)]]
        mask[prob.max(axis=0) < self._test.min_prob] = IGNORE_INDEX
        return mask

    @property
    def most_ahead(self) -> int:
        """The number of images that it is worth to read ahead."""
        return 2 * BATCH_SIZE if self._is_on_device else 1

    def plan(self, images: ImageDataset) -> Iterator[tuple[int, ...]]:
        """Yield the indices of images in groups: on a GPU, those that the network sees alike."""
        return plan_groups(
            range(len(images)),
            lambda index: find_unread(lambda: self._find_sizes(images.read_hw(index))),
            batch_size=BATCH_SIZE if self._is_on_device else 1,
        )

    def run(
        self, groups: Iterable[Sequence[tuple[T, Sample | None]]]
    ) -> Generator[tuple[T, np.ndarray | None], None, None]:
        """Predict the masks of images while others are on their way.

        Args:
            groups: Images by any name; of one without a sample, only the name is passed on. On a
                GPU, those of a group form batches of equal input sizes.

        Returns:
            Names with mask values, uint8 (H, W); ``None`` for an image that is too large for the
            memory.

        Raises:
            AdcamError: As when called.
        """
        batches: Iterable[_Batch] = (batch for group in groups for batch in self._split(group))
        with ExitStack() as stack:
            for name, size, step in self._list_steps():
                lane = Lane(self._segmenter.device, name)
                stack.callback(lane.close)
                submit = partial(lane.submit, step)
                batches = run_ahead(submit, _gather(batches, size), max_ahead=AHEAD)
            for batch in batches:
                wait_for(batch.mark)
                for image in batch.images:
                    yield image.name, None if image.sample is None else image.sent.numpy()

    def _list_steps(self) -> list[tuple[str, int, Callable[[_Batch], _Batch]]]:
        """List lanes, how many images they do something with at least, and what."""
        if not self._is_on_device:
            return [("network", 1, partial(self._do, self._predict))]
        steps = [
            ("upload", 1, partial(self._do, self._send)),
            ("network", 1, partial(self._do, self._ask)),
        ]
        if self._test.crf == "none":
            return [*steps, ("masks", 1, partial(self._do, _return))]
        refine = partial(self._do, self._refine)
        return [*steps, ("labels", 1, self._narrow), ("masks", _STRETCH, refine)]

    def _split(self, group: Sequence[tuple[Any, Sample | None]]) -> Iterator[_Batch]:
        """Yield the batches of a group, and what is only passed on."""
        images = [_Image(name, sample) for name, sample in group]
        if passed := [image for image in images if image.sample is None]:
            yield _Batch(passed)
        alike: dict[tuple[tuple[int, int], ...], list[_Image]] = {}
        for image in images:
            if image.sample is not None:
                alike.setdefault(self._find_sizes(image.sample.ori_hw), []).append(image)
        for sizes, seen in alike.items():
            seen.sort(key=lambda image: image.ori_hw)
            most = self._count_together(sizes, seen[-1].ori_hw)
            yield from (_Batch(seen[i : i + most]) for i in range(0, len(seen), most))

    def _find_sizes(self, ori_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Find the sizes at which the network sees an image."""
        return tuple(self._segmenter.views.sizes(ori_hw))

    def _count_together(self, sizes: Sequence[tuple[int, int]], ori_hw: tuple[int, int]) -> int:
        """Count the images of a batch by the size of the GPU's memory, whatever of it is free.

        So a run that goes on where it stopped has the same batches. What does not fit nevertheless
        goes in halves.
        """
        if self._memory is None:
            return BATCH_SIZE if self._is_on_device else 1
        return count_together(
            max(height * width for height, width in (*sizes, ori_hw)),
            len(self._values),
            memory=self._memory,
        )

    def _find_indices(self, sample: Sample) -> np.ndarray:
        """The labels that a sample may have: all, or background and those that are given."""
        if self._test.labels != "given":
            return np.arange(len(self._values))
        if sample.class_ids is None:
            raise AdcamError(f"image {sample.img_id!r} has no labels to keep to")
        return np.array([0, *(i + 1 for i in sample.class_ids)])

    def _do(self, step: _Step, batch: _Batch) -> _Batch:
        """Do a step on a batch when the one before is done, in halves if memory is short."""
        follow(batch.mark)
        images = compute_in_halves(batch.images, partial(self._try, step))
        return _Batch(images, mark_work(self._segmenter.device))

    def _try(self, step: _Step, images: Sequence[_Image]) -> list[_Image]:
        """Do a step on images; a single one that is too large for the memory loses its sample."""
        seen = [image for image in images if image.sample is not None]
        try:
            done = iter(step(seen) if seen else ())
        except (MemoryError, RuntimeError) as error:
            if not is_of_image(error):
                raise
            is_freed = free_graphs(self._forward)
            if len(images) > 1:
                raise
        else:
            return [image if image.sample is None else next(done) for image in images]
        # Not while the error is handled, which keeps what was computed in memory.
        return self._try(step, images) if is_freed else [replace(images[0], sample=None)]

    def _predict(self, images: Sequence[_Image]) -> list[_Image]:
        """Make masks without a GPU, or where it has no kernels for the CRF."""
        return [replace(image, sent=torch.from_numpy(self(image.seen))) for image in images]

    def _send(self, images: Sequence[_Image]) -> list[_Image]:
        """Send the pixels to the device in one piece."""
        pixels = [torch.from_numpy(np.array(image.seen.img, order="C")) for image in images]
        there = send_bytes(pixels, self._segmenter.device).split([x.numel() for x in pixels])
        flat = zip(images, there, pixels, strict=True)
        return [replace(image, pixels=x.view(like.shape)) for image, x, like in flat]

    def _ask(self, images: Sequence[_Image]) -> list[_Image]:
        """Run the network; without a CRF, its answers are masks."""
        labels = [self._find_indices(image.seen) for image in images]
        probs = self._segmenter.compute_on_device([x.pixels for x in images], self._forward)
        answers: list[_Image] = []
        for prob in probs:
            start, end = len(answers), len(answers) + len(prob)
            if self._test.labels == "given":
                parts = [self._restrict(*x) for x in zip(prob, labels[start:end], strict=True)]
            else:
                parts = [(prob, labels[start])]
            values = [x for part in parts for x in self._answer(*part)]
            answers += [
                replace(image, **x) for image, x in zip(images[start:end], values, strict=True)
            ]
        return answers

    def _restrict(self, prob: Tensor, labels: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Let the probabilities (K, H, W) of some labels be all there are: (1, k, H, W)."""
        if len(labels) < len(prob):
            prob = _take(prob, labels)
            prob = prob / prob.sum(dim=0)
        return prob[None], labels

    def _answer(self, prob: Tensor, labels: np.ndarray) -> list[dict[str, Any]]:
        """Of each image of probabilities (images, K, H, W), the mask or what a CRF needs."""
        if self._test.crf == "none":
            return [{"mask": mask} for mask in self._decide(prob, labels)]
        likely = send_back(_find_likely(prob))
        found = zip(prob, likely, strict=True)
        return [{"prob": of_image, "labels": labels, "likely": x} for of_image, x in found]

    def _narrow(self, batch: _Batch) -> _Batch:
        """Keep the likely labels of a batch, and let go of the probabilities of the others."""
        wait_for(batch.mark)  # until the host knows which these are
        narrowed = self._do(_keep_likely, batch)
        wait_for(narrowed.mark)  # until nothing reads what goes
        return narrowed

    def _refine(self, images: Sequence[_Image]) -> list[_Image]:
        """Make masks by one CRF for all images, and send them back."""
        probs = [image.prob for image in images]
        several = [i for i, prob in enumerate(probs) if len(prob) > 1]
        refined = refine_batch(
            [probs[i] / probs[i].sum(dim=0) for i in several],
            [images[i].pixels for i in several],
            crf=self._test.crf,
        )
        for i, prob in zip(several, refined, strict=True):
            probs[i] = prob
        masks = [self._decide(prob, x.labels) for prob, x in zip(probs, images, strict=True)]
        return _return([replace(x, mask=mask) for x, mask in zip(images, masks, strict=True)])

    def _decide(self, prob: Tensor, labels: np.ndarray) -> Tensor:
        """Mask values (..., H, W), uint8, by the probabilities (..., K, H, W) of labels."""
        best, winner = prob.max(dim=-3)
        values = torch.from_numpy(self._values[labels]).to(prob.device, non_blocking=True)
        return values.take(winner).masked_fill_(best < self._test.min_prob, IGNORE_INDEX)


@dataclass(frozen=True, eq=False)
class _Image:
    """An image on its way to a mask.

    What other lanes read is kept to the end: what is freed could be overwritten.

    Attributes:
        name: What the caller calls it.
        sample: What it shows; ``None`` if it is only passed on, or too large for the memory.
        pixels: RGB uint8 (H, W, 3) on the device.
        prob: The probabilities (K, H, W) of the labels that its mask may have, for a CRF.
        labels: These labels.
        likely: Which of them some pixel believes in, (K,) bool on the host once it is there.
        mask: Mask values, uint8 (H, W), on the device.
        sent: The same on the host once they are there.
    """

    name: Any
    sample: Sample | None
    pixels: Tensor = _NOTHING
    prob: Tensor = _NOTHING
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    likely: Tensor = _NOTHING
    mask: Tensor = _NOTHING
    sent: Tensor = _NOTHING

    @property
    def seen(self) -> Sample:
        """The sample of an image that is not only passed on."""
        assert self.sample is not None
        return self.sample

    @property
    def ori_hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.seen.ori_hw


@dataclass(frozen=True, eq=False)
class _Batch:
    """Images that are under way together; ``mark`` says when what they hold is there."""

    images: Sequence[_Image]
    mark: torch.cuda.Event | None = None


_Step: TypeAlias = Callable[[Sequence[_Image]], list[_Image]]


def count_together(pixels: int, num_labels: int, *, memory: int) -> int:
    """Count the images that a network may see at once: a power of two, at most 32.

    Args:
        pixels: The pixels of an image, or of its largest view if that is larger.
        num_labels: The number of its labels.
        memory: The bytes of the GPU's memory, of which a quarter is taken: graphs keep another one
            of their own, a CRF takes some, and what batches before need is not gone yet.
    """
    each = pixels * (_BYTES_PER_PIXEL + _BYTES_PER_LABEL * num_labels)
    together = BATCH_SIZE
    while together > 1 and together * each > memory // _MEMORY_SHARE:
        together //= 2
    return together


def _gather(batches: Iterable[_Batch], size: int) -> Iterator[_Batch]:
    """Join batches, which come from one lane, until they have some number of images."""
    images: list[_Image] = []
    for batch in batches:
        images += batch.images
        if len(images) >= size:
            yield _Batch(images, batch.mark)
            images = []
    if images:
        yield _Batch(images, batch.mark)


def _keep_likely(images: Sequence[_Image]) -> list[_Image]:
    """Keep the labels of each image that are likely, as the host knows."""
    kept = [np.flatnonzero(image.likely.numpy()) for image in images]
    return [
        replace(image, prob=_take(image.prob, places), labels=image.labels[places])
        for image, places in zip(images, kept, strict=True)
    ]


def _return(images: Sequence[_Image]) -> list[_Image]:
    """Send masks to the host in one piece, which is not waited for."""
    masks = [image.mask for image in images]
    flat = send_back(torch.cat([mask.flatten() for mask in masks]))
    parts = zip(images, masks, flat.split([mask.numel() for mask in masks]), strict=True)
    return [replace(image, sent=part.view(mask.shape)) for image, mask, part in parts]


def _find_memory(device: torch.device) -> int | None:
    """The bytes of a GPU's memory; ``None`` for a CPU."""
    is_gpu = device.type == "cuda"
    return torch.cuda.get_device_properties(device).total_memory if is_gpu else None


def _cache_graphs(segmenter: Segmenter) -> Callable[[Tensor], Tensor] | None:
    """What replays a network for sizes that come back; ``None`` where that cannot be."""
    if segmenter.device.type != "cuda" or not segmenter.has_fixed_course:
        return None
    return GraphCache(segmenter.run_network, most=_GRAPHS * len(segmenter.views.scales))


def _find_likely(prob: torch.Tensor) -> torch.Tensor:
    """Which labels of probabilities (..., K, H, W) a CRF gets, bool (..., K).

    Its time grows with its labels, and one that no pixel believes in never wins. A network of many
    classes that has learnt little believes in none so much.
    """
    floor = prob.amax(dim=-3).flatten(-2).amin(dim=-1, keepdim=True).clamp(max=_LIKELY)
    return prob.flatten(-2).amax(dim=-1) >= floor


def _take(prob: torch.Tensor, places: np.ndarray) -> torch.Tensor:
    """Some of the probabilities, which are not waited for."""
    return prob[torch.from_numpy(places).to(prob.device, non_blocking=True)]
