"""Reading the attention of a timm ViT while it runs its fused attention.

timm passes queries and keys through ``q_norm`` and ``k_norm`` (identity where a model has none)
right before the attention product (timm/layers/attention.py, ``Attention.forward``). Hooks there
see exactly the q and k that the fused kernel gets, so the block's output keeps the fused path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from adcam.ops.token_attention import accumulate_token_attention, cls_attention

_Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


class AttentionCapture:
    """Context manager that accumulates attention means over the blocks of one forward pass.

    Each block's attention is computed once, however many sets name it, and added to one running
    (B, N, N) sum for all blocks that the same sets name: one set holds one sum, nested sets one
    each. Entering it again starts anew.

    Args:
        blocks: The transformer blocks in order; ``attn`` of each is timm's ``Attention``.
        num_prefix_tokens: Tokens before the patch tokens (class, distillation, registers).
        layer_sets: Sets of block indices, each in 0..L-1 and named once, whose patch-to-patch
            attention is averaged.
        has_cls_token: Whether token 0 is a class token.
        product_dtype: What queries and keys are cast to before they are multiplied for
            ``patch2patch``; ``None`` takes them as the model makes them. On a CPU, bfloat16 halves
            the time and moves the mean attention by about 0.1 %.

    Attributes:
        cls2patch: (B, L, N) after the pass, ``None`` without a class token.
        patch2patch: From each of ``layer_sets`` to its mean (B, N, N).

    Raises:
        ValueError: If a block's attention is of another kind (differential, rotary, parallel), or
            a layer set is empty, repeats a block or leaves 0..L-1.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        num_prefix_tokens: int,
        layer_sets: Sequence[tuple[int, ...]] = (),
        has_cls_token: bool = True,
        product_dtype: torch.dtype | None = None,
    ) -> None:
        self._blocks = list(blocks)
        self._num_prefix_tokens = num_prefix_tokens
        self._layer_sets = tuple(dict.fromkeys(tuple(layers) for layers in layer_sets))
        self._has_cls_token = has_cls_token
        self._product_dtype = product_dtype
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._queries: dict[int, Tensor] = {}
        self._cls_rows: dict[int, Tensor] = {}
        # From the sets that name a block, as indices into the layer sets, to the blocks' sum.
        self._sums: dict[tuple[int, ...], Tensor] = {}
        for index, block in enumerate(self._blocks):
            attn = getattr(block, "attn", None)
            # Others have q_norm and k_norm too, but attend with something else than softmax(q k).
            if not isinstance(attn, Attention):
                raise ValueError(
                    f"block {index} ({type(block).__name__}) attends by {type(attn).__name__}, "
                    "whose attention cannot be read; use a model of timm's vision_transformer "
                    "family with plain attention (vit_*, deit_*)"
                )
        legal = set(range(len(self._blocks)))
        for layers in self._layer_sets:
            if not layers or len(set(layers)) < len(layers) or not legal.issuperset(layers):
                raise ValueError(
                    f"a layer set names different blocks in 0..{len(self._blocks) - 1}, "
                    f"got {layers}"
                )

    def __enter__(self) -> AttentionCapture:
        self._cls_rows.clear()
        self._sums.clear()
        for index, block in enumerate(self._blocks):
            attn: Any = block.attn
            self._handles += [
                attn.q_norm.register_forward_hook(self._keep_query(index)),
                attn.k_norm.register_forward_hook(self._take_key(index, float(attn.scale))),
            ]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._queries.clear()

    @property
    def cls2patch(self) -> Tensor | None:
        """(B, L, N) class-token rows, mean over heads."""
        if not self._has_cls_token:
            return None
        return torch.stack([self._cls_rows[index] for index in sorted(self._cls_rows)], dim=1)

    @property
    def patch2patch(self) -> dict[tuple[int, ...], Tensor]:
        """Mean over heads and blocks, (B, N, N), for each requested set of blocks."""
        means = {}
        for index, layers in enumerate(self._layer_sets):
            sums = [total for named_by, total in self._sums.items() if index in named_by]
            means[layers] = sum(sums[1:], start=sums[0]) / len(layers)
        return means

    def _keep_query(self, index: int) -> _Hook:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._queries[index] = output

        return hook

    def _take_key(self, index: int, scale: float) -> _Hook:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._accumulate(index, self._queries.pop(index), output, scale)

        return hook

    def _accumulate(self, index: int, query: Tensor, key: Tensor, scale: float) -> None:
        options: dict[str, Any] = {"scale": scale, "num_prefix_tokens": self._num_prefix_tokens}
        if self._has_cls_token:
            self._cls_rows[index] = cls_attention(query, key, **options)
        named_by = tuple(i for i, layers in enumerate(self._layer_sets) if index in layers)
        if named_by:
            dtype = self._product_dtype or query.dtype
            self._sums[named_by] = accumulate_token_attention(
                self._sums.get(named_by), query.to(dtype), key.to(dtype), **options
            )
