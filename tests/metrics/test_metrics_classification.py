"""Average precision against hand counts and an independent definition."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from adcam.metrics.classification import MultiLabelAP, compute_average_precision


def by_thresholds(scores, targets):
    """Average precision from the definition: precision and recall at every distinct score."""
    area, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = scores >= threshold
        right = int((called & targets).sum())
        recall = right / int(targets.sum())
        area += (recall - recall_before) * right / int(called.sum())
        recall_before = recall
    return area


@pytest.mark.parametrize(
    ("scores", "targets", "expected"),
    [
        ([0.9, 0.8, 0.7], [1, 1, 0], 1.0),
        ([0.9, 0.8, 0.7], [0, 0, 1], 1 / 3),
        ([0.9, 0.8, 0.7], [1, 0, 1], (1 + 2 / 3) / 2),
        # the four values in scikit-learn's documentation of average_precision_score
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.5 * 1 + 0.5 * 2 / 3),
        # ties enter together: at 0.5, two of three are right, whatever their order
        ([0.5, 0.5, 0.5, 0.1], [0, 1, 1, 0], 2 / 3),
        ([0.5, 0.5, 0.5, 0.1], [1, 1, 0, 0], 2 / 3),
        # no information: the share of positives
        ([0.3, 0.3, 0.3, 0.3], [1, 0, 0, 0], 1 / 4),
        ([-2.0], [1], 1.0),
    ],
)
def test_hand_cases(scores, targets, expected):
    value = compute_average_precision(np.array(scores), np.array(targets, dtype=bool))
    assert value == pytest.approx(expected)


@pytest.mark.parametrize("num_levels", [3, 20, 10**9])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition_with_few_and_many_ties(seed, num_levels):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, num_levels, size=60) / num_levels
    targets = rng.random(60) < 0.3
    assert compute_average_precision(scores, targets) == pytest.approx(
        by_thresholds(scores, targets)
    )


def test_order_and_scale_of_scores_do_not_matter():
    rng = np.random.default_rng(2)
    scores, targets = rng.integers(0, 9, size=50) / 8, rng.random(50) < 0.4
    value = compute_average_precision(scores, targets)
    order = rng.permutation(50)
    assert compute_average_precision(scores[order], targets[order]) == value
    assert compute_average_precision(np.exp(3 * scores) - 40, targets) == value


def test_classes_without_positives_are_nan_and_leave_the_mean():
    metric = MultiLabelAP(3)
    metric.update(
        np.array([[0.9, 0.1, 0.6], [0.8, 0.7, 0.2], [0.7, 0.3, 0.1]]),
        np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]]),
    )
    result = metric.compute()
    assert result.ap_per_class[:2] == pytest.approx([500 / 6, 100])
    assert math.isnan(result.ap_per_class[2])
    assert result.mean_ap == pytest.approx((500 / 6 + 100) / 2)
    # above 0.5: class 0 on all three images, class 1 on one, class 2 on one
    assert result.precision_per_class == pytest.approx((200 / 3, 100, 0))
    assert result.recall_per_class[:2] == pytest.approx((100, 100))
    assert math.isnan(result.recall_per_class[2])
    assert result.f1_per_class == pytest.approx((80, 100, 0))
    assert (result.precision, result.recall) == pytest.approx((60, 100))
    assert result.f1 == pytest.approx(75)
    as_json = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert as_json["ap_per_class"][2] is None
    assert as_json["mean_ap"] == result.mean_ap
    assert as_json["policy"] == {"num_classes": 3, "threshold": 0.5}


def test_a_score_at_the_threshold_is_not_called():
    metric = MultiLabelAP(1, threshold=0.0)
    metric.update(np.array([[0.0], [0.1]]), np.array([[1], [1]]))
    assert metric.compute().recall == pytest.approx(50)


def test_batches_tensors_and_merging_equal_one_update():
    rng = np.random.default_rng(4)
    scores, targets = rng.normal(size=(30, 5)).astype(np.float32), rng.random((30, 5)) < 0.3
    whole, first, second = (MultiLabelAP(5, threshold=0) for _ in range(3))
    whole.update(scores, targets)
    first.update(torch.from_numpy(scores[20:]).requires_grad_(), torch.from_numpy(targets[20:]))
    second.update(scores[:7], targets[:7].astype(np.float32))
    second.update(scores[7:20], targets[7:20].astype(np.int64))
    first.merge(second)
    assert first.compute() == whole.compute()
    assert first.compute().num_images == 30


def test_bfloat16_is_read_as_the_numbers_that_it_holds():
    scores = torch.tensor([[0.9], [0.8], [0.7]], dtype=torch.bfloat16)
    targets = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.bfloat16)
    metric = MultiLabelAP(1)
    metric.update(scores, targets)
    assert round(metric.compute().mean_ap, 2) == 83.33


def test_scores_are_kept_when_the_caller_reuses_its_buffer():
    metric = MultiLabelAP(1)
    buffer = np.array([[0.9], [0.2]])
    metric.update(buffer, np.array([[1], [0]]))
    buffer[:] = [[0.2], [0.9]]
    assert metric.compute().mean_ap == 100


def test_nothing_counted_is_nan():
    result = MultiLabelAP(2).compute()
    assert math.isnan(result.mean_ap) and math.isnan(result.f1)
    assert result.num_images == 0


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"\(2, 3\).*\(3, 2\)"),
        (np.zeros((2, 4)), np.zeros((2, 4)), r"\(B, 3\)"),
        (np.full((1, 3), np.nan), np.zeros((1, 3)), "NaN"),
        (np.zeros((1, 3)), np.array([[0, 1, 2]]), "hold 2"),
    ],
)
def test_wrong_input_is_refused(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        MultiLabelAP(3).update(scores, targets)


def test_merging_another_threshold_is_refused():
    with pytest.raises(ValueError, match="different policies"):
        MultiLabelAP(3).merge(MultiLabelAP(3, threshold=0.4))
    with pytest.raises(ValueError, match="threshold"):
        MultiLabelAP(3, threshold=math.nan)
    with pytest.raises(ValueError, match="num_classes"):
        MultiLabelAP(0)
