"""``adcam compare``: the methods of a config in one table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adcam.cli.arguments import (
    add_command,
    add_config_arguments,
    command_line,
    load_config,
    work_dir_of,
)
from adcam.cli.console import EXIT_OK, print_table, show

if TYPE_CHECKING:
    from adcam.evaluation.compare import MethodResult
    from adcam.evaluation.compare_boxes import BoxResult


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "compare",
        run,
        "score all methods of a config in one table",
        """\
        Score the methods that a config lists under `compare`, each at the threshold chosen on one
        split and reported on another. Trains first if WORK_DIR has no classifier. The last row
        makes the masks. Writes compare.csv, masks_<split>/ and report.html into WORK_DIR.""",
        """\
        adcam compare configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py --work-dir work
        """,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--table-only", action="store_true", help="write compare.csv, no masks and no report"
    )


def run(args: argparse.Namespace) -> int:
    cfg, work_dir = load_config(args), work_dir_of(args)
    compare = _compare_boxes if cfg.get("task") == "localization" else _compare_masks
    report = compare(args, cfg, work_dir)
    show(f"table: {work_dir / 'compare.csv'}")
    if report is not None:
        show(f"report: {report}")
    return EXIT_OK


def _compare_masks(args: argparse.Namespace, cfg: Any, work_dir: Path) -> Path | None:
    from adcam.progress import track
    from adcam.recipe.compare import run_compare
    from adcam.recipe.experiment import print_results, run_experiment

    report = None
    if args.table_only:
        results: Sequence[MethodResult] = run_compare(cfg, work_dir, progress=track).found.results
    else:
        title = f"{args.config.stem}: methods side by side"
        experiment = run_experiment(cfg, work_dir, title=title, command=command_line(args))
        results, report = experiment.results, experiment.report
    print_results(results, cfg.compare.choose_on, cfg.compare.report_on)
    return report


def _compare_boxes(args: argparse.Namespace, cfg: Any, work_dir: Path) -> Path | None:
    from adcam.progress import track
    from adcam.recipe.box_report import run_box_experiment
    from adcam.recipe.compare import run_compare_boxes

    report = None
    if args.table_only:
        comparison = run_compare_boxes(cfg, work_dir, progress=track)
    else:
        title = f"{args.config.stem}: boxes side by side"
        comparison, report = run_box_experiment(
            cfg, work_dir, title=title, command=command_line(args)
        )
    _print_boxes(comparison.found.results, comparison.images.split)
    return report


def _print_boxes(results: Sequence[BoxResult], split: str) -> None:
    deltas = list(results[0].boxes.box_acc)
    header = ("method", "MaxBoxAccV2", *(f"IoU {delta:g}" for delta in deltas))
    rows = []
    for item in results:
        values = [item.boxes.max_box_acc_v2, *item.boxes.box_acc.values()]
        values += [item.localization.gt_known, item.localization.top_loc[1]]
        values.append(item.boxes_oracle.max_box_acc_v2)
        rows.append((item.spec.name, *(f"{value:.1f}" for value in values)))
    title = f"Boxes on {split}, percent; thresholds chosen on: {results[0].chosen_on}"
    print_table((*header, "GT-known", "Top-1 Loc", "V2, oracle"), rows, title)
