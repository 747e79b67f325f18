"""Print docs/settings.md: all keys of configs, from the classes that check them."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

from adcam.cams import METHODS
from adcam.options import describe_range, describe_type, read_choices, read_meanings
from adcam.settings import (
    ConfigSettings,
    DataSettings,
    Entry,
    MethodSpec,
    NetworkEntry,
    RecipeNetworkSettings,
    SegmentationSettings,
    Settings,
    TestViews,
)

HEAD = """\
# All keys of configs

Printed by `tools/settings_page.py` from the classes of `adcam/settings.py`, which check every
config when it is read; a test compares the two. A key that is not here is refused, and so is a
value of another type or outside its range.

On the command line, `--cfg-options KEY=VALUE …` changes a config. Keys are dotted
(`train.epochs=3`, and by position in a list, `compare.rows.0.name=First`). Values follow mmengine's
rules: `1`, `1e-4`, `true`, `None`, `[a,b]` or `a,b` for a list, `(a,b)` for a tuple. Quotes keep a
value as text, with its commas and brackets; the shell takes the outer pair of
`'compare.reference="AD-CAM, artefacts in, no colours"'`.

Other names at the top of a config are helpers of the file and mean nothing by themselves. `_base_`
names the configs that a config begins with.
"""


def make_page() -> str:
    """The page as Markdown."""
    shared = ConfigSettings.entries()
    parts = [HEAD, "## Configs of classifiers, comparisons and recipes\n"]
    own = {name: entry for name, entry in Settings.entries().items() if name not in shared}
    parts += [part for name, entry in own.items() for part in describe_entry(name, entry)]
    parts += describe_class("compare.rows[i]", MethodSpec)
    parts += describe_class("compare.rows[i].views", TestViews)
    parts += describe_class("compare.networks.NAME", NetworkEntry)
    parts += describe_class("recipe.network", RecipeNetworkSettings)
    parts.append(
        "### Options of the methods\n\n`cam.method_options` and `compare.rows[i].options` hold the "
        "options of the method.\n"
    )
    for name, kind in METHODS.items():
        parts += describe_class(name, kind, level=4)
    parts.append("## Configs of segmentation networks\n")
    networks = SegmentationSettings.entries()
    for name, entry in networks.items():
        if name not in shared and DataSettings not in entry.kinds():
            parts += describe_entry(name, entry)
    parts.append("### data\n\nAs for classifiers, above.\n")
    parts.append("## What goes to mmengine as it is\n\n| key | meaning |\n|---|---|")
    parts.append("\n".join(f"| `{name}` | {entry.text} |" for name, entry in shared.items()))
    return "\n".join(parts) + "\n"


def describe_entry(name: str, entry: Entry[Any]) -> list[str]:
    """The part of the page on one name at the top of a config."""
    if not entry.kinds():
        default = "" if entry.default is None else f" Default: {show(entry.default())}."
        return [f"### {name}\n\n{entry.text}{default}\n"]
    kinds = entry.kinds()
    if len(kinds) == 1:
        return describe_class(name, kinds[0])
    return [
        part
        for kind in kinds
        for part in describe_class(f'{name}, kind="{find_default(kind, "kind")}"', kind)
    ]


def find_default(kind: Any, name: str) -> Any:
    """The default of one key of a section."""
    return next(item.default for item in fields(kind) if item.name == name)


def describe_class(name: str, kind: Any, *, level: int = 3) -> list[str]:
    """A table of the keys of a section."""
    meanings = {key: to_markdown(text) for key, text in read_meanings(kind).items()}
    hints = get_type_hints(kind)
    summary = (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")
    rows = [
        f"| `{item.name}` | {describe_type(hints[item.name])}{describe_limits(item)} "
        f"| {describe_default(item)} | {meanings[item.name]} |"
        for item in fields(kind)
        if item.init
    ]
    table = "| key | type and range | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows)
    return [f"{'#' * level} {name}\n\n{to_markdown(summary)}\n\n{table}\n"]


def to_markdown(text: str) -> str:
    """Docstring markup as Markdown that may stand in a table."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    return text.replace("|", "\\|")


def describe_limits(item: Field[Any]) -> str:
    """Legal values and range, after the type."""
    choices = ", ".join(f"`{choice}`" for choice in read_choices(item.metadata))
    words = [f"one of {choices}" if choices else "", describe_range(item.metadata)]
    return "".join(f", {word}" for word in words if word)


def describe_default(item: Field[Any]) -> str:
    """The default, or that there is none."""
    if item.default_factory is not MISSING:
        return show(item.default_factory())
    return "**needed**" if item.default is MISSING else show(item.default)


def show(value: Any) -> str:
    """A value as a config would have it."""
    if isinstance(value, TestViews):
        return "the defaults of its keys"
    return f"`{list(value)!r}`" if isinstance(value, tuple) else f"`{value!r}`"


if __name__ == "__main__":
    print(make_page(), end="")
