"""Stochastic depth that draws the same on every device."""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn


class SameDropPath(DropPath):
    """timm's ``DropPath`` with draws from the processor's generator, wherever the network is.

    A GPU has a generator of its own, which draws other numbers from the same seed. With the
    processor's draws, and data that are drawn by seed and position
    (:mod:`adcam.training.repeatable`), a training on a GPU differs from one on a processor only by
    rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Leave out the residual branch (B, ...) of some images, and scale up that of the others.

        The draws, and on a CPU the results, are those of ``timm/layers/drop.py``, ``drop_path``.
        """
        if self.drop_prob == 0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        kept = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        if keep > 0 and self.scale_by_keep:
            kept.div_(keep)
        return x * kept.to(x.device, x.dtype, non_blocking=True)


def draw_on_the_processor(network: nn.Module) -> None:
    """Replace every ``DropPath`` of timm in a network by one that draws the same everywhere."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is DropPath:
                setattr(module, name, SameDropPath(child.drop_prob, child.scale_by_keep))
