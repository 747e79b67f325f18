"""What a terminal shows: progress of a loop, and text that may hold the names of people's files.

Progress goes to standard error: a bar on a terminal, a line now and then elsewhere.
"""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

LINE_INTERVAL_S = 30.0
"""Seconds between two lines where there is no terminal (a log file, a batch system)."""

T = TypeVar("T")


def printable(text: str, *, multiline: bool = False) -> str:
    r"""Return a text with its control characters spelled out, such as ``\x1b``.

    A file name may hold any character. Printed raw, some of them move the cursor, rename the window
    or reverse the direction of writing, so that the terminal does not show the name; others cannot
    be printed at all.

    Args:
        text: Anything that is to be printed.
        multiline: Whether line breaks are kept.

    Example:
        >>> print(printable("evil\x1b[2Jname\n"))
        evil\x1b[2Jname\n
    """
    if text.isprintable():
        return text
    keep = "\n" if multiline else ""
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if (unicodedata.category(char) in _CONTROLS or char in _DIRECTIONS) and char not in keep
        else char
        for char in text
    )


_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, separators of lines
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the items and show how far the loop is, its rate and the time left."""
    shown = _bar if sys.stderr.isatty() else _lines
    yield from shown(items, printable(description), total)


def format_line(description: str, done: int, total: int, seconds: float) -> str:
    """Format one line of progress.

    Example:
        >>> format_line("generate", 30, 90, 15.0)
        'generate: 30/90, 2.0 images/s, 0:00:30 left'
    """
    rate = done / max(seconds, 1e-9)
    left = timedelta(seconds=round((total - done) / rate))
    return f"{description}: {done}/{total}, {rate:.1f} images/s, {left} left"


def _lines(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_INTERVAL_S or done == total:
            print(format_line(description, done, total, now - start), file=sys.stderr, flush=True)
            last = now


def _bar(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Images per second over the last half minute."""

        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text(f"{rate:.1f} images/s" if rate else "", style="progress.data.speed")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=description)
