"""Images through network and method: joins models and cams; touches no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from adcam.cams import Method
from adcam.cams.fuse import fuse_maps
from adcam.errors import AdcamError
from adcam.models.preprocess import compute_input_hw, to_inputs
from adcam.structures import ClassMaps, TokenMaps


class Network(Protocol):
    """What the pipeline needs of a classifier."""

    name: str
    """What errors call it."""

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
            raise AdcamError(f"scales must be positive sides in pixels, got {self.scales}")


def find_layer_sets(method: Method, network: Network) -> tuple[tuple[int, ...], ...]:
    """The sets of blocks whose attention a method reads of a network.

    Raises:
        AdcamError: If the network has no such blocks; the message names it.
    """
    try:
        return method.layer_sets(network.depth)
    except ValueError as error:
        raise AdcamError(f"{network.name}: {error}") from error


def make_inputs(network: Network, img: np.ndarray, views: Views) -> tuple[Tensor, ...]:
    """What the network sees of an image: (3, h, w) normalised, one per scale, not mirrored.

    Args:
        network: The classifier, asked for its patch and the statistics of its pixels.
        img: RGB uint8 (H, W, 3).
        views: Scales; mirroring is left to :func:`run_batch`.

    Raises:
        AdcamError: A scale is smaller than a patch.
    """
    mean, std = network.pixel_stats
    ori_hw = (img.shape[0], img.shape[1])
    sizes = (
        compute_input_hw(ori_hw, scale, network.patch_size, keep_ratio=views.keep_ratio)
        for scale in views.scales
    )
    return tuple(to_inputs(img, input_hw, mean=mean, std=std) for input_hw in sizes)


def run_batch(
    network: Network,
    inputs: Sequence[Sequence[Tensor]],
    layer_sets: Sequence[tuple[int, ...]],
    *,
    flip: bool,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> list[TokenMaps]:
    """Token maps of images of equal input sizes, one batch a scale.

    Args:
        network: The classifier, on ``device``, in eval mode.
        inputs: Of :func:`make_inputs`, one per image.
        layer_sets: Sets of blocks whose attention the methods need.
        flip: Whether each image is followed by its mirrored version.
        device: Where to compute.
        dtype: ``float32``, or ``bfloat16``/``float16`` for autocast.

    Returns:
        One per scale, with B = 2 · images if ``flip`` (image, mirrored image, next image, …), else
        B = images.
    """
    passes = []
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
    ):
        for of_scale in zip(*inputs, strict=True):
            batch = torch.stack(of_scale).to(device)
            if flip:
                batch = torch.stack([batch, batch.flip(-1)], dim=1).flatten(0, 1)
            passes.append(network.token_maps(batch, layer_sets=layer_sets))
    return passes


def run_network(
    network: Network,
    img: np.ndarray,
    views: Views,
    layer_sets: Sequence[tuple[int, ...]],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> list[TokenMaps]:
    """Token maps of every scale of one image, mirrored version in the same batch.

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
    inputs = make_inputs(network, img, views)
    return run_batch(network, [inputs], layer_sets, flip=views.flip, device=device, dtype=dtype)


def compute_scores(passes: Sequence[TokenMaps]) -> np.ndarray:
    """Class probabilities of one image, (C,) float32.

    The sigmoid of the logits averaged over scales and views.
    """
    return compute_batch_scores(passes, 1)[0]


def compute_batch_scores(passes: Sequence[TokenMaps], num_images: int) -> np.ndarray:
    """Class probabilities of every image of :func:`run_batch`, (images, C) float32."""
    logits = torch.cat([maps.logits.unflatten(0, (num_images, -1)) for maps in passes], dim=1)
    return logits.float().mean(dim=1).sigmoid().cpu().numpy()


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
    return compute_batch_maps(passes, [class_ids], method, [ori_hw])[0]


def compute_batch_maps(
    passes: Sequence[TokenMaps],
    class_ids: Sequence[Sequence[int]],
    method: Method,
    ori_hws: Sequence[tuple[int, int]],
) -> list[ClassMaps]:
    """As :func:`compute_class_maps`, for every image of :func:`run_batch` at once.

    Args:
        passes: Of :func:`run_batch`.
        class_ids: Present classes of each image; their numbers may differ.
        method: Of :mod:`adcam.cams`.
        ori_hws: Height and width of each image.
    """
    present = [tuple(sorted(set(ids))) for ids in class_ids]
    most = max(map(len, present))
    if most == 0:
        return [ClassMaps((), np.zeros((0, *hw), dtype=np.float32)) for hw in ori_hws]
    # A batch has one number of classes: images with fewer compute their last again, not kept.
    padded = torch.tensor([_repeat_last(ids, most) for ids in present])  # (images, K)
    num_views = len(passes[0].cam) // len(present)
    with torch.inference_mode():
        ids = padded.to(passes[0].cam.device).repeat_interleave(num_views, dim=0)
        grids = [method(maps, ids).unflatten(0, (-1, num_views)) for maps in passes]
        return [
            ClassMaps(
                present[i],
                fuse_maps([grid[i, :, : len(present[i])] for grid in grids], hw).cpu().numpy(),
            )
            if present[i]
            else ClassMaps((), np.zeros((0, *hw), dtype=np.float32))
            for i, hw in enumerate(ori_hws)
        ]


def _repeat_last(ids: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Fill up with the last id, which is no rival of itself."""
    return (*ids, *[ids[-1] if ids else 0] * (length - len(ids)))
