"""``adcam configs``: the configs that come with adcam."""

from __future__ import annotations

import argparse
from typing import Any

from adcam.cli.arguments import add_command
from adcam.cli.console import EXIT_OK, say_next, show
from adcam.errors import AdcamError


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "configs",
        run,
        "list the configs that come with adcam",
        """\
        List the configs that come with adcam, with the command that each is made for. Their names
        go where a command asks for CONFIG, in a checkout or not. The length of the training and the
        data set at the end of a file's name are left out here, and may be.""",
        """\
        adcam configs
        adcam configs voc12
        adcam train voc12/adcam_deit-small
        """,
    )
    parser.add_argument("word", nargs="?", default="", metavar="WORD", help="only those with WORD")


def run(args: argparse.Namespace) -> int:
    from adcam.installation import (
        find_config_command,
        list_configs,
        read_summary,
        shorten_config_name,
    )

    rows = [
        (shorten_config_name(name), find_config_command(name, path), read_summary(path))
        for name, path in list_configs().items()
    ]
    word = args.word.casefold()
    shown = [row for row in rows if word in " ".join(row).casefold()]
    if not shown:
        raise AdcamError(
            f"no config has {args.word!r} in its name or text; adcam configs lists all"
        )
    width = max(len(name) for name, _, _ in shown)
    for name, command, summary in shown:
        show(f"{name:<{width}}  {summary} ({command})")
    say_next(f"adcam config show {shown[0][0]}")
    return EXIT_OK
