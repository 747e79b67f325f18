"""Options that are given by name: refused when they are unknown or of the wrong type."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from adcam.errors import AdcamError

_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "None",
}


def check_options(options: Mapping[str, Any], legal: Mapping[str, Any], owner: str) -> None:
    """Check names and types of options.

    Args:
        options: The options that were given, by name.
        legal: The type that each option may have, as ``typing.get_type_hints`` returns them.
        owner: What the options belong to, for the message.

    Raises:
        AdcamError: If an option is unknown or its value has another type.
    """
    for name, value in options.items():
        if name not in legal:
            hint = suggest_name(name, legal)
            raise AdcamError(f"{owner} has no option {name!r}{hint}; options: {sorted(legal)}")
        if not has_type(value, legal[name]):
            raise AdcamError(
                f"{name} of {owner} must be {describe_type(legal[name])}, got {value!r}"
            )


def check_choice(name: str, value: object, legal: Collection[str]) -> None:
    """Refuse a value that is not one of the legal texts.

    Raises:
        AdcamError: If the value is none of them; the message names them all.
    """
    if not isinstance(value, str) or value not in legal:
        hint = suggest_name(str(value), legal)
        raise AdcamError(f"{name} must be one of {sorted(legal)}, got {value!r}{hint}")


def suggest_name(name: str, legal: Collection[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a name close to a legal one, else an empty text.

    Example:
        >>> suggest_name("rival_wieght", ["rival_weight", "negatives"])
        "; did you mean 'rival_weight'?"
    """
    close = difflib.get_close_matches(name, legal, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def has_type(value: object, hint: Any) -> bool:
    """Say whether a value fits a type hint.

    A whole number counts as a number, a list as a tuple, and ``True`` is not a number.

    Args:
        value: Any value.
        hint: A class, ``Any``, a union, a literal, or a generic tuple, list or mapping.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(has_type(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if hint in (int, float):
        legal = (int,) if hint is int else (int, float)
        return isinstance(value, legal) and not isinstance(value, bool)
    if origin in (tuple, list) or getattr(origin, "__name__", "") == "Sequence":
        if not isinstance(value, tuple | list):
            return False
        if origin is tuple and parts[-1:] != (...,):
            fits = zip(value, parts, strict=False)
            return len(value) == len(parts) and all(has_type(v, part) for v, part in fits)
        return all(has_type(item, parts[0]) for item in value)
    return isinstance(value, origin or hint)


def describe_type(hint: Any) -> str:
    """Name a type hint in words, as in ``"a number or None"``."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(part) for part in parts)
    if origin is typing.Literal:
        return f"one of {list(parts)}"
    if origin in (tuple, list) or getattr(origin, "__name__", "") == "Sequence":
        kinds = dict.fromkeys(describe_type(part) for part in parts if part is not ...)
        return f"a list ({', '.join(kinds)})"
    return _WORDS.get(hint, getattr(origin or hint, "__name__", str(hint)))


def check_range(name: str, value: float, interval: str) -> None:
    """Refuse a number outside an interval; NaN is in none.

    Args:
        name: Name of the option, for the message.
        value: The number.
        interval: The interval as in ``"[0, 1)"``, with a round bracket where the end is excluded.

    Raises:
        AdcamError: If the number lies outside.

    Example:
        >>> check_range("alpha", 1.0, "[0, 1]")
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    if not (above and below):
        raise AdcamError(f"{name} must lie in {interval}, got {value}")
