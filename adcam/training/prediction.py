"""Using a segmentation network: scores on a split, masks of new images."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from adcam.data.dataset import ImageDataset, Record
from adcam.data.images import ImageError, check_same_hw
from adcam.data.open_images import open_images
from adcam.data.png import read_mask, write_mask
from adcam.data.sources import build_dataset, find_class_set
from adcam.errors import AdcamError, lacks_memory
from adcam.files import hash_file, hash_values, write_json
from adcam.installation import why_not_importable
from adcam.labeling.executor import run_ahead
from adcam.labeling.inputs import find_unread, plan_groups
from adcam.labeling.output_folder import MASK_DIR, OutputFolder, describe_files, describe_image
from adcam.labeling.steps import compute_in_halves
from adcam.labeling.transfer import send_bytes, to_host
from adcam.masks.crf import refine, refine_batch
from adcam.metrics.miou import MeanIoU, name_classes
from adcam.ops.dense_crf import available_backends
from adcam.progress import track
from adcam.settings import SegmentationSettings
from adcam.structures import IGNORE_INDEX, ClassSet, Sample
from adcam.training.segmenter_file import (
    build_network,
    check_heads,
    load_segmenter,
    read_segmenter_file,
)
from adcam.version import __version__

T = TypeVar("T")
U = TypeVar("U")
R = TypeVar("R")

_LIKELY = 0.05
_BATCH_SIZE = 8  # images of one size on a GPU
_STRETCH = 32  # images there whose masks are refined together, of any size
_THREADS = 4  # that read, and that write


def test_segmenter(
    settings: SegmentationSettings,
    checkpoint: str | Path,
    *,
    work_dir: str | Path,
    masks_out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Score a network on ``test.split``; counts are int64 (docs/metrics.md).

    Args:
        settings: The config of the network.
        checkpoint: The file of :func:`adcam.training.segmenter.train_segmenter`.
        work_dir: ``test_<split>.json`` goes here.
        masks_out: Folder for the predicted masks, resumable as that of :func:`predict_segmenter`.
        overwrite: Whether to start over in ``masks_out``.

    Returns:
        As :func:`adcam.evaluation.masks_on_disk.evaluate_masks`, and ``confusion`` (rows true, cols
        predicted, the last one for 255), ``classes``, ``split``, ``checkpoint`` (its hash) and
        ``test`` (the config's section). JSON-serialisable.

    Raises:
        AdcamError: The checkpoint does not fit, or files of the split are wrong.
    """
    from adcam.seg.dataset import class_names, index_of_value

    split = settings.test.split or str(settings.data.val)
    images = open_split(settings, split, labels=settings.test.labels == "given")
    if not any(record.mask_path for record in images.records):
        raise AdcamError(f"split {split!r} has no masks to score against")
    predictor = Predictor(settings, checkpoint, images.class_set)
    masks = (
        predict_all(images, predictor)
        if masks_out is None
        else write_masks(images, predictor, Path(masks_out), overwrite=overwrite)
    )
    table = index_of_value(images.class_set)
    metric = MeanIoU(images.class_set.num_fg_classes + 1)
    for index, mask in track(masks, f"test {split}", len(images)):
        metric.update(table[mask], table[read_true_mask(images, index)])
    result = metric.compute()
    names = class_names(images.class_set)
    scores = {
        **name_classes(result, dict(enumerate(names))),
        "classes": list(names),
        "confusion": result.confusion.tolist(),
        "split": split,
        "checkpoint": hash_file(checkpoint),
        "test": settings.to_dict().get("test", {}),
    }
    write_json(Path(work_dir) / f"test_{split}.json", scores)
    return scores


