"""The peak of a block is its own."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from adcam.recipe.memory import peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak of a process")
def test_a_peak_is_noticed_and_forgotten() -> None:
    def hold(megabytes: int) -> int:
        with peak_memory() as peak:
            array = np.ones(megabytes << 20, np.uint8)
            del array
        assert peak.host is not None
        return peak.host

    hold(1)
    small, large, after = hold(1), hold(200), hold(1)
    assert large - small > 150 << 20
    if after > large - (100 << 20):
        pytest.skip("this system does not let a process start its peak over")
    assert abs(after - small) < 100 << 20
