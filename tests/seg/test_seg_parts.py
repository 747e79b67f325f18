"""What this project adds to mmsegmentation: head, backbone, loss, samples, several views."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("mmseg", reason="mmsegmentation is not installed (extra `seg`)")

from adcam.models.weights import load_any_backbone_weights
from adcam.seg.dataset import SegmentationDataset, WholeImages, index_of_value, value_of_index
from adcam.seg.deeplab_v2 import DeepLabV2Head
from adcam.seg.losses import ConfidenceCrossEntropy
from adcam.seg.segmenter import Segmenter, SegViews, build_segmenter
from adcam.seg.timm_cnn import TimmCNN
from adcam.seg.timm_vit import TimmViT
from adcam.structures import ClassSet, Sample

# Warnings raised inside mmcv and mmsegmentation are theirs.
pytestmark = pytest.mark.filterwarnings("default")

TINY = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
CLASSES = ClassSet("animals", ("cat", "dog"), (8, 12), tuple((i, i, i) for i in range(256)))


def make_sample(seed: int = 0, hw: tuple[int, int] = (20, 31)) -> Sample:
    rng = np.random.default_rng(seed)
    img = rng.integers(0, 256, (*hw, 3), dtype=np.uint8)
    return Sample("a", img, (0, 1), rng.choice(np.array([0, 8, 12, 255], np.uint8), hw))


def test_values_become_indices_and_back() -> None:
    table = index_of_value(CLASSES)
    assert table[[0, 8, 12, 255]].tolist() == [0, 1, 2, 255]
    assert (np.delete(table, [0, 8, 12]) == 255).all()
    assert value_of_index(CLASSES)[table[[0, 8, 12]]].tolist() == [0, 8, 12]


def test_a_sample_without_transforms_keeps_its_pixels() -> None:
    sample = make_sample()
    item = SegmentationDataset([sample], CLASSES, [])[0]
    rgb = item["inputs"].numpy().transpose(1, 2, 0)[:, :, ::-1]
    np.testing.assert_array_equal(rgb, sample.img)
    np.testing.assert_array_equal(
        item["data_samples"].gt_sem_seg.data[0].numpy(), index_of_value(CLASSES)[sample.mask]
    )
    whole = WholeImages([sample], CLASSES)[0]
    np.testing.assert_array_equal(whole["img"], sample.img)
    np.testing.assert_array_equal(whole["target"], index_of_value(CLASSES)[sample.mask])


def test_mask_and_confidence_move_with_the_image() -> None:
    """Each pixel carries its own place in colour, mask and weight, whatever is cut or mirrored."""
    height, width = 24, 40
    ys, xs = np.mgrid[:height, :width].astype(np.uint8)
    img = np.stack([ys, xs, ys], axis=2)
    mask = np.where(xs < 20, 8, 12).astype(np.uint8)
    pipeline = [
        {"type": "RandomCrop", "crop_size": (16, 16)},
        {"type": "RandomFlip", "prob": 0.5},
    ]
    images = [Sample("a", img, (0, 1), mask)] * 12
    np.random.seed(0)
    crops = SegmentationDataset(images, CLASSES, pipeline, lambda sample: ys * 40 % 251 + xs)
    for i in range(12):
        item = crops[i]
        _, x, y = item["inputs"].numpy()  # blue, green, red
        assert x.shape == (16, 16)
        samples = item["data_samples"]
        np.testing.assert_array_equal(samples.gt_sem_seg.data[0].numpy(), np.where(x < 20, 1, 2))
        np.testing.assert_array_equal(samples.weight_map.data[0].numpy(), y * 40 % 251 + x)


def test_a_sample_without_a_mask_is_an_error() -> None:
    sample = Sample("bare", np.zeros((4, 4, 3), np.uint8))
    for images in (SegmentationDataset([sample], CLASSES, []), WholeImages([sample], CLASSES)):
        with pytest.raises(ValueError, match="'bare' has no mask"):
            images[0]


def test_confidence_weighs_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    label = torch.randint(0, 3, (2, 4, 5), generator=generator)
    label[0, 0] = 255
    weight = torch.randint(0, 256, (2, 4, 5), generator=generator).to(torch.uint8)
    pixels = F.cross_entropy(logits, label, reduction="none", ignore_index=255)
    for gamma in (0.0, 1.0, 2.0):
        loss = ConfidenceCrossEntropy(gamma=gamma, loss_weight=0.4)
        loss.weight_map = weight
        trust = (weight.double() / 255) ** gamma * (label != 255)
        expected = 0.4 * float((pixels.double() * trust).sum() / trust.sum())
        assert float(loss(logits, label)) == pytest.approx(expected, rel=1e-5)


def test_without_weights_the_loss_is_the_mean_over_labelled_pixels() -> None:
    logits = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    label = torch.full((1, 4, 5), 255)
    assert float(ConfidenceCrossEntropy()(logits, label)) == 0  # and no division by zero
    label[0, :2] = 1
    expected = F.cross_entropy(logits, label, ignore_index=255)
    torch.testing.assert_close(ConfidenceCrossEntropy()(logits, label), expected)
    with pytest.raises(ValueError, match="gamma must be at least 0, got -1"):
        ConfidenceCrossEntropy(gamma=-1)


def test_deeplab_v2_sums_dilated_convolutions() -> None:
    torch.manual_seed(0)
    # mmsegmentation builds its default loss by name, whatever scope an earlier test left behind.
    with DefaultScope.overwrite_default_scope("mmseg"):
        head = DeepLabV2Head(in_channels=5, in_index=1, num_classes=3, dilations=(1, 2))
    features = torch.randn(2, 5, 9, 7)
    out = head([torch.empty(0), features])
    expected = sum(
        F.conv2d(features, branch.weight, branch.bias, padding=d, dilation=d)
        for d, branch in zip((1, 2), head.branches, strict=True)
    )
    torch.testing.assert_close(out, expected)
    # One input pixel reaches as far as the largest dilation, and no further.
    impulse = torch.zeros(1, 5, 9, 9)
    impulse[0, 0, 4, 4] = 1
    reach = head([None, impulse]) - head([None, torch.zeros_like(impulse)])
    assert sorted({abs(int(y) - 4) for y in reach[0, 0].abs().sum(dim=1).nonzero()}) == [0, 1, 2]
    assert {name.split(".")[0] for name in head.state_dict()} == {"branches"}


def test_a_vit_gives_maps_of_chosen_depths_at_any_size() -> None:
    torch.manual_seed(0)
    vit = TimmViT("vit_tiny_patch16_224", img_size=32, out_indices=(0, -1), backbone_kwargs=TINY)
    vit.eval()
    images = torch.randn(2, 3, 40, 64)
    first, last = vit(images)
    assert first.shape == last.shape == (2, 24, 5, 8)
    tokens = vit.network.forward_features(images)[:, vit.network.num_prefix_tokens :]
    torch.testing.assert_close(last, tokens.transpose(1, 2).reshape(2, 24, 5, 8))


def test_a_vit_keeps_no_parameter_that_nothing_depends_on() -> None:
    vit = TimmViT(
        "vit_tiny_patch16_224", img_size=32, out_indices=(1,), norm=False, backbone_kwargs=TINY
    )
    sum(out.square().sum() for out in vit(torch.randn(1, 3, 32, 32))).backward()
    assert len(vit.network.blocks) == 2
    assert [name for name, p in vit.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("out_stride", "grids"), [(32, [8, 4, 2]), (16, [8, 4, 4])])
def test_a_cnn_gives_maps_of_chosen_strides_and_takes_published_weights(
    out_stride: int, grids: list[int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    published = timm.create_model("tf_efficientnet_lite0").eval()
    torch.save(published.state_dict(), tmp_path / "lite0.pth")
    cnn = TimmCNN("tf_efficientnet_lite0", out_indices=(2, 3, 4), out_stride=out_stride)
    load_any_backbone_weights(cnn.network, tmp_path / "lite0.pth")
    cnn.eval()
    images = torch.randn(2, 3, 64, 96)
    maps = cnn(images)
    expected = [(2, d, n, n * 3 // 2) for d, n in zip((40, 112, 320), grids, strict=True)]
    assert [tuple(m.shape) for m in maps] == expected
    early = published.blocks[:3](published.bn1(published.conv_stem(images)))
    torch.testing.assert_close(maps[0], early)
    cnn.train()
    sum(m.square().sum() for m in cnn(images)).backward()
    assert [name for name, p in cnn.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (SegViews(), [(368, 496)]),
        (SegViews(scales=(0.5, 1.0)), [(192, 256), (368, 496)]),
        (SegViews(short_side=512), [(512, 688)]),
        (SegViews(scales=(0.001,)), [(16, 16)]),
    ],
)
def test_sizes_of_views(views: SegViews, expected: list[tuple[int, int]]) -> None:
    assert views.sizes((373, 500)) == expected


def make_segmenter(views: SegViews = SegViews(), **options: Any) -> Segmenter:  # noqa: B008
    torch.manual_seed(0)
    model = {
        "data_preprocessor": {
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
        },
        "backbone": {
            "type": "TimmViT",
            "name": "vit_tiny_patch16_224",
            "img_size": 32,
            "backbone_kwargs": TINY,
        },
        "decode_head": {
            "type": "FCNHead",
            "in_channels": 24,
            "in_index": 0,
            "channels": 16,
            "num_convs": 1,
            "concat_input": False,
            "num_classes": 3,
            "norm_cfg": {"type": "SyncBN"},
            "loss_decode": {"type": "ConfidenceCrossEntropy"},
        },
        "test_cfg": {"mode": "whole"},
        **options,
    }
    segmenter = build_segmenter(model, amp="none", views=views, crop_size=(32, 32), sync=False)
    return segmenter.eval()


def test_on_one_device_batch_statistics_are_its_own() -> None:
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in make_segmenter().modules())


def test_one_view_is_what_mmsegmentation_predicts() -> None:
    segmenter = make_segmenter()
    img = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    prob = segmenter.compute_probabilities(img)
    assert prob.shape == (3, 32, 48)
    np.testing.assert_allclose(prob.sum(axis=0), 1, atol=1e-5)
    bgr = torch.from_numpy(np.ascontiguousarray(img[:, :, ::-1].transpose(2, 0, 1)))
    data = segmenter.data_preprocessor({"inputs": [bgr]}, False)
    with torch.no_grad():
        (theirs,) = segmenter(**data, mode="predict")
    expected = theirs.seg_logits.data.softmax(dim=0).numpy()
    np.testing.assert_allclose(prob, expected, atol=1e-5)


def test_mirroring_the_image_mirrors_what_flipped_views_say() -> None:
    segmenter = make_segmenter(SegViews(scales=(1.0, 1.5), flip=True))
    img = np.random.default_rng(1).integers(0, 256, (40, 33, 3), dtype=np.uint8)
    prob = segmenter.compute_probabilities(img)
    mirrored = segmenter.compute_probabilities(np.ascontiguousarray(img[:, ::-1]))
    np.testing.assert_allclose(prob, mirrored[:, :, ::-1], atol=1e-4)
    single = make_segmenter(SegViews(scales=(1.0, 1.5))).compute_probabilities(img)
    assert np.abs(prob - single).max() > 1e-4


def test_the_order_of_channels_is_the_configs() -> None:
    """Without ``bgr_to_rgb`` a network sees BGR, in testing as in training."""
    segmenter = make_segmenter(
        data_preprocessor={"mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395]}
    )
    img = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    bgr = torch.from_numpy(np.ascontiguousarray(img[:, :, ::-1].transpose(2, 0, 1)))
    seen: list[Tensor] = []
    segmenter.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    segmenter.compute_probabilities(img)
    trained_on = segmenter.data_preprocessor({"inputs": [bgr]}, False)["inputs"]
    torch.testing.assert_close(seen[0], trained_on)


def test_weights_of_small_images_are_padded_like_their_labels() -> None:
    """7×11 pixels under crops of 32×32: the loss is that of the labelled pixels, weighed."""
    segmenter = make_segmenter()
    images = [make_sample(seed, (7, 11)) for seed in range(2)]
    ramp = np.arange(77, dtype=np.uint8).reshape(7, 11)
    dataset = SegmentationDataset(images, CLASSES, [], lambda sample: ramp)
    data = segmenter.data_preprocessor(pseudo_collate([dataset[0], dataset[1]]), True)
    with torch.no_grad():
        loss = segmenter.loss(**data)["decode.loss_ce"]
        logits = segmenter.decode_head(segmenter.extract_feat(data["inputs"]))
    logits = F.interpolate(logits, (32, 32), mode="bilinear")[:, :, :7, :11]
    label = torch.stack([sample.gt_sem_seg.data[0, :7, :11] for sample in data["data_samples"]])
    pixels = F.cross_entropy(logits, label, reduction="none", ignore_index=255)
    trust = torch.from_numpy(ramp).float() * (label != 255)
    torch.testing.assert_close(loss, (pixels * trust).sum() / trust.sum())


def test_building_a_network_leaves_the_config_alone() -> None:
    model = {"data_preprocessor": {"mean": [0.0], "std": [1.0]}, "backbone": {}, "decode_head": {}}
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="model cannot be used"):
        build_segmenter(model, amp="none", views=SegViews(), crop_size=(8, 8), sync=False)
    assert model == before


def test_another_kind_of_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.type must be 'EncoderDecoder'"):
        make_segmenter(type="CascadeEncoderDecoder")
    with pytest.raises(ValueError, match="amp must be 'none', 'bfloat16' or 'float16'"):
        build_segmenter(
            {"data_preprocessor": {}, "backbone": {}, "decode_head": {}},
            amp="fp8",
            views=SegViews(),
            crop_size=(8, 8),
            sync=False,
        )
