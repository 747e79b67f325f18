"""Scores of the same methods on several classifiers: mean, spread, and what is no difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adcam.evaluation.mapping import describe_method
from adcam.files import format_csv
from adcam.metrics.influence import compute_image_error
from adcam.report.text import format_number
from adcam.settings import MethodSpec

Scores = Mapping[str, Mapping[str, float]]
"""What one classifier gives: by name of the method the value of each measure."""

Influences = Mapping[str, Mapping[str, float]]
"""By name of the method what each image does to its score with one classifier, by image id."""


@dataclass(frozen=True)
class Spread:
    """One number for each of several classifiers.

    Attributes:
        values: The numbers in the order of the classifiers, at least two.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError(f"a spread needs at least two values, got {self.values}")

    @property
    def mean(self) -> float:
        """The mean; NaN where a value is."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """The sample standard deviation, that is with n - 1 in the denominator; NaN likewise."""
        return float(np.std(self.values, ddof=1))

    @property
    def is_none(self) -> bool:
        """Whether the mean is not larger than the spread, so that it shows nothing."""
        return abs(self.mean) <= self.std

    def minus(self, other: Spread) -> Spread:
        """The paired differences, classifier by classifier."""
        return Spread(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def format(self, *, signed: bool = False) -> str:
        """Mean and spread for reading.

        Args:
            signed: Whether a positive mean gets a plus sign.

        Example:
            >>> Spread((74.0, 75.0, 77.0)).format(), Spread((0.5, 0.1)).format(signed=True)
            ('75.3 ± 1.5', '+0.3 ± 0.3')
        """
        return f"{format_number(self.mean, signed=signed)} ± {format_number(self.std)}"


@dataclass(frozen=True)
class MethodSpread:
    """The scores of one method on several classifiers.

    Attributes:
        spec: The method.
        measures: The spread of each measure, the one that counts first.
        difference: The paired differences of the first measure from the reference method's;
            ``None`` for the reference itself.
        image_error: The standard error of the mean of the first measure over images; NaN where it
            is not known.
        difference_image_error: That of the mean difference, over the same images.
    """

    spec: MethodSpec
    measures: Mapping[str, Spread]
    difference: Spread | None
    image_error: float = math.nan
    difference_image_error: float = math.nan

    @property
    def main(self) -> Spread:
        """The spread of the measure that counts."""
        return next(iter(self.measures.values()))

    @property
    def verdict(self) -> str:
        """``"reference"``, ``"higher"``, ``"lower"``, ``"none"``, or ``""`` where a score is NaN.

        A difference is called none if it is not larger than its spread over the classifiers, or not
        larger than its standard error over the images.
        """
        if self.difference is None:
            return "reference"
        if math.isnan(self.difference.mean):
            return ""
        if self.difference.is_none or abs(self.difference.mean) <= self.difference_image_error:
            return "none"
        return "higher" if self.difference.mean > 0 else "lower"

    def describe_difference(self) -> str:
        """The difference from the reference for reading, such as ``"none (+0.2 ± 0.6)"``."""
        if self.difference is None:
            return "reference"
        text = self.difference.format(signed=True)
        return f"none ({text})" if self.verdict == "none" else text


def compute_spreads(
    specs: Sequence[MethodSpec],
    scores: Sequence[Scores],
    reference: str,
    influences: Sequence[Influences] = (),
) -> list[MethodSpread]:
    """Mean and spread of every method, and its difference from one of them.

    Args:
        specs: The methods.
        scores: What each classifier gives, with the same methods and measures, the one that counts
            first; at least two classifiers.
        reference: The name of the method that others are compared with.
        influences: What each image does to the measure that counts, for each classifier; none where
            it is not known.

    Returns:
        One entry a method, in their order.

    Example:
        >>> specs = [MethodSpec("CAM", "cam"), MethodSpec("AD-CAM", "ad_cam")]
        >>> first = {"CAM": {"miou": 40.0}, "AD-CAM": {"miou": 75.0}}
        >>> second = {"CAM": {"miou": 38.0}, "AD-CAM": {"miou": 77.0}}
        >>> cam, ad_cam = compute_spreads(specs, [first, second], "AD-CAM")
        >>> ad_cam.main.format(), cam.describe_difference(), cam.verdict
        ('76.0 ± 1.4', '−37.0 ± 2.8', 'lower')
    """
    found = {
        spec.name: {
            measure: Spread(tuple(one[spec.name][measure] for one in scores))
            for measure in scores[0][spec.name]
        }
        for spec in specs
    }
    main = next(iter(found[reference]))
    base = found[reference][main]
    means = {spec.name: _mean_influences(influences, spec.name) for spec in specs}
    rows = []
    for spec in specs:
        own, others = means[spec.name], means[reference]
        row = MethodSpread(spec, found[spec.name], None, compute_image_error(own.values()))
        if spec.name != reference:
            error = compute_image_error(own[i] - others[i] for i in own.keys() & others.keys())
            difference = row.main.minus(base)
            row = replace(row, difference=difference, difference_image_error=error)
        rows.append(row)
    return rows


def _mean_influences(influences: Sequence[Influences], name: str) -> dict[str, float]:
    """What each image does to the mean of a method's scores over the classifiers."""
    found = [one[name] for one in influences]
    known = (i for i in (found[0] if found else ()) if all(i in one for one in found))
    return {i: sum(one[i] for one in found) / len(found) for i in known}


def format_spread_csv(rows: Sequence[MethodSpread], classifiers: Sequence[str]) -> str:
    """Format the table as CSV: one line a method, percent with two digits.

    ``_std`` is the sample standard deviation over the classifiers, ``_image_error`` the standard
    error over the images. ``difference`` is that of the first measure from the row that is called
    the reference under ``verdict``.

    Args:
        rows: The methods.
        classifiers: The names of the classifiers, in the order of the scores.
    """
    lines = []
    for row in rows:
        main, *others = row.measures
        line: dict[str, Any] = {
            **describe_method(row.spec),
            "classifiers": len(classifiers),
            **_format_pair(main, row.main),
            f"{main}_image_error": format_points(row.image_error),
        }
        for name, value in zip(classifiers, row.main.values, strict=True):
            line[f"{main} {name}"] = format_points(value)
        line |= _format_pair("difference", row.difference)
        line["difference_image_error"] = format_points(row.difference_image_error)
        line["verdict"] = row.verdict
        for measure in others:
            line |= _format_pair(measure, row.measures[measure])
        lines.append(line)
    return format_csv(lines)


def _format_pair(name: str, spread: Spread | None) -> dict[str, str]:
    if spread is None:
        return {name: "", f"{name}_std": ""}
    return {name: format_points(spread.mean), f"{name}_std": format_points(spread.std)}


def has_image_errors(rows: Sequence[MethodSpread]) -> bool:
    """Whether the error over images of any difference is known, as it is of masks."""
    return not all(math.isnan(row.difference_image_error) for row in rows)


def format_points(value: float) -> str:
    """Format a score for CSV, in percent with two digits; nothing for NaN."""
    return "" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}"
