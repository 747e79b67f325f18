"""Masks and maps on disk against the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adcam.data.dataset import ImageDataset
from adcam.data.formats import read_cam_file
from adcam.data.png import read_mask
from adcam.data.voc import voc_class_set
from adcam.errors import AdcamError
from adcam.files import find_files, match_id
from adcam.labeling.maps_file import StoredMaps, load_maps
from adcam.labeling.output_folder import CONFIG_NAME, MAPS_DIR, masks_folder
from adcam.metrics.miou import (
    Average,
    MeanIoU,
    MeanIoUResult,
    PredIgnore,
    ThresholdCurve,
    name_classes,
)
from adcam.progress import track
from adcam.structures import IGNORE_INDEX, ClassSet

THRESHOLDS = tuple(round(step / 100, 2) for step in range(101))
"""Background scores of a sweep: the whole range."""

_SHOWN = 5


@dataclass(frozen=True)
class _Pairs:
    """Files to compare by image id, and truths without a prediction."""

    files: dict[str, tuple[Path, Path]]
    missing: list[str]


def evaluate_masks(
    pred_dir: str | Path,
    gt_dir: str | Path,
    *,
    ids: Sequence[str] | None = None,
    num_classes: int | None = None,
    average: Average = "union",
    pred_ignore: PredIgnore = "miss",
    allow_missing: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Score masks.

    Files are ``<id>.png``, in sub-folders too. A folder of ``adcam generate`` stands for the
    ``masks`` in it.

    Args:
        pred_dir: Predicted masks.
        gt_dir: True masks.
        ids: Images to score; ``None`` takes every true mask.
        num_classes: Number of mask values, background included. ``None`` takes it from the
            ``config.json`` of ``adcam generate``, or else counts up to the highest value in any
            mask.
        average: As for :class:`adcam.metrics.miou.MeanIoU`.
        pred_ignore: As for :class:`adcam.metrics.miou.MeanIoU`.
        allow_missing: Score what is there when predictions are missing; they are listed in the
            result and take no part in the score.
        progress: Show progress on standard error.

    Returns:
        ``miou``, ``iou_per_class``, ``precision_per_class`` and ``recall_per_class`` by class name
        (the mask value where the name is not known; classes that neither side holds are left
        out), all in percent; ``pixel_accuracy``, ``ignored_share``, ``num_images``,
        ``missing_predictions`` and ``policy``. JSON-serialisable.

    Raises:
        AdcamError: Masks are missing, two of one image differ in size, or hold values outside the
            classes.
    """
    predictions = masks_folder(pred_dir)
    pairs = _pair(predictions, Path(gt_dir), ".png", ids, allow_missing)
    classes = _read_class_names(predictions.parent)
    if num_classes is None:
        num_classes = max(classes) + 1 if classes else _count_classes(pairs)
    metric = MeanIoU(num_classes, average=average, pred_ignore=pred_ignore)
    for pred_path, gt_path in _track(pairs, "evaluate", progress):
        pred, gt = read_mask(pred_path), read_mask(gt_path)
        _check_same_hw(pred_path, pred.shape, gt_path, gt.shape)
        try:
            metric.update(pred, gt)
        except ValueError as error:
            raise AdcamError(f"{pred_path} against {gt_path}: {error}") from error
    return {**name_classes(metric.compute(), classes), "missing_predictions": pairs.missing}


def score_masks(
    images: ImageDataset, masks_dir: Path
) -> tuple[MeanIoUResult, list[tuple[float, int]]]:
    """Scores of masks on disk, and per image (mIoU, index) in ascending order."""
    num_classes = images.class_set.num_classes
    total = MeanIoU(num_classes)
    per_image = []
    for index, record in enumerate(images.records):
        truth = images.load_mask(index)
        path = masks_dir / f"{record.img_id}.png"
        if truth is None or not path.is_file():
            continue
        single = MeanIoU(num_classes)
        single.update(read_mask(path), truth)
        total.merge(single)
        if record.class_ids:
            per_image.append((single.compute().miou, index))
    return total.compute(), sorted(per_image)


