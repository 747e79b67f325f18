"""Image classifiers of Hugging Face, small and random: the folder, the object, every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import adcam
from adcam import AdcamError, PseudoLabeler
from adcam.cli import main
from adcam.data.png import read_mask

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (extra `clip`)"
)

SMALL = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "image_size": 32, "patch_size": 16, "id2label": {0: "cat", 1: "dog", 2: "red fox"},
}  # fmt: skip
IMG = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


def make_model(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    return getattr(transformers, f"{family}ForImageClassification")(config).eval()


def make_processor() -> Any:
    return transformers.ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3)


@pytest.mark.parametrize(
    ("family", "num_prefix", "readers", "reads_patches"),
    [
        ("ViT", 1, (0,), False),
        ("DeiT", 2, (0,), False),
        ("Dinov2", 1, (0,), True),
        ("Dinov2WithRegisters", 5, (0,), True),
    ],
)
def test_families(
    family: str, num_prefix: int, readers: tuple[int, ...], reads_patches: bool
) -> None:
    model = make_model(family)
    labeler = PseudoLabeler.from_transformers(
        model, ["red fox", "cat"], image_processor=make_processor(), device="cpu"
    )
    network: Any = labeler.network
    assert (network.num_prefix_tokens, network.readers) == (num_prefix, readers)
    assert network.reads_patches == reads_patches
    assert network.pixel_stats == ((0.5,) * 3, (0.25,) * 3)
    label = labeler(IMG, ["red fox"])
    assert label.mask.shape == (40, 60) and label.maps["red fox"].std() > 0
    (inputs,) = labeler.map_maker.make_inputs(IMG)
    with torch.no_grad():
        if family == "Dinov2" or family == "Dinov2WithRegisters":
            logits = model(inputs[None]).logits
        else:
            logits = model(inputs[None], interpolate_pos_encoding=True).logits
    shares = logits[0].softmax(dim=0)
    assert label.scores["red fox"] == pytest.approx(float(shares[2]), abs=1e-5)
    assert label.scores["cat"] == pytest.approx(float(shares[0]), abs=1e-5)


def test_a_folder_is_read_without_the_hub(tmp_path: Path) -> None:
    make_model("ViT").save_pretrained(tmp_path / "vit")
    make_processor().save_pretrained(tmp_path / "vit")
    labeler = PseudoLabeler.from_transformers(str(tmp_path / "vit"), device="cpu")
    assert labeler.class_set.classes == ("cat", "dog", "red fox")
    own = PseudoLabeler.from_transformers(
        make_model("ViT"), image_processor=make_processor(), device="cpu"
    )
    np.testing.assert_allclose(labeler(IMG).probabilities, own(IMG).probabilities, atol=1e-6)
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(IMG).save(photos / "a.png")
    command = ["generate", str(photos), "--model", f"transformers:{tmp_path / 'vit'}", "--classes"]
    options = ["dog,cat", "--workers", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*command, *options]) == 0
    assert read_mask(tmp_path / "out/masks/a.png").shape == (40, 60)
    with pytest.raises(AdcamError, match=r"config\.json"):
        PseudoLabeler.from_transformers("google/vit-base-patch16-224")
    with pytest.raises(AdcamError, match="image_processor"):
        PseudoLabeler.from_transformers(make_model("ViT"))


def test_sigmoid_and_attention_of_its_own_are_understood() -> None:
    model = make_model("ViT", problem_type="multi_label_classification")
    labeler = PseudoLabeler.from_transformers(model, image_processor=make_processor(), device="cpu")
    (inputs,) = labeler.map_maker.make_inputs(IMG)
    with torch.no_grad():
        chances = model(inputs[None], interpolate_pos_encoding=True).logits[0].sigmoid()
    np.testing.assert_allclose(labeler(IMG).probabilities, chances.numpy(), atol=1e-5)


def test_output_attentions_and_recorded_attention_agree() -> None:
    model = make_model("Dinov2WithRegisters", attn_implementation="eager")
    inputs = torch.randn(1, 3, 32, 32)
    with torch.no_grad(), adcam.record_attention() as attention:
        outputs = model(inputs, output_attentions=True)
    assert len(outputs.attentions) == len(attention) == 3
    cam = torch.rand(2, 2, 2)
    from_tuple = adcam.refine(cam, outputs.attentions, num_prefix_tokens=5)
    torch.testing.assert_close(from_tuple, adcam.refine(cam, attention))
    torch.testing.assert_close(from_tuple, adcam.refine(cam, outputs))
    with pytest.raises(AdcamError, match="attn_implementation='eager'"):
        adcam.refine(cam, make_model("ViT")(inputs))
    with pytest.raises(AdcamError, match="num_prefix_tokens=5 would fit"):
        adcam.refine(cam, outputs.attentions, num_prefix_tokens=1)


@pytest.mark.parametrize(
    ("family", "prefix", "options"),
    [("CLIPVision", 1, {}), ("SiglipVision", 0, {}), ("DINOv3ViT", 5, {"num_register_tokens": 4})],
)
def test_towers_without_a_head_are_recorded(
    family: str, prefix: int, options: dict[str, Any]
) -> None:
    sizes = {key: value for key, value in SMALL.items() if key != "id2label"}
    config = getattr(transformers, f"{family}Config")(**sizes, **options)
    model = getattr(transformers, f"{family}Model")(config).eval()
    with torch.no_grad(), adcam.record_attention() as attention:
        model(torch.randn(1, 3, 32, 32))
    assert [tuple(block.shape) for block in attention] == [(1, 4 + prefix, 4 + prefix)] * 3
    assert adcam.refine(torch.rand(2, 2), attention, num_prefix_tokens=prefix).shape == (2, 2)
