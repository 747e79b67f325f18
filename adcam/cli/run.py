"""``adcam run``: the whole recipe of a config, from labels to a segmentation network."""

from __future__ import annotations

import argparse
from typing import Any

from adcam.cli.arguments import (
    add_command,
    add_config_arguments,
    command_line,
    load_config,
    work_dir_of,
)
from adcam.cli.console import EXIT_OK, show


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "run",
        run,
        "train, make masks, train a network on them, report",
        """\
        The whole recipe of a config: train the classifier, make pseudo masks, score them, train a
        segmentation network on them, test it, and write WORK_DIR/report/report.html. The stages are
        train, generate, evaluate, segment, test, report; each records what it was made from, so
        that the same command again does what is missing or no longer true, and nothing else.""",
        """\
        adcam run configs/voc_animals/adcam_deit-tiny_fcn.py --work-dir work
        adcam run configs/voc_animals/adcam_deit-tiny_fcn.py --work-dir work --skip segment test
        adcam run my_recipe.py --work-dir work --only evaluate report
        adcam run my_recipe.py --work-dir work --redo segment --cfg-options mask.crf=lattice
        """,
    )
    add_config_arguments(parser)
    names = ("train", "generate", "evaluate", "segment", "test", "report")
    parser.add_argument("--only", nargs="+", choices=names, default=[], help="look at no other")
    parser.add_argument(
        "--skip", nargs="+", choices=names, default=[], help="take what is there, true or not"
    )
    parser.add_argument(
        "--redo", nargs="+", choices=names, default=[], help="run again from nothing"
    )


def run(args: argparse.Namespace) -> int:
    import shlex

    from adcam.recipe.recipe import open_recipe, run_recipe

    work_dir = work_dir_of(args)
    recipe = open_recipe(
        load_config(args),
        work_dir,
        title=f"{args.config.stem}: masks from labels, a network from masks",
        command=shlex.join(command_line(args, "--work-dir", str(work_dir))),
    )
    run_recipe(recipe, only=args.only, skip=args.skip, redo=args.redo)
    if (page := recipe.folder("report") / "report.html").is_file():
        show(f"report: {page}")
    return EXIT_OK
