"""The command line: reads arguments, calls :mod:`adcam.pipeline`, prints what comes back.

Each command is a module: ``add`` defines its options, and ``run`` below carries it out and returns
the exit code: 0 all is done, 1 some images failed, 2 the command cannot be carried out, 130
interrupted. Everything heavy is imported by the command that needs it, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence

from adcam.cli import (
    boxes,
    compare,
    convert,
    demo,
    evaluate,
    generate,
    info,
    report,
    run,
    segment,
    train,
)
from adcam.cli.console import EXIT_CODES, EXIT_ERROR, EXIT_INTERRUPTED, log, show_warnings
from adcam.version import __version__

# In the order of `adcam --help`.
_COMMANDS = (demo, train, generate, evaluate, boxes, compare, convert, segment, run, report, info)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_ERROR
    show_warnings()
    try:
        code: int = args.run(args)
    except (ValueError, OSError) as error:
        # What a caller can mend: wrong values, and files that are missing or cannot be written.
        if args.debug:
            raise
        log(f"adcam {args.command}: error: {error}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        log(f"adcam {args.command}: interrupted")
        return EXIT_INTERRUPTED
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="adcam",
        description="Pixel masks from image-level labels.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=textwrap.dedent(
            """\
            the usual way:
              adcam train configs/voc_animals/adcam_deit-tiny_10e_voc-animals.py --work-dir work
              adcam generate photos/ --checkpoint work/classifier.safetensors --out masks
              adcam evaluate masks --gt photos/truth
            or all of it, and a network that learns from the masks:
              adcam run configs/voc_animals/adcam_deit-tiny_fcn.py --work-dir work

            new here? `adcam demo` shows everything on made-up pictures.

            """
        )
        + EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"adcam {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser
