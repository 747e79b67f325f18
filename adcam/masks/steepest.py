"""The level at which a map is steepest: a background threshold without ground truth.

The outline of the mask at a level t runs between pixels of which one is above t and the other is
not. How far the map jumps there, in the mean over the outline, says how sharply the map itself
separates the two sides: on the slope at the border of an object the jumps are large, within the
object and within the background they are small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LEVELS = np.arange(20, 91) / 100
"""The levels that are tried: maps are scaled to [0, 1], so lower and higher ones are noise."""

PULL = 0.2
"""How much of the steepest jump a level must gain to be 0.1 away from the one expected."""

PER_CLASS = 0.06
"""How much higher the level is expected for each further class of an image.

The highest of several maps is higher than one map everywhere, in the background too.
"""

_SIDE = 128  # pixels: maps vary more slowly than that, and noise of single pixels is left out
_MIN_LENGTH = 4  # pairs of pixels: a shorter outline says nothing
_WIDTH = 2  # levels: the standard deviation that curves are smoothed by
_UNIT = 2**40  # parts that a jump of 1 is counted in on a device


def compute_jumps(peak: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum the jumps of a map along its outline at every level.

    Args:
        peak: The highest score of each pixel, (H, W) in [0, 1]; larger maps are sampled to about
            128 pixels a side.

    Returns:
        The sum of the jumps and the length of the outline in pairs of neighbouring pixels, each
        (T,) float64, at :data:`LEVELS`. Their ratio is the mean jump.
    """
    step = max(1, round(max(peak.shape) / _SIDE))
    small = peak[step // 2 :: step, step // 2 :: step]
    num = len(LEVELS)
    jumps, length = np.zeros(num + 1), np.zeros(num + 1)
    for a, b in ((small[:, 1:], small[:, :-1]), (small[1:], small[:-1])):
        low, high = np.minimum(a, b).ravel(), np.maximum(a, b).ravel()
        # A pair is part of the outline at the levels t with low <= t < high.
        first, end = (np.searchsorted(LEVELS, side) for side in (low, high))
        jump = (high - low).astype(np.float64)
        for total, weight in ((jumps, jump), (length, np.ones_like(jump))):
            total += np.bincount(first, weight, num + 1) - np.bincount(end, weight, num + 1)
    return jumps.cumsum()[:num], length.cumsum()[:num]


def find_steepest_level(peak: np.ndarray, *, expected: float, num_classes: int) -> float:
    """Return the level near ``expected`` at which the map is steepest.

    It is the t with the largest J(t) / max J − ``PULL`` ((t − t₀) / 0.1)², where J is the mean jump
    over the outline and t₀ is ``expected`` + ``PER_CLASS`` (``num_classes`` − 1).

    Args:
        peak: The highest score of each pixel, (H, W) in [0, 1].
        expected: The level expected for an image of one class, in [0, 1].
        num_classes: The number of classes of the image.

    Returns:
        A level in [0.2, 0.9]. A constant map has no outline: the level nearest to the expected one.
    """
    steepness = _smooth(mean_jump(peak))
    steepness /= max(float(steepness.max()), 1e-12)
    center = expected + PER_CLASS * max(num_classes - 1, 0)
    return float(LEVELS[(steepness - PULL * ((LEVELS - center) / 0.1) ** 2).argmax()])


def find_steepest_levels(
    peaks: Sequence[Tensor], *, expected: float, num_classes: Sequence[int]
) -> Tensor:
    """As :func:`find_steepest_level`, of several maps where they are, without waiting for it.

    Sums are of whole numbers, so that they do not depend on their order; apart from levels that
    are equally good, the results are the same. All maps are looked at together, whatever their
    sizes, which takes few launches.

    Args:
        peaks: Groups of maps of equal sizes: the highest score of each pixel, (B, H, W) in [0, 1].
        expected: As for :func:`find_steepest_level`.
        num_classes: The number of classes of the images of each group.

    Returns:
        (images,) float64, the level of each map, one group after the other.
    """
    small = _sample(peaks)
    levels = torch.arange(20, 91, dtype=torch.float64, device=small.device) / 100
    num = len(levels)
    sums = torch.zeros(2, len(small), num + 1, dtype=torch.int64, device=small.device)
    for a, b in ((small[..., 1:], small[..., :-1]), (small[:, 1:], small[:, :-1])):
        low, high = torch.minimum(a, b).flatten(1), torch.maximum(a, b).flatten(1)
        first, end = (torch.searchsorted(levels, side.double()) for side in (low, high))
        # Beyond a map low and high are both NaN: what is added at one level is taken away there.
        jump = ((high - low).nan_to_num().double() * _UNIT).round().long()
        for total, weight in zip(sums, (jump, torch.ones_like(jump)), strict=True):
            total.scatter_add_(1, first, weight).scatter_add_(1, end, -weight)
    jumps, length = sums.cumsum(dim=-1)[..., :num]
    mean = jumps.double() / _UNIT / length.clamp_min(1)
    mean = torch.where(length >= _MIN_LENGTH, mean, 0)
    reach, kernel = 3 * _WIDTH, torch.from_numpy(_kernel()).to(small.device, non_blocking=True)
    padded = torch.cat([mean[:, :1].expand(-1, reach), mean, mean[:, -1:].expand(-1, reach)], dim=1)
    steepness = (padded.unfold(1, len(kernel), 1) * kernel).sum(dim=-1)
    steepness = steepness / steepness.amax(dim=1, keepdim=True).clamp_min(1e-12)
    centers = [
        expected + PER_CLASS * max(num - 1, 0)
        for num, group in zip(num_classes, peaks, strict=True)
        for _ in range(len(group))
    ]
    center = torch.tensor(centers, dtype=torch.float64).to(small.device, non_blocking=True)
    gain = steepness - PULL * ((levels - center[:, None]) / 0.1) ** 2
    return levels[gain.argmax(dim=1)]


def _sample(peaks: Sequence[Tensor]) -> Tensor:
    """Sample all maps as :func:`compute_jumps` does: (images, h, w), NaN beyond smaller ones."""
    samples = []
    for group in peaks:
        step = max(1, round(max(group.shape[1:]) / _SIDE))
        samples.append(group[:, step // 2 :: step, step // 2 :: step])
    heights, widths = zip(*(sample.shape[1:] for sample in samples), strict=True)
    size = (sum(map(len, samples)), max(heights), max(widths))
    small = samples[0].new_full(size, torch.nan)
    for part, sample in zip(small.split([*map(len, samples)]), samples, strict=True):
        part[:, : sample.shape[1], : sample.shape[2]] = sample
    return small


def find_steepest_of_set(total: np.ndarray) -> float | None:
    """Return the level at which the maps of a set of images are steepest in the mean.

    Nothing is expected of it, so that it needs many images: a hundred or more.

    Args:
        total: The sum of :func:`mean_jump` over the images, (T,).

    Returns:
        A level in [0.2, 0.9]; ``None`` where no map has an outline.
    """
    return float(LEVELS[_smooth(total).argmax()]) if total.any() else None


def mean_jump(peak: np.ndarray) -> np.ndarray:
    """Return the mean jump of a map over its outline at every level, (T,); 0 where that is short.

    Args:
        peak: The highest score of each pixel, (H, W) in [0, 1].
    """
    jumps, length = compute_jumps(peak)
    mean: np.ndarray = np.where(length >= _MIN_LENGTH, jumps / np.maximum(length, 1), 0)
    return mean


def _smooth(curve: np.ndarray) -> np.ndarray:
    return np.convolve(np.pad(curve, 3 * _WIDTH, mode="edge"), _kernel(), mode="valid")


def _kernel() -> np.ndarray:
    reach = 3 * _WIDTH
    kernel: np.ndarray = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _WIDTH) ** 2)
    return kernel
