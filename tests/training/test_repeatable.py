"""Randomness that a resumed training repeats."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from adcam.training import repeatable
from adcam.training.repeatable import (
    RepeatableDataset,
    RepeatableEpochs,
    RepeatableSampler,
    RepeatableSteps,
    balance_weights,
    seed_everything,
)


def draw(sampler: Any, count: int) -> list[tuple[int, int]]:
    return list(itertools.islice(iter(sampler), count))


def test_every_pass_holds_every_image_once_in_another_order() -> None:
    draws = draw(RepeatableSampler(7, seed=3), 21)
    assert [position for _, position in draws] == list(range(21))
    passes = [[index for index, _ in draws[i : i + 7]] for i in (0, 7, 14)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3


def test_an_image_counts_as_often_as_its_rarest_class() -> None:
    class_ids = [(0,), (0,), (0,), (0, 1), (2,), ()]  # shares 4, 1, 1 of 6
    assert balance_weights(class_ids, 0.5).tolist() == [1, 1, 1, 2, 2, 1]
    assert balance_weights(class_ids, 1).tolist() == [1, 1, 1, 4, 4, 1]
    assert balance_weights(class_ids, 0).tolist() == [1] * 6
    assert balance_weights([(), ()], 0.5).tolist() == [1, 1]


def test_weighted_passes_hold_images_in_proportion() -> None:
    weights = np.array([1.0, 1.0, 2.0, 4.0, 0.5, 1.5])  # a pass of 6: 0.6, 0.6, 1.2, 2.4, 0.3, 0.9
    draws = draw(RepeatableSampler(6, seed=2, weights=weights), 6 * 2000)
    assert [position for _, position in draws] == list(range(len(draws)))
    passes = np.array([index for index, _ in draws]).reshape(2000, 6)
    counts = np.stack([np.bincount(one, minlength=6) for one in passes])
    expected = 6 * weights / weights.sum()
    assert (np.abs(counts - expected) < 1).all()  # floor or ceil of it, in each pass
    np.testing.assert_allclose(counts.mean(0), expected, atol=0.05)
    assert len(set(passes[:, 0])) == 6  # any image may come first


def test_equal_weights_draw_every_image_once_a_pass() -> None:
    draws = draw(RepeatableSampler(7, seed=3, weights=np.full(7, 0.3)), 700)
    passes = np.array([index for index, _ in draws]).reshape(100, 7)
    assert (np.sort(passes, axis=1) == np.arange(7)).all()


@pytest.mark.parametrize("weights", [None, np.arange(1.0, 8)], ids=["alike", "weighted"])
@pytest.mark.parametrize("skipped", [0, 1, 6, 7, 20])
def test_skipping_is_the_same_as_drawing(skipped: int, weights: np.ndarray | None) -> None:
    whole = draw(RepeatableSampler(7, seed=3, weights=weights), 30)
    resumed = RepeatableSampler(7, seed=3, weights=weights)
    resumed.skip(skipped)
    assert draw(resumed, 30 - skipped) == whole[skipped:]


def test_one_of_several_processes_skips_its_own_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeatable, "get_dist_info", lambda: (1, 3))
    whole = draw(RepeatableSampler(7, seed=3), 12)
    resumed = RepeatableSampler(7, seed=3)
    resumed.skip(5)
    assert draw(resumed, 7) == whole[5:]


@pytest.mark.parametrize("kind", ["steps", "epochs"])
def test_processes_share_a_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    for rank in range(3):
        place = (rank, 3)
        monkeypatch.setattr(repeatable, "get_dist_info", lambda place=place: place)
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda place=place: place)
        if kind == "steps":
            seen += draw(RepeatableSampler(12, seed=0), 4)
        else:
            seen += RepeatableEpochs(range(12), shuffle=True, seed=0)  # type: ignore[arg-type]
    assert Counter(index for index, _ in seen) == Counter(range(12))
    assert sorted(position for _, position in seen) == list(range(12))


def test_positions_of_epochs_follow_on() -> None:
    sampler = RepeatableEpochs(range(5), shuffle=True, seed=1)  # type: ignore[arg-type]
    first = list(sampler)
    sampler.set_epoch(1)
    assert [position for _, position in [*first, *sampler]] == list(range(10))


class Noise(Dataset[Any]):
    """Items that depend on all three generators."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))


def test_items_depend_on_seed_and_position_alone() -> None:
    def read(num_workers: int, skipped: int, seed: int = 0) -> list[Any]:
        sampler = RepeatableSampler(6, seed=5)
        sampler.skip(skipped)
        loader = DataLoader(
            RepeatableDataset(Noise(), seed),
            batch_size=2,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=list,
        )
        batches = itertools.islice(iter(loader), (12 - skipped) // 2)
        return [item for batch in batches for item in batch]

    whole = read(0, 0)
    assert len(set(whole)) == 12  # the same image is drawn anew in the second pass
    assert read(2, 0) == whole
    assert read(0, 4) == whole[4:]
    assert read(0, 0, seed=1) != whole


def test_each_step_of_each_process_has_its_own_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_in_step(step: int, rank: int = 0, seed: int = 3) -> float:
        monkeypatch.setattr(repeatable, "get_dist_info", lambda: (rank, 2))
        hook: Any = RepeatableSteps(seed)
        hook.before_train_iter(SimpleNamespace(iter=step), 0)
        return float(torch.rand(()))

    drawn = [draw_in_step(5), draw_in_step(6), draw_in_step(5, rank=1), draw_in_step(5, seed=4)]
    item = RepeatableDataset(Noise(), 3)[0, 5]  # the item at the position 5
    assert len({*drawn, item[3]}) == 5
    assert draw_in_step(5) == drawn[0]


def test_each_number_of_the_entropy_matters() -> None:
    values = set()
    for entropy in ((0, 0), (0, 1), (1, 0), (0, 0, 1)):
        seed_everything(*entropy)
        values.add((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert len(values) == 4
