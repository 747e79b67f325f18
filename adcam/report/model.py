"""What a report says, apart from how it looks.

A :class:`Report` is a title, a few headline numbers and sections made of blocks. Every class is a
frozen dataclass that checks itself when made, so that a report which exists can be rendered.
:meth:`Report.to_dict` is the content of ``report.json``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from adcam.errors import AdcamError

Cell = str | int | float | None
"""One value of a table. ``None`` and NaN are shown as "–", floats with their column's digits."""

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Headline:
    """One number that a reader should take home.

    Attributes:
        label: What it is, e.g. ``"AD-CAM, val"``.
        value: The number, or text that is shown as it is.
        unit: Printed small behind the value, e.g. ``"% mIoU"``.
        note: One short line below, e.g. ``"12.7 points above TS-CAM"``.
        digits: Digits after the point where ``value`` is a float.
    """

    label: str
    value: Cell
    unit: str = ""
    note: str = ""
    digits: int = 1


@dataclass(frozen=True)
class Text:
    """Plain paragraphs; no markup is read.

    Attributes:
        paragraphs: One string each.
        tone: ``"plain"``, or ``"caution"`` for what a reader must not overlook ("AD-CAM does not
            win here"), which is set apart.
    """

    kind: ClassVar[str] = "text"

    paragraphs: Sequence[str]
    tone: str = "plain"

    def __post_init__(self) -> None:
        _check_one_of("tone", self.tone, ("plain", "caution"))


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Heading.
        digits: Digits after the point of floats. Integers are shown whole.
        best: ``"max"`` or ``"min"``: the best values are set in bold. Values that look the same at
            ``digits`` are equally good. ``""`` highlights nothing.
        signed: Shows a plus sign, for differences.
        bar_max: A bar behind the number, from 0 to this value; ``None`` draws none.
        hint: Longer explanation of the heading, shown on hover.
    """

    name: str
    digits: int = 1
    best: str = ""
    signed: bool = False
    bar_max: float | None = None
    hint: str = ""

    def __post_init__(self) -> None:
        _check_one_of("best", self.best, ("", "max", "min"))
        if self.digits < 0:
            raise AdcamError(
                f"digits of column {self.name!r} must be at least 0, got {self.digits}"
            )
        if self.bar_max is not None and not self.bar_max > 0:
            raise AdcamError(f"bar_max of column {self.name!r} must be above 0, got {self.bar_max}")


@dataclass(frozen=True)
class Table:
    """Rows of values under headings.

    Attributes:
        columns: The headings and how their values are shown.
        rows: Each as long as ``columns``. The first value of a row names it.
        caption: What the numbers are: data, split, policy.
        command: The command that makes the table again, shown below it.
    """

    kind: ClassVar[str] = "table"

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise AdcamError(
                    f"row {i} of table {self.caption!r} has {len(row)} values "
                    f"for {len(self.columns)} columns"
                )


@dataclass(frozen=True)
class Series:
    """One line of a diagram.

    Attributes:
        name: In the legend.
        x: Ascending or not; joined in the order given.
        y: As many as ``x``. NaN leaves a gap.
        mark: The chosen point ``(x, y)``, drawn as a dot with its value.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    mark: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise AdcamError(f"series {self.name!r} has {len(self.x)} x but {len(self.y)} y")


@dataclass(frozen=True)
class Curves:
    """Lines over a common x axis, e.g. mIoU over the background threshold.

    Attributes:
        series: At least one.
        x_label: Name of the x axis, with its unit.
        y_label: Name of the y axis, with its unit.
        caption: What is shown; also the text for those who do not see the picture.
        emphasis: Name of the series drawn thick, ``""`` for none.
        x_range: Ends of the x axis; ``None`` takes the data's.
        y_range: Ends of the y axis; ``None`` takes the data's, widened to round values.
    """

    kind: ClassVar[str] = "curves"

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
            raise AdcamError(f"diagram {self.caption!r} has no series")
        if len(set(names)) != len(names):
            raise AdcamError(f"a series name is given twice: {names}")
        _check_one_of("emphasis", self.emphasis, ("", *names))
        for axis, ends in (("x_range", self.x_range), ("y_range", self.y_range)):
            if ends is not None and not ends[0] < ends[1]:
                raise AdcamError(f"{axis} must be (low, high) with low < high, got {ends}")


