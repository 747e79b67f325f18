"""What a recipe's report claims, and what it refuses to count."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcam.data.dataset import ImageDataset, Record, build_class_set
from adcam.data.png import voc_palette, write_mask
from adcam.recipe.blocks import Run
from adcam.recipe.network_report import (
    RecipeResults,
    build_network_section,
    build_recipe_report,
    describe_network,
    gain_blocks,
)
from adcam.recipe.scores import Scores, load_scores, read_losses, write_scores
from adcam.report.model import Differences, Scatter

CLASSES = build_class_set("two", ["red", "green"])
HW = (6, 10)


def scores(split: str, mious: dict[str, float]) -> Scores:
    miou = float(np.mean(list(mious.values())))
    confusion = np.array([[5, 0, 0, 0], [1, 4, 0, 0], [0, 0, 0, 0]])
    return Scores(split, len(mious), miou, (90.0, miou, math.nan), 90.0, 0.25, confusion, mious)


@pytest.fixture
def images(tmp_path: Path) -> ImageDataset:
    """Four images whose truth is one column of red; masks of the teacher and the network."""
    records = []
    for i in range(4):
        Image.new("RGB", HW[::-1], (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        for folder in ("truth", "teacher", "student"):
            mask = np.zeros(HW, np.uint8)
            mask[:, i] = 1
            write_mask(tmp_path / folder / f"{i}.png", mask, voc_palette())
        records.append(Record(str(i), tmp_path / f"{i}.png", (0,), tmp_path / "truth" / f"{i}.png"))
    return ImageDataset(CLASSES, "val", records)


@pytest.fixture
def results(tmp_path: Path, images: ImageDataset) -> RecipeResults:
    stage = {"outputs": {"files": {}}, "seconds": 1.0, "machine": "m", "versions": {"torch": "2"}}
    stages = {"train": stage, "generate": {**stage, "versions": {"torch": "3"}}}
    return RecipeResults(
        run=Run("t", "adcam run x", stages, seeds={"classifier": 4}),
        data_name="two",
        learn_from=["train", "aux"],
        pseudo_masks={"val": scores("val", {"0": 50.0, "1": 60.0, "2": 70.0, "3": 80.0})},
        network_masks=scores("val", {"0": 90.0, "1": 65.0, "2": 70.0, "3": 40.0}),
        shown=images,
        pseudo_masks_dir=tmp_path / "teacher",
        network_masks_dir=tmp_path / "student",
        losses=[(1, 2.0), (2, 1.0)],
        config={"model": {"backbone": "vit"}, "train": {"seed": 4}},
        network=None,
    )


def test_gains_are_those_of_the_same_image_and_class(results: RecipeResults) -> None:
    blocks = build_network_section(results).blocks
    (scatter,) = (block for block in blocks if isinstance(block, Scatter))
    assert (list(scatter.x), list(scatter.y)) == ([50, 60, 70, 80], [90, 65, 70, 40])
    assert "better on 2 of 4 images" in blocks[2].paragraphs[0]  # a draw is no gain
    (differences,) = (block for block in blocks if isinstance(block, Differences))
    assert list(differences.names) == ["red", "background", "green"]
    assert list(differences.values[:2]) == [1.25, 0.0]
    assert math.isnan(differences.values[2])


def test_only_some_of_many_images_are_drawn(results: RecipeResults) -> None:
    many = {str(i): 50.0 for i in range(4)} | {f"x{i}": 50.0 for i in range(4100)}
    better = {**many, "0": 60.0, "1": 60.0, "2": 40.0, "3": 40.0}  # those that pictures are of
    blocks = gain_blocks(results, scores("val", better), scores("val", many))
    (scatter,) = (block for block in blocks if isinstance(block, Scatter))
    assert len(scatter.names) == 1368
    assert scatter.caption == "One image of 3 is drawn."


def test_a_network_below_its_pseudo_masks_is_said_so(results: RecipeResults) -> None:
    finding, caution = describe_network(results)
    assert "train + aux reaches 66.2 % mIoU on val" in finding
    assert caution == []
    worse = replace(results, network_masks=scores("val", {"0": 10.0}))
    assert "55.0 points below the pseudo masks" in describe_network(worse)[1][0].paragraphs[0]
    report = build_recipe_report(worse)
    assert [item.value for item in report.headlines] == [65.0, 10.0, "−55.0"]


def test_what_is_not_up_to_date_and_labels_given_are_said(results: RecipeResults) -> None:
    model = {"decode_head": {"type": "FCNHead"}, "backbone": {"type": "ResNet"}}
    network = {"model": model, "train": {"seed": 1}, "test": {"labels": "given"}}
    stale = {"segment": "changed: a -> b", "test": "segment has not finished"}
    told = replace(results, network=network, run=replace(results.run, stale=stale))
    assert "where it is given the image labels" in describe_network(told)[0]
    assert "where it is not given the image labels" in describe_network(results)[0]
    report = build_recipe_report(told)
    assert [item.note for item in report.headlines[:2]] == ["image labels given"] * 2
    assert "skipped: segment, test" in report.lead[0].paragraphs[0]  # type: ignore[union-attr]
    assert "network FCNHead on ResNet" in report.subtitle


def test_without_a_network_or_a_rival_nothing_is_compared(results: RecipeResults) -> None:
    alone = replace(results, network_masks=None)
    report = build_recipe_report(alone)
    assert [section.title for section in report.sections] == [
        *("By class", "Confusion matrix", "Best, median, worst", "Where the time went")
    ]
    unrivalled = replace(results, pseudo_masks={"train": scores("train", {"9": 50.0})})
    titles = [section.title for section in build_recipe_report(unrivalled).sections]
    assert "Network against pseudo masks" not in titles


def test_versions_that_differ_are_given_by_stage(results: RecipeResults) -> None:
    entries = {
        name: value
        for block in build_recipe_report(results).provenance
        for name, value in block.entries.items()
    }
    assert entries["torch"] == "2 (train), 3 (generate)"
    assert entries["classifier"] == 4
    assert entries["everything"] == "adcam run x"


def test_scores_are_written_and_read(tmp_path: Path, images: ImageDataset) -> None:
    path = tmp_path / "scores.json"
    assert write_scores(images, tmp_path / "teacher", path) == 100.0
    found = load_scores(path)
    assert (found.split, found.num_images, found.miou) == ("val", 4, 100.0)
    assert found.per_image == dict.fromkeys("0123", 100.0)
    assert found.confusion[1, 1] == 4 * HW[0]
    assert math.isnan(found.iou_per_class[2])

    (tmp_path / "teacher" / "2.png").unlink()
    with pytest.raises(ValueError, match="teacher lacks the mask of 2"):
        write_scores(images, tmp_path / "teacher", path)
    bare = ImageDataset(CLASSES, "val", [replace(images.records[0], mask_path=None)])
    with pytest.raises(ValueError, match="'val' cannot be scored: 0 has no true mask"):
        write_scores(bare, tmp_path / "teacher", path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"scores\.json: no scores"):
        load_scores(path)


def test_losses_of_several_starts_are_joined(tmp_path: Path) -> None:
    for start, lines in (
        ("1", '{"loss": 3.0, "step": 1}\n{"loss": 2.5, "step": 2}\n{"lo'),
        ("2", '{"loss": 2.0, "step": 2}\n{"mIoU": 3, "step": 2}\n'),
    ):
        path = tmp_path / start / "vis_data" / "scalars.json"
        path.parent.mkdir(parents=True)
        path.write_text(lines)
    assert read_losses(tmp_path) == [(1, 3.0), (2, 2.0)]
