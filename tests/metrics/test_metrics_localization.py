"""Box and pixel metrics: wsolevaluation's own values, its rule written plainly, hand cases."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from adcam.metrics.localization import (
    ERROR_TYPES,
    BoxAccuracyResult,
    LocalizationAccuracy,
    MaxBoxAccuracy,
    PixelAveragePrecision,
    classify_error,
    compute_iou,
)

# The hand-written map of wsolevaluation's evaluation_test.py.
SCORE_MAP = np.array(
    [[0, 0, 0, 0, 0], [0, 0.4, 0.4, 0.4, 0.6], [0, 0.4, 1, 0.8, 0.6], [0, 0.4, 0.4, 0.4, 0.6]]
)


def plain_boxes(score_map, threshold, multi_contour):
    """The original's rule, one OpenCV call for one threshold."""
    height, width = score_map.shape
    levels = (score_map * 255).astype(np.uint8)
    binary = (levels > int(threshold * levels.max())).astype(np.uint8)
    contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return [(0, 0, 0, 0)]
    if not multi_contour:
        contours = [max(contours, key=cv2.contourArea)]
    return [
        (x, y, min(x + w, width - 1), min(y + h, height - 1))
        for x, y, w, h in map(cv2.boundingRect, contours)
    ]


def plain_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    shared = max(width, 0) * max(height, 0)
    area_a, area_b = ((x1 - x0 + 1) * (y1 - y0 + 1) for x0, y0, x1, y1 in (a, b))
    return shared / (area_a + area_b - shared)


def make_images(count, seed, hw=(9, 13)):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        num_levels = int(generator.integers(1, 7))
        score_map = generator.integers(0, num_levels + 1, size=hw) / num_levels
        x0, y0 = generator.integers(0, hw[1] - 2), generator.integers(0, hw[0] - 2)
        sizes = generator.integers(1, 6, size=(2, 2))
        boxes = np.array([[x0, y0, x0 + w, y0 + h] for w, h in sizes])
        yield score_map, boxes, int(generator.integers(3))


@pytest.fixture(scope="module")
def golden(shared_dir: Path):
    folder = shared_dir / "golden"
    stored = np.load(folder / "wsol_boxes.npz", allow_pickle=False)
    true_boxes = json.loads((folder / "wsol_gt_boxes.json").read_text())
    values = json.loads((folder / "wsol_boxes.json").read_text())
    ids = stored["image_ids"].tolist()
    maps = dict(zip(ids, stored["score_maps_u8"] / 255, strict=True))
    masks = dict(zip(maps, stored["px_gt"], strict=True))
    return maps, true_boxes, masks, values


@pytest.mark.parametrize("multi_contour", [False, True])
@pytest.mark.parametrize("step", [0.001, 0.01])
def test_max_box_accuracy_equals_wsolevaluation(golden, step, multi_contour):
    maps, true_boxes, _, values = golden
    metric = MaxBoxAccuracy(multi_contour=multi_contour, step=step)
    for img_id, score_map in maps.items():
        metric.update(score_map, true_boxes[img_id])
    result = metric.compute()
    expected = values["metrics"][f"step={step},multi_contour={multi_contour}"]
    assert result.box_acc == {int(k) / 100: v for k, v in expected["box_acc"].items()}
    assert result.max_box_acc_v2 == expected["mean"]
    num_right = np.rint(np.array(result.curves[0.5]) * len(maps) / 100)
    assert num_right.sum() == expected["curve50_sum"]
    assert result.chosen_on == "oracle"


def test_pixel_average_precision_equals_wsolevaluation(golden):
    maps, _, masks, values = golden
    metric = PixelAveragePrecision()
    for img_id, score_map in maps.items():
        metric.update(score_map, masks[img_id])
    assert metric.compute() == values["metrics"]["pxap"]


