"""Between this process and a device: one copy for many arrays, which waits as little as it can."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def send_bytes(sources: Sequence[Tensor], device: torch.device) -> Tensor:
    """Send tensors of bytes to a device in one piece, which is not waited for.

    Args:
        sources: uint8 tensors of any shapes on the host.
        device: Where they go; to a GPU from pinned memory.

    Returns:
        All bytes, one tensor after the other.
    """
    sizes = [source.numel() for source in sources]
    host = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for part, source in zip(host.split(sizes), sources, strict=True):
        part.copy_(source.reshape(-1))
    return host.to(device, non_blocking=True)


def find_stream(device: torch.device, name: str) -> torch.cuda.Stream:
    """Find the stream of a GPU that has a name, the same one whenever it is asked for.

    What was freed is given out again in its own stream only (``c10/cuda/CUDACachingAllocator.cpp``
    of pytorch/pytorch): with streams of its own, each run in a process would take its memory beside
    that of the runs before. And only 32 streams are made, one of which is returned to who asks
    for another (``c10/cuda/CUDAStream.h``): a graph could be captured in the stream of a lane.

    Args:
        device: The GPU.
        name: What the stream is for.
    """
    return _make_stream(torch.cuda.current_device() if device.index is None else device.index, name)


@functools.cache
def _make_stream(index: int, name: str) -> torch.cuda.Stream:
    return torch.cuda.Stream(index)


def send_back(tensor: Tensor) -> Tensor:
    """Send a tensor of a GPU to the host, into pinned memory, without waiting for it."""
    return tensor.to("cpu", non_blocking=tensor.is_cuda)


def to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Copy tensors of a device to the host; it is waited for once, however many there are."""
    copies = [send_back(tensor) for tensor in tensors]
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return [copy.numpy() for copy in copies]
