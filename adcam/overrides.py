"""Changes to a config or to options that a command line gives as ``key=value``."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from adcam.errors import AdcamError

# Quotes where a value begins, up to those before which it ends; apostrophes in a word are neither.
_QUOTED = re.compile(r"((?:^|[,\[(])\s*)(['\"]).*?\2(?=\s*(?:[,\])]|$))")


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` texts by the rules of mmengine's ``DictAction``.

    ``1``, ``1e-4``, ``true``, ``None`` are read as such; ``a,b`` and ``[a,b]`` as lists, ``(a,b)``
    as a tuple, nested as deep as you like, ``{'a': 1}`` as a Python dict. All else is text, and
    so is what stands in quotes, with the commas and brackets in it.

    Raises:
        AdcamError: A text has no ``=``, or its brackets do not match.

    Example:
        >>> parse_overrides(["data.train=[train]", "test.flip=false", "test.scales=0.5,1"])
        {'data.train': ['train'], 'test.flip': False, 'test.scales': [0.5, 1]}
    """
    overrides = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise AdcamError(f"options are given as key=value, got {text!r}")
        try:
            overrides[key.strip()] = _parse_value(value)
        except ValueError as error:
            raise AdcamError(f"{text}: {error}") from error
    return overrides


def _parse_value(text: str) -> Any:
    text = text.strip()
    if (quoted := _QUOTED.match(text)) and quoted.end() == len(text):
        return text[1:-1]
    if text[:1] == "{":
        return _parse_mapping(text)
    parts = _split_at_commas(text)
    if len(parts) > 1 or text.endswith(","):
        return [_parse_value(part) for part in parts]
    if text[:1] in ("[", "("):
        closing = "]" if text[0] == "[" else ")"
        if text[-1] != closing:
            raise ValueError(f"the bracket {text[0]!r} has no partner")
        items = [_parse_value(part) for part in _split_at_commas(text[1:-1])]
        return items if closing == "]" else tuple(items)
    return _parse_scalar(text)


def _parse_mapping(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("what begins with '{' must be a Python dict") from None


def _split_at_commas(text: str) -> list[str]:
    """Parts between commas that stand in no bracket or quotes; an empty last part is left out."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(_QUOTED.sub(lambda m: m[1] + "_" * (len(m[0]) - len(m[1])), text)):
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    if depth and len(parts) + (text[:1] in ("[", "(")):
        raise ValueError("the brackets do not match")
    return [*parts, text[start:]] if text[start:].strip() else parts


def _parse_scalar(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), None if text == "None" else text)
