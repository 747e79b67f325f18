"""Diagrams of a report: blocks in, SVG text out.

They are written here rather than by matplotlib, after a comparison of both on two reports: the same
curves, bars and matrices look alike, but matplotlib's SVG is three to five times as large and takes
a hundred times as long, its legends run off a narrow drawing, and it has no tooltips. Here colours
come from the page's style sheet, so one drawing is right on a light page, on a dark one and on
paper, and text is text.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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

_NUM_COLORS = 8  # line colours in the style sheet (Okabe and Ito's set, safe for the colour-blind)
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
_WIDTH = 480.0  # wide enough for eight series, and text still readable on a phone
_CHAR = 7.5  # advance of a 13 px character in a wide sans-serif face, for laying out text
_ROW = 24.0  # height of a row that has a name
_PERCENT = (0.0, 100.0)


@functools.singledispatch
def draw(block: object) -> str:
    """Draw a block as an ``<svg>`` element.

    The element has the classes of the report's style sheet and no style of its own;
    :func:`adcam.report.render.standalone_svg` makes a file of it.

    Args:
        block: One of the diagrams of :mod:`adcam.report.model`.

    Returns:
        The element as text.

    Raises:
        TypeError: If the block is not a diagram.
    """
    raise TypeError(f"a {type(block).__name__} is not a diagram")


@draw.register
def curves_svg(curves: Curves) -> str:
    """Draw lines with a legend, a grid and marked points."""
    drawing = _Drawing(_WIDTH)
    left, right = 52.0, _WIDTH - 12
    styles = _styles([series.name for series in curves.series], curves.emphasis)
    top = drawing.legend(styles, left, right) + 12
    bottom = top + 240
    xs = [x for series in curves.series for x in series.x]
    ys = [y for series in curves.series for y in series.y]
    across = _axis(curves.x_range or _data_range(xs), left, right)
    up = _axis(curves.y_range or _round_range(ys), bottom, top)
    drawing.y_axis(up, left, right, curves.y_label)
    drawing.x_axis(across, bottom, bottom + 5, curves.x_label, style="axis")
    drawing.line("axis", left, bottom, right, bottom)
    # The emphasised series is drawn last, on top of the others.
    order = sorted(curves.series, key=lambda series: series.name == curves.emphasis)
    for series in order:
        # Points outside the axes would be drawn over the labels: they end the line instead.
        for run in _runs(series.x, series.y, across, up):
            points = [(across.at(x), up.at(y)) for x, y in run]
            drawing.polyline(styles[series.name], points)
    for series in order:
        if series.mark is None or not all(math.isfinite(value) for value in series.mark):
            continue
        x, y = series.mark
        value = f"{y:.3g} at {_tick_text(x)}"
        style = f"dot {styles[series.name].color}"
        drawing.circle(style, across.at(x), up.at(y), 4.5, f"{series.name}: {value}")
        if series.name == curves.emphasis:
            drawing.text("value", across.at(x), up.at(y) - 11, value, "middle")
    # The page's script follows the pointer here, and reads the ends of the axes.
    ends = {
        "data_x": f"{across.low!r} {across.high!r}",
        "data_y": f"{up.low!r} {up.high!r}",
    }
    drawing.rect("sense", left, top, right - left, bottom - top, **ends)
    return drawing.svg(bottom + 48, curves.caption or f"{curves.y_label} over {curves.x_label}")


@draw.register
def per_class_svg(per_class: PerClass) -> str:
    """Draw a dot per method on one line per class; the last method is filled and printed."""
    drawing = _Drawing(_WIDTH)
    left, right = _name_margin(per_class.classes), _WIDTH - 64
    main = list(per_class.values)[-1]
    styles = _styles(list(per_class.values), main)
    top = drawing.legend(styles, left, _WIDTH - 8, dots=True) + 12
    bottom = top + _ROW * len(per_class.classes)
    across = _axis(_PERCENT, left, right)
    drawing.x_axis(across, top, bottom, per_class.unit)
    for k, class_name in enumerate(per_class.classes):
        y = top + _ROW * (k + 0.5)
        values = {name: values[k] for name, values in per_class.values.items()}
        shown = {name: format_number(value) for name, value in values.items()}
        drawing.row_texts(left, y, class_name, shown[main])
        known = [value for value in values.values() if math.isfinite(value)]
        if known:
            drawing.line("span", across.at(min(known)), y, across.at(max(known)), y)
        for name in sorted(values, key=lambda name: name == main):
            if math.isfinite(values[name]):
                tip = f"{name}, {class_name}: {shown[name]}"
                drawing.dot(styles[name], across.at(values[name]), y, tip)
    return drawing.svg(bottom + 48, per_class.caption or f"{per_class.unit} per class")


@draw.register
def scatter_svg(scatter: Scatter) -> str:
    """Draw a square of dots with its diagonal; above it the second method is better."""
    left, top, side = 60.0, 12.0, 380.0
    right, bottom = left + side, top + side
    drawing = _Drawing(right + 16)
    drawing.element("path", "better", d=f"M{_num(left)} {_num(bottom)}V{_num(top)}H{_num(right)}Z")
    across = _axis(_PERCENT, left, right)
    up = _axis(_PERCENT, bottom, top)
    drawing.y_axis(up, left, right, scatter.y_label)
    drawing.x_axis(across, top, bottom, scatter.x_label)
    drawing.line("axis", left, bottom, right, top)
    for name, x, y in zip(scatter.names, scatter.x, scatter.y, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            tip = f"{name}: {format_number(x)} → {format_number(y)}"
            drawing.circle("point s0", across.at(x), up.at(y), 3, tip)
    return drawing.svg(bottom + 48, scatter.caption or f"{scatter.y_label} over {scatter.x_label}")


@draw.register
def differences_svg(differences: Differences) -> str:
    """Draw bars to both sides of zero, each with its number."""
    drawing = _Drawing(_WIDTH)
    left, right, top = _name_margin(differences.names), _WIDTH - 64, 12.0
    bottom = top + _ROW * len(differences.names)
    across = _axis(_round_range([0.0, *differences.values]), left, right)
    drawing.x_axis(across, top, bottom, differences.label)
    zero = across.at(0)
    drawing.line("axis", zero, top, zero, bottom)
    for k, (name, value) in enumerate(zip(differences.names, differences.values, strict=True)):
        y = top + _ROW * (k + 0.5)
        shown = format_number(value, signed=True)
        drawing.row_texts(left, y, name, shown)
        if math.isfinite(value):
            x, far = sorted((zero, across.at(value)))
            style = "fill s0" if value >= 0 else "fill s1"
            drawing.rect(style, x, y - 7, far - x, 14, f"{name}: {shown}")
    return drawing.svg(bottom + 48, differences.caption or differences.label)


@draw.register
def confusion_svg(confusion: Confusion) -> str:
    """Draw a heat map of row shares: truth from top to bottom, prediction from left to right.

    The opacity of a cell is the square root of its share, so that 5 % is visible. Counts are in
    the tooltips; shares in % are printed where there is room (at most 24 classes).
    """
    num = len(confusion.names)
    printed = num <= 24
    cell = 34.0 if num <= 12 else 26.0 if printed else 11.0
    names = [shorten(name, 18) for name in confusion.names]
    margin = 34 + (_CHAR if printed else _CHAR * 0.75) * max(len(name) for name in names)
    style = "name" if printed else "name small"
    end = margin + cell * num
    drawing = _Drawing(end + 8)
    drawing.text("label", (margin + end) / 2, 14, "predicted", "middle")
    drawing.text("label", 14, (margin + end) / 2, "truth", "middle", turned=True)
    rows = zip(names, confusion.counts, confusion.shares(), strict=True)
    for i, (name, row, shares) in enumerate(rows):
        low = margin + cell * i
        middle = low + cell / 2 + 4
        drawing.text(style, margin - 8, middle, name, "end")
        drawing.text(style, middle, margin - 8, name, turned=True)
        if not sum(row):
            drawing.text("tick", margin + 8, middle, "does not occur")
        for j, (count, share) in enumerate(zip(row, shares, strict=True)):
            if not share > 0:
                continue
            tip = (
                f"{confusion.names[i]} predicted as {confusion.names[j]}: {100 * share:.1f} % "
                f"({format_number(count)} pixels)"
            )
            x = margin + cell * j
            opacity = f"{math.sqrt(share):.3f}"
            drawing.rect(
                "cell",
                x + 0.5,
                low + 0.5,
                cell - 1,
                cell - 1,
                tip,
                fill_opacity=opacity,
                data_truth=escape(confusion.names[i]),
                data_predicted=escape(confusion.names[j]),
            )
            if printed and share >= 0.005:
                number = "share over" if share > 0.3 else "share"
                drawing.text(number, x + cell / 2, middle, f"{100 * share:.0f}", "middle")
    drawing.rect("frame", margin, margin, cell * num, cell * num)
    return drawing.svg(end + 8, confusion.caption or "Confusion matrix")


@draw.register
def histograms_svg(histograms: Histograms) -> str:
    """Draw small histograms, two side by side, on common axes."""
    columns, gap, left, height = 2, 28.0, 34.0, 84.0
    row_height = height + 62
    width = (_WIDTH - left - 12 - gap) / columns
    drawing = _Drawing(_WIDTH)
    most = max((count for counts in histograms.counts.values() for count in counts), default=0)
    ticks = [tick for tick in _ticks(0, most or 1)[::2] if tick >= 0]
    for number, name in enumerate(histograms.counts):
        column, row = number % columns, number // columns
        start, top = left + column * (width + gap), 22 + row * row_height
        ends = (histograms.edges[0], histograms.edges[-1])
        across = _axis(ends, start, start + width)
        up = replace(_axis((0, max(ticks[-1], most)), top + height, top), ticks=ticks)
        drawing.y_axis(up, start, start + width, labelled=column == 0)
        _draw_histogram(drawing, histograms, name, across, up)
    num_rows = -(-len(histograms.counts) // columns)
    return drawing.svg(8 + num_rows * row_height, histograms.caption or histograms.x_label)


def _draw_histogram(
    drawing: _Drawing, histograms: Histograms, name: str, across: _Axis, up: _Axis
) -> None:
    top, bottom, is_main = up.end, up.start, name == histograms.emphasis
    bins = zip(histograms.edges[:-1], histograms.edges[1:], histograms.counts[name], strict=True)
    for low, high, count in bins:
        if count:
            tip = f"{name}, {_tick_text(low)} to {_tick_text(high)}: {count} images"
            x, width = across.at(low) + 0.5, across.at(high) - across.at(low) - 1
            style = "fill s0" if is_main else "fill s6"
            drawing.rect(style, x, up.at(count), width, bottom - up.at(count), tip)
    drawing.line("axis", across.start, bottom, across.end, bottom)
    drawing.x_axis(across, bottom, bottom, histograms.x_label, style="", label_gap=34)
    drawing.text("name strong" if is_main else "name", across.start, top - 8, shorten(name, 24))
    if histograms.mark is not None:
        x = across.at(histograms.mark)
        drawing.line("axis", x, top, x, bottom)
        shown = f"{format_number(histograms.share_above(name))} %"
        drawing.text("value", across.end, top - 8, shown, "end")


@draw.register
def shares_svg(shares: Shares) -> str:
    """Draw bars from 0 to 100 %, divided into coloured parts."""
    drawing = _Drawing(_WIDTH)
    row_height, left, right = 28.0, _name_margin(list(shares.values)), _WIDTH - 12
    styles = {part: _Style(f"s{i}", "", main=True) for i, part in enumerate(shares.parts)}
    top = drawing.legend(styles, 8, right, dots=True, strong=False) + 12
    bottom = top + row_height * len(shares.values)
    across = replace(_axis(_PERCENT, left, right), ticks=(0, 25, 50, 75, 100))
    drawing.x_axis(across, top, bottom, "images, %")
    for k, (name, values) in enumerate(shares.values.items()):
        y, before = top + row_height * k, 0.0
        middle = y + row_height / 2
        drawing.row_texts(left, middle, name)
        for part, value in zip(shares.parts, values, strict=True):
            x, width = across.at(before), across.at(before + value) - across.at(before)
            before += value
            if width > 0:
                tip = f"{name}, {part}: {value:.1f} %"
                drawing.rect(f"fill {styles[part].color}", x, y + 4, width, row_height - 8, tip)
            if width >= 22:
                shown = format_number(float(value), digits=0)
                drawing.text("share over", x + width / 2, middle + 4, shown, "middle")
    return drawing.svg(bottom + 48, shares.caption or ", ".join(shares.parts))


@dataclass(frozen=True)
class _Style:
    """How a series is drawn: class of its colour, dash pattern, and whether it is the main one."""

    color: str
    dash: str
    main: bool

    @property
    def line(self) -> dict[str, str]:
        """Class and dash pattern of a line, as attributes of an element."""
        dash = {"stroke_dasharray": self.dash} if self.dash else {}
        return {"style": f"line {self.color}{' main' if self.main else ''}", **dash}


@dataclass(frozen=True)
class _Axis:
    """An axis: its values ``low`` and ``high`` are drawn at ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]

    def at(self, value: float) -> float:
        """Where a value is drawn; one outside the axis is drawn at its end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


@dataclass
class _Drawing:
    """The elements of a diagram so far, in the order in which they are painted."""

    width: float
    parts: list[str] = field(default_factory=list)

    def element(self, tag: str, style: str, body: str = "", **attributes: str | float) -> None:
        """Add an element; an underscore in an attribute's name stands for a hyphen."""
        texts = {k: v if isinstance(v, str) else _num(v) for k, v in attributes.items()}
        written = "".join(f' {name.replace("_", "-")}="{text}"' for name, text in texts.items())
        end = f">{body}</{tag}>" if body else "/>"
        self.parts.append(f'<{tag} class="{style}"{written}{end}')

    def line(
        self, style: str, x1: float, y1: float, x2: float, y2: float, **attributes: str
    ) -> None:
        """Add a straight line."""
        self.element("line", style, x1=x1, y1=y1, x2=x2, y2=y2, **attributes)

    def polyline(self, style: _Style, points: Sequence[tuple[float, float]]) -> None:
        """Add a line through points."""
        text = " ".join(f"{_num(x)},{_num(y)}" for x, y in points)
        self.element("polyline", points=text, **style.line)

    def text(
        self, style: str, x: float, y: float, text: str, anchor: str = "", *, turned: bool = False
    ) -> None:
        """Add text that starts, ends or has its middle at a point; ``turned`` reads upwards."""
        place: dict[str, str | float] = {"x": x, "y": y}
        if turned:
            place = {"transform": f"translate({_num(x)} {_num(y)}) rotate(-90)"}
        if anchor:
            place["text_anchor"] = anchor
        self.element("text", style, escape(text), **place)

    def rect(
        self,
        style: str,
        x: float,
        y: float,
        width: float,
        height: float,
        tip: str = "",
        **attributes: str,
    ) -> None:
        """Add a rectangle with a tooltip."""
        body = _tooltip(tip)
        self.element("rect", style, body, x=x, y=y, width=width, height=height, **attributes)

    def circle(self, style: str, x: float, y: float, radius: float, tip: str) -> None:
        """Add a circle with a tooltip."""
        self.element("circle", style, _tooltip(tip), cx=x, cy=y, r=radius)

    def dot(self, style: _Style, x: float, y: float, tip: str) -> None:
        """Add the dot of a series: filled and larger for the main one, hollow for the others."""
        shape, radius = ("dot", 5.5) if style.main else ("dot hollow", 4)
        self.circle(f"{shape} {style.color}", x, y, radius, tip)

    def row_texts(self, left: float, y: float, name: str, value: str = "") -> None:
        """Add the name in front of a row and the number behind it."""
        self.text("name", left - 10, y + 4, shorten(name, 24), "end")
        if value:
            self.text("value", self.width - 8, y + 4, value, "end")

    def x_axis(
        self,
        axis: _Axis,
        top: float,
        bottom: float,
        label: str,
        *,
        style: str = "grid",
        label_gap: float = 38,
    ) -> None:
        """Add a vertical line and a number at every tick, and the label below them."""
        for tick in axis.ticks:
            x = axis.at(tick)
            if style:
                self.line(style, x, top, x, bottom)
            self.text("tick", x, bottom + 18, _tick_text(tick), "middle")
        self.text("label", (axis.start + axis.end) / 2, bottom + label_gap, label, "middle")

    def y_axis(
        self, axis: _Axis, left: float, right: float, label: str = "", *, labelled: bool = True
    ) -> None:
        """Add a horizontal line at every tick, its number, and the label in front of them."""
        for tick in axis.ticks:
            y = axis.at(tick)
            self.line("grid", left, y, right, y)
            if labelled:
                self.text("tick", left - 7, y + 4, _tick_text(tick), "end")
        if label:
            self.text("label", 14, (axis.start + axis.end) / 2, label, "middle", turned=True)

    def legend(
        self,
        styles: dict[str, _Style],
        left: float,
        right: float,
        *,
        dots: bool = False,
        strong: bool = True,
    ) -> float:
        """Add samples and names, wrapped into rows.

        Returns:
            The height that they take.
        """
        sample = 18.0 if dots else 34.0
        x, y = left, 14.0
        for name, style in styles.items():
            short = shorten(name, 40)
            advance = sample + _CHAR * len(short) + 16
            if x > left and x + advance - 16 > right:
                x, y = left, y + 20
            if dots:
                self.dot(style, x + 6, y - 4, name)
            else:
                self.line(x1=x, y1=y - 4, x2=x + 26, y2=y - 4, **style.line)
            self.text("name strong" if style.main and strong else "name", x + sample, y, short)
            x += advance
        return y + 6

    def svg(self, height: float, title: str) -> str:
        """The diagram as an ``<svg>`` element."""
        size = f"{_num(self.width)} {_num(height)}"
        return (
            f'<svg class="figure" viewBox="0 0 {size}" width="{_num(self.width)}" '
            f'height="{_num(height)}" role="img" aria-label="{escape(title)}">'
            f"{''.join(self.parts)}</svg>"
        )


