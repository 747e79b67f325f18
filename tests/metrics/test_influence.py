"""The influence of images on a mean IoU, against derivatives and resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adcam.metrics.influence import (
    compute_image_error,
    compute_influences,
    list_areas,
    mean_of_areas,
)
from adcam.metrics.miou import Average, MeanIoU, PredIgnore, compute_confusion

NUM_CLASSES = 4


def draw_images(count: int, seed: int = 0) -> list[np.ndarray]:
    """Confusion matrices of images that show background and one or two classes, some of it 255."""
    rng = np.random.default_rng(seed)
    confusions = []
    for _ in range(count):
        shown = [0, *rng.choice([1, 2, 3], size=rng.integers(1, 3), replace=False)]
        gt = rng.choice(shown, size=(12, 12))
        guess = rng.choice([*shown, 255], size=(12, 12))
        pred = np.where(rng.random((12, 12)) < rng.uniform(0.3, 0.95), gt, guess)
        confusions.append(compute_confusion(pred, gt, num_classes=NUM_CLASSES))
    return confusions


def miou_of(confusions: list[np.ndarray], average: Average, pred_ignore: PredIgnore) -> MeanIoU:
    metric = MeanIoU(NUM_CLASSES, average=average, pred_ignore=pred_ignore)
    for confusion in confusions:
        metric.add_confusion(confusion)
    return metric


def influences_of(
    confusions: list[np.ndarray],
    average: Average = "union",
    pred_ignore: PredIgnore = "miss",
) -> dict[str, float]:
    areas = {str(i): list_areas(c, pred_ignore=pred_ignore) for i, c in enumerate(confusions)}
    return compute_influences(areas, miou_of(confusions, average, pred_ignore).compute())


@pytest.mark.parametrize("pred_ignore", ["miss", "drop"])
@pytest.mark.parametrize("average", ["union", "gt_present", "per_image"])
def test_it_is_what_a_little_more_of_an_image_does(
    average: Average, pred_ignore: PredIgnore
) -> None:
    """A thousand times all images, and one of them once more."""
    confusions = draw_images(6)
    many = [1000 * confusion for confusion in confusions]
    base = miou_of(many, average, pred_ignore).compute().miou
    influences = influences_of(confusions, average, pred_ignore)
    for i, confusion in enumerate(confusions):
        if average == "per_image":
            mious = [mean_of_areas(list_areas(c, pred_ignore=pred_ignore)) for c in confusions]
            more = (1000 * sum(mious) + mious[i]) / 6001
        else:
            more = miou_of([*many, confusion], average, pred_ignore).compute().miou
        assert influences[str(i)] == pytest.approx(1000 * (more - base), abs=0.02)
    assert math.fsum(influences.values()) == pytest.approx(0, abs=1e-9)


def test_the_error_is_the_spread_over_resampled_images() -> None:
    """As the bootstrap finds it: the same number of images, drawn with replacement."""
    confusions = draw_images(60)
    rng = np.random.default_rng(1)
    resampled = [
        miou_of([confusions[i] for i in rng.integers(0, 60, 60)], "union", "miss").compute().miou
        for _ in range(400)
    ]
    error = compute_image_error(influences_of(confusions).values())
    assert error == pytest.approx(np.std(resampled), rel=0.15)


def test_the_error_of_a_difference_is_paired() -> None:
    """A method that is a little better on every image differs for certain."""
    worse = draw_images(60)
    better = []
    for confusion in worse:
        gained = confusion // 2
        np.fill_diagonal(gained, 0)
        moved = confusion - gained
        moved[range(NUM_CLASSES), range(NUM_CLASSES)] += gained.sum(axis=1)
        better.append(moved)
    first, second = influences_of(worse), influences_of(better)
    paired = compute_image_error(first[i] - second[i] for i in first)
    apart = math.hypot(*(compute_image_error(own.values()) for own in (first, second)))
    assert paired < 0.6 * apart


def test_the_error_does_not_depend_on_the_order_and_shrinks_with_images() -> None:
    confusions = draw_images(40)
    values = list(influences_of(confusions).values())
    assert compute_image_error(values) == compute_image_error(values[::-1])
    twice = compute_image_error(influences_of([*confusions, *confusions]).values())
    assert twice == pytest.approx(compute_image_error(values) / math.sqrt(2), rel=0.02)
    assert math.isnan(compute_image_error([1.0])) and math.isnan(compute_image_error([]))


def test_an_image_is_kept_by_the_classes_that_it_shows() -> None:
    confusion = compute_confusion(
        np.array([[0, 2, 255]]), np.array([[0, 0, 2]]), num_classes=NUM_CLASSES
    )
    assert list_areas(confusion).tolist() == [[0, 2], [1, 0], [2, 2]]
    assert list_areas(confusion, pred_ignore="drop").tolist() == [[0, 2], [1, 0], [2, 1]]
    assert mean_of_areas(list_areas(confusion)) == 25.0
    nothing = np.zeros((NUM_CLASSES, NUM_CLASSES + 1), dtype=np.int64)
    assert math.isnan(mean_of_areas(list_areas(nothing)))
    assert influences_of([confusion, nothing])["1"] == 0
