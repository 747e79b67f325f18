"""From scores and masks to the report: which numbers, which pictures, which words."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from adcam.data.dataset import ImageDataset
from adcam.evaluation.compare import MethodComparison, MethodResult
from adcam.evaluation.loop import EvaluationTimes
from adcam.metrics.miou import MeanIoUResult
from adcam.report.figures import picture_row
from adcam.report.model import (
    Block,
    Column,
    Confusion,
    Curves,
    Headline,
    KeyValues,
    PerClass,
    PictureGrid,
    PictureRow,
    Report,
    Section,
    Series,
    Table,
    Text,
    TimeTable,
    Timing,
)
from adcam.structures import ClassSet
from adcam.version import __version__


def build_comparison_report(
    results: Sequence[MethodResult],
    masks: MeanIoUResult,
    images: ImageDataset,
    *,
    title: str,
    subtitle: str,
    command: str,
    choose_split: str,
    lead_rows: Sequence[PictureRow],
    more_rows: Sequence[PictureRow],
    seconds: Mapping[str, float],
    times: Mapping[str, EvaluationTimes],
    provenance: Sequence[KeyValues],
    extra_sections: Sequence[Section] = (),
    mask_name: str = "mask",
    threshold_note: str = "",
) -> Report:
    """The report of a comparison of methods and of the masks made by the best of them.

    Args:
        results: Of :func:`adcam.evaluation.compare.compare_methods`.
        masks: Scores of the masks on disk.
        images: The split they were scored on.
        title: Of the page.
        subtitle: Data and model in one line.
        command: What makes this report again.
        choose_split: Split on which thresholds were chosen.
        lead_rows: Pictures of the first screen.
        more_rows: Best, median and worst images.
        seconds: Wall time by stage.
        times: Where the time of the comparison went.
        provenance: Versions, settings, hashes.
        extra_sections: Placed before the class scores.
        mask_name: What the masks on disk are, e.g. ``"AD-CAM + CRF"``.
        threshold_note: How the masks' threshold was chosen.

    Returns:
        The report; :func:`adcam.report.render.write_report` writes it.
    """
    class_set = images.class_set
    scores = {item.spec.name: item.result.miou for item in results}
    summary, honest = describe_ranking(scores)
    legend = [("background", class_set.palette[0])] + [
        (name, class_set.palette[value])
        for name, value in zip(class_set.classes, class_set.mask_values, strict=True)
    ]
    lead: list[Block] = [*honest, comparison_table(results, images.split, choose_split, command)]
    if lead_rows:
        lead.append(
            PictureGrid(lead_rows, "Score maps by method, and the masks.", legend, max_side=320)
        )
    swept = [item for item in results if item.curve is not None]
    curves = [threshold_curves(swept, images.split)] if swept else []
    sections = [
        *[Section("Over the whole range of thresholds", [curve]) for curve in curves],
        *extra_sections,
        Section("By class", [per_class_scores(results, masks, mask_name, class_set)]),
        Section("What is taken for what", [confusion_matrix(masks, class_set)]),
    ]
    if more_rows:
        caption = "The best, the middle and the worst images by mIoU of their mask."
        sections.insert(
            len(curves), Section("Best, median, worst", [PictureGrid(more_rows, caption)])
        )
    timings = [Timing(name, value) for name, value in seconds.items()]
    spent: list[Block] = [TimeTable(timings, describe_machine()), evaluation_times(times)]
    sections.append(Section("Where the time went", spent))
    # A CRF is shown beside the maps it starts from, and compared with nothing that has none.
    unrefined = [item for item in results if item.spec.crf == "none"]
    plain = {item.spec.name: item.result.miou for item in unrefined} or scores
    others = [value for name, value in plain.items() if not name.startswith("AD-CAM")]
    best_name = max(plain, key=lambda name: plain[name])
    headlines = [
        Headline(f"{best_name}, {images.split}", plain[best_name], "% mIoU", "maps, threshold"),
        Headline(f"{mask_name}, {images.split}", masks.miou, "% mIoU", threshold_note),
    ]
    if others and best_name.startswith("AD-CAM"):
        gain = plain[best_name] - max(others)
        headlines.append(Headline("over the next method", gain, "points"))
    return Report(
        title=title,
        subtitle=subtitle,
        summary=[summary],
        headlines=headlines,
        lead=lead,
        sections=sections,
        provenance=provenance,
    )


def describe_ranking(scores: Mapping[str, float]) -> tuple[str, list[Text]]:
    """One sentence on the ranking, and a caution where AD-CAM is not first."""
    order = sorted(scores, key=lambda name: -scores[name])
    summary = "mIoU: " + ", ".join(f"{name} {scores[name]:.1f}" for name in order) + "."
    if order[0].startswith("AD-CAM"):
        return summary, []
    text = (
        f"AD-CAM does not win here: {order[0]} reaches {scores[order[0]]:.1f}. "
        "docs/results holds the numbers on real photographs."
    )
    return summary, [Text([text], tone="caution")]


def comparison_table(
    results: Sequence[MethodResult], split: str, choose_split: str, command: str
) -> Table:
    """mIoU by method, with the threshold and where it was chosen."""
    return Table(
        columns=[
            Column("method"),
            Column("scales"),
            Column("CRF"),
            Column("threshold", digits=2),
            Column(f"mIoU {choose_split}", hint="where the threshold was chosen"),
            Column(f"mIoU {split}", best="max", bar_max=100.0),
            Column("best on split", hint="with the threshold chosen on the reported split"),
        ],
        rows=[
            [
                item.spec.name,
                "/".join(map(str, item.spec.views.scales))
                + (" flip" if item.spec.views.flip else ""),
                "–" if item.spec.crf == "none" else item.spec.crf,
                item.threshold,
                item.chosen_miou,
                item.result.miou,
                item.curve.best_miou if item.curve else None,
            ]
            for item in results
        ],
        caption=(
            f"Mean over classes of the data set's IoU, %; image labels given; one global "
            f"threshold a method, chosen on {choose_split}, reported on {split}."
        ),
        command=command,
    )


def evaluation_times(times: Mapping[str, EvaluationTimes]) -> Table:
    """Seconds of each step of the comparison, on both splits together."""
    seconds: Counter[str] = Counter()
    for part in times.values():
        seconds.update(part.seconds)
    total = sum(part.total * part.num_processes for part in times.values())
    return Table(
        columns=[
            Column("step"),
            Column("seconds", digits=1, hint="summed over threads and processes"),
            Column("share of the processes' time, %", digits=0),
        ],
        rows=[[step, spent, 100 * spent / max(total, 1e-9)] for step, spent in seconds.items()],
        caption="Each image is read once and each network sees it once for each set of views; "
        "all methods share these passes.",
    )


def threshold_curves(results: Sequence[MethodResult], split: str) -> Curves:
    """mIoU over the background threshold, the chosen one marked."""
    series = []
    for item in results:
        if item.curve is None:
            continue
        chosen = (item.threshold, item.result.miou)
        series.append(Series(item.spec.name, item.curve.thresholds, item.curve.miou, chosen))
    names = [entry.name for entry in series]
    return Curves(
        series,
        "background threshold",
        f"mIoU on {split}, %",
        "Dots: the threshold chosen on the other split.",
        emphasis=next((name for name in names if name.startswith("AD-CAM")), ""),
    )


def per_class_scores(
    results: Sequence[MethodResult], masks: MeanIoUResult, mask_name: str, class_set: ClassSet
) -> PerClass:
    """IoU of every class for every method and for the masks."""
    values = (0, *class_set.mask_values)
    by_method = {
        item.spec.name: [item.result.iou_per_class[value] for value in values] for item in results
    }
    by_method[mask_name] = [masks.iou_per_class[value] for value in values]
    return PerClass([class_set.name_of_value(value) for value in values], by_method)


def confusion_matrix(masks: MeanIoUResult, class_set: ClassSet) -> Confusion:
    """Which class is taken for which, in pixels."""
    values = [0, *class_set.mask_values]
    counts = masks.confusion[np.ix_(values, values)].tolist()
    names = [class_set.name_of_value(value) for value in values]
    return Confusion(names, counts, "Pixels of the masks; ignored ones are left out.")


def make_picture_rows(
    comparison: MethodComparison, images: ImageDataset, *, each: int
) -> list[PictureRow]:
    """Image, ground truth, every method's map and the mask, of best, middle and worst images.

    Args:
        comparison: The comparison with its pictures.
        images: The images that the masks are of.
        each: How many best, middle and worst images.
    """
    kept = {picture.index: picture for picture in comparison.pictures}
    mious = comparison.masks.mious
    ranking = sorted((mious[p.img_id], i) for i, p in kept.items() if p.class_ids)
    rows = []
    for index in pick_spread(ranking, each=each):
        picture = kept[index]
        rows.append(
            picture_row(
                picture.img_id,
                picture.img,
                score_maps={name: picture.score_map(name) for name in picture.maps},
                palette=images.class_set.palette,
                labels=[images.class_set.classes[i] for i in picture.class_ids],
                gt=picture.gt,
                masks=picture.masks,
                values=dict.fromkeys(picture.masks, mious[picture.img_id]),
            )
        )
    return rows


def pick_spread(per_image: Sequence[tuple[float, int]], each: int) -> list[int]:
    """Indices of the best, the middle and the worst images, ``each`` of them, best first."""
    order = [index for _, index in reversed(per_image)]
    if len(order) <= 3 * each:
        return order
    middle = len(order) // 2 - each // 2
    return order[:each] + order[middle : middle + each] + order[-each:]


def describe_machine() -> str:
    """Processor count, threads and torch version in one line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, {device}, "
        f"torch {torch.__version__}, Python {platform.python_version()}, adcam {__version__}"
    )
