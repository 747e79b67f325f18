"""The command line: reads arguments, calls the room that does the work, prints the result.

Each command is a module: its ``add`` defines the options, and its ``run`` does the work and returns
the exit code: 0 everything is done, 1 some images failed, 2 the command cannot be carried out, 130
interrupted, 143 terminated. A command imports what it needs when it runs, so that ``--help`` is
quick and a missing file is reported at once.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from adcam.cli import (
    boxes,
    calibrate,
    compare,
    completion,
    config,
    configs,
    convert,
    demo,
    evaluate,
    generate,
    import_checkpoint,
    info,
    init,
    merge,
    refine,
    report,
    run,
    segment,
    status,
    train,
    verify,
)
from adcam.cli.arguments import read_limit_options
from adcam.cli.console import (
    EXIT_CODES,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    log,
    show_warnings,
)
from adcam.cli.signals import Terminated, describe_end, end_process, orderly_end
from adcam.errors import AdcamError, explain_memory, lacks_memory
from adcam.limits import use_limits
from adcam.plain_config import use_safe_configs
from adcam.version import __version__

# In the order of `adcam --help`.
_COMMANDS = (
    demo,
    init,
    train,
    import_checkpoint,
    calibrate,
    generate,
    status,
    merge,
    verify,
    refine,
    evaluate,
    boxes,
    compare,
    convert,
    segment,
    run,
    report,
    configs,
    config,
    completion,
    info,
)

# Arguments that name something to read, whatever the command, and what it is.
_INPUTS = {
    "images": "image, list or folder",
    "maps": "folder",
    "source": "file or folder",
    "voc": "folder",
    "pred_dir": "folder",
    "folder": "folder",
    "gt": "folder",
    "metadata": "folder",
    "choose_maps": "folder",
    "choose_metadata": "folder",
    "mask_root": "folder",
    "checkpoint": "checkpoint",
    "ids": "list of ids",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Mistakes of the user (:class:`AdcamError`) and files that cannot be read or written
    (:class:`OSError`) are reported in one line. Any other exception is a fault of this program,
    and its traceback is shown.

    Args:
        argv: The arguments after the name of the program; by default those of the process.

    Returns:
        The exit code.
    """
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        command = _find_parser(parser, args)
        command.exit(
            EXIT_ERROR, f"{command.prog}: error: {_explain_unknown(command, args, unknown)}\n"
        )
    if args.command is None:
        parser.print_help(sys.stderr)
        return EXIT_ERROR
    if "words" in args:
        args.words = list(sys.argv[1:] if argv is None else argv)
    show_warnings()
    let_waiting_threads_sleep()
    let_algebra_load()
    try:
        with (
            orderly_end(args.command),
            use_limits(read_limit_options(args.limits)),
            use_safe_configs(getattr(args, "safe_config", False)),
        ):
            if complete := getattr(args, "complete", None):
                complete(args)
            _check_inputs(args)
            code: int = args.run(args)
    except BrokenPipeError:  # `adcam configs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except (AdcamError, OSError, MemoryError, ImportError, RuntimeError) as error:
        message = _explain(error)
        if message is None or args.debug:
            raise
        log(f"adcam {args.command}: error: {message}")
        return EXIT_ERROR
    except KeyboardInterrupt as error:
        code = EXIT_TERMINATED if isinstance(error, Terminated) else EXIT_INTERRUPTED
        log(f"adcam {args.command}: {describe_end(code)}")
        if argv is None:
            end_process(code)
        return code
    return code


def _explain(error: Exception) -> str | None:
    """What to tell the user of an error; ``None`` where it is a fault of this program."""
    if isinstance(error, AdcamError):
        return str(error)
    if lacks_memory(error):
        return explain_memory(error)
    if isinstance(error, ModuleNotFoundError):
        from adcam.installation import explain_missing

        return explain_missing(error)
    return str(error) if isinstance(error, OSError) else None


