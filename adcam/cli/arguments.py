"""How a command is added, and options that several commands have."""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adcam.cli.console import EXIT_CODES
from adcam.errors import AdcamError, naming

# Of `add_argument`, for maps of other projects.
CAM_FORMAT: dict[str, Any] = {
    "dest": "cam_format",
    "choices": ("auto", "irn", "psa", "psa_crf", "clip_es", "puzzlecam"),
    "default": "auto",
    "help": "whose files they are (default: %(default)s, which looks at them)",
}


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int] | None,
    summary: str,
    description: str,
    examples: str,
    *,
    of: str = "",
) -> argparse.ArgumentParser:
    """Add the parser of a command, or of an action ``of`` a command.

    The summary stands in the list of commands, description and examples in the command's own help.
    ``run`` is ``None`` where there are only actions.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.dedent(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples), "  ") + "\n" + EXIT_CODES,
    )
    parser.add_argument("--debug", action="store_true", help="show where an error was raised")
    parser.add_argument(
        "--limits",
        nargs="+",
        default=[],
        metavar="NAME=N",
        help="what a file may ask for: image_pixels, file_bytes, json_bytes, classes, annotations; "
        "worker_memory, in bytes",
    )
    parser.set_defaults(run=run, command=f"{of} {name}".strip())
    return parser


def add_config_arguments(
    parser: argparse.ArgumentParser, *, nargs: str | None = None, also: str = ""
) -> None:
    """Add CONFIG (``nargs="?"``: it may be left out), ``--work-dir`` and ``--cfg-options``."""
    parser.add_argument(
        "config",
        nargs=nargs,
        type=Path,
        metavar="CONFIG",
        help="a config, or the name of one that comes with adcam, such as voc12/adcam_deit-tiny "
        f"(adcam configs lists them){also}",
    )
    parser.add_argument(
        "--work-dir", type=Path, help="where results go (default: work_dirs/<name of the config>)"
    )
    add_cfg_options(parser)


def add_cfg_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change values of the config, e.g. train.epochs=3 data.train=[train]",
    )
    parser.add_argument(
        "--safe-config",
        action="store_true",
        help="read configs of plain values alone (.json, .toml, .yaml), of which nothing is run",
    )


def add_stage_arguments(
    parser: argparse.ArgumentParser, names: Sequence[str], *, has_parts: bool = False
) -> None:
    """Add ``--only``, ``--skip`` and ``--redo`` of a recipe.

    With ``has_parts`` the config adds stages of other names, which are checked later.
    """
    choices = None if has_parts else tuple(names)
    parser.epilog = f"stages: {', '.join(names)}\n\n{parser.epilog}"
    for option, text in (
        ("--only", "look at these stages and no others"),
        ("--skip", "leave these stages as they are, up to date or not"),
        ("--redo", "start these stages over, whatever they hold"),
    ):
        parser.add_argument(
            option, nargs="+", choices=choices, default=[], metavar="STAGE", help=text
        )


def stage_choices(args: argparse.Namespace) -> dict[str, Any]:
    """The stages of ``--only``, ``--skip`` and ``--redo``, as arguments of ``run_stages``."""
    return {"only": args.only, "skip": args.skip, "redo": args.redo}


def add_launcher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch", "slurm"),
        default="none",
        help="who started the processes of distributed training (default: %(default)s)",
    )


def work_dir_of(args: argparse.Namespace) -> Path:
    """``--work-dir``, or a folder named after the config."""
    return args.work_dir or Path("work_dirs") / args.config.stem


def load_settings(args: argparse.Namespace) -> Any:
    """The settings of CONFIG with ``--cfg-options`` applied; its network is one that there is."""
    from adcam.settings import Settings
    from adcam.settings import load_settings as load

    settings: Settings = load(args.config, parse_pairs("--cfg-options", args.cfg_options))
    if "model" in settings:
        _check_backbone(settings.model)
    return settings


def _check_backbone(model: Any) -> None:
    """Refuse the name of an unknown network before torch is loaded."""
    from adcam.models.known_names import check_timm_name, check_vit_name
    from adcam.settings import NonlocalCamSettings, TokenCamSettings

    checks = {TokenCamSettings: check_vit_name, NonlocalCamSettings: check_timm_name}
    if (check := checks.get(type(model))) is not None:
        with naming("model.backbone"):
            check(model.backbone)


def check_weights(args: argparse.Namespace) -> None:
    """Refuse ``--weights`` of a file that is not there, before torch loads or anything runs."""
    if args.weights not in (None, "timm") and not Path(args.weights).expanduser().is_file():
        raise AdcamError(f"--weights {args.weights}: there is no such file")


def parse_pairs(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """Values of ``KEY=VALUE`` texts by their keys; ``option`` names them in errors."""
    from adcam.overrides import parse_overrides

    for text in texts:
        if "=" not in text:
            raise AdcamError(f"{option} takes key=value, got {text!r}")
    return parse_overrides(texts)


def read_limit_options(texts: Sequence[str]) -> dict[str, str]:
    """Values of ``--limits`` by their names."""
    for text in texts:
        if "=" not in text:
            raise AdcamError(f"--limits takes NAME=N, got {text!r}")
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def command_line(args: argparse.Namespace, work_dir: Path) -> str:
    """The line that runs a command with a config again, for its report."""
    words = ["adcam", args.command, str(args.config), "--work-dir", str(work_dir)]
    return shlex.join([*words, *(["--cfg-options", *args.cfg_options] if args.cfg_options else [])])
