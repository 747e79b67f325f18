"""torch's fused attention with the logarithm of each row's normaliser, which it knows anyway."""

from __future__ import annotations

import torch
from torch.nn import functional as F

_MATH, _FLASH, _EFFICIENT, _CUDNN = range(4)
"""``torch.nn.attention.SDPBackend``."""

_MOST_FLASH = 256
"""The widest heads of torch's flash kernel."""


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``F.scaled_dot_product_attention(q, k, v, scale=scale)`` without gradient, and normalisers.

    The kernel is the one that torch itself would take, save that cuDNN's gives way to the flash
    kernel: cuDNN makes a plan for each shape of its tensors, which took 4 ms a call on an H100
    where images came in many shapes, and the flash kernel makes none.

    Args:
        q: Queries (B, heads, tokens, d).
        k: Keys, as ``q``.
        v: Values, as ``q``.
        scale: Factor on the products of queries and keys.

    Returns:
        The output (B, heads, tokens, d), and log Σ_j exp(scale · q_i k_j) as (B, heads, tokens)
        float32, or ``None`` if torch takes no kernel that hands it out.
    """
    aten, tokens = torch.ops.aten, q.shape[2]
    if q.device.type == "cpu":  # for tests of the kernels in Triton's interpreter
        output, normalizers = aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, scale=scale
        )
        return output, normalizers
    chosen = torch._fused_sdp_choice(q, k, v, None, 0.0, False, scale=scale)
    if chosen == _CUDNN and q.shape[-1] <= _MOST_FLASH:
        chosen = _FLASH
    if chosen == _FLASH and q.shape[-1] % 8 == 0:  # torch pads other widths first
        output, normalizers = aten._scaled_dot_product_flash_attention(
            q, k, v, 0.0, False, False, scale=scale
        )[:2]
    elif chosen == _EFFICIENT:
        output, normalizers = aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, False, scale=scale
        )[:2]
        normalizers = normalizers[:, :, :tokens]  # its rows are padded
    elif chosen == _CUDNN:
        output, normalizers = aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, False, False, scale=scale
        )[:2]
        normalizers = normalizers.reshape(*q.shape[:3])  # (B, heads, tokens, 1)
    else:
        return F.scaled_dot_product_attention(q, k, v, scale=scale), None
    return output, normalizers
