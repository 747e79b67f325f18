"""``adcam completion``: what makes a shell complete commands, options, configs and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adcam.cli.arguments import add_command
from adcam.cli.console import EXIT_OK, say_next, show

_SHELLS = ("bash", "zsh", "tcsh")

# Where each shell looks for completions of its own accord, or a line that reads them at its start.
_INSTALL = {
    "bash": "adcam completion bash > ~/.local/share/bash-completion/completions/adcam",
    "zsh": "adcam completion zsh > a folder of $fpath, as _adcam",
    "tcsh": "adcam completion tcsh > ~/.adcam.tcsh; add `source ~/.adcam.tcsh` to ~/.tcshrc",
}

# The functions that shtab calls for CONFIG: names of ours, and files.
_PREAMBLE = {
    "bash": """\
_adcam_configs() {{
  compgen -W '{names}' -- "$1"
  compgen -f -- "$1"
}}
""",
    "zsh": """\
_adcam_configs() {{
  compadd -- {names}
  _files
}}
""",
}


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "completion",
        run,
        "print what makes a shell complete adcam's commands and options",
        """\
        Print a script that makes the shell complete commands, options, choices, files and the names
        of configs.""",
        """\
        eval "$(adcam completion bash)"
        adcam completion bash > ~/.local/share/bash-completion/completions/adcam
        adcam completion zsh > ~/.zfunc/_adcam
        """,
    )
    parser.add_argument("shell", choices=_SHELLS, metavar="SHELL", help=", ".join(_SHELLS))


def run(args: argparse.Namespace) -> int:
    import shtab

    from adcam.cli import build_parser
    from adcam.installation import list_configs, shorten_config_name

    parser = build_parser()
    for action in _walk(parser):
        if action.dest == "config" and not action.option_strings:
            action.complete = dict.fromkeys(("bash", "zsh"), "_adcam_configs")  # type: ignore[attr-defined]
        elif action.type is not None and action.choices is None and _names_files(action):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    names = " ".join(shorten_config_name(name) for name in list_configs())
    preamble: Any = {shell: text.format(names=names) for shell, text in _PREAMBLE.items()}
    show(shtab.complete(parser, args.shell, preamble=preamble))
    say_next(f"keep it: {_INSTALL[args.shell]}")
    return EXIT_OK


def _names_files(action: argparse.Action) -> bool:
    """Whether an argument is a path, or a path or URL."""
    return action.type is Path or getattr(action.type, "__name__", "") == "path_or_url"


def _walk(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of the commands below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _walk(below)