@dataclass(frozen=True)
class PerClass:
    """One value per class for several methods, drawn as dots on one line per class.

    Attributes:
        classes: C class names.
        values: From method name to C values; NaN where a class does not occur.
        unit: Of the values, e.g. ``"IoU, %"``.
        caption: What is shown.
        emphasis: Name of the method drawn filled and printed as a number, ``""`` for the last one.
        value_range: Ends of the axis.
        digits: Digits of the printed numbers.
    """

    kind: ClassVar[str] = "per_class"

    classes: Sequence[str]
    values: Mapping[str, Sequence[float]]
    unit: str = "IoU, %"
    caption: str = ""
    emphasis: str = ""
    value_range: tuple[float, float] = (0.0, 100.0)
    digits: int = 1

    def __post_init__(self) -> None:
        if not self.values:
            raise AdcamError(f"per-class diagram {self.caption!r} has no method")
        for method, values in self.values.items():
            if len(values) != len(self.classes):
                raise AdcamError(
                    f"{method!r} has {len(values)} values for {len(self.classes)} classes"
                )
        _check_one_of("emphasis", self.emphasis, ("", *self.values))
        if not self.value_range[0] < self.value_range[1]:
            raise AdcamError(f"value_range must be (low, high), got {self.value_range}")

    @property
    def main_method(self) -> str:
        """The method whose numbers are printed."""
        return self.emphasis or list(self.values)[-1]


@dataclass(frozen=True)
class Scatter:
    """One dot an item, two methods as axes, and the diagonal on which they are equal.

    Attributes:
        names: Of the items, shown on hover.
        x: Values of the first method, one an item.
        y: Values of the second method.
        x_label: Name of the x axis, with its unit.
        y_label: Name of the y axis, with its unit.
        caption: What is shown.
        value_range: Ends of both axes.
    """

    kind: ClassVar[str] = "scatter"

    names: Sequence[str]
    x: Sequence[float]
    y: Sequence[float]
    x_label: str
    y_label: str
    caption: str = ""
    value_range: tuple[float, float] = (0.0, 100.0)

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.x) == len(self.y):
            raise AdcamError(
                f"scatter {self.caption!r} has {len(self.names)} names, {len(self.x)} x and "
                f"{len(self.y)} y"
            )
        if not self.value_range[0] < self.value_range[1]:
            raise AdcamError(f"value_range must be (low, high), got {self.value_range}")


@dataclass(frozen=True)
class Differences:
    """One bar a name, to the right of zero for a gain and to the left for a loss.

    Attributes:
        names: Of the bars, from top to bottom.
        values: As many; NaN draws none.
        label: Of the axis, with its unit.
        caption: What is shown.
        digits: Digits of the printed numbers.
    """

    kind: ClassVar[str] = "differences"

    names: Sequence[str]
    values: Sequence[float]
    label: str
    caption: str = ""
    digits: int = 1

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values):
            raise AdcamError(f"{len(self.names)} names for {len(self.values)} values")


@dataclass(frozen=True)
class Confusion:
    """Which class is taken for which: counts of (truth, prediction) pairs.

    Attributes:
        names: C names, truth and prediction in the same order.
        counts: C rows (truth) of C counts (prediction), non-negative.
        caption: What is counted, e.g. pixels of val, ignored ones left out.
        unit: Of the counts, in the tooltips.
    """

    kind: ClassVar[str] = "confusion"

    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    caption: str = ""
    unit: str = "pixels"

    def __post_init__(self) -> None:
        num = len(self.names)
        if num == 0 or len(self.counts) != num or any(len(row) != num for row in self.counts):
            raise AdcamError(
                f"counts must be {num}×{num} with at least one name, got rows of lengths "
                f"{[len(row) for row in self.counts]}"
            )
        if any(count < 0 for row in self.counts for count in row):
            raise AdcamError("counts must not be negative")

    def shares(self) -> list[list[float]]:
        """Each row over its sum, in [0, 1]; NaN for a class that never occurs, ``[C][C]``."""
        sums = [sum(row) for row in self.counts]
        return [
            [count / total if total else math.nan for count in row]
            for row, total in zip(self.counts, sums, strict=True)
        ]

    def largest(self, num: int) -> list[tuple[str, str, float]]:
        """The ``num`` largest off-diagonal shares as (truth, prediction, share), largest first."""
        found = [
            (self.names[i], self.names[j], share)
            for i, row in enumerate(self.shares())
            for j, share in enumerate(row)
            if i != j and share > 0
        ]
        return sorted(found, key=lambda entry: -entry[2])[:num]


