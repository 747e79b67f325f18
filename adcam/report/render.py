"""Writes a report: ``report.json``, ``report.md`` with its pictures, and ``report.html``.

Every block is turned into a view once (text formatted, pictures encoded, diagrams drawn); the two
templates only lay the views out. The page is one file: a content security policy forbids it any
request, and only its own script, named by hash, may run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adcam.report.diagrams import (
    confusion_svg,
    curves_svg,
    differences_svg,
    histograms_svg,
    per_class_svg,
    scatter_svg,
    shares_svg,
)
from adcam.report.figures import encode_jpeg, fit_hw, heat_colors
from adcam.report.model import (
    Block,
    Cell,
    Column,
    Confusion,
    Curves,
    Differences,
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
from adcam.report.text import escape_markdown, format_number, format_seconds, slug

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = Path(__file__).parent

_NARROW = 8  # classes of a confusion matrix that takes half the width of the page

View = dict[str, Any]


def write_report(report: Report, out_dir: str | os.PathLike[str]) -> Path:
    """Write ``report.json``, ``report.md``, ``pictures/`` and ``report.html`` into ``out_dir``.

    The same report gives the same bytes. Each file is replaced as a whole; pictures that an
    earlier report left in ``pictures/`` and this one does not have stay there.

    Args:
        report: What to write.
        out_dir: Made if it does not exist.

    Returns:
        Path of ``report.html``, which needs none of the other files.

    Raises:
        OSError: If ``out_dir`` cannot be written.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "pictures").mkdir(exist_ok=True)
    view, files = _report_view(report)
    for name, content in files.items():
        _write_atomically(out_dir / name, content)
    data = json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _write_atomically(out_dir / "report.json", data.encode())
    _write_atomically(out_dir / "report.md", _render_markdown(view).encode())
    html_path = out_dir / "report.html"
    _write_atomically(html_path, _render_html(view).encode())
    return html_path


def render_html(report: Report) -> str:
    """The page alone, as text."""
    return _render_html(_report_view(report)[0])


def standalone_svg(svg: str) -> str:
    """A diagram of :mod:`adcam.report.diagrams` as a file of its own, with the style it needs."""
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
    environment.filters["svg"] = Markup  # drawn by us, its text escaped there
    environment.filters["md"] = escape_markdown
    return environment


