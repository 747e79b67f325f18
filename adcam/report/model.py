"""What a report says, apart from how it looks.

A :class:`Report` is a title, a few headline numbers and sections made of blocks. Every class is a
frozen dataclass that checks itself when it is created, so a report that exists can be rendered. A
mistake in one is the program's, not the user's, and therefore a plain ``ValueError``.
:meth:`Report.to_dict` is the content of ``report.json``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Cell = str | int | float | None
"""One value of a table. ``None`` and NaN are shown as "–", floats with their column's digits."""

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Headline:
    """One number that a reader should take home.

    Attributes:
        label: What the number is, e.g. ``"AD-CAM, val"``.
        value: The number, or a text that is shown as it is.
        unit: The unit, printed small behind the value, e.g. ``"% mIoU"``.
        note: One short line below the value, e.g. ``"12.7 points above TS-CAM"``.
    """

    label: str
    value: Cell
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Text:
    """Plain paragraphs; markup in them is shown as it is.

    Attributes:
        paragraphs: The paragraphs, one string each.
        tone: ``"plain"``, or ``"caution"`` for something that a reader must not overlook, such as
            "AD-CAM does not win here". Cautions are set apart.
    """

    paragraphs: Sequence[str]
    tone: str = "plain"

    def __post_init__(self) -> None:
        _check_one_of("tone", self.tone, ("plain", "caution"))


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: The heading.
        digits: The number of digits after the point of floats. Integers are shown whole.
        best: ``"max"`` or ``"min"`` sets the largest or smallest values in bold. Values that look
            the same at ``digits`` are equally good. ``""`` highlights nothing.
        bar_max: Each number gets a bar that is full at this value. The column with bars is the one
            that counts: it stays on the screen where a table is wider. ``None`` draws no bars.
        hint: A longer explanation of the heading, shown when the pointer rests on it.
    """

    name: str
    digits: int = 1
    best: str = ""
    bar_max: float | None = None
    hint: str = ""

    def __post_init__(self) -> None:
        _check_one_of("best", self.best, ("", "max", "min"))
        if self.digits < 0:
            raise ValueError(
                f"digits of column {self.name!r} must be at least 0, got {self.digits}"
            )
        if self.bar_max is not None and not self.bar_max > 0:
            raise ValueError(f"bar_max of column {self.name!r} must be above 0, got {self.bar_max}")


@dataclass(frozen=True)
class Table:
    """Rows of values under headings.

    Attributes:
        columns: The headings, and how the values below them are shown.
        rows: The rows, each as long as ``columns``. The first value of a row is its name.
        caption: What the numbers are: the data, the split and the policy.
        command: The command that computes the table again, shown below it.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {i} of table {self.caption!r} has {len(row)} values "
                    f"for {len(self.columns)} columns"
                )


