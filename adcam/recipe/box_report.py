"""The report of a comparison by boxes: which numbers, which pictures, which words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adcam.data.dataset import ImageDataset
from adcam.evaluation.compare_boxes import BoxComparison
from adcam.metrics.localization import ERROR_TYPES, NUM_IOU_BINS, ORACLE
from adcam.recipe.blocks import (
    Run,
    caution,
    describe_ranking,
    pick_leads,
    provenance,
    stale_caution,
    time_section,
)
from adcam.recipe.scores import BoxScores
from adcam.report.figures import draw_boxes, overlay_heat
from adcam.report.model import (
    Block,
    Cell,
    Column,
    Curves,
    Headline,
    Histograms,
    PerClass,
    Picture,
    PictureGrid,
    PictureRow,
    Report,
    Section,
    Series,
    Shares,
    Table,
    Text,
)

TRUE_COLOR = (255, 255, 255)
FOUND_COLOR = (0, 229, 255)
"""The outlines of true and found boxes: neither is a colour of the heat maps."""

BOX_LEGEND = (("true box", TRUE_COLOR), ("box found", FOUND_COLOR))
"""What pictures with boxes say about their outlines."""

ERROR_NAMES = dict(
    zip(
        ERROR_TYPES,
        ("correct", "another class", "several objects", "only a part", "too much", "elsewhere"),
        strict=True,
    )
)
"""What diagrams call the error types of TS-CAM."""

_CURVE_STEP = 10  # of the 1,000 thresholds, every tenth is drawn


@dataclass(frozen=True, eq=False)
class BoxResults:
    """All that a report says about a comparison by boxes; the last method is the one of interest.

    Attributes:
        run: The run.
        methods: The scores of each method.
        images: The images that the scores are of.
        pictures: The best, the middle and the worst images, drawn by :func:`draw_boxes_found`.
        explorer: The section in which all images are looked through; ``None`` if there is none.
    """

    run: Run
    methods: Sequence[BoxScores]
    images: ImageDataset
    pictures: Sequence[PictureRow]
    explorer: Section | None = None


def build_box_report(results: BoxResults) -> Report:
    """The report of a comparison by boxes."""
    run, methods, images = results.run, results.methods, results.images
    last, split = methods[-1], images.split
    rows = results.pictures
    lead: list[Block] = [
        *stale_caution(run),
        *describe_cautions(methods, split),
        box_table(methods, split, run.command),
    ]
    sections = [
        *([results.explorer] if results.explorer else []),
        Section("Over the whole range of thresholds", threshold_curves(methods, split)),
        Section(
            "How well boxes fit, and what goes wrong",
            [iou_histograms(methods), *error_bars(methods)],
        ),
        Section("By class", [per_class_boxes(methods, images)]),
    ]
    if rows:
        lead.append(_picture_grid(pick_leads(rows, 3), last))
        grid = _picture_grid(rows, last)
        sections.append(Section("Best, middle and worst images", [grid]))
    sections.append(time_section(run))
    note = f"thresholds chosen on {last.chosen_on}"
    return Report(
        title=run.title,
        subtitle=f"{images.class_set.name}: {len(images)} images of {split}, "
        f"{images.class_set.num_fg_classes} classes",
        summary=[describe_ranking("MaxBoxAccV2", {m.name: m.max_box_acc_v2 for m in methods})],
        headlines=[
            Headline(f"{last.name}, {split}", last.max_box_acc_v2, "%", note),
            Headline("GT-known Loc", last.gt_known, "%", f"at {last.threshold:.3f}"),
            Headline("Top-1 Loc", last.top_loc[1], "%", "class and box correct"),
            Headline("Top-1", last.top_cls[1], "%", "class correct"),
        ],
        lead=lead,
        sections=sections,
        provenance=provenance(run),
    )


def describe_cautions(methods: Sequence[BoxScores], split: str) -> list[Text]:
    """What a reader must not overlook: an oracle's thresholds, and a last method that is not first.

    Args:
        methods: The scores of each method.
        split: The split that is reported.
    """
    paragraphs = []
    if methods[0].chosen_on == ORACLE:
        paragraphs.append(
            f"All thresholds were chosen on {split}, the split reported (oracle): the numbers "
            "flatter."
        )
    first = max(methods, key=lambda method: method.max_box_acc_v2)
    if first.name != methods[-1].name:
        paragraphs.append(
            f"{methods[-1].name} is not first here: {first.name} reaches "
            f"{first.max_box_acc_v2:.1f}."
        )
    return caution(*paragraphs)


def box_table(methods: Sequence[BoxScores], split: str, command: str) -> Table:
    """All scores, with the thresholds' split and, apart, what the oracle would report."""
    columns = [
        Column("method"),
        Column("MaxBoxAccV2", best="max", bar_max=100.0, hint="mean of the next three"),
        *(
            Column(f"IoU {delta:g}", best="max", hint="boxes of all contours, best of them")
            for delta in methods[0].box_acc
        ),
        Column("MaxBoxAcc", best="max", hint="one box, of the largest contour; IoU 0.5"),
        Column("GT-known", best="max", hint="TS-CAM's rule, map of the true class, IoU ≥ 0.5"),
        Column("Top-1 Loc", best="max", hint="the first guess and its box are correct, IoU > 0.5"),
        Column("Top-5 Loc", best="max", hint="one of five guesses and its box are correct"),
        Column("threshold", digits=3, hint="of the last four columns"),
        Column("V2, oracle", hint=f"thresholds best for {split} itself, as the protocol has it"),
    ]
    rows: list[list[Cell]] = [
        [
            method.name,
            method.max_box_acc_v2,
            *method.box_acc.values(),
            method.max_box_acc,
            method.gt_known,
            *method.top_loc.values(),
            method.threshold,
            method.oracle_v2,
        ]
        for method in methods
    ]
    is_given = any(method.threshold_from != method.chosen_on for method in methods)
    given = " GT-known and Top-k Loc have a given threshold." if is_given else ""
    return Table(
        columns,
        rows,
        caption=f"Percent of the {methods[0].num_images} images of {split}. Thresholds, one for "
        f"each IoU and method, chosen on: {methods[0].chosen_on}.{given}",
        command=command,
    )