@pytest.mark.parametrize(
    ("threshold", "box"),
    [
        (0.0, (1, 1, 4, 3)),
        (0.2, (1, 1, 4, 3)),
        (0.4, (2, 1, 4, 3)),
        (0.6, (2, 2, 4, 3)),
        (0.8, (2, 2, 3, 3)),
    ],
)
def test_published_unit_case(threshold, box):
    metric = MaxBoxAccuracy((1.0,), multi_contour=False, step=0.2)
    metric.update(SCORE_MAP, [box])
    result = metric.compute()
    index = int(np.argmin(np.abs(np.array(result.thresholds) - threshold)))
    assert result.curves[1.0][index] == 100.0


def test_iou_counts_both_corners():
    first, second = np.array([[1, 2, 5, 6]]), np.array([[3, 1, 4, 5], [6, 7, 8, 9]])
    assert compute_iou(first, second).tolist() == [[8 / 27, 0.0]]


@pytest.mark.parametrize("multi_contour", [False, True])
def test_equals_the_rule_at_every_threshold(multi_contour):
    deltas = (0.1, 0.3, 0.5, 0.7)
    metric = MaxBoxAccuracy(deltas, multi_contour, step=0.05)
    images = list(make_images(60, seed=3))
    for score_map, boxes, _ in images:
        metric.update(score_map, boxes)
    result = metric.compute()
    for index, threshold in enumerate(result.thresholds):
        best = [
            max(
                plain_iou(box, true_box)
                for box in plain_boxes(score_map, threshold, multi_contour)
                for true_box in boxes
            )
            for score_map, boxes, _ in images
        ]
        for delta in deltas:
            assert result.curves[delta][index] == 100 * sum(b >= delta for b in best) / len(best)


def test_nothing_above_the_threshold_is_the_box_of_the_first_pixel():
    metric = MaxBoxAccuracy()
    metric.update(np.zeros((4, 5)), [[0, 0, 0, 0]])
    assert metric.compute().max_box_acc_v2 == 100.0
    metric.update(np.zeros((4, 5)), [[1, 1, 2, 2]])
    assert metric.compute().max_box_acc_v2 == 50.0


def test_merged_parts_equal_the_whole():
    images = list(make_images(30, seed=4))
    whole, parts = MaxBoxAccuracy(), [MaxBoxAccuracy() for _ in range(3)]
    for number, (score_map, boxes, class_id) in enumerate(images):
        whole.update(score_map, boxes, class_id=class_id)
        parts[number % 3].update(score_map, boxes, class_id=class_id)
    parts[0].merge(parts[2])
    parts[0].merge(parts[1])
    assert parts[0].compute().to_dict() == whole.compute().to_dict()
    json.dumps(whole.compute().to_dict())


def test_accuracies_per_class_use_one_threshold():
    images = list(make_images(40, seed=5))
    metric = MaxBoxAccuracy()
    for score_map, boxes, class_id in images:
        metric.update(score_map, boxes, class_id=class_id)
    result = metric.compute()
    counts = np.bincount([class_id for *_, class_id in images], minlength=3)
    for delta in (0.3, 0.5, 0.7):
        mean = sum(counts[c] * result.box_acc_per_class[c][delta] for c in range(3)) / 40
        assert mean == pytest.approx(result.box_acc[delta])
    alone = MaxBoxAccuracy()
    for score_map, boxes, class_id in images:
        if class_id == 1:
            alone.update(score_map, boxes)
    chosen = alone.compute(result.best_thresholds, chosen_on="all three")
    assert chosen.box_acc == result.box_acc_per_class[1]


def test_a_threshold_of_another_split():
    chosen_on, scored = MaxBoxAccuracy(step=0.1), MaxBoxAccuracy(step=0.1)
    for score_map, boxes, _ in make_images(20, seed=6):
        chosen_on.update(score_map, boxes)
    for score_map, boxes, _ in make_images(20, seed=7):
        scored.update(score_map, boxes)
    thresholds = chosen_on.compute().best_thresholds
    result = scored.compute(thresholds, chosen_on="train-fullsup")
    assert (result.chosen_on, result.policy["chosen_on"]) == ("train-fullsup", "train-fullsup")
    assert result.best_thresholds == thresholds
    oracle = scored.compute()
    for delta, accuracy in result.box_acc.items():
        index = result.thresholds.index(thresholds[delta])
        assert accuracy == oracle.curves[delta][index] <= oracle.box_acc[delta]


