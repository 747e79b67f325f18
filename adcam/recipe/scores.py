"""What masks and methods scored, written by one stage and read by the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adcam.data.dataset import ImageDataset
from adcam.errors import AdcamError
from adcam.evaluation.compare import MethodResult
from adcam.evaluation.compare_boxes import GIVEN
from adcam.evaluation.masks import MaskScore
from adcam.evaluation.masks_on_disk import score_masks
from adcam.files import open_json, to_json, write_json
from adcam.metrics.influence import compute_image_error
from adcam.metrics.localization import ORACLE

K = TypeVar("K")


@dataclass(frozen=True, eq=False)
class Scores:
    """What masks on disk scored on one list.

    Attributes:
        split: The name of the list.
        num_images: The number of images in the list.
        miou: The mean IoU in percent over the classes that ground truth or masks hold.
        iou_per_class: The IoU of each mask value in percent; NaN for a class that neither holds.
        pixel_accuracy: The share of correct pixels in percent.
        ignored_share: The share in [0, 1] of the labelled pixels that are 255 in the masks.
        confusion: int64 (num_classes, num_classes + 1); rows are the classes of the ground truth.
        per_image: The mIoU in percent of each image that shows a class, by image id.
    """

    split: str
    num_images: int
    miou: float
    iou_per_class: tuple[float, ...]
    pixel_accuracy: float
    ignored_share: float
    confusion: np.ndarray
    per_image: Mapping[str, float]

    @property
    def ranking(self) -> list[str]:
        """Image ids from the worst to the best mask; equal ones in the order of the list."""
        return sorted(self.per_image, key=lambda img_id: self.per_image[img_id])


@dataclass(frozen=True)
class MethodScores:
    """What a method of a comparison scored on masks.

    Attributes:
        name: The name in tables.
        scales: The shorter sides in pixels that the network saw each image at.
        flip: Whether the network saw each image mirrored, too.
        crf: The parameter set of the dense CRF, or ``"none"``.
        threshold: The background threshold, chosen on the choosing split, or the value of ``rule``.
        chosen_miou: The mIoU in percent by that rule on the choosing split.
        miou: The mIoU in percent by that rule on the reported split.
        iou_per_class: The IoU in percent of each mask value there; NaN where undefined.
        thresholds: All thresholds of the sweep on the reported split; empty with a CRF.
        curve: The mIoU in percent at each of ``thresholds``.
        best_miou: The best of ``curve``, an oracle's choice; ``None`` with a CRF.
        precision: The precision of all classes but background in percent at each of
            ``thresholds``; NaN where nothing is predicted.
        recall: Their recall in percent at each of ``thresholds``.
        rule: The name of the background rule; ``"constant"`` unless the method gave another.
        chosen_on: The split that ``threshold`` was chosen on, or ``"given"`` where the method names
            its rule itself; ``None`` in scores of earlier versions, which do not say.
        influences: What each reported image does to ``miou``, in points, by image id; empty in
            scores of earlier versions.
    """

    name: str
    scales: tuple[int, ...]
    flip: bool
    crf: str
    threshold: float | None
    chosen_miou: float
    miou: float
    iou_per_class: tuple[float, ...]
    thresholds: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()
    best_miou: float | None = None
    precision: tuple[float, ...] = ()
    recall: tuple[float, ...] = ()
    rule: str = "constant"
    chosen_on: str | None = None
    influences: Mapping[str, float] = field(default_factory=dict)

    @property
    def image_error(self) -> float:
        """The standard error of ``miou`` over the images; NaN where it is not known."""
        return compute_image_error(self.influences.values())

    @property
    def is_given(self) -> bool:
        """Whether the method itself names the constant below which background begins."""
        return self.rule == "constant" and self.chosen_on == GIVEN

    @property
    def background(self) -> str:
        """Where background ends: ``"0.35"`` for a constant, or a rule like ``"otsu"``."""
        value = "" if self.threshold is None else f"{self.threshold:.2f}"
        return value if self.rule == "constant" else ":".join(filter(None, (self.rule, value)))

    @classmethod
    def from_result(cls, result: MethodResult) -> MethodScores:
        """The scores of one result of a comparison."""
        curve = result.curve
        swept: dict[str, Any] = {}
        if curve is not None:
            swept = {
                "thresholds": curve.thresholds,
                "curve": curve.miou,
                "best_miou": curve.best_miou,
                "precision": curve.precision,
                "recall": curve.recall,
            }
        return cls(
            name=result.spec.name,
            scales=tuple(result.spec.views.scales),
            flip=result.spec.views.flip,
            crf=result.spec.crf,
            threshold=result.threshold,
            chosen_miou=result.chosen_miou,
            miou=result.result.miou,
            iou_per_class=tuple(result.result.iou_per_class),
            rule=result.rule.rule,
            chosen_on=result.rule.chosen_on,
            influences={i: round(points, 6) for i, points in result.influences.items()},
            **swept,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MethodScores:
        """The scores that :meth:`to_dict` wrote.

        Raises:
            KeyError: A value is missing.
            TypeError: A value is of another type.
        """
        return cls(
            **{
                **values,
                "scales": tuple(values["scales"]),
                "iou_per_class": tuple(map(_number, values["iou_per_class"])),
                "thresholds": tuple(values["thresholds"]),
                **{
                    key: tuple(map(_number, values[key]))
                    for key in ("curve", "precision", "recall")
                },
                **{key: _number(values[key]) for key in ("chosen_miou", "miou")},
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The scores as JSON values; ``None`` stands for NaN."""
        values: dict[str, Any] = to_json(asdict(self))
        return values


