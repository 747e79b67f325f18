"""The examples in the docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import adcam
import adcam.data.sources

PACKAGE = Path(adcam.__file__).resolve().parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What an example registers must not reach other tests of the process.
    for module, table in (("adcam.cams", "METHODS"), ("adcam.models.networks", "NETWORKS")):
        registered = dict(getattr(importlib.import_module(module), f"_{table}"))
        monkeypatch.setattr(f"{module}._{table}", registered)
        monkeypatch.setattr(f"{module}.{table}", registered)
    monkeypatch.setattr("adcam.data.sources.SOURCES", dict(adcam.data.sources.SOURCES))
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
