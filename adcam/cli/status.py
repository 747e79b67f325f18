"""``adcam status``: how far a run is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adcam.cli.arguments import add_command
from adcam.cli.console import EXIT_OK, EXIT_SOME_FAILED, print_table, say_next, show
from adcam.cli.labeler import add_folder_argument

if TYPE_CHECKING:
    from adcam.labeling.status import RunStatus

_SHOWN = 30


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "status",
        run,
        "show how far a run of `adcam generate` is",
        """\
        Show how many images of DIR are done, failed and missing, the rate and the time left, and
        who is at work, from any machine that sees the folder. The exit code is 1 until every image
        is done, also where one has failed.""",
        """\
        adcam status out
        """,
    )
    add_folder_argument(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")


def run(args: argparse.Namespace) -> int:
    from adcam.files import write_json
    from adcam.labeling.status import format_seconds, read_status

    status = read_status(args.folder)
    if args.json:
        write_json(args.json, status.to_dict())
    of = "" if status.images is None else f" of {status.images} images"
    left = "" if status.missing is None else f", {status.missing} missing"
    show(f"{args.folder}: {status.ok}{of} done, {status.failed} failed{left}")
    if status.rate:
        show(f"{status.rate:.2f} images/s, {format_seconds(status.seconds_left)} left")
    _print_shards(status)
    if status.failed or status.missing or status.images is None:
        say_next("the same adcam generate command does what is missing and tries again what failed")
        return EXIT_SOME_FAILED
    say_next(f"adcam verify {args.folder}")
    return EXIT_OK


def _print_shards(status: RunStatus) -> None:
    """Print the shards that are not done, those at work first."""
    waiting = [shard for shard in status.shards if shard.describe() != "done"]
    waiting.sort(key=lambda shard: (not shard.holder, shard.state.shard.index))
    if len(status.shards) > 1:
        show(f"{len(status.shards) - len(waiting)} of {len(status.shards)} shards are done")
    if not waiting:
        return
    rows = [
        (
            "the whole" if shard.state.shard.is_whole else str(shard.state.shard),
            *("–" if n is None else str(n) for n in (shard.state.ok, shard.state.failed)),
            "–" if shard.state.missing is None else str(shard.state.missing),
            shard.describe(),
        )
        for shard in waiting[:_SHOWN]
    ]
    more = f" (the first {_SHOWN} of {len(waiting)})" if len(waiting) > _SHOWN else ""
    print_table(("shard", "done", "failed", "missing", "state"), rows, f"Not done yet{more}")
