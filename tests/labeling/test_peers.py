"""Maps of pytorch-grad-cam and torch-cam, made by the packages themselves, refined in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch

import adcam
from adcam import AdcamError
from adcam.cams.normalize import min_max
from adcam.models.token_cam import TokenCAM

TINY = {"embed_dim": 24, "depth": 3, "num_heads": 2}


def sharpen(blocks: Any) -> None:
    """A random network attends everywhere alike, and rounding would decide."""
    for block in blocks:
        block.attn.qkv.weight.data *= 30


def test_pytorch_grad_cam() -> None:
    peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed (`peers`)")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    vit: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=3, reg_tokens=4, **TINY
    ).eval()
    sharpen(vit.blocks)
    inputs = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), adcam.record_attention() as expected:
        vit(inputs)
    layers = [vit.blocks[-1].norm1]
    with peer.GradCAM(vit, layers, reshape_transform=adcam.tokens_to_grid) as extractor:
        alone = extractor(inputs, [ClassifierOutputTarget(1)])
        with adcam.record_attention() as attention:
            cam = extractor(inputs, [ClassifierOutputTarget(1)])
    np.testing.assert_array_equal(cam, alone)  # recording changes nothing
    for ours, theirs in zip(attention, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert cam.shape == (1, 64, 64)
    img = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    refined = adcam.refine(cam, attention, image=img)
    assert refined.shape == (1, 64, 64) and refined.dtype == np.float32
    # A map at image size is averaged within each patch.
    grid = cam.reshape(1, 4, 16, 4, 16).mean(axis=(2, 4))
    np.testing.assert_allclose(refined, adcam.refine(grid, attention, image=img), atol=1e-4)
    mask = adcam.refine([cam[0], 1 - cam[0]], attention, image=img, crf="none")
    assert set(np.unique(mask)) <= {0, 1, 2} and mask.any()
    with pytest.raises(AdcamError, match="num_prefix_tokens=5"):
        adcam.refine(cam, attention, num_prefix_tokens=1)


def test_torch_cam() -> None:
    methods = pytest.importorskip("torchcam.methods", reason="torchcam is not installed (`peers`)")
    torch.manual_seed(0)
    network = TokenCAM("vit_tiny_patch16_224", num_fg_classes=3, img_size=64, backbone_kwargs=TINY)
    network.eval()
    sharpen(network.backbone.blocks)
    inputs = torch.randn(1, 3, 64, 64)
    with methods.GradCAM(network, "head") as extractor, adcam.record_attention() as attention:
        cams = extractor(1, network(inputs))
    with torch.no_grad():
        class_map = network.class_maps(inputs)[0][:, 1].relu()
    # The gradient of a mean of the head's output picks the map of the class.
    torch.testing.assert_close(min_max(cams[0]), min_max(class_map), atol=1e-5, rtol=0)
    refined = adcam.refine(cams, attention)
    assert refined.shape == (1, 4, 4)
    torch.testing.assert_close(refined, adcam.refine(class_map, attention), atol=1e-3, rtol=0)
    with pytest.raises(AdcamError, match="fuse_cams"):
        adcam.refine([cams[0], cams[0]], attention)
