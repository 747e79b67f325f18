"""Types of options, in checks and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from adcam.errors import AdcamError
from adcam.options import check_range, describe_type, has_type, suggest_name


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        *((1, int, True), (True, int, False), (1.0, int, False), (1, float, True)),
        *((False, float, False), (True, bool, True), (1, bool, False), ("a", str, True)),
        *((None, float | None, True), ("a", float | None, False), (object(), Any, True)),
        *(([1, 2], tuple[int, ...], True), ([1, "a"], tuple[int, ...], False)),
        *(((1, 2), tuple[int, int], True), ((1, 2, 3), tuple[int, int], False)),
        *((["a"], Sequence[str], True), ("a", Sequence[str], False), ("a", list[str], False)),
        *(({"a": 1}, Mapping[str, Any], True), (["a"], Mapping[str, Any] | None, False)),
        *(("a", Literal["a", "b"], True), ("c", Literal["a", "b"], False)),
    ],
)
def test_types(value: object, hint: Any, fits: bool) -> None:
    assert has_type(value, hint) is fits


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (float | None, "a number or None"),
        (str | tuple[int, ...], "a text or a list (a whole number)"),
        (tuple[int, int], "a list (a whole number)"),
        (Literal["a", "b"], "one of ['a', 'b']"),
        (Mapping[str, Any] | None, "Mapping or None"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert describe_type(hint) == words


@pytest.mark.parametrize(
    ("value", "interval", "legal"),
    [
        *((0, "[0, 1)", True), (1, "[0, 1)", False), (0, "(0, 1]", False), (1, "(0, 1]", True)),
        *((1e30, "[0, inf)", True), (float("inf"), "[0, inf)", False)),
        *((float("nan"), "[0, 1]", False), (-0.1, "[0, inf)", False)),
    ],
)
def test_ranges(value: float, interval: str, legal: bool) -> None:
    if legal:
        check_range("share", value, interval)
    else:
        with pytest.raises(AdcamError, match="share must lie in"):
            check_range("share", value, interval)


def test_close_names() -> None:
    assert suggest_name("compte", ["compare", "choose"]) == "; did you mean 'compare'?"
    assert suggest_name("xyz", ["compare", "choose"]) == ""
