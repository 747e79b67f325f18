"""How a report writes numbers and names."""

from __future__ import annotations

import math
import re
import unicodedata

import numpy as np


def format_number(value: str | int | float | None, *, digits: int = 1, signed: bool = False) -> str:
    """Format a value for reading: grouped thousands, a real minus sign, "–" for a missing value.

    Args:
        value: The number. Text is returned as it is, booleans become "yes" and "no".
        digits: The number of digits after the point of floats. Integers are written whole.
        signed: Whether positive numbers get a plus sign.

    >>> format_number(-1234.56), format_number(float("nan")), format_number(3, signed=True)
    ('−1,234.6', '–', '+3')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int | np.integer):
        text = f"{value:{'+' if signed else ''},d}"
    else:
        # Rounding first keeps "−0.0" away.
        value = round(float(value), digits) + 0.0
        text = f"{value:{'+' if signed and value else ''},.{digits}f}"
    return text.replace("-", "−")


def format_seconds(seconds: float) -> str:
    """Format a duration at the precision that matters.

    >>> [format_seconds(s) for s in (0.0042, 0.42, 12.34, 185, 7500)]
    ['4.2 ms', '0.42 s', '12.3 s', '3 min 5 s', '2 h 5 min']
    """
    if not math.isfinite(seconds):
        return "–"
    if seconds < 0.1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_bytes(size: int) -> str:
    """Format an amount of memory in mebibytes or gibibytes.

    >>> [format_bytes(size) for size in (3_500_000, 700 * 2**20, 5 * 2**30)]
    ['3 MiB', '700 MiB', '5.0 GiB']
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def shorten(text: str, length: int) -> str:
    """Cut ``text`` to ``length`` characters; the last of them is "…" if any was lost."""
    return text if len(text) <= length else text[: length - 1] + "…"


def slug(text: str, *, fallback: str = "part") -> str:
    """Turn ``text`` into a name for anchors and files: a–z, 0–9 and single hyphens.

    >>> slug("AD-CAM: Überblick (val)"), slug("<>")
    ('ad-cam-uberblick-val', 'part')
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")[:48] or fallback


def escape_markdown(text: str) -> str:
    """Escape ``text`` so that Markdown shows it literally, in a paragraph or in a table."""
    text = re.sub(r"([\\`*\[\]|#~])", r"\\\1", " ".join(text.split()))
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