def test_a_threshold_needs_its_split():
    metric = MaxBoxAccuracy((0.5,), step=0.1)
    with pytest.raises(ValueError, match="no image was counted"):
        metric.compute()
    metric.update(SCORE_MAP, [[1, 1, 4, 3]])
    for arguments in (
        {"chosen_on": "val"},
        {"thresholds": {0.5: 0.1}},
        {"thresholds": {0.5: 0.1}, "chosen_on": "oracle"},
    ):
        with pytest.raises(ValueError, match="chosen_on must name the split"):
            metric.compute(**arguments)
    with pytest.raises(ValueError, match=r"threshold 0\.123 was not swept"):
        metric.compute({0.5: 0.123}, chosen_on="val")
    with pytest.raises(ValueError, match=r"no threshold is given for IoU 0\.5"):
        metric.compute({0.7: 0.1}, chosen_on="val")


def test_tensors_and_float32_are_taken():
    result = []
    for score_map in (SCORE_MAP, torch.from_numpy(SCORE_MAP), SCORE_MAP.astype(np.float32)):
        metric = MaxBoxAccuracy()
        metric.update(score_map, torch.tensor([[1, 1, 4, 3]]))
        result.append(metric.compute().to_dict())
    assert result[0] == result[1] == result[2]


@pytest.mark.parametrize(
    ("score_map", "message"),
    [
        (np.full((3, 4), np.nan), r"score_map must lie in \[0, 1\] without NaN, got .*nan"),
        (np.full((3, 4), 1.5), r"in \[1\.5, 1\.5\]"),
        (np.full((3, 4), -0.1), r"in \[-0\.1, -0\.1\]"),
        (np.zeros((3, 4), np.uint8), "floating point"),
        (np.zeros((1, 3, 4)), r"\(H, W\), got float64 \(1, 3, 4\)"),
    ],
)
def test_other_score_maps_are_refused(score_map, message):
    for update in (
        lambda: MaxBoxAccuracy().update(score_map, [[0, 0, 1, 1]]),
        lambda: PixelAveragePrecision().update(score_map, np.ones((3, 4), np.uint8)),
    ):
        with pytest.raises(ValueError, match=message):
            update()


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (np.zeros((0, 4), int), r"boxes must be integers \(n, 4\), n >= 1, got int64 \(0, 4\)"),
        ([[0.5, 0, 1, 1]], "integers"),
        ([0, 0, 1, 1], r"\(4,\)"),
        ([[2, 0, 1, 1]], r"0 <= x0 <= x1 and 0 <= y0 <= y1, got \[2, 0, 1, 1\]"),
        ([[0, -1, 1, 1]], r"got \[0, -1, 1, 1\]"),
    ],
)
def test_other_boxes_are_refused(boxes, message):
    with pytest.raises(ValueError, match=message):
        MaxBoxAccuracy().update(SCORE_MAP, boxes)


@pytest.mark.parametrize("deltas", [(), (0.5, 0.3), (0.0,), (1.1,), (0.5, 0.5)])
def test_other_iou_thresholds_are_refused(deltas):
    with pytest.raises(ValueError, match=r"iou_thresholds must be ascending numbers in \(0, 1\]"):
        MaxBoxAccuracy(deltas)


@pytest.mark.parametrize("step", [0, 1, -0.1, math.nan])
def test_other_steps_are_refused(step):
    for metric in (MaxBoxAccuracy, PixelAveragePrecision):
        with pytest.raises(ValueError, match="step must lie between 0 and 1"):
            metric(step=step)


def test_other_policies_are_not_merged():
    with pytest.raises(ValueError, match=r"different policies: \{'multi_contour': \(True, False\)"):
        MaxBoxAccuracy().merge(MaxBoxAccuracy(multi_contour=False))
    with pytest.raises(ValueError, match="step"):
        PixelAveragePrecision().merge(PixelAveragePrecision(0.01))
    with pytest.raises(ValueError, match="top_k"):
        LocalizationAccuracy().merge(LocalizationAccuracy((1,)))


