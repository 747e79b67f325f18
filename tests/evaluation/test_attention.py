"""The attention that the explorer shows is what AD-CAM diffuses along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adcam.cams import ADCAM
from adcam.cams.activation import read_patch_attention
from adcam.evaluation import attention
from adcam.evaluation.attention import find_attentive, read_attention
from adcam.evaluation.loop import LoopOptions
from adcam.labeling.map_maker import MapMaker
from adcam.models.classifier_file import load_classifier
from adcam.ops.common_neighbor import common_neighbor
from adcam.settings import MethodSpec, TestViews

SPEC = MethodSpec("AD-CAM", "ad_cam", {"power": 1.0}, TestViews((64, 96), flip=True))


@pytest.fixture
def img() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def scale_rows(matrix: torch.Tensor) -> np.ndarray:
    return (255 * matrix / matrix.amax(dim=1, keepdim=True)).round().numpy()


def test_rows_are_scaled_to_their_largest(tiny_checkpoint: Path, img: np.ndarray) -> None:
    classifier = load_classifier(tiny_checkpoint)
    found = read_attention(classifier, SPEC, img, options=LoopOptions(device="cpu"))
    method = ADCAM(power=1.0)
    maker = MapMaker(classifier.network, [method], views=TestViews((64,)), device="cpu")
    (maps,) = maker.run([img]).token_maps
    attn = read_patch_attention(maps, method.layers)
    assert found.grid_hw == maps.grid_hw and min(found.grid_hw) > 2
    assert np.array_equal(found.attention, scale_rows(attn[0]))
    assert np.array_equal(found.affinity, scale_rows(common_neighbor(attn, power=1.0)[0]))
    assert not np.array_equal(found.affinity, found.attention)


def test_fine_grids_are_averaged(
    tiny_checkpoint: Path, img: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "GRID_SIDE", 2)
    found = read_attention(
        load_classifier(tiny_checkpoint), SPEC, img, options=LoopOptions(device="cpu")
    )
    assert found.grid_hw == (2, 2) and found.attention.shape == found.affinity.shape == (4, 4)
    matrix = torch.rand(24, 24)
    pooled = attention._pool(matrix, (4, 6), (2, 3))
    groups = matrix.reshape(2, 2, 3, 2, 2, 2, 3, 2).mean(dim=(1, 3, 5, 7)).reshape(6, 6)
    torch.testing.assert_close(pooled, groups)


def test_the_last_method_that_refines_is_shown() -> None:
    plain = MethodSpec("CAM", "cam")
    assert find_attentive([SPEC, plain]) == SPEC
    assert find_attentive([plain]) is None
