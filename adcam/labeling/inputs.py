"""What a network sees of images, and which of them together, without the network itself.

On a GPU, images of equal input sizes share a pass. :func:`plan_groups` finds them among many images
before any is read, :func:`plan_batches` among a few that were read.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from adcam.labeling.executor import run_ahead
from adcam.models.preprocess import compute_input_hw, resize_img
from adcam.settings import TestViews

BATCH_SIZE = 32
"""Images in a batch on a GPU: the first size at which an H100 is busy with DeiT-Tiny."""

READERS = 4
"""Threads that read images, or the heads of their files."""

T = TypeVar("T")
R = TypeVar("R")

_WINDOW = 4  # batches
_WIDE_WINDOW = 128  # batches, of which only the sizes of the images are known


@dataclass(frozen=True)
class Resizer:
    """Resizes images to what a network will see of them.

    Attributes:
        views: The scales.
        patch_size: Height and width of the network's patches in pixels.
    """

    views: TestViews
    patch_size: tuple[int, int]

    def find_sizes(self, hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Return height and width at every scale of an image of this height and width.

        Raises:
            AdcamError: A scale is smaller than a patch.
        """
        return tuple(
            compute_input_hw(hw, scale, self.patch_size, keep_ratio=self.views.keep_ratio)
            for scale in self.views.scales
        )

    def __call__(self, img: np.ndarray) -> tuple[Tensor, ...]:
        """Resize an image, RGB uint8 (H, W, 3): one uint8 (3, h, w) tensor a scale.

        Raises:
            AdcamError: As :meth:`find_sizes`.
        """
        return tuple(resize_img(img, hw) for hw in self.find_sizes((img.shape[0], img.shape[1])))


def plan_batches(inputs: Sequence[Sequence[Tensor]], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of images that go through the network together, of equal input sizes."""
    groups: dict[tuple[torch.Size, ...], list[int]] = {}
    for i, of_image in enumerate(inputs):
        groups.setdefault(tuple(x.shape for x in of_image), []).append(i)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def plan_groups(
    items: Iterable[T],
    find_sizes: Callable[[T], Hashable],
    *,
    batch_size: int,
    is_done: Callable[[T], bool] = lambda item: False,
) -> Iterator[tuple[T, ...]]:
    """Yield the images of each batch: those of equal input sizes among many, unread.

    Args:
        items: All images, those that are done included, which only complete their batch.
        find_sizes: The function that finds the input sizes of an image, ``None`` where they are not
            known; those come in larger groups, to be searched when they are read.
        batch_size: Most images in a batch.
        is_done: The function that tells whether an image is done.
    """
    left = iter(items)
    with ThreadPoolExecutor(READERS) as readers:
        while window := tuple(itertools.islice(left, _WIDE_WINDOW * batch_size)):
            if all(map(is_done, window)):
                continue
            sizes: Iterable[Hashable] = itertools.repeat(None, len(window))
            if batch_size > 1:
                sizes = run_ahead(
                    lambda item: readers.submit(find_sizes, item), window, max_ahead=4 * batch_size
                )
            for group in _group_by_size(window, sizes, batch_size=batch_size):
                if not all(map(is_done, group)):
                    yield group


def _group_by_size(
    window: Sequence[T], sizes: Iterable[Hashable], *, batch_size: int
) -> Iterator[tuple[T, ...]]:
    """Yield a batch as soon as it is full; in the end those that are not."""
    groups: dict[Hashable, list[T]] = {}
    for item, of_image in zip(window, sizes, strict=True):
        group = groups.setdefault(of_image, [])
        group.append(item)
        if len(group) == (window_size(batch_size) if of_image is None else batch_size):
            yield tuple(groups.pop(of_image))
    yield from map(tuple, groups.values())


def window_size(batch_size: int) -> int:
    """Return how many images that are read anyway are searched for equal sizes."""
    return 1 if batch_size == 1 else _WINDOW * batch_size


def find_unread(find: Callable[[], T]) -> T | None:
    """Find something by the height and width of an image, of which only the head is read.

    Returns:
        What was found; ``None`` where that fails, since reading the image will say why.
    """
    with suppress(ValueError, ArithmeticError, OSError, MemoryError, RuntimeError):
        return find()
    return None


def in_groups(
    submit: Callable[[T], Future[R]], groups: Iterable[Sequence[T]], *, max_ahead: int
) -> Iterator[list[R]]:
    """Yield the results of each group of images, in order.

    Args:
        submit: The function that starts the work on an image.
        groups: The groups, which are pulled as :func:`adcam.labeling.executor.run_ahead` does.
        max_ahead: The bound on the images under way.
    """
    sizes: deque[int] = deque()

    def note(group: Sequence[T]) -> Sequence[T]:
        sizes.append(len(group))
        return group

    done = run_ahead(submit, (x for group in groups for x in note(group)), max_ahead=max_ahead)
    for first in done:
        yield [first, *itertools.islice(done, sizes.popleft() - 1)]


def read_in_groups(
    items: Iterable[T],
    find_sizes: Callable[[T], Hashable],
    read: Callable[[T], R],
    *,
    batch_size: int,
) -> Generator[list[R], None, None]:
    """Read images in threads, and yield those of each batch of :func:`plan_groups` together.

    Two batches are read ahead. Closing it ends the threads.
    """
    groups = plan_groups(items, find_sizes, batch_size=batch_size)
    with ThreadPoolExecutor(READERS) as readers:
        ahead = 2 * batch_size + READERS
        yield from in_groups(lambda item: readers.submit(read, item), groups, max_ahead=ahead)
