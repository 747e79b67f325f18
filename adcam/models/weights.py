"""Reading backbone weights from a file, safely and with errors that say what to do."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from adcam.errors import AdcamError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_DAMAGED = (
    *(SafetensorError, pickle.UnpicklingError, struct.error, OSError, EOFError, RuntimeError),
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError),
)
"""What reading a truncated, damaged or refused file raises, as seen on randomly damaged ones."""

_NUMPY_SCALARS: list[Any] = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    np.float64(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)),
]
"""What a NumPy number is unpickled by, under its name of NumPy 1 and of NumPy 2."""


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or a torch file (``weights_only=True``).

    Containers that published checkpoints use (``model``, ``state_dict``, ``model_ema``) are opened
    and a ``module.`` prefix of DDP is removed.

    Args:
        path: The file.

    Returns:
        Tensors by name, on the CPU, in the dtype of the file.

    Raises:
        AdcamError: If the file is missing, of another kind, unreadable, or holds no tensors.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise AdcamError(f"{path}: weights must end in one of {SUFFIXES}")
    if not path.is_file():
        raise AdcamError(f"{path}: no such weights file")
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            # TS-CAM's checkpoints keep a best score, a scalar of NumPy's, beside the weights.
            with torch.serialization.safe_globals(_NUMPY_SCALARS):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise AdcamError(f"{path}: cannot be read as weights ({error})") from error
    for container in ("state_dict", "model", "model_ema"):
        if isinstance(state, dict) and isinstance(state.get(container), dict):
            state = state[container]
    tensors = {
        name.removeprefix("module."): value
        for name, value in (state.items() if isinstance(state, dict) else ())
        if isinstance(value, Tensor)
    }
    if not tensors:
        raise AdcamError(f"{path}: holds no tensors by name")
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
        AdcamError: If names or shapes do not fit; the message lists them.
    """
    state = load_state_dict(path)
    state = {
        name.removeprefix("backbone."): value.float() if value.is_floating_point() else value
        for name, value in state.items()
    }
    try:
        state = checkpoint_filter_fn(state, backbone)
    except (RuntimeError, ValueError, LookupError, AssertionError) as error:
        raise AdcamError(
            f"{path}: weights do not fit {type(backbone).__name__}: {error}"
        ) from error
    own = backbone.state_dict()
    if "fc_norm.weight" in state and "norm.weight" in own:
        state = {name.replace("fc_norm.", "norm."): value for name, value in state.items()}
    heads = ("head.", "head_dist.", "pre_logits.")
    state = {name: value for name, value in state.items() if not name.startswith(heads)}
    _load_all(backbone, state, path)


def load_trunk_weights(trunk: nn.Module, path: str | Path) -> None:
    """Load weights into a convolutional network without its classifier.

    Names are timm's, which are torchvision's for VGG, ResNet and InceptionV3. What the file has
    beyond the network (``fc``, ``classifier``, ``AuxLogits``) is passed over.

    Args:
        trunk: A timm network.
        path: ``.safetensors``, ``.pth``, ``.pt`` or ``.bin``.

    Raises:
        AdcamError: If names or shapes do not fit; the message lists them.
    """
    state = load_state_dict(path)
    counters = {
        name: value
        for name, value in trunk.state_dict().items()
        if name.endswith("num_batches_tracked")  # absent from the oldest published files
    }
    _load_all(trunk, {**counters, **state}, path)


