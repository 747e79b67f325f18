"""Diagrams are well-formed SVG with every point where it belongs."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from adcam.report.diagrams import (
    confusion_svg,
    curves_svg,
    differences_svg,
    histograms_svg,
    per_class_svg,
    scatter_svg,
    shares_svg,
)
from adcam.report.model import (
    Confusion,
    Curves,
    Differences,
    Histograms,
    PerClass,
    Scatter,
    Series,
    Shares,
)


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def by_class(root: ElementTree.Element, tag: str, style: str) -> list[ElementTree.Element]:
    return [e for e in root.iter(tag) if style in e.get("class", "").split()]


def points_of(line: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (p.split(",") for p in line.get("points", "").split())]


def test_curve_points_are_affine_in_the_data() -> None:
    series = Series("s", [0.0, 0.25, 1.0], [0.0, 50.0, 100.0], mark=(0.25, 50.0))
    root = parse(curves_svg(Curves([series], "x", "y", x_range=(0, 1), y_range=(0, 100))))
    (line,) = root.iter("polyline")
    (x0, y0), (x1, y1), (x2, y2) = points_of(line)
    assert x1 - x0 == pytest.approx(0.25 * (x2 - x0), abs=0.2)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.2)
    assert x2 > x0
    assert y2 < y0  # upwards on the page
    (dot,) = root.iter("circle")
    assert (float(dot.get("cx", "")), float(dot.get("cy", ""))) == (x1, y1)
    assert [t.text for t in dot.iter("title")] == ["s: 50 at 0.25"]


def test_gaps_split_a_line_and_nan_never_reaches_the_svg() -> None:
    series = Series("s", [0, 1, 2, 3, 4], [1, 2, math.nan, 3, 4], mark=(math.nan, 1.0))
    svg = curves_svg(Curves([series], "x", "y"))
    assert "nan" not in svg.lower()
    assert [len(points_of(line)) for line in parse(svg).iter("polyline")] == [2, 2]
    assert not list(parse(svg).iter("circle"))


@pytest.mark.parametrize("values", [[], [math.nan], [3.0], [0.0, 0.0], [-2.0, -2.0]])
def test_degenerate_data_is_drawn(values: list[float]) -> None:
    svg = curves_svg(Curves([Series("s", values, values)], "x", "y"))
    assert "nan" not in svg.lower()
    parse(svg)


def test_emphasised_series_is_last_thick_and_in_the_accent_colour() -> None:
    series = [Series(name, [0, 1], [0, 1]) for name in ("a", "main", "b")]
    root = parse(curves_svg(Curves(series, "x", "y", emphasis="main")))
    styles = [line.get("class", "") for line in root.iter("polyline")]
    assert styles == ["line s1", "line s2", "line s0 main"]


def test_many_series_stay_apart() -> None:
    series = [Series(f"m{i}", [0, 1], [0, i]) for i in range(8)]
    root = parse(curves_svg(Curves(series, "x", "y")))
    looks = {(line.get("class"), line.get("stroke-dasharray")) for line in root.iter("polyline")}
    assert len(looks) == 8
    width = float(root.get("viewBox", "").split()[2])
    names = by_class(root, "text", "name")
    assert len(names) == 8
    assert all(0 <= float(name.get("x", "")) < width for name in names)


def test_hostile_names_are_text() -> None:
    evil = "<script>alert(1)</script>\"'&"
    for svg in (
        curves_svg(Curves([Series(evil, [0, 1], [0, 1], (0, 0))], evil, evil, evil, emphasis=evil)),
        per_class_svg(PerClass([evil], {evil: [1.0]}, unit=evil, caption=evil)),
        confusion_svg(Confusion([evil], [[1]], caption=evil)),
    ):
        assert "<script" not in svg
        root = parse(svg)
        assert {e.tag for e in root.iter()} <= {
            "svg", "g", "text", "line", "polyline", "circle", "rect", "title",
        }  # fmt: skip
        assert root.get("role") == "img"
        assert root.get("aria-label") == evil


def test_per_class_dots_and_missing_classes() -> None:
    block = PerClass(["cat", "dog"], {"CAM": [20.0, math.nan], "AD-CAM": [60.0, math.nan]})
    svg = per_class_svg(block)
    assert "nan" not in svg.lower()
    root = parse(svg)
    titles = [t.text for t in root.iter("title")]
    assert titles == ["CAM", "AD-CAM", "CAM, cat: 20.0", "AD-CAM, cat: 60.0"]
    assert [t.text for t in by_class(root, "text", "value")] == ["60.0", "–"]
    cam, ad_cam = [c for c in root.iter("circle") if "cat" in (c.find("title").text or "")]  # type: ignore[union-attr]
    assert float(cam.get("cx", "")) < float(ad_cam.get("cx", ""))
    assert "hollow" in cam.get("class", "")
    assert "hollow" not in ad_cam.get("class", "")


def test_confusion_cells() -> None:
    root = parse(confusion_svg(Confusion(["a", "b"], [[1, 3], [0, 0]])))
    cells = by_class(root, "rect", "cell")
    assert [float(c.get("fill-opacity", "")) for c in cells] == pytest.approx(
        [0.5, math.sqrt(0.75)], abs=1e-3
    )
    titles = [c.find("title").text for c in cells]  # type: ignore[union-attr]
    assert titles == ["a predicted as a: 25.0 % (1 pixels)", "a predicted as b: 75.0 % (3 pixels)"]
    left, right = (float(c.get("x", "")) for c in cells)
    assert left < right
    assert cells[0].get("y") == cells[1].get("y")
    assert "does not occur" in [t.text for t in root.iter("text")]


def test_confusion_of_81_classes_stays_small() -> None:
    num = 81
    counts = [[5 if i == j else (i * j) % 3 for j in range(num)] for i in range(num)]
    svg = confusion_svg(Confusion([f"class {i}" for i in range(num)], counts))
    assert len(svg) < 1_500_000
    assert not by_class(parse(svg), "text", "share")


def test_scatter_puts_equal_values_on_the_diagonal() -> None:
    scatter = Scatter(["a", "b", "<c>"], [20.0, 50.0, math.nan], [20.0, 90.0, 5.0], "x", "y")
    root = parse(scatter_svg(scatter))
    (axis,) = (line for line in root.iter("line") if line.get("class") == "axis")
    x0, y0, x1, y1 = (float(axis.get(key, "")) for key in ("x1", "y1", "x2", "y2"))
    equal, above = root.iter("circle")  # what has no value is left out
    share = (float(equal.get("cx", "")) - x0) / (x1 - x0)
    assert share == pytest.approx(0.2, abs=0.01)
    assert (float(equal.get("cy", "")) - y0) / (y1 - y0) == pytest.approx(0.2, abs=0.01)
    assert float(above.get("cy", "")) < float(equal.get("cy", ""))
    assert [title.text for title in root.iter("title")] == ["a: 20.0 → 20.0", "b: 50.0 → 90.0"]


def test_differences_go_to_both_sides_of_zero() -> None:
    svg = differences_svg(Differences(["up", "down", "none"], [4.0, -2.0, math.nan], "points"))
    root = parse(svg)
    (zero,) = (float(e.get("x1", "")) for e in root.iter("line") if e.get("class") == "axis")
    up, down = root.iter("rect")
    assert float(up.get("x", "")) == pytest.approx(zero, abs=0.1)
    down_end = float(down.get("x", "")) + float(down.get("width", ""))
    assert down_end == pytest.approx(zero, abs=0.1)
    assert float(up.get("width", "")) == pytest.approx(2 * float(down.get("width", "")), abs=0.2)
    assert [e.text for e in by_class(root, "text", "value")] == ["+4.0", "−2.0", "–"]


@pytest.mark.parametrize("values", [[], [math.nan], [0.0]])
def test_differences_without_values_are_drawn(values: list[float]) -> None:
    svg = differences_svg(Differences(["a"] * len(values), values, "points"))
    assert "nan" not in svg.lower()
    parse(svg)


def test_histograms_have_a_common_scale() -> None:
    counts = {"a": [0, 4, 2, 0], "main": [1, 1, 1, 8]}
    block = Histograms((0.0, 0.25, 0.5, 0.75, 1.0), counts, "IoU", emphasis="main", mark=0.5)
    root = parse(histograms_svg(block))
    bars = by_class(root, "rect", "fill")
    assert len(bars) == 6  # empty bins are not drawn
    heights = [float(bar.get("height", "")) for bar in bars]
    expected = np.array([4, 2, 1, 1, 1, 8])
    np.testing.assert_allclose(np.array(heights) / heights[-1], expected / 8, atol=0.02)
    assert [bar.get("class") for bar in bars] == ["fill s6"] * 2 + ["fill s0"] * 4
    feet = {round(float(bar.get("y", "")) + float(bar.get("height", "")), 1) for bar in bars}
    assert len(feet) == 1  # two stand side by side
    assert [t.text for t in bars[-1].iter("title")] == ["main, 0.75 to 1: 8 images"]
    assert [e.text for e in by_class(root, "text", "value")] == ["33.3 %", "81.8 %"]
    assert block.share_above("a") == pytest.approx(100 / 3)


def test_histograms_without_counts_are_drawn() -> None:
    block = Histograms((0.0, 1.0), {"a": [0]}, "x", mark=0.5)
    assert math.isnan(block.share_above("a"))
    svg = histograms_svg(block)
    assert "nan" not in svg.lower() and not by_class(parse(svg), "rect", "fill")


def test_parts_of_a_bar_adjoin_and_share_the_scale() -> None:
    block = Shares(["right", "wrong", "other"], {"a": [50.0, 30.0, 20.0], "b": [0.0, 100.0, 0.0]})
    root = parse(shares_svg(block))
    first, second, third, whole = by_class(root, "rect", "fill")
    x, width = (
        [float(part.get(key, "")) for part in (first, second, third)] for key in ("x", "width")
    )
    assert x[1] == pytest.approx(x[0] + width[0], abs=0.15)
    assert x[2] == pytest.approx(x[1] + width[1], abs=0.15)
    assert width[0] == pytest.approx(float(whole.get("width", "")) / 2, abs=0.15)
    assert [part.get("class") for part in (first, whole)] == ["fill s0", "fill s1"]
    assert [e.text for e in by_class(root, "text", "share")] == ["50", "30", "20", "100"]
    assert [t.text for t in second.iter("title")] == ["a, wrong: 30.0 %"]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Histograms, ((0.0, 1.0), {}, "x"), "no counts"),
        (Histograms, ((1.0, 0.0), {"a": [1]}, "x"), "ascending"),
        (Histograms, ((0.0, 1.0), {"a": [1, 2]}, "x"), "'a' must have 1 counts"),
        (Histograms, ((0.0, 1.0), {"a": [-1]}, "x"), "not negative"),
        (Shares, ([], {}), "1 to 8 parts"),
        (Shares, (["p"], {"a": [1, 2]}), "2 shares for 1 parts"),
        (Shares, (["p"], {"a": [-1]}), "must not be negative"),
        (Shares, (["p", "q"], {"a": [60, 60]}), "at most 100"),
    ],
)
def test_impossible_bars_are_refused(kind: type, arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(*arguments)
