"""The report of a comparison on several classifiers: mean and spread, then each one folded away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from adcam.evaluation.spread import MethodSpread, has_image_errors
from adcam.recipe import box_report, comparison_report
from adcam.recipe.blocks import (
    METHOD_COLUMNS,
    Run,
    caution,
    legend,
    method_cells,
    pick_leads,
    provenance,
    stale_caution,
    time_section,
)
from adcam.recipe.box_report import BoxResults
from adcam.recipe.comparison_report import ComparisonResults
from adcam.report.model import (
    Block,
    Cell,
    Column,
    Differences,
    Headline,
    PerClass,
    PictureGrid,
    Report,
    Section,
    Table,
)
from adcam.structures import ClassSet

_IMAGE_ERROR = "standard error of the mean difference over the images: how far others would move it"


@dataclass(frozen=True, eq=False)
class RepeatedResults:
    """All that a report says about a comparison on several classifiers.

    Attributes:
        run: The run.
        rows: Mean and spread of each method.
        members: What the comparison on each classifier left, by its name.
        measure: What tables call the measure that counts.
        reference: The name of the method that others are compared with.
        class_set: The classes.
        split: The split that is reported.
        num_images: The number of its images that are scored.
    """

    run: Run
    rows: Sequence[MethodSpread]
    members: Mapping[str, ComparisonResults | BoxResults]
    measure: str
    reference: str
    class_set: ClassSet
    split: str
    num_images: int


def build_repeated_report(results: RepeatedResults) -> Report:
    """The report of a comparison on several classifiers."""
    run, names = results.run, list(results.members)
    return Report(
        title=run.title,
        subtitle=f"{results.class_set.name}: {results.num_images} images of {results.split}; "
        f"{len(names)} classifiers: {', '.join(names)}",
        summary=describe_spreads(results),
        headlines=_headlines(results),
        lead=[
            *stale_caution(run),
            *_caution_unless_first(results),
            spread_table(results),
            *_first_pictures(results),
        ],
        sections=[
            *_explorer(results),
            Section("Differences", [*difference_bars(results), *_by_class(results)]),
            *(
                Section(f"Classifier {name}", _blocks_of(member, results.split), folded=True)
                for name, member in results.members.items()
            ),
            time_section(run),
        ],
        provenance=provenance(run),
    )


def describe_spreads(results: RepeatedResults) -> list[str]:
    """Mean and spread from the best to the worst, and the differences that are none."""
    order = sorted(results.rows, key=lambda row: -row.main.mean)
    listed = "; ".join(f"{row.spec.name} {row.main.format()}" for row in order)
    none = [row.spec.name for row in results.rows if row.verdict == "none"]
    told = f"No difference from {results.reference} beyond its uncertainty: {'; '.join(none)}."
    return [
        f"{results.measure}, mean ± sample standard deviation over {len(results.members)} "
        f"classifiers: {listed}.",
        *([told] if none else []),
    ]


def spread_table(results: RepeatedResults) -> Table:
    """Mean and spread of each method, each classifier's number, and the paired difference."""
    has_errors = has_image_errors(results.rows)
    columns = [
        *METHOD_COLUMNS,
        Column(f"mean {results.measure} {results.split}", best="max", bar_max=100.0),
        Column("±", hint="sample standard deviation over the classifiers"),
        *(Column(name, hint=f"{results.measure} with this classifier") for name in results.members),
        Column(
            f"difference from {results.reference}",
            hint="mean ± sample standard deviation of the paired differences",
        ),
        *([Column("± images", hint=_IMAGE_ERROR)] if has_errors else []),
    ]
    rows: list[list[Cell]] = [
        [
            *method_cells(row.spec.name, row.spec.views.scales, row.spec.views.flip, row.spec.crf),
            row.main.mean,
            row.main.std,
            *row.main.values,
            row.describe_difference(),
            *([row.difference_image_error] if has_errors else []),
        ]
        for row in results.rows
    ]
    caption = (
        f"{results.measure} on {results.split}, %. Every classifier has thresholds of its own, "
        "chosen on the other split. A difference is taken classifier by classifier; one whose mean "
        "is not larger than its spread, or than its error over the images, is called none."
    )
    return Table(columns, rows, caption, results.run.command)


