"""Masks and maps on disk against the ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from adcam.data.converted import read_converted_classes
from adcam.data.dataset import ImageDataset
from adcam.data.formats import read_cam_file
from adcam.data.images import check_same_hw
from adcam.data.png import map_values, read_mask
from adcam.data.voc import voc_class_set
from adcam.errors import AdcamError, join_some
from adcam.evaluation.masks import MaskCounts, MaskScore
from adcam.evaluation.unsupervised import UnsupervisedRules
from adcam.files import find_files, match_id, read_json, to_json
from adcam.labeling.maps_file import StoredMaps, load_maps
from adcam.labeling.output_folder import (
    CONFIG_NAME,
    maps_folder,
    masks_folder,
)
from adcam.metrics.influence import compute_image_error
from adcam.metrics.miou import Average, PredIgnore, ThresholdCurve, name_classes
from adcam.progress import track
from adcam.structures import IGNORE_INDEX, ClassSet

THRESHOLDS = tuple(round(step / 100, 2) for step in range(101))
"""The background scores that a sweep of stored maps tries: the whole range, 1 included."""


T = TypeVar("T")


def evaluate_masks(
    pred_dir: str | Path,
    gt_dir: str | Path,
    *,
    ids: Sequence[str] | None = None,
    num_classes: int | None = None,
    average: Average = "union",
    pred_ignore: PredIgnore = "miss",
    values: Mapping[int, int] | None = None,
    pred_values: Mapping[int, int] | None = None,
    allow_missing: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Score masks.

    Files are ``<id>.png``, in sub-folders too. A folder of ``adcam generate`` stands for the
    ``masks`` in it.

    Args:
        pred_dir: The folder of the predicted masks.
        gt_dir: The folder of the ground truth masks.
        ids: The images to score; ``None`` takes every mask of the ground truth.
        num_classes: The number of mask values, background included. ``None`` takes it from the
            ``config.json`` of ``adcam generate``, or else from the highest value in any mask.
        average: The classes that enter the mean, as for :class:`adcam.metrics.miou.MeanIoU`.
        pred_ignore: What a predicted 255 costs, as for :class:`adcam.metrics.miou.MeanIoU`.
        values: What values of the ground truth are read as: ``{255: 1}`` where 255 is the object.
        pred_values: What mask values of the predictions are read as.
        allow_missing: Whether missing predictions are listed and left out of the score.
        progress: Whether to show progress on standard error.

    Returns:
        The values of :func:`adcam.metrics.miou.name_classes`, ``miou_image_error`` (the standard
        error of ``miou`` over the images, ``None`` for fewer than two) and
        ``missing_predictions``. JSON-serialisable.

    Raises:
        AdcamError: Masks are missing, two files have one id, two masks of one image differ in size
            or hold values outside the classes, both folders say their classes and number one
            differently, all masks of a folder hold only 0 and 255, or there cannot be so many
            classes.
    """
    if num_classes is not None and not 1 <= num_classes <= IGNORE_INDEX:
        raise AdcamError(
            f"masks hold 1 to {IGNORE_INDEX} values besides {IGNORE_INDEX}, got num_classes "
            f"{num_classes}"
        )
    predictions = masks_folder(pred_dir)
    pairs, missing = _pair(predictions, Path(gt_dir), ".png", ids, allow_missing)
    classes = _read_class_names(predictions.parent)
    if num_classes is None and classes:
        num_classes = max(classes) + 1
    if converted := read_converted_classes(predictions):
        classes = {0: "background", **{v: name for name, v in converted.value_of.items()}}
    mapped = pred_values or {}
    if not classes and (true := read_converted_classes(gt_dir)):
        classes = {0: "background", **{v: name for name, v in true.value_of.items()}}
        mapped = values or {}
    changed = {*mapped, *mapped.values()} - {0}
    classes = {value: name for value, name in classes.items() if value not in changed}
    if not values and not pred_values:
        _check_numbers(Path(gt_dir), {name: value for value, name in classes.items()})
    # Where the number is not known, all values are counted and those that occur are kept.
    counts = MaskCounts(num_classes or IGNORE_INDEX, average=average, pred_ignore=pred_ignore)
    gt_masks = _Masks(gt_dir, "--values", values)
    pred_masks = _Masks(predictions, "--pred-values", pred_values)
    for img_id, (pred_path, gt_path) in _track(pairs, "evaluate", progress):
        pred, gt = pred_masks.read(pred_path), gt_masks.read(gt_path)
        with _comparing(pred_path, pred.shape, gt_path, gt.shape):
            counts.update(img_id, pred, gt)
    _refuse_binary(gt_masks, pred_masks)
    score = counts.compute()
    result = name_classes(score.result, classes)
    if num_classes is None:
        result["policy"]["num_classes"] = max(gt_masks.highest, pred_masks.highest) + 1
    error = to_json(compute_image_error(score.influences.values()))
    return {**result, "miou_image_error": error, "missing_predictions": missing}


