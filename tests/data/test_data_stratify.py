"""Lists in two parts: every class in both, the same for a seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from adcam.data.stratify import split_stratified


def count(labels: dict[str, tuple[str, ...]], part: list[str]) -> Counter[str]:
    return Counter(name for img_id in part for name in labels[img_id] or ("none",))


def test_one_class_an_image_is_divided_exactly() -> None:
    labels = {
        f"{name}{i}": (name,) for name, n in (("a", 10), ("b", 40), ("c", 2)) for i in range(n)
    }
    labels |= {f"none{i}": () for i in range(10)}
    train, val = split_stratified(labels, 0.2, seed=0)
    assert count(labels, val) == {"a": 2, "b": 8, "c": 1, "none": 2}
    assert [i for i in labels if i in {*train, *val}] == list(labels)
    assert train == [i for i in labels if i in set(train)]


def test_several_classes_an_image_keep_their_shares() -> None:
    generator = np.random.default_rng(0)
    labels = {
        f"i{k}": tuple(sorted(set(generator.choice(list("abcdef"), generator.integers(0, 4)))))
        for k in range(400)
    }
    all_of, of_val = (
        count(labels, part) for part in (list(labels), split_stratified(labels, 0.25, 1)[1])
    )
    for name, total in all_of.items():
        assert abs(of_val[name] - 0.25 * total) <= 3, name


def test_seed_and_order_alone_decide() -> None:
    labels = {f"i{k}": ("ab"[k % 2],) for k in range(40)}
    first, again, other = (split_stratified(labels, 0.3, seed) for seed in (0, 0, 1))
    assert first == again != other


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sets(st.sampled_from("abcd"), max_size=3).map(sorted).map(tuple), min_size=2, max_size=30
    ),
    st.floats(0.05, 0.6),
)
def test_every_image_is_in_one_part_and_a_lone_class_is_learnt(
    names: list[tuple[str, ...]], share: float
) -> None:
    labels = {f"i{k}": row for k, row in enumerate(names)}
    train, val = split_stratified(labels, share, seed=0)
    assert sorted([*train, *val]) == sorted(labels)
    assert not set(train) & set(val)
    assert train and val
    if all(len(row) == 1 for row in names) and len(set(names)) < len(names):
        counts = count(labels, list(labels))
        assert all(count(labels, train)[name] for name in counts)
        assert all(count(labels, val)[name] for name, n in counts.items() if n > 1)
