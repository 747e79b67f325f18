"""Equality with mmsegmentation's own ``IoUMetric``; skipped where mmsegmentation is missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adcam.metrics.miou import MeanIoU

IoUMetric = pytest.importorskip(
    "mmseg.evaluation.metrics.iou_metric",
    reason="mmsegmentation is not installed (extra `seg`)",
).IoUMetric

NUM_CLASSES = 21


@pytest.fixture(params=range(3))
def pairs(request):
    """(pred, gt) of several sizes with ignored pixels in both; some classes are absent."""
    rng = np.random.default_rng(request.param)
    out = []
    for _ in range(4):
        shape = tuple(rng.integers(20, 60, size=2))
        gt = rng.choice([0, 0, 0, 3, 8, 12, 255], size=shape)
        pred = np.where(rng.random(shape) < 0.7, gt, rng.choice([0, 3, 8, 15, 255], size=shape))
        out.append((pred.astype(np.uint8), gt.astype(np.uint8)))
    return out


def count(pairs):
    metric = MeanIoU(NUM_CLASSES)
    for pred, gt in pairs:
        metric.update(pred, gt)
    return metric.compute()


def test_areas_and_ratios_equal_mmseg(pairs):
    areas = [
        IoUMetric.intersect_and_union(
            torch.from_numpy(pred), torch.from_numpy(gt), NUM_CLASSES, 255
        )
        for pred, gt in pairs
    ]
    totals = [sum(column) for column in zip(*areas, strict=True)]
    theirs = IoUMetric.total_area_to_metrics(*totals, metrics=["mIoU", "mFscore"])
    ours = count(pairs)
    for mine, name in (
        (ours.iou_per_class, "IoU"),
        (ours.precision_per_class, "Precision"),
        (ours.recall_per_class, "Recall"),
    ):
        # mmseg divides in float32
        np.testing.assert_allclose(np.array(mine), theirs[name] * 100, rtol=1e-6, equal_nan=True)
    assert ours.pixel_accuracy == pytest.approx(float(theirs["aAcc"]) * 100, rel=1e-6)
    intersect = np.diagonal(ours.confusion)
    np.testing.assert_array_equal(intersect, totals[0].numpy())
    assert np.isnan(ours.iou_per_class).any() and ours.ignored_share > 0


def test_the_whole_metric_prints_the_same_miou(pairs):
    theirs = IoUMetric()
    theirs.dataset_meta = {"classes": [str(i) for i in range(NUM_CLASSES)]}
    samples = [
        {
            "pred_sem_seg": {"data": torch.from_numpy(pred)[None]},
            "gt_sem_seg": {"data": torch.from_numpy(gt)[None]},
        }
        for pred, gt in pairs
    ]
    theirs.process({}, samples)
    printed = theirs.evaluate(size=len(samples))
    ours = count(pairs)
    # mmseg rounds float32 percentages to two decimals
    assert printed["mIoU"] == pytest.approx(ours.miou, abs=0.0051)
    assert printed["aAcc"] == pytest.approx(ours.pixel_accuracy, abs=0.0051)
