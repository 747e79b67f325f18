"""The report of a comparison by boxes: which numbers, which pictures, which words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from rich.console import Console

from adcam.data.dataset import ImageDataset
from adcam.errors import AdcamError
from adcam.evaluation.compare_boxes import BoxComparison, BoxResult
from adcam.files import hash_file, hash_values
from adcam.metrics.localization import ERROR_TYPES, NUM_IOU_BINS, ORACLE
from adcam.progress import track
from adcam.recipe.compare import (
    COMPARISON_NAME,
    BoxesComparison,
    find_networks,
    run_compare_boxes,
)
from adcam.recipe.comparison_report import describe_machine, pick_spread
from adcam.recipe.experiment import stage
from adcam.report.figures import draw_boxes, overlay_heat
from adcam.report.model import (
    Block,
    Cell,
    Column,
    Curves,
    Headline,
    Histograms,
    KeyValues,
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
    TimeTable,
    Timing,
)
from adcam.report.render import write_report

TRUE_COLOR = (255, 255, 255)
FOUND_COLOR = (0, 229, 255)
"""Outlines of true and found boxes: neither is a colour of the heat maps."""

ERROR_NAMES = dict(
    zip(
        ERROR_TYPES,
        ("right", "another class", "several objects", "only a part", "too much", "elsewhere"),
        strict=True,
    )
)
"""What the error types of TS-CAM are called in diagrams."""

_CURVE_STEP = 10  # of the 1,000 thresholds, every tenth is drawn


def run_box_experiment(
    cfg: Config, work_dir: str | Path, *, title: str, command: Sequence[str]
) -> tuple[BoxesComparison, Path]:
    """Train what is not there yet, compare by boxes, report.

    Writes ``compare.csv``, ``compare.json``, ``report.html``, ``report.md`` and ``report.json``
    into ``work_dir``.

    Args:
        cfg: As for :func:`adcam.recipe.compare.run_compare_boxes`.
        work_dir: Where everything goes.
        title: Of the report.
        command: What makes it again, shown in the report.

    Returns:
        The comparison and the path of ``report.html``.

    Raises:
        AdcamError: If the config, the data or the weights are wrong.
    """
    console = Console(stderr=True)
    seconds: dict[str, float] = {}
    with stage(console, seconds, "train the networks"):
        find_networks(cfg, work_dir)
    with stage(console, seconds, "compare by boxes"):
        comparison = run_compare_boxes(cfg, work_dir, progress=track, keep_pictures=True)
    with stage(console, seconds, "report"):
        results, images = comparison.found.results, comparison.images
        provenance = {
            "config hash": hash_values(cfg.to_dict()),
            **{
                f"network {name or 'of the config'}": hash_file(path)
                for name, path in comparison.checkpoints.items()
            },
            "machine": describe_machine(),
        }
        report = build_box_report(
            results,
            images,
            title=title,
            subtitle=f"{images.class_set.name}: {len(images)} images of {images.split}, "
            f"{images.class_set.num_fg_classes} classes",
            command=shlex.join(command),
            picture_rows=make_box_pictures(comparison.found, images, each=3),
            seconds=seconds,
            provenance=[KeyValues(provenance, "How this was made")],
        )
        path = write_report(report, work_dir)
    return comparison, path


def is_box_comparison(work_dir: str | Path) -> bool:
    """Whether a folder is one of :func:`run_box_experiment`."""
    return (Path(work_dir) / COMPARISON_NAME).is_file()


def remake_box_report(work_dir: str | Path) -> Path:
    """Write the report of a comparison by boxes again, from its config and classifiers.

    The images are scored again; nothing is trained that is still there.

    Args:
        work_dir: Of :func:`run_box_experiment`.

    Returns:
        Path of ``report.html``.

    Raises:
        AdcamError: The folder holds no such comparison, or its data or weights are gone.
    """
    work_dir = Path(work_dir)
    try:
        stored = json.loads((work_dir / COMPARISON_NAME).read_text(encoding="utf-8"))
        cfg = Config(stored["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdcamError(
            f"{work_dir / COMPARISON_NAME} is no comparison by boxes: {error}"
        ) from error
    _, path = run_box_experiment(
        cfg,
        work_dir,
        title=f"{work_dir.resolve().name}: boxes side by side",
        command=["adcam", "report", str(work_dir)],
    )
    return path


def build_box_report(
    results: Sequence[BoxResult],
    images: ImageDataset,
    *,
    title: str,
    subtitle: str,
    command: str,
    picture_rows: Sequence[PictureRow] = (),
    seconds: Mapping[str, float],
    provenance: Sequence[KeyValues],
) -> Report:
    """The report of a comparison by boxes; the last row is the one of interest.

    Args:
        results: Of :func:`adcam.evaluation.compare_boxes.compare_boxes`.
        images: The split they are of.
        title: Of the page.
        subtitle: Data in one line.
        command: What makes this report again.
        picture_rows: Of :func:`make_box_pictures`: best, middle and worst images.
        seconds: Wall time by stage.
        provenance: Versions, settings, hashes.

    Returns:
        The report; :func:`adcam.report.render.write_report` writes it.
    """
    last = results[-1]
    summary, caution = describe_boxes(results, images.split)
    lead: list[Block] = [*caution, box_table(results, images.split, command)]
    if picture_rows:
        lead.append(_picture_grid(picture_rows[:: max(len(picture_rows) // 3, 1)][:3], last))
    sections = [
        Section("Over the whole range of thresholds", threshold_curves(results, images.split)),
        Section(
            "How well boxes fit, and what goes wrong",
            [iou_histograms(results), *error_bars(results)],
        ),
        Section("By class", [per_class_boxes(results, images)]),
    ]
    if picture_rows:
        sections.insert(
            1, Section("Best, middle and worst images", [_picture_grid(picture_rows, last)])
        )
    timings = [Timing(name, value) for name, value in seconds.items()]
    sections.append(Section("Where the time went", [TimeTable(timings, describe_machine())]))
    chosen_on = f"thresholds chosen on {last.chosen_on}"
    return Report(
        title=title,
        subtitle=subtitle,
        summary=[summary],
        headlines=[
            Headline(
                f"{last.spec.name}, {images.split}", last.boxes.max_box_acc_v2, "%", chosen_on
            ),
            Headline("GT-known Loc", last.localization.gt_known, "%", f"at {last.threshold:.3f}"),
            Headline("Top-1 Loc", last.localization.top_loc[1], "%", "class and box right"),
            Headline("Top-1", last.localization.top_cls[1], "%", "class right"),
        ],
        lead=lead,
        sections=sections,
        provenance=provenance,
    )


def describe_boxes(results: Sequence[BoxResult], split: str) -> tuple[str, list[Text]]:
    """One sentence on the ranking, and what a reader must not overlook."""
    scores = {item.spec.name: item.boxes.max_box_acc_v2 for item in results}
    order = sorted(scores, key=lambda name: -scores[name])
    summary = "MaxBoxAccV2: " + ", ".join(f"{name} {scores[name]:.1f}" for name in order) + "."
    cautions = []
    if results[0].chosen_on == ORACLE:
        cautions.append(
            f"All thresholds were chosen on {split}, the split reported (oracle): the numbers "
            "flatter."
        )
    last = results[-1].spec.name
    if order[0] != last:
        cautions.append(f"{last} is not first here: {order[0]} reaches {scores[order[0]]:.1f}.")
    return summary, [Text(cautions, tone="caution")] if cautions else []


def box_table(results: Sequence[BoxResult], split: str, command: str) -> Table:
    """All scores, with the thresholds' split and, apart, what the oracle would report."""
    deltas = list(results[0].boxes.box_acc)
    columns = [
        Column("method"),
        Column("MaxBoxAccV2", best="max", bar_max=100.0, hint="mean of the next three"),
        *(
            Column(f"IoU {delta:g}", best="max", hint="boxes of all contours, best of them")
            for delta in deltas
        ),
        Column("MaxBoxAcc", best="max", hint="one box, of the largest contour; IoU 0.5"),
        Column("GT-known", best="max", hint="TS-CAM's rule, map of the true class, IoU ≥ 0.5"),
        Column("Top-1 Loc", best="max", hint="the first guess and its box are right, IoU > 0.5"),
        Column("Top-5 Loc", best="max", hint="one of five guesses and its box are right"),
        Column("threshold", digits=3, hint="of the last four columns"),
        Column("V2, oracle", hint=f"thresholds best for {split} itself, as the protocol has it"),
    ]
    rows: list[list[Cell]] = [
        [
            item.spec.name,
            item.boxes.max_box_acc_v2,
            *item.boxes.box_acc.values(),
            *item.largest.box_acc.values(),
            item.localization.gt_known,
            *item.localization.top_loc.values(),
            item.threshold,
            item.boxes_oracle.max_box_acc_v2,
        ]
        for item in results
    ]
    chosen_on = results[0].chosen_on
    given = " GT-known and Top-k Loc have a given threshold." if _is_given(results) else ""
    return Table(
        columns,
        rows,
        caption=f"Percent of the {results[0].localization.num_images} images of {split}. "
        f"Thresholds, one for each IoU and method, chosen on: {chosen_on}.{given} "
        "docs/localization.md defines the columns.",
        command=command,
    )