def test_pixel_average_precision_by_its_definition():
    generator = np.random.default_rng(8)
    metric, parts = PixelAveragePrecision(0.1), [PixelAveragePrecision(0.1) for _ in range(2)]
    scores, truths = [], []
    for number in range(6):
        score_map = generator.integers(0, 21, size=(5, 7)) / 20
        mask = generator.choice([0, 1, 255], size=(5, 7)).astype(np.uint8)
        metric.update(score_map, mask)
        parts[number % 2].update(score_map, mask)
        scores.append(score_map[mask != 255])
        truths.append(mask[mask != 255] == 1)
    score, truth = np.concatenate(scores), np.concatenate(truths)
    area, recall_before = 0.0, 0.0
    for threshold in [1.0, *np.arange(0, 1, 0.1)[::-1]]:
        called = score >= threshold
        recall = (called & truth).sum() / truth.sum()
        area += (called & truth).sum() / called.sum() * (recall - recall_before)
        recall_before = recall
    assert metric.compute() == pytest.approx(100 * area)
    parts[0].merge(parts[1])
    assert parts[0].compute() == metric.compute()
    thresholds, precision, recall = metric.curve()
    assert len(thresholds) == len(precision) == len(recall) == 12
    assert (np.diff(thresholds) < 0).all() and (np.diff(recall) >= 0).all() and recall[-1] == 1


def test_pixel_average_precision_refuses():
    metric = PixelAveragePrecision()
    with pytest.raises(ValueError, match="gt_mask holds 2; legal are 0, 1 and 255"):
        metric.update(np.zeros((1, 2)), np.array([[0, 2]], np.uint8))
    with pytest.raises(ValueError, match=r"in the shape \(1, 2\)"):
        metric.update(np.zeros((1, 2)), np.zeros((2, 1), np.uint8))
    metric.update(np.zeros((1, 2)), np.array([[0, 255]], np.uint8))
    with pytest.raises(ValueError, match="no object pixel in 1 images"):
        metric.compute()


# TS-CAM: true box 10×10 pixels, both corners inside.
TRUE = np.array([[10, 10, 19, 19]])


@pytest.mark.parametrize(
    ("box", "boxes", "error"),
    [
        ([10, 10, 19, 19], TRUE, "right"),
        # exactly half: not right by "> 0.5", and all of the box lies in the truth
        ([10, 10, 19, 14], TRUE, "part"),
        ([11, 11, 14, 14], TRUE, "part"),
        ([0, 0, 29, 29], TRUE, "more"),
        ([0, 0, 12, 12], TRUE, "wrong"),
        ([50, 50, 60, 60], TRUE, "wrong"),
        # covers 0.7 of the truth and lies in it by less than half
        ([13, 10, 29, 19], TRUE, "more"),
        ([14, 10, 30, 19], TRUE, "wrong"),
        ([10, 10, 39, 19], [[10, 10, 19, 19], [30, 10, 39, 19]], "multi_instance"),
        # covers 0.3 of the second, not more
        ([0, 10, 32, 19], [[0, 10, 9, 19], [30, 10, 39, 19]], "more"),
        ([0, 10, 33, 19], [[0, 10, 9, 19], [30, 10, 39, 19]], "multi_instance"),
    ],
)
def test_error_types(box, boxes, error):
    assert classify_error(box, np.array(boxes)) == error
    assert error in ERROR_TYPES


