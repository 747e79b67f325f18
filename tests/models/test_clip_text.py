"""CLIP with a text for each class: small random CLIPs of both libraries, Grad-CAM as the oracle."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from adcam import AdcamError, PseudoLabeler, tokens_to_grid
from adcam.cli import main
from adcam.data.png import read_mask
from adcam.models.clip_text import BACKGROUNDS, read_texts, resize_position
from adcam.settings import TestViews

IMG = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
CLASSES = ["red fox", "person=person with clothes|people"]


def make_open_clip() -> tuple[Any, Any]:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed (`clip`)")
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=3, width=48, head_width=24, patch_size=16, image_size=64)
    text = CLIPTextCfg(width=32, heads=2, layers=2)
    model = open_clip.CLIP(32, vision, text).eval()
    return model, open_clip.get_tokenizer("ViT-B-32")


def make_transformers_clip(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    letters = [*"abcdefghijklmnopqrstuvwxyz.", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz.")]
    vocab = {t: i for i, t in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    config = transformers.CLIPConfig(
        text_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 48, "vocab_size": len(vocab), "bos_token_id": len(vocab) - 2,
            "eos_token_id": len(vocab) - 1, "pad_token_id": len(vocab) - 1,
        },
        vision_config={
            "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
            "intermediate_size": 48, "image_size": 64, "patch_size": 16,
        },
        projection_dim=32,
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77).save_pretrained(folder)
    transformers.CLIPImageProcessor(crop_size=64, size=64).save_pretrained(folder)
    return folder


@pytest.fixture(params=["open_clip", "transformers"])
def labeler(request: pytest.FixtureRequest, tmp_path: Path) -> PseudoLabeler:
    if request.param == "transformers":
        return PseudoLabeler.from_clip(make_transformers_clip(tmp_path), CLASSES, device="cpu")
    model, tokenizer = make_open_clip()
    return PseudoLabeler.from_clip(model, CLASSES, tokenizer=tokenizer, device="cpu")


def test_scores_are_shares_of_a_softmax_over_classes_and_backgrounds(
    labeler: PseudoLabeler,
) -> None:
    network: Any = labeler.network
    assert labeler.class_set.classes == ("red fox", "person")
    assert network.class_groups == ((0,), (1, 2))
    assert (network.depth, network.num_prefix_tokens, network.readers) == (3, 1, (0,))
    (inputs,) = labeler.map_maker.make_inputs(IMG)
    with torch.no_grad():
        similarities = network.model(inputs[None])
    assert similarities.shape == (1, 3 + len(BACKGROUNDS))
    shares = similarities[0].softmax(dim=0)
    label = labeler(IMG, ["person"])
    assert label.scores["person"] == pytest.approx(float(shares[1:3].sum()), abs=1e-5)
    assert label.mask.shape == (40, 60) and label.maps["person"].std() > 0


class Shares(nn.Module):
    """What CLIP-ES explains: the softmax over texts of classes and backgrounds."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        shares: Tensor = self.network.model(inputs).softmax(dim=1)
        return shares


def test_class_maps_are_those_of_pytorch_grad_cam(labeler: PseudoLabeler) -> None:
    peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed (`peers`)")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network: Any = labeler.network
    inputs = torch.randn(1, 3, 64, 96)
    own = network.token_maps(inputs).cam[0, 0]
    network.requires_grad_(True)  # it skips activations without a gradient

    def to_grid(tokens: Tensor) -> Tensor:
        return tokens_to_grid(tokens, grid_hw=(4, 6))

    with peer.GradCAM(Shares(network), [network._norm], reshape_transform=to_grid) as extractor:
        extractor.get_target_width_height = lambda _: None  # on the grid of patches
        (theirs,) = extractor(inputs, [ClassifierOutputTarget(0)])
    scaled = (own - own.min()) / (own.max() - own.min() + 1e-7)
    np.testing.assert_allclose(scaled.numpy(), theirs, atol=1e-3)