def _is_given(results: Sequence[BoxResult]) -> bool:
    return any(item.threshold_from != item.chosen_on for item in results)


def threshold_curves(results: Sequence[BoxResult], split: str) -> list[Block]:
    """All methods at IoU 0.5, and the last one at every IoU."""
    last = results[-1]
    middle = sorted(last.boxes.curves)[len(last.boxes.curves) // 2]
    dots = f"Dots: thresholds chosen on {last.chosen_on}."
    return [
        Curves(
            [_series(item, item.spec.name, middle) for item in results],
            "threshold, share of a map's maximum",
            f"boxes of IoU ≥ {middle:g} on {split}, %",
            f"Share of the images with a box that fits, boxes of all contours. {dots}",
            emphasis=last.spec.name,
            x_range=(0.0, 1.0),
        ),
        Curves(
            [_series(last, f"IoU ≥ {delta:g}", delta) for delta in last.boxes.curves],
            "threshold, share of a map's maximum",
            f"box accuracy on {split}, %",
            f"{last.spec.name}: the stricter the IoU, the narrower the range. {dots}",
            emphasis=f"IoU ≥ {middle:g}",
            x_range=(0.0, 1.0),
        ),
    ]


def _series(item: BoxResult, name: str, delta: float) -> Series:
    chosen = (item.boxes.best_thresholds[delta], item.boxes.box_acc[delta])
    return Series(
        name,
        item.boxes.thresholds[::_CURVE_STEP],
        item.boxes.curves[delta][::_CURVE_STEP],
        chosen,
    )


def iou_histograms(results: Sequence[BoxResult]) -> Histograms:
    """How well the box of the true class fits, image by image."""
    return Histograms(
        [i / NUM_IOU_BINS for i in range(NUM_IOU_BINS + 1)],
        {item.spec.name: item.localization.iou_histogram for item in results},
        "IoU",
        "Images by the IoU of the box of the true class (TS-CAM's rule) with a true box; beside "
        "each name the share from 0.5 on.",
        emphasis=results[-1].spec.name,
        mark=0.5,
    )


def error_bars(results: Sequence[BoxResult]) -> list[Block]:
    """What became of the first guess, of the rows that guess."""
    values = {
        item.spec.name: [item.localization.errors[name] for name in ERROR_TYPES]
        for item in results
        if item.spec.method
    }
    caption = (
        "The first guess and its box, by TS-CAM's error types in its order: a wrong class is "
        "counted as such whatever the box."
    )
    return [Shares([ERROR_NAMES[name] for name in ERROR_TYPES], values, caption)] if values else []


def per_class_boxes(results: Sequence[BoxResult], images: ImageDataset) -> PerClass:
    """GT-known Loc of every class for every method."""
    ids = range(images.class_set.num_fg_classes)
    values = {
        item.spec.name: [
            item.localization.per_class[i]["gt_known"]
            if i in item.localization.per_class
            else float("nan")
            for i in ids
        ]
        for item in results
    }
    return PerClass(
        list(images.class_set.classes), values, "GT-known Loc, %", "", results[-1].spec.name
    )


def make_box_pictures(
    comparison: BoxComparison, images: ImageDataset, *, each: int
) -> list[PictureRow]:
    """True boxes, and every method's map with its box and IoU, of best, middle and worst images.

    Args:
        comparison: The comparison with its pictures.
        images: The images that were reported on.
        each: How many best, middle and worst images.
    """
    kept = {picture.index: picture for picture in comparison.pictures}
    last = comparison.results[-1].outcomes
    rows = []
    for index in pick_spread(sorted((last[i].iou, i) for i in kept), each=each):
        picture = kept[index]
        true = np.zeros((0, 4)) if picture.boxes is None else picture.boxes
        pictures = [Picture(_outline(picture.img, true), "image")]
        for result in comparison.results:
            outcome, name = result.outcomes[index], result.spec.name
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


def _picture_grid(rows: Sequence[PictureRow], last: BoxResult) -> PictureGrid:
    return PictureGrid(
        rows,
        "Score maps of the true class with its box by TS-CAM's rule, each method at its own "
        f"threshold. Best, middle and worst by the IoU of {last.spec.name}.",
        [("true box", TRUE_COLOR), ("box found", FOUND_COLOR)],
        max_side=320,
        shows_ignored=False,
    )
