"""``adcam init``: a project from photographs and whatever labels they have."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from adcam.cli.arguments import add_command
from adcam.cli.console import EXIT_OK
from adcam.cli.project import add_label_arguments, say_next_in, set_up
from adcam.errors import AdcamError


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "init",
        run,
        "set up a project for your own photographs: no config to write",
        """\
        Set up a project: look at photographs and their labels, say what is there, draw the lists
        to learn from and to validate on, and write PROJECT/adcam.toml. In that folder
        `adcam train`, `generate`, `report` and `convert` then run without options.

        Labels are a table (.csv of any dialect, .tsv, .xlsx, .json), COCO's or Label Studio's
        .json, CVAT's .xml, a folder of VOC's .xml or YOLO's .txt files, or 'folders' for one folder
        a class. Without --labels they are looked for beside the photographs.""",
        """\
        adcam init --images photos/
        adcam init birds --images photos/ --labels birds.xlsx
        adcam init birds --images photos/ --labels labels.csv --classes robin,wren,jay
        """,
    )
    parser.add_argument(
        "project",
        nargs="?",
        type=Path,
        default=Path(),
        metavar="PROJECT",
        help="the folder to set up (default: this one)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="needed: the folder of the photographs, with sub-folders; it is read, never changed",
    )
    add_label_arguments(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the files of a project that is there"
    )


def run(args: argparse.Namespace) -> int:
    if args.images is None:
        given = "photos/" if args.project == Path() else shlex.quote(str(args.project))
        raise AdcamError(f"--images is missing: adcam init --images {given}, where photographs are")
    project = set_up(args, args.images, args.project, overwrite=args.overwrite)
    say_next_in(project, "adcam train")
    return EXIT_OK
