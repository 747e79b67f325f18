"""The attention of any network, recorded while it runs, whatever library it comes from.

Every library computes attention by one of three functions of torch: the softmax of a (B, heads, T,
T) tensor (timm without fused attention, Hugging Face with ``attn_implementation="eager"``),
``scaled_dot_product_attention`` (timm and Hugging Face by default), or
``multi_head_attention_forward`` (``nn.MultiheadAttention``: open_clip, torchvision). torch lets a
mode see each call (https://docs.pytorch.org/docs/stable/torch.overrides.html), so no library needs
code of its own here. Kernels that are called past torch (flash-attn, xFormers) and compiled
networks are not seen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from adcam.ops.token_attention import accumulate_token_attention

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
_PRODUCT_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


class RecordedAttention(list[Tensor]):
    """Blocks (B, T, T) of what ran: the first size is images, or windows, and never heads."""


@contextmanager
def record_attention() -> Iterator[list[Tensor]]:
    """Record the attention of every block of the networks that run inside.

    Run one network, once: the list holds the blocks in the order in which they attended. What the
    network returns, and its gradients, stay as they are.

    Yields:
        A list that fills while the network runs: per block (B, T, T), mean over heads, at least
        float32, without gradient; rows are queries and sum to 1. ``adcam.refine`` takes it as it
        is.

    Example:
        >>> attend = torch.nn.MultiheadAttention(8, num_heads=2, batch_first=True)
        >>> tokens = torch.rand(1, 5, 8)
        >>> with record_attention() as attention:
        ...     _ = attend(tokens, tokens, tokens, need_weights=False)
        >>> [tuple(block.shape) for block in attention]
        [(1, 5, 5)]
    """
    with AttentionRecorder() as recorder:
        yield recorder.blocks


class AttentionRecorder(TorchFunctionMode):
    """The mode under :func:`record_attention`; a subclass may change what happens to the weights.

    Attributes:
        blocks: The mean over heads of each block so far, (B, T, T).
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = RecordedAttention()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let every function of torch run as it would, and record those that attend."""
        options = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            options = dict(zip(_PRODUCT_NAMES, args, strict=False)) | options
            return self.on_product(**options) if _is_own(options) else func(**options)
        if func is F.multi_head_attention_forward:
            return self._on_multi_head(args, options)
        output = func(*args, **options)
        if func in _SOFTMAX and _is_square(output):
            dim = args[1] if len(args) > 1 else options.get("dim")
            return self.on_weights(output) if dim in (-1, 3) else output
        return output

    def on_product(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """Attend as ``scaled_dot_product_attention`` does, and record.

        Args:
            query: (B, heads, T, d).
            key: (B, heads, T, d), or fewer heads that are shared.
            value: (B, heads, T, d), with as many heads as ``key``.
            **options: The function's other arguments.
        """
        with torch.no_grad():
            if options.get("attn_mask") is None and not options.get("is_causal"):
                scale = options.get("scale") or query.shape[-1] ** -0.5
                keys = _share_heads(key, query.shape[1]).to(query.dtype)
                mean = accumulate_token_attention(
                    None, query.detach(), keys.detach(), scale=scale, num_prefix_tokens=0
                )
            else:
                mean = compute_weights(query, key, **options).float().mean(dim=1)
        self.blocks.append(mean)
        return F.scaled_dot_product_attention(query, key, value, **options)

    def on_weights(self, weights: Tensor) -> Tensor:
        """Record weights (B, heads, T, T), and return what the network goes on with."""
        self.blocks.append(weights.detach().float().mean(dim=1))
        return weights

    def _on_multi_head(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        call = _MULTI_HEAD.bind(*args, **options)
        call.apply_defaults()
        given = call.arguments
        query, mask = given["query"], given["attn_mask"]
        is_plain = (
            query is given["key"] is given["value"]
            and query.ndim == 3
            and not given["use_separate_proj_weight"]
            and not given["add_zero_attn"]
            and (given["bias_k"] is None and given["key_padding_mask"] is None)
            and (mask is None or mask.ndim == 2)
            and not (given["training"] and given["dropout_p"])
        )
        if not is_plain:
            return F.multi_head_attention_forward(*args, **options)
        num_tokens, batch, dim = query.shape
        num_heads = given["num_heads"]
        parts = F.linear(query, given["in_proj_weight"], given["in_proj_bias"]).chunk(3, dim=-1)
        heads = (num_tokens, batch, num_heads, dim // num_heads)
        q, k, v = (part.reshape(heads).permute(1, 2, 0, 3) for part in parts)
        # It names what is left out; scaled_dot_product_attention what takes part.
        mask = ~mask if mask is not None and mask.dtype == torch.bool else mask
        attended = self.on_product(q, k, v, attn_mask=mask)
        flat = attended.permute(2, 0, 1, 3).reshape(num_tokens, batch, dim)
        output = F.linear(flat, given["out_proj_weight"], given["out_proj_bias"])
        if not given["need_weights"]:
            return output, None
        weights = compute_weights(q, k, attn_mask=mask)
        return output, weights.mean(dim=1) if given["average_attn_weights"] else weights


def compute_weights(query: Tensor, key: Tensor, **options: Any) -> Tensor:
    """Return the weights (B, heads, T, T) by which ``scaled_dot_product_attention`` averages.

    Args:
        query: (B, heads, T, d).
        key: (B, heads, T, d), or fewer heads that are shared.
        **options: ``attn_mask`` (true, or a summand, where tokens may attend), ``is_causal`` and
            ``scale`` of that function; others play no part.
    """
    scale = options.get("scale") or query.shape[-1] ** -0.5
    scores = query @ _share_heads(key, query.shape[1]).transpose(-2, -1) * scale
    mask = options.get("attn_mask")
    if options.get("is_causal"):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        is_bool = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, float("-inf")) if is_bool else scores + mask
    return scores.softmax(dim=-1)


def _share_heads(key: Tensor, num_heads: int) -> Tensor:
    """Repeat the heads of keys or values where several queries share one."""
    repeats = num_heads // key.shape[1]
    return key if repeats == 1 else key.repeat_interleave(repeats, dim=1)


def _is_own(options: Mapping[str, Any]) -> bool:
    """Whether tokens attend to one another, (B, heads, T, d), T > 1.

    Keys that are no tensor stand for those of a network that is being read by other means already
    (:mod:`adcam.models.attention_capture`).
    """
    query, key = options["query"], options["key"]
    return (
        isinstance(key, Tensor)
        and query.ndim == key.ndim == 4
        and query.shape[-2] == key.shape[-2] > 1
    )


def _is_square(weights: Tensor) -> bool:
    return weights.ndim == 4 and weights.shape[-1] == weights.shape[-2] > 1