def test_localization_inequalities_and_ranks():
    half = [10, 10, 19, 14]  # IoU exactly 0.5
    metric = LocalizationAccuracy((1, 2))
    metric.update(
        class_id=4, pred_class_ids=[4, 1], pred_boxes=[half, half], gt_known_box=half, boxes=TRUE
    )
    result = metric.compute()
    assert result.gt_known == 100.0
    assert result.top_loc == {1: 0.0, 2: 0.0}
    assert result.top_cls == {1: 100.0, 2: 100.0}
    assert result.errors["part"] == 100.0
    metric.update(
        class_id=1,
        pred_class_ids=[4, 1],
        pred_boxes=[TRUE[0], TRUE[0]],
        gt_known_box=[0, 0, 1, 1],
        boxes=TRUE,
    )
    result = metric.compute()
    assert (result.gt_known, result.top_loc, result.top_cls) == (
        50.0,
        {1: 0.0, 2: 50.0},
        {1: 50.0, 2: 100.0},
    )
    assert result.errors == {
        **dict.fromkeys(ERROR_TYPES, 0.0),
        "part": 50.0,
        "classification": 50.0,
    }
    assert result.per_class[1]["top_loc"] == {1: 0.0, 2: 100.0}
    assert sorted(result.per_class) == [1, 4]


def make_guesses(count, seed):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        corners = generator.integers(0, 12, size=(7, 2))
        boxes = np.concatenate([corners, corners + generator.integers(2, 9, size=(7, 2))], axis=1)
        yield {
            "class_id": int(generator.integers(4)),
            "pred_class_ids": generator.permutation(4),
            "pred_boxes": boxes[:4],
            "gt_known_box": boxes[4],
            "boxes": boxes[5 : 6 + int(generator.integers(2))],
        }


def test_localization_against_its_definition_and_merged():
    whole, parts = LocalizationAccuracy((1, 3)), [LocalizationAccuracy((1, 3)) for _ in range(2)]
    right, known, ious = {1: 0, 3: 0}, 0, []
    guesses = list(make_guesses(200, seed=9))
    for number, guess in enumerate(guesses):
        whole.update(**guess)
        parts[number % 2].update(**guess)
        ious.append(max(plain_iou(guess["gt_known_box"], b) for b in guess["boxes"]))
        known += ious[-1] >= 0.5
        for k in right:
            right[k] += any(
                c == guess["class_id"] and max(plain_iou(box, b) for b in guess["boxes"]) > 0.5
                for c, box in zip(guess["pred_class_ids"][:k], guess["pred_boxes"][:k], strict=True)
            )
    result = whole.compute()
    assert result.top_loc == {k: 100 * n / 200 for k, n in right.items()}
    assert result.gt_known == 100 * known / 200
    assert list(result.iou_histogram) == np.histogram(ious, bins=20, range=(0, 1))[0].tolist()
    assert sum(result.iou_histogram[10:]) == known
    assert sum(result.errors.values()) == pytest.approx(100)
    assert result.errors["right"] == result.top_loc[1]
    assert result.errors["classification"] == pytest.approx(100 - result.top_cls[1])
    parts[0].merge(parts[1])
    assert parts[0].compute().to_dict() == result.to_dict()


def test_localization_without_images_is_nan():
    result = LocalizationAccuracy().compute()
    assert math.isnan(result.gt_known)
    assert result.to_dict()["top_loc"] == {"1": None, "5": None}


def test_localization_refuses():
    with pytest.raises(ValueError, match="top_k must be ascending numbers from 1 on"):
        LocalizationAccuracy((5, 1))
    guess = next(make_guesses(1, seed=0))
    for change, message in (
        ({"pred_class_ids": [1, 1, 2, 3]}, "distinct"),
        ({"pred_class_ids": []}, "at least one"),
        ({"pred_class_ids": [1]}, "1 classes are predicted with 4 boxes"),
        ({"gt_known_box": [3, 3, 1, 1]}, "gt_known_box must have"),
    ):
        with pytest.raises(ValueError, match=message):
            LocalizationAccuracy().update(**{**guess, **change})


def test_results_cannot_be_changed():
    metric = MaxBoxAccuracy()
    metric.update(SCORE_MAP, [[1, 1, 4, 3]])
    result = metric.compute()
    assert isinstance(result, BoxAccuracyResult)
    with pytest.raises(AttributeError):
        result.max_box_acc_v2 = 0.0  # type: ignore[misc]
