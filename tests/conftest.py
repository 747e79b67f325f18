"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, and a slow machine is no failure. To look for new examples:
# make test PYTEST_ARGS=--hypothesis-profile=default
settings.register_profile("adcam", derandomize=True, deadline=None)
settings.load_profile("adcam")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("ADCAM_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The development data beside the repository; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the development data folder `shared` is not beside this repository")
    return SHARED


@pytest.fixture(scope="session")
def voc_animals(shared_dir: Path) -> Path:
    """Root of the real photographs (VOC layout, six classes)."""
    return shared_dir / "data" / "voc-animals"


@pytest.fixture(scope="session")
def deit_tiny(shared_dir: Path) -> Path:
    """DeiT-Tiny ImageNet weights, float16 safetensors, timm names."""
    return shared_dir / "weights" / "deit_tiny_patch16_224.fp16.safetensors"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier of cat, dog and horse, 3 blocks of width 24, patches of 16 pixels."""
    import torch

    from adcam.models.classifier_file import save_classifier
    from adcam.models.token_cam import TokenCAM
    from adcam.pipeline.config import build_classes

    torch.manual_seed(0)
    options = {
        "backbone": "vit_tiny_patch16_224",
        "img_size": 32,
        "backbone_kwargs": {"embed_dim": 24, "depth": 3, "num_heads": 2},
    }
    class_set = build_classes(["cat", "dog", "horse"])
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    network = TokenCAM(num_fg_classes=class_set.num_fg_classes, **options)
    save_classifier(path, network, options, class_set, {})
    return path
