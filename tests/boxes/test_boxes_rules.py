"""The two box rules: hand cases, where they agree and where they do not, true boxes scaled."""

from __future__ import annotations

import numpy as np
import pytest

from adcam.boxes import RULES, compute_boxes, ts_cam, wsol
from adcam.structures import ClassMaps

SCORE_MAP = np.zeros((8, 10))
SCORE_MAP[2:5, 1:4] = 0.5
SCORE_MAP[5:8, 6:10] = 1.0
BOTH_RULES = (
    lambda score_map, threshold: wsol.compute_boxes(score_map, threshold=threshold),
    lambda score_map, threshold: ts_cam.compute_box(score_map, threshold=threshold),
)


def test_wsol_boxes_end_at_the_last_pixel_of_the_map() -> None:
    boxes = wsol.compute_boxes(SCORE_MAP, threshold=0.2)
    assert boxes.tolist() == [[1, 2, 4, 5], [6, 5, 9, 7]]
    largest = wsol.compute_boxes(SCORE_MAP, threshold=0.2, multi_contour=False)
    assert largest.tolist() == [[6, 5, 9, 7]]
    assert wsol.compute_boxes(SCORE_MAP, threshold=0.6).tolist() == [[6, 5, 9, 7]]


def test_ts_cam_boxes_end_one_past_it() -> None:
    assert ts_cam.compute_box(SCORE_MAP, threshold=0.2).tolist() == [6, 5, 10, 8]
    assert ts_cam.compute_box(SCORE_MAP, threshold=0.6).tolist() == [6, 5, 10, 8]


def test_nothing_gives_each_rules_own_box() -> None:
    assert wsol.compute_boxes(np.zeros((3, 4)), threshold=0.2).tolist() == [[0, 0, 0, 0]]
    assert ts_cam.compute_box(np.zeros((3, 4)), threshold=0.2).tolist() == [0, 0, 1, 1]


def test_the_threshold_is_a_share_of_the_maximum_and_exclusive() -> None:
    half = np.array([[0.25, 0.5, 0.0]])
    # 127 levels at the peak, 63 at the left pixel: int(0.5 * 127) = 63 is not above 63
    assert ts_cam.compute_box(half, threshold=0.5).tolist() == [1, 0, 2, 1]
    assert ts_cam.compute_box(half, threshold=0.49).tolist() == [0, 0, 2, 1]
    # 64 is: the share of an odd maximum is cut, not rounded
    half[0, 0] = 0.253
    assert ts_cam.compute_box(half, threshold=0.5).tolist() == [0, 0, 2, 1]


@pytest.mark.parametrize("rule", BOTH_RULES)
def test_bad_arguments_are_refused(rule) -> None:
    for score_map, message in (
        (np.full((2, 2), np.nan), "without NaN"),
        (np.full((2, 2), 2.0), r"in \[2\.0, 2\.0\]"),
        (np.zeros((2, 2), np.uint8), "floating point"),
        (np.zeros((2, 2, 1)), r"\(H, W\)"),
    ):
        with pytest.raises(ValueError, match=message):
            rule(score_map, 0.2)
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\)"):
            rule(SCORE_MAP, threshold)


def test_true_boxes_are_scaled_by_each_protocol() -> None:
    boxes = np.array([[123, 115, 379, 275], [0, 0, 500, 375]])
    hw = (375, 500)
    assert wsol.scale_boxes(boxes, hw).tolist() == [[55, 68, 169, 164], [0, 0, 224, 224]]
    assert ts_cam.scale_boxes(boxes, hw).tolist() == [[55, 68, 169, 164], [0, 0, 223, 223]]
    # height and width are not swapped
    assert wsol.scale_boxes([[0, 0, 100, 50]], (50, 100), (10, 40)).tolist() == [[0, 0, 40, 10]]


def test_scaling_meets_the_golden_boxes(shared_dir) -> None:
    import json

    metadata = shared_dir / "data" / "voc-animals" / "metadata" / "val"
    sizes, boxes = {}, {}
    for line in (metadata / "image_sizes.txt").read_text().splitlines():
        name, width, height = line.split(",")
        sizes[name] = (int(height), int(width))
    for line in (metadata / "localization.txt").read_text().splitlines():
        name, *numbers = line.split(",")
        boxes.setdefault(name, []).append([int(number) for number in numbers])
    golden = json.loads((shared_dir / "golden" / "wsol_gt_boxes.json").read_text())
    assert golden == {
        name: wsol.scale_boxes(np.array(boxes[name]), sizes[name]).tolist() for name in golden
    }


def test_boxes_of_class_maps() -> None:
    maps = ClassMaps((2, 5), np.stack([SCORE_MAP, np.zeros_like(SCORE_MAP)]).astype(np.float32))
    boxes = compute_boxes(maps, rule="wsol", threshold=0.2, chosen_on="train-fullsup")
    assert boxes.class_ids == (2, 2, 5)
    assert boxes.boxes.tolist() == [[1, 2, 4, 5], [6, 5, 9, 7], [0, 0, 0, 0]]
    assert (boxes.rule, boxes.threshold, boxes.chosen_on) == ("wsol", 0.2, "train-fullsup")
    single = compute_boxes(maps, rule="ts_cam", threshold=0.2)
    assert single.class_ids == (2, 5)
    assert single.boxes.tolist() == [[6, 5, 10, 8], [0, 0, 1, 1]]
    none = compute_boxes(ClassMaps((), np.zeros((0, 4, 4), np.float32)), threshold=0.1)
    assert none.class_ids == () and none.boxes.shape == (0, 4)
    with pytest.raises(ValueError, match=r"rule must be 'wsol' or 'ts_cam', got 'cam'"):
        compute_boxes(maps, rule="cam", threshold=0.2)
    assert RULES == ("wsol", "ts_cam")
