"""Mean IoU against a pixel-by-pixel count, and the threshold curve against thresholding."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from adcam.masks.background import compute_mask
from adcam.metrics.miou import MeanIoU, ThresholdCurve, compute_confusion
from adcam.structures import ClassMaps

IGNORE = 255


def random_masks(seed, num_images=5, num_classes=6, present=None):
    """Pairs (pred, gt) of several non-square sizes with ignored pixels in both."""
    rng = np.random.default_rng(seed)
    legal = list(range(num_classes)) if present is None else list(present)
    pairs = []
    for _ in range(num_images):
        shape = tuple(rng.integers(3, 14, size=2))
        gt = rng.choice([*legal, IGNORE], size=shape)
        noise = rng.choice([*legal, IGNORE], size=shape)
        pred = np.where((rng.random(shape) < 0.6) & (gt != IGNORE), gt, noise)
        pairs.append((pred.astype(np.uint8), gt.astype(np.uint8)))
    return pairs


def brute_force(pairs, num_classes, average, pred_ignore):
    """The definition on sets of pixels, in plain Python, sharing no code with the package."""

    def ious_of(pixels):
        out = {}
        for c in range(num_classes):
            pred = {i for i, (p, _) in enumerate(pixels) if p == c}
            true = {i for i, (_, g) in enumerate(pixels) if g == c}
            if pred | true:
                out[c] = (len(pred & true) / len(pred | true), bool(true))
        return out

    per_image = []
    for pred, gt in pairs:
        pixels = [(p, g) for p, g in zip(pred.flat, gt.flat, strict=True) if g != IGNORE]
        if pred_ignore == "drop":
            pixels = [(p, g) for p, g in pixels if p != IGNORE]
        per_image.append(pixels)
    if average == "per_image":
        means = []
        for pixels in per_image:
            values = [iou for iou, _ in ious_of(pixels).values()]
            if values:
                means.append(sum(values) / len(values))
        return 100 * sum(means) / len(means)
    everything = ious_of([pixel for pixels in per_image for pixel in pixels])
    values = [iou for iou, in_gt in everything.values() if in_gt or average == "union"]
    return 100 * sum(values) / len(values)


@pytest.mark.parametrize("pred_ignore", ["miss", "drop"])
@pytest.mark.parametrize("average", ["union", "gt_present", "per_image"])
@pytest.mark.parametrize("seed", range(4))
def test_every_policy_equals_the_pixel_by_pixel_definition(seed, average, pred_ignore):
    pairs = random_masks(seed, num_classes=5)
    # Class 6 is predicted and never true, class 5 neither: the averages must differ on both.
    pairs[0][0][0, :] = 6
    pairs[0][1][0, :] = 1
    metric = MeanIoU(7, average=average, pred_ignore=pred_ignore)
    for pred, gt in pairs:
        metric.update(pred, gt)
    assert metric.compute().miou == pytest.approx(
        brute_force(pairs, 7, average, pred_ignore), abs=1e-10
    )


def test_hand_counted_case():
    # true      pred
    # 0 0 1     0 1 1
    # 1 2 255   255 1 2
    gt = np.array([[0, 0, 1], [1, 2, 255]], dtype=np.uint8)
    pred = np.array([[0, 1, 1], [255, 1, 2]], dtype=np.uint8)
    metric = MeanIoU(4)
    metric.update(pred, gt)
    result = metric.compute()
    np.testing.assert_array_equal(
        result.confusion, [[1, 1, 0, 0, 0], [0, 1, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    )
    assert result.confusion.dtype == np.int64
    # IoU: class 0 1/2; class 1 1 right of 3 predicted + 2 true - 1; class 2 0 of 1; class 3 absent.
    assert result.iou_per_class[:3] == pytest.approx([50, 25, 0])
    assert math.isnan(result.iou_per_class[3])
    assert result.miou == pytest.approx(25)
    assert result.precision_per_class[:2] == pytest.approx([100, 100 / 3])
    assert all(math.isnan(v) for v in result.precision_per_class[2:])
    assert result.recall_per_class[:3] == pytest.approx([50, 50, 0])
    assert math.isnan(result.recall_per_class[3])
    assert result.pixel_accuracy == pytest.approx(40)  # 2 of 5 labelled pixels
    assert result.ignored_share == pytest.approx(0.2)  # 1 of 5
    assert result.num_images == 1


def test_dropping_the_ignored_prediction_changes_what_was_counted():
    gt = np.array([[0, 0, 1, 1]])
    pred = np.array([[0, 0, 1, 255]])
    results = {}
    for policy in ("miss", "drop"):
        metric = MeanIoU(2, pred_ignore=policy)
        metric.update(pred, gt)
        results[policy] = metric.compute()
    assert results["miss"].miou == pytest.approx(75)
    assert results["drop"].miou == pytest.approx(100)
    assert results["miss"].recall_per_class == pytest.approx((100, 50))
    assert results["drop"].recall_per_class == pytest.approx((100, 100))
    assert results["miss"].ignored_share == results["drop"].ignored_share == 0.25


def test_gt_present_leaves_out_a_class_that_is_only_predicted():
    gt, pred = np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 2]])
    mious = {}
    for average in ("union", "gt_present"):
        metric = MeanIoU(3, average=average)
        metric.update(pred, gt)
        mious[average] = metric.compute().miou
    assert mious == pytest.approx({"union": 50, "gt_present": 75})


@pytest.mark.parametrize("average", ["union", "gt_present", "per_image"])
def test_merged_parts_equal_the_whole_in_any_order(average):
    pairs = random_masks(11, num_images=9)
    whole = MeanIoU(6, average=average)
    parts = [MeanIoU(6, average=average) for _ in range(3)]
    for i, pair in enumerate(pairs):
        whole.update(*pair)
        parts[i % 3].update(*pair)
    merged = MeanIoU(6, average=average)
    for part in reversed(parts):
        merged.merge(part)
    assert merged.compute().to_dict() == whole.compute().to_dict()
    np.testing.assert_array_equal(merged.compute().confusion, whole.compute().confusion)


@pytest.mark.parametrize(
    "other",
    [
        MeanIoU(3, average="gt_present"),
        MeanIoU(3, pred_ignore="drop"),
        MeanIoU(4),
        MeanIoU(3, ignore_index=254),
    ],
)
def test_merging_another_policy_is_refused(other):
    with pytest.raises(ValueError, match="different policies"):
        MeanIoU(3).merge(other)


def test_counts_do_not_wrap_beyond_32_bits():
    metric = MeanIoU(2)
    gt = np.zeros((64, 48), dtype=np.uint8)
    gt[:, :12] = 1
    pred = np.zeros_like(gt)
    metric.update(pred, gt)
    once = metric.compute()
    for _ in range(24):  # 64 * 48 * 2**24 pixels, about 5e10
        metric.merge(metric)
    many = metric.compute()
    assert many.confusion.sum() == 64 * 48 * 2**24 > 2**32
    assert many.miou == once.miou == pytest.approx(37.5)
    assert many.num_images == 2**24


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_dtypes_and_tensors_count_alike(dtype):
    pred, gt = random_masks(3, num_images=1)[0]
    expected = compute_confusion(pred, gt, num_classes=6)
    as_dtype = pred.astype(dtype), gt.astype(dtype)
    np.testing.assert_array_equal(compute_confusion(*as_dtype, num_classes=6), expected)
    tensors = (torch.from_numpy(a) for a in as_dtype)
    np.testing.assert_array_equal(compute_confusion(*tensors, num_classes=6), expected)


def test_more_classes_than_a_byte_holds_and_a_negative_ignore_index():
    pred, gt = np.array([[299, -1, 7]]), np.array([[299, 7, -1]])
    metric = MeanIoU(300, ignore_index=-1)
    metric.update(pred, gt)
    result = metric.compute()
    assert result.confusion.sum() == 2
    assert result.confusion[299, 299] == result.confusion[7, 300] == 1
    # uint8 input next to more than 255 classes
    small = np.array([[3, 200]], dtype=np.uint8)
    assert compute_confusion(small, small, num_classes=300, ignore_index=-1)[200, 200] == 1


@pytest.mark.parametrize("where", ["pred", "gt"])
def test_an_illegal_value_is_named_with_its_place(where):
    masks = {"pred": np.zeros((3, 5), np.uint8), "gt": np.zeros((3, 5), np.uint8)}
    masks[where][2, 4] = 21
    with pytest.raises(ValueError, match=rf"{where} holds 21 at row 2, column 4; legal are 0..20"):
        MeanIoU(21).update(**masks)


def test_shapes_and_dtypes_are_checked():
    with pytest.raises(ValueError, match=r"\(3, 5\).*\(5, 3\)"):
        MeanIoU(2).update(np.zeros((3, 5), int), np.zeros((5, 3), int))
    with pytest.raises(ValueError, match=r"\(1, 3, 5\)"):
        MeanIoU(2).update(np.zeros((1, 3, 5), int), np.zeros((1, 3, 5), int))
    with pytest.raises(ValueError, match="float64"):
        MeanIoU(2).update(np.zeros((3, 5)), np.zeros((3, 5), int))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 2, "average": "mean"}, "average must be one of"),
        ({"num_classes": 2, "pred_ignore": "skip"}, "pred_ignore must be one of"),
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 21, "ignore_index": 20}, "ignore_index"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU(**arguments)


@pytest.mark.parametrize("average", ["union", "gt_present", "per_image"])
def test_nothing_to_score_is_nan_and_null_in_json(average):
    metric = MeanIoU(2, average=average)
    metric.update(np.zeros((2, 3), int), np.full((2, 3), IGNORE))
    result = metric.compute()
    assert math.isnan(result.miou) and math.isnan(result.ignored_share)
    as_json = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert as_json["miou"] is None
    assert as_json["iou_per_class"] == [None, None]
    assert as_json["num_images"] == 1


def test_to_dict_survives_json_and_states_the_policy():
    metric = MeanIoU(6, average="gt_present", pred_ignore="drop")
    for pair in random_masks(5):
        metric.update(*pair)
    result = metric.compute()
    as_json = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(as_json) == {
        "miou",
        "iou_per_class",
        "precision_per_class",
        "recall_per_class",
        "pixel_accuracy",
        "ignored_share",
        "num_images",
        "policy",
    }
    assert as_json["miou"] == result.miou
    assert as_json["policy"] == {
        "num_classes": 6,
        "ignore_index": 255,
        "average": "gt_present",
        "pred_ignore": "drop",
    }


def test_a_result_is_not_changed_by_counting_on():
    metric = MeanIoU(6)
    first, second = random_masks(8, num_images=2)
    metric.update(*first)
    result = metric.compute()
    before = result.confusion.copy()
    metric.update(*second)
    np.testing.assert_array_equal(result.confusion, before)
    with pytest.raises(ValueError, match="read-only"):
        result.confusion[0, 0] = 1


# Threshold curve

MASK_VALUES = (3, 1, 6, 2)  # neither sorted nor contiguous: 4 and 5 are values without a class


def random_maps(seed, num_images=6, thresholds=()):
    """Images as (score_maps, class_ids, gt); many scores are equal to a threshold or to another."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(num_images):
        h, w = (int(v) for v in rng.integers(4, 15, size=2))
        class_ids = tuple(sorted(rng.choice(4, size=i % 4, replace=False).tolist()))
        scores = rng.random((len(class_ids), h, w)).astype(np.float32)
        exact = np.asarray([0, 1, *thresholds], dtype=np.float32)
        scores = np.where(rng.random(scores.shape) < 0.5, rng.choice(exact, scores.shape), scores)
        gt = rng.choice([0, *MASK_VALUES, 4, IGNORE], size=(h, w)).astype(np.uint8)
        images.append((scores, class_ids, gt))
    return images


