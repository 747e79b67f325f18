"""What `adcam info` knows about this installation."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil

import numpy as np
import pytest
import torch

import adcam.ops
from adcam import installation
from adcam.progress import format_line, printable, track
from adcam.version import __version__


def test_versions_devices_and_backends() -> None:
    found = installation.collect_info()
    assert found["versions"]["adcam"] == __version__
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["versions"]["numpy"] == np.__version__
    assert found["crf_backends"]["reference"] is None and "pydensecrf" in found["crf_backends"]
    ops = [module.name for module in pkgutil.iter_modules(adcam.ops.__path__) if module.ispkg]
    choosing = {
        op
        for op in ops
        if hasattr(importlib.import_module(f"adcam.ops.{op}"), "available_backends")
    }
    for op in choosing - {"dense_crf"}:
        assert found["op_backends"][f"{op}: reference"] is None
    if found["features"]["segmentation networks (mmsegmentation)"] is None:
        assert found["versions"]["mmsegmentation"] is not None
    assert "cpu" in found["devices"]
    assert len([n for n in found["devices"] if n.startswith("cuda:")]) == torch.cuda.device_count()
    json.dumps(found)


def test_what_is_missing_or_broken_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert installation.why_not_importable("mmseg.models") == (
        "not installed; pip install 'adcam[seg]'"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def refuse(name: str) -> None:
        raise AssertionError("MMCV==9 is used but incompatible")

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert installation.why_not_importable("mmseg") == (
        "installed, but its import fails: MMCV==9 is used but incompatible"
    )


def test_progress_without_a_terminal_is_a_line_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(track(iter("abc"), "read", 3)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("read: 3/3, ")
    assert list(track([], "read", 0)) == [] and capsys.readouterr().err == ""


def test_progress_line() -> None:
    assert format_line("read", 10, 100, 5.0) == "read: 10/100, 2.0 images/s, 0:00:45 left"


def test_control_characters_are_spelled_out() -> None:
    text = "ü €\u200d 犬\x1b[2J\x07\x9b\u202e\udcff\u2028\ta\nb"
    spelled = "ü €\u200d 犬\\x1b[2J\\x07\\x9b\\u202e\\udcff\\u2028\\ta"
    assert printable(text, multiline=True) == f"{spelled}\nb"
    assert printable(text) == f"{spelled}\\nb"
    assert printable("holidays/Hund 1.jpg") == "holidays/Hund 1.jpg"
