"""Fixtures of the operations' tests."""

from __future__ import annotations

import pytest
import torch

from adcam.ops._backends import triton_not_supported_reasons


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """A CUDA device that runs Triton; tests that take it are marked ``gpu``."""
    if reasons := triton_not_supported_reasons():
        pytest.skip("; ".join(reasons))
    return torch.device("cuda")
