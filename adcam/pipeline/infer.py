"""One image through network and methods: joins models, cams and masks; touches no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from adcam.cams import Method
from adcam.cams.fuse import fuse_maps
from adcam.models.preprocess import compute_input_hw, to_inputs
from adcam.structures import ClassMaps, TokenMaps


class Network(Protocol):
    """What the pipeline needs of a classifier."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        ...

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        ...

    @property
    def pixel_stats(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel mean and standard deviation of RGB in [0, 1]."""
        ...

    def token_maps(
        self, inputs: Tensor, *, layer_sets: Sequence[tuple[int, ...]] = ()
    ) -> TokenMaps:
        """Logits, class maps and attention of (B, 3, H, W) normalised images."""
        ...


@dataclass(frozen=True)
class Views:
    """Which versions of an image the network sees.

    Attributes:
        scales: Sides in pixels (:func:`adcam.models.preprocess.compute_input_hw`). More scales
            catch objects of more sizes; time and memory grow with the largest.
        flip: Also the mirrored image: twice the time, smoother maps.
        keep_ratio: Keep the aspect ratio to the nearest patch, else squares.
    """

    scales: tuple[int, ...] = (448,)
    flip: bool = False
    keep_ratio: bool = True

    def __post_init__(self) -> None:
        if not self.scales or any(scale <= 0 for scale in self.scales):
            raise ValueError(f"scales must be positive sides in pixels, got {self.scales}")


def run_network(
    network: Network,
    img: np.ndarray,
    views: Views,
    layer_sets: Sequence[tuple[int, ...]],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> list[TokenMaps]:
    """Token maps of every scale, mirrored version in the same batch.

    Args:
        network: The classifier, on ``device``, in eval mode.
        img: RGB uint8 (H, W, 3).
        views: Scales and mirroring.
        layer_sets: Sets of blocks whose attention the methods need.
        device: Where to compute.
        dtype: ``float32``, or ``bfloat16``/``float16`` for autocast.

    Returns:
        One per scale, with B = 2 (image, mirrored image) if ``views.flip`` else 1.
    """
    mean, std = network.pixel_stats
    passes = []
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
    ):
        for scale in views.scales:
            input_hw = compute_input_hw(
                (img.shape[0], img.shape[1]),
                scale,
                network.patch_size,
                keep_ratio=views.keep_ratio,
            )
            inputs = to_inputs(img, input_hw, mean=mean, std=std).to(device).unsqueeze(0)
            if views.flip:
                inputs = torch.cat([inputs, inputs.flip(-1)])
            passes.append(network.token_maps(inputs, layer_sets=layer_sets))
    return passes


def compute_scores(passes: Sequence[TokenMaps]) -> np.ndarray:
    """Class probabilities, (C,) float32: sigmoid of the logits averaged over scales and views."""
    logits = torch.cat([maps.logits for maps in passes]).float().mean(dim=0)
    return logits.sigmoid().cpu().numpy()


def compute_class_maps(
    passes: Sequence[TokenMaps],
    class_ids: Sequence[int],
    method: Method,
    ori_hw: tuple[int, int],
) -> ClassMaps:
    """Maps of the present classes by one method, fused over scales at image size.

    Args:
        passes: Of :func:`run_network`, with the attention that ``method`` needs.
        class_ids: The K present classes, in any order; only these are computed.
        method: Of :mod:`adcam.cams`.
        ori_hw: Height and width of the image.

    Returns:
        The maps; with no class, (0, H, W).
    """
    class_ids = tuple(sorted(set(class_ids)))
    if not class_ids:
        return ClassMaps((), np.zeros((0, *ori_hw), dtype=np.float32))
    with torch.inference_mode():
        grids = [
            method(maps, torch.tensor([class_ids] * len(maps.cam), device=maps.cam.device))
            for maps in passes
        ]
        return ClassMaps(class_ids, fuse_maps(grids, ori_hw).cpu().numpy())