@dataclass(frozen=True)
class Series:
    """One line of a diagram.

    Attributes:
        name: The name of the line in the legend.
        x: The x values. The points are joined in the order given, ascending or not.
        y: The y values, as many as ``x``. NaN leaves a gap.
        mark: The chosen point ``(x, y)``, drawn as a dot with its value; ``None`` draws no dot.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    mark: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(
                f"series {self.name!r} has {len(self.x)} x values but {len(self.y)} y values"
            )


@dataclass(frozen=True)
class Curves:
    """Lines over a common x axis, e.g. mIoU over the background threshold.

    Attributes:
        series: The lines, at least one.
        x_label: The name of the x axis, with its unit.
        y_label: The name of the y axis, with its unit.
        caption: What the diagram shows; screen readers read it in place of the picture.
        emphasis: The name of the series that is drawn thick; ``""`` treats all alike.
        x_range: The two ends of the x axis; ``None`` takes the range of the data.
        y_range: The two ends of the y axis; ``None`` takes the range of the data, widened to round
            values.
    """

    series: Sequence[Series]
    x_label: str
    y_label: str
    caption: str = ""
    emphasis: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        names = [s.name for s in self.series]
        if not names:
            raise ValueError(f"diagram {self.caption!r} has no series")
        if len(set(names)) != len(names):
            raise ValueError(f"a series name is given twice: {names}")
        _check_one_of("emphasis", self.emphasis, ("", *names))
        _check_range("x_range", self.x_range)
        _check_range("y_range", self.y_range)


@dataclass(frozen=True)
class PerClass:
    """One value per class for several methods, drawn as dots on one line per class.

    Attributes:
        classes: The names of the C classes.
        values: The C values of each method in percent, by its name; NaN where a class does not
            occur. The dots of the last method are filled and its numbers printed.
        unit: The unit of the values, e.g. ``"IoU, %"``.
        caption: What the diagram shows.
    """

    classes: Sequence[str]
    values: Mapping[str, Sequence[float]]
    unit: str = "IoU, %"
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"per-class diagram {self.caption!r} has no method")
        for method, values in self.values.items():
            if len(values) != len(self.classes):
                raise ValueError(
                    f"{method!r} has {len(values)} values for {len(self.classes)} classes"
                )


@dataclass(frozen=True)
class Scatter:
    """One dot per item, two methods as axes, and the diagonal on which they are equal.

    Attributes:
        names: The names of the items, shown when the pointer rests on a dot.
        x: The value of the first method for each item, in percent.
        y: The value of the second method for each item, in percent.
        x_label: The name of the x axis, with its unit.
        y_label: The name of the y axis, with its unit.
        caption: What the diagram shows.
    """

    names: Sequence[str]
    x: Sequence[float]
    y: Sequence[float]
    x_label: str
    y_label: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.x) == len(self.y):
            raise ValueError(
                f"scatter {self.caption!r} has {len(self.names)} names, {len(self.x)} x and "
                f"{len(self.y)} y"
            )


@dataclass(frozen=True)
class Differences:
    """One bar per name, to the right of zero for a gain and to the left for a loss.

    Attributes:
        names: The names of the bars, from top to bottom.
        values: The lengths of the bars, as many as ``names``. NaN draws no bar.
        label: The name of the axis, with its unit.
        caption: What the diagram shows.
    """

    names: Sequence[str]
    values: Sequence[float]
    label: str
    caption: str = ""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values):
            raise ValueError(f"{len(self.names)} names for {len(self.values)} values")


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: how many pixels of each class are predicted as each other class.

    Attributes:
        names: The names of the C classes; rows and columns have the same order.
        counts: The counts, none negative: one row per true class with one count per predicted
            class.
        caption: What is counted, e.g. the pixels of val without the ignored ones.
    """

    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    caption: str = ""

    def __post_init__(self) -> None:
        num = len(self.names)
        if num == 0 or len(self.counts) != num or any(len(row) != num for row in self.counts):
            raise ValueError(
                f"counts must be {num}×{num} with at least one name, got rows of lengths "
                f"{[len(row) for row in self.counts]}"
            )
        if any(count < 0 for row in self.counts for count in row):
            raise ValueError("counts must not be negative")

    def shares(self) -> list[list[float]]:
        """Divide each row by its sum: shares in [0, 1], NaN for a class that never occurs."""
        sums = [sum(row) for row in self.counts]
        return [
            [count / total if total else math.nan for count in row]
            for row, total in zip(self.counts, sums, strict=True)
        ]

    def largest(self, num: int) -> list[tuple[str, str, float]]:
        """The ``num`` largest shares off the diagonal as (truth, prediction, share), sorted."""
        found = [
            (self.names[i], self.names[j], share)
            for i, row in enumerate(self.shares())
            for j, share in enumerate(row)
            if i != j and share > 0
        ]
        return sorted(found, key=lambda entry: -entry[2])[:num]


@dataclass(frozen=True)
class Histograms:
    """One small histogram of images per name, all with the same bins and axes.

    Attributes:
        edges: The edges of the n bins, n + 1 ascending numbers.
        counts: The n counts of each histogram, by its name; none is negative.
        x_label: The name of the quantity on the x axis, with its unit.
        caption: What the diagram shows.
        emphasis: The name of the histogram in the accent colour; ``""`` treats all alike.
        mark: A value that is marked by a line, e.g. the IoU from which a box is correct. The share
            of the counts above it is printed. ``None`` draws no line.
    """

    edges: Sequence[float]
    counts: Mapping[str, Sequence[int]]
    x_label: str
    caption: str = ""
    emphasis: str = ""
    mark: float | None = None

    def __post_init__(self) -> None:
        if not self.counts:
            raise ValueError(f"histograms {self.caption!r} have no counts")
        if len(self.edges) < 2 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges must be ascending, at least two, got {list(self.edges)}")
        for name, counts in self.counts.items():
            if len(counts) != len(self.edges) - 1 or any(count < 0 for count in counts):
                raise ValueError(
                    f"{name!r} must have {len(self.edges) - 1} counts that are not negative, got "
                    f"{list(counts)}"
                )
        _check_one_of("emphasis", self.emphasis, ("", *self.counts))

    def share_above(self, name: str) -> float:
        """Return the percentage of the counts in bins from ``mark`` on; NaN if there is none."""
        total = sum(self.counts[name])
        if self.mark is None or not total:
            return math.nan
        pairs = zip(self.edges, self.counts[name], strict=False)
        return 100 * sum(count for low, count in pairs if low >= self.mark) / total


