"""docs/datasets.md: its commands work on miniatures of the layouts, its numbers are the code's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import HW, VOC_TRAIN, write_coco, write_image, write_sbd, write_voc

from adcam.cli import main
from adcam.convert import CONVERTERS, data_sets
from adcam.data import coco, cub, imagenet, voc
from adcam.data.formats import CAM_FORMATS
from adcam.data.png import voc_palette, write_mask

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "datasets.md").read_text("utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the page names; the counts of the whole data sets are lowered."""
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path / "data" / "VOC2012")
    write_sbd(tmp_path / "data" / "benchmark_RELEASE")
    write_coco(tmp_path / "data" / "coco14", "train2014", "val2014")
    monkeypatch.setattr(data_sets, "VOC_COUNTS", {"train_aug": 4})
    counts = {"": 3, "_objects": 2}
    lowered = {f"{split}2014{s}": n for split in ("train", "val") for s, n in counts.items()}
    monkeypatch.setattr(data_sets, "COCO_COUNTS", lowered)
    vectors = {2007000032: np.eye(20, dtype=np.float32)[3]}
    np.save("cls_labels.npy", np.array(vectors, dtype=object), allow_pickle=True)
    for name in ("a", "b/c"):
        mask = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), HW)
        write_mask(tmp_path / "my_masks" / f"{name}.png", mask, voc_palette())
        write_image(tmp_path / "my_images" / f"{name}.jpg")
    for img_id in VOC_TRAIN:
        write_image(tmp_path / "photos" / f"{img_id}.jpg")
    (tmp_path / "my_table.csv").write_text("filename;label\na.jpg;hare\nb/c.jpg;red fox\n")
    for folder in ("irn_cam", "psa_crf"):
        (tmp_path / folder).mkdir()
    maps = np.random.default_rng(0).random((2, *HW), dtype=np.float32)
    for img_id in VOC_TRAIN:
        irn = {"keys": torch.tensor([3, 14]), "cam": torch.zeros(2, 2, 3), "high_res": maps}
        crf = {0: maps[0], 4: 1 - maps[0]}
        for folder, content in (("irn_cam", irn), ("psa_crf", crf)):
            path = tmp_path / folder / f"{img_id}.npy"
            np.save(path, np.array(content, dtype=object), allow_pickle=True)
    (tmp_path / "irn_ids.txt").write_text("\n".join(VOC_TRAIN))
    return tmp_path


def test_the_commands_work(place: Path) -> None:
    pytest.importorskip("pycocotools")
    pytest.importorskip("pyarrow")
    commands = re.findall(r"^\$ adcam ((?:.*\\\n)*.+)$", TEXT, flags=re.MULTILINE)
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    shown = {words[1] for words in map(shlex.split, commands) if words[0] == "convert"}
    assert shown == set(CONVERTERS) - {"unpack"}  # docs/scale.md shows it
    for img_id in ("a", "b/c"):
        first = (place / "my_masks" / f"{img_id}.png").read_bytes()
        assert (place / "again" / f"{img_id}.png").read_bytes() == first
    assert (place / "my_labels.csv").read_text().splitlines()[0] == "image_id,labels"


def test_the_numbers_are_those_of_the_code() -> None:
    numbers = {int(n.replace(",", "")) for n in re.findall(r"\b\d[\d,]*\b", TEXT)}
    for counts in (
        {name: voc.EXPECTED_COUNTS[name] for name in ("train", "val", "train_aug")},
        coco.EXPECTED_COUNTS,
        cub.EXPECTED_COUNTS,
        imagenet.EXPECTED_COUNTS,
    ):
        assert set(counts.values()) <= numbers, counts


def test_every_format_and_source_is_named() -> None:
    from adcam.data.sources import SOURCES

    for name in (*CAM_FORMATS, *SOURCES):
        assert f"`{name}`" in TEXT, name
