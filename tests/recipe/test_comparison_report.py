"""The first numbers of a comparison's report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adcam.data.dataset import ImageDataset, build_class_set
from adcam.evaluation.compare import MethodResult
from adcam.evaluation.loop import EvaluationTimes
from adcam.metrics.miou import MeanIoU, MeanIoUResult
from adcam.recipe.comparison_report import build_comparison_report
from adcam.settings import MethodSpec


def scored(right: int) -> MeanIoUResult:
    """Scores of ten pixels of one class, of which ``right`` are found."""
    metric = MeanIoU(2)
    pred = (np.arange(10)[None] < right).astype(np.uint8)
    metric.update(pred, np.ones((1, 10), dtype=np.uint8))
    return metric.compute()


def row(name: str, right: int, crf: str = "none") -> MethodResult:
    made = MethodSpec(name, "cam", crf=crf, crf_thresholds=() if crf == "none" else (0.5,))
    return MethodResult(made, 0.5, 50.0, scored(right), None)


def headlines(rows: list[MethodResult]) -> list[tuple[str, Any]]:
    report = build_comparison_report(
        rows,
        scored(9),
        ImageDataset(build_class_set("one", ["cat"]), "val", []),
        title="t",
        subtitle="s",
        command="adcam",
        choose_split="train",
        lead_rows=[],
        more_rows=[],
        seconds={},
        times={"report": EvaluationTimes({"network": 1.0}, 2.0, 1)},
        provenance=[],
        mask_name="AD-CAM + CRF",
        threshold_note="threshold 0.50",
    )
    return [(item.label, item.value) for item in report.headlines]


def test_maps_are_compared_with_maps() -> None:
    """The CRF's gain is no gain over methods that had none."""
    rows = [row("CAM", 4), row("TS-CAM", 6), row("AD-CAM", 8), row("AD-CAM + CRF", 9, "toco")]
    (best, best_miou), (mask, mask_miou), (gain, points) = headlines(rows)
    assert best == "AD-CAM, val"
    assert mask == "AD-CAM + CRF, val"
    assert gain == "over the next method"
    assert (best_miou, mask_miou) == (scored(8).miou, scored(9).miou)
    assert points == pytest.approx(scored(8).miou - scored(6).miou)


def test_no_gain_is_claimed_where_there_is_none() -> None:
    rows = [row("CAM", 8), row("AD-CAM", 7)]
    assert [label for label, _ in headlines(rows)] == ["CAM, val", "AD-CAM + CRF, val"]
