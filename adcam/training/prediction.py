"""Using a segmentation network: scores on a split, masks of new images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adcam.data.dataset import ImageDataset
from adcam.data.images import ImageError
from adcam.data.open_images import open_images
from adcam.data.png import read_mask, write_mask
from adcam.data.sources import build_dataset, find_class_set
from adcam.errors import AdcamError
from adcam.files import hash_file, hash_values, write_json
from adcam.installation import why_not_importable
from adcam.labeling.output_folder import MASK_DIR, OutputFolder, describe_files, relative_path
from adcam.masks.crf import refine
from adcam.metrics.miou import MeanIoU, name_classes
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

_LIKELY = 0.05


def test_segmenter(
    settings: SegmentationSettings,
    checkpoint: str | Path,
    *,
    work_dir: str | Path,
    masks_out: str | Path | None = None,
) -> dict[str, Any]:
    """Score a network on ``test.split``; counts are int64 (docs/metrics.md).

    Args:
        settings: The config of the network.
        checkpoint: The file of :func:`adcam.training.segmenter.train_segmenter`.
        work_dir: ``test_<split>.json`` goes here.
        masks_out: Folder for the predicted masks, resumable as that of :func:`predict_segmenter`.

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
        map(predictor, images)
        if masks_out is None
        else write_masks(images, predictor, Path(masks_out))
    )
    table = index_of_value(images.class_set)
    metric = MeanIoU(images.class_set.num_fg_classes + 1)
    for index, mask in enumerate(track(masks, f"test {split}", len(images))):
        truth = images[index].mask
        if truth is None:
            raise AdcamError(f"image {images.records[index].img_id!r} of {split!r} has no mask")
        metric.update(table[mask], table[truth])
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
) -> dict[str, Any]:
    """Write a palette mask for every image.

    Run again, it resumes where it stopped (:mod:`adcam.labeling.output_folder`).

    Args:
        checkpoint: The file of :func:`adcam.training.segmenter.train_segmenter`.
        images: A folder, a list or one image (:func:`adcam.data.open_images.open_images`).
        out: ``masks/<id>.png``, ``config.json`` and ``manifest.jsonl`` go here.
        settings: The config of the network, for a file that does not hold it; ``test.labels`` plays
            no part.
        changes: Dotted keys and values that change the settings, e.g. ``{"test.flip": True}``.

    Returns:
        ``masks`` (the folder), ``ok``, ``failed`` (error by image id).

    Raises:
        AdcamError: There are no images, or the checkpoint does not fit.
    """
    check_mmsegmentation()
    if settings is None:
        file = read_segmenter_file(checkpoint)
        settings, class_set = file.settings, file.class_set
    else:
        class_set = find_class_set(settings.data)
    settings = settings.with_changes({**(changes or {}), "test.labels": "none"})
    found = open_images(images, class_set, labels=None, leave_out=[Path(out)])
    predictor = Predictor(settings, checkpoint, class_set)
    failed: dict[str, str] = {}
    for _ in track(write_masks(found, predictor, Path(out), failed), "predict", len(found)):
        pass
    return {
        "masks": str(Path(out) / MASK_DIR),
        "ok": len(found) - len(failed),
        "failed": failed,
    }


def check_mmsegmentation() -> None:
    """Refuse to go on without mmsegmentation.

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

    def __call__(self, sample: Sample) -> np.ndarray:
        """Mask values of a sample, uint8 (H, W).

        Raises:
            AdcamError: Its labels are to be kept to, and it has none.
        """
        prob = self._segmenter.compute_probabilities(sample.img)
        indices = np.arange(len(prob))
        if self._test.labels == "given":
            if sample.class_ids is None:
                raise AdcamError(f"image {sample.img_id!r} has no labels to keep to")
            indices = np.array([0, *(i + 1 for i in sample.class_ids)])
            prob = prob[indices] / prob[indices].sum(axis=0)
        if (crf := self._test.crf) != "none":
            # The time of a CRF grows with its labels, and one that no pixel believes in never wins.
            likely = np.flatnonzero(prob.reshape(len(prob), -1).max(axis=1) >= _LIKELY)
            prob, indices = prob[likely], indices[likely]
            if len(prob) > 1:
                prob = refine(prob / prob.sum(axis=0), sample.img, crf=crf)
        mask = self._values[indices[prob.argmax(axis=0)]]
        mask[prob.max(axis=0) < self._test.min_prob] = IGNORE_INDEX
        return mask


def write_masks(
    images: ImageDataset, predictor: Predictor, out: Path, failed: dict[str, str] | None = None
) -> Iterator[np.ndarray | None]:
    """Write the masks of all images and yield them; masks of an earlier run are read back.

    Args:
        images: The images.
        predictor: The network.
        out: The folder, resumable (:mod:`adcam.labeling.output_folder`).
        failed: Errors of images that cannot be read, filled by image id; without it, such an image
            ends the run.
    """
    root = os.path.realpath(out)
    with OutputFolder(out, predictor.description) as folder:
        for index, record in enumerate(images.records):
            path = folder.mask_path(record.img_id)
            if folder.is_done(record.img_id, {}):
                yield read_mask(path)
                continue
            entry = {"id": record.img_id, "image": relative_path(record.img_path, root)}
            try:
                sample = Sample(record.img_id, images.load_image(index), record.class_ids)
            except ImageError as error:
                if failed is None:
                    raise
                failed[record.img_id] = str(error)
                folder.append({**entry, "status": "failed", "error": str(error)})
                yield None
                continue
            mask = predictor(sample)
            write_mask(path, mask, images.class_set.palette)
            folder.append({**entry, "status": "ok", **describe_files({"mask": path})})
            yield mask
        folder.finish(record.img_id for record in images.records)