def threshold_curves(methods: Sequence[BoxScores], split: str) -> list[Block]:
    """All methods at IoU 0.5, and the last one at every IoU."""
    last = methods[-1]
    middle = sorted(last.curves)[len(last.curves) // 2]
    dots = f"Dots: thresholds chosen on {last.chosen_on}."
    return [
        Curves(
            [_series(method, method.name, middle) for method in methods],
            "threshold, share of a map's maximum",
            f"boxes of IoU ≥ {middle:g} on {split}, %",
            f"Share of the images with a box that fits, boxes of all contours. {dots}",
            emphasis=last.name,
            x_range=(0.0, 1.0),
        ),
        Curves(
            [_series(last, f"IoU ≥ {delta:g}", delta) for delta in last.curves],
            "threshold, share of a map's maximum",
            f"box accuracy on {split}, %",
            f"{last.name}: the stricter the IoU, the narrower the range. {dots}",
            emphasis=f"IoU ≥ {middle:g}",
            x_range=(0.0, 1.0),
        ),
    ]


def _series(method: BoxScores, name: str, delta: float) -> Series:
    chosen = (method.best_thresholds[delta], method.box_acc[delta])
    thresholds, curve = method.thresholds[::_CURVE_STEP], method.curves[delta][::_CURVE_STEP]
    return Series(name, thresholds, curve, chosen)


def iou_histograms(methods: Sequence[BoxScores]) -> Histograms:
    """How well the box of the true class fits, image by image."""
    return Histograms(
        [i / NUM_IOU_BINS for i in range(NUM_IOU_BINS + 1)],
        {method.name: method.iou_histogram for method in methods},
        "IoU",
        "Images by the IoU of the box of the true class (TS-CAM's rule) with a true box; beside "
        "each name the share from 0.5 on.",
        emphasis=methods[-1].name,
        mark=0.5,
    )


def error_bars(methods: Sequence[BoxScores]) -> list[Block]:
    """What became of the first guess, of the methods that predict a class."""
    values = {
        method.name: [method.errors[name] for name in ERROR_TYPES]
        for method in methods
        if not any(math.isnan(share) for share in method.errors.values())
    }
    text = (
        "The first guess and its box, by TS-CAM's error types in its order: a wrong class is "
        "counted as such whatever the box."
    )
    return [Shares([ERROR_NAMES[name] for name in ERROR_TYPES], values, text)] if values else []


def per_class_boxes(methods: Sequence[BoxScores], images: ImageDataset) -> PerClass:
    """The GT-known Loc of every class by every method."""
    classes = images.class_set.classes
    values = {
        method.name: [method.gt_known_per_class.get(i, math.nan) for i in range(len(classes))]
        for method in methods
    }
    return PerClass(list(classes), values, "GT-known Loc, %")


def draw_boxes_found(
    found: BoxComparison, images: ImageDataset, img_ids: Sequence[str]
) -> list[PictureRow]:
    """An image with its true boxes, then the map of each method with its box and IoU.

    Args:
        found: A comparison that kept its pictures.
        images: The images that were reported on.
        img_ids: The images to draw.
    """
    kept = {picture.img_id: picture for picture in found.pictures}
    rows = []
    for picture in (kept[img_id] for img_id in img_ids if img_id in kept):
        true = np.zeros((0, 4)) if picture.boxes is None else picture.boxes
        pictures = [Picture(_outline(picture.img, true), "image")]
        for result in found.results:
            outcome, name = result.outcomes[picture.index], result.spec.name
            heat = overlay_heat(picture.img, picture.score_map(name))
            outlined = _outline(heat, true, np.array([outcome.box]))
            pictures.append(Picture(outlined, name, 100 * outcome.iou))
        labels = [images.class_set.classes[i] for i in picture.class_ids]
        rows.append(PictureRow(picture.img_id, pictures, labels))
    return rows


def _outline(rgb: np.ndarray, true: np.ndarray, found: np.ndarray | None = None) -> np.ndarray:
    """Draw true boxes and a found one, given as shares of width and height."""
    scale = np.array([rgb.shape[1], rgb.shape[0]] * 2)
    rgb = draw_boxes(rgb, np.rint(true * scale).astype(np.int64), TRUE_COLOR)
    if found is None:
        return rgb
    return draw_boxes(rgb, np.rint(found * scale).astype(np.int64), FOUND_COLOR)


def _picture_grid(rows: Sequence[PictureRow], last: BoxScores) -> PictureGrid:
    return PictureGrid(
        rows,
        "Score maps of the true class with its box by TS-CAM's rule, each method at its own "
        f"threshold. Best, middle and worst by the IoU of {last.name}.",
        BOX_LEGEND,
        max_side=320,
        shows_ignored=False,
    )
