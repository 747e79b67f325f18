"""Reading backbone weights from a file, safely and with errors that say what to do."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_DAMAGED = (
    *(SafetensorError, pickle.UnpicklingError, struct.error, OSError, EOFError, RuntimeError),
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError),
)
"""What reading a truncated, damaged or refused file raises, as seen on randomly damaged ones."""


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or a torch file (``weights_only=True``).

    Containers that published checkpoints use (``model``, ``state_dict``, ``model_ema``) are opened
    and a ``module.`` prefix of DDP is removed.

    Args:
        path: The file.

    Returns:
        Tensors by name, on the CPU, in the dtype of the file.

    Raises:
        ValueError: If the file is missing, of another kind, unreadable, or holds no tensors.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: weights must end in one of {SUFFIXES}")
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise ValueError(f"{path}: cannot be read as weights ({error})") from error
    for container in ("state_dict", "model", "model_ema"):
        if isinstance(state, dict) and isinstance(state.get(container), dict):
            state = state[container]
    tensors = {
        name.removeprefix("module."): value
        for name, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise ValueError(f"{path}: holds no tensors by name")
    return tensors


def load_backbone_weights(backbone: nn.Module, path: str | Path) -> None:
    """Load ImageNet (or own) weights into a timm ViT built without its classifier.

    Names are timm's; ``checkpoint_filter_fn`` of timm maps DeiT's, DINO's and MAE's names to them
    and resamples the position embedding to the model's grid. Classifier heads are dropped, and a
    ``fc_norm`` (average-pooled models) becomes the final ``norm``.

    Args:
        backbone: ViT made by ``timm.create_model(..., num_classes=0, global_pool="")``.
        path: ``.safetensors``, ``.pth``, ``.pt`` or ``.bin``.

    Raises:
        ValueError: If names or shapes do not fit; the message lists them.
    """
    state = load_state_dict(path)
    state = {
        name.removeprefix("backbone."): value.float() if value.is_floating_point() else value
        for name, value in state.items()
    }
    try:
        state = checkpoint_filter_fn(state, backbone)
    except (RuntimeError, ValueError, LookupError, AssertionError) as error:
        raise ValueError(
            f"{path}: weights do not fit {type(backbone).__name__}: {error}"
        ) from error
    own = backbone.state_dict()
    if "fc_norm.weight" in state and "norm.weight" in own:
        state = {name.replace("fc_norm.", "norm."): value for name, value in state.items()}
    heads = ("head.", "head_dist.", "pre_logits.")
    state = {name: value for name, value in state.items() if not name.startswith(heads)}
    missing = sorted(own.keys() - state.keys())
    wrong = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    if missing or wrong:
        raise ValueError(
            f"{path}: weights do not fit {type(backbone).__name__}. "
            f"Missing {len(missing)}: {missing[:5]}; wrong shape {len(wrong)}: {wrong[:5]}"
        )
    backbone.load_state_dict({name: state[name] for name in own})
