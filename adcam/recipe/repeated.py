"""``adcam compare`` on several classifiers: each by itself, then mean and spread over all.

Every classifier is a comparison of :mod:`adcam.recipe.compare` in a folder of its name, with its
own stages. They are as they would be alone, so a classifier that is added, replaced or interrupted
leaves the others as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adcam.errors import AdcamError
from adcam.evaluation.spread import MethodSpread, compute_spreads, format_spread_csv
from adcam.files import hash_values, to_json, write_json, write_text
from adcam.recipe import compare
from adcam.recipe.blocks import Run
from adcam.recipe.compare import RESULTS_NAME, TABLE_NAME, Comparison, ComparisonRecipe
from adcam.recipe.inputs import hash_files_in
from adcam.recipe.repeated_report import RepeatedResults, build_repeated_report
from adcam.recipe.scores import BoxScores, MethodScores
from adcam.recipe.stages import Recipe, Stage, read_recipe, report_stage
from adcam.report.render import write_report
from adcam.settings import Settings
from adcam.structures import ClassSet

_OWN_FOLDERS = ("train", "compare", "report")


@dataclass(frozen=True)
class RepeatedComparison(ComparisonRecipe):
    """Methods side by side on several classifiers.

    Attributes:
        members: The comparison on each classifier, by the name of its folder.
    """

    members: Mapping[str, Comparison]

    @property
    def stages(self) -> Sequence[Stage[RepeatedComparison]]:
        """``NAME/train`` and ``NAME/compare`` of each classifier, then the table and the report."""
        parts = [stage for name in self.members for stage in self._stages_of(name)]
        compared = [stage.name for stage in parts if stage.name.endswith("/compare")]
        table = Stage(
            "compare",
            "mean and spread over the classifiers",
            tuple(compared),
            _describe_table,
            lambda repeated: [TABLE_NAME, RESULTS_NAME],
            _run_table,
        )
        return [*parts, table, report_stage(make_report, [stage.name for stage in (*parts, table)])]

    def _stages_of(self, name: str) -> list[Stage[RepeatedComparison]]:
        return [
            stage.within(
                lambda repeated: repeated.members[name],
                needs=[f"{name}/{needed}" for needed in stage.needs],
                folder=name,
            )
            for stage in self.members[name].stages
            if stage.name != "report"
        ]


AnyComparison = Comparison | RepeatedComparison


def open_comparison(settings: Settings, work_dir: str | Path, **options: Any) -> AnyComparison:
    """Read and check a comparison on one classifier or on several; nothing is written.

    Args:
        settings: Settings with the section ``compare``.
        work_dir: The folder that everything goes into.
        **options: ``title``, ``command`` and ``table_only`` of
            :func:`adcam.recipe.compare.open_comparison`.

    Raises:
        AdcamError: The section is missing, names something unknown, or files are missing.
    """
    members = {
        name: compare.open_comparison(changed, Path(work_dir) / name, **options)
        for name, changed in find_members(settings).items()
    }
    if not members:
        return compare.open_comparison(_take_only(settings), work_dir, **options)
    first = next(iter(members.values()))
    words = (first.title, first.command)
    return RepeatedComparison(
        Path(work_dir), *words, settings, members, table_only=first.table_only
    )


def load_comparison(work_dir: str | Path) -> AnyComparison:
    """The comparison that filled a folder, to make its report again.

    Raises:
        AdcamError: The folder holds no comparison of ``adcam compare``.
    """
    values = read_recipe(work_dir)
    try:
        return open_comparison(
            Settings(values["settings"], values["filename"]),
            work_dir,
            **{key: values[key] for key in ("title", "command", "table_only")},
        )
    except (KeyError, TypeError) as error:
        raise AdcamError(f"{work_dir}: not a comparison of `adcam compare` ({error})") from error


def find_members(settings: Settings) -> dict[str, Settings]:
    """The settings of the comparison on each classifier, by its name; empty with only one.

    Raises:
        AdcamError: Two classifiers share a name, or a name is none that a folder here can have.
    """
    section = settings.compare
    changes: dict[str, dict[str, Any]] = {}
    if len(section.seeds) > 1:
        _check_trained(settings)
        changes = {f"seed-{seed}": {"compare.seeds": [seed]} for seed in section.seeds}
    elif not isinstance(section.checkpoint, str | None) and len(section.checkpoint) > 1:
        named = section.checkpoint
        files = named if isinstance(named, Mapping) else name_files(named)
        changes = {name: {"compare.checkpoint": path} for name, path in files.items()}
    for name in changes:
        if not re.fullmatch(r"\w[\w.-]*", name) or name in _OWN_FOLDERS:
            raise AdcamError(
                f"compare.checkpoint: {name!r} cannot be the name of a classifier's folder: use "
                f"letters, digits, '.', '_' and '-', and none of {', '.join(_OWN_FOLDERS)}"
            )
    return {name: settings.with_changes(changed) for name, changed in changes.items()}


def name_files(paths: Sequence[str]) -> dict[str, str]:
    """Name files by the part of their paths in which they differ.

    Raises:
        AdcamError: A file is given twice, or two paths give one name.

    Example:
        >>> name_files(["w/gpu 1.safetensors", "w/cpu.safetensors"])
        {'gpu_1': 'w/gpu 1.safetensors', 'cpu': 'w/cpu.safetensors'}
        >>> list(name_files(["a/train/classifier.safetensors", "b/train/classifier.safetensors"]))
        ['a', 'b']
    """
    parts = [Path(path).expanduser().absolute().with_suffix("").parts for path in paths]
    start = _count_common(parts)
    end = _count_common([part[start:][::-1] for part in parts])
    named: dict[str, str] = {}
    for path, part in zip(paths, parts, strict=True):
        middle = "-".join(part[start : len(part) - end]) or part[-1]
        name = re.sub(r"[^\w.-]+", "_", middle).lstrip(".-") or "classifier"
        if name in named:
            raise AdcamError(
                f"compare.checkpoint: {named[name]} and {path} would both be called {name!r}; give "
                "names, as in compare.checkpoint={'first': 'a.safetensors', ...}"
            )
        named[name] = path
    return named


def _count_common(parts: Sequence[Sequence[str]]) -> int:
    """The number of leading parts that all have in common."""
    shortest = min(map(len, parts))
    return next((i for i in range(shortest) if len({part[i] for part in parts}) > 1), shortest)


def _take_only(settings: Settings) -> Settings:
    """The settings with the only file of a list of one as ``compare.checkpoint``."""
    checkpoint = settings.compare.checkpoint
    if isinstance(checkpoint, str | None):
        return settings
    files = checkpoint.values() if isinstance(checkpoint, Mapping) else checkpoint
    return settings.with_changes({"compare.checkpoint": next(iter(files))})


def _check_trained(settings: Settings) -> None:
    """Refuse seeds where no network is trained."""
    section = settings.compare
    named = {row.network for row in section.rows if row.method}
    given = {name for name in named if str(section.networks.get(name)).endswith(".safetensors")}
    if named == given:
        raise AdcamError(
            "compare.seeds trains classifiers, but every row has a network that is a file"
        )


def make_report(repeated: RepeatedComparison) -> Path:
    """Write ``report/report.html`` from what the stages left; no network runs.

    Raises:
        AdcamError: There are no scores yet, or no masks since only the table was asked for.
    """
    by_boxes = repeated.is_by_boxes
    read: Callable[[Comparison, Recipe], Any] = (
        compare.read_box_results if by_boxes else compare.read_results
    )
    first = next(iter(repeated.members.values()))
    results = RepeatedResults(
        run=Run.of(repeated, {"comparison": repeated.settings.to_dict()}),
        rows=compute_rows(repeated),
        members={name: read(member, member) for name, member in repeated.members.items()},
        measure="MaxBoxAccV2" if by_boxes else "mIoU",
        reference=repeated.settings.compare.reference_row,
        class_set=first.report_set().class_set,
        split=repeated.settings.compare.report_on,
        num_images=len(first.report_set()),
    )
    return write_report(build_repeated_report(results), repeated.folder("report"))


def compute_rows(repeated: RepeatedComparison) -> list[MethodSpread]:
    """Mean and spread of every method over the classifiers, which have all been compared on.

    Raises:
        AdcamError: A classifier has no scores yet.
    """
    section, members = repeated.settings.compare, repeated.members.values()
    if repeated.is_by_boxes:
        boxes = [compare.read_box_methods(member) for member in members]
        scores = [{found.name: _measure_boxes(found) for found in methods} for methods in boxes]
        return compute_spreads(section.rows, scores, section.reference_row)
    class_set = next(iter(members)).report_set().class_set
    masks = [compare.read_methods(member) for member in members]
    scores = [{m.name: _measure_masks(m, class_set) for m in methods} for methods in masks]
    influences = [{found.name: found.influences for found in methods} for methods in masks]
    return compute_spreads(section.rows, scores, section.reference_row, influences)


def _measure_masks(scores: MethodScores, class_set: ClassSet) -> dict[str, float]:
    oracle = float("nan") if scores.best_miou is None else scores.best_miou
    return {
        "miou": scores.miou,
        "miou_choosing": scores.chosen_miou,
        "best_miou_oracle": oracle,
        **{
            class_set.name_of_value(value): scores.iou_per_class[value]
            for value in (0, *class_set.mask_values)
        },
    }


def _measure_boxes(scores: BoxScores) -> dict[str, float]:
    return {
        "max_box_acc_v2": scores.max_box_acc_v2,
        **{f"box_acc_{100 * delta:.0f}": acc for delta, acc in scores.box_acc.items()},
        "max_box_acc": scores.max_box_acc,
        "gt_known": scores.gt_known,
        **{f"top{k}_loc": value for k, value in scores.top_loc.items()},
        "max_box_acc_v2_oracle": scores.oracle_v2,
    }


def _describe_table(repeated: RepeatedComparison) -> dict[str, Any]:
    rows = repeated.settings.to_dict()["compare"]["rows"]
    return {
        "classifiers": {
            name: member.outputs("compare")["files"][RESULTS_NAME]
            for name, member in repeated.members.items()
        },
        "reference": repeated.settings.compare.reference_row,
        "rows": hash_values({"rows": hash_files_in(rows)}),
    }


def _run_table(repeated: RepeatedComparison, folder: Path) -> dict[str, Any]:
    rows, names = compute_rows(repeated), list(repeated.members)
    write_text(folder / TABLE_NAME, format_spread_csv(rows, names))
    methods = [
        {
            "name": row.spec.name,
            "verdict": row.verdict,
            "difference": row.difference and list(row.difference.values),
            "image_error": row.image_error,
            "difference_image_error": row.difference_image_error,
            "measures": {measure: list(spread.values) for measure, spread in row.measures.items()},
        }
        for row in rows
    ]
    values = {
        "split": repeated.settings.compare.report_on,
        "reference": repeated.settings.compare.reference_row,
        "classifiers": names,
        "methods": methods,
    }
    write_json(folder / RESULTS_NAME, to_json(values))
    return {}
