"""``adcam merge``: one manifest for what shards have made."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adcam.cli.arguments import add_command
from adcam.cli.console import (
    EXIT_OK,
    EXIT_SOME_FAILED,
    log,
    log_failures,
    say_next,
    show,
)


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "merge",
        run,
        "join the shards of `adcam generate --shard`",
        """\
        Join the manifests that the shards of a run have left in DIR, after a check that none of
        the images is missing. DIR is then the same as after a run on one machine.""",
        """\
        adcam merge out
        """,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="--out of `adcam generate`")


def run(args: argparse.Namespace) -> int:
    from adcam.labeling.merge import merge_shards

    result = merge_shards(args.folder)
    log(f"{result.ok} images have a mask, {len(result.failed)} have none")
    log_failures(result.failed, rest=f", see {args.folder / 'manifest.jsonl'}")
    show(args.folder / "manifest.jsonl")
    say_next(f"adcam verify {args.folder}")
    return EXIT_SOME_FAILED if result.failed else EXIT_OK