def difference_bars(results: RepeatedResults) -> list[Differences]:
    """The mean difference of each method from the reference, of those that have one."""
    told = [(row.spec.name, row.difference) for row in results.rows if row.verdict != "none"]
    shown = {name: difference.mean for name, difference in told if difference is not None}
    caption = f"Mean difference from {results.reference} over the classifiers, unless called none."
    label = f"points of {results.measure}"
    if not shown:
        return []
    return [Differences(list(shown), list(shown.values()), label, caption)]


def _by_class(results: RepeatedResults) -> list[Block]:
    """The mean IoU of each class, of methods that are scored by masks."""
    class_set = results.class_set
    names = [class_set.name_of_value(value) for value in (0, *class_set.mask_values)]
    if any(name not in results.rows[0].measures for name in names):
        return []
    iou = {row.spec.name: [row.measures[name].mean for name in names] for row in results.rows}
    return [PerClass(names, iou, caption="Mean over the classifiers.")]


def _explorer(results: RepeatedResults) -> list[Section]:
    """The images with the maps and masks of the first classifier."""
    name, member = next(iter(results.members.items()))
    if member.explorer is None:
        return []
    title = f"{member.explorer.title} (classifier {name})"
    return [replace(member.explorer, title=title)]


def _blocks_of(member: ComparisonResults | BoxResults, split: str) -> list[Block]:
    """The table and the curves of one classifier."""
    if isinstance(member, BoxResults):
        curves = box_report.threshold_curves(member.methods, split)
        return [box_report.box_table(member.methods, split, ""), *curves]
    swept = [method for method in member.methods if method.curve]
    table = comparison_report.scores_table(member, "")
    return [table, *([comparison_report.threshold_curves(swept, split)] if swept else [])]


def _first_pictures(results: RepeatedResults) -> list[PictureGrid]:
    """A few images with the maps that the first classifier gives."""
    name, member = next(iter(results.members.items()))
    leads = pick_leads(member.pictures)
    text = f"The first classifier, {name}: score maps by method."
    if not leads:
        return []
    if isinstance(member, BoxResults):
        colors = box_report.BOX_LEGEND
        return [PictureGrid(leads, text, colors, max_side=320, shows_ignored=False)]
    return [PictureGrid(leads, text, legend(results.class_set), max_side=320)]


def _caution_unless_first(results: RepeatedResults) -> Sequence[Block]:
    reference = next(row for row in results.rows if row.difference is None)
    # A method with a CRF is compared with nothing that has none.
    better = [
        f"{row.spec.name} ({row.main.format()})"
        for row in results.rows
        if row.verdict == "higher" and row.spec.crf == reference.spec.crf
    ]
    if not better:
        return []
    return caution(f"Better than {results.reference} here: {'; '.join(better)}.")


def _headlines(results: RepeatedResults) -> list[Headline]:
    rows = {row.spec.name: row for row in results.rows}
    reference = rows[results.reference]
    best = max(results.rows, key=lambda row: row.main.mean)
    shown = list(dict.fromkeys([best.spec.name, results.reference]))
    note = f"mean of {len(results.members)} classifiers"
    headlines = [
        Headline(f"{name}, {results.split}", rows[name].main.format(), f"% {results.measure}", note)
        for name in shown
    ]
    others = [
        row
        for row in results.rows
        if row.spec.method != reference.spec.method and row.spec.crf == reference.spec.crf
    ]
    if others:
        next_best = max(others, key=lambda row: row.main.mean)
        gain = reference.main.minus(next_best.main)
        text = gain.format(signed=True)
        shown_gain = ("none", "", text) if next_best.verdict == "none" else (text, "points")
        headlines.append(Headline(f"{results.reference} over {next_best.spec.name}", *shown_gain))
    return headlines
