"""Reading the attention of a timm ViT while it runs its fused attention.

timm passes queries and keys through ``q_norm`` and ``k_norm`` (identity where a model has none)
right before the attention product (timm/layers/attention.py, ``Attention.forward``). Hooks there
see exactly the q and k that the fused kernel gets.

The hook on ``k_norm`` replaces the keys by a stand-in. When timm calls
``scaled_dot_product_attention`` with it, torch lets the stand-in answer the call
(https://docs.pytorch.org/docs/stable/notes/extending.html, ``__torch_function__``):

- On a CPU it computes output and mean attention from one softmax, and in bfloat16 the output of the
  other blocks in less time than the fused kernel.
- On a GPU it lets the fused kernel run as usual and hand out the normalisers of its softmax. The
  means are computed from these, six blocks in one pass, without a copy of queries or keys.
- Where autograd records, it computes the means beside the fused attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from adcam.errors import AdcamError
from adcam.ops.token_attention import (
    MOST_BLOCKS,
    Block,
    accumulate_blocks,
    accumulate_token_attention,
    attend,
    attend_and_accumulate,
    attend_with_normalizers,
    cls_attention,
    has_kernels,
)

_Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Any]


class AttentionCapture:
    """Context manager that accumulates attention means over the blocks of one forward pass.

    Each block's attention is computed once, however many sets name it, and added to one running
    (B, N, N) sum for all blocks that the same sets name: one set holds one sum, nested sets one
    each. Entering it again starts over.

    Args:
        vit: A ViT of timm; ``attn`` of each of its blocks is timm's ``Attention``.
        layer_sets: Sets of block indices, each in 0..L-1 and named once, whose patch-to-patch
            attention is averaged.

    Attributes:
        cls2patch: (B, L, N) after the pass, ``None`` without a class token.
        patch2patch: From each of ``layer_sets`` to its mean (B, N, N).

    Raises:
        AdcamError: If a block's attention is of another kind (differential, rotary, parallel), or
            a layer set is empty, repeats a block or leaves 0..L-1.
    """

    def __init__(self, vit: Any, layer_sets: Sequence[tuple[int, ...]] = ()) -> None:
        self._blocks: list[nn.Module] = list(vit.blocks)
        self._num_prefix_tokens: int = vit.num_prefix_tokens
        self._layer_sets = tuple(dict.fromkeys(tuple(layers) for layers in layer_sets))
        self._has_cls_token: bool = vit.has_class_token
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._queries: dict[int, Tensor] = {}
        self._cls_rows: dict[int, Tensor] = {}
        # From the sets that name a block, as indices into the layer sets, to the blocks' sum.
        self._sums: dict[tuple[int, ...], Tensor] = {}
        # The same for sums on a GPU, where a block waits until it can be added with others.
        self._gpu_sums: dict[tuple[int, ...], Tensor] = {}
        self._waiting: dict[tuple[tuple[int, ...], float], list[Block]] = {}
        for index, block in enumerate(self._blocks):
            attn = getattr(block, "attn", None)
            # Others have q_norm and k_norm too, but attend with something else than softmax(q k).
            if not isinstance(attn, Attention):
                raise AdcamError(
                    f"block {index} ({type(block).__name__}) attends by {type(attn).__name__}, "
                    "whose attention cannot be read; use a model of timm's vision_transformer "
                    "family with plain attention (vit_*, deit_*)"
                )
        legal = set(range(len(self._blocks)))
        for layers in self._layer_sets:
            if not layers or len(set(layers)) < len(layers) or not legal.issuperset(layers):
                raise AdcamError(
                    f"a layer set names different blocks in 0..{len(self._blocks) - 1}, "
                    f"got {layers}"
                )

    def __enter__(self) -> AttentionCapture:
        self._cls_rows.clear()
        self._sums.clear()
        self._gpu_sums.clear()
        for index, block in enumerate(self._blocks):
            attn: Any = block.attn
            self._handles += [
                attn.q_norm.register_forward_hook(self._keep_query(index)),
                attn.k_norm.register_forward_hook(self._take_key(index, attn)),
            ]
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._queries.clear()
        if exc_info[0] is None:
            self._add_waiting()
        self._waiting.clear()

    @property
    def cls2patch(self) -> Tensor | None:
        """(B, L, N) class-token rows, mean over heads."""
        if not self._has_cls_token:
            return None
        return torch.stack([self._cls_rows[index] for index in sorted(self._cls_rows)], dim=1)

    @property
    def patch2patch(self) -> dict[tuple[int, ...], Tensor]:
        """Mean over heads and blocks, (B, N, N), for each requested set of blocks."""
        self._add_waiting()
        means = {}
        for index, layers in enumerate(self._layer_sets):
            sums = [total for named_by, total in self._sums.items() if index in named_by]
            parts = [sum(sums[1:], start=sums[0]) / len(layers)] if sums else []
            for named_by, total in self._gpu_sums.items():
                if index in named_by:
                    parts.append(total if _is_mean(named_by) else total / len(layers))
            means[layers] = sum(parts[1:], start=parts[0])
        return means

    def _keep_query(self, index: int) -> _Hook:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._queries[index] = output

        return hook

    def _take_key(self, index: int, attn: Any) -> _Hook:
        scale = float(attn.scale)

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Any:
            query = self._queries.pop(index)
            if attn.fused_attn:
                return _Keys(output, partial(self._attend, index, scale))
            self._accumulate(index, query, output, scale)
            return None  # leaves the keys as they are

        return hook

    def _attend(
        self,
        index: int,
        scale: float,
        fused: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: Mapping[str, Any],
    ) -> Tensor:
        """In place of ``fused(query, key, value, **options)``, that and the attention's means."""
        # A norm under autocast may leave float32, which autocast rounds for the fused kernel.
        query, key = query.to(value.dtype), key.to(value.dtype)
        recorded = query.requires_grad or key.requires_grad or value.requires_grad
        masked = options.get("attn_mask") is not None or options.get("is_causal")
        if recorded or masked or options.get("dropout_p"):
            self._accumulate(index, query, key, scale)
            return fused(query, key, value, **options)
        if has_kernels(query):
            return self._attend_on_gpu(index, scale, query, key, value)
        self._take_cls_row(index, query, key, scale)
        named_by = self._named_by(index)
        if not named_by:
            return attend(query, key, value, scale=scale)
        output, self._sums[named_by] = attend_and_accumulate(
            self._sums.get(named_by),
            query,
            key,
            value,
            scale=scale,
            num_prefix_tokens=self._num_prefix_tokens,
        )
        return output

    def _attend_on_gpu(
        self, index: int, scale: float, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        output, normalizers = attend_with_normalizers(query, key, value, scale=scale)
        self._take_cls_row(index, query, key, scale, normalizers)
        if named_by := self._named_by(index):
            waiting = self._waiting.setdefault((named_by, scale), [])
            waiting.append((query, key, normalizers))
            if len(waiting) == MOST_BLOCKS:
                self._add_waiting()
        return output

    def _add_waiting(self) -> None:
        """Add the blocks that wait to their sums, each set of blocks in one pass."""
        for (named_by, scale), blocks in self._waiting.items():
            self._gpu_sums[named_by] = accumulate_blocks(
                self._gpu_sums.get(named_by),
                blocks,
                scale=scale,
                num_prefix_tokens=self._num_prefix_tokens,
                weight=1 / len(self._layer_sets[named_by[0]]) if _is_mean(named_by) else 1.0,
            )
        self._waiting.clear()

    def _accumulate(self, index: int, query: Tensor, key: Tensor, scale: float) -> None:
        self._take_cls_row(index, query, key, scale)
        if named_by := self._named_by(index):
            self._sums[named_by] = accumulate_token_attention(
                self._sums.get(named_by),
                query,
                key,
                scale=scale,
                num_prefix_tokens=self._num_prefix_tokens,
            )

    def _take_cls_row(
        self,
        index: int,
        query: Tensor,
        key: Tensor,
        scale: float,
        normalizers: Tensor | None = None,
    ) -> None:
        if self._has_cls_token:
            self._cls_rows[index] = cls_attention(
                query,
                key,
                scale=scale,
                num_prefix_tokens=self._num_prefix_tokens,
                normalizers=normalizers,
            )

    def _named_by(self, index: int) -> tuple[int, ...]:
        """Which layer sets name a block."""
        return tuple(i for i, layers in enumerate(self._layer_sets) if index in layers)


def _is_mean(named_by: tuple[int, ...]) -> bool:
    """Whether a sum on a GPU is the mean of a layer set, since no other set reads it."""
    return len(named_by) == 1


class _Keys:
    """Stands in for keys in the one call that timm makes with them.

    Args:
        tensor: The keys.
        attend: Answers the call: takes the function, its three tensors and its options, and returns
            the output of the block's attention.
    """

    def __init__(self, tensor: Tensor, attend: Callable[..., Tensor]) -> None:
        self._tensor = tensor
        self._attend = attend

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Tensor],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        query, keys, value = args
        return keys._attend(func, query, keys._tensor, value, kwargs or {})
