"""``adcam compare``: the methods of a config in one table."""

from __future__ import annotations

import argparse
from typing import Any

from adcam.cli.arguments import (
    add_command,
    add_config_arguments,
    add_stage_arguments,
    command_line,
    load_settings,
    stage_choices,
    work_dir_of,
)
from adcam.cli.console import EXIT_OK, print_comparison, say_next, show


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "compare",
        run,
        "score all methods of a config in one table",
        """\
        Score the methods that a config lists under `compare`, each at the threshold chosen on one
        split and reported on another. Takes WORK_DIR/classifier.safetensors of `adcam train`, or
        trains the classifier. The last row makes the masks. Writes WORK_DIR/compare/compare.csv
        and WORK_DIR/report/report.html. The same command again resumes where it stopped.

        With several classifiers (compare.seeds or compare.checkpoint) each is compared on in
        WORK_DIR/NAME, and the table has mean, spread, and which differences are none. A stage of
        one classifier is NAME/train or NAME/compare; NAME alone means both.""",
        """\
        adcam compare configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py --work-dir work
        adcam compare configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py --table-only
        adcam compare CONFIG --cfg-options compare.seeds=[1,2,3]
        adcam compare CONFIG --cfg-options compare.checkpoint=[a.safetensors,b.safetensors]
        """,
    )
    add_config_arguments(parser)
    add_stage_arguments(parser, ("train", "compare", "report"), has_parts=True)
    parser.add_argument(
        "--table-only", action="store_true", help="write compare.csv, no masks and no report"
    )


def run(args: argparse.Namespace) -> int:
    settings, work_dir = load_settings(args), work_dir_of(args)
    from adcam.recipe.compare import TABLE_NAME
    from adcam.recipe.repeated import open_comparison
    from adcam.recipe.stages import run_stages

    shown = "boxes" if settings.task == "localization" else "methods"
    comparison = open_comparison(
        settings,
        work_dir,
        title=f"{args.config.stem}: {shown} side by side",
        command=command_line(args, work_dir),
        table_only=args.table_only,
    )
    choices = stage_choices(args)
    if args.table_only:
        choices["skip"] = [*choices["skip"], "report"]
    run_stages(comparison, **choices)
    if comparison.is_done("compare"):
        print_comparison(comparison)
        show(f"table: {comparison.folder('compare') / TABLE_NAME}")
    if comparison.page.is_file() and not args.table_only:
        show(f"report: {comparison.page}")
        say_next(f"look at the report; adcam report {work_dir} writes it again")
    else:
        say_next(f"the same command without --table-only, --skip or --only, for {work_dir}/report")
    return EXIT_OK
