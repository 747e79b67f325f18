"""Pseudo masks for many images: resumable, and never stopped by one bad image."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adcam.data.dataset import ImageDataset
from adcam.data.files import write_bytes_atomic
from adcam.data.images import ImageError
from adcam.data.png import write_mask
from adcam.pipeline.config import hash_config
from adcam.pipeline.infer import compute_scores
from adcam.pipeline.labeler import PseudoLabeler, fit_pixels
from adcam.pipeline.manifest import RunFolder, hash_bytes, hash_or_none
from adcam.pipeline.maps_file import MAPS_DTYPES, encode_maps
from adcam.pipeline.progress import track
from adcam.version import __version__

LABEL_CHOICES = ("given", "predicted")
STAGES = ("decode", "network", "refine", "mask", "write")

_READERS = 2
_READ_AHEAD = 4
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
        seconds: Per stage: ``decode`` (in threads beside the others), ``network``, ``refine``
            (method and fusion of scales), ``mask`` (background rule and CRF), ``write``; and
            ``total``, by the clock on the wall.
    """

    ok: int
    skipped: int
    failed: tuple[Failure, ...]
    seconds: Mapping[str, float]


@dataclass
class _Timer:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


@dataclass(frozen=True)
class _Decoded:
    img: np.ndarray
    ori_hw: tuple[int, int]
    seconds: float


def generate(
    images: ImageDataset,
    labeler: PseudoLabeler,
    out_dir: str | Path,
    *,
    labels: str = "given",
    save_maps: bool = False,
    maps_dtype: str = "uint8",
    overwrite: bool = False,
    progress: bool = True,
    report: Callable[[str], None] | None = None,
) -> GenerateResult:
    """Write ``masks/<id>.png`` of every image, with manifest and configuration beside them.

    Run again, it goes on where it stopped and tries failed images again
    (:mod:`adcam.pipeline.manifest`). Memory does not grow with the number of images.

    Args:
        images: The images; class ids are matched to the labeler's classes by name.
        labeler: What makes the masks.
        out_dir: Folder of this run.
        labels: ``"given"``: those of ``images``; ``"predicted"``: what the classifier finds.
        save_maps: Also write ``maps/<id>.npz`` (:mod:`adcam.pipeline.maps_file`).
        maps_dtype: ``"uint8"`` or ``"float16"``.
        overwrite: Start anew; what the folder's manifest lists is removed.
        progress: Show progress on standard error.
        report: Called with a line of text now and then.

    Returns:
        Counts, failures and seconds.

    Raises:
        ValueError: Images lack labels, a class is unknown to the labeler, or the folder holds
            another run; nothing has been written.
        OSError: The folder cannot be written to.
    """
    start = time.perf_counter()
    if labels not in LABEL_CHOICES:
        raise ValueError(f"labels must be one of {LABEL_CHOICES}, got {labels!r}")
    if maps_dtype not in MAPS_DTYPES:
        raise ValueError(f"maps_dtype must be one of {MAPS_DTYPES}, got {maps_dtype!r}")
    class_ids = _given_class_ids(images, labeler) if labels == "given" else None
    _check_labeler(labeler)
    config = {
        "adcam": __version__,
        "labels": _describe_labels(images, labeler, class_ids),
        "labeler": labeler.describe(),
        "maps_dtype": maps_dtype if save_maps else None,
    }
    folder = RunFolder(out_dir, config, overwrite=overwrite)
    hashes = {"config": hash_config(config), "weights": labeler.weights_hash}

    todo = []
    for index, record in enumerate(images.records):
        expected: dict[str, Any] = {"image": _relative(record.img_path, folder.path)}
        if class_ids is not None:
            expected["classes"] = _names(labeler, class_ids[index])
        if not folder.is_done(record.img_id, expected):
            todo.append(index)
    skipped = len(images) - len(todo)
    if skipped and report is not None:
        report(f"{skipped} of {len(images)} images are done already")

    timer = _Timer()
    failed = []
    decoded = _decode_ahead(images, todo, labeler.options.max_pixels)
    for index, image in track(decoded, "generate", len(todo)) if progress else decoded:
        record = images.records[index]
        start_image = time.perf_counter()
        entry: dict[str, Any] = {
            "id": record.img_id,
            "image": _relative(record.img_path, folder.path),
        }
        try:
            if isinstance(image, Exception):
                raise ImageError(_one_line(image)) from image
            timer.seconds["decode"] += image.seconds
            given = None if class_ids is None else class_ids[index]
            entry |= _label(
                image,
                labeler,
                given,
                mask_path=folder.mask_path(record.img_id),
                maps_path=folder.maps_path(record.img_id) if save_maps else None,
                maps_dtype=maps_dtype,
                timer=timer,
            )
        except (ValueError, MemoryError, torch.OutOfMemoryError) as error:
            failed.append(Failure(record.img_id, _one_line(error)))
            entry |= {"status": "failed", "error": _one_line(error)}
        seconds = round(time.perf_counter() - start_image, 4)
        folder.append({**entry, **hashes, "seconds": seconds})
    folder.finish(record.img_id for record in images.records)
    seconds_of = {**timer.seconds, "total": time.perf_counter() - start}
    return GenerateResult(len(todo) - len(failed), skipped, tuple(failed), seconds_of)