def load_ts_cam_weights(network: nn.Module, path: str | Path) -> None:
    """Load a checkpoint of TS-CAM's own code into a :class:`adcam.models.token_cam.TokenCAM`.

    Key map (``lib/models/deit.py`` and ``tools_cam/train_cam.py`` of vasgaowei/TS-CAM, whose ViT
    has timm's names): ``state_dict`` holds, behind DDP's ``module.``,

    - ``head.weight`` (C, D, 3, 3) and ``head.bias`` (C,): ours by the same name;
    - every other name (``cls_token``, ``pos_embed``, ``patch_embed.proj.*``, ``blocks.<i>.*``,
      ``norm.*``): ours behind ``backbone.``, the position embedding resampled where the grid
      differs.

    Args:
        network: Built for the same backbone and number of classes.
        path: ``model_best.pth``, ``model_epoch12.pth``, …

    Raises:
        AdcamError: If it is no such checkpoint, or another network or number of classes.
    """
    state = load_state_dict(path)
    head = {name: state.get(name) for name in ("head.weight", "head.bias")}
    own = network.state_dict()
    if head["head.weight"] is None or head["head.weight"].ndim != 4 or head["head.bias"] is None:
        raise AdcamError(
            f"{path}: no TS-CAM checkpoint: its head must be a 3×3 convolution, head.weight "
            "(C, D, 3, 3) and head.bias (C,)"
        )
    for name, value in head.items():
        if value is not None and value.shape != own[name].shape:
            raise AdcamError(
                f"{path}: {name} is {tuple(value.shape)} in the file, {tuple(own[name].shape)} in "
                "the network; are backbone and number of classes the same?"
            )
    load_backbone_weights(network.get_submodule("backbone"), path)
    network.get_submodule("head").load_state_dict(
        {
            name.removeprefix("head."): value.float()
            for name, value in head.items()
            if value is not None
        }
    )


def _load_all(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    wrong = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    if missing or wrong:
        raise AdcamError(
            f"{path}: weights do not fit {type(model).__name__}. "
            f"Missing {len(missing)}: {missing[:5]}; wrong shape {len(wrong)}: {wrong[:5]}"
        )
    model.load_state_dict({name: state[name] for name in own})


def find_weights(source: str | Path, name: str | None = None) -> Path:
    """File of published weights on this machine; nothing is downloaded.

    Args:
        source: A file; ``"timm"`` for timm's weights of ``name``, looked for in the cache of
            huggingface_hub; or ``"torchvision:resnet50"`` and the like for torchvision's first
            ImageNet weights (``IMAGENET1K_V1``) of that name, looked for in the cache of torch.hub.
        name: timm name of the network, for ``"timm"``.

    Raises:
        AdcamError: The name is unknown, or there is no such file; the message says what to fetch
            and where to put it.
    """
    kind, _, model = str(source).partition(":")
    if kind == "timm":
        return _find_timm(model or name or "")
    if kind == "torchvision" and model:
        return _find_torchvision(model)
    path = Path(source).expanduser()
    if not path.is_file():
        raise AdcamError(
            f"{path}: no such weights file; name a file, 'timm' or 'torchvision:<model>'"
        )
    return path


def load_any_backbone_weights(backbone: nn.Module, path: str | Path) -> None:
    """:func:`load_backbone_weights` for a timm ViT, else :func:`load_trunk_weights`."""
    load = load_backbone_weights if isinstance(backbone, VisionTransformer) else load_trunk_weights
    load(backbone, path)


def _find_timm(name: str) -> Path:
    config = get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not config.hf_hub_id:
        raise AdcamError(f"timm publishes no weights of {name!r}")
    # Layout of the cache: huggingface_hub's guide "Understand caching".
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    folder = cache / f"models--{config.hf_hub_id.replace('/', '--')}" / "snapshots"
    if found := sorted(folder.glob("*/model.safetensors")):
        return found[-1]
    raise AdcamError(
        f"timm's weights of {name} are not on this machine (in {cache}). Where there is a network, "
        f"run `hf download {config.hf_hub_id} model.safetensors`; then name the file it prints, or "
        "copy it and name the copy"
    )


def _find_torchvision(name: str) -> Path:
    from torchvision.models import get_model_weights  # slow to import

    try:
        url = get_model_weights(name).IMAGENET1K_V1.url
    except (ValueError, AttributeError) as error:
        raise AdcamError(f"torchvision publishes no ImageNet weights of {name!r}") from error
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    raise AdcamError(f"{path}: torchvision's weights of {name} are not here. Fetch {url} to there")
