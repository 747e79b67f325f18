"""The steepest level: exact small maps, constant maps, several classes, size."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import zoom

from adcam.errors import AdcamError
from adcam.masks.background import (
    compute_bg_score,
    compute_mask,
    find_threshold,
    parse_rule,
)
from adcam.masks.steepest import (
    LEVELS,
    PER_CLASS,
    compute_jumps,
    find_steepest_level,
    find_steepest_of_set,
    mean_jump,
)
from adcam.structures import ClassMaps


def test_jumps_of_a_map_by_hand() -> None:
    # Pairs: 0.1|0.5 and 0.5|0.8 in each of two rows; none from row to row.
    jumps, length = compute_jumps(np.array([[0.1, 0.5, 0.8]] * 2))
    for level, jump, pairs in ((0.2, 0.8, 2), (0.49, 0.8, 2), (0.5, 0.6, 2), (0.79, 0.6, 2)):
        index = np.flatnonzero(np.isclose(LEVELS, level))[0]
        assert jumps[index] == pytest.approx(jump) and length[index] == pairs
    assert not length[LEVELS >= 0.8].any(), "a score equal to its level is background"


def test_jumps_are_those_of_the_masks_outline() -> None:
    peak = np.random.default_rng(0).random((9, 13))
    jumps, length = compute_jumps(peak)
    for index in (0, 25, 70):
        above = peak > LEVELS[index]
        across, down = above[:, 1:] != above[:, :-1], above[1:] != above[:-1]
        total = (
            np.abs(np.diff(peak, axis=1))[across].sum() + np.abs(np.diff(peak, axis=0))[down].sum()
        )
        assert length[index] == across.sum() + down.sum()
        assert jumps[index] == pytest.approx(total)


def make_disc(border: float, size: int = 64) -> np.ndarray:
    """A disc whose scores fall steeply where they pass ``border``, and slowly elsewhere."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    radius = np.hypot(x, y)
    slope = 1 - radius / 0.75
    return np.clip(slope + (border - 0.6) + 0.3 * np.tanh((0.3 - radius) * 40), 0, 1)


def test_the_level_moves_towards_the_steep_place() -> None:
    found = [
        find_steepest_level(make_disc(border), expected=0.58, num_classes=1)
        for border in (0.44, 0.48, 0.53, 0.63, 0.68)
    ]
    assert found == sorted(found)
    assert 0.48 <= found[0] <= 0.55 and 0.59 <= found[-1] <= 0.68
    # Large maps are sampled and give about the same.
    for border, level in zip((0.44, 0.68), (found[0], found[-1]), strict=True):
        large = find_steepest_level(make_disc(border, 256), expected=0.58, num_classes=1)
        assert large == pytest.approx(level, abs=0.021)


def test_the_expected_level_decides_where_the_map_does_not() -> None:
    for value in (0.0, 0.4, 1.0):
        flat = np.full((8, 9), value)
        assert find_steepest_level(flat, expected=0.58, num_classes=1) == 0.58
        assert find_steepest_level(flat, expected=0.58, num_classes=3) == pytest.approx(
            0.58 + 2 * PER_CLASS
        )
    assert find_steepest_level(np.zeros((1, 1)), expected=0.0, num_classes=1) == 0.2
    assert find_steepest_level(np.zeros((3, 3)), expected=1.0, num_classes=1) == 0.9


def literal_level(peak: np.ndarray, expected: float, num_classes: int) -> float:
    """The formula with its constants written out, from the masks at every level."""
    levels = [level / 100 for level in range(20, 91)]
    means = []
    for level in levels:
        above = peak > level
        across = np.abs(np.diff(peak, axis=1))[above[:, 1:] != above[:, :-1]]
        down = np.abs(np.diff(peak, axis=0))[above[1:] != above[:-1]]
        jumps = [*across, *down]
        means.append(np.mean(jumps) if len(jumps) >= 4 else 0.0)
    padded = [means[0]] * 6 + means + [means[-1]] * 6
    weights = [np.exp(-((place / 2) ** 2) / 2) for place in range(-6, 7)]
    smooth = [np.dot(weights, padded[i : i + 13]) for i in range(71)]
    center = expected + 0.06 * (num_classes - 1)
    gains = [
        value / max(smooth) - 0.2 * ((level - center) / 0.1) ** 2
        for value, level in zip(smooth, levels, strict=True)
    ]
    return levels[int(np.argmax(gains))]


def test_the_level_equals_its_formula() -> None:
    rng = np.random.default_rng(3)
    found = set()
    for number in range(24):
        coarse = rng.random((5, 7))
        peak = np.asarray(zoom(coarse, (3, 4), order=1))
        num_classes, expected = 1 + number % 3, 0.4 + 0.02 * (number % 10)
        level = find_steepest_level(peak, expected=expected, num_classes=num_classes)
        assert level == pytest.approx(literal_level(peak, expected, num_classes), abs=1e-9)
        found.add(level)
    assert len(found) > 12


def test_an_outline_of_two_pairs_says_nothing() -> None:
    peak = np.full((6, 6), 0.3)
    peak[0, 0] = 0.9  # two neighbours, which jump by 0.6
    peak[3, 3] = 0.5  # four neighbours, which jump by 0.2
    assert find_steepest_of_set(mean_jump(peak)) == pytest.approx(0.36)


def test_large_maps_are_sampled_to_128_pixels_a_side() -> None:
    peak = np.random.default_rng(0).random((256, 200))
    for large, small in ((peak, peak[1::2, 1::2]), (peak[:160], peak[:160])):
        sums, expected = compute_jumps(large), compute_jumps(small)
        for one, other in zip(sums, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_level_of_a_set_is_where_most_images_are_steep() -> None:
    few = [mean_jump(make_disc(border)) for border in (0.45, 0.62, 0.62, 0.62)]
    alone = find_steepest_of_set(few[1])
    assert alone is not None and abs(alone - 0.62) < 0.08
    assert find_steepest_of_set(sum(few)) == pytest.approx(alone, abs=0.06)
    flat = mean_jump(np.full((5, 5), 0.5))
    assert not flat.any() and find_steepest_of_set(flat) is None
    assert find_steepest_of_set(flat + few[1]) == alone, "a map without an outline says nothing"


def test_the_rule_makes_masks() -> None:
    rule = parse_rule("steepest:0.58")
    assert (rule.rule, rule.value, str(rule)) == ("steepest", 0.58, "steepest:0.58")
    maps = ClassMaps((1,), make_disc(0.6)[None].astype(np.float32))
    level = find_threshold(maps.score_maps, rule="steepest", threshold=0.58)
    mask = compute_mask(maps, mask_values=(3, 7), rule="steepest", threshold=0.58)
    assert mask.rule == "steepest" and mask.threshold == level
    np.testing.assert_array_equal(mask.mask, np.where(maps.score_maps[0] > np.float32(level), 7, 0))
    assert (
        compute_bg_score(maps.score_maps, rule="steepest", threshold=0.58) == np.float32(level)
    ).all()
    two = np.full((2, 5, 6), 0.5, np.float32)
    assert find_threshold(two, rule="steepest", threshold=0.5) == pytest.approx(0.5 + PER_CLASS)
    nothing = ClassMaps((), np.zeros((0, 5, 6), np.float32))
    assert not compute_mask(nothing, mask_values=(3,), rule="steepest", threshold=0.58).mask.any()
    for text in ("steepest", "steepest:1.2"):
        with pytest.raises(AdcamError, match="background rule must be"):
            parse_rule(text)
