"""Using a segmentation network: scores on a split, masks of new images."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adcam.data.dataset import ImageDataset
from adcam.data.images import ImageError, check_same_hw
from adcam.data.open_images import open_images
from adcam.data.png import read_mask, write_mask
from adcam.data.sources import build_dataset, find_class_set
from adcam.errors import AdcamError
from adcam.files import hash_file, write_json
from adcam.installation import why_not_importable
from adcam.labeling.executor import run_ahead
from adcam.labeling.inputs import in_groups
from adcam.labeling.output_folder import MASK_DIR, OutputFolder, describe_files
from adcam.metrics.miou import MeanIoU, name_classes
from adcam.progress import track
from adcam.settings import SegmentationSettings
from adcam.structures import Sample
from adcam.training.predictor import Predictor
from adcam.training.segmenter_file import read_segmenter_file

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


def predict_all(images: ImageDataset, predictor: Predictor) -> Iterator[tuple[int, np.ndarray]]:
    """Predict the masks of all images, and keep none; yield each with its index, in any order."""
    groups = ([_Item(index) for index in group] for group in predictor.plan(images))
    for item in _predict(images, predictor, groups):
        if item.error is not None:
            raise item.error
        assert item.mask is not None
        yield item.index, item.mask


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
    with OutputFolder(out, predictor.description, overwrite=overwrite) as folder:

        def look_up(index: int) -> _Item:
            record = records[index]
            is_done = folder.is_done(record.img_id, predictor.describe(record, root))
            return _Item(index, folder.mask_path(record.img_id), is_done)

        groups = (_keep_together(map(look_up, group)) for group in predictor.plan(images))
        with (
            closing(_predict(images, predictor, groups)) as predicted,
            ThreadPoolExecutor(_THREADS) as writers,
        ):
            write, ahead = partial(_write, images), predictor.most_ahead + _THREADS
            for item in run_ahead(lambda x: writers.submit(write, x), predicted, max_ahead=ahead):
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
    """An image on its way to a mask.

    Attributes:
        index: The position of the image.
        path: The file of its mask, if it gets one.
        is_done: Whether an earlier run has made it.
        is_seen: Whether the network sees it: an image that is done is seen with those of its group
            that are not, whose number could change the last bits of what the network says.
        sample: The image, once it is read.
        mask: The mask, once it is there.
        error: Why the image could not be read, or its mask not be predicted.
    """

    index: int
    path: Path = Path()
    is_done: bool = False
    is_seen: bool = True
    sample: Sample | None = None
    mask: np.ndarray | None = None
    error: ImageError | None = None

    def describe(self) -> dict[str, Any]:
        """Say in the manifest what became of the image."""
        if self.error is not None:
            return {"status": "failed", "error": str(self.error)}
        return {"status": "ok", **describe_files({"mask": self.path})}


def _keep_together(items: Iterable[_Item]) -> list[_Item]:
    """Let the network see all of a group or none."""
    group = list(items)
    is_seen = not all(item.is_done for item in group)
    return [replace(item, is_seen=is_seen) for item in group]


def _predict(
    images: ImageDataset, predictor: Predictor, groups: Iterable[Sequence[_Item]]
) -> Generator[_Item, None, None]:
    """Read the images of each group in threads, and predict their masks."""
    with ThreadPoolExecutor(_THREADS) as readers:
        read = in_groups(
            lambda item: readers.submit(_read, images, item),
            groups,
            max_ahead=predictor.most_ahead + _THREADS,
        )
        named = ([(item, item.sample) for item in group] for group in read)
        with closing(predictor.run(named)) as predicted:
            for item, mask in predicted:
                if item.is_done or item.error is not None:
                    yield replace(item, sample=None)
                elif mask is not None:
                    yield replace(item, sample=None, mask=mask)
                else:
                    yield replace(item, sample=None, error=_explain(images, item))


def _read(images: ImageDataset, item: _Item) -> _Item:
    """Read an image without its mask, and the mask of an earlier run."""
    if item.is_done:
        item = replace(item, mask=read_mask(item.path))
    if not item.is_seen:
        return item
    try:
        record = images.records[item.index]
        sample = Sample(record.img_id, images.load_image(item.index), record.class_ids)
    except ImageError as error:
        return item if item.is_done else replace(item, error=error)
    return replace(item, sample=sample)


def _explain(images: ImageDataset, item: _Item) -> ImageError:
    """Say of an image that it is too large for the memory."""
    height, width = (0, 0) if item.sample is None else item.sample.ori_hw
    return ImageError(
        f"{images.records[item.index].img_path}: there is not enough memory for its "
        f"{width}×{height} pixels; with --cfg-options test.short_side=512 the network sees "
        "images smaller"
    )


def _write(images: ImageDataset, item: _Item) -> _Item:
    """Write a mask that is new."""
    if not item.is_done and item.mask is not None:
        write_mask(item.path, item.mask, images.class_set.palette)
    return item
