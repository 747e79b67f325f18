"""Background rules, the probabilities for a CRF, and masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcam.masks.background import (
    BackgroundRule,
    compute_bg_score,
    compute_mask,
    find_threshold,
    parse_rule,
    stack_probabilities,
)
from adcam.structures import ClassMaps

MASK_VALUES = (8, 10, 12, 13)  # as in a subset of VOC: not contiguous


def random_maps(seed, num_classes=3, hw=(7, 11)):
    rng = np.random.default_rng(seed)
    class_ids = tuple(sorted(rng.choice(4, size=num_classes, replace=False).tolist()))
    return ClassMaps(class_ids, rng.random((num_classes, *hw)).astype(np.float32))


@pytest.mark.parametrize(
    ("text", "rule", "value"),
    [
        ("0.35", "constant", 0.35),
        ("constant:0.35", "constant", 0.35),
        (0.35, "constant", 0.35),
        (1, "constant", 1.0),
        ("0", "constant", 0.0),
        ("1", "constant", 1.0),
        ("power:4", "power", 4.0),
        (" power:0.5 ", "power", 0.5),
        ("otsu", "otsu", None),
    ],
)
def test_rules_are_read(text, rule, value):
    parsed = parse_rule(text, chosen_on="train")
    assert parse_rule(parsed) is parsed
    assert parsed == BackgroundRule(rule, value, "train")
    assert parse_rule(str(parsed), chosen_on="train") == parsed


def test_a_rule_given_by_the_user_says_so():
    assert parse_rule("0.35").chosen_on == "given"


ILLEGAL_TEXTS = """
    1.5 -0.1 nan inf half 0,35 :0.3 constant constant: constant:2 constant:power:4
    power power: power:0 power:-1 power:inf power:nan otsu: otsu:0.3