def _render_html(view: View) -> str:
    from markupsafe import Markup

    environment = _environment()
    script = environment.get_template("viewer.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    stops = heat_colors()[np.linspace(0, 255, 9).astype(int)]
    return environment.get_template("report.html.j2").render(
        report=view,
        script=Markup(script),
        script_hash=digest,
        heat_gradient=", ".join(f"rgb({r} {g} {b})" for r, g, b in stops.tolist()),
    )


def _render_markdown(view: View) -> str:
    # HTML's escaping is not markdown's: every value passes the `md` filter in the template instead.
    environment = _environment(autoescape=False)
    return environment.get_template("report.md.j2").render(report=view)


def _report_view(report: Report) -> tuple[View, dict[str, bytes]]:
    """What the templates see, and the files beside the page by their relative paths."""
    files: dict[str, bytes] = {}
    used = {"top", "viewer", "provenance"}
    sections = []
    for number, section in enumerate(report.sections, 1):
        anchor = slug(section.title, fallback="section")
        while anchor in used:
            anchor = f"{anchor}-{number}"
        used.add(anchor)
        blocks = _block_views(section.blocks, f"{number:02d}-{anchor}", files)
        sections.append({"title": section.title, "anchor": anchor, "blocks": blocks})
    view = {
        "title": report.title,
        "subtitle": report.subtitle,
        "summary": list(report.summary),
        "headlines": [
            {
                "label": h.label,
                "value": format_number(h.value, digits=h.digits),
                "unit": h.unit,
                "note": h.note,
            }
            for h in report.headlines
        ],
        "lead": _block_views(report.lead, "00-lead", files),
        "sections": sections,
        "provenance": _block_views(report.provenance, "99-provenance", files),
    }
    return view, files


def _block_views(blocks: Sequence[Block], stem: str, files: dict[str, bytes]) -> list[View]:
    return [_block_view(block, f"{stem}-{i:02d}", files) for i, block in enumerate(blocks, 1)]


def _block_view(block: Block, stem: str, files: dict[str, bytes]) -> View:
    """A block as the templates see it; adds its pictures to ``files``."""
    if isinstance(block, Text):
        view: View = {"paragraphs": list(block.paragraphs), "tone": block.tone}
    elif isinstance(block, Table):
        view = _table_view(block)
    elif isinstance(block, TimeTable):
        view = _time_view(block)
    elif isinstance(block, KeyValues):
        view = _key_values_view(block)
    elif isinstance(block, PictureGrid):
        view = _grid_view(block, stem, files)
    else:
        if isinstance(block, Curves):
            svg, view = curves_svg(block), {}
        elif isinstance(block, PerClass):
            svg, view = per_class_svg(block), {"table": _table_view(_per_class_table(block))}
        elif isinstance(block, Scatter):
            svg, view = scatter_svg(block), {}
        elif isinstance(block, Differences):
            svg, view = differences_svg(block), {}
        elif isinstance(block, Histograms):
            svg, view = histograms_svg(block), {}
        elif isinstance(block, Shares):
            svg, view = shares_svg(block), {"table": _table_view(_shares_table(block))}
        else:
            svg, view = confusion_svg(block), {"largest": _largest_confusions(block)}
        path = f"pictures/{stem}.svg"
        files[path] = standalone_svg(svg).encode()
        view |= {"svg": svg, "path": path, "caption": block.caption}
    return {"kind": block.kind, "paired": _is_paired(block), **view}


def _is_paired(block: Block) -> bool:
    """Whether two of a kind fit side by side; a matrix of many classes needs the width."""
    if isinstance(block, Confusion):
        return len(block.names) <= _NARROW
    kinds = (Curves, PerClass, Scatter, Differences, Histograms, Shares)
    return isinstance(block, kinds)


def _table_view(table: Table) -> View:
    columns = []
    cells: list[list[View]] = [[] for _ in table.rows]
    for j, column in enumerate(table.columns):
        values = [row[j] for row in table.rows]
        numeric = any(_is_number(value) for value in values)
        best = _best_value(column, values)
        columns.append({"name": column.name, "hint": column.hint, "numeric": numeric})
        for row, value in zip(cells, values, strict=True):
            row.append(
                {
                    "text": format_number(value, digits=column.digits, signed=column.signed),
                    "numeric": numeric,
                    "best": best is not None and _rounded(value, column) == best,
                    "bar": _bar_percent(value, column),
                }
            )
    return {
        "columns": columns,
        "rows": cells,
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
    shown = _rounded(value, column)
    if column.bar_max is None or not math.isfinite(shown):
        return None
    return round(100 * min(max(shown / column.bar_max, 0.0), 1.0), 1)


def _per_class_table(block: PerClass) -> Table:
    columns = [Column("class"), *(Column(name, block.digits) for name in block.values)]
    rows: list[list[Cell]] = [
        [name, *(values[k] for values in block.values.values())]
        for k, name in enumerate(block.classes)
    ]
    return Table(columns, rows, caption=block.caption)


def _shares_table(block: Shares) -> Table:
    columns = [Column(""), *(Column(part) for part in block.parts)]
    return Table(columns, [[name, *shares] for name, shares in block.values.items()])


def _largest_confusions(block: Confusion) -> list[str]:
    return [
        f"{truth} taken for {predicted}: {100 * share:.1f} %"
        for truth, predicted, share in block.largest(3)
    ]


def _grid_view(grid: PictureGrid, stem: str, files: dict[str, bytes]) -> View:
    rows = [_row_view(row, grid, f"{stem}-{i:02d}", files) for i, row in enumerate(grid.rows, 1)]
    valued = any(p.value is not None for row in grid.rows for p in row.pictures)
    return {
        "rows": rows,
        "caption": grid.caption,
        "num_columns": len(grid.columns),
        "columns": grid.columns,
        "legend": [
            {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*rgb)} for name, rgb in grid.legend
        ],
        "shows_ignored": grid.shows_ignored,
        "heat_scale": grid.heat_scale,
        "value_name": grid.value_name if valued else "",
    }


def _row_view(row: PictureRow, grid: PictureGrid, stem: str, files: dict[str, bytes]) -> View:
    values = [p.value for p in row.pictures if p.value is not None and math.isfinite(p.value)]
    best = max((round(v, 1) for v in values), default=None) if len(values) > 1 else None
    cells = []
    for j, picture in enumerate(row.pictures, 1):
        jpeg = encode_jpeg(picture.rgb, max_side=grid.max_side)
        path = f"pictures/{stem}-{j:02d}-{slug(picture.column, fallback='picture')}.jpg"
        files[path] = jpeg
        height, width = fit_hw((picture.rgb.shape[0], picture.rgb.shape[1]), grid.max_side)
        has_value = picture.value is not None
        value = format_number(float(picture.value)) if picture.value is not None else ""
        shown_value = f": {value} ({grid.value_name})" if has_value else ""
        alt = picture.alt or f"{picture.column} of {row.img_id}{shown_value}"
        cells.append(
            {
                "src": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii"),
                "path": path,
                "alt": alt,
                "column": picture.column,
                "value": value,
                "best": best is not None and has_value and round(picture.value or 0.0, 1) == best,
                "width": width,
                "height": height,
            }
        )
    return {"img_id": row.img_id, "labels": list(row.labels), "cells": cells}


def _time_view(block: TimeTable) -> View:
    rows = []
    for timing in block.timings:
        share = 100 * timing.seconds / block.total if block.total else math.nan
        rate = ""
        if timing.num_items is not None:
            rate = f"{format_seconds(timing.seconds / timing.num_items)} / {timing.item}"
        rows.append(
            {
                "name": timing.name,
                "time": format_seconds(timing.seconds),
                "share": format_number(share),
                "bar": round(share, 1) if math.isfinite(share) else 0,
                "items": "" if timing.num_items is None else format_number(timing.num_items),
                "rate": rate,
            }
        )
    return {"rows": rows, "total": format_seconds(block.total), "caption": block.caption}


def _key_values_view(block: KeyValues) -> View:
    entries = []
    for name, value in block.entries.items():
        text = f"{value:g}" if isinstance(value, float) else format_number(value)
        entries.append({"name": name, "text": text, "verbatim": block.verbatim or "\n" in text})
    return {"entries": entries, "caption": block.caption}


def _write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` as a whole: a reader never sees half of it, a crash leaves the old one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