def _label(
    image: _Decoded,
    labeler: PseudoLabeler,
    class_ids: Sequence[int] | None,
    *,
    mask_path: Path,
    maps_path: Path | None,
    maps_dtype: str,
    timer: _Timer,
) -> dict[str, Any]:
    """Make and write the files of one image; what the manifest says of them."""
    with timer.stage("network"):
        passes = labeler.run_network(image.img)
        probabilities = compute_scores(passes)
    with timer.stage("refine"):
        present = labeler.predict_class_ids(probabilities) if class_ids is None else class_ids
        maps = labeler.compute_maps(passes, present, (image.img.shape[0], image.img.shape[1]))
    with timer.stage("mask"):
        mask = labeler.compute_mask(maps, image.img, image.ori_hw)
    with timer.stage("write"):
        write_mask(mask_path, mask.mask, labeler.class_set.palette)
        if maps_path is not None:
            data = encode_maps(maps, labeler.class_set, image.ori_hw, dtype=maps_dtype)
            write_bytes_atomic(maps_path, data)
        return {
            "status": "ok",
            "classes": _names(labeler, present),
            "labels": "predicted" if class_ids is None else "given",
            "rule": mask.rule,
            "threshold": mask.threshold,
            "chosen_on": mask.chosen_on,
            "ori_hw": list(image.ori_hw),
            "mask": hash_or_none(mask_path),
            "maps": None if maps_path is None else hash_or_none(maps_path),
        }


def _decode_ahead(
    images: ImageDataset, indices: Iterable[int], max_pixels: int
) -> Iterator[tuple[int, _Decoded | Exception]]:
    """Decode in threads, a few images ahead of the one that is used, in order."""
    waiting: deque[tuple[int, Future[_Decoded | Exception]]] = deque()
    left = iter(indices)
    with ThreadPoolExecutor(_READERS) as pool:
        while True:
            for index in itertools.islice(left, _READ_AHEAD - len(waiting)):
                waiting.append((index, pool.submit(_decode, images, index, max_pixels)))
            if not waiting:
                return
            index, future = waiting.popleft()
            yield index, future.result()


def _decode(images: ImageDataset, index: int, max_pixels: int) -> _Decoded | Exception:
    start = time.perf_counter()
    try:
        img = images.load_image(index)
        small = fit_pixels(img, max_pixels)
    except (ValueError, OSError, MemoryError) as error:
        return error
    return _Decoded(small, (img.shape[0], img.shape[1]), time.perf_counter() - start)


def _given_class_ids(images: ImageDataset, labeler: PseudoLabeler) -> list[tuple[int, ...]]:
    """Class ids of every image, as the labeler counts them."""
    missing = [record.img_id for record in images.records if record.class_ids is None]
    if missing:
        more = f", … ({len(missing) - _SHOWN} more)" if len(missing) > _SHOWN else ""
        raise ValueError(
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
