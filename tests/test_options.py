"""Types and ranges of options, in checks and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from adcam.errors import AdcamError
from adcam.options import Section, convert, describe_type, from_section, setting, suggest


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        *((1, int, True), (True, int, False), (1.0, int, False), (1, float, True)),
        *((False, float, False), (True, bool, True), (1, bool, False), ("a", str, True)),
        *((None, float | None, True), ("a", float | None, False), (object(), Any, True)),
        *(([1, 2], tuple[int, ...], True), ([1, "a"], tuple[int, ...], False)),
        *(((1, 2), tuple[int, int], True), ((1, 2, 3), tuple[int, int], False)),
        *((["a"], Sequence[str], True), (3, Sequence[str], False), (None, list[str], False)),
        *(({"a": 1}, Mapping[str, Any], True), (["a"], Mapping[str, Any] | None, False)),
        *(("a", Literal["a", "b"], True), ("c", Literal["a", "b"], False)),
    ],
)
def test_types(value: object, hint: Any, fits: bool) -> None:
    if fits:
        convert(value, hint, "share", {})
    else:
        with pytest.raises(AdcamError, match="share"):
            convert(value, hint, "share", {})


@pytest.mark.parametrize(
    ("value", "hint", "converted"),
    [
        *((3, float, 3.0), ([1, 2], tuple[int, ...], (1, 2)), ("a", tuple[str, ...], ("a",))),
        *((("a",), list[str], ["a"]), ("none", float | None, None)),
    ],
)
def test_values_become_what_their_types_ask_for(value: object, hint: Any, converted: Any) -> None:
    got = convert(value, hint, "share", {})
    assert got == converted and type(got) is type(converted)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (float | None, "a number or None"),
        (str | tuple[int, ...], "text or a list of whole numbers"),
        (tuple[int, int], "2 whole numbers"),
        (Sequence[str], "a list of texts"),
        (Literal["a", "b"], "'a' or 'b'"),
        (Mapping[str, Any] | None, "keys and values or None"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert describe_type(hint) == words


@pytest.mark.parametrize(
    ("value", "limits", "legal"),
    [
        *((0, {"at_least": 0, "below": 1}, True), (1, {"at_least": 0, "below": 1}, False)),
        *((0, {"above": 0, "at_most": 1}, False), (1, {"above": 0, "at_most": 1}, True)),
        *((1e30, {"at_least": 0}, True), (float("inf"), {"at_least": 0}, False)),
        *((float("nan"), {"at_least": 0}, False), (-0.1, {"at_least": 0}, False)),
    ],
)
def test_ranges(value: float, limits: dict[str, float], legal: bool) -> None:
    if legal:
        assert convert(value, float, "share", limits) == value
    else:
        with pytest.raises(AdcamError, match="share must be"):
            convert(value, float, "share", limits)


@dataclass(frozen=True)
class Pair(Section):
    """Two options."""

    mode: str = setting("slow", choices=("slow", "fast"))
    share: float = setting(0.5, at_least=0)


def test_sections_are_checked_however_they_are_made() -> None:
    for build in (Pair, lambda **values: from_section(Pair, values, "Pair")):
        assert build(share=1) == Pair("slow", 1.0)
        with pytest.raises(AdcamError, match=r"Pair\.share must be at least 0, got -1"):
            build(share=-1)
        with pytest.raises(AdcamError, match="'slow' or 'fast', got 'fat'; did you mean 'fast'"):
            build(mode="fat")


def test_close_names() -> None:
    names = ["compare", "choose"]
    assert suggest("compte", names) == "; did you mean 'compare'? There are 'choose' and 'compare'"
    assert suggest("xyz", names) == "; there are 'choose' and 'compare'"