def predict_segmenter(
    checkpoint: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    settings: SegmentationSettings | None = None,
    changes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a palette mask for every image.

    Run again, it resumes where it stopped (:mod:`adcam.labeling.output_folder`).

    Args:
        checkpoint: The file of :func:`adcam.training.segmenter.train_segmenter`.
        images: A folder, a list or one image (:func:`adcam.data.open_images.open_images`).
        out: ``masks/<id>.png``, ``config.json`` and ``manifest.jsonl`` go here.
        settings: The config of the network, for a file that does not hold it; ``test.labels`` plays
            no part.
        changes: Dotted keys and values that change the settings, e.g. ``{"test.flip": True}``;
            ``test.labels`` cannot be ``"given"``.
        overwrite: Whether to start over in ``out``.

    Returns:
        ``masks`` (the folder), ``ok``, ``failed`` (error by image id).

    Raises:
        AdcamError: There are no images, or the checkpoint does not fit.
    """
    check_mmsegmentation()
    if (changes or {}).get("test.labels") == "given":
        raise AdcamError(
            "test.labels='given' is for `adcam segment test`; new images have no labels to keep to"
        )
    if settings is None:
        settings, class_set = read_segmenter_file(checkpoint)
    else:
        class_set = find_class_set(settings.data)
    settings = settings.with_changes({**(changes or {}), "test.labels": "none"})
    found = open_images(images, class_set, labels=None, leave_out=[Path(out)])
    predictor = Predictor(settings, checkpoint, class_set)
    failed: dict[str, str] = {}
    masks = write_masks(found, predictor, Path(out), failed, overwrite=overwrite)
    for _ in track(masks, "predict", len(found)):
        pass
    return {
        "masks": str(Path(out) / MASK_DIR),
        "ok": len(found) - len(failed),
        "failed": {x.img_id: failed[x.img_id] for x in found.records if x.img_id in failed},
    }


def check_mmsegmentation() -> None:
    """Check that mmsegmentation can be imported.

    Raises:
        AdcamError: It cannot be imported; the message says why, and what to install.
    """
    if (reason := why_not_importable("mmseg.models")) is not None:
        raise AdcamError(f"segmentation networks need mmsegmentation: {reason}")


def open_split(settings: SegmentationSettings, split: str, *, labels: bool = False) -> ImageDataset:
    """The images of a list, of which there must be some.

    Raises:
        AdcamError: The list is empty, or something in the data is wrong.
    """
    images = build_dataset(settings.data, split, labels=labels)
    if not len(images):
        raise AdcamError(f"split {split!r} is empty")
    return images


def read_true_mask(images: ImageDataset, index: int) -> np.ndarray:
    """Read a mask, but of its image only the size.

    Raises:
        AdcamError: There is no mask, or it has another size or values outside the class set.
    """
    record, mask = images.records[index], images.load_mask(index)
    if mask is None:
        raise AdcamError(f"image {record.img_id!r} of {images.split!r} has no mask")
    image = f"its image {record.img_path}"
    check_same_hw(record.mask_path, mask.shape, image, images.read_hw(index))
    return mask


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
        self._values = value_of_index(class_set)
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
        indices = self._find_indices(sample, len(prob))
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
    def stretch(self) -> int:
        """The number of samples that :meth:`predict` is best given at once."""
        return _STRETCH if self._is_on_device else 1

    def plan(self, images: ImageDataset) -> Iterator[int]:
        """Yield the indices of images so that, on a GPU, those of one size come in a row."""
        groups = plan_groups(
            range(len(images)),
            lambda index: find_unread(lambda: images.read_hw(index)),
            batch_size=min(_BATCH_SIZE, self.stretch),
        )
        return itertools.chain.from_iterable(groups)

    def predict(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """Mask values of several samples; on a GPU, those of one size together.

        Args:
            samples: The samples.

        Raises:
            AdcamError: As when called.
        """
        if not self._is_on_device:
            return [self(sample) for sample in samples]
        groups: dict[tuple[int, int], list[int]] = {}
        for index, sample in enumerate(samples):
            groups.setdefault(sample.ori_hw, []).append(index)
        masks: dict[int, torch.Tensor] = {}
        believed: dict[int, _Believed] = {}
        for group in groups.values():
            for start in range(0, len(group), _BATCH_SIZE):
                batch = group[start : start + _BATCH_SIZE]
                found = compute_in_halves([samples[i] for i in batch], self._believe)
                if self._test.crf == "none":  # the probabilities of all labels take much memory
                    masks.update(zip(batch, self._decide(found), strict=True))
                else:
                    believed.update(zip(batch, found, strict=True))
        masks.update(zip(believed, self._decide([*believed.values()]), strict=True))
        return to_host([masks[index] for index in range(len(samples))])

    def _find_indices(self, sample: Sample, num_labels: int) -> np.ndarray:
        """The labels that a sample may have: all, or background and those that are given."""
        if self._test.labels != "given":
            return np.arange(num_labels)
        if sample.class_ids is None:
            raise AdcamError(f"image {sample.img_id!r} has no labels to keep to")
        return np.array([0, *(i + 1 for i in sample.class_ids)])

    def _believe(self, samples: Sequence[Sample]) -> list[_Believed]:
        """Run the network on samples of one size, and find the labels that a mask may have."""
        imgs = [torch.from_numpy(np.array(sample.img, order="C")) for sample in samples]
        pixels = send_bytes(imgs, self._segmenter.device).view(len(imgs), *imgs[0].shape)
        probs = [*self._segmenter.compute_on_device(pixels)]
        labels = [
            self._find_indices(sample, len(prob))
            for sample, prob in zip(samples, probs, strict=True)
        ]
        for i, indices in enumerate(labels):
            if len(indices) < len(probs[i]):
                probs[i] = _take(probs[i], indices)
                probs[i] = probs[i] / probs[i].sum(dim=0)
        if self._test.crf != "none":
            likely = to_host([_find_likely(prob) for prob in probs])
            probs = [_take(p, np.flatnonzero(kept)) for p, kept in zip(probs, likely, strict=True)]
            labels = [indices[kept] for indices, kept in zip(labels, likely, strict=True)]
        return [_Believed(*of_image) for of_image in zip(probs, labels, pixels, strict=True)]

    def _decide(self, images: Sequence[_Believed]) -> list[torch.Tensor]:
        """Mask values of images, uint8 (H, W) each, on their device: one CRF for all of them."""
        probs = [image.prob for image in images]
        if (crf := self._test.crf) != "none":
            several = [i for i, prob in enumerate(probs) if len(prob) > 1]
            refined = refine_batch(
                [probs[i] / probs[i].sum(dim=0) for i in several],
                [images[i].pixels for i in several],
                crf=crf,
            )
            for i, prob in zip(several, refined, strict=True):
                probs[i] = prob
        masks = []
        for prob, image in zip(probs, images, strict=True):
            best, winner = prob.max(dim=0)
            values = torch.from_numpy(self._values[image.labels])
            mask = values.to(prob.device, non_blocking=True).take(winner)
            masks.append(mask.masked_fill_(best < self._test.min_prob, IGNORE_INDEX))
        return masks


@dataclass(frozen=True, eq=False)
class _Believed:
    """What a network believes about an image, where it is.

    Attributes:
        prob: The probabilities (K, H, W) of the labels that its mask may have.
        labels: These labels.
        pixels: The image, RGB uint8 (H, W, 3).
    """

    prob: torch.Tensor
    labels: np.ndarray
    pixels: torch.Tensor


def _find_likely(prob: torch.Tensor) -> torch.Tensor:
    """Which labels of probabilities (K, H, W) a CRF gets, bool (K,).

    Its time grows with its labels, and one that no pixel believes in never wins. A network of many
    classes that has learnt little believes in none so much.
    """
    floor = prob.amax(dim=0).min().clamp(max=_LIKELY)
    return prob.flatten(1).amax(dim=1) >= floor


def _take(prob: torch.Tensor, places: np.ndarray) -> torch.Tensor:
    """Some of the probabilities, which are not waited for."""
    return prob[torch.from_numpy(places).to(prob.device, non_blocking=True)]


def predict_all(images: ImageDataset, predictor: Predictor) -> Iterator[tuple[int, np.ndarray]]:
    """Predict the masks of all images, and keep none; yield each with its index, in any order."""

    def predict(stretch: Sequence[tuple[int, Sample]]) -> list[tuple[int, np.ndarray]]:
        indices, samples = zip(*stretch, strict=True)
        return [*zip(indices, predictor.predict(samples), strict=True)]

    def read(index: int) -> tuple[int, Sample]:
        return index, _read_sample(images, index)

    return _predict_ahead(read, predict, predictor.plan(images), predictor.stretch)


def _predict_ahead(
    read: Callable[[T], U], predict: Callable[[list[U]], list[R]], items: Iterable[T], size: int
) -> Generator[R, None, None]:
    """Read items in threads while up to ``size`` of those before are predicted; keep the order."""
    with ThreadPoolExecutor(_THREADS) as readers, ThreadPoolExecutor(1) as lane:
        ahead = run_ahead(lambda x: readers.submit(read, x), items, max_ahead=size + _THREADS)
        stretches = iter(lambda: list(itertools.islice(ahead, size)), [])
        for predicted in run_ahead(lambda x: lane.submit(predict, x), stretches, max_ahead=2):
            yield from predicted


def _read_sample(images: ImageDataset, index: int) -> Sample:
    """Read an image without its mask."""
    record = images.records[index]
    return Sample(record.img_id, images.load_image(index), record.class_ids)


def write_masks(
    images: ImageDataset,
    predictor: Predictor,
    out: Path,
    failed: dict[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Write the masks of all images and yield each with its index, in any order.

    Masks of an earlier run are read back.

    Args:
        images: The images.
        predictor: The network.
        out: The folder, resumable (:mod:`adcam.labeling.output_folder`).
        failed: Errors of images that cannot be read or are too large for the memory, filled by
            image id; without it, such an image ends the run.
        overwrite: Whether to start over.
    """
    root, records = os.path.realpath(out), images.records
    steps, size = _Steps(images, predictor), predictor.stretch
    with OutputFolder(out, predictor.description, overwrite=overwrite) as folder:
        planned = (
            _Item(
                index,
                folder.mask_path(records[index].img_id),
                folder.is_done(records[index].img_id, predictor.describe(records[index], root)),
            )
            for index in predictor.plan(images)
        )
        with (
            closing(_predict_ahead(steps.read, steps.predict, planned, size)) as predicted,
            ThreadPoolExecutor(_THREADS) as writers,
        ):
            ahead = size + _THREADS
            for item in run_ahead(
                lambda x: writers.submit(steps.write, x), predicted, max_ahead=ahead
            ):
                record = records[item.index]
                if item.error is not None:
                    if failed is None:
                        raise item.error
                    failed[record.img_id] = str(item.error)
                if not item.is_done:
                    entry = {"id": record.img_id, **predictor.describe(record, root)}
                    folder.append({**entry, **item.describe()})
                yield item.index, item.mask
        folder.finish(record.img_id for record in records)


@dataclass(frozen=True, eq=False)
class _Item:
    """An image on its way to a mask in a file.

    Attributes:
        index: The position of the image.
        path: The file of its mask.
        is_done: Whether an earlier run has made it.
        sample: The image, once it is read.
        mask: The mask, once it is there.
        error: Why the image could not be read, or its mask not be predicted.
    """

    index: int
    path: Path
    is_done: bool
    sample: Sample | None = None
    mask: np.ndarray | None = None
    error: ImageError | None = None

    def describe(self) -> dict[str, Any]:
        """Say in the manifest what became of the image."""
        if self.error is not None:
            return {"status": "failed", "error": str(self.error)}
        return {"status": "ok", **describe_files({"mask": self.path})}


@dataclass(frozen=True)
class _Steps:
    """Read, predict, write: each may be at work while the others are."""

    images: ImageDataset
    predictor: Predictor

    def read(self, item: _Item) -> _Item:
        """Read an image, or the mask of an earlier run."""
        if item.is_done:
            return replace(item, mask=read_mask(item.path))
        try:
            return replace(item, sample=_read_sample(self.images, item.index))
        except ImageError as error:
            return replace(item, error=error)

    def predict(self, items: Sequence[_Item]) -> list[_Item]:
        """Predict the masks of what was read; an image too large for the memory is that image's."""
        read = {item.index: item.sample for item in items if item.sample is not None}
        try:
            masks = dict(zip(read, self.predictor.predict([*read.values()]), strict=True))
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
        else:
            return [replace(x, mask=masks.get(x.index, x.mask), sample=None) for x in items]
        # Not while the error is handled, which keeps what was predicted in memory.
        if len(items) > 1:
            return [x for item in items for x in self.predict([item])]
        return [replace(item, sample=None, error=self._explain(item)) for item in items]

    def _explain(self, item: _Item) -> ImageError:
        height, width = (0, 0) if item.sample is None else item.sample.ori_hw
        return ImageError(
            f"{self.images.records[item.index].img_path}: there is not enough memory for its "
            f"{width}×{height} pixels; with --cfg-options test.short_side=512 the network sees "
            "images smaller"
        )

    def write(self, item: _Item) -> _Item:
        """Write a mask that is new."""
        if not item.is_done and item.mask is not None:
            write_mask(item.path, item.mask, self.images.class_set.palette)
        return item
