"""Fixtures of the operations' tests."""

from __future__ import annotations

import pytest
from triton_testing import stand_in_for_the_driver

from adcam.ops._backends import triton_package_reason


@pytest.fixture(scope="session", autouse=True)
def _old_triton() -> None:
    """Let the lowest Triton compile where there is no GPU."""
    if triton_package_reason() is None:
        stand_in_for_the_driver()