def evaluate_maps(
    maps_dir: str | Path,
    gt_dir: str | Path,
    *,
    ids: Sequence[str] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    average: Literal["union", "gt_present"] = "union",
    class_set: ClassSet | None = None,
    cam_format: str = "auto",
    allow_missing: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Score stored maps at every constant background score: the threshold curve.

    Args:
        maps_dir: Maps ``<id>.npz`` of ``adcam generate --save-maps``, or the folder above them; or
            ``<id>.npy`` of another project (:mod:`adcam.data.formats`), scored at their own size.
        gt_dir: True masks ``<id>.png``.
        ids: As for :func:`evaluate_masks`.
        thresholds: Strictly ascending background scores in [0, 1]; nothing stops at a drop.
        average: As for :class:`adcam.metrics.miou.ThresholdCurve`.
        class_set: The classes of another project's maps, ``None`` for VOC's; our own name theirs.
        cam_format: Their format, one of :data:`adcam.data.formats.CAM_FORMATS` or ``"auto"``.
        allow_missing: As for :func:`evaluate_masks`.
        progress: As for :func:`evaluate_masks`.

    Returns:
        ``thresholds``, ``miou`` at each, ``best_threshold``, ``best`` (as
        :func:`evaluate_masks` returns it), ``num_images``, ``missing_predictions``, ``policy``.

    Raises:
        AdcamError: As :func:`evaluate_masks`, or maps differ in their classes.
    """
    folder = Path(maps_dir)
    folder = folder / MAPS_DIR if (folder / MAPS_DIR).is_dir() else folder
    is_ours = next(folder.rglob("*.npy"), None) is None
    other_classes = class_set or voc_class_set()
    pairs = _pair(folder, Path(gt_dir), ".npz" if is_ours else ".npy", ids, allow_missing)
    first: StoredMaps | None = None
    curve: ThresholdCurve | None = None
    for maps_path, gt_path in _track(pairs, "sweep", progress):
        stored = (
            load_maps(maps_path)
            if is_ours
            else _load_other_maps(maps_path, other_classes, cam_format)
        )
        if first is None or curve is None:
            first = stored
            num_classes = max(first.mask_values, default=0) + 1
            curve = ThresholdCurve(
                num_classes, thresholds, mask_values=first.mask_values, average=average
            )
        if (stored.classes, stored.mask_values) != (first.classes, first.mask_values):
            raise AdcamError(
                f"{maps_path} has the classes {list(stored.classes)}, other maps in {folder} have "
                f"{list(first.classes)}"
            )
        gt = read_mask(gt_path)
        _check_same_hw(maps_path, stored.ori_hw, gt_path, gt.shape)
        maps = stored.upsample()
        try:
            curve.update(maps.score_maps, maps.class_ids, gt)
        except ValueError as error:
            raise AdcamError(f"{maps_path} against {gt_path}: {error}") from error
    if first is None or curve is None:
        raise AdcamError(f"{folder}: there are no maps to score")
    result = curve.compute()
    names = {0: "background", **dict(zip(first.mask_values, first.classes, strict=True))}
    return {
        "thresholds": list(result.thresholds),
        "miou": list(result.miou),
        "best_threshold": result.best_threshold,
        "best_miou": result.best_miou,
        "best": name_classes(result.best, names),
        "num_images": len(pairs.files),
        "missing_predictions": pairs.missing,
        "policy": dict(result.policy),
    }


def _load_other_maps(path: Path, class_set: ClassSet, cam_format: str) -> StoredMaps:
    """Maps of another project, which are at image size already."""
    file = read_cam_file(path, num_fg_classes=class_set.num_fg_classes, cam_format=cam_format)
    if file.background is not None:
        raise AdcamError(
            f"{path}: probabilities after a CRF have no threshold; "
            "`adcam convert cams` makes masks of them"
        )
    height, width = file.maps.score_maps.shape[1:]
    return StoredMaps(file.maps, (height, width), class_set.classes, class_set.mask_values)


def _pair(
    pred_dir: Path, gt_dir: Path, suffix: str, ids: Sequence[str] | None, allow_missing: bool
) -> _Pairs:
    predictions, truths = find_files(pred_dir, suffix).paths, find_files(gt_dir, ".png").paths
    wanted = list(truths) if ids is None else [match_id(name, truths) for name in ids]
    if untrue := [img_id for img_id in wanted if img_id not in truths]:
        raise AdcamError(f"{gt_dir} lacks the masks of {_some(untrue)}")
    missing = [img_id for img_id in wanted if img_id not in predictions]
    if len(missing) == len(wanted):
        raise AdcamError(f"{pred_dir} holds none of the {len(wanted)} images, such as {wanted[0]}")
    if missing and not allow_missing:
        raise AdcamError(
            f"{pred_dir} lacks {len(missing)} of {len(wanted)} images: {_some(missing)}. Name the "
            "images to score with --ids, or leave these out with --allow-missing"
        )
    files = {i: (predictions[i], truths[i]) for i in wanted if i in predictions}
    return _Pairs(files, missing)


def _track(pairs: _Pairs, description: str, progress: bool) -> Any:
    files = pairs.files.values()
    return track(files, description, len(files)) if progress else files


def _read_class_names(folder: Path) -> dict[int, str]:
    """Class names by mask value as ``adcam generate`` recorded them; empty if it did not."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        return {}
    try:
        labeler = json.loads(path.read_text("utf-8"))["labeler"]
        pairs = zip(labeler["mask_values"], labeler["classes"], strict=True)
    except (ValueError, KeyError, TypeError):
        return {}
    return {0: "background", **dict(pairs)}


def _count_classes(pairs: _Pairs) -> int:
    highest = 0
    for path in (path for pair in pairs.files.values() for path in pair):
        mask = read_mask(path)
        highest = max(highest, int(mask.max(initial=0, where=mask != IGNORE_INDEX)))
    return highest + 1


def _check_same_hw(
    pred_path: Path, pred_hw: Sequence[int], gt_path: Path, gt_hw: Sequence[int]
) -> None:
    if tuple(pred_hw) != tuple(gt_hw):
        raise AdcamError(
            f"{pred_path} is of {pred_hw[0]}×{pred_hw[1]} pixels (height × width), but {gt_path} "
            f"of {gt_hw[0]}×{gt_hw[1]}"
        )


def _some(items: Sequence[str]) -> str:
    rest = f", … ({len(items) - _SHOWN} more)" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + rest