@dataclass(frozen=True)
class Histograms:
    """One small histogram a name, all over the same bins and axes.

    Attributes:
        edges: Ends of the n bins, ascending, n + 1 of them.
        counts: From name to n counts, non-negative.
        x_label: Of what is binned, with its unit.
        caption: What is shown.
        emphasis: Name of the histogram in the accent colour, ``""`` for none.
        mark: Value at which a line stands, e.g. the IoU from which a box is right; the share of the
            counts above it is printed.
        unit: Of the counts, plural.
    """

    kind: ClassVar[str] = "histograms"

    edges: Sequence[float]
    counts: Mapping[str, Sequence[int]]
    x_label: str
    caption: str = ""
    emphasis: str = ""
    mark: float | None = None
    unit: str = "images"

    def __post_init__(self) -> None:
        if not self.counts:
            raise AdcamError(f"histograms {self.caption!r} have no counts")
        if len(self.edges) < 2 or list(self.edges) != sorted(set(self.edges)):
            raise AdcamError(f"edges must be ascending, at least two, got {list(self.edges)}")
        for name, counts in self.counts.items():
            if len(counts) != len(self.edges) - 1 or any(count < 0 for count in counts):
                raise AdcamError(
                    f"{name!r} must have {len(self.edges) - 1} counts that are not negative, got "
                    f"{list(counts)}"
                )
        _check_one_of("emphasis", self.emphasis, ("", *self.counts))

    def share_above(self, name: str) -> float:
        """Percent of the counts of a name in bins from ``mark`` on; NaN without counts or mark."""
        total = sum(self.counts[name])
        if self.mark is None or not total:
            return math.nan
        pairs = zip(self.edges, self.counts[name], strict=False)
        return 100 * sum(count for low, count in pairs if low >= self.mark) / total


