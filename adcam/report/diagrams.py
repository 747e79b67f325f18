"""Diagrams of a report: blocks in, SVG text out.

They are written as SVG by hand rather than by matplotlib, because their colours come from the
page's style sheet: the same drawing is right on a light page, on a dark one and on paper, stays
small, and its text is text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from adcam.report.model import (
    Confusion,
    Curves,
    Differences,
    Histograms,
    PerClass,
    Scatter,
    Shares,
)
from adcam.report.text import format_number, shorten

SERIES_STYLES = 8
"""Number of line colours in the style sheet (Okabe and Ito's set, safe for the colour-blind)."""

_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_WIDTH = 480.0  # wide enough for eight series, and text still readable on a phone
_CHAR = 7.0  # mean advance of a 13 px sans-serif character, for laying out legends


@dataclass(frozen=True)
class _Style:
    """How a series is drawn: class of its colour, dash pattern, and whether it is the main one."""

    color: str
    dash: str
    main: bool

    @property
    def line(self) -> str:
        """Attributes of a line."""
        dash = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        return f'class="line {self.color}{" main" if self.main else ""}"{dash}'


def curves_svg(curves: Curves) -> str:
    """A line diagram with legend, grid and marked points.

    Args:
        curves: What to draw.

    Returns:
        An ``<svg>`` element. It carries the classes of the report's style sheet and no style of
        its own; see :func:`adcam.report.render.standalone_svg`.
    """
    width, left, right, plot_height = _WIDTH, 52.0, 12.0, 240.0
    names = [series.name for series in curves.series]
    legend, legend_height = _legend(names, left, width - right, emphasis=curves.emphasis)
    top = legend_height + 12
    bottom = top + plot_height

    xs = [x for s in curves.series for x in s.x]
    ys = [y for s in curves.series for y in s.y]
    x_low, x_high = curves.x_range or _data_range(xs)
    y_ticks = _ticks(*(curves.y_range or _data_range(ys)))
    y_low, y_high = curves.y_range or (y_ticks[0], y_ticks[-1])

    def at_x(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (width - left - right)

    def at_y(y: float) -> float:
        return bottom - (y - y_low) / (y_high - y_low) * plot_height

    parts = [legend]
    for y in _within(y_ticks, y_low, y_high):
        parts.append(_line("grid", left, at_y(y), width - right, at_y(y)))
        parts.append(_text(left - 8, at_y(y) + 4, _tick_text(y), "tick", "end"))
    for x in _within(_ticks(x_low, x_high), x_low, x_high):
        parts.append(_line("axis", at_x(x), bottom, at_x(x), bottom + 5))
        parts.append(_text(at_x(x), bottom + 20, _tick_text(x), "tick", "middle"))
    parts.append(_line("axis", left, bottom, width - right, bottom))
    middle = (left + width - right) / 2
    parts.append(_text(middle, bottom + 42, curves.x_label, "label", "middle"))
    y_middle = (top + bottom) / 2
    parts.append(
        f'<text class="label" text-anchor="middle" '
        f'transform="translate(14 {_num(y_middle)}) rotate(-90)">{escape(curves.y_label)}</text>'
    )

    styles = _styles(names, curves.emphasis)
    # The emphasised series is drawn last, on top of the others.
    order = sorted(curves.series, key=lambda series: series.name == curves.emphasis)
    for series in order:
        style = styles[series.name]
        # Points outside the axes would be drawn over the labels: they end the line instead.
        runs = _runs(series.x, series.y, (x_low, x_high), (y_low, y_high))
        for run in runs:
            points = " ".join(f"{_num(at_x(x))},{_num(at_y(y))}" for x, y in run)
            parts.append(f'<polyline {style.line} points="{points}"/>')
    for series in order:
        if series.mark is None or not all(math.isfinite(v) for v in series.mark):
            continue
        x, y = series.mark
        tip = f"{series.name}: {y:.3g} at {_tick_text(x)}"
        parts.append(
            f'<circle class="dot {styles[series.name].color}" cx="{_num(at_x(x))}" '
            f'cy="{_num(at_y(y))}" r="4.5"><title>{escape(tip)}</title></circle>'
        )
        if series.name == curves.emphasis:
            parts.append(
                _text(at_x(x), at_y(y) - 11, f"{y:.3g} at {_tick_text(x)}", "value", "middle")
            )
    title = curves.caption or f"{curves.y_label} over {curves.x_label}"
    return _svg(width, bottom + 52, title, parts)


def per_class_svg(per_class: PerClass) -> str:
    """A dot per method on one line per class; the main method is filled and printed.

    Args:
        per_class: What to draw.

    Returns:
        An ``<svg>`` element, styled like :func:`curves_svg`'s.
    """
    width, row_height = _WIDTH, 24.0
    longest = max((len(name) for name in per_class.classes), default=0)
    left = min(170.0, 16 + _CHAR * longest)
    right = 56.0
    names = list(per_class.values)
    main = per_class.main_method
    legend, legend_height = _legend(names, left, width - 8, dots=True, emphasis=main)
    top = legend_height + 12
    bottom = top + row_height * len(per_class.classes)
    low, high = per_class.value_range

    def at_x(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (width - left - right)

    parts = [legend]
    for tick in _within(_ticks(low, high), low, high):
        parts.append(_line("grid", at_x(tick), top, at_x(tick), bottom))
        parts.append(_text(at_x(tick), bottom + 18, _tick_text(tick), "tick", "middle"))
    parts.append(_text((left + width - right) / 2, bottom + 38, per_class.unit, "label", "middle"))
    styles = _styles(names, main)
    order = sorted(names, key=lambda name: name == main)
    for k, class_name in enumerate(per_class.classes):
        y = top + row_height * (k + 0.5)
        parts.append(_text(left - 10, y + 4, shorten(class_name, 24), "name", "end"))
        known = [v[k] for v in per_class.values.values() if math.isfinite(v[k])]
        if known:
            parts.append(_line("span", at_x(min(known)), y, at_x(max(known)), y))
        for name in order:
            value = per_class.values[name][k]
            if math.isfinite(value):
                shown = format_number(value, digits=per_class.digits)
                tip = f"{name}, {class_name}: {shown}"
                parts.append(_dot(styles[name], at_x(value), y, tip))
        shown = format_number(per_class.values[main][k], digits=per_class.digits)
        parts.append(_text(width - 8, y + 4, shown, "value", "end"))
    return _svg(width, bottom + 48, per_class.caption or f"{per_class.unit} per class", parts)


def scatter_svg(scatter: Scatter) -> str:
    """A square of dots with its diagonal; above it the second method is better.

    Args:
        scatter: What to draw.

    Returns:
        An ``<svg>`` element, styled like :func:`curves_svg`'s.
    """
    left, top, side = 60.0, 12.0, 380.0
    bottom = top + side
    low, high = scatter.value_range

    def at(value: float) -> float:
        return (min(max(value, low), high) - low) / (high - low) * side

    parts = [
        f'<path class="better" d="M{_num(left)} {_num(bottom)}V{_num(top)}H{_num(left + side)}Z"/>'
    ]
    for tick in _within(_ticks(low, high), low, high):
        parts.append(_line("grid", left, bottom - at(tick), left + side, bottom - at(tick)))
        parts.append(_line("grid", left + at(tick), top, left + at(tick), bottom))
        parts.append(_text(left - 8, bottom - at(tick) + 4, _tick_text(tick), "tick", "end"))
        parts.append(_text(left + at(tick), bottom + 20, _tick_text(tick), "tick", "middle"))
    parts.append(_line("axis", left, bottom, left + side, top))
    for name, x, y in zip(scatter.names, scatter.x, scatter.y, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            tip = f"{name}: {format_number(x)} → {format_number(y)}"
            parts.append(
                f'<circle class="point s0" cx="{_num(left + at(x))}" '
                f'cy="{_num(bottom - at(y))}" r="3"><title>{escape(tip)}</title></circle>'
            )
    parts.append(_text(left + side / 2, bottom + 42, scatter.x_label, "label", "middle"))
    parts.append(
        f'<text class="label" text-anchor="middle" '
        f'transform="translate(14 {_num(top + side / 2)}) rotate(-90)">'
        f"{escape(scatter.y_label)}</text>"
    )
    title = scatter.caption or f"{scatter.y_label} over {scatter.x_label}"
    return _svg(left + side + 16, bottom + 52, title, parts)


def differences_svg(differences: Differences) -> str:
    """Bars to both sides of zero, each with its number.

    Args:
        differences: What to draw.

    Returns:
        An ``<svg>`` element, styled like :func:`curves_svg`'s.
    """
    width, row_height, top = _WIDTH, 24.0, 12.0
    longest = max((len(name) for name in differences.names), default=0)
    left, right = min(170.0, 16 + _CHAR * longest), 56.0
    bottom = top + row_height * len(differences.names)
    finite = [value for value in differences.values if math.isfinite(value)]
    ticks = _ticks(*_data_range([0.0, *finite]))
    low, high = ticks[0], ticks[-1]

    def at_x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = []
    for tick in ticks:
        parts.append(_line("axis" if tick == 0 else "grid", at_x(tick), top, at_x(tick), bottom))
        parts.append(_text(at_x(tick), bottom + 18, _tick_text(tick), "tick", "middle"))
    for k, (name, value) in enumerate(zip(differences.names, differences.values, strict=True)):
        y = top + row_height * (k + 0.5)
        shown = format_number(value, digits=differences.digits, signed=True)
        parts.append(_text(left - 10, y + 4, shorten(name, 24), "name", "end"))
        parts.append(_text(width - 8, y + 4, shown, "value", "end"))
        if math.isfinite(value):
            x, far = sorted((at_x(0), at_x(value)))
            parts.append(
                f'<rect class="fill {"s0" if value >= 0 else "s1"}" x="{_num(x)}" '
                f'y="{_num(y - 7)}" width="{_num(far - x)}" height="14">'
                f"<title>{escape(f'{name}: {shown}')}</title></rect>"
            )
    middle = (left + width - right) / 2
    parts.append(_text(middle, bottom + 38, differences.label, "label", "middle"))
    return _svg(width, bottom + 48, differences.caption or differences.label, parts)


def confusion_svg(confusion: Confusion) -> str:
    """A heat map of row shares: truth from top to bottom, prediction from left to right.

    The opacity of a cell is the square root of its share, so that 5 % is visible. Counts are in
    the tooltips; shares in % are printed where there is room (at most 24 classes).

    Args:
        confusion: What to draw.

    Returns:
        An ``<svg>`` element, styled like :func:`curves_svg`'s.
    """
    num = len(confusion.names)
    printed = num <= 24
    cell = 34.0 if num <= 12 else 26.0 if printed else 11.0
    names = [shorten(name, 18) for name in confusion.names]
    margin = 34 + (_CHAR if printed else _CHAR * 0.75) * max(len(name) for name in names)
    small = "" if printed else " small"
    top, left = margin, margin
    parts = [
        _text(left + cell * num / 2, 14, "predicted", "label", "middle"),
        f'<text class="label" text-anchor="middle" '
        f'transform="translate(14 {_num(top + cell * num / 2)}) rotate(-90)">truth</text>',
    ]
    for i, (name, row, shares) in enumerate(
        zip(confusion.names, confusion.counts, confusion.shares(), strict=True)
    ):
        middle = cell * (i + 0.5)
        parts.append(_text(left - 8, top + middle + 4, names[i], f"name{small}", "end"))
        parts.append(
            f'<text class="name{small}" transform="translate({_num(left + middle + 4)} '
            f'{_num(top - 8)}) rotate(-90)">{escape(names[i])}</text>'
        )
        if not sum(row):
            parts.append(_text(left + 8, top + middle + 4, "does not occur", "tick", "start"))
        for j, (count, share) in enumerate(zip(row, shares, strict=True)):
            if not share > 0:
                continue
            tip = (
                f"{name} taken for {confusion.names[j]}: {100 * share:.1f} % "
                f"({format_number(count)} {confusion.unit})"
            )
            parts.append(
                f'<rect class="cell" x="{_num(left + cell * j + 0.5)}" '
                f'y="{_num(top + cell * i + 0.5)}" width="{_num(cell - 1)}" '
                f'height="{_num(cell - 1)}" fill-opacity="{math.sqrt(share):.3f}">'
                f"<title>{escape(tip)}</title></rect>"
            )
            if printed and share >= 0.005:
                style = "share over" if share > 0.3 else "share"
                x, y = left + cell * (j + 0.5), top + middle + 4
                parts.append(_text(x, y, f"{100 * share:.0f}", style, "middle"))
    parts.append(
        f'<rect class="frame" x="{_num(left)}" y="{_num(top)}" '
        f'width="{_num(cell * num)}" height="{_num(cell * num)}"/>'
    )
    side = margin + cell * num + 8
    return _svg(side, side, confusion.caption or "Confusion matrix", parts)


def histograms_svg(histograms: Histograms) -> str:
    """Small histograms, two side by side, on common axes.

    Args:
        histograms: What to draw.

    Returns:
        An ``<svg>`` element, styled like :func:`curves_svg`'s.
    """
    columns, gap, left, plot_height = 2, 28.0, 34.0, 84.0
    row_height = plot_height + 62
    plot_width = (_WIDTH - 2 * left + 22 - gap) / columns
    low, high = histograms.edges[0], histograms.edges[-1]
    most = max((count for counts in histograms.counts.values() for count in counts), default=0)
    y_ticks = [tick for tick in _ticks(0, most or 1)[::2] if tick >= 0]
    top_count = max(y_ticks[-1], most)
    parts = []
    for number, (name, counts) in enumerate(histograms.counts.items()):
        x0 = left + number % columns * (plot_width + gap)
        top = 22 + number // columns * row_height
        bottom = top + plot_height
        is_main = name == histograms.emphasis

        def at_x(value: float, x0: float = x0) -> float:
            return x0 + (value - low) / (high - low) * plot_width

        for tick in y_ticks:
            y = bottom - tick / top_count * plot_height
            parts.append(_line("grid", x0, y, x0 + plot_width, y))
            if number % columns == 0:
                parts.append(_text(x0 - 6, y + 4, _tick_text(tick), "tick", "end"))
        for edge, end, count in zip(
            histograms.edges[:-1], histograms.edges[1:], counts, strict=True
        ):
            height = count / top_count * plot_height
            if count:
                tip = f"{name}, {_tick_text(edge)} to {_tick_text(end)}: {count} {histograms.unit}"
                parts.append(
                    f'<rect class="fill {"s0" if is_main else "s6"}" x="{_num(at_x(edge) + 0.5)}" '
                    f'y="{_num(bottom - height)}" width="{_num(at_x(end) - at_x(edge) - 1)}" '
                    f'height="{_num(height)}"><title>{escape(tip)}</title></rect>'
                )
        parts.append(_line("axis", x0, bottom, x0 + plot_width, bottom))
        for tick in _within(_ticks(low, high), low, high):
            parts.append(_text(at_x(tick), bottom + 16, _tick_text(tick), "tick", "middle"))
        parts.append(
            _text(x0, top - 8, shorten(name, 24), "name strong" if is_main else "name", "start")
        )
        if histograms.mark is not None:
            x = at_x(histograms.mark)
            parts.append(_line("axis", x, top, x, bottom))
            shown = f"{format_number(histograms.share_above(name))} %"
            parts.append(_text(x0 + plot_width, top - 8, shown, "value", "end"))
        parts.append(_text(x0 + plot_width / 2, bottom + 34, histograms.x_label, "label", "middle"))
    num_rows = -(-len(histograms.counts) // columns)
    title = histograms.caption or histograms.x_label
    return _svg(_WIDTH, 22 + num_rows * row_height - 14, title, parts)


def shares_svg(shares: Shares) -> str:
    """Bars from 0 to 100 %, divided into coloured parts.

    Args:
        shares: What to draw.

    Returns:
        An ``<svg>`` element, styled like :func:`curves_svg`'s.
    """
    row_height, right = 28.0, 12.0
    left = min(180.0, 24 + 8.0 * max((len(name) for name in shares.values), default=0))
    legend, legend_height = _legend(shares.parts, 8, _WIDTH - right, dots=True, filled=True)
    top = legend_height + 12
    bottom = top + row_height * len(shares.values)
    scale = (_WIDTH - left - right) / 100
    parts = [legend]
    for tick in (0, 25, 50, 75, 100):
        x = left + tick * scale
        parts.append(_line("grid", x, top, x, bottom))
        parts.append(_text(x, bottom + 18, _tick_text(tick), "tick", "middle"))
    parts.append(_text((left + _WIDTH - right) / 2, bottom + 38, "images, %", "label", "middle"))
    for k, (name, values) in enumerate(shares.values.items()):
        y, x = top + row_height * k, left
        parts.append(_text(left - 10, y + row_height / 2 + 4, shorten(name, 24), "name", "end"))
        for i, (part, value) in enumerate(zip(shares.parts, values, strict=True)):
            width = value * scale
            shown = format_number(float(value), digits=shares.digits)
            if width > 0:
                parts.append(
                    f'<rect class="fill s{i}" x="{_num(x)}" y="{_num(y + 4)}" '
                    f'width="{_num(width)}" height="{_num(row_height - 8)}">'
                    f"<title>{escape(f'{name}, {part}: {value:.1f} %')}</title></rect>"
                )
            if width >= 22:
                middle = y + row_height / 2 + 4
                parts.append(_text(x + width / 2, middle, shown, "share over", "middle"))
            x += width
    return _svg(_WIDTH, bottom + 48, shares.caption or ", ".join(shares.parts), parts)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return (
        f'<svg class="figure" viewBox="0 0 {_num(width)} {_num(height)}" '
        f'width="{_num(width)}" height="{_num(height)}" role="img" '
        f'aria-label="{escape(title)}">{body}</svg>'
    )


def _legend(
    names: Sequence[str],
    left: float,
    right: float,
    *,
    dots: bool = False,
    filled: bool = False,
    emphasis: str = "",
) -> tuple[str, float]:
    """Samples and names, wrapped into rows; the SVG and its height."""
    sample = 18.0 if dots else 34.0
    parts: list[str] = []
    x, y = left, 14.0
    styles = _styles(names, emphasis)
    for name in names:
        short = shorten(name, 40)
        advance = sample + _CHAR * len(short) + 18
        if x > left and x + advance - 18 > right:
            x, y = left, y + 20
        if dots:
            style = replace(styles[name], main=True) if filled else styles[name]
            parts.append(_dot(style, x + 6, y - 4, name))
        else:
            parts.append(
                f'<line {styles[name].line} x1="{_num(x)}" y1="{_num(y - 4)}" '
                f'x2="{_num(x + 26)}" y2="{_num(y - 4)}"/>'
            )
        parts.append(
            _text(x + sample, y, short, "name strong" if name == emphasis else "name", "start")
        )
        x += advance
    return "".join(parts), y + 6


def _styles(names: Sequence[str], emphasis: str) -> dict[str, _Style]:
    """Colour and dash of every series; the emphasised one always has the accent colour."""
    others = [name for name in names if name != emphasis]
    first = 1 if emphasis in names else 0
    styles = {
        name: _Style(f"s{i % SERIES_STYLES}", _DASHES[i % len(_DASHES)], main=False)
        for i, name in enumerate(others, first)
    }
    return {name: styles.get(name, _Style("s0", "", main=True)) for name in names}


def _dot(style: _Style, x: float, y: float, tip: str) -> str:
    shape, radius = ("dot", 5.5) if style.main else ("dot hollow", 4)
    return (
        f'<circle class="{shape} {style.color}" cx="{_num(x)}" cy="{_num(y)}" '
        f'r="{_num(radius)}"><title>{escape(tip)}</title></circle>'
    )


def _runs(
    x: Sequence[float],
    y: Sequence[float],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> list[list[tuple[float, float]]]:
    """Consecutive points inside the ranges; a NaN or a point outside separates two runs."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in zip(x, y, strict=True):
        if x_range[0] <= point[0] <= x_range[1] and y_range[0] <= point[1] <= y_range[1]:
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _data_range(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest finite value, widened where they are the same; (0, 1) without any."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = float(min(finite)), float(max(finite))
    if low == high:
        pad = abs(low) * 0.1 or 0.5
        return low - pad, high + pad
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks]


def _within(ticks: Sequence[float], low: float, high: float) -> list[float]:
    slack = 1e-9 * (high - low)
    return [tick for tick in ticks if low - slack <= tick <= high + slack]


def _tick_text(value: float) -> str:
    return f"{value:.4g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def _num(value: float) -> str:
    """A coordinate with at most one digit after the point."""
    return f"{value:.1f}".removesuffix(".0")


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line class="{style}" x1="{_num(x1)}" y1="{_num(y1)}" x2="{_num(x2)}" y2="{_num(y2)}"/>'
    )


def _text(x: float, y: float, text: str, style: str, anchor: str) -> str:
    return (
        f'<text class="{style}" x="{_num(x)}" y="{_num(y)}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
