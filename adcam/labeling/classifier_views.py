"""The views that a classifier file names, for what names none itself; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from adcam.models.file_header import read_described_views
from adcam.settings import Settings, TestViews


def read_classifier_views(path: Path, *, scales: Sequence[int] | None = None) -> TestViews:
    """Read the views that a classifier file names, by default one scale of 448 pixels.

    Args:
        path: The file.
        scales: What takes the place of its scales, so that those of a damaged file do no harm.

    Raises:
        AdcamError: The file is missing or no classifier, or its views are damaged.
    """
    found = read_described_views(path)
    if scales is not None and isinstance(found, dict):
        found = {**found, "scales": scales}
    return TestViews.from_description(found, path)


def fill_views(settings: Settings, classifier: Path) -> Settings:
    """Return settings with the views that a classifier file names, if they name none themselves.

    ``refine.scale`` becomes the largest scale, unless the settings name it.

    Args:
        settings: The settings of a recipe, or of a refinement.
        classifier: The classifier that they are used with.

    Raises:
        AdcamError: As :func:`read_classifier_views`.
    """
    if settings.named_views is not None:
        return settings
    views = read_classifier_views(classifier)
    given = {f"cam.{name}": value for name, value in asdict(views).items()}
    if "scale" not in settings.to_dict().get("refine", {}):
        given["refine.scale"] = max(views.scales)
    return settings.with_changes(given)
