"""A list of images in two, every class in both: for training and validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def split_stratified(
    labels: Mapping[str, Sequence[str]], share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Draw a list from labelled images so that each class keeps its share in it.

    Iterative stratification (Sechidis et al., ECML PKDD 2011): the rarest class is dealt first,
    its images in random order, each to the part that lacks most of that class. Images without a
    class count as a class of their own. A class of two images or more is in both parts wherever no
    other class stands against it; of a single image, it is in the first. Of two images or more,
    neither part is empty.

    Args:
        labels: The class names of each image; ``()`` for none.
        share: The share of the second part, in (0, 1). A larger one validates more surely, and
            leaves less to learn from.
        seed: The seed of the order within a class; the same seed gives the same parts.

    Returns:
        The image ids of the first and of the second part, each in the order of ``labels``.
    """
    names_of = {img_id: tuple(names) or (_NONE,) for img_id, names in labels.items()}
    ids = np.random.default_rng(seed).permutation(list(labels)).tolist()
    order = {img_id: position for position, img_id in enumerate(ids)}
    counts = _count(names_of.values())
    lacking = [_find_wanted(counts, 1 - share), _find_wanted(counts, share)]
    part_of: dict[str, int] = {}
    while len(part_of) < len(names_of):
        waiting = {i: names for i, names in names_of.items() if i not in part_of}
        left = _count(waiting.values())
        rarest = min(left.keys() - {_ALL}, key=lambda name: (left[name], name))
        for img_id in sorted((i for i in waiting if rarest in waiting[i]), key=order.__getitem__):
            first, second = ((part[rarest], part[_ALL]) for part in lacking)
            part_of[img_id] = int(second > first)
            for name in (*names_of[img_id], _ALL):
                lacking[part_of[img_id]][name] -= 1
    if len(set(part_of.values())) == 1 < len(ids):
        part_of[ids[-1]] = 1 - part_of[ids[-1]]
    return [i for i in labels if not part_of[i]], [i for i in labels if part_of[i]]


# No class has these names: one is empty, the other holds a line break.
_NONE, _ALL = "", "\n"


def _count(images: Iterable[Sequence[str]]) -> Counter[str]:
    """The number of images of each class, and of all images."""
    return Counter(name for names in images for name in (*names, _ALL))


def _find_wanted(counts: Mapping[str, int], share: float) -> dict[str, float]:
    """How many images of each class a part should get; at least one of those that have two."""
    return {
        name: min(max(count * share, 1.0), count - 1.0) if count > 1 else float(share > 0.5)
        for name, count in counts.items()
    }
