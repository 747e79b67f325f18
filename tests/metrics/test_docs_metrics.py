"""The examples of docs/metrics.md and of the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_examples_of_the_page():
    result = doctest.testfile(str(ROOT / "docs" / "metrics.md"), module_relative=False)
    assert result.attempted > 20
    assert result.failed == 0


@pytest.mark.parametrize(
    "name",
    [
        "adcam.metrics.miou",
        "adcam.metrics.classification",
        "adcam.metrics.localization",
        "adcam.masks.background",
    ],
)
def test_examples_of_the_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