def _tooltip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _styles(names: Sequence[str], emphasis: str) -> dict[str, _Style]:
    """Colour and dash of every series; the emphasised one always has the accent colour."""
    others = [name for name in names if name != emphasis]
    first = 1 if emphasis in names else 0
    styles = {
        name: _Style(f"s{i % _NUM_COLORS}", _DASHES[i % len(_DASHES)], main=False)
        for i, name in enumerate(others, first)
    }
    return {name: styles.get(name, _Style("s0", "", main=True)) for name in names}


def _name_margin(names: Sequence[str]) -> float:
    """Width of the column of names in front of rows."""
    return min(190.0, 18 + 8.0 * max((len(name) for name in names), default=0))


def _runs(
    xs: Sequence[float], ys: Sequence[float], across: _Axis, up: _Axis
) -> Iterator[list[tuple[float, float]]]:
    """Consecutive points inside the axes; a NaN or a point outside separates two runs."""
    run: list[tuple[float, float]] = []
    for x, y in zip(xs, ys, strict=True):
        if across.low <= x <= across.high and up.low <= y <= up.high:
            run.append((x, y))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _axis(ends: tuple[float, float], start: float, end: float) -> _Axis:
    """An axis with round ticks."""
    low, high = ends
    slack = 1e-9 * (high - low)
    ticks = [tick for tick in _ticks(low, high) if low - slack <= tick <= high + slack]
    return _Axis(low, high, start, end, ticks)


def _round_range(values: Sequence[float]) -> tuple[float, float]:
    """The range of the data, widened to round values."""
    ticks = _ticks(*_data_range(values))
    return ticks[0], ticks[-1]


def _data_range(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest finite value, widened where they are the same; (0, 1) without any."""
    finite = [value for value in values if math.isfinite(value)]
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


def _tick_text(value: float) -> str:
    return f"{value:.4g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def _num(value: float) -> str:
    """A coordinate with at most one digit after the point."""
    return f"{value:.1f}".removesuffix(".0")
