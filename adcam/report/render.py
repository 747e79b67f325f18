"""Writes a report: ``report.json``, ``report.md`` with its pictures, and ``report.html``.

Every kind of block has one function here, registered by its type, that formats its text, encodes
its pictures or draws its diagram; both templates only lay out what it returns. The page is one
file: a content security policy forbids any request, and only the page's own script, named by its
hash, may run. With an explorer it may also load the scripts and pictures beside it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adcam.files import refuse_links, write_bytes, write_json, write_text
from adcam.report.diagrams import draw
from adcam.report.explorer import EXPLORER_DIR, INDEX_NAME, list_files
from adcam.report.figures import data_uri, encode_jpeg, fit_side, heat_colors
from adcam.report.model import (
    Block,
    Cell,
    Column,
    Confusion,
    Curves,
    Differences,
    Explorer,
    Histograms,
    KeyValues,
    PerClass,
    PictureGrid,
    PictureRow,
    Report,
    Scatter,
    Shares,
    Table,
    Text,
    TimeTable,
)
from adcam.report.text import (
    escape_markdown,
    format_bytes,
    format_number,
    format_seconds,
    slug,
)

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = Path(__file__).parent

_SCRIPTS = ("viewer.js", "curves.js")
_EXPLORER_SCRIPTS = (
    "codec.js",
    "rules.js",
    "panels.js",
    "explorer.js",
    "attention.js",
    "confusion.js",
)
"""The scripts of a page in the order in which they run; the second ones only with an explorer."""

_NARROW = 8  # classes of a confusion matrix that takes half the width of the page

Context = dict[str, Any]
"""What a template sees of a report or of a block."""

AddFile = Callable[[str, bytes], str]
"""Keeps a file of a block, given the end of its name and its content; returns its relative path."""


def write_report(report: Report, out_dir: str | os.PathLike[str]) -> Path:
    """Write ``report.json``, ``report.md``, ``pictures/`` and ``report.html`` into ``out_dir``.

    An :class:`adcam.report.model.Explorer` also has its files in ``explorer/``. The same report
    gives the same bytes. Each file is replaced as a whole. Pictures that an earlier report left in
    ``pictures/`` stay there, even if this one has none of that name.

    Args:
        report: The report to write.
        out_dir: The folder to write into. It is created if it does not exist.

    Returns:
        The path of ``report.html``. It needs none of the other files but the explorer's.

    Raises:
        AdcamError: If ``pictures/`` or ``explorer/`` is a symbolic link.
        OSError: If ``out_dir`` cannot be written to.
    """
    out_dir = Path(out_dir)
    for name in ("pictures", EXPLORER_DIR):
        refuse_links(out_dir, out_dir / name / "x")
    (out_dir / "pictures").mkdir(parents=True, exist_ok=True)
    context, files = _report_context(report)
    for name, content in files.items():
        write_bytes(out_dir / name, content)
    for explorer in _find_explorers(report):
        _copy_explorer(explorer, out_dir / EXPLORER_DIR)
    write_json(out_dir / "report.json", report.to_dict())
    write_text(out_dir / "report.md", _render_markdown(context))
    html_path = out_dir / "report.html"
    write_text(html_path, _render_html(context))
    return html_path


def _find_explorers(report: Report) -> list[Explorer]:
    """The explorers of a report: one at most, since they share a folder.

    Raises:
        ValueError: There are several.
    """
    places = [report.lead, *(section.blocks for section in report.sections)]
    found = [block for blocks in places for block in blocks if isinstance(block, Explorer)]
    if len(found) > 1:
        raise ValueError(f"a report has one explorer at most, got {len(found)}")
    return found


def _copy_explorer(explorer: Explorer, out_dir: Path) -> None:
    """Copy the files of all images, one at a time, if they are not there already."""
    if explorer.folder.resolve() == out_dir.resolve():
        return
    write_json(out_dir / INDEX_NAME, dict(explorer.index))
    for name in list_files(explorer.index):
        write_bytes(out_dir / name, (explorer.folder / name).read_bytes())


def standalone_svg(svg: str) -> str:
    """Return a diagram of :mod:`adcam.report.diagrams` as a file of its own, with its style."""
    style = _environment().get_template("diagram.css.j2").render()
    head, body = svg.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{body}\n'


@functools.lru_cache(maxsize=2)
def _environment(*, autoescape: bool = True) -> jinja2.Environment:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    stops = heat_colors()[np.linspace(0, 255, 9).astype(int)].tolist()
    environment.globals["heat_gradient"] = ", ".join(f"rgb({r} {g} {b})" for r, g, b in stops)
    environment.filters["svg"] = Markup  # drawn by us, its text escaped there
    environment.filters["md"] = escape_markdown
    return environment


def _render_html(context: Context) -> str:
    from markupsafe import Markup

    environment = _environment()
    names = [*_SCRIPTS, *(_EXPLORER_SCRIPTS if context["has_explorer"] else ())]
    parts = [(_TEMPLATES / "page" / name).read_text("utf-8") for name in names]
    script = '"use strict";\n' + "".join(parts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    template = environment.get_template("report.html.j2")
    return template.render(report=context, script=Markup(script), script_hash=digest)


def _render_markdown(context: Context) -> str:
    # HTML's escaping is not markdown's: every value passes the `md` filter in the template instead.
    return _environment(autoescape=False).get_template("report.md.j2").render(report=context)


def _report_context(report: Report) -> tuple[Context, dict[str, bytes]]:
    """What the templates see, and the files beside the page by their relative paths."""
    files: dict[str, bytes] = {}
    used = {"top", "viewer", "provenance", "explorer", "explorer-index"}
    sections = []
    for number, section in enumerate(report.sections, 1):
        anchor = slug(section.title, fallback="section")
        while anchor in used:
            anchor = f"{anchor}-{number}"
        used.add(anchor)
        blocks = _block_contexts(section.blocks, f"{number:02d}-{anchor}", files)
        head = {"title": section.title, "anchor": anchor, "folded": section.folded}
        sections.append({**head, "blocks": blocks})
    headlines = [{**vars(line), "value": format_number(line.value)} for line in report.headlines]
    context = {
        "title": report.title,
        "subtitle": report.subtitle,
        "summary": list(report.summary),
        "headlines": headlines,
        "lead": _block_contexts(report.lead, "00-lead", files),
        "sections": sections,
        "provenance": _block_contexts(report.provenance, "99-provenance", files),
        "has_explorer": bool(_find_explorers(report)),
    }
    return context, files


def _block_contexts(blocks: Sequence[Block], stem: str, files: dict[str, bytes]) -> list[Context]:
    """The blocks of a section as the templates see them; adds their pictures to ``files``."""
    contexts = []
    for number, block in enumerate(blocks, 1):

        def add_file(end: str, content: bytes, number: int = number) -> str:
            path = f"pictures/{stem}-{number:02d}{end}"
            files[path] = content
            return path

        contexts.append({"half_width": False, **_context(block, add_file)})
    return contexts


@functools.singledispatch
def _context(block: object, add_file: AddFile) -> Context:
    """A block as the templates see it; its ``layout`` is the macro that lays it out."""
    raise TypeError(f"a report cannot show a {type(block).__name__}")


@_context.register
def _curves(block: Curves, add_file: AddFile) -> Context:
    """A diagram whose values the page reads out where the pointer is."""
    series = [
        {"name": s.name, "x": _plain_numbers(s.x), "y": _plain_numbers(s.y)} for s in block.series
    ]
    sense = {"x": block.x_label, "y": block.y_label, "series": series}
    return {**_diagram(block, add_file), "sense": json.dumps(sense, separators=(",", ":"))}


def _plain_numbers(values: Sequence[float]) -> list[float | None]:
    return [round(float(value), 4) if math.isfinite(value) else None for value in values]


@_context.register(Scatter)
@_context.register(Differences)
@_context.register(Histograms)
def _diagram(
    block: Curves | Scatter | Differences | Histograms | PerClass | Shares | Confusion,
    add_file: AddFile,
    *,
    half_width: bool = True,
    table: Table | None = None,
    note: str = "",
) -> Context:
    """A diagram; ``table`` stands below it where nothing can be pointed at, ``note`` everywhere."""
    svg = draw(block)
    return {
        "layout": "diagram",
        "half_width": half_width,
        "svg": svg,
        "path": add_file(".svg", standalone_svg(svg).encode()),
        "caption": block.caption,
        "table": None if table is None else _table_context(table),
        "note": note,
        "sense": "",
    }


@_context.register
def _confusion(block: Confusion, add_file: AddFile) -> Context:
    largest = "; ".join(
        f"{truth} predicted as {predicted} ({100 * share:.1f} %)"
        for truth, predicted, share in block.largest(3)
    )
    return _diagram(
        block,
        add_file,
        half_width=len(block.names) <= _NARROW,
        note=f"Largest confusions: {largest}." if largest else "",
    )


@_context.register
def _per_class(block: PerClass, add_file: AddFile) -> Context:
    columns = [Column("class"), *(Column(name) for name in block.values)]
    rows: list[list[Cell]] = [
        [name, *(values[k] for values in block.values.values())]
        for k, name in enumerate(block.classes)
    ]
    return _diagram(block, add_file, table=Table(columns, rows, caption=block.caption))


@_context.register
def _shares(block: Shares, add_file: AddFile) -> Context:
    columns = [Column(""), *(Column(part) for part in block.parts)]
    rows: list[list[Cell]] = [[name, *shares] for name, shares in block.values.items()]
    return _diagram(block, add_file, table=Table(columns, rows))


@_context.register
def _text(block: Text, add_file: AddFile) -> Context:
    return {"layout": "text", "paragraphs": list(block.paragraphs), "tone": block.tone}


@_context.register
def _table(block: Table, add_file: AddFile) -> Context:
    return _table_context(block)


@_context.register
def _times(block: TimeTable, add_file: AddFile) -> Context:
    timings = block.timings
    columns, total = [Column("step"), Column("time")], ["total", format_seconds(block.total)]
    rows: list[list[Cell]] = [[t.name, format_seconds(t.seconds)] for t in timings]

    def add(column: Column, cells: Sequence[Cell]) -> None:
        columns.append(column)
        total.append("")
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)

    whole = block.total or math.nan
    add(Column("share, %", bar_max=100.0), [100 * t.seconds / whole for t in timings])
    if any(t.num_items is not None for t in timings):
        add(Column("items"), ["" if t.num_items is None else t.num_items for t in timings])
        rates = [
            f"{format_seconds(t.seconds / t.num_items)} / image" if t.num_items else ""
            for t in timings
        ]
        add(Column("rate"), rates)
    hint = "the most that the process held at once, without its worker processes"
    for name, sizes in (
        ("memory", [t.peak_bytes for t in timings]),
        ("GPU memory", [t.gpu_bytes for t in timings]),
    ):
        if any(size is not None for size in sizes):
            add(Column(name, hint=hint), ["" if s is None else format_bytes(s) for s in sizes])
    return _table_context(
        Table(columns, rows, block.caption), total=total, numeric=range(1, len(columns))
    )


def _table_context(
    table: Table, *, total: Sequence[str] = (), numeric: Sequence[int] = ()
) -> Context:
    """A table: columns with a number, or listed in ``numeric``, are set to the right."""
    columns = []
    cells: list[list[Context]] = [[] for _ in table.rows]
    for j, column in enumerate(table.columns):
        values = [row[j] for row in table.rows]
        is_numeric = j in numeric or any(_is_number(value) for value in values)
        best = _best_value(column, values)
        columns.append(
            {
                "name": column.name,
                "hint": column.hint,
                "numeric": is_numeric,
                "main": column.bar_max is not None,
            }
        )
        for row, value in zip(cells, values, strict=True):
            row.append(
                {
                    "text": format_number(value, digits=column.digits),
                    "best": best is not None and _rounded(value, column) == best,
                    "bar": _bar_percent(value, column),
                }
            )
    return {
        "layout": "table",
        "columns": columns,
        "rows": cells,
        "total": list(total),
        "caption": table.caption,
        "command": table.command,
    }


def _is_number(value: Cell) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _rounded(value: Cell, column: Column) -> float:
    """The value as far as a reader can see it; NaN for what is no number."""
    if value is None or isinstance(value, str | bool):
        return math.nan
    return round(float(value), column.digits)


def _best_value(column: Column, values: Sequence[Cell]) -> float | None:
    """The best finite value as shown; ``None`` if nothing is to be highlighted."""
    finite = [v for v in (_rounded(value, column) for value in values) if math.isfinite(v)]
    if not column.best or len(finite) < 2:
        return None
    return max(finite) if column.best == "max" else min(finite)


def _bar_percent(value: Cell, column: Column) -> float | None:
    """The length of the bar behind a number, in percent; ``None`` if it has none."""
    shown = _rounded(value, column)
    if column.bar_max is None or not math.isfinite(shown):
        return None
    return round(100 * min(max(shown / column.bar_max, 0.0), 1.0), 1)


@_context.register
def _pictures(block: PictureGrid, add_file: AddFile) -> Context:
    rows = [_picture_row(row, f"-{i:02d}", block, add_file) for i, row in enumerate(block.rows, 1)]
    has_values = any(p.value is not None for row in block.rows for p in row.pictures)
    return {
        "layout": "pictures",
        "rows": rows,
        "caption": block.caption,
        "columns": block.columns,
        "legend": [
            {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*rgb)}
            for name, rgb in block.legend
        ],
        "shows_ignored": block.shows_ignored,
        "heat_scale": block.heat_scale,
        "value_name": block.value_name if has_values else "",
    }


def _picture_row(row: PictureRow, stem: str, grid: PictureGrid, add_file: AddFile) -> Context:
    """The pictures of one image, encoded, with their texts and the best of their values."""
    values = [p.value for p in row.pictures if p.value is not None and math.isfinite(p.value)]
    best = max((round(value, 1) for value in values), default=None) if len(values) > 1 else None
    cells = []
    for number, picture in enumerate(row.pictures, 1):
        jpeg = encode_jpeg(picture.rgb, max_side=grid.max_side)
        name = slug(picture.column, fallback="picture")
        height, width = fit_side((picture.rgb.shape[0], picture.rgb.shape[1]), grid.max_side)
        alt, value, is_best = f"{picture.column} of {row.img_id}", "", False
        if picture.value is not None:
            value = format_number(float(picture.value))
            alt += f": {value} ({grid.value_name})"
            is_best = best is not None and round(picture.value, 1) == best
        cells.append(
            {
                "src": data_uri(jpeg),
                "path": add_file(f"{stem}-{number:02d}-{name}.jpg", jpeg),
                "alt": alt,
                "column": picture.column,
                "value": value,
                "best": is_best,
                "width": width,
                "height": height,
            }
        )
    return {"img_id": row.img_id, "labels": list(row.labels), "cells": cells}


@_context.register
def _explorer(block: Explorer, add_file: AddFile) -> Context:
    return {"layout": "explorer", "index": dict(block.index), "caption": block.caption}


@_context.register
def _key_values(block: KeyValues, add_file: AddFile) -> Context:
    entries = []
    for name, value in block.entries.items():
        text = f"{value:g}" if isinstance(value, float) else format_number(value)
        entries.append({"name": name, "text": text, "verbatim": block.verbatim or "\n" in text})
    return {"layout": "key_values", "entries": entries, "caption": block.caption}
