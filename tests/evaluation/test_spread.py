"""Mean, spread and the rule of none on numbers that can be checked by hand."""

from __future__ import annotations

import csv
import io
import math

import pytest

from adcam.evaluation.spread import MethodSpread, Spread, compute_spreads, format_spread_csv
from adcam.settings import MethodSpec


def spreads(reference: str = "B", **scores: tuple[float, ...]) -> dict[str, MethodSpread]:
    """The rows of methods of which each has one score for each classifier."""
    count = len(next(iter(scores.values())))
    tables = [{name: {"miou": values[i]} for name, values in scores.items()} for i in range(count)]
    specs = [MethodSpec(name, "cam") for name in scores]
    return {row.spec.name: row for row in compute_spreads(specs, tables, reference)}


def test_the_spread_is_the_sample_standard_deviation() -> None:
    spread = Spread((1.0, 2.0, 6.0))
    assert spread.mean == 3.0
    assert spread.std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert spread.format() == "3.0 ± 2.6"
    with pytest.raises(ValueError, match="at least two values"):
        Spread((1.0,))


def test_differences_are_paired() -> None:
    """The classifiers differ by 20 points, the methods by 1 on each of them."""
    rows = spreads(A=(51.0, 61.0, 71.0), B=(50.0, 60.0, 70.0))
    difference = rows["A"].difference
    assert difference is not None and difference.values == (1.0, 1.0, 1.0)
    assert rows["A"].main.std == pytest.approx(10)
    assert (rows["A"].verdict, rows["A"].describe_difference()) == ("higher", "+1.0 ± 0.0")
    assert (rows["B"].verdict, rows["B"].describe_difference()) == ("reference", "reference")


@pytest.mark.parametrize(
    ("values", "verdict", "text"),
    [
        ((52.0, 63.0, 74.0), "higher", "+3.0 ± 1.0"),
        ((48.0, 57.0, 66.0), "lower", "−3.0 ± 1.0"),
        ((53.0, 60.0, 70.0), "none", "none (+1.0 ± 1.7)"),
        ((47.0, 60.0, 70.0), "none", "none (−1.0 ± 1.7)"),
        ((50.0, 60.0, 70.0), "none", "none (0.0 ± 0.0)"),
    ],
)
def test_a_difference_that_is_not_larger_than_its_spread_is_none(
    values: tuple[float, ...], verdict: str, text: str
) -> None:
    row = spreads(A=values, B=(50.0, 60.0, 70.0))["A"]
    assert (row.verdict, row.describe_difference()) == (verdict, text)


def test_a_difference_that_other_images_could_turn_is_none() -> None:
    """Both classifiers see A three points ahead, on account of one image of the four."""
    specs = [MethodSpec("A", "cam"), MethodSpec("B", "cam")]
    scores = [
        {"A": {"miou": 53.0}, "B": {"miou": 50.0}},
        {"A": {"miou": 64.0}, "B": {"miou": 60.0}},
    ]
    even = dict.fromkeys("wxyz", 0.0)
    for tilt, verdict in ((0.5, "higher"), (3.0, "none")):
        influences = [
            {"A": {**even, "w": 3 * tilt, "x": -tilt, "y": -tilt, "z": -tilt}, "B": even},
            {"A": {**even, "w": tilt, "x": -tilt}, "B": {**even, "w": tilt, "x": -tilt}},
        ]
        row, reference = compute_spreads(specs, scores, "B", influences)
        # By image 1.5, -0.5, -0.5 and -0.5 times the tilt, as the second pair cancels out.
        assert row.difference_image_error == pytest.approx(tilt * math.sqrt(3 * 4 / 3))
        assert row.verdict == verdict
        assert row.image_error > row.difference_image_error > reference.image_error
    (line, _) = csv.DictReader(io.StringIO(format_spread_csv([row, reference], ["x", "y"])))
    assert line["difference_image_error"] == "6.00" and line["verdict"] == "none"


def test_without_the_images_of_one_classifier_nothing_is_said_of_them() -> None:
    specs = [MethodSpec("A", "cam"), MethodSpec("B", "cam")]
    scores = [{name: {"miou": 50.0} for name in "AB"}] * 2
    known = {name: {"x": 1.0, "y": -1.0} for name in "AB"}
    row, _ = compute_spreads(specs, scores, "B", [known, {"A": {}, "B": {}}])
    assert math.isnan(row.image_error) and math.isnan(row.difference_image_error)


def test_the_reference_is_the_row_asked_for() -> None:
    rows = spreads("A", A=(40.0, 41.0), B=(50.0, 53.0))
    assert rows["A"].difference is None
    assert rows["B"].describe_difference() == "+11.0 ± 1.4"


def test_csv_holds_every_number() -> None:
    tables = [
        {"A": {"miou": a, "cat": 1.0}, "B": {"miou": b, "cat": float("nan")}}
        for a, b in ((52.0, 50.0), (63.0, 60.0), (74.001, 70.0))
    ]
    specs = [MethodSpec("A", "ad_cam", {"power": 3.0}), MethodSpec("B", "cam")]
    text = format_spread_csv(compute_spreads(specs, tables, "B"), ["x", "y", "z"])
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["name"], first["method"], first["options"]) == ("A", "ad_cam", "power=3.0")
    assert first["classifiers"] == "3"
    assert [first[f"miou {name}"] for name in "xyz"] == ["52.00", "63.00", "74.00"]
    assert (first["miou"], first["miou_std"]) == ("63.00", "11.00")
    assert (first["difference"], first["difference_std"]) == ("3.00", "1.00")
    assert (first["verdict"], second["verdict"]) == ("higher", "reference")
    assert (second["difference"], second["difference_std"]) == ("", "")
    assert (first["cat"], first["cat_std"], second["cat"]) == ("1.00", "0.00", "")
