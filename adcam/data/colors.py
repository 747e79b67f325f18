"""Tables of classes and their colours, which colour masks are read by."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from adcam.data.dataset import build_class_set
from adcam.data.png import Palette, voc_palette
from adcam.data.voc import voc_class_set
from adcam.errors import AdcamError
from adcam.files import read_text
from adcam.structures import IGNORE_INDEX, ClassSet

_NUMBERS = r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})"
_NAME_FIRST = re.compile(rf"^(.+?)\s*[,;:\s]\s*(?:{_NUMBERS}|#?([0-9a-fA-F]{{6}}))\s*[,;:\s]*$")
_COLOR_FIRST = re.compile(rf"^{_NUMBERS}[\s,;:]+(.+?)\s*$")

_BACKGROUND = frozenset({"background", "_background_", "bg"})
_IGNORED = frozenset({"ignore", "ignored", "void", "unlabeled", "unlabelled", "uncertain"})


Color = tuple[int, int, int]


class ColorTable(NamedTuple):
    """Classes with their colours.

    Attributes:
        class_set: The classes with the mask values 1..K and their own colours as palette.
        colors: The colour of each mask value; values that have none are missing.
    """

    class_set: ClassSet
    colors: dict[int, Color]


def read_color_table(path: str | Path) -> ColorTable:
    """Read a table of classes and colours, one a line.

    Lines are ``name,R,G,B`` (separated by commas, semicolons, tabs or spaces), ``name,#RRGGBB``,
    ``R G B name`` (CamVid) or ``name:R,G,B::`` (CVAT). A header and lines that begin with ``#`` are
    skipped. Classes get the values 1..K in the order of the file; ``background`` gets 0, and
    ``ignore``, ``void`` or ``unlabeled`` 255. A name or a colour that the table lacks for
    background is black.

    Args:
        path: The table, or ``"voc"`` for VOC's classes and colours.

    Raises:
        AdcamError: The file cannot be read, a line is malformed, or a name or colour stands twice.
    """
    if str(path) == "voc":
        voc = voc_class_set()
        values = (0, *voc.mask_values, IGNORE_INDEX)
        return ColorTable(voc, {value: voc.palette[value] for value in values})
    names: list[str] = []
    colors: dict[int, Color] = {}
    entries = _read_entries(path)
    for name, color in entries.items():
        if name.lower() in _BACKGROUND:
            colors[0] = color
        elif name.lower() in _IGNORED:
            colors.setdefault(IGNORE_INDEX, color)
        else:
            names.append(name)
            colors[len(names)] = color
    if not names:
        raise AdcamError(f"{path}: the table of colours names no class")
    if (0, 0, 0) not in entries.values():
        colors.setdefault(0, (0, 0, 0))
    try:
        class_set = build_class_set(Path(path).stem, names)
    except AdcamError as err:
        raise AdcamError(f"{path}: {err}") from err
    palette: Palette = [colors.get(value, color) for value, color in enumerate(voc_palette())]
    return ColorTable(replace(class_set, palette=tuple(palette)), colors)


def _read_entries(path: str | Path) -> dict[str, Color]:
    """The colour of each name, in the order of the lines."""
    color_of: dict[str, Color] = {}
    for number, line in enumerate(read_text(path, "a table of colours").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if (entry := _parse_line(line.strip())) is None:
            if not color_of and not re.search(r"\d", line):
                continue  # a header
            raise AdcamError(
                f"{path}, line {number}: expected name,R,G,B or name,#RRGGBB, got {line.strip()!r}"
            )
        name, color = entry
        if max(color) > 255:
            raise AdcamError(f"{path}, line {number}: colours lie in 0..255, got {color}")
        other = next((n for n, c in color_of.items() if n == name or c == color), None)
        if other is not None:
            raise AdcamError(f"{path}, line {number}: {name!r} and {other!r} share name or colour")
        color_of[name] = color
    return color_of


def _parse_line(line: str) -> tuple[str, Color] | None:
    if (match := _COLOR_FIRST.match(line)) is not None:
        red, green, blue, name = match.groups()
        return name, (int(red), int(green), int(blue))
    if (match := _NAME_FIRST.match(line)) is None:
        return None
    name, red, green, blue, code = match.groups()
    if code is not None:
        red, green, blue = (str(int(code[i : i + 2], 16)) for i in (0, 2, 4))
    return name.strip(" \"'"), (int(red), int(green), int(blue))
