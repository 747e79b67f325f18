"""Two-threshold masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcam.masks.background import compute_mask
from adcam.masks.confident import compute_confident_mask
from adcam.structures import ClassMaps

MASK_VALUES = (8, 10, 12, 13)


def random_maps(seed, num_classes=2, hw=(7, 11)):
    rng = np.random.default_rng(seed)
    return ClassMaps(tuple(range(num_classes)), rng.random((num_classes, *hw)).astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_classes=st.integers(1, 4),
    thresholds=st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)).map(sorted),
)
def test_without_a_crf_uncertain_means_between_the_thresholds(seed, num_classes, thresholds):
    low, high = thresholds
    maps = random_maps(seed, num_classes)
    mask = compute_confident_mask(
        maps, mask_values=MASK_VALUES, fg_threshold=high, bg_threshold=low
    ).mask
    peak = maps.score_maps.max(axis=0)
    np.testing.assert_array_equal(mask == 255, (peak > low) & (peak <= high))
    np.testing.assert_array_equal(mask == 0, peak <= low)
    sure = compute_mask(maps, mask_values=MASK_VALUES, threshold=high).mask
    np.testing.assert_array_equal(mask[peak > high], sure[peak > high])


@pytest.mark.parametrize("crf", [None, lambda prob: prob**2], ids=["no CRF", "CRF"])
def test_equal_thresholds_leave_nothing_uncertain(crf):
    maps = random_maps(3)
    mask = compute_confident_mask(
        maps, mask_values=MASK_VALUES, fg_threshold=0.4, bg_threshold=0.4, crf=crf
    ).mask
    np.testing.assert_array_equal(
        mask, compute_mask(maps, mask_values=MASK_VALUES, threshold=0.4).mask
    )


def test_irn_thresholds_by_hand():
    maps = ClassMaps((1, 2), np.array([[[0.04, 0.2, 0.31]], [[0.0, 0.25, 0.9]]], dtype=np.float32))
    result = compute_confident_mask(maps, mask_values=MASK_VALUES)
    np.testing.assert_array_equal(result.mask, [[0, 255, 12]])
    assert result.mask.dtype == np.uint8
    assert (result.rule, result.threshold) == ("confident:0.05:0.3", 0.3)
    assert result.chosen_on == "given"


def test_each_pass_has_its_own_crf_and_every_disagreement_is_uncertain():
    maps = ClassMaps((0, 3), np.full((2, 1, 5), 0.2, dtype=np.float32))
    # rows of [background, class 0, class 3] that the CRF is made to choose in each pass
    choices = {"fg": [0, 1, 1, 1, 0], "bg": [0, 1, 0, 2, 2]}
    seen = []

    def crf(prob):
        seen.append(prob)
        chosen = choices["fg" if len(seen) == 1 else "bg"]
        return np.eye(3, dtype=np.float32)[chosen].T[:, None]

    mask = compute_confident_mask(
        maps, mask_values=MASK_VALUES, fg_threshold=0.6, bg_threshold=0.1, crf=crf
    ).mask
    np.testing.assert_array_equal(mask, [[0, 8, 255, 255, 255]])
    np.testing.assert_allclose(seen[0][:, 0, 0], [0.6, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(seen[1][:, 0, 0], [0.2, 0.4, 0.4], rtol=1e-6)


def test_without_a_class_all_is_background_and_no_crf_runs():
    def crf(prob):
        raise AssertionError("a CRF was run on an image without a class")

    mask = compute_confident_mask(
        ClassMaps((), np.zeros((0, 4, 6), np.float32)), mask_values=MASK_VALUES, crf=crf
    ).mask
    np.testing.assert_array_equal(mask, np.zeros((4, 6)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fg_threshold": 0.1, "bg_threshold": 0.2}, "0.2 > 0.1"),
        ({"fg_threshold": 1.5}, r"\[0, 1\]"),
        ({"bg_threshold": -0.1}, r"\[0, 1\]"),
        ({"crf": lambda prob: prob[:1]}, "keep the shape"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        compute_confident_mask(random_maps(0), mask_values=MASK_VALUES, **arguments)
