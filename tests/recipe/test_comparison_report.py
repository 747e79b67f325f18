"""The first numbers of a comparison's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adcam.cli.console import _print_methods
from adcam.data.dataset import build_class_set
from adcam.errors import AdcamError
from adcam.evaluation.compare import MethodResult
from adcam.masks.background import BackgroundRule, parse_rule
from adcam.metrics.miou import MeanIoU, MeanIoUResult
from adcam.recipe import compare
from adcam.recipe.blocks import Run
from adcam.recipe.comparison_report import (
    ComparisonResults,
    build_comparison_report,
    evaluation_times,
    precision_recall,
    threshold_curves,
)
from adcam.recipe.scores import MethodScores, Scores
from adcam.report.model import Report, Table
from adcam.settings import MethodSpec


def scored(right: int) -> MeanIoUResult:
    """Scores of ten pixels of one class, of which ``right`` are found."""
    metric = MeanIoU(2)
    pred = (np.arange(10)[None] < right).astype(np.uint8)
    metric.update(pred, np.ones((1, 10), dtype=np.uint8))
    return metric.compute()


def row(name: str, right: int, crf: str = "none") -> MethodResult:
    made = MethodSpec(name, "cam", crf=crf, crf_thresholds=() if crf == "none" else (0.5,))
    return MethodResult(made, BackgroundRule("constant", 0.5), 50.0, scored(right), None)


def headlines(rows: list[MethodResult]) -> list[tuple[str, Any]]:
    return [(item.label, item.value) for item in build(rows).headlines]


def build(rows: list[MethodResult]) -> Report:
    methods = [MethodScores.from_dict(MethodScores.from_result(row).to_dict()) for row in rows]
    masks = scored(9)
    record = {"seconds": 1.0, "machine": "m", "versions": {}, "outputs": {"files": {}}}
    results = ComparisonResults(
        run=Run("t", "adcam", {"train": record, "compare": record}),
        methods=methods,
        masks=Scores("val", 1, masks.miou, masks.iou_per_class, 90.0, 0.0, masks.confusion, {}),
        mask_name="AD-CAM + CRF",
        class_set=build_class_set("one", ["cat"]),
        pictures=[],
        choose_split="train",
    )
    return build_comparison_report(results)


@pytest.mark.parametrize(
    ("rule", "shown"),
    [("constant:0.5", "0.50"), ("steepest:0.58", "steepest:0.58"), ("otsu", "otsu")],
)
def test_every_rule_can_be_printed(
    rule: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = MethodResult(MethodSpec("CAM", "cam"), parse_rule(rule), 50.0, scored(5), None)
    _print_methods([MethodScores.from_result(result)], "train", "val")
    assert shown in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("rule", "note", "dots"),
    [
        (parse_rule("0.5"), "threshold 0.50, given", "chosen on the other split, or given."),
        (BackgroundRule("constant", 0.5, "train"), "threshold 0.50, chosen on train", "split."),
        (parse_rule("otsu"), "background by otsu", "split."),
    ],
)
def test_the_report_says_where_a_threshold_comes_from(
    rule: BackgroundRule, note: str, dots: str
) -> None:
    result = MethodResult(MethodSpec("CAM", "cam"), rule, 50.0, scored(5), None)
    found = build([result])
    assert found.headlines[-1].note == note
    method = MethodScores.from_result(result)
    assert method.chosen_on == ("train" if "train" in note else "given")
    assert threshold_curves([method], "val").caption.endswith(dots)
    assert precision_recall([method], "val").caption.endswith(dots)


def test_scores_of_earlier_versions_do_not_say_where_a_threshold_comes_from() -> None:
    values = MethodScores.from_result(row("CAM", 5)).to_dict()
    del values["chosen_on"]
    assert MethodScores.from_dict(values).chosen_on is None


def test_the_times_of_both_splits_are_added() -> None:
    part = {"seconds": {"read": 1.0, "network": 5.0}, "total": 5.0, "num_processes": 2}
    (table,) = evaluation_times({"choose": part, "report": part})
    assert isinstance(table, Table)
    assert table.rows == [["read", 2.0, 10.0], ["network", 10.0, 50.0]]
    assert evaluation_times({}) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"methods": 3}', '{"methods": [{"name": "CAM"}]}']
)
def test_scores_that_are_not_there_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "compare.json").write_text(text)
    with pytest.raises(AdcamError, match=r"compare\.json: no scores of a comparison \(.*\)"):
        compare._read_methods(tmp_path, MethodScores.from_dict)
