"""Label thresholds: separable classes, rare ones, and what cannot be calibrated."""

from __future__ import annotations

import numpy as np
import pytest

from adcam.errors import AdcamError
from adcam.metrics.label_thresholds import CANDIDATES, choose_label_thresholds


def make_scores(num: int, *, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one class, half of the images show it; logits differ by 4."""
    rng = np.random.default_rng(seed)
    target = np.arange(num) % 2
    logits = rng.normal(4 * target - 2 + shift, 1)
    return 1 / (1 + np.exp(-logits)), target


def f1(scores: np.ndarray, targets: np.ndarray, threshold: float) -> float:
    called = scores >= threshold
    return float(2 * (called & (targets > 0)).sum() / (called.sum() + targets.sum()))


def test_the_threshold_follows_a_class_whose_scores_are_low() -> None:
    for shift in (-3.0, 0.0, 2.0):
        scores, targets = make_scores(400, shift=shift)
        (chosen,) = choose_label_thresholds(scores[:, None], targets[:, None])
        assert np.log(chosen / (1 - chosen)) == pytest.approx(shift, abs=0.6)
        best = max(f1(scores, targets, t) for t in CANDIDATES)
        assert f1(scores, targets, chosen) > best - 0.02


def test_each_class_has_its_own_threshold_and_a_rare_one_that_of_all() -> None:
    low, targets = make_scores(400, shift=-3)
    high, _ = make_scores(400, shift=2, seed=1)
    rare, none = low[::-1].copy(), np.zeros(400, dtype=int)
    scores, shown = np.stack([low, high, rare], 1), np.stack([targets, targets, none], 1)
    own = choose_label_thresholds(scores, shown, prior_images=0)
    assert own[0] < 0.2 < 0.7 < own[1]
    assert own[2] == 0.5, "a class that nobody saw, left to itself"
    drawn = choose_label_thresholds(scores, shown, prior_images=100)
    assert own[0] < drawn[0] < 0.5 < drawn[1] < own[1], "drawn together, and to 0.5"
    both = choose_label_thresholds(scores, shown)
    assert both[:2] == pytest.approx(own[:2], abs=0.1)
    assert 0.5 < both[2] < 1, "a class that nobody saw only raises false alarms"


def literal_thresholds(scores: np.ndarray, targets: np.ndarray) -> list[float]:
    """The rule written out for each class and candidate, with its constants."""
    candidates = [step / 10 for step in range(-70, 71)]  # logits
    found = []
    for of_class, shown in zip(scores.T, targets.T, strict=True):
        curve = []
        for logit in candidates:
            needed = 1 / (1 + np.exp(-logit))
            weight = 10 / targets.sum()
            correct = ((of_class >= needed) & (shown == 1)).sum()
            correct = correct + weight * ((scores >= needed) & (targets == 1)).sum()
            called = (of_class >= needed).sum() + weight * (scores >= needed).sum()
            curve.append(2 * correct / (called + shown.sum() + weight * targets.sum()))
        padded = [curve[0]] * 30 + curve + [curve[-1]] * 30
        weights = [np.exp(-((place / 10) ** 2) / 2) for place in range(-30, 31)]
        smooth = [np.dot(weights, padded[i : i + 61]) for i in range(141)]
        drawn = candidates[int(np.argmax(smooth))] * targets.sum() / (targets.sum() + 10)
        found.append(float(1 / (1 + np.exp(-drawn))))
    return found


def test_thresholds_equal_their_rule() -> None:
    rng = np.random.default_rng(5)
    for shift in (-2.0, 0.5, 2.0):
        targets = (rng.random((60, 4)) < (0.5, 0.3, 0.1, 0.03)).astype(int)
        offsets = np.array([shift, -shift, 1, -1])
        logits = rng.normal(3 * targets - 1.5 + offsets, 1)
        scores = np.where(rng.random((60, 4)) < 0.2, 0.5, 1 / (1 + np.exp(-logits)))
        found = choose_label_thresholds(scores, targets)
        assert found == pytest.approx(literal_thresholds(scores, targets), abs=1e-9)


def test_few_labels_stay_near_a_half() -> None:
    scores, targets = make_scores(400, shift=-3)
    few = choose_label_thresholds(scores[:4, None], targets[:4, None])[0]
    many = choose_label_thresholds(scores[:, None], targets[:, None])[0]
    assert many < 0.15 < few < 0.5


def test_equal_scores_and_one_image_still_give_probabilities() -> None:
    for scores, targets in (
        (np.full((6, 2), 0.3), np.array([[1, 0]] * 3 + [[0, 1]] * 3)),
        (np.array([[0.0, 1.0]]), np.array([[0, 1]])),
    ):
        found = choose_label_thresholds(scores, targets)
        assert len(found) == 2 and all(0 < t < 1 for t in found)
    # All images show the class and score 0.3: it must be found in all of them.
    (chosen,) = choose_label_thresholds(np.full((50, 1), 0.3), np.ones((50, 1)))
    assert chosen <= 0.3


@pytest.mark.parametrize(
    ("scores", "targets", "prior", "said"),
    [
        (np.zeros((2, 3)), np.ones((2, 2)), 1, "must be"),
        (np.full((2, 1), 1.5), np.ones((2, 1)), 1, "probabilities"),
        (np.full((2, 1), np.nan), np.ones((2, 1)), 1, "probabilities"),
        (np.zeros((2, 1)), np.full((2, 1), 2), 1, "0 or 1"),
        (np.zeros((2, 1)), np.zeros((2, 1)), 1, "no image shows any class"),
        (np.zeros((0, 1)), np.zeros((0, 1)), 1, "no image shows any class"),
        (np.zeros((2, 1)), np.ones((2, 1)), -1, "at least 0"),
    ],
)
def test_what_cannot_be_calibrated(
    scores: np.ndarray, targets: np.ndarray, prior: float, said: str
) -> None:
    with pytest.raises(AdcamError, match=said):
        choose_label_thresholds(scores, targets, prior_images=prior)
