"""What commands return and print: exit codes, messages, tables."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adcam.progress import printable

if TYPE_CHECKING:
    from rich.console import Console

    from adcam.recipe.repeated import AnyComparison, RepeatedComparison
    from adcam.recipe.scores import BoxScores, MethodScores

EXIT_OK, EXIT_SOME_FAILED, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 130, 143

EXIT_CODES = """\
exit codes: 0 everything is done; 1 some images failed or have no mask (they are listed);
2 the command cannot be carried out; 130 interrupted, 143 terminated (the same command resumes;
`train` with --resume)"""

_SHOWN_FAILURES = 20


def show(text: object) -> None:
    """Print a result to standard output, without control characters."""
    print(printable(str(text), multiline=True), flush=True)


def log(text: str) -> None:
    """Print a line to standard error, without control characters: results go to standard output."""
    print(printable(text, multiline=True), file=sys.stderr, flush=True)


def say_next(command: str) -> None:
    """Say on standard error which command comes next."""
    log(f"next: {command}")


class _WarningHandler(logging.Handler):
    """Prints a warning once: a folder that is opened for two lists would say the same twice."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if text not in self._printed:
            self._printed.add(text)
            log(text)


def show_warnings() -> None:
    """Print what the package logs as a warning by :func:`log`, from now on and each text once."""
    logger = logging.getLogger("adcam")
    for handler in [found for found in logger.handlers if isinstance(found, _WarningHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(_WarningHandler())


def log_failures(failures: Mapping[str, str], *, rest: str = "") -> None:
    """Print ids and errors of the first images that failed; ``rest`` says where all are listed."""
    for img_id in list(failures)[:_SHOWN_FAILURES]:
        log(printable(f"  {img_id}: {failures[img_id]}"))
    if rest and (more := len(failures) - _SHOWN_FAILURES) > 0:
        log(f"  … and {more} more{rest}")


_MEAN_NAMES = {"per_image": "mean of images", "gt_present": "mean of true classes"}
"""Names of means that are not those of the rows above them."""


def print_scores(result: Mapping[str, Any], title: str = "Scores in percent") -> None:
    """Print IoU, precision and recall of every class, and how they were counted."""
    rows = [
        (
            name,
            *(
                _percent(result[key][name])
                for key in ("iou_per_class", "precision_per_class", "recall_per_class")
            ),
        )
        for name in result["iou_per_class"]
    ]
    mean = _MEAN_NAMES.get(result["policy"]["average"], "mean")
    rows.append((mean, _percent(result["miou"]), "", ""))
    print_table(("class", "IoU", "precision", "recall"), rows, title)
    policy = ", ".join(f"{key} {value}" for key, value in result["policy"].items())
    ignored = 100 * (result["ignored_share"] or 0)
    error = result.get("miou_image_error")
    told = "" if error is None else f", which leave the mean uncertain by ± {error:.1f} points"
    show(
        f"{result['num_images']} images{told}; {ignored:.1f} % of the pixels left uncertain; "
        f"{policy}"
    )


def print_comparison(comparison: AnyComparison) -> None:
    """Print what each method of a comparison scored, by masks or by boxes."""
    from adcam.recipe.compare import read_box_methods, read_methods
    from adcam.recipe.repeated import RepeatedComparison

    compare = comparison.settings.compare
    if isinstance(comparison, RepeatedComparison):
        _print_spreads(comparison)
    elif comparison.is_by_boxes:
        _print_boxes(read_box_methods(comparison), compare.report_on)
    else:
        _print_methods(read_methods(comparison), compare.choose_on, compare.report_on)


def _print_methods(methods: Sequence[MethodScores], choose_on: str, report_on: str) -> None:
    from adcam.report.text import format_number

    header = (
        "method",
        f"background (numbers chosen on {choose_on})",
        f"mIoU {report_on}, %",
        "± images",
    )
    rows = [
        (
            m.name,
            m.background + (", given" if m.is_given else ""),
            f"{m.miou:.1f}",
            format_number(m.image_error),
        )
        for m in methods
    ]
    print_table(header, rows, "")


def _print_boxes(methods: Sequence[BoxScores], split: str) -> None:
    deltas = [f"IoU {delta:g}" for delta in methods[0].box_acc]
    header = ("method", "MaxBoxAccV2", *deltas, "GT-known", "Top-1 Loc", "V2, oracle")
    rows = [
        (
            m.name,
            *(
                f"{value:.1f}"
                for value in (
                    m.max_box_acc_v2,
                    *m.box_acc.values(),
                    m.gt_known,
                    m.top_loc[1],
                    m.oracle_v2,
                )
            ),
        )
        for m in methods
    ]
    title = f"Boxes on {split}, percent; thresholds chosen on: {methods[0].chosen_on}"
    print_table(header, rows, title)


def _print_spreads(repeated: RepeatedComparison) -> None:
    from adcam.evaluation.spread import has_image_errors
    from adcam.recipe.repeated import compute_rows
    from adcam.report.text import format_number

    compare, rows = repeated.settings.compare, compute_rows(repeated)
    measure = "MaxBoxAccV2" if repeated.is_by_boxes else "mIoU"
    has_errors = has_image_errors(rows)
    header = (
        "method",
        "mean ± std",
        *repeated.members,
        f"against {compare.reference_row}",
        *(["± images"] if has_errors else []),
    )
    lines = [
        (
            row.spec.name,
            row.main.format(),
            *(f"{value:.1f}" for value in row.main.values),
            row.describe_difference(),
            *([format_number(row.difference_image_error)] if has_errors else []),
        )
        for row in rows
    ]
    print_table(header, lines, f"{measure} on {compare.report_on}, percent")
    show(
        "std: sample standard deviation over the classifiers, each with thresholds chosen on "
        f"{compare.choose_on}; none: the mean difference is not larger than its spread"
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """Print a table; one whose header is empty has none."""
    from rich.table import Table

    table = Table(title=printable(title), title_justify="left", show_header=any(header))
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number and any(header) else "left")
    for row in rows:
        table.add_row(*map(printable, row))
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    # A file or a pipe has no width: do not wrap to a terminal's default there.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(width=width, highlight=False, markup=False)
