"""Checkpoints of TS-CAM and MCTformer, as their own code writes them, against its formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adcam import AdcamError, PseudoLabeler
from adcam.cams import build_method
from adcam.cli import main
from adcam.convert.checkpoints import BACKBONES, import_checkpoint, read_class_names
from adcam.data.coco import COCO_CLASSES
from adcam.data.voc import VOC_CLASSES
from adcam.models.classifier_file import load_classifier
from adcam.models.networks import build_network

WIDTH, HEADS, DEPTH, GRID = 192, 3, 2, 4  # deit_tiny, so that its width is known


def make_state(num_classes: int, kind: str) -> dict[str, Tensor]:
    """Tensors under the names of the project's own code, images of 64 pixels."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int, scale: float = 0.02) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    tokens = 1 if kind == "ts_cam" else num_classes
    state = {
        "cls_token": rand(1, tokens, WIDTH, scale=0.5),
        "patch_embed.proj.weight": rand(WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": rand(WIDTH),
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
        "head.weight": rand(num_classes, WIDTH, 3, 3),
        "head.bias": rand(num_classes),
    }
    if kind == "plus":
        state["pos_embed_cls"] = rand(1, tokens, WIDTH, scale=0.5)
        state["pos_embed_pat"] = rand(1, GRID**2, WIDTH, scale=0.5)
    else:
        state["pos_embed"] = rand(1, tokens + GRID**2, WIDTH, scale=0.5)
    shapes = {
        "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH),
        "mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH),
    }  # fmt: skip
    for i in range(DEPTH):
        for name, shape in shapes.items():
            state[f"blocks.{i}.{name}.weight"] = rand(*shape, scale=0.05)
            state[f"blocks.{i}.{name}.bias"] = rand(shape[0])
        for name in ("norm1", "norm2"):
            state[f"blocks.{i}.{name}.weight"] = 1 + rand(WIDTH)
            state[f"blocks.{i}.{name}.bias"] = rand(WIDTH)
    return state


def run_mctformer(state: dict[str, Tensor], imgs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class logits, maps, class-token attention (L, B, C, N), patch attention, as the paper has it.

    Written from the description of the network, without timm.
    """
    classes = state["cls_token"].shape[1]
    patches = F.conv2d(
        imgs, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16
    )
    x = patches.flatten(2).transpose(1, 2)
    cls = state["cls_token"].expand(len(x), -1, -1)
    if "pos_embed_cls" in state:
        x = torch.cat([cls + state["pos_embed_cls"], x + state["pos_embed_pat"]], dim=1)
    else:
        x = torch.cat([cls, x], dim=1) + state["pos_embed"]
    attentions = []
    for i in range(DEPTH):

        def linear(name: str, value: Tensor, i: int = i) -> Tensor:
            return F.linear(
                value, state[f"blocks.{i}.{name}.weight"], state[f"blocks.{i}.{name}.bias"]
            )

        def norm(name: str, value: Tensor, i: int = i) -> Tensor:
            weight, bias = (state[f"blocks.{i}.{name}.{part}"] for part in ("weight", "bias"))
            return F.layer_norm(value, (WIDTH,), weight, bias, eps=1e-6)

        parts = linear("attn.qkv", norm("norm1", x)).unflatten(2, (3, HEADS, WIDTH // HEADS))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(dim=-1)
        attentions.append(attention.mean(dim=1))
        x = x + linear("attn.proj", (attention @ v).transpose(1, 2).flatten(2))
        x = x + linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("norm2", x))))
    grid = x[:, classes:].transpose(1, 2).unflatten(2, (GRID, GRID))
    maps = F.conv2d(grid, state["head.weight"], state["head.bias"], padding=1)
    stacked = torch.stack(attentions)
    return (
        x[:, :classes].mean(dim=-1),
        maps,
        stacked[:, :, :classes, classes:],
        stacked[:, :, classes:, classes:],
    )


@pytest.mark.parametrize("kind", ["v2", "plus"])
def test_mctformer_is_what_its_own_code_computes(tmp_path: Path, kind: str) -> None:
    state = make_state(20, kind)
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "best.pth")
    found = import_checkpoint(tmp_path / "best.pth", tmp_path / "c.safetensors")
    assert found.project == ("MCTformer+" if kind == "plus" else "MCTformer")
    assert (found.backbone, found.img_size) == ("deit_tiny_patch16_224", 64)
    loaded = load_classifier(tmp_path / "c.safetensors")
    assert loaded.class_set.classes == VOC_CLASSES
    network: Any = loaded.network
    imgs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    method = build_method(
        "mctformer_form", negatives="relu", rival_weight=0, layers="all", cls_layers="all"
    )
    ids = torch.tensor([[0, 7], [14, 19]])
    with torch.no_grad():
        token_logits, maps, rows, patch_attention = run_mctformer(state, imgs)
        got = network.token_maps(imgs, layer_sets=method.layer_sets(DEPTH))
        refined = method(got, ids)
    torch.testing.assert_close(got.cam, maps, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.attn_classes2patch, rows.transpose(0, 1), atol=1e-6, rtol=1e-4)
    ranked = maps.flatten(2).sort(dim=2, descending=True).values
    weights = torch.tensor([0.996 if kind == "plus" else 1.0]) ** torch.arange(GRID**2)
    map_logits = (ranked * weights).sum(dim=2) / weights.sum()
    torch.testing.assert_close(got.logits, (token_logits + map_logits) / 2, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network(imgs), got.logits, atol=1e-5, rtol=1e-4)
    # Its maps: ReLU, times each class' own attention, times the patches' attention.
    fused = maps.relu().flatten(2) * rows.mean(dim=0)
    expected = torch.einsum("bij,bkj->bki", patch_attention.mean(dim=0), fused)
    for image in range(2):
        torch.testing.assert_close(
            refined[image].flatten(1), expected[image, ids[image]], atol=1e-6, rtol=1e-3
        )


def test_an_imported_classifier_labels_images(tmp_path: Path) -> None:
    torch.save(make_state(3, "plus"), tmp_path / "best.pth")
    names = ["--classes", "red fox,hare,owl"]
    out = tmp_path / "c.safetensors"
    assert main(["import", str(tmp_path / "best.pth"), "--out", str(out), *names]) == 0
    label = PseudoLabeler.from_checkpoint(out, device="cpu")(
        np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8), ["hare", "owl"]
    )
    assert label.mask.shape == (40, 60) and list(label.maps) == ["hare", "owl"]
    assert main(["import", str(tmp_path / "best.pth"), "--out", str(out), *names]) == 2


def test_a_checkpoint_of_ts_cams_own_code(tmp_path: Path) -> None:
    torch.manual_seed(1)
    options = {"backbone": BACKBONES[192], "img_size": 64, "backbone_kwargs": {"depth": 2}}
    source = build_network(num_fg_classes=2, **options)
    state = {f"module.{n.removeprefix('backbone.')}": v for n, v in source.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "model_best.pth")
    (tmp_path / "classes.txt").write_text("1 001.Bird\n2 002.Bird\n")
    out = tmp_path / "classifier.safetensors"
    command = ["import", str(tmp_path / "model_best.pth"), "--out", str(out)]
    assert main([*command, "--classes", str(tmp_path / "classes.txt")]) == 0
    loaded = load_classifier(out)
    assert loaded.class_set.classes == ("001.Bird", "002.Bird")
    assert loaded.info == {"imported_from": "model_best.pth", "chosen_on": "oracle"}
    inputs = torch.randn(1, 3, 32, 48)
    assert torch.equal(loaded.network(inputs), source.eval()(inputs))


def test_classes_are_known_by_their_number(tmp_path: Path) -> None:
    for number, first, masks in ((80, COCO_CLASSES[0], True), (1000, "n01440764", False)):
        torch.save(make_state(number, "ts_cam"), tmp_path / f"{number}.pth")
        found = import_checkpoint(tmp_path / f"{number}.pth", tmp_path / f"{number}.safetensors")
        assert found.project == "TS-CAM" and found.class_set.classes[0] == first
        assert bool(found.class_set.mask_values) == masks


def test_files_that_are_no_such_checkpoints(tmp_path: Path) -> None:
    state = make_state(4, "v2")
    linear = {**state, "head.weight": state["head.weight"][..., 0, 0]}
    names = read_class_names
    (tmp_path / "names.txt").write_text("red fox\nhare\n")
    for changed, classes, message in (
        (linear, None, "no checkpoint of TS-CAM"),
        ({**state, "cls_token": torch.zeros(1, 3, WIDTH)}, None, "3 class tokens"),
        (state, None, "name the 4 classes"),
        (state, names(tmp_path / "names.txt"), "4 classes, but 2 are named"),
        ({**state, "pos_embed": torch.zeros(1, 4 + 15, WIDTH)}, make_classes(4), "no square"),
        ({k: v for k, v in state.items() if "fc1" not in k}, make_classes(4), "Missing"),
    ):
        torch.save(changed, tmp_path / "x.pth")
        with pytest.raises(AdcamError, match=message):
            import_checkpoint(tmp_path / "x.pth", tmp_path / "x.safetensors", classes)
    assert not (tmp_path / "x.safetensors").exists()


def make_classes(number: int) -> Any:
    from adcam.data.dataset import build_class_set

    return build_class_set("some", [f"class {i}" for i in range(number)])
