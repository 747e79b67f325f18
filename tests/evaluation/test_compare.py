"""Choosing thresholds on one split and reporting on another, with maps that are known exactly."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from adcam.data.dataset import ImageDataset, Record, build_class_set
from adcam.data.folder import load_images
from adcam.data.png import voc_palette, write_mask
from adcam.evaluation import mapping
from adcam.evaluation.compare import MethodResult, format_csv
from adcam.evaluation.compare import compare_methods as compare
from adcam.masks.background import compute_mask, parse_rule
from adcam.metrics.miou import MeanIoU
from adcam.settings import MethodSpec, TestViews
from adcam.structures import ClassMaps, ClassSet, TokenMaps

CLASSES = build_class_set("two", ["red", "green"])
HW = (24, 40)
EXACT = TestViews((31,))
"""The scale at which 24×40 stays 24×40."""


@dataclass
class Colours:
    """Sees every pixel as a patch; the map of class 0 is the red channel, of class 1 the green."""

    patch_size: tuple[int, int] = (1, 1)
    depth: int = 2
    pixel_stats: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,) * 3, (1.0,) * 3)
    passes: int = 0

    def token_maps(
        self, inputs: Tensor, *, layer_sets: Sequence[tuple[int, ...]] = ()
    ) -> TokenMaps:
        self.passes += 1
        cam = inputs[:, :2]
        even = torch.full((len(cam), 2, cam[0, 0].numel()), 0.001)
        return TokenMaps(cam.mean(dim=(2, 3)), cam, (cam.shape[2], cam.shape[3]), 2, even)


@dataclass
class Two:
    """A classifier of red and green."""

    network: Colours
    class_set: ClassSet = CLASSES


def compare_methods(
    network: Colours, specs: Sequence[MethodSpec], *splits: ImageDataset, **options: Any
) -> tuple[MethodResult, ...]:
    return compare({"": Two(network)}, specs, *splits, **options).results


def make_split(
    root: Path, name: str, *, background: int, fringe: int, num_images: int = 2
) -> ImageDataset:
    """Objects of value 255 with a border of `fringe`, on `background`; the corner pixel is 0."""
    root.mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(num_images):
        img = np.zeros((*HW, 3), np.uint8)
        mask = np.zeros(HW, np.uint8)
        img[..., i % 2] = background
        img[4:20, 4 + i : 30 + i, i % 2] = fringe
        img[8:16, 8 + i : 26 + i, i % 2] = 255
        img[0, 0] = 0
        mask[4:20, 4 + i : 30 + i] = 1 + i % 2
        Image.fromarray(img).save(root / f"{name}{i}.png")
        write_mask(root / f"{name}{i}_mask.png", mask, voc_palette())
        paths = root / f"{name}{i}.png", root / f"{name}{i}_mask.png"
        records.append(Record(f"{name}{i}", paths[0], (i % 2,), paths[1]))
    return ImageDataset(CLASSES, name, records)


def literal_miou(images: ImageDataset, threshold: float) -> float:
    """Percent, over background, red and green: counts of pixels, image by image."""
    both = np.zeros((3, 3), np.int64)
    for sample in images:
        assert sample.class_ids is not None and sample.mask is not None
        (c,) = sample.class_ids
        score = sample.img[..., c] / np.float32(255)
        predicted = np.where(score > np.float32(threshold), c + 1, 0)
        for t in range(3):
            for p in range(3):
                both[t, p] += np.sum((sample.mask == t) & (predicted == p))
    union = both.sum(axis=0) + both.sum(axis=1) - both.diagonal()
    return 100 * float(np.mean(both.diagonal() / union))


@pytest.fixture
def splits(tmp_path: Path) -> tuple[ImageDataset, ImageDataset]:
    """Choosing wants a threshold in 0.5..0.7, reporting one below 0.3."""
    return (
        make_split(tmp_path, "train", background=128, fringe=180),
        make_split(tmp_path, "val", background=10, fringe=77),
    )


def test_thresholds_come_from_the_choosing_split(
    splits: tuple[ImageDataset, ImageDataset],
) -> None:
    rows = [MethodSpec("CAM", "cam", views=EXACT), MethodSpec("TS-CAM", "ts_cam", views=EXACT)]
    results = compare_methods(Colours(), rows, *splits)
    assert [result.spec for result in results] == rows
    for result in results:
        assert 128 / 255 < result.threshold < 180 / 255
        assert result.chosen_miou == pytest.approx(100)
        assert literal_miou(splits[1], 0.2) == 100
        assert result.result.miou == pytest.approx(literal_miou(splits[1], result.threshold))
        assert result.result.miou < 80
        assert result.curve is not None
        assert result.curve.best_miou == pytest.approx(100)  # what an oracle would report

    # The other way round the low threshold is chosen, and fails on the bright background.
    (swapped,) = compare_methods(Colours(), rows[:1], splits[1], splits[0])
    assert swapped.threshold < 77 / 255
    assert swapped.result.miou == pytest.approx(literal_miou(splits[0], swapped.threshold))


def test_rows_of_the_same_views_share_a_pass(splits: tuple[ImageDataset, ImageDataset]) -> None:
    network = Colours()
    rows = [MethodSpec("a", "cam", views=EXACT), MethodSpec("b", "ts_cam", views=EXACT)]
    compare_methods(network, rows, *splits)
    assert network.passes == 4  # two images in either split
    network = Colours()
    compare_methods(network, [*rows, MethodSpec("c", "cam", views=TestViews((31, 62)))], *splits)
    assert network.passes == 4 + 8


def test_options_and_views_reach_the_method(splits: tuple[ImageDataset, ImageDataset]) -> None:
    def scores(**row: Any) -> float:
        return compare_methods(Colours(), [MethodSpec("x", views=EXACT, **row)], *splits)[
            0
        ].threshold

    assert scores(method="ts_cam", options={"negatives": "keep"}) == scores(method="ts_cam")
    with pytest.raises(ValueError, match=r"no key 'power'"):
        scores(method="cam", options={"power": 2})


def test_csv_holds_every_number(splits: tuple[ImageDataset, ImageDataset]) -> None:
    rows = [
        MethodSpec("CAM, mirrored", "cam", views=TestViews((31,), flip=True)),
        MethodSpec("TS", "ts_cam", {"negatives": "keep"}, EXACT),
    ]
    results = compare_methods(Colours(), rows, *splits)
    lines = list(csv.DictReader(io.StringIO(format_csv(results, CLASSES))))
    assert len(lines) == 2
    for line, result in zip(lines, results, strict=True):
        assert line["name"] == result.spec.name
        assert line["method"] == result.spec.method
        assert float(line["threshold"]) == result.threshold
        assert float(line["miou"]) == pytest.approx(result.result.miou, abs=0.005)
        assert float(line["miou_choosing"]) == pytest.approx(result.chosen_miou, abs=0.005)
        assert float(line["best_miou_oracle"]) == pytest.approx(100)
        classes = [float(line[name]) for name in ("background", "red", "green")]
        assert np.mean(classes) == pytest.approx(result.result.miou, abs=0.05)
    assert [line["flip"] for line in lines] == ["1", "0"]
    assert [line["options"] for line in lines] == ["", "negatives=keep"]
    assert {line["scales"] for line in lines} == {"31"}


def test_a_crf_takes_the_best_of_its_thresholds(
    splits: tuple[ImageDataset, ImageDataset],
) -> None:
    """The best of the thresholds tried on the choosing split is the one reported."""
    spec = MethodSpec("CRF", "cam", views=EXACT, crf="irn", crf_thresholds=(0.05, 0.6))
    plain = MethodSpec("CAM", "cam", views=EXACT)
    first, second = compare_methods(Colours(), [spec, plain], *splits)
    assert first.spec is spec
    assert second.spec is plain
    assert first.threshold == 0.6
    assert first.rule.chosen_on == second.rule.chosen_on == "train"
    assert first.chosen_miou > literal_miou(splits[0], 0.05) + 20
    assert first.curve is None
    assert 0 < first.result.miou <= 100
    (line, _) = csv.DictReader(io.StringIO(format_csv([first, second], CLASSES)))
    assert (line["crf"], line["best_miou_oracle"]) == ("irn", "")


def test_a_rule_decides_for_each_image_and_nothing_is_chosen(
    splits: tuple[ImageDataset, ImageDataset],
) -> None:
    """Object and background are 255 and 128 on one split, 77 and 10 on the other."""
    rows = [
        MethodSpec("steepest", "cam", views=EXACT, rule="steepest:0.4"),
        MethodSpec("given", "cam", views=EXACT, rule="0.25"),
        MethodSpec("otsu", "cam", views=EXACT, rule="otsu"),
        MethodSpec("CRF", "cam", views=EXACT, rule="0.25", crf="irn"),
    ]
    results = compare_methods(Colours(), rows, *splits)
    for result in results:
        assert result.rule == parse_rule(result.spec.rule)
    given = results[1]
    assert given.chosen_miou == pytest.approx(literal_miou(splits[0], 0.25))
    assert given.result.miou == pytest.approx(literal_miou(splits[1], 0.25))
    assert given.curve is not None
    assert given.result.miou == pytest.approx(given.curve.miou[25])
    expected = MeanIoU(3)
    for sample in splits[1]:
        assert sample.class_ids is not None and sample.mask is not None
        maps = ClassMaps(sample.class_ids, sample.img[None, ..., sample.class_ids[0]] / 255)
        expected.update(compute_mask(maps, mask_values=(1, 2), rule="otsu").mask, sample.mask)
    assert results[2].result.miou == pytest.approx(expected.compute().miou)
    assert results[2].result.miou != pytest.approx(given.result.miou)
    lines = list(csv.DictReader(io.StringIO(format_csv(results, CLASSES))))
    assert [(line["rule"], line["threshold"]) for line in lines] == [
        ("steepest", "0.40"),
        ("constant", "0.25"),
        ("otsu", ""),
        ("constant", "0.25"),
    ]


def test_crf_thresholds_are_chosen_on_evenly_spread_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = make_split(tmp_path, "train", background=0, fringe=200, num_images=7)
    report = make_split(tmp_path, "val", background=0, fringe=200, num_images=2)
    refined: list[int] = []
    build = mapping.build_refinement

    def count(img: np.ndarray, **options: Any) -> Any:
        refined.append(len(refined))
        return build(img, **options)

    monkeypatch.setattr(mapping, "build_refinement", count)
    spec = MethodSpec("CRF", "cam", views=EXACT, crf="irn", crf_thresholds=(0.3, 0.4))
    network = Colours()
    (result,) = compare_methods(network, [spec], choose, report, crf_choose_images=3)
    # Images 0, 2, 4 and 6 of the choosing split, for both thresholds at once; 2 are reported.
    assert len(refined) == network.passes == 4 + 2
    assert (result.threshold, result.chosen_miou) == (0.3, 100)  # the first of two alike


def test_images_without_truth_are_refused(
    tmp_path: Path, splits: tuple[ImageDataset, ImageDataset]
) -> None:
    rows = [MethodSpec("CAM", "cam", views=EXACT)]
    unlabeled = splits[1].with_labels({"val0": [0]})
    with pytest.raises(ValueError, match=r"'val' cannot be scored: 1 of 2 images.*'val1'"):
        compare_methods(Colours(), rows, splits[0], unlabeled)
    unmasked = load_images([tmp_path / "val0.png"], classes=CLASSES)
    with pytest.raises(ValueError, match="cannot be scored"):
        compare_methods(Colours(), rows, unmasked, splits[1])
    (tmp_path / "train1_mask.png").unlink()
    with pytest.raises(ValueError, match="train1_mask"):
        compare_methods(Colours(), rows, *splits)