@dataclass(frozen=True)
class BoxScores:
    """What a method of a comparison scored by boxes; docs/localization.md defines the numbers.

    Attributes:
        name: The name in tables.
        chosen_on: The split that the thresholds were chosen on, or ``"oracle"``.
        max_box_acc_v2: MaxBoxAccV2 in percent.
        box_acc: The box accuracy in percent at each IoU, boxes of all contours.
        best_thresholds: The threshold that was chosen for each IoU.
        thresholds: All thresholds of the sweep.
        curves: The box accuracy in percent at each of ``thresholds``, by IoU.
        max_box_acc: MaxBoxAcc in percent, one box of the largest contour.
        oracle_v2: MaxBoxAccV2 in percent with thresholds that are best for the reported split.
        threshold: The threshold of ``gt_known`` and ``top_loc``.
        threshold_from: Where that threshold is from: ``chosen_on``, or ``"given"``.
        gt_known: GT-known Loc in percent.
        gt_known_per_class: GT-known Loc in percent by class id.
        top_loc: Top-k Loc in percent by k; NaN for stored maps, which predict no class.
        top_cls: Top-k accuracy in percent by k; NaN for stored maps.
        errors: The share in percent of each error type; NaN for stored maps.
        iou_histogram: The number of images in each bin of IoU.
        num_images: The number of images.
        ious: The IoU of the box of the true class with a true box, by image id.
    """

    name: str
    chosen_on: str
    max_box_acc_v2: float
    box_acc: Mapping[float, float]
    best_thresholds: Mapping[float, float]
    thresholds: tuple[float, ...]
    curves: Mapping[float, tuple[float, ...]]
    max_box_acc: float
    oracle_v2: float
    threshold: float
    threshold_from: str
    gt_known: float
    gt_known_per_class: Mapping[int, float]
    top_loc: Mapping[int, float]
    top_cls: Mapping[int, float]
    errors: Mapping[str, float]
    iou_histogram: tuple[int, ...]
    num_images: int
    ious: Mapping[str, float]

    @property
    def ranking(self) -> list[str]:
        """Image ids from the worst to the best box; equal ones in the order of the list."""
        return sorted(self.ious, key=lambda img_id: self.ious[img_id])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BoxScores:
        """The scores of one row of ``compare.json``.

        Raises:
            KeyError: A value is missing.
            TypeError: A value is of another type.
            ValueError: A value is no number.
        """
        boxes, located, oracle = values["boxes"], values["localization"], values[ORACLE]
        oracle_acc = oracle["boxes"]["box_acc"].values()
        (max_box_acc,) = values["largest"]["box_acc"].values()
        return cls(
            name=values["row"]["name"],
            chosen_on=values["chosen_on"],
            max_box_acc_v2=boxes["max_box_acc_v2"],
            box_acc=_by_number(float, boxes["box_acc"]),
            best_thresholds=_by_number(float, boxes["best_thresholds"]),
            thresholds=tuple(boxes["thresholds"]),
            curves={float(delta): tuple(curve) for delta, curve in boxes["curves"].items()},
            max_box_acc=max_box_acc,
            oracle_v2=float(np.mean(list(oracle_acc))),
            threshold=values["threshold"],
            threshold_from=values["threshold_from"],
            gt_known=_number(located["gt_known"]),
            gt_known_per_class={
                int(i): _number(scores["gt_known"]) for i, scores in located["per_class"].items()
            },
            top_loc=_by_number(int, located["top_loc"]),
            top_cls=_by_number(int, located["top_cls"]),
            errors={name: _number(share) for name, share in located["errors"].items()},
            iou_histogram=tuple(located["iou_histogram"]),
            num_images=located["num_images"],
            ious=values["ious"],
        )


