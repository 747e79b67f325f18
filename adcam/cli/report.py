"""``adcam report``: the report of a finished run, written again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adcam.cli.arguments import add_command
from adcam.cli.console import EXIT_OK, show


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "report",
        run,
        "write the report of a finished run again",
        """\
        Write WORK_DIR/report/report.html again from the files that `adcam run` left, or
        WORK_DIR/report.html of an `adcam compare` by boxes, whose maps are made again.""",
        "adcam report work\n",
    )
    parser.add_argument(
        "work_dir",
        type=Path,
        metavar="WORK_DIR",
        help="of `adcam run`, or of `adcam compare` by boxes",
    )


def run(args: argparse.Namespace) -> int:
    from adcam.recipe.box_report import is_box_comparison, remake_box_report
    from adcam.recipe.recipe import load_recipe, make_report

    if is_box_comparison(args.work_dir):
        page = remake_box_report(args.work_dir)
    else:
        page = make_report(load_recipe(args.work_dir))
    show(f"report: {page}")
    return EXIT_OK
