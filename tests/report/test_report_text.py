"""How numbers and names are written."""

from __future__ import annotations

import numpy as np
import pytest

from adcam.report.text import escape_markdown, format_number, format_seconds, shorten, slug


@pytest.mark.parametrize(
    ("value", "digits", "signed", "expected"),
    [
        (None, 1, False, "–"),
        (float("nan"), 1, False, "–"),
        (float("inf"), 1, False, "∞"),
        (float("-inf"), 1, False, "−∞"),
        (-0.04, 1, False, "0.0"),
        (-0.04, 1, True, "0.0"),
        (0.06, 1, True, "+0.1"),
        (-12.25, 1, True, "−12.2"),
        (1234567, 1, False, "1,234,567"),
        (np.int64(-7), 1, False, "−7"),
        (np.float32(2.5), 2, False, "2.50"),
        (0.5, 0, False, "0"),
        (True, 1, False, "yes"),
        ("as it is", 1, True, "as it is"),
    ],
)
def test_format_number(value: object, digits: int, signed: bool, expected: str) -> None:
    assert format_number(value, digits=digits, signed=signed) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0.0 ms"),
        (99.9, "99.9 s"),
        (99.96, "1 min 40 s"),
        (3599.6, "1 h 0 min"),
        (float("nan"), "–"),
    ],
)
def test_format_seconds_at_the_borders(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


def test_shorten_keeps_the_length() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abcde…"


def test_slug_is_a_safe_file_name() -> None:
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("図", fallback="picture") == "picture"
    assert len(slug("x" * 500)) == 48


def test_escape_markdown() -> None:
    assert escape_markdown("a|b\nc") == "a\\|b c"
    assert escape_markdown("<img src=x>") == "&lt;img src=x&gt;"
    assert escape_markdown("2007_000032 _x_ *y*") == "2007_000032 \\_x\\_ \\*y\\*"
    assert escape_markdown("[a](b) `c`") == "\\[a\\](b) \\`c\\`"
