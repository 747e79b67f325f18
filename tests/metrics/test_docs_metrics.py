"""The examples of docs/metrics.md run and print what they say."""

from __future__ import annotations

import doctest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_examples_of_the_page():
    result = doctest.testfile(str(ROOT / "docs" / "metrics.md"), module_relative=False)
    assert result.attempted > 20
    assert result.failed == 0
