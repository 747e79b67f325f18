"""A fast forward whose backward is that of a slower function with the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from adcam.ops._checks import without_autocast


def recompute_backward(
    fast: Callable[..., torch.Tensor], slow: Callable[..., torch.Tensor], *tensors: torch.Tensor
) -> torch.Tensor:
    """``fast(*tensors)``, with the gradient of ``slow(*tensors)``, computed when it is asked for.

    Between forward and backward only ``tensors`` are kept, where ``slow`` alone would keep what
    each of its steps needs. Its price is one more forward. Can be differentiated twice.

    Args:
        fast: Computes the result; autograd does not see inside.
        slow: Computes the same, differentiably.
        tensors: The arguments of both functions, and all tensors that gradients flow to.
    """
    if records_gradient(*tensors):
        return _Recompute.apply(fast, slow, *tensors)
    return fast(*tensors)


def records_gradient(*tensors: torch.Tensor) -> bool:
    """Whether autograd records what is done with these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        fast: Callable[..., torch.Tensor],
        slow: Callable[..., torch.Tensor],
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        ctx.slow = slow
        return fast(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        create_graph = torch.is_grad_enabled()  # as autograd was asked to, for a second derivative
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad(), without_autocast(grads[0]):
            inputs = [
                tensor if create_graph else tensor.detach().requires_grad_(need)
                for tensor, need in zip(ctx.saved_tensors, needed, strict=True)
            ]
            result = ctx.slow(*inputs)
            wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
            found = iter(torch.autograd.grad(result, wanted, grads, create_graph=create_graph))
        return None, None, *(next(found) if need else None for need in needed)
