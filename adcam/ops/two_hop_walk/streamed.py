"""The walk of two hops from queries and keys: a few rows of the attention at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from adcam.ops._checks import at_least_float32


class AttentionRows:
    """The rows of A, the mean attention scaled to row sums 1, computed whenever they are read.

    Args:
        blocks: Queries and keys (B, heads, P + N, d) of the blocks.
        scale: Factor on their products.
        num_prefix_tokens: P.
        max_rows: How many rows are computed at a time.
    """

    def __init__(
        self,
        blocks: Sequence[tuple[torch.Tensor, torch.Tensor]],
        scale: float,
        num_prefix_tokens: int,
        max_rows: int,
    ) -> None:
        self._blocks = blocks
        self._scale = scale
        self._prefix = num_prefix_tokens
        self._max_rows = max_rows
        self.tokens = blocks[0][0].shape[2] - num_prefix_tokens

    def __iter__(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for start in range(0, self.tokens, self._max_rows):
            rows = slice(start, min(start + self._max_rows, self.tokens))
            yield rows, self._compute(slice(rows.start + self._prefix, rows.stop + self._prefix))

    def _compute(self, rows: slice) -> torch.Tensor:
        """(B, rows, N). Head by head: the scores of all at once would be many times as large."""
        total: torch.Tensor | None = None
        for q, k in self._blocks:
            for query, key in zip(q[:, :, rows].unbind(1), k.unbind(1), strict=True):
                scores = (at_least_float32(query) * self._scale) @ at_least_float32(key).mT
                attn = scores.softmax(dim=-1)[..., self._prefix :] / q.shape[1]
                total = attn if total is None else total.add_(attn)
        assert total is not None
        # A softmax leaves something everywhere unless it underflows: such a row stays zero.
        mass = total.sum(dim=-1, keepdim=True)
        return total.div_(torch.where(mass > 0, mass, 1))


def walk(maps: torch.Tensor, attention: AttentionRows, num_steps: int) -> torch.Tensor:
    """``num_steps`` steps, (B, K, N) -> same."""
    for _ in range(num_steps):
        pushed = torch.zeros_like(maps)
        received = torch.zeros_like(maps[:, :1])
        for rows, attn in attention:  # (B, rows, N)
            pushed += maps[..., rows] @ attn
            received += attn.sum(dim=1, keepdim=True)
        pushed /= torch.where(received > 0, received, 1)
        stepped = torch.empty_like(maps)
        for rows, attn in attention:
            alive = attn.sum(dim=-1)[:, None] > 0
            stepped[..., rows] = torch.where(alive, pushed @ attn.mT, maps[..., rows])
        maps = stepped
    return maps