@dataclass(frozen=True)
class Shares:
    """One bar per name, divided into parts of a whole.

    Attributes:
        parts: The names of the parts, at most eight, in the order in which they are drawn.
        values: The percentages of each bar, by its name: one per part, none negative, together at
            most 100.
        caption: What the diagram shows.
    """

    parts: Sequence[str]
    values: Mapping[str, Sequence[float]]
    caption: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.parts) <= 8:
            raise ValueError(f"shares must have 1 to 8 parts, got {list(self.parts)}")
        for name, shares in self.values.items():
            if len(shares) != len(self.parts):
                raise ValueError(f"{name!r} has {len(shares)} shares for {len(self.parts)} parts")
            if min(shares) < 0 or sum(shares) > 100 + 1e-6:
                raise ValueError(
                    f"shares of {name!r} must not be negative, and at most 100 together, got "
                    f"{list(shares)}"
                )


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture of a grid.

    Attributes:
        rgb: The pixels, uint8 (H, W, 3).
        column: What the picture shows, e.g. ``"image"``, ``"truth"``, ``"AD-CAM"``.
        value: A number printed beside the name, e.g. the IoU of this image in %; ``None`` prints
            nothing.
    """

    rgb: np.ndarray
    column: str
    value: float | None = None

    def __post_init__(self) -> None:
        check_rgb(self.rgb, f"picture {self.column!r}")


@dataclass(frozen=True, eq=False)
class PictureRow:
    """The pictures of one image.

    Attributes:
        img_id: The id of the image, shown above its pictures.
        pictures: The pictures, from left to right.
        labels: The image-level labels of the image.
    """

    img_id: str
    pictures: Sequence[Picture]
    labels: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class PictureGrid:
    """Images as rows, what is shown of them as columns.

    Attributes:
        rows: The images, all with the same columns in the same order.
        caption: What is shown, and how the images were chosen.
        legend: The name and colour of every class that occurs in the masks.
        heat_scale: Whether the legend shows the colour scale of the score maps.
        value_name: What the numbers beside the pictures are, e.g. ``"IoU, %"``.
        shows_ignored: Whether the legend explains the hatching of ignored pixels.
        max_side: The longer side, in pixels, at which pictures are stored. A larger value is
            sharper when a picture is enlarged, and the file grows with its square.
    """

    rows: Sequence[PictureRow]
    caption: str = ""
    legend: Sequence[tuple[str, RGB]] = ()
    heat_scale: bool = True
    value_name: str = "IoU, %"
    shows_ignored: bool = True
    max_side: int = 256

    def __post_init__(self) -> None:
        if self.max_side < 1:
            raise ValueError(f"max_side must be at least 1, got {self.max_side}")
        for row in self.rows:
            columns = [picture.column for picture in row.pictures]
            if columns != self.columns:
                raise ValueError(
                    f"row {row.img_id!r} has columns {columns}, the first row has {self.columns}"
                )

    @property
    def columns(self) -> list[str]:
        """The names of the columns; empty without rows."""
        return [picture.column for picture in self.rows[0].pictures] if self.rows else []


@dataclass(frozen=True, eq=False)
class Explorer:
    """All images with their maps and masks, to look through in the page.

    The page alone shows a note in its place: its data are files, which are put beside the page.

    Attributes:
        folder: The folder that :class:`adcam.report.explorer.ExplorerWriter` filled.
        index: The content of its ``index.json``.
        caption: What the images are, and how they were chosen.
    """

    folder: Path
    index: Mapping[str, Any]
    caption: str = ""


@dataclass(frozen=True)
class Timing:
    """The time that one step took.

    Attributes:
        name: The name of the step.
        seconds: The wall time, at least 0.
        num_items: How many images the step processed; ``None`` where a number says nothing.
        peak_bytes: The most memory that the process held during the step; ``None`` where it was
            not measured.
        gpu_bytes: The same on the GPU.
    """

    name: str
    seconds: float
    num_items: int | None = None
    peak_bytes: int | None = None
    gpu_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"seconds of step {self.name!r} must be >= 0, got {self.seconds}")
        if self.num_items is not None and self.num_items < 1:
            raise ValueError(f"num_items of step {self.name!r} must be >= 1, got {self.num_items}")


@dataclass(frozen=True)
class TimeTable:
    """Where the time went.

    Attributes:
        timings: One entry a step, in the order in which the steps ran.
        caption: On which machine and with which settings the times were measured.
    """

    timings: Sequence[Timing]
    caption: str = ""

    @property
    def total(self) -> float:
        """The seconds of all steps together."""
        return sum(timing.seconds for timing in self.timings)


@dataclass(frozen=True)
class KeyValues:
    """Names and values: versions, devices, settings, seeds, hashes, commands.

    Attributes:
        entries: The value of every name. Text of several lines keeps its line breaks.
        caption: The heading of the list.
        verbatim: Whether values are set in a fixed-width face, as commands and hashes should be.
    """

    entries: Mapping[str, Cell]
    caption: str = ""
    verbatim: bool = False


Block = (
    Text
    | Table
    | Curves
    | PerClass
    | Scatter
    | Differences
    | Confusion
    | Histograms
    | Shares
    | PictureGrid
    | Explorer
    | TimeTable
    | KeyValues
)


@dataclass(frozen=True, eq=False)
class Section:
    """Blocks under a heading.

    Attributes:
        title: The heading; the table of contents shows it too.
        blocks: The blocks, from top to bottom.
        folded: Whether the page hides the blocks until the reader opens the section.
    """

    title: str
    blocks: Sequence[Block]
    folded: bool = False


@dataclass(frozen=True, eq=False)
class Report:
    """A whole report.

    Nothing in it depends on when or where it is rendered: a date appears only if ``provenance``
    names one.

    Attributes:
        title: The title of the page.
        subtitle: One line below the title: data, split and model.
        summary: The finding in one or two sentences.
        headlines: Up to four numbers that a reader should remember.
        lead: The blocks of the first screen, ideally one table and one row of pictures.
        sections: The sections below the first screen.
        provenance: Versions, settings, hashes and commands, shown at the end.
    """

    title: str
    subtitle: str = ""
    summary: Sequence[str] = ()
    headlines: Sequence[Headline] = ()
    lead: Sequence[Block] = ()
    sections: Sequence[Section] = ()
    provenance: Sequence[KeyValues] = ()

    def __post_init__(self) -> None:
        if len(self.headlines) > 4:
            raise ValueError(f"at most 4 headline numbers fit, got {len(self.headlines)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; pictures are left out, NaN and ±inf are null."""
        plain: dict[str, Any] = _to_plain(self)
        return plain


