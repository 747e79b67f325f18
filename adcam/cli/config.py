"""``adcam config show``: what a config comes to, key by key."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adcam.cli.arguments import add_cfg_options, add_command, parse_pairs
from adcam.cli.console import EXIT_OK, say_next, show
from adcam.cli.project import find_project
from adcam.errors import AdcamError

if TYPE_CHECKING:
    from adcam.settings import ConfigSettings


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "config",
        None,
        "show what a config comes to, key by key",
        "Look at a config: `adcam config show`.",
        "adcam config show voc12/adcam_deit-small\n",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    parser = add_command(
        actions,
        "show",
        run,
        "print all keys of a config with their values and meaning",
        """\
        Print all keys of a config, with what it and the configs that it begins with say, the
        defaults of the rest, and what each means. In a folder that `adcam init` set up, CONFIG is
        its adcam.toml.""",
        """\
        adcam config show
        adcam config show voc12/adcam_deit-small
        adcam config show voc12/adcam_deit-small --section train --cfg-options train.epochs=3
        """,
        of="config",
    )
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="a file, or a name (adcam configs)"
    )
    parser.add_argument("--section", metavar="NAME", help="only this section, such as train")
    add_cfg_options(parser)
    parser.set_defaults(complete=complete)


def complete(args: argparse.Namespace) -> None:
    """Without CONFIG, take that of the project in this folder."""
    if args.config is None:
        args.config = find_project(args, "CONFIG").config
    elif args.config.is_dir():
        args.config = args.config / "adcam.toml"


def run(args: argparse.Namespace) -> int:
    from adcam.installation import find_config, find_config_command, read_summary
    from adcam.project.project import CONFIG_NAME
    from adcam.settings import SegmentationSettings, Settings, load_settings

    path = find_config(args.config)
    is_network = "seg" in path.parts or "train_pipeline" in path.read_text("utf-8")
    kind: type[ConfigSettings] = SegmentationSettings if is_network else Settings
    overrides = parse_pairs("--cfg-options", args.cfg_options)
    settings = load_settings(path, overrides, kind=kind)
    entries = settings.entries()
    if args.section is not None and args.section not in entries:
        raise AdcamError(f"there is no section {args.section!r}; there are {', '.join(entries)}")
    show(f"{path}: {read_summary(path)}")
    # What goes to mmengine as it is comes last.
    for name in sorted(entries, key=lambda name: not entries[name].kinds()):
        if args.section in (None, name) and (lines := [*_describe(name, settings)]):
            show("\n".join(["", *lines]))
    name = str(args.config)
    command = find_config_command(name.removeprefix("configs/"), path)
    say_next(f"adcam {command}" + ("" if name == CONFIG_NAME else f" {name}"))
    return EXIT_OK


def _describe(name: str, settings: ConfigSettings) -> Iterator[str]:
    """Lines on one name at the top of a config; none for what it lacks and has no default of."""
    import inspect

    entry = settings.entries()[name]
    if name not in settings and (entry.default is None or not entry.kinds()):
        return
    given = settings.to_dict().get(name)
    value = getattr(settings, name)
    if is_dataclass(value):
        summary = (inspect.getdoc(type(value)) or "").partition("\n\n")[0]
        yield f"[{name}]  {_plain(' '.join(summary.split()))}"
        yield from _describe_section(value, given if isinstance(given, Mapping) else {})
    elif value is not None:
        yield from _format(name, value)
        yield from _wrap(entry.text)


def _describe_section(section: Any, given: Mapping[str, Any]) -> Iterator[str]:
    from adcam.options import describe_range, read_choices, read_meanings

    meanings = read_meanings(type(section))
    for item in fields(section):
        if not item.init:
            continue
        *lines, last = _format(item.name, getattr(section, item.name))
        yield from (f"  {line}" for line in lines)
        yield f"  {last}" + ("" if item.name in given else "  (default)")
        choices = read_choices(item.metadata)
        legal = f"one of {', '.join(choices)}" if choices else describe_range(item.metadata)
        meaning = _plain(meanings[item.name])
        yield from _wrap(f"{meaning} Legal: {legal}." if legal else meaning)


def _format(name: str, value: Any) -> list[str]:
    """A value as lines of `key = value`, keys of keys dotted; of many sections, their names."""
    if isinstance(value, Mapping) and value:
        return [line for key, item in value.items() for line in _format(f"{name}.{key}", item)]
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return [line for i, item in enumerate(value) for line in _format(f"{name}.{i}", item)]
    if isinstance(value, tuple):
        value = [getattr(item, "name", item) for item in value]
    elif is_dataclass(value):
        return _format(name, {item.name: getattr(value, item.name) for item in fields(value)})
    return [f"{name} = {value!r}"]


def _plain(text: str) -> str:
    """A docstring's text without its markup."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 96, initial_indent="      ", subsequent_indent="      ")