def write_scores(images: ImageDataset, masks_dir: Path, path: Path) -> float:
    """Score the masks of a list and write everything that a report wants to know.

    Args:
        images: The images with their ground truth.
        masks_dir: The folder of the masks ``<id>.png``.
        path: The JSON file to write.

    Returns:
        The mIoU in percent, to two digits.

    Raises:
        AdcamError: An image has no ground truth, or a mask is missing.
    """
    for record in images.records:
        if record.mask_path is None:
            raise AdcamError(f"{images.split!r} cannot be scored: {record.img_id} has no true mask")
        if not (masks_dir / f"{record.img_id}.png").is_file():
            raise AdcamError(f"{masks_dir} lacks the mask of {record.img_id}")
    scored = score_masks(images, masks_dir)
    write_json(path, describe_scores(images, scored))
    return round(scored.result.miou, 2)


def describe_scores(images: ImageDataset, scored: MaskScore) -> dict[str, Any]:
    """The scores of masks as JSON values, which :func:`load_scores` reads.

    Args:
        images: The images that the masks are of.
        scored: Their scores.
    """
    shown = [record.img_id for record in images.records if record.class_ids]
    mious = {i: scored.mious[i] for i in shown if not math.isnan(scored.mious[i])}
    return {
        "split": images.split,
        **scored.result.to_dict(),
        "confusion": scored.result.confusion.tolist(),
        "per_image": {i: round(mious[i], 4) for i in sorted(mious, key=lambda i: mious[i])},
    }


def load_scores(path: Path) -> Scores:
    """The scores that :func:`write_scores` wrote.

    Raises:
        AdcamError: The file is missing or holds something else.
    """
    with open_json(path, "no scores of this recipe") as values:
        return Scores(
            split=values["split"],
            num_images=values["num_images"],
            miou=_number(values["miou"]),
            iou_per_class=tuple(map(_number, values["iou_per_class"])),
            pixel_accuracy=_number(values["pixel_accuracy"]),
            ignored_share=_number(values["ignored_share"]),
            confusion=np.array(values["confusion"], dtype=np.int64),
            per_image={img_id: float(miou) for img_id, miou in values["per_image"].items()},
        )


def read_losses(folder: Path) -> list[tuple[int, float]]:
    """Steps and losses that mmengine logged below a folder, in the order of the steps."""
    losses = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        for line in path.read_text("utf-8").splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue  # the line was torn by a kill
            if "loss" in values:
                losses[int(values["step"])] = float(values["loss"])
    return sorted(losses.items())


def _by_number(kind: Callable[[str], K], values: Mapping[str, Any]) -> dict[K, float]:
    return {kind(key): _number(value) for key, value in values.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
