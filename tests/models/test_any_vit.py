"""Networks that others built: outputs, class maps and attention as of the networks of our own."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import timm
import torch

from adcam import AdcamError, PseudoLabeler
from adcam.models.any_vit import AnyViT, find_outputs, read_timm
from adcam.models.imagenet_vit import ImageNetViT
from adcam.settings import TestViews

SMALL = TestViews((64,))
TINY = {"embed_dim": 24, "depth": 3, "num_heads": 2}


def make_vit(name: str = "vit_tiny_patch16_224", num_classes: int = 3, **changes: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(
        name, **{"img_size": 32, "num_classes": num_classes, **TINY, **changes}
    )


def test_it_says_what_the_imagenet_vit_says() -> None:
    own = ImageNetViT(
        "vit_tiny_patch16_224", classes=["dog", "tabby"], weights=None, img_size=32,
        model_kwargs=TINY,
    )  # fmt: skip
    vit = make_vit(num_classes=1000)
    vit.load_state_dict(own.vit.state_dict())
    network = AnyViT(read_timm(vit), classes=["dog", "tabby"])
    assert (network.readers, network.reads_patches) == ((0,), False)
    inputs = torch.randn(2, 3, 48, 32)  # another size than it was built for
    expected = own.token_maps(inputs, layer_sets=[(1, 2)])
    got = network.token_maps(inputs, layer_sets=[(1, 2)])
    torch.testing.assert_close(got.logits, expected.logits)
    torch.testing.assert_close(network(inputs), expected.logits)
    torch.testing.assert_close(got.attn_cls2patch, expected.attn_cls2patch)
    torch.testing.assert_close(got.attn_patch2patch, expected.attn_patch2patch)
    for ours, theirs in zip(got.cam.flatten(0, 1), expected.cam.flatten(0, 1), strict=True):
        torch.testing.assert_close(ours / ours.max(), theirs / theirs.max())


@pytest.mark.parametrize(
    ("name", "changes", "num_prefix", "readers", "reads_patches"),
    [
        ("deit_tiny_distilled_patch16_224", {}, 2, (0, 1), False),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}, 5, (0,), False),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}, 0, (), True),
        ("vit_tiny_patch16_224", {"global_pool": "map", "class_token": False}, 0, (), True),
        ("eva02_tiny_patch14_224", {"img_size": 28}, 1, (), True),
    ],
)
def test_heads_that_read_other_tokens(
    name: str,
    changes: dict[str, Any],
    num_prefix: int,
    readers: tuple[int, ...],
    reads_patches: bool,
) -> None:
    labeler = PseudoLabeler.from_timm(
        make_vit(name, **changes),
        ["cat", "dog", "horse"],
        views=TestViews((changes.get("img_size", 64),), keep_ratio=False),
        device="cpu",
    )
    network: Any = labeler.network
    assert network.num_prefix_tokens == num_prefix
    assert (network.readers, network.reads_patches) == (readers, reads_patches)
    label = labeler(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8), ["dog"])
    assert label.mask.shape == (40, 60)
    assert label.maps["dog"].max() == 1 and label.maps["dog"].std() > 0
    assert sum(label.scores.values()) == pytest.approx(1, abs=1e-5)  # a softmax


def test_outputs_with_a_sigmoid_of_their_own() -> None:
    vit = make_vit()
    labeler = PseudoLabeler.from_timm(
        vit, {"pet": [0, 1], "horse": 2}, multi_label=True, views=TestViews((32,)), device="cpu"
    )
    img = np.zeros((32, 32, 3), np.uint8)
    (inputs,) = labeler.map_maker.make_inputs(img)
    with torch.no_grad():
        outputs = vit(inputs[None])[0].sigmoid()
    scores = labeler(img).scores
    assert scores["horse"] == pytest.approx(float(outputs[2]), abs=1e-6)
    assert scores["pet"] == pytest.approx(float(outputs[:2].max()), abs=1e-6)


def test_a_labeler_goes_to_other_processes_and_is_not_compiled() -> None:
    labeler = PseudoLabeler.from_timm(make_vit(), ["a", "b", "c"], views=SMALL, device="cpu")
    img = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    sent = pickle.loads(pickle.dumps(labeler))
    np.testing.assert_array_equal(sent(img, ["a"]).mask, labeler(img, ["a"]).mask)
    assert sent.describe() == labeler.describe()
    with pytest.raises(AdcamError, match="compile=True"):
        PseudoLabeler.from_timm(make_vit(), ["a", "b", "c"], compile=True)


def test_networks_of_one_size_get_it() -> None:
    vit = make_vit("beit_base_patch16_224", img_size=32)
    labeler = PseudoLabeler.from_timm(vit, ["a", "b", "c"], device="cpu")
    assert labeler.options.views == TestViews((32,), keep_ratio=False)
    assert labeler(np.zeros((20, 30, 3), np.uint8), ["a"]).mask.shape == (20, 30)
    with pytest.raises(AdcamError, match="32×32 pixels alone"):
        labeler.network.token_maps(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, "name the classes of the 3 outputs"),
        (["a", "b"], r"'a' .*; or name all 3 outputs, in their order \(2 are\)"),
        (["a", "a", "b"], "outputs of its own"),
        ({"a": 0, "b": 0}, "outputs of its own"),
        ({"a": 7}, "0..2, got 7"),
        ("abc", "list of names"),
        ({"a", "b", "c"}, "list of names, in their order"),
        ({"a": "b"}, "'a' must stand for an output or several"),
        ({"a": 1.0}, "'a' must stand for an output or several"),
    ],
)
def test_classes_that_are_no_outputs(classes: Any, message: str) -> None:
    with pytest.raises(AdcamError, match=message):
        find_outputs(classes, 3)


def test_background_is_no_class() -> None:
    with pytest.raises(AdcamError, match="'background' is what every mask holds as 0"):
        PseudoLabeler.from_timm(make_vit(), ["background", "cat", "dog"], device="cpu")
    labeler = PseudoLabeler.from_timm(make_vit(), {"cat": 1, "dog": 2}, device="cpu")
    assert labeler.class_set.mask_values == (8, 12)


def test_one_output_is_a_class_where_it_is_a_yes_or_no_of_its_own() -> None:
    vit = make_vit(num_classes=1)
    with pytest.raises(AdcamError, match=r"all 1 outputs .*always present; .* multi_label=True"):
        PseudoLabeler.from_timm(vit, ["dog"], device="cpu")
    labeler = PseudoLabeler.from_timm(
        vit, ["dog"], multi_label=True, device="cpu", views=TestViews((32,))
    )
    img = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        logit = vit(labeler.map_maker.make_inputs(img)[0][None])[0, 0]
    label = labeler(img, ["dog"])
    assert label.scores["dog"] == pytest.approx(float(torch.sigmoid(logit)), abs=1e-6)
    assert label.maps["dog"].any()


def test_a_compiled_network_is_read_as_the_one_within() -> None:
    vit = make_vit()
    inputs = torch.randn(1, 3, 32, 32)
    network = AnyViT(read_timm(torch.compile(vit)), classes=["a", "b", "c"])
    expected = AnyViT(read_timm(vit), classes=["a", "b", "c"]).token_maps(inputs).cam
    torch.testing.assert_close(network.token_maps(inputs).cam, expected, rtol=0, atol=0)


def test_outputs_are_integers_of_any_library() -> None:
    expected = {"a": (1,), "b": (0, 2)}
    assert find_outputs({"a": np.int64(1), "b": np.array([2, 0])}, 4) == expected
    assert find_outputs({"a": torch.tensor(1), "b": torch.tensor([2, 0])}, 4) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_precisions_become_float32(dtype: torch.dtype) -> None:
    inputs = torch.randn(1, 3, 32, 32)
    rounded = AnyViT(read_timm(make_vit().to(dtype)), classes=["a", "b", "c"])
    exact = AnyViT(read_timm(make_vit().to(dtype).float()), classes=["a", "b", "c"])
    torch.testing.assert_close(rounded(inputs), exact(inputs), rtol=0, atol=0)
    assert rounded.token_maps(inputs).cam.any()


def test_networks_may_be_built_in_inference_mode() -> None:
    inputs = torch.randn(1, 3, 32, 32)
    expected = AnyViT(read_timm(make_vit()), classes=["a", "b", "c"]).token_maps(inputs)

    def make_own() -> ImageNetViT:
        torch.manual_seed(0)
        return ImageNetViT(
            "vit_tiny_patch16_224", classes=["dog"], weights=None, img_size=32, model_kwargs=TINY
        )

    with torch.inference_mode():
        network, own = AnyViT(read_timm(make_vit()), classes=["a", "b", "c"]), make_own()
        torch.testing.assert_close(network.token_maps(inputs.clone()).cam, expected.cam)
    torch.testing.assert_close(network.token_maps(inputs).cam, expected.cam)
    torch.testing.assert_close(own.token_maps(inputs).cam, make_own().token_maps(inputs).cam)


def test_classes_by_the_labels_of_a_network() -> None:
    labels = ("tench, Tinca tinca", "tabby, tabby cat", "sports car")
    assert find_outputs(["Tabby cat", "tench"], 3, labels) == {"Tabby cat": (1,), "tench": (0,)}
    assert list(find_outputs(None, 3, labels)) == list(labels)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {}, "patch_embed"),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24, "depths": (1, 1, 1, 1)}, "49"),
        ("vit_tiny_patch16_224", {"img_size": 32, **TINY, "num_classes": 0}, "24"),
    ],
)
def test_networks_that_cannot_be_used(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AdcamError, match=message):
        AnyViT(read_timm(timm.create_model(name, **options)), classes=["a", "b"])