"""


@pytest.mark.parametrize("text", ["", 1.5, True, None, (0.3, 0.4), *ILLEGAL_TEXTS.split()])
def test_other_texts_are_refused_with_the_legal_forms(text):
    with pytest.raises(
        ValueError, match=r"a number in .*'steepest:<number in \[0, 1\]>', got"
    ) as caught:
        parse_rule(text)
    assert repr(text) in str(caught.value)


def test_background_scores_by_hand():
    maps = np.array([[[0.2, 0.9]], [[0.5, 0.4]]], dtype=np.float32)  # (2, 1, 2)
    constant = compute_bg_score(maps, rule="constant", threshold=0.3)
    power = compute_bg_score(maps, rule="power", threshold=2)
    np.testing.assert_array_equal(constant, np.float32([[0.3, 0.3]]))
    np.testing.assert_allclose(power, [[0.25, 0.01]], rtol=1e-6)
    assert constant.dtype == power.dtype == np.float32


def test_a_larger_exponent_means_less_background():
    maps = random_maps(0).score_maps
    low, high = (compute_bg_score(maps, rule="power", threshold=a) for a in (4, 32))
    assert (high <= low).all() and (high < low).any()


def otsu_by_search(values):
    """Largest variance between the two groups, over every split of the values."""
    levels = np.unique(values)
    best, split = -1.0, None
    for level in levels[:-1]:
        low, high = values[values <= level], values[values > level]
        between = low.size * high.size * (low.mean() - high.mean()) ** 2
        if between > best:
            best, split = between, level
    return split


@pytest.mark.parametrize("seed", range(5))
def test_otsu_splits_where_the_groups_differ_most(seed):
    rng = np.random.default_rng(seed)
    # levels on a grid coarser than the 256 bins, so that binning cannot move the split
    low, high = rng.integers(0, 12, size=150), rng.integers(16, 33, size=60)
    values = np.append(np.concatenate([low, high]), [0, 32]).astype(np.float32) / 32
    peak = rng.permutation(values)[:210].reshape(14, 15)
    peak[0, :2] = 0, 1
    maps = np.stack([peak, peak * np.float32(0.5)])
    threshold = find_threshold(maps, rule="otsu")
    np.testing.assert_array_equal(peak > threshold, peak > otsu_by_search(peak.ravel()))
    mask = compute_mask(ClassMaps((1, 3), maps), mask_values=MASK_VALUES, rule="otsu")
    assert mask.threshold == threshold
    np.testing.assert_array_equal(mask.mask == 10, peak > threshold)


def test_otsu_is_that_of_scikit_image():
    filters = pytest.importorskip("skimage.filters")
    rng = np.random.default_rng(0)
    for exponent in (1, 2, 5):
        maps = rng.random((2, 31, 47), dtype=np.float32) ** exponent
        expected = float(filters.threshold_otsu(maps.max(axis=0)))
        assert find_threshold(maps, rule="otsu") == expected


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_otsu_of_a_constant_map_is_all_background(value):
    maps = ClassMaps((0,), np.full((1, 4, 6), value, dtype=np.float32))
    result = compute_mask(maps, mask_values=MASK_VALUES, rule="otsu")
    assert not result.mask.any()
    assert result.threshold == pytest.approx(value)


@pytest.mark.parametrize(
    ("rule", "threshold"), [("constant", 0.3), ("constant", 0.0), ("power", 4), ("otsu", None)]
)
def test_without_a_class_all_is_background(rule, threshold):
    maps = ClassMaps((), np.zeros((0, 5, 9), dtype=np.float32))
    result = compute_mask(maps, mask_values=MASK_VALUES, rule=rule, threshold=threshold)
    np.testing.assert_array_equal(result.mask, np.zeros((5, 9), np.uint8))
    bg_score = compute_bg_score(maps.score_maps, rule=rule, threshold=threshold)
    np.testing.assert_array_equal(
        stack_probabilities(maps.score_maps, bg_score), np.ones((1, 5, 9))
    )


def test_mask_by_hand():
    maps = ClassMaps(
        (0, 2),
        np.array(
            [
                [[0.30, 0.31, 0.9], [0.0, 0.7, 0.2]],
                [[0.10, 0.20, 0.8], [0.0, 0.7, 0.6]],
            ],
            dtype=np.float32,
        ),
    )
    result = compute_mask(maps, mask_values=MASK_VALUES, threshold=0.3, chosen_on="train")
    # equal to the threshold: background; equal classes: the first
    np.testing.assert_array_equal(result.mask, [[0, 8, 8], [0, 8, 12]])
    assert result.mask.dtype == np.uint8
    assert (result.rule, result.threshold, result.chosen_on) == ("constant", 0.3, "train")


@pytest.mark.parametrize("threshold", np.arange(1, 20) / 20)
def test_a_score_equal_to_its_threshold_is_background_in_float32_too(threshold):
    maps = ClassMaps((0,), np.full((1, 2, 3), threshold, dtype=np.float32))
    mask = compute_mask(maps, mask_values=MASK_VALUES, threshold=float(threshold)).mask
    assert not mask.any()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_classes=st.integers(1, 4),
    low=st.floats(0, 1, width=32),
    high=st.floats(0, 1, width=32),
)
def test_a_higher_threshold_only_takes_pixels_away(seed, num_classes, low, high):
    low, high = sorted((low, high))
    maps = random_maps(seed, num_classes)
    wide, narrow = (
        compute_mask(maps, mask_values=MASK_VALUES, threshold=t).mask for t in (low, high)
    )
    kept = narrow > 0
    np.testing.assert_array_equal(narrow[kept], wide[kept])
    assert set(np.unique(wide)) <= {0, *(MASK_VALUES[i] for i in maps.class_ids)}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), num_classes=st.integers(1, 4), threshold=st.floats(0, 1))
@pytest.mark.parametrize("rule", ["constant", "power"])
def test_probabilities_keep_the_decision(rule, seed, num_classes, threshold):
    maps = random_maps(seed, num_classes)
    threshold = threshold + 0.01 if rule == "power" else threshold
    bg_score = compute_bg_score(maps.score_maps, rule=rule, threshold=threshold)
    prob = stack_probabilities(maps.score_maps, bg_score)
    assert prob.shape == (num_classes + 1, 7, 11) and prob.dtype == np.float32
    np.testing.assert_allclose(prob.sum(axis=0), 1, atol=1e-6)
    arguments = {"mask_values": MASK_VALUES, "rule": rule, "threshold": threshold}
    direct = compute_mask(maps, **arguments).mask
    from_prob = compute_mask(maps, prob=prob, **arguments).mask
    # division may round two scores together that differ in the last bit
    ranked = np.sort(np.concatenate([bg_score[None], maps.score_maps]), axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-6
    np.testing.assert_array_equal(direct[clear], from_prob[clear])


def test_probabilities_of_zero_and_of_tiny_scores():
    maps = np.array([[[0.0, 1e-44, 0.5]]], dtype=np.float32)
    prob = stack_probabilities(maps, np.array([[0.0, 0.0, 0.5]], dtype=np.float32))
    np.testing.assert_array_equal(prob, [[[1, 0, 0.5]], [[0, 1, 0.5]]])


def test_probabilities_leave_their_input_alone():
    maps, bg_score = np.zeros((1, 2, 3), np.float32), np.zeros((2, 3), np.float32)
    stack_probabilities(maps, bg_score)
    assert not maps.any() and not bg_score.any()


def test_with_probabilities_the_rule_is_only_recorded():
    maps = ClassMaps((1,), np.full((1, 2, 3), 0.9, dtype=np.float32))
    prob = np.stack([[[0.6, 0.5, 0.1]] * 2, [[0.4, 0.5, 0.9]] * 2]).astype(np.float32)
    result = compute_mask(maps, mask_values=MASK_VALUES, rule="power", threshold=4, prob=prob)
    np.testing.assert_array_equal(result.mask, [[0, 0, 10]] * 2)  # background wins the tie
    assert (result.rule, result.threshold) == ("power", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": None}, "needs a threshold"),
        ({"threshold": 1.01}, r"\[0, 1\]"),
        ({"rule": "power", "threshold": 0}, "above 0"),
        ({"rule": "otsu", "threshold": 0.3}, "its own threshold"),
        ({"rule": "mean", "threshold": 0.3}, "rule must be 'constant', .* or 'steepest'"),
        ({"threshold": 0.3, "prob": np.zeros((2, 7, 11))}, r"\(4, 7, 11\).*\(2, 7, 11\)"),
        ({"threshold": 0.3, "mask_values": (1,)}, r"0\.\.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        compute_mask(random_maps(1), **{"mask_values": MASK_VALUES, **arguments})


def test_wrong_maps_are_refused():
    with pytest.raises(ValueError, match="K = 2"):
        compute_mask(ClassMaps((0, 1), np.zeros((1, 2, 3))), mask_values=MASK_VALUES, threshold=0.3)
    with pytest.raises(ValueError, match="NaN"):
        compute_mask(
            ClassMaps((0,), np.full((1, 2, 3), np.nan)), mask_values=MASK_VALUES, threshold=0.3
        )
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*\(3, 2\)"):
        stack_probabilities(np.zeros((1, 2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="at least 0"):
        stack_probabilities(np.full((1, 2, 3), -0.1), np.zeros((2, 3)))
