"""``adcam verify``: an output folder against its manifest."""

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
from adcam.cli.labeler import add_folder_argument

_SHOWN = 20


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "verify",
        run,
        "check an output folder against its manifest",
        """\
        Compare the masks and maps in DIR with the sizes and hashes (SHA-256) in its manifest. Files
        that are missing, have changed, or belong to no image are named, and the exit code is 1.
        Packed results are compared part by part.""",
        """\
        adcam verify out
        adcam verify out --sizes
        """,
    )
    add_folder_argument(parser)
    parser.add_argument(
        "--sizes", action="store_true", help="compare sizes alone, which reads none of the files"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything found there")


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from adcam.files import write_json
    from adcam.labeling.packed_parts import find_config
    from adcam.labeling.verify import verify_folder

    found = verify_folder(args.folder, by_size=args.sizes)
    if args.json:
        write_json(args.json, asdict(found))
    rest = ", --json has all of them"
    if found.changes:
        log(f"{len(found.changes)} images are not as they were written:")
        log_failures(found.changes, rest=rest)
    if found.orphans:
        many = "1 file belongs" if len(found.orphans) == 1 else f"{len(found.orphans)} files belong"
        log(f"{many} to no image of the manifest:")
        log_failures(dict.fromkeys(found.orphans, "no image has it"), rest=rest)
    for sentence in found.others[:_SHOWN]:
        log(sentence)
    if found.unknown:
        log(f"{found.unknown} images were not labelled yet")
    verdict = "as its manifest says" if found.is_intact else "NOT as its manifest says"
    end = "" if found.is_sound or not found.is_intact else "; the run has not ended"
    counts = f"{found.ok} images sound, {found.failed} without a result"
    show(f"{args.folder} is {verdict}: {counts}{end}")
    if found.is_sound and find_config(args.folder) is not None:
        say_next(f"adcam convert unpack {args.folder} --out OUT makes a file an image of it")
    elif found.is_sound:
        say_next(f"adcam evaluate {args.folder} --gt TRUTH, or adcam convert for other formats")
    elif found.orphans and not (found.changes or found.others or found.unknown):
        say_next("remove these files; all else is sound")
    else:
        say_next("the same adcam generate command makes what is missing or has changed again")
    return EXIT_OK if found.is_sound else EXIT_SOME_FAILED
