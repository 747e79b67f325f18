"""``adcam demo``: everything, on generated pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adcam.cli.arguments import add_command, add_stage_arguments, check_weights, stage_choices
from adcam.cli.console import EXIT_OK, print_comparison, say_next, show


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "demo",
        run,
        "make pictures, train, compare the methods, write a report",
        """\
        Show the whole job on generated pictures: draw them, train a classifier, compare the
        methods, make masks, train a network on them, and write WORK_DIR/report/report.html. The
        same command again resumes where it stopped.""",
        """\
        adcam demo
        adcam demo --quick --work-dir /tmp/demo
        adcam demo --task localization
        """,
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path("work_dirs/demo"), help="default: %(default)s"
    )
    parser.add_argument(
        "--task",
        choices=("segmentation", "localization"),
        default="segmentation",
        help="masks, or boxes of single animals (default: %(default)s)",
    )
    add_stage_arguments(parser, ("data", "train", "compare", "network", "photographs", "report"))
    parser.add_argument("--quick", action="store_true", help="fewer pictures, shorter training")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="ImageNet weights of a ViT: adds real photographs to the report",
    )
    parser.add_argument(
        "--from-scratch", action="store_true", help="do not start from the weights shipped here"
    )


def run(args: argparse.Namespace) -> int:
    check_weights(args)
    from adcam.demo.demo import open_demo
    from adcam.recipe.stages import run_stages

    demo = open_demo(
        args.work_dir,
        task=args.task,
        quick=args.quick,
        weights=args.weights,
        from_scratch=args.from_scratch,
    )
    run_stages(demo, **stage_choices(args))
    if demo.is_done("compare"):
        print_comparison(demo.comparison)
    if demo.page.is_file():
        show(f"report: {demo.page}")
    say_next("look at the report; for photographs of your own: adcam init --images photos/")
    return EXIT_OK