def let_waiting_threads_sleep() -> None:
    """Bound how long a thread of OpenMP spins while it waits for others, before torch is loaded.

    By default that is 300,000 rounds, milliseconds in which nobody else can have the processor: on
    a machine that others use too, the thread that is waited for among them (docs/performance.md).
    That is GCC's OpenMP, of torch's wheels for Linux. LLVM's, of those for macOS (torch's setup.py,
    ``_embed_libomp``), and Intel's spin for 200 ms (llvm-project, openmp/runtime/src/kmp.h). What
    the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        os.environ.setdefault("KMP_BLOCKTIME", "0")


def _find_parser(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> argparse.ArgumentParser:
    """The parser of the command that was called, of `adcam convert WHAT` the one of WHAT."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and getattr(args, action.dest, None):
            name = getattr(args, action.dest).split()[0]  # `command` may be "segment check"
            return _find_parser(action.choices[name], args)
    return parser


def _explain_unknown(
    parser: argparse.ArgumentParser, args: argparse.Namespace, unknown: Sequence[str]
) -> str:
    """What is wrong with words that belong to no option."""
    message = f"unrecognized arguments: {' '.join(unknown)}"
    option = next((word.partition("=")[0] for word in unknown if word.startswith("--")), None)
    if option:
        close = difflib.get_close_matches(option, parser._option_string_actions, n=1)
        message += f"; did you mean {close[0]}?" if close else f"; see {parser.prog} --help"
    if getattr(args, "classes", None) and not any(word.startswith("-") for word in unknown):
        names = ",".join([args.classes, *unknown])
        message += f'; put commas between classes: --classes "{names}"'
    return message


def _check_inputs(args: argparse.Namespace) -> None:
    """Refuse files that are missing before anything heavy is imported."""
    from adcam.installation import find_config

    if getattr(args, "config", None) is not None:
        find_config(args.config)
    for name, what in _INPUTS.items():
        path = getattr(args, name, None)
        # What is behind a URL or a pattern shows when it is opened.
        if isinstance(path, Path) and "*" not in path.name and not path.exists():
            raise AdcamError(f"{path}: there is no such {what}")
    device = getattr(args, "device", None)
    if device is not None and not re.match(r"(cpu|cuda|mps|xpu)(:\d+)?$", device):
        raise AdcamError(f"--device is cpu, cuda, or cuda:1 for the second GPU, got {device!r}")
    labels = getattr(args, "labels", None)
    if labels is not None and Path(labels).suffix and not Path(labels).exists():
        raise AdcamError(f"--labels {labels}: there is no such file")


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line; the usage of some commands would fill the screen."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        for option in (word.partition("=")[0] for word in self._words if word.startswith("--")):
            if "required" in message and option not in self._option_string_actions:
                close = difflib.get_close_matches(option, self._option_string_actions, n=1)
                message += f"; did you mean {close[0]} by {option}?" if close else ""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            close = difflib.get_close_matches(found[1], re.findall(r"[\w-]+", found[2]), n=1)
            message += f"; did you mean {close[0]}?" if close else ""
        hint = "" if message.endswith("?") else f"; see {self.prog} --help"
        self.exit(EXIT_ERROR, f"{self.prog}: error: {message}{hint}\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="adcam",
        description="Pixel masks from image-level labels.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=textwrap.dedent(
            """\
            your own photographs, with labels of any kind, and no config to write:
              adcam init --images photos/ --labels labels.csv
              adcam train
              adcam generate
              adcam convert
            a data set of others, with a config that comes with adcam (adcam configs):
              adcam train voc12/adcam_deit-small --work-dir work
              adcam generate VOC2012 --voc-split train_aug \\
                  --checkpoint work/classifier.safetensors --out masks
            the whole recipe, with a network that learns from the masks:
              adcam run voc12/adcam_deit-small_deeplabv3plus --work-dir work

            new here? `adcam demo` shows everything on generated pictures.

            """
        )
        + EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"adcam {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser


def let_algebra_load() -> None:
    """Let OpenBLAS use one thread where memory is bounded (``ulimit -v``), before numpy loads it.

    While it is loaded it asks for memory for each thread, and if there is too little it tries
    again without end. With one thread it gives up.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
