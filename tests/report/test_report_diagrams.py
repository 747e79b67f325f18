"""Diagrams are well-formed SVG with every point where it belongs."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from adcam.report.diagrams import confusion_svg, curves_svg, per_class_svg
from adcam.report.model import Confusion, Curves, PerClass, Series


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
        confusion_svg(Confusion([evil], [[1]], caption=evil, unit=evil)),
    ):
        assert "<script" not in svg
        root = parse(svg)
        assert {e.tag for e in root.iter()} <= {
            "svg", "g", "text", "line", "polyline", "circle", "rect", "title",
        }  # fmt: skip
        assert root.get("role") == "img"
        assert root.get("aria-label") == evil


def test_per_class_dots_and_missing_classes() -> None:
    block = PerClass(
        ["cat", "dog"], {"CAM": [20.0, math.nan], "AD-CAM": [60.0, math.nan]}, emphasis="AD-CAM"
    )
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
    root = parse(confusion_svg(Confusion(["a", "b"], [[1, 3], [0, 0]], unit="px")))
    cells = by_class(root, "rect", "cell")
    assert [float(c.get("fill-opacity", "")) for c in cells] == pytest.approx(
        [0.5, math.sqrt(0.75)], abs=1e-3
    )
    titles = [c.find("title").text for c in cells]  # type: ignore[union-attr]
    assert titles == ["a taken for a: 25.0 % (1 px)", "a taken for b: 75.0 % (3 px)"]
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
