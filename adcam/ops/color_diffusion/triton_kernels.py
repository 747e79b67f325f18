"""Diffusion along colour in Triton: a launch for the weights and one for each step.

Tensors are contiguous: maps (B, K, H, W), images (B, 3, H, W), weights (B, O, H, W). What lies
outside the image is the pixel at its border, as in reference.py.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from adcam.ops import _launch
from adcam.ops.color_diffusion.reference import find_offsets, weigh_distances

_PIXELS = 128


def diffuse_by_color(
    maps: torch.Tensor,
    img: torch.Tensor,
    num_steps: int,
    dilations: tuple[int, ...],
    contrast: float,
    distance_weight: float,
) -> torch.Tensor:
    """As :func:`adcam.ops.color_diffusion.reference.diffuse_by_color`, float32, no gradient."""
    shape = maps.shape
    if num_steps == 0 or maps.numel() == 0:
        return maps
    maps = maps.detach().reshape(-1, *shape[-3:]).contiguous()
    img = img.detach().reshape(-1, *img.shape[-3:]).contiguous()
    images, num_maps, height, width = maps.shape
    offsets, nearness = _neighbors(dilations, contrast, distance_weight, maps.device)
    count = len(nearness)
    weights = maps.new_empty((images, count, height, width))
    blocks = triton.cdiv(height * width, _PIXELS)
    _launch.launch(
        weigh_colors, (blocks * 4, images), img, offsets, nearness, weights, height, width,
        1.0 / contrast, 1.0 / (1.0 + distance_weight), count, triton.next_power_of_2(count),
        _PIXELS // 4, num_warps=4, num_stages=1,
    )  # fmt: skip
    chunk = min(triton.next_power_of_2(num_maps), 4)
    targets = [torch.empty_like(maps), torch.empty_like(maps) if num_steps > 1 else maps]
    for step in range(num_steps):
        target = targets[step % 2]
        _launch.launch(
            step_by_color, (blocks, triton.cdiv(num_maps, chunk), images), maps, weights, offsets,
            target, num_maps, height, width, count, chunk, _PIXELS, num_warps=4, num_stages=1,
        )  # fmt: skip
        maps = target
    return maps.reshape(shape)


@functools.lru_cache(maxsize=8)
def _neighbors(
    dilations: tuple[int, ...], contrast: float, distance_weight: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets (O, 2) int32 and what distance adds to each weight, (O) float32.

    Remembered, since making them copies to the device, which waits.
    """
    offsets = find_offsets(dilations)
    nearness = distance_weight * weigh_distances(offsets, contrast, torch.float32)
    return torch.tensor(offsets, dtype=torch.int32, device=device), nearness.to(device)


@triton.jit(do_not_specialize=["height", "width"])
def weigh_colors(
    img,
    offsets,
    nearness,
    weights,
    height,
    width,
    inverse_contrast,
    inverse_sum,
    count: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
):
    """Weights of the neighbours of some pixels. Grid (pixels / block, B)."""
    image = tl.program_id(1).to(tl.int64)
    size = height * width
    pixel = tl.program_id(0) * block + tl.arange(0, block)
    inside = pixel < size
    index = tl.arange(0, padded)
    is_one = (index < count)[:, None] & inside[None, :]
    down = tl.load(offsets + 2 * index, mask=index < count, other=0)
    right = tl.load(offsets + 2 * index + 1, mask=index < count, other=0)
    y = tl.minimum(tl.maximum((pixel // width)[None, :] + down[:, None], 0), height - 1)
    x = tl.minimum(tl.maximum((pixel % width)[None, :] + right[:, None], 0), width - 1)
    distance = tl.zeros((padded, block), tl.float32)
    for channel in tl.static_range(3):
        base = img + (image * 3 + channel) * size
        own = tl.load(base + pixel, mask=inside, other=0)
        near = tl.load(base + y * width + x, mask=is_one, other=0)
        mean = tl.sum(near, axis=0) / count
        rest = tl.where(is_one, near - mean[None, :], 0.0)
        sigma = tl.sqrt(tl.sum(rest * rest, axis=0) / (count - 1))
        # Where all neighbours have one colour, they count alike.
        inverse = tl.where(sigma > 0, inverse_contrast / tl.where(sigma > 0, sigma, 1.0), 0.0)
        scaled = (near - own[None, :]) * inverse[None, :]
        distance += scaled * scaled
    likeness = tl.where(is_one, distance * (-1.0 / 3.0), float("-inf"))
    largest = tl.max(likeness, axis=0)
    raised = tl.exp(likeness - tl.where(inside, largest, 0.0)[None, :])
    by_color = raised / tl.where(inside, tl.sum(raised, axis=0), 1.0)[None, :]
    extra = tl.load(nearness + index, mask=index < count, other=0)
    value = (by_color + extra[:, None]) * inverse_sum
    place = (image * count + index.to(tl.int64)[:, None]) * size + pixel[None, :]
    tl.store(weights + place, value, mask=is_one)


@triton.jit(do_not_specialize=["num_maps", "height", "width"])
def step_by_color(
    maps,
    weights,
    offsets,
    stepped,
    num_maps,
    height,
    width,
    count: tl.constexpr,
    chunk: tl.constexpr,
    block: tl.constexpr,
):
    """One step of up to ``chunk`` maps. Grid (pixels / block, K / chunk, B)."""
    image = tl.program_id(2).to(tl.int64)
    size = height * width
    pixel = tl.program_id(0) * block + tl.arange(0, block)
    index = tl.program_id(1) * chunk + tl.arange(0, chunk)
    inside = pixel < size
    mask = (index < num_maps)[:, None] & inside[None, :]
    source = (image * num_maps + index.to(tl.int64)[:, None]) * size
    x, y = pixel % width, pixel // width
    total = tl.zeros((chunk, block), tl.float32)
    for number in tl.static_range(count):  # unrolled: the loads do not wait for each other
        down = tl.load(offsets + 2 * number)
        right = tl.load(offsets + 2 * number + 1)
        near = tl.minimum(tl.maximum(y + down, 0), height - 1) * width
        near += tl.minimum(tl.maximum(x + right, 0), width - 1)
        weight = tl.load(weights + (image * count + number) * size + pixel, mask=inside, other=0)
        total += weight[None, :] * tl.load(maps + source + near[None, :], mask=mask, other=0)
    tl.store(stepped + source + pixel[None, :], total, mask=mask)