def test_any_class_by_text_on_the_command_line(tmp_path: Path) -> None:
    folder = make_transformers_clip(tmp_path / "clip")
    (tmp_path / "photos").mkdir()
    Image.fromarray(IMG).save(tmp_path / "photos/a.png")
    words = ["generate", str(tmp_path / "photos"), "--model", f"clip:{folder}", "--classes"]
    options = [
        "red fox,person=person|people",
        "--scales",
        "64",
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    assert main([*words, *options, "--out", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())["labeler"]
    assert config["classes"] == ["red fox", "person"]
    assert config["method_options"]["init"] == "cam"
    labeler = PseudoLabeler.from_clip(
        folder, ["red fox", "person=person|people"], views=TestViews((64,)), device="cpu"
    )
    label = labeler(IMG, ["red fox", "person"])
    np.testing.assert_array_equal(read_mask(tmp_path / "out/masks/a.png"), label.mask)


def test_the_native_size_is_what_the_library_says_itself() -> None:
    model, tokenizer = make_open_clip()
    labeler = PseudoLabeler.from_clip(model, ["fox"], tokenizer=tokenizer, device="cpu")
    network: Any = labeler.network
    inputs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        image = model.encode_image(inputs, normalize=True)
        texts = [f"a clean origami {text}." for text in ("fox", *BACKGROUNDS)]
        text = model.encode_text(tokenizer(texts), normalize=True)
        expected = model.logit_scale.exp() * image @ text.T
        torch.testing.assert_close(network.model(inputs), expected)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_come_from_a_file(tmp_path: Path, suffix: str) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed (`clip`)")
    model, tokenizer = make_open_clip()
    config = {
        "embed_dim": 32,
        "vision_cfg": {
            **{"layers": 3, "width": 48, "head_width": 24},
            **{"patch_size": 16, "image_size": 64},
        },
        "text_cfg": {"width": 32, "heads": 2, "layers": 2},
    }
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    loaded = PseudoLabeler.from_clip("tiny-clip", CLASSES, weights=path, device="cpu")
    own = PseudoLabeler.from_clip(model, CLASSES, tokenizer=tokenizer, device="cpu")
    np.testing.assert_allclose(loaded(IMG).probabilities, own(IMG).probabilities, atol=1e-6)
    sent = pickle.loads(pickle.dumps(loaded))
    np.testing.assert_array_equal(sent(IMG).probabilities, loaded(IMG).probabilities)
    (tmp_path / "other.pt").write_bytes(b"<html>not found</html>")
    for name, weights, message in (
        ("ViT-B-61", None, "neither a folder of a CLIP nor a model of open_clip"),
        ("tiny-clip", tmp_path / "absent.pt", "no such weights file"),
        ("tiny-clip", tmp_path / "other.pt", r"other\.pt"),
        ("ViT-B-32", path, "weights do not fit CLIP"),
    ):
        with pytest.raises(AdcamError, match=message):
            PseudoLabeler.from_clip(name, ["fox"], weights=weights)


def test_a_clip_of_half_precision_becomes_float32_and_unknown_methods_are_named() -> None:
    model, tokenizer = make_open_clip()
    options: dict[str, Any] = {"tokenizer": tokenizer, "device": "cpu"}
    exact = PseudoLabeler.from_clip(model, CLASSES, **options)(IMG)
    with torch.inference_mode():
        half = PseudoLabeler.from_clip(make_open_clip()[0].half(), CLASSES, **options)(IMG)
    np.testing.assert_allclose(half.probabilities, exact.probabilities, atol=2e-3)
    with pytest.raises(AdcamError, match="got 'adcam'; did you mean 'ad_cam'"):
        PseudoLabeler.from_clip(model, CLASSES, method="adcam", **options)


def test_positions_are_resampled_in_the_patches_alone() -> None:
    position = torch.arange(5.0)[:, None].expand(5, 3)
    assert resize_position(position, (2, 2), (2, 2)) is position
    larger = resize_position(position, (2, 2), (4, 6))
    assert larger.shape == (25, 3)
    torch.testing.assert_close(larger[0], position[0])
    assert 1 <= float(larger[1:].mean()) <= 4


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "no classes given"),
        ("fox", "list of names"),
        ({"red fox", "hare"}, "list of names, in their order"),
        (["fox", ""], "a name and texts"),
        (["fox=red|"], "a name and texts"),
        (["fox", "fox"], "given twice"),
        (["fox", "animal=dog|Fox"], "two classes have the text"),
    ],
)
def test_texts_that_make_no_classes(classes: Any, message: str) -> None:
    with pytest.raises(AdcamError, match=message):
        read_texts(classes)
