"""``adcam demo``: everything, on generated pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adcam.cli.arguments import add_command
from adcam.cli.console import EXIT_OK


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "demo",
        run,
        "make pictures, train, compare the methods, write a report",
        """\
        Show the whole job on generated pictures: make the set, train a classifier, compare the
        methods, generate masks, score them, and write report.html.""",
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
    from adcam.demo.demo import run_demo

    run_demo(
        args.work_dir,
        task=args.task,
        quick=args.quick,
        weights=args.weights,
        from_scratch=args.from_scratch,
    )
    return EXIT_OK
