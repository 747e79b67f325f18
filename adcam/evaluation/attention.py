"""What AD-CAM reads of a network: the attention between patches, and what it is refined to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from adcam.cams import ADCAM
from adcam.cams.activation import read_patch_attention
from adcam.evaluation.loop import LoopOptions
from adcam.evaluation.mapping import Classifier
from adcam.labeling.map_maker import MapMaker
from adcam.ops.common_neighbor import common_neighbor
from adcam.report.explorer import PatchAttention
from adcam.settings import MethodSpec, TestViews

GRID_SIDE = 28
"""The most patches on a side that are kept: N² numbers are stored, 600 kB at 28 by 28."""


def find_attentive(specs: Sequence[MethodSpec]) -> MethodSpec | None:
    """The last method of a comparison that refines attention by common neighbours, if any does."""
    refining = [spec for spec in specs if spec.method and isinstance(spec.build(), ADCAM)]
    return refining[-1] if refining else None


def read_attention(
    classifier: Classifier, spec: MethodSpec, img: np.ndarray, *, options: LoopOptions
) -> PatchAttention:
    """Compute the attention between the patches of an image, and its common-neighbour affinity.

    One forward pass at the method's first scale, not mirrored.

    Args:
        classifier: The network.
        spec: A method that :func:`find_attentive` found.
        img: The image, RGB uint8 (H, W, 3).
        options: Device and type.

    Returns:
        Both at :data:`GRID_SIDE` patches a side at most; finer grids are averaged.
    """
    method = spec.build()
    views = TestViews(spec.views.scales[:1], flip=False, keep_ratio=spec.views.keep_ratio)
    maker = MapMaker(
        classifier.network, [method], views=views, device=options.device, dtype=options.dtype
    )
    (maps,) = maker.run([img]).token_maps
    if not isinstance(method, ADCAM):
        raise TypeError(f"{spec.name} does not refine attention")
    attn = read_patch_attention(maps, method.layers)
    affinity = common_neighbor(attn, similarity=method.similarity, power=method.power)
    small_hw = tuple(min(side, GRID_SIDE) for side in maps.grid_hw)
    attn_bytes, affinity_bytes = (
        _to_bytes(_pool(matrix[0], maps.grid_hw, (small_hw[0], small_hw[1])))
        for matrix in (attn, affinity)
    )
    return PatchAttention((small_hw[0], small_hw[1]), attn_bytes, affinity_bytes)


def _pool(matrix: Tensor, grid_hw: tuple[int, int], small_hw: tuple[int, int]) -> Tensor:
    """Average both sides of (N, N) over groups of patches; (n, n) with n the small grid's size."""
    matrix = matrix.float().cpu()
    if grid_hw == small_hw:
        return matrix
    across = adaptive_avg_pool2d(matrix.unflatten(1, grid_hw), small_hw).flatten(1)  # (N, n)
    return adaptive_avg_pool2d(across.T.unflatten(1, grid_hw), small_hw).flatten(1).T  # (n, n)


def _to_bytes(matrix: Tensor) -> np.ndarray:
    """Each row in 255ths of its largest value."""
    largest = matrix.amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (255 * matrix / largest).round().to(torch.uint8).numpy()
