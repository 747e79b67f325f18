"""``adcam report``: the report of a recipe, written again."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adcam.cli.arguments import add_command
from adcam.cli.console import EXIT_OK, say_next, show
from adcam.cli.project import find_project
from adcam.errors import AdcamError


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "report",
        run,
        "write the report of `run`, `compare`, `demo` or `generate` again",
        """\
        Write WORK_DIR/report/report.html again from the files that the stages of `adcam run`,
        `adcam compare` or `adcam demo` left, or from the masks of `adcam generate`. No network
        runs. In a folder that `adcam init` set up, WORK_DIR is the folder of its masks unless you
        name another.""",
        """\
        adcam report
        adcam report work
        adcam report out --gt VOC2012/SegmentationClass
        adcam report work --beside other_work
        """,
    )
    parser.add_argument(
        "work_dir",
        nargs="?",
        type=Path,
        metavar="WORK_DIR",
        help="the folder of `adcam run`, `adcam compare` or `adcam demo`, or --out of `generate`",
    )
    parser.add_argument(
        "--gt",
        type=Path,
        metavar="GT_DIR",
        help="true masks <id>.png: the masks of `generate` are scored and shown beside them",
    )
    parser.add_argument(
        "--beside",
        type=Path,
        metavar="OTHER",
        help="also write a page that shows the images of this folder's report and of OTHER's side "
        "by side",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="its folder (default: WORK_DIR/beside/OTHER)"
    )
    parser.set_defaults(complete=complete)


def complete(args: argparse.Namespace) -> None:
    """Without WORK_DIR, take the masks of the project in this folder."""
    if args.work_dir is None:
        args.work_dir = find_project(args, "WORK_DIR").out
        if not args.work_dir.is_dir():
            raise AdcamError(f"{args.work_dir}: there are no masks yet; first: adcam generate")


def run(args: argparse.Namespace) -> int:
    if args.out is not None and args.beside is None:
        raise AdcamError("--out goes with --beside OTHER")
    show(f"report: {_write(args)}")
    if args.beside is not None:
        from adcam.recipe.beside import write_beside

        out = args.out or args.work_dir / "beside" / args.beside.resolve().name
        show(f"side by side: {write_beside(args.work_dir, args.beside, out)}")
    say_next("open it in a browser; it needs no network")
    return EXIT_OK


def _write(args: argparse.Namespace) -> Path:
    from adcam.labeling.output_folder import MANIFEST_NAME
    from adcam.recipe import NO_RECORD, RECIPE_NAME

    record = args.work_dir / RECIPE_NAME
    if not record.is_file() and (args.work_dir / MANIFEST_NAME).is_file():
        from adcam.recipe.generation_report import write_generation_report

        return write_generation_report(args.work_dir, gt_dir=args.gt)
    if not record.is_file():
        raise AdcamError(
            f"{record}: {NO_RECORD}: there is no such file, and no {MANIFEST_NAME} of "
            "`adcam generate` either"
        )
    if args.gt is not None:
        raise AdcamError(f"--gt is for masks of `adcam generate`; {args.work_dir} holds none")
    from adcam.demo import demo
    from adcam.recipe import repeated
    from adcam.recipe import run as masks
    from adcam.recipe.stages import Recipe, read_recipe, remake_report

    load: dict[str, Callable[[Path], Recipe]] = {
        "run": masks.load_recipe,
        "compare": repeated.load_comparison,
        "demo": demo.load_demo,
    }
    kind = read_recipe(args.work_dir)["recipe"]
    if kind not in load:
        raise AdcamError(f"{args.work_dir}: recipe must be one of {', '.join(load)}, got {kind!r}")
    return remake_report(load[kind](args.work_dir))
