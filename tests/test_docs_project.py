"""docs/project.md: its commands, on generated photographs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcam.cli import main
from adcam.data.png import read_mask
from adcam.data.shapes import CLASSES, render

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty photographs and a table of what they show, as somebody's spreadsheet saves it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADCAM_WEIGHTS", raising=False)
    rng = np.random.default_rng(0)
    rows = ["Filename;Labels\n"]
    (tmp_path / "photos").mkdir()
    for number in range(30):
        img, _, class_ids = render(rng, size_hw=(64, 96))
        Image.fromarray(img).save(tmp_path / "photos" / f"IMG_{number:04d}.JPG", quality=92)
        names = "|".join(CLASSES[i] for i in class_ids)
        rows.append(f"IMG_{number:04d}.JPG;{names}\n")
    (tmp_path / "labels.csv").write_text("".join(rows))
    return tmp_path


def test_the_commands_work(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "project.md").read_text("utf-8")
    commands = re.findall(r"(?m)^\$ adcam (.+)$", text)
    assert len(commands) <= 4  # from a folder to COCO's json
    for command in commands:
        # Two epochs in place of forty, in this process.
        fast = " --cfg-options train.epochs=2 train.num_workers=0" if command == "train" else ""
        assert main(shlex.split(command + fast)) == 0, command
        capsys.readouterr()
    coco = json.loads((place / "coco.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert names == dict(enumerate(sorted(CLASSES), start=1))
    assert len(coco["images"]) == 30 and coco["annotations"]
    assert read_mask(place / "out" / "masks" / "IMG_0000.png").max() <= len(CLASSES)
