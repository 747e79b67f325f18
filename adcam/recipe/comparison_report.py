"""The report of a comparison of methods by masks: which numbers, which pictures, which words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adcam.data.dataset import ImageDataset
from adcam.evaluation.compare import MethodComparison
from adcam.recipe.blocks import (
    METHOD_COLUMNS,
    Run,
    caution,
    confusion_matrix,
    describe_ranking,
    legend,
    method_cells,
    per_class,
    pick_leads,
    provenance,
    stale_caution,
    time_section,
)
from adcam.recipe.scores import MethodScores, Scores
from adcam.recipe.stages import Values
from adcam.report.figures import display_palette, picture_row
from adcam.report.model import (
    Block,
    Column,
    Curves,
    Headline,
    PictureGrid,
    PictureRow,
    Report,
    Section,
    Series,
    Table,
)
from adcam.structures import ClassSet


@dataclass(frozen=True, eq=False)
class ComparisonResults:
    """All that a report says about a comparison of methods by masks.

    Attributes:
        run: The run.
        methods: The scores of each method.
        masks: The scores of the masks that the last method made.
        mask_name: The name of that method.
        class_set: The classes.
        pictures: The best, the middle and the worst images by their mask, with maps and masks.
        choose_split: The split that thresholds were chosen on.
        subtitle: Data and model in one line.
        explorer: The section in which all images are looked through; ``None`` if there is none.
    """

    run: Run
    methods: Sequence[MethodScores]
    masks: Scores
    mask_name: str
    class_set: ClassSet
    pictures: Sequence[PictureRow]
    choose_split: str
    subtitle: str = ""
    explorer: Section | None = None


def draw_comparison(
    found: MethodComparison, images: ImageDataset, img_ids: Sequence[str]
) -> list[PictureRow]:
    """Image, ground truth, the map of each method without a CRF, and the mask with its mIoU.

    Args:
        found: A comparison that kept its pictures.
        images: The images that the masks are of.
        img_ids: The images to draw.
    """
    kept = {picture.img_id: picture for picture in found.pictures}
    classes, last = images.class_set.classes, found.results[-1].spec.name
    return [
        picture_row(
            picture.img_id,
            picture.img,
            score_maps={name: picture.score_map(name) for name in picture.maps},
            palette=display_palette(images.class_set),
            labels=[classes[i] for i in picture.class_ids],
            gt=picture.gt,
            masks={last: picture.masks[last]},
            values={last: found.masks.mious[picture.img_id]},
        )
        for picture in (kept[img_id] for img_id in img_ids if img_id in kept)
    ]


def build_comparison_report(
    results: ComparisonResults, extra_sections: Sequence[Section] = ()
) -> Report:
    """The report of a comparison of methods and of the masks that the last one made.

    Args:
        results: What the stages left.
        extra_sections: Sections that come before the scores by class.
    """
    run, methods, class_set = results.run, results.methods, results.class_set
    scores = {method.name: method.miou for method in methods}
    rows = results.pictures
    lead: list[Block] = [
        *stale_caution(run),
        *_caution_unless_first(scores),
        scores_table(results, run.command),
    ]
    if rows:
        text = "Score maps by method, and the masks."
        lead.append(PictureGrid(pick_leads(rows), text, legend(class_set), max_side=320))
    sections = [] if results.explorer is None else [results.explorer]
    if swept := [method for method in methods if method.curve]:
        split = results.masks.split
        curves = [threshold_curves(swept, split), precision_recall(swept, split)]
        sections.append(Section("Over the whole range of thresholds", curves))
    if rows:
        text = "The best, the middle and the worst images by mIoU of their mask."
        sections.append(Section("Best, median, worst", [PictureGrid(rows, text)]))
    iou = {method.name: method.iou_per_class for method in methods}
    iou[results.mask_name] = results.masks.iou_per_class
    times = run.stages["compare"]["outputs"].get("times", {})
    text = "Pixels of the masks; ignored ones are left out."
    confusion = confusion_matrix(class_set, results.masks.confusion, text)
    sections += [
        *extra_sections,
        Section("By class", [per_class(class_set, iou)]),
        Section("Confusion matrix", [confusion]),
        time_section(run, evaluation_times(times)),
    ]
    return Report(
        title=run.title,
        subtitle=results.subtitle,
        summary=[describe_ranking("mIoU", scores)],
        headlines=_headlines(results),
        lead=lead,
        sections=sections,
        provenance=provenance(run),
    )


def scores_table(results: ComparisonResults, command: str) -> Table:
    """The mIoU of each method, with its threshold and where that was chosen."""
    split, choose_split = results.masks.split, results.choose_split
    return Table(
        columns=[
            *METHOD_COLUMNS,
            Column("background", hint="below this score, or by this rule of each image"),
            Column(f"mIoU {choose_split}", hint="where thresholds were chosen"),
            Column(f"mIoU {split}", best="max", bar_max=100.0),
            Column("±", hint="standard error over the images: how far others would move the mIoU"),
            Column("best on split", hint="with the threshold chosen on the reported split"),
            Column("loss", hint="what the chosen threshold loses against the best on the split"),
        ],
        rows=[
            [
                *method_cells(method.name, method.scales, method.flip, method.crf),
                method.background + (", given" if method.is_given else ""),
                method.chosen_miou,
                method.miou,
                method.image_error,
                method.best_miou,
                None if method.best_miou is None else method.best_miou - method.miou,
            ]
            for method in results.methods
        ],
        caption=(
            f"Mean over classes of the data set's IoU, %; image labels given; one global "
            f"threshold a method, chosen on {choose_split}, unless it names a rule; reported on "
            f"{split}."
        ),
        command=command,
    )


def threshold_curves(methods: Sequence[MethodScores], split: str) -> Curves:
    """The mIoU over the background threshold, with a dot at the chosen one.

    A rule that decides for each image has no dot.
    """
    series = []
    for method in methods:
        constant = method.threshold if method.rule == "constant" else None
        mark = None if constant is None else (constant, method.miou)
        series.append(Series(method.name, method.thresholds, method.curve, mark))
    return Curves(
        series,
        "background threshold",
        f"mIoU on {split}, %",
        _explain_dots(methods),
        emphasis=_first_of_ours(methods),
    )


def precision_recall(methods: Sequence[MethodScores], split: str) -> Curves:
    """Precision over recall of all classes together, each point a threshold."""
    series = []
    for method in methods:
        at = (
            method.thresholds.index(method.threshold)
            if method.rule == "constant" and method.threshold in method.thresholds
            else None
        )
        mark = None if at is None else (method.recall[at], method.precision[at])
        series.append(Series(method.name, method.recall, method.precision, mark))
    return Curves(
        series,
        f"recall on {split}, %",
        f"precision on {split}, %",
        f"Pixels of all classes but background, at every threshold. {_explain_dots(methods)}",
        emphasis=_first_of_ours(methods),
        x_range=(0.0, 100.0),
        y_range=(0.0, 100.0),
    )


def _first_of_ours(methods: Sequence[MethodScores]) -> str:
    """The name of the curve that is drawn thick; ``""`` without one."""
    return next((method.name for method in methods if method.name.startswith("AD-CAM")), "")


def _explain_dots(methods: Sequence[MethodScores]) -> str:
    given = ", or given" if any(method.is_given for method in methods) else ""
    return f"Dots: the threshold chosen on the other split{given}."


def evaluation_times(times: Mapping[str, Values]) -> list[Block]:
    """The seconds of each step of the comparison, on both splits together.

    Args:
        times: What the stage ``compare`` recorded about each split.
    """
    seconds: Counter[str] = Counter()
    for part in times.values():
        seconds.update(part["seconds"])
    total = sum(part["total"] * part["num_processes"] for part in times.values())
    table = Table(
        columns=[
            Column("step"),
            Column("seconds", digits=1, hint="summed over threads and processes"),
            Column("share of the processes' time, %", digits=0),
        ],
        rows=[[step, spent, 100 * spent / max(total, 1e-9)] for step, spent in seconds.items()],
        caption="Each image is read once and each network sees it once for each set of views; "
        "all methods share these passes.",
    )
    return [table] if seconds else []


def _caution_unless_first(scores: Mapping[str, float]) -> Sequence[Block]:
    first = max(scores, key=lambda name: scores[name])
    if first.startswith("AD-CAM"):
        return []
    return caution(
        f"AD-CAM does not win here: {first} reaches {scores[first]:.1f}. Which method wins depends "
        "on the classifier and on the photographs."
    )


def _headlines(results: ComparisonResults) -> list[Headline]:
    # A method with a CRF is compared with nothing that has none.
    plain = {method.name: method.miou for method in results.methods if method.crf == "none"}
    plain = plain or {method.name: method.miou for method in results.methods}
    split, last = results.masks.split, results.methods[-1]
    best = max(plain, key=lambda name: plain[name])
    note = f"background by {last.background}"
    if last.rule == "constant":
        origin = "given" if last.is_given else f"chosen on {last.chosen_on or results.choose_split}"
        note = f"threshold {last.background}, {origin}"
    headlines = [
        Headline(f"{best}, {split}", plain[best], "% mIoU", "maps, threshold"),
        Headline(f"{results.mask_name}, {split}", results.masks.miou, "% mIoU", note),
    ]
    others = [miou for name, miou in plain.items() if not name.startswith("AD-CAM")]
    if others and best.startswith("AD-CAM"):
        headlines.append(Headline("over the next method", plain[best] - max(others), "points"))
    return headlines
