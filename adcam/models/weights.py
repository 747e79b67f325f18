"""Reading backbone weights from a file, safely and with errors that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from adcam.errors import AdcamError
from adcam.models.checkpoints import load_state_dict
from adcam.models.timm_models import describe_missing_weights, find_cached_weights

VIT_ROOT = "patch_embed.proj.weight"
"""A tensor that every ViT of timm has; what stands before it in a file is a prefix."""


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
    state = read_vit_weights(backbone, path)
    own = backbone.state_dict()
    if "fc_norm.weight" in state and "norm.weight" in own:
        state = {name.replace("fc_norm.", "norm."): value for name, value in state.items()}
    heads = ("head.", "head_dist.", "pre_logits.")
    state = {name: value for name, value in state.items() if not name.startswith(heads)}
    fit_weights(backbone, state, path)


def load_trunk_weights(trunk: nn.Module, path: str | Path) -> None:
    """Load weights into a convolutional network without its classifier.

    Names are timm's, which are torchvision's for VGG, ResNet and InceptionV3. What the file has
    beyond the network (``fc``, ``classifier``, ``AuxLogits``) is skipped.

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
    fit_weights(trunk, {**counters, **state}, path)


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
    head = {name: state[name] for name in ("head.weight", "head.bias") if name in state}
    own = network.state_dict()
    if len(head) < 2 or head["head.weight"].ndim != 4:
        raise AdcamError(
            f"{path}: no TS-CAM checkpoint: its head must be a 3×3 convolution, head.weight "
            "(C, D, 3, 3) and head.bias (C,)"
        )
    for name, value in head.items():
        if value.shape != own[name].shape:
            raise AdcamError(
                f"{path}: {name} is {tuple(value.shape)} in the file, {tuple(own[name].shape)} in "
                "the network; are backbone and number of classes the same?"
            )
    load_backbone_weights(network.get_submodule("backbone"), path)
    network.get_submodule("head").load_state_dict(
        {name.removeprefix("head."): value.float() for name, value in head.items()}
    )


def read_vit_weights(vit: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """Read a file's tensors under the names that a timm ViT has for them, in float32.

    Args:
        vit: The network that they are for; the position embedding is resampled to its grid.
        path: A file as in :func:`adcam.models.checkpoints.load_state_dict`.

    Raises:
        AdcamError: If the file cannot be read, or timm cannot convert its names.
    """
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in load_state_dict(path).items()
    }
    roots = [name.removesuffix(VIT_ROOT) for name in state if name.endswith(f".{VIT_ROOT}")]
    if VIT_ROOT not in state and len(roots) == 1:
        state = {name.removeprefix(roots[0]): value for name, value in state.items()}
    try:
        converted: dict[str, Tensor] = checkpoint_filter_fn(state, vit)
    except (RuntimeError, ValueError, LookupError, AssertionError) as error:
        raise AdcamError(f"{path}: weights do not fit {type(vit).__name__}: {error}") from error
    return converted


def load_vit_weights(vit: nn.Module, path: str | Path) -> None:
    """Load the weights of a whole timm ViT, with its head, from a file.

    Raises:
        AdcamError: As :func:`read_vit_weights` and :func:`fit_weights`.
    """
    fit_weights(vit, read_vit_weights(vit, path), path)


def fit_weights(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load tensors into a network that needs every one of its own, and may leave some over.

    Args:
        model: The network.
        state: Tensors by the network's own names.
        path: The file they come from, for messages.

    Raises:
        AdcamError: If a tensor is missing, has another shape, or holds NaN or infinite values.
    """
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
    used = {name: state[name] for name in own}
    check_finite(used, path)
    model.load_state_dict(used)


def check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights of a training that diverged.

    Raises:
        AdcamError: If a tensor holds NaN or infinite values; the message names file and tensors.
    """
    broken = [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise AdcamError(
            f"{path}: {len(broken)} tensors hold NaN or infinite values, the first are "
            f"{broken[:3]}; the training that wrote them diverged, or the file is damaged"
        )


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
    if (path := find_cached_weights(name)) is None:
        raise AdcamError(describe_missing_weights(name, "nothing is downloaded here"))
    return path


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
