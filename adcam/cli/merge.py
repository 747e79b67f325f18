"""``adcam merge``: one manifest for what shards have made."""

from __future__ import annotations

import argparse
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
from adcam.cli.labeler import add_folder_argument


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "merge",
        run,
        "join the shards of `adcam generate --shard`",
        """\
        Join the manifests that the shards of a run have left in DIR, after a check that none of
        the images is missing. DIR is then the same as after a run on one machine.
        Packed results are only checked: their shards keep files of their own.""",
        """\
        adcam merge out
        """,
    )
    add_folder_argument(parser)
    parser.add_argument(
        "--parquet", action="store_true", help="write the manifest also as manifest.parquet"
    )


def run(args: argparse.Namespace) -> int:
    from adcam.labeling.merge import merge_shards
    from adcam.labeling.packed_parts import find_config
    from adcam.remote_files import join

    result = merge_shards(args.folder, parquet=args.parquet)
    is_packed = find_config(args.folder) is not None
    manifest = join(args.folder, "manifest" if is_packed else "manifest.jsonl")
    log(f"{result.ok} images have a mask, {len(result.failed)} have none")
    log_failures(result.failed, rest=f", see {manifest}")
    show(join(args.folder, "manifest.parquet") if args.parquet else manifest)
    say_next(f"adcam verify {args.folder}")
    return EXIT_SOME_FAILED if result.failed else EXIT_OK
