"""``adcam run``: the whole recipe of a config, from labels to a segmentation network."""

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
from adcam.cli.console import EXIT_OK, say_next, show


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "run",
        run,
        "train, make masks, train a network on them, report",
        """\
        The whole recipe of a config: train the classifier, refine it on its own class maps if
        recipe.refine is set (stages maps and refine), make pseudo masks, score them, train a
        segmentation network on them, test it, and write WORK_DIR/report/report.html. Each stage
        records what it was made from and what it made, so that the same command again does what
        is missing or no longer true, and nothing else.""",
        """\
        adcam run configs/voc_animals/adcam_deit-tiny_fcn.py --work-dir work
        adcam run configs/voc_animals/adcam_deit-tiny_fcn.py --work-dir work --skip segment test
        adcam run my_recipe.py --work-dir work --only evaluate report
        adcam run my_recipe.py --work-dir work --redo segment --cfg-options mask.crf=toco
        """,
    )
    add_config_arguments(parser)
    names = ("train", "maps", "refine", "generate", "evaluate", "segment", "test", "report")
    add_stage_arguments(parser, names)


def run(args: argparse.Namespace) -> int:
    settings, work_dir = load_settings(args), work_dir_of(args)
    from adcam.recipe.run import open_recipe
    from adcam.recipe.stages import run_stages

    recipe = open_recipe(
        settings,
        work_dir,
        title=f"{args.config.stem}: masks from labels, a network from masks",
        command=command_line(args, work_dir),
    )
    run_stages(recipe, **stage_choices(args))
    if recipe.page.is_file():
        show(f"report: {recipe.page}")
        say_next(f"look at the report; adcam report {work_dir} writes it again")
    else:
        say_next("the same command without --skip or --only, for the stages that are missing")
    return EXIT_OK
