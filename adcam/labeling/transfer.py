"""Between this process and a device: one copy for many arrays, which waits as little as it can."""

from __future__ import annotations

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


def to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Copy tensors of a device to the host; it is waited for once, however many there are."""
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return [copy.numpy() for copy in copies]