@dataclass(frozen=True)
class Shares:
    """One bar a name, divided into parts of a whole.

    Attributes:
        parts: Names of the parts, in the order drawn, at most eight.
        values: From name to one percentage a part, non-negative, together at most 100.
        caption: What is shown.
        digits: Digits of the printed numbers.
    """

    kind: ClassVar[str] = "shares"

    parts: Sequence[str]
    values: Mapping[str, Sequence[float]]
    caption: str = ""
    digits: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.parts) <= 8:
            raise AdcamError(f"shares must have 1 to 8 parts, got {list(self.parts)}")
        for name, shares in self.values.items():
            if len(shares) != len(self.parts):
                raise AdcamError(f"{name!r} has {len(shares)} shares for {len(self.parts)} parts")
            if min(shares) < 0 or sum(shares) > 100 + 1e-6:
                raise AdcamError(
                    f"shares of {name!r} must not be negative, and at most 100 together, got "
                    f"{list(shares)}"
                )


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture of a grid.

    Attributes:
        rgb: uint8 (H, W, 3).
        column: What it shows, e.g. ``"image"``, ``"truth"``, ``"AD-CAM"``.
        value: A number printed beside the name, e.g. this image's IoU in %; ``None`` for none.
        alt: Text for those who do not see it; made from the column and the row where empty.
    """

    rgb: np.ndarray
    column: str
    value: float | None = None
    alt: str = ""

    def __post_init__(self) -> None:
        if self.rgb.dtype != np.uint8 or self.rgb.ndim != 3 or self.rgb.shape[2] != 3:
            raise AdcamError(
                f"picture {self.column!r} must be uint8 (H, W, 3), "
                f"got {self.rgb.dtype} {self.rgb.shape}"
            )
        if 0 in self.rgb.shape:
            raise AdcamError(f"picture {self.column!r} is empty: {self.rgb.shape}")


@dataclass(frozen=True, eq=False)
class PictureRow:
    """The pictures of one image.

    Attributes:
        img_id: Names the row.
        pictures: From left to right.
        labels: Its image-level labels.
    """

    img_id: str
    pictures: Sequence[Picture]
    labels: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class PictureGrid:
    """Images as rows, what is shown of them as columns.

    Attributes:
        rows: All with the same columns in the same order.
        caption: What is shown, and how the images were chosen.
        legend: Name and colour of the classes that occur in the masks.
        heat_scale: Shows the colour scale of the score maps in the legend.
        value_name: What the pictures' values are, e.g. ``"IoU, %"``.
        shows_ignored: Explains the hatching of ignored pixels in the legend.
        max_side: Longer side in pixels at which pictures are stored. Larger is sharper when a
            picture is enlarged, and the file grows with its square.
    """

    kind: ClassVar[str] = "picture_grid"

    rows: Sequence[PictureRow]
    caption: str = ""
    legend: Sequence[tuple[str, RGB]] = ()
    heat_scale: bool = True
    value_name: str = "IoU, %"
    shows_ignored: bool = True
    max_side: int = 256

    def __post_init__(self) -> None:
        if self.max_side < 1:
            raise AdcamError(f"max_side must be at least 1, got {self.max_side}")
        for row in self.rows:
            columns = [picture.column for picture in row.pictures]
            if columns != self.columns:
                raise AdcamError(
                    f"row {row.img_id!r} has columns {columns}, the first row has {self.columns}"
                )

    @property
    def columns(self) -> list[str]:
        """Names of the columns, ``[]`` without rows."""
        return [picture.column for picture in self.rows[0].pictures] if self.rows else []


@dataclass(frozen=True)
class Timing:
    """The time that one step took.

    Attributes:
        name: The name of the step.
        seconds: The wall time, at least 0.
        num_items: How many items the step processed; ``None`` where a number says nothing.
        item: What is counted, in the singular.
    """

    name: str
    seconds: float
    num_items: int | None = None
    item: str = "image"

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise AdcamError(f"seconds of step {self.name!r} must be >= 0, got {self.seconds}")
        if self.num_items is not None and self.num_items < 1:
            raise AdcamError(f"num_items of step {self.name!r} must be >= 1, got {self.num_items}")


@dataclass(frozen=True)
class TimeTable:
    """Where the time went.

    Attributes:
        timings: One entry a step, in the order in which the steps ran.
        caption: On which machine, with which settings.
    """

    kind: ClassVar[str] = "time_table"

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
        entries: From name to value. Text of several lines keeps its line breaks.
        caption: Heading of the list.
        verbatim: Sets the values in a fixed-width face, for commands and hashes.
    """

    kind: ClassVar[str] = "key_values"

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
    | TimeTable
    | KeyValues
)


@dataclass(frozen=True, eq=False)
class Section:
    """Blocks under a heading.

    Attributes:
        title: The heading, also in the table of contents.
        blocks: From top to bottom.
    """

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, eq=False)
class Report:
    """A whole report.

    Nothing in it depends on when or where it is rendered: a date appears only if ``provenance``
    names one.

    Attributes:
        title: Of the page.
        subtitle: One line below it: data, split, model.
        summary: The finding in one or two sentences.
        headlines: Up to four numbers.
        lead: Blocks of the first screen: best one table and one row of pictures.
        sections: The rest.
        provenance: Versions, settings, hashes and commands, at the end.
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
            raise AdcamError(f"at most 4 headline numbers fit, got {len(self.headlines)}")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values: pictures by size, column and text; NaN and ±inf as null."""
        plain: dict[str, Any] = _to_plain(self)
        return plain


def _check_one_of(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise AdcamError(f"{name} must be one of {list(legal)}, got {value!r}")


def _to_plain(value: Any) -> Any:
    """``value`` as JSON values; a block carries its ``kind``."""
    if isinstance(value, Picture):
        height, width = value.rgb.shape[:2]
        return {
            "column": value.column,
            "value": _to_plain(value.value),
            "alt": value.alt,
            "hw": [height, width],
        }
    if dataclasses.is_dataclass(value):
        plain = {f.name: _to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        kind = getattr(value, "kind", None)
        return plain if kind is None else {"kind": kind, **plain}
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
    raise AdcamError(f"a report cannot hold a {type(value).__name__}: {value!r}")
