"""The demo's network: how to get it where mmsegmentation is absent, and the whole demo."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from adcam.demo import demo
from adcam.report.model import Text


def test_without_mmsegmentation_the_demo_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "not installed; pip install 'adcam[seg]'"
    monkeypatch.setattr(demo, "why_not_importable", lambda module, extra: reason)
    section = demo.make_network_section([], cfg=Config({}), work_dir=tmp_path)
    (hint,) = section.blocks
    assert isinstance(hint, Text)
    assert "pip install 'adcam[seg]'" in hint.paragraphs[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of mmengine, mmseg and tensorboard
def test_the_quick_demo_trains_a_network_on_its_masks(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    page = demo.run_demo(tmp_path, quick=True).read_text("utf-8")
    assert "A network that learns from the masks" in page
    assert "The network is better on" in page
    assert (tmp_path / "run" / "network" / "test" / "scores.json").is_file()
