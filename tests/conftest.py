"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