def _check_numbers(gt_dir: Path, predicted: Mapping[str, int]) -> None:
    """Refuse true masks whose classes are known to have other numbers than the predicted ones."""
    true = read_converted_classes(gt_dir)
    value_of = {} if true is None else true.value_of
    other = {n: v for n, v in value_of.items() if predicted.get(n, v) != v}
    if other:
        name, value = next(iter(other.items()))
        cure = ",".join(f"{value}={predicted[name]}" for name, value in other.items())
        rest = "; give it their other classes too, as 0 (background) or 255 (not scored)"
        raise AdcamError(
            f"{name!r} is {value} in {gt_dir}, but {predicted[name]} in the predictions; "
            f"--values {cure} reads the true masks so"
            f"{'' if value_of.keys() <= predicted.keys() else rest}"
        )


def score_masks(images: ImageDataset, masks_dir: str | Path) -> MaskScore:
    """Score the masks of a data set that are on disk.

    Args:
        images: The images with their ground truth; those without are left out.
        masks_dir: The folder of the masks ``<id>.png``; images without one are left out.

    Raises:
        AdcamError: A mask cannot be read, has another size than its image, or holds a value that
            is no class.
    """
    counts = MaskCounts(images.class_set.num_classes)
    for index, record in enumerate(images.records):
        path = Path(masks_dir) / f"{record.img_id}.png"
        gt = images.load_mask(index) if path.is_file() else None
        if gt is None or record.mask_path is None:
            continue
        pred = read_mask(path)
        with _comparing(path, pred.shape, record.mask_path, gt.shape):
            counts.update(record.img_id, pred, gt)
    return counts.compute()


class _Masks:
    """Reads the masks of a folder, and remembers the values that they hold."""

    def __init__(self, folder: str | Path, option: str, values: Mapping[int, int] | None) -> None:
        self.folder = folder
        self.option = option
        self._values = values
        self._held = np.zeros(256, dtype=bool)

    def read(self, path: Path) -> np.ndarray:
        """Read a mask, with other values in the place of some."""
        mask = map_values(read_mask(path), self._values or {})
        self._held |= np.bincount(mask.ravel(), minlength=256) > 0
        return mask

    @property
    def highest(self) -> int:
        """The highest value below 255."""
        return int(np.flatnonzero(self._held[:IGNORE_INDEX]).max(initial=0))

    @property
    def is_binary(self) -> bool:
        """Whether all masks hold only 0 and 255, and nobody said how to read them."""
        return not self._values and bool(self._held[IGNORE_INDEX]) and self.highest == 0


def _refuse_binary(*folders: _Masks) -> None:
    """Refuse masks in which 255 most likely is the object, since 255 is not scored."""
    found = [masks for masks in folders if masks.is_binary]
    if found:
        names = " and ".join(str(masks.folder) for masks in found)
        cure = " ".join(f"{masks.option} 255=1" for masks in found)
        as_is = " ".join(f"{masks.option} 255=255" for masks in found)
        raise AdcamError(
            f"all masks in {names} hold only 0 and 255, and 255 means 'not scored', so that no "
            f"object would count. If 255 is the object, add {cure}; if it is not, {as_is}"
        )


