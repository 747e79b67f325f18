"""Learning rates that fall from the last block of a vision transformer to its first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adcam.errors import AdcamError
from adcam.models.classifier import Classifier


def decay_rates(
    optim_wrapper: Mapping[str, Any], model: Classifier, decay: float
) -> dict[str, Any]:
    """Give each block of the backbone a share of the learning rate.

    Of L blocks, block i (from 0) learns at ``decay ** (L - i)`` times the rate, and what comes
    before the blocks (patches, positions, class token) at ``decay ** (L + 1)`` times. The head and
    the last norm keep the rate. What pre-training taught early blocks then stays. Source:
    ELECTRA (Clark et al., arXiv 2003.10555) and BEiT (Bao et al., arXiv 2106.08254).

    Args:
        optim_wrapper: The config's; rates that its ``paramwise_cfg.custom_keys`` gives to the same
            names win.
        model: A classifier whose ``network.backbone`` is a vision transformer.
        decay: Above 0, at most 1. A larger value lets early blocks learn more; 1 changes nothing.

    Returns:
        The optimizer wrapper with these rates.

    Raises:
        AdcamError: ``decay`` is below 1, and the network has no transformer blocks.
    """
    if decay == 1:
        return dict(optim_wrapper)
    backbone = getattr(model.network, "backbone", None)
    blocks = getattr(backbone, "blocks", None)
    if not isinstance(backbone, nn.Module) or not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise AdcamError(
            f"train.layer_decay is {decay:g}, but a {type(model.network).__name__} has no "
            "transformer blocks: leave it out, or set it to 1"
        )
    names = [name for name, _ in backbone.named_parameters() if not name.startswith("blocks.")]
    depth = len(blocks)
    shares = {name: depth + 1 for name in names if not name.startswith(("norm.", "fc_norm."))}
    shares |= {f"blocks.{i}.": depth - i for i in range(depth)}
    keys = {f"network.backbone.{name}": {"lr_mult": decay**power} for name, power in shares.items()}
    paramwise = dict(optim_wrapper.get("paramwise_cfg") or {})
    given = dict(paramwise.get("custom_keys") or {})
    return {
        **optim_wrapper,
        "paramwise_cfg": {**paramwise, "custom_keys": {**keys, **given}},
    }
