"""``adcam info``: versions, devices and backends."""

from __future__ import annotations

import argparse
from typing import Any

from adcam.cli.arguments import add_command
from adcam.cli.console import EXIT_OK, print_table, say_next, show

_NEXT = "adcam demo shows everything; adcam init --images photos/ begins with your own"


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "info",
        run,
        "show versions, devices and backends",
        "Show versions, devices and backends, and why a backend cannot run.",
        "adcam info\nadcam info --json\n",
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    import json

    from adcam.installation import collect_info

    info = collect_info()
    if args.json:
        show(json.dumps(info, indent=2))
        say_next(_NEXT)
        return EXIT_OK
    for title, values in info.items():
        rows = [(name, _state(title, value)) for name, value in values.items()]
        print_table(("", ""), rows, title.replace("_", " "))
    show("The CRF lattice uses numba, or reference where numba cannot run;")
    show("lattice-gpu uses triton, or torch where triton cannot run.")
    say_next(_NEXT)
    return EXIT_OK


def _state(title: str, value: Any) -> str:
    if title in ("op_backends", "crf_backends", "features"):
        return "ready" if value is None else f"cannot run: {value}"
    return (
        {"versions": "not installed", "threads": "not set"}[title] if value is None else str(value)
    )