def evaluate_maps(
    maps_dir: str | Path,
    gt_dir: str | Path,
    *,
    ids: Sequence[str] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    average: Literal["union", "gt_present"] = "union",
    class_set: ClassSet | None = None,
    cam_format: str = "auto",
    values: Mapping[int, int] | None = None,
    allow_missing: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Score stored maps at every constant background score: the threshold curve.

    Args:
        maps_dir: The folder of the maps ``<id>.npz`` of ``adcam generate --save-maps``, or the
            folder above it; or a folder of maps ``<id>.npy`` of another project
            (:mod:`adcam.data.formats`), which are scored at their own size.
        gt_dir: The folder of the ground truth masks ``<id>.png``.
        ids: The images to score; ``None`` takes every mask of the ground truth.
        thresholds: Strictly ascending background scores in [0, 1]; nothing stops at a drop.
        average: The classes that enter the mean, as for
            :class:`adcam.metrics.miou.ThresholdCurve`.
        class_set: The classes of another project's maps, ``None`` for VOC's; our own files name
            theirs.
        cam_format: The format of another project's maps, one of
            :data:`adcam.data.formats.CAM_FORMATS` or ``"auto"``.
        values: What mask values of the ground truth are read as, e.g. ``{255: 1}``.
        allow_missing: Whether to score what is there when maps are missing.
        progress: Whether to show progress on standard error.

    Returns:
        ``thresholds``, ``miou`` at each, ``best_threshold``, ``best`` (as
        :func:`evaluate_masks` returns it), ``num_images``, ``missing_predictions``, ``policy``, and
        ``rules``: for each rule that sees no ground truth its ``rule``, its ``threshold`` (in the
        mean, where each image has its own), its ``miou`` and its ``loss`` against the best
        threshold, which saw the masks.

    Raises:
        AdcamError: As :func:`evaluate_masks`, or maps differ in their classes.
    """
    folder, is_ours = _find_maps(maps_dir)
    load = load_maps if is_ours else _other_loader(class_set, cam_format)
    pairs, missing = _pair(folder, Path(gt_dir), ".npz" if is_ours else ".npy", ids, allow_missing)
    gt_masks = _Masks(gt_dir, "--values", values)
    sweep = _Sweep(folder, thresholds, average)
    # Where nobody said the classes of another project's maps, VOC's are only a guess.
    if not values and (is_ours or class_set is not None):
        first = load(next(iter(pairs.values()))[0])
        _check_numbers(Path(gt_dir), dict(zip(first.classes, first.mask_values, strict=True)))
    for _, (maps_path, gt_path) in _track(pairs, "sweep", progress):
        stored, gt = load(maps_path), gt_masks.read(gt_path)
        with _comparing(maps_path, stored.ori_hw, gt_path, gt.shape):
            sweep.update(maps_path, stored, gt)
    _refuse_binary(gt_masks)
    return {**sweep.compute(), "missing_predictions": missing}


def suggest_thresholds(
    maps_dir: str | Path,
    *,
    ids: Sequence[str] | None = None,
    class_set: ClassSet | None = None,
    cam_format: str = "auto",
    progress: bool = False,
) -> dict[str, Any]:
    """Suggest background thresholds from stored maps alone, without ground truth.

    Args:
        maps_dir: As for :func:`evaluate_maps`.
        ids: The images to look at; ``None`` takes all.
        class_set: As for :func:`evaluate_maps`.
        cam_format: As for :func:`evaluate_maps`.
        progress: Whether to show progress on standard error.

    Returns:
        ``rules``, of each its ``rule`` and its ``threshold`` (in the mean, where each image has its
        own), and ``num_images``. JSON-serialisable.

    Raises:
        AdcamError: There are no maps or none of an id, or a file cannot be read.
    """
    folder, is_ours = _find_maps(maps_dir)
    load = load_maps if is_ours else _other_loader(class_set, cam_format)
    rules = UnsupervisedRules(_read_method(folder))
    files = find_files(folder, ".npz" if is_ours else ".npy")
    if ids is not None:
        wanted = [match_id(name, files) for name in ids]
        if unknown := [img_id for img_id in wanted if img_id not in files]:
            raise AdcamError(f"{folder} has no maps of {join_some(unknown)}")
        files = {img_id: files[img_id] for img_id in wanted}
    for _, path in _track(files, "sweep", progress):
        rules.update(load(path).upsample())
    return {"rules": rules.suggest(), "num_images": len(files)}


def _find_maps(maps_dir: str | Path) -> tuple[Path, bool]:
    """Return the folder of the maps, and whether they are ours."""
    folder = maps_folder(maps_dir)
    is_ours = next(folder.rglob("*.npy"), None) is None
    if is_ours and folder.is_dir() and next(folder.rglob("*.npz"), None) is None:
        raise AdcamError(
            f"{folder}: there are no .npz files in this folder; --sweep scores the maps that "
            "`adcam generate --save-maps` stores"
        )
    return folder, is_ours


class _Sweep:
    """The threshold curve of stored maps, whose classes the first file says."""

    def __init__(
        self, folder: Path, thresholds: Sequence[float], average: Literal["union", "gt_present"]
    ) -> None:
        self._folder = folder
        self._thresholds = thresholds
        self._average = average
        self._names: dict[int, str] = {}
        self._curve: ThresholdCurve | None = None
        self._rules = UnsupervisedRules(_read_method(folder), average)

    def update(self, path: Path, stored: StoredMaps, gt: np.ndarray) -> None:
        """Count the maps of one image."""
        names = dict(zip(stored.mask_values, stored.classes, strict=True))
        if self._curve is None:
            self._names = names
            self._curve = ThresholdCurve(
                max(stored.mask_values, default=0) + 1,
                self._thresholds,
                mask_values=stored.mask_values,
                average=self._average,
            )
        if names != self._names:
            raise AdcamError(
                f"{path} has the classes {list(names.values())}, other maps in {self._folder} have "
                f"{list(self._names.values())}"
            )
        maps = stored.upsample()
        self._curve.update(maps.score_maps, maps.class_ids, gt)
        self._rules.update(maps, stored.mask_values, gt)

    def compute(self) -> dict[str, Any]:
        """Compute the curve, and the scores at its best threshold."""
        if self._curve is None:
            raise AdcamError(f"{self._folder}: there are no maps to score")
        result = self._curve.compute()
        return {
            "thresholds": list(result.thresholds),
            "miou": list(result.miou),
            "best_threshold": result.best_threshold,
            "best_miou": result.best_miou,
            "best": name_classes(result.best, {0: "background", **self._names}),
            "num_images": result.best.num_images,
            "policy": dict(result.policy),
            "rules": self._rules.score(result),
        }


def _other_loader(class_set: ClassSet | None, cam_format: str) -> Callable[[Path], StoredMaps]:
    """Return what loads maps of another project, which are at image size already."""
    classes = class_set or voc_class_set()

    def load(path: Path) -> StoredMaps:
        file = read_cam_file(path, num_fg_classes=classes.num_fg_classes, cam_format=cam_format)
        if file.background is not None:
            raise AdcamError(
                f"{path}: probabilities after a CRF have no threshold; "
                "`adcam convert cams` makes masks of them"
            )
        height, width = file.maps.score_maps.shape[1:]
        return StoredMaps(file.maps, (height, width), classes.classes, classes.mask_values)

    return load


def _pair(
    pred_dir: Path, gt_dir: Path, suffix: str, ids: Sequence[str] | None, allow_missing: bool
) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Return the files to compare by image id, and the ids without a prediction."""
    predictions, gt_masks = find_files(pred_dir, suffix), find_files(gt_dir, ".png")
    wanted = list(gt_masks)
    if ids is not None:
        wanted = [match_id(name, gt_masks) for name in ids]
    if unknown := [img_id for img_id in wanted if img_id not in gt_masks]:
        raise AdcamError(f"{gt_dir} lacks the masks of {join_some(unknown)}")
    if not wanted:
        raise AdcamError("ids names no image to score")
    missing = [img_id for img_id in wanted if img_id not in predictions]
    if len(missing) == len(wanted):
        raise AdcamError(f"{pred_dir} holds none of the {len(wanted)} images, such as {wanted[0]}")
    if missing and not allow_missing:
        raise AdcamError(
            f"{pred_dir} lacks {len(missing)} of {len(wanted)} images: {join_some(missing)}. Name "
            "the images to score with --ids, or leave these out with --allow-missing"
        )
    files = {i: (predictions[i], gt_masks[i]) for i in wanted if i in predictions}
    return files, missing


def _track(pairs: dict[str, T], description: str, progress: bool) -> Iterable[tuple[str, T]]:
    return track(pairs.items(), description, len(pairs)) if progress else pairs.items()


def _read_class_names(folder: Path) -> dict[int, str]:
    """Class names by mask value as ``adcam generate`` recorded them; empty if it did not."""
    try:
        labeler = read_json(folder / CONFIG_NAME)["labeler"]
        pairs = zip(labeler["mask_values"], labeler["classes"], strict=True)
        return {0: "background", **dict(pairs)}
    except (ValueError, KeyError, TypeError):
        return {}


def _read_method(maps: Path) -> str:
    """The method of maps as ``adcam generate`` recorded it; AD-CAM where nobody did."""
    try:
        return str(read_json(maps.parent / CONFIG_NAME)["labeler"]["method"])
    except (ValueError, KeyError, TypeError):
        return "ad_cam"


@contextmanager
def _comparing(
    pred_path: Path, pred_hw: Sequence[int], gt_path: Path, gt_hw: Sequence[int]
) -> Iterator[None]:
    """Refuse files of two sizes, and name both where their values cannot be counted."""
    check_same_hw(pred_path, pred_hw, gt_path, gt_hw)
    try:
        yield
    except AdcamError:
        raise
    except ValueError as error:
        hint = (
            "--values OLD=NEW reads values of the true masks as others, --pred-values those scored"
        )
        raise AdcamError(f"{pred_path} against {gt_path}: {error}. {hint}") from error