@pytest.mark.parametrize("average", ["union", "gt_present"])
@pytest.mark.parametrize(
    "thresholds",
    [[0.35], [0.0, 1.0], np.linspace(0, 1, 101), np.arange(1, 1000) / 1000, [0.1, 0.1 + 1e-12]],
    ids=["one", "ends", "hundredths", "thousandths", "equal in float32"],
)
def test_curve_equals_thresholding_at_every_threshold(thresholds, average):
    images = random_maps(21, thresholds=thresholds)
    curve = ThresholdCurve(7, thresholds, mask_values=MASK_VALUES, average=average)
    for scores, class_ids, gt in images:
        curve.update(scores, class_ids, gt)
    result, confusions = curve.compute(), curve.confusions()
    assert confusions.shape == (len(thresholds), 7, 8)
    for i in range(0, len(thresholds), max(1, len(thresholds) // 50)):
        metric = MeanIoU(7, average=average)
        for scores, class_ids, gt in images:
            mask = compute_mask(
                ClassMaps(class_ids, scores),
                mask_values=MASK_VALUES,
                threshold=float(thresholds[i]),
            ).mask
            metric.update(mask, gt)
        expected = metric.compute()
        np.testing.assert_array_equal(confusions[i], expected.confusion)
        assert result.miou[i] == expected.miou


def test_best_threshold_is_the_highest_point_of_the_whole_range():
    # One map with two plateaus: 0.9 over the object's core, 0.3 over its rim; the truth is a strip
    # for which mIoU falls first and then rises, so a sweep that stops at the first drop misses it.
    scores = np.array([[[0.9, 0.5, 0.5, 0.5, 0.3, 0.1, 0.0, 0.0]]], dtype=np.float32)
    gt = np.array([[1, 0, 0, 0, 1, 1, 0, 0]], dtype=np.uint8)
    thresholds = [0.05, 0.2, 0.4, 0.6]
    curve = ThresholdCurve(2, thresholds, mask_values=[1])
    curve.update(scores, [0], gt)
    result = curve.compute()
    # IoU (background, class) by hand at each threshold, in eighths of the image.
    expected = [(2 / 5 + 3 / 6) / 2, (2 / 6 + 2 / 6) / 2, (2 / 7 + 1 / 6) / 2, (5 / 7 + 1 / 3) / 2]
    assert result.miou == pytest.approx([100 * v for v in expected])
    assert expected[2] < expected[1] < expected[0] < expected[3]
    assert result.best_threshold == 0.6
    assert result.best_miou == result.miou[3] == result.best.miou
    assert result.iou_per_class == pytest.approx((500 / 7, 100 / 3))


def test_precision_and_recall_are_of_all_classes_together():
    scores = np.array([[[0.9, 0.5, 0.3, 0.1, 0.7, 0.9]], [[0.2, 0.8, 0.1, 0.0, 0.1, 0.0]]])
    gt = np.array([[1, 2, 1, 0, 2, 255]])
    curve = ThresholdCurve(3, [0.2, 0.75, 0.95], mask_values=[1, 2])
    curve.update(scores, [0, 1], gt)
    result = curve.compute()
    # Above 0.2 the four pixels of both classes are predicted, one of them as the wrong class.
    assert result.precision == pytest.approx((75, 100, math.nan), nan_ok=True)
    assert result.recall == (75, 50, 0)


def test_of_equal_points_the_lowest_threshold_is_best():
    curve = ThresholdCurve(2, [0.2, 0.4, 0.6], mask_values=[1])
    curve.update(np.array([[[0.9, 0.3]]]), [0], np.array([[1, 0]]))
    assert curve.compute().best_threshold == 0.4


def test_without_a_class_all_is_background_at_every_threshold():
    gt = np.array([[0, 0, 1], [0, 255, 0]], dtype=np.uint8)
    curve = ThresholdCurve(2, [0.0, 0.5], mask_values=[1])
    curve.update(np.zeros((0, 2, 3), np.float32), (), gt)
    for confusion in curve.confusions():
        np.testing.assert_array_equal(confusion, [[4, 0, 0], [1, 0, 0]])


def test_curve_parts_merge_to_the_whole():
    thresholds = np.linspace(0, 1, 21)
    whole, first, second = (
        ThresholdCurve(7, thresholds, mask_values=MASK_VALUES) for _ in range(3)
    )
    for i, image in enumerate(random_maps(5, num_images=8)):
        whole.update(*image)
        (first if i % 2 else second).update(*image)
    first.merge(second)
    assert first.compute().to_dict() == whole.compute().to_dict()
    np.testing.assert_array_equal(first.confusions(), whole.confusions())
    json.dumps(whole.compute().to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "other",
    [
        ThresholdCurve(3, [0.1, 0.3], mask_values=[1, 2]),
        ThresholdCurve(3, [0.1, 0.2], mask_values=[2, 1]),
        ThresholdCurve(3, [0.1, 0.2], mask_values=[1, 2], average="gt_present"),
    ],
)
def test_merging_another_curve_is_refused(other):
    with pytest.raises(ValueError, match="different policies"):
        ThresholdCurve(3, [0.1, 0.2], mask_values=[1, 2]).merge(other)


@pytest.mark.parametrize(
    "thresholds", [[], [0.2, 0.1], [0.1, 0.1], [-0.1], [1.1], [math.nan], [0.1, math.nan]]
)
def test_illegal_thresholds_are_refused(thresholds):
    with pytest.raises(ValueError, match="strictly ascending"):
        ThresholdCurve(2, thresholds, mask_values=[1])


@pytest.mark.parametrize(
    ("scores", "class_ids", "message"),
    [
        (np.zeros((1, 3, 2)), [0], r"\(1, 3, 2\)"),
        (np.zeros((2, 2, 3)), [0], "1 classes"),
        (np.zeros((1, 2, 3)), [2], r"0\.\.1"),
        (np.zeros((2, 2, 3)), [1, 1], "distinct"),
        (np.full((1, 2, 3), np.nan), [0], "NaN"),
    ],
)
def test_curve_refuses_what_does_not_fit(scores, class_ids, message):
    curve = ThresholdCurve(3, [0.5], mask_values=[1, 2])
    with pytest.raises(ValueError, match=message):
        curve.update(scores, class_ids, np.zeros((2, 3), int))


def test_curve_refuses_other_arguments_out_of_range():
    with pytest.raises(ValueError, match=r"1\.\.2"):
        ThresholdCurve(3, [0.5], mask_values=[1, 3])
    with pytest.raises(ValueError, match="per_image"):
        ThresholdCurve(3, [0.5], mask_values=[1], average="per_image")
    with pytest.raises(ValueError, match="no labelled pixel"):
        ThresholdCurve(3, [0.5], mask_values=[1]).compute()