def check_rgb(rgb: np.ndarray, name: str = "a picture") -> None:
    """Raise ``ValueError`` where an array is no picture."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise ValueError(
            f"{name} must be uint8 (H, W, 3) and not empty, got {rgb.dtype} {rgb.shape}"
        )


def _check_one_of(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ValueError(f"{name} must be one of {list(legal)}, got {value!r}")


def _check_range(name: str, ends: tuple[float, float] | None) -> None:
    if ends is not None and not ends[0] < ends[1]:
        raise ValueError(f"{name} must be (low, high) with low < high, got {ends}")


def _kind_of(block: Block) -> str:
    """``"per_class"`` for :class:`PerClass`, and so on."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", type(block).__name__).lower()


def _to_plain(value: Any) -> Any:
    """``value`` as JSON values; a block carries its ``kind``."""
    if isinstance(value, Picture):
        height, width = value.rgb.shape[:2]
        return {
            "column": value.column,
            "value": _to_plain(value.value),
            "hw": [height, width],
        }
    if isinstance(value, Explorer):
        index = {key: entry for key, entry in value.index.items() if key != "heat"}
        return {"kind": "explorer", "caption": value.caption, **_to_plain(index)}
    if dataclasses.is_dataclass(value):
        plain = {f.name: _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": _kind_of(value), **plain} if isinstance(value, Block) else plain
    if isinstance(value, Mapping):
        return {str(key): _to_plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _to_plain(value.tolist())
    if isinstance(value, np.generic):
        return _to_plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Sequence):
        return [_to_plain(entry) for entry in value]
    raise ValueError(f"a report cannot hold a {type(value).__name__}: {value!r}")
