"""What a network sees of images, without the network itself: for processes that only decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adcam.models.preprocess import compute_input_hw, resize_img
from adcam.settings import TestViews

BATCH_SIZE = 32
"""Images in a batch on a GPU: the first size at which an H100 is busy with DeiT-Tiny."""


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
    """Yield the indices of images that go through the network together, of equal input sizes.

    Args:
        inputs: The tensors of each image, one a scale.
        batch_size: Most images in a batch.
    """
    groups: dict[tuple[torch.Size, ...], list[int]] = {}
    for i, of_image in enumerate(inputs):
        groups.setdefault(tuple(x.shape for x in of_image), []).append(i)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
