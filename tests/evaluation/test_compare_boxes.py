"""Boxes side by side: maps that are known exactly, splits that disagree, files, the report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from adcam.boxes import wsol
from adcam.data.dataset import ImageDataset, Record, build_class_set
from adcam.data.score_maps import SCORE_MAP_HW, read_score_map
from adcam.errors import AdcamError
from adcam.evaluation import compare_boxes as compare_boxes_module
from adcam.evaluation import loop
from adcam.evaluation.boxes import BoxCounts, map_of_true_class
from adcam.evaluation.compare_boxes import BoxResult, format_box_csv
from adcam.evaluation.compare_boxes import compare_boxes as compare
from adcam.evaluation.mapping import ImageMapper, MappedImage, MapTargets, MethodMaps, Wanted
from adcam.labeling import inputs
from adcam.metrics.localization import MaxBoxAccuracy
from adcam.models.classifier_file import ClassifierFile
from adcam.settings import MethodSpec, TestViews
from adcam.structures import Sample, TokenMaps

CLASSES = build_class_set("two", ["red", "green"], masks=False)
HW = (40, 64)
EXACT = TestViews((56,), keep_ratio=False)


class Colours(nn.Module):
    """Sees every pixel as a patch; the map of a class is a colour channel, brightness its score.

    Its classes are green, blue and red, so that ids differ from the data's.
    """

    name = "colours"
    patch_size = (1, 1)
    depth = 2
    pixel_stats = ((0.0,) * 3, (1.0,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def token_maps(
        self, inputs: Tensor, *, layer_sets: Sequence[tuple[int, ...]] = ()
    ) -> TokenMaps:
        self.passes += 1
        cam = inputs[:, [1, 2, 0]]
        even = torch.full((len(cam), 2, cam[0, 0].numel()), 0.001)
        return TokenMaps(cam.mean(dim=(2, 3)), cam, (cam.shape[2], cam.shape[3]), 2, even)


def compare_boxes(*args: Any, **options: Any) -> tuple[BoxResult, ...]:
    return compare(*args, **options).results


def make_classifiers() -> dict[str, ClassifierFile]:
    class_set = build_class_set("three", ["green", "blue", "red"], masks=False)
    return {"": ClassifierFile(Colours(), class_set)}  # type: ignore[arg-type]


def make_split(root: Path, name: str, *, halo: int, num_images: int = 4) -> ImageDataset:
    """An object of value 255 in a halo of its colour; the true box holds the object alone."""
    (root / name).mkdir(parents=True)
    records = []
    for i in range(num_images):
        img = np.zeros((*HW, 3), np.uint8)
        x0, y0 = 16 + 2 * i, 8 + 2 * i
        img[y0 - 8 : y0 + 24, x0 - 12 : x0 + 30, i % 2] = halo
        img[y0 : y0 + 16, x0 : x0 + 20, i % 2] = 255
        img[-1, -1] = 0
        Image.fromarray(img).save(root / name / f"{i}.png")
        box = (x0, y0, x0 + 20, y0 + 16)
        records.append(Record(f"{name}/{i}", root / name / f"{i}.png", (i % 2,), boxes=(box,)))
    return ImageDataset(CLASSES, name, records)


@pytest.fixture
def splits(tmp_path: Path) -> tuple[ImageDataset, ImageDataset]:
    """On val a low threshold will do, on test it takes the halo for the object."""
    return make_split(tmp_path, "val", halo=20), make_split(tmp_path, "test", halo=180)


def test_thresholds_come_from_the_choosing_split(
    splits: tuple[ImageDataset, ImageDataset],
) -> None:
    rows = [MethodSpec("CAM", "cam", views=EXACT), MethodSpec("TS-CAM", "ts_cam", views=EXACT)]
    classifiers = make_classifiers()
    results = compare_boxes(classifiers, rows, *splits)
    assert classifiers[""].network.passes == 8  # rows of the same network and views share a pass
    assert [result.spec for result in results] == rows
    for result in results:
        assert result.chosen_on == result.boxes.chosen_on == result.threshold_from == "val"
        assert result.threshold < 180 / 255
        assert result.boxes.box_acc[0.7] < 100 == result.boxes_oracle.box_acc[0.7]
        assert result.boxes_oracle.chosen_on == "oracle"
        assert result.boxes.max_box_acc_v2 <= result.boxes_oracle.max_box_acc_v2
        assert result.localization.gt_known == 0  # the halo is five times the object
        assert result.localization.errors["more"] == 100
        assert result.localization.top_cls[1] == 100
        assert sum(result.localization.iou_histogram) == 4
        assert {outcome.img_id for outcome in result.outcomes} == {f"test/{i}" for i in range(4)}
    (swapped,) = compare_boxes(classifiers, rows[:1], splits[1], splits[0])
    assert swapped.threshold >= 179 / 255  # what test wants also finds the objects of val
    assert swapped.boxes.max_box_acc_v2 == swapped.localization.gt_known == 100


def test_a_gpu_counts_images_in_another_order_and_finds_the_same(
    splits: tuple[ImageDataset, ImageDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = MethodSpec("CAM", "cam", views=EXACT)
    (expected,) = compare_boxes(make_classifiers(), [row], *splits)
    # Only the order: in a batch the last bits of a map may differ.
    monkeypatch.setattr(loop, "_run_whole", loop._run_split)
    monkeypatch.setattr(inputs, "plan_groups", lambda *_, **__: [(2, 3), (1,), (0,)])
    (found,) = compare_boxes(make_classifiers(), [row], *splits)
    assert found.to_dict() == expected.to_dict() and found.outcomes == expected.outcomes
    assert [outcome.index for outcome in found.outcomes] == [0, 1, 2, 3]


def test_images_may_be_smaller_copies_of_those_that_their_boxes_are_for(
    splits: tuple[ImageDataset, ImageDataset], tmp_path: Path
) -> None:
    def enlarge(images: ImageDataset) -> ImageDataset:
        records = [
            replace(
                r, boxes=tuple(tuple(2 * v for v in box) for box in r.boxes), boxes_hw=(80, 128)
            )
            for r in images.records
        ]
        return ImageDataset(CLASSES, images.split, records)

    rows = [MethodSpec("CAM", "cam", views=EXACT)]
    found, same = (
        compare(make_classifiers(), rows, *sets, pictures_dir=tmp_path)
        for sets in (splits, map(enlarge, splits))
    )
    assert found.results[0].to_dict() == same.results[0].to_dict()
    for picture, other in zip(found.pictures, same.pictures, strict=True):
        np.testing.assert_array_equal(picture.boxes, other.boxes)


def test_the_largest_contour_decides_the_threshold_of_gt_known(tmp_path: Path) -> None:
    """Boxes of all contours find the object at low thresholds too, where it is not the largest."""
    images = make_split(tmp_path, "val", halo=0)
    for i, record in enumerate(images.records):
        img = np.array(Image.open(record.img_path))
        img[:, 50:, i % 2] = 120
        Image.fromarray(img).save(record.img_path)
    row = MethodSpec("CAM", "cam", views=EXACT)
    (result,) = compare_boxes(make_classifiers(), [row], images, images)
    assert result.boxes.best_thresholds[0.5] < 119 / 255 < result.threshold
    assert result.threshold == result.largest.best_thresholds[0.5]
    assert result.localization.gt_known == 100


def test_true_boxes_of_gt_known_end_before_the_border_as_ts_cam_has_it() -> None:
    score_map = np.zeros((8, 8), np.float32)
    score_map[:, 4:] = 1
    sample = Sample("a", np.zeros((8, 8, 3), np.uint8), (0,), boxes=np.array([[4, 0, 8, 8]]))
    counts = BoxCounts(["CAM"], {"CAM": 0.5})
    counts.process(MappedImage(0, sample, {"CAM": MethodMaps((0,), score_map[None])}))
    (outcome,) = counts.outcomes["CAM"]
    # The predicted box ends at 8 and the true one at 7, and both sides count one pixel more.
    assert outcome.iou == pytest.approx(4 * 8 / (5 * 9))
    assert outcome.box == (0.5, 0, 1, 1)


def test_a_box_outside_of_its_image_is_named() -> None:
    boxes = np.array([[0, 0, 4, 8], [9, 0, 12, 8]])
    sample = Sample("a/b", np.zeros((8, 9, 3), np.uint8), (0,), boxes=boxes)
    maps = MethodMaps((0,), np.ones((1, 8, 8), np.float32))
    with pytest.raises(AdcamError, match=r"a/b has 9x8 pixels, .* \(9, 0, 12, 8\) lies outside"):
        BoxCounts(["CAM"]).process(MappedImage(0, sample, {"CAM": maps}))


def test_numbers_are_those_of_the_metric_on_the_written_maps(
    splits: tuple[ImageDataset, ImageDataset], tmp_path: Path
) -> None:
    rows = [MethodSpec("The CAM!", "cam", views=EXACT)]
    (result,) = compare_boxes(
        make_classifiers(), rows, *splits, score_map_dir=tmp_path / "maps", image_root=tmp_path
    )
    metrics = {}
    for images in splits:
        metrics[images.split] = MaxBoxAccuracy()
        for sample in images:
            score_map = read_score_map(tmp_path / "maps" / "the-cam" / f"{sample.img_id}.png.npy")
            boxes = wsol.scale_boxes(sample.boxes, HW, SCORE_MAP_HW)
            metrics[images.split].update(score_map, boxes)
    thresholds = metrics["val"].compute().best_thresholds
    expected = metrics["test"].compute(thresholds, chosen_on="val")
    assert result.boxes.box_acc == expected.box_acc
    assert result.boxes.best_thresholds == thresholds
    assert result.boxes_oracle.box_acc == metrics["test"].compute().box_acc


def test_stored_maps_are_scored_as_those_they_were_stored_from(
    splits: tuple[ImageDataset, ImageDataset], tmp_path: Path
) -> None:
    """Another tool's maps stand in the same table; what they cannot tell stays empty."""
    row = MethodSpec("CAM", "cam", views=EXACT)
    (ours,) = compare_boxes(
        make_classifiers(), [row], *splits, score_map_dir=tmp_path / "maps", image_root=tmp_path
    )
    stored = MethodSpec("theirs", score_maps=str(tmp_path / "maps" / "cam"))
    (theirs,) = compare_boxes({}, [stored], *splits, image_root=tmp_path)
    assert theirs.boxes.to_dict() == ours.boxes.to_dict()
    assert theirs.threshold == ours.threshold
    assert theirs.localization.gt_known == ours.localization.gt_known
    assert theirs.localization.iou_histogram == ours.localization.iou_histogram
    assert np.isnan(theirs.localization.top_loc[1]) and np.isnan(theirs.localization.top_cls[5])
    assert np.isnan(theirs.localization.per_class[0]["errors"]["part"])
    (line,) = csv.DictReader(io.StringIO(format_box_csv([theirs], splits[1])))
    assert (line["method"], line["top1_loc"], line["first_guess_part"]) == ("stored maps", "", "")
    assert line["max_box_acc_v2"] == f"{ours.boxes.max_box_acc_v2:.2f}"
    json.dumps(theirs.to_dict(), allow_nan=False)
    (tmp_path / "maps" / "cam" / "test" / "3.png.npy").unlink()
    with pytest.raises(ValueError, match=r"3\.png\.npy: cannot be read as a score map"):
        compare_boxes({}, [stored], *splits, image_root=tmp_path)
    for wrong in ({}, {"method": "cam", "score_maps": "maps"}):
        with pytest.raises(ValueError, match="either a method or score_maps"):
            MethodSpec("x", **wrong)


def test_the_same_split_twice_is_the_oracle(splits: tuple[ImageDataset, ImageDataset]) -> None:
    rows = [MethodSpec("CAM", "cam", views=EXACT)]
    (result,) = compare_boxes(make_classifiers(), rows, splits[1], splits[1])
    assert result.chosen_on == result.boxes.chosen_on == result.largest.chosen_on == "oracle"
    assert result.threshold_from == "oracle"
    assert result.boxes.box_acc == result.boxes_oracle.box_acc
    (line,) = csv.DictReader(io.StringIO(format_box_csv([result], splits[1])))
    assert (line["chosen_on"], line["threshold_from"]) == ("oracle", "oracle")


def test_a_given_threshold_is_that_of_predicted_classes_alone(
    splits: tuple[ImageDataset, ImageDataset],
) -> None:
    rows = [MethodSpec("CAM", "cam", views=EXACT)]
    (free,) = compare_boxes(make_classifiers(), rows, *splits)
    (given,) = compare_boxes(make_classifiers(), rows, *splits, threshold=0.8)
    assert (given.threshold, given.threshold_from) == (0.8, "given")
    assert given.boxes.box_acc == free.boxes.box_acc
    assert given.localization.gt_known == 100 > free.localization.gt_known
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\), got 1"):
        compare_boxes(make_classifiers(), rows, *splits, threshold=1.0)


def test_a_class_that_only_the_network_knows_is_a_wrong_prediction(tmp_path: Path) -> None:
    images = make_split(tmp_path, "test", halo=20)
    for record in images.records[:2]:
        img = np.array(Image.open(record.img_path))
        img[..., 2] = 200  # blue wins, and is none of the data's classes
        Image.fromarray(img).save(record.img_path)
    (result,) = compare_boxes(
        make_classifiers(), [MethodSpec("CAM", "cam", views=EXACT)], images, images
    )
    assert result.localization.top_cls == {1: 50, 5: 100}
    assert result.localization.errors["classification"] == 50
    assert set(result.localization.per_class) == {0, 1}
    network = make_classifiers()
    network[""] = ClassifierFile(
        network[""].network, build_class_set("x", ["green", "blue", "pink"])
    )
    with pytest.raises(ValueError, match=r"network '' does not know \['red'\]; its classes are"):
        compare_boxes(network, [MethodSpec("CAM", "cam")], images, images)


def test_methods_whose_classes_do_not_compete_keep_their_options() -> None:
    specs = [MethodSpec("a", "cam"), MethodSpec("b", "refined", {"color_steps": 3})]
    cam, refined = compare_boxes_module._without_rivals(specs)
    assert cam.options == {"rival_weight": 0.0} and refined.options == {"color_steps": 3}


def test_the_map_of_a_class_does_not_depend_on_the_predictions(tmp_path: Path) -> None:
    images = make_split(tmp_path, "test", halo=0)
    rng = np.random.default_rng(0)
    for record in images.records:  # every class is everywhere
        Image.fromarray(rng.integers(0, 256, (*HW, 3), dtype=np.uint8)).save(record.img_path)
    spec = MethodSpec("CAM", "cam", {"rival_weight": 0.0}, EXACT)

    def score_maps(top_k: int) -> list[np.ndarray]:
        mapper = ImageMapper(
            [spec],
            make_classifiers(),
            CLASSES,
            MapTargets(top_k, SCORE_MAP_HW),
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        mapped = mapper.map_batch([Wanted(i, one, {"CAM"}) for i, one in enumerate(images)])
        assert all(len(image.maps["CAM"].top_predictions) == top_k for image in mapped)
        return [map_of_true_class(image.sample, image.maps["CAM"]) for image in mapped]

    np.testing.assert_allclose(score_maps(0), score_maps(3), rtol=0, atol=1e-6)


def test_what_cannot_be_scored(splits: tuple[ImageDataset, ImageDataset], tmp_path: Path) -> None:
    rows = [MethodSpec("CAM", "cam", views=EXACT)]
    boxless = ImageDataset(
        CLASSES, "bare", [Record(r.img_id, r.img_path, r.class_ids) for r in splits[0].records]
    )
    both = splits[1].with_labels({r.img_id: [0, 1] for r in splits[1].records})
    for images, first in ((boxless, "val/0"), (both, "test/0")):
        with pytest.raises(ValueError, match=f"cannot be scored by boxes: 4 of 4.*{first}"):
            compare_boxes(make_classifiers(), rows, splits[0], images)
    with pytest.raises(ValueError, match="2 of the 4 images of 'test' are among those that choose"):
        compare_boxes(make_classifiers(), rows, splits[1][::2], splits[1])
    with pytest.raises(ValueError, match="has no images"):
        compare_boxes(make_classifiers(), rows, splits[0][:0], splits[1])
    with pytest.raises(ValueError, match=r"no network 'b'; there are \[''\]"):
        compare_boxes(make_classifiers(), [MethodSpec("CAM", "cam", network="b")], *splits)
    with pytest.raises(ValueError, match="score maps on disk need image_root"):
        compare_boxes(make_classifiers(), rows, *splits, score_map_dir=tmp_path)
    twins = [MethodSpec("a b", "cam", views=EXACT), MethodSpec("a-b", "cam", views=EXACT)]
    with pytest.raises(ValueError, match="two rows would write into one folder"):
        compare_boxes(
            make_classifiers(), twins, *splits, score_map_dir=tmp_path, image_root=tmp_path
        )


def test_csv_holds_every_number(splits: tuple[ImageDataset, ImageDataset]) -> None:
    rows = [
        MethodSpec(
            "CAM", "cam", {"negatives": "relu"}, TestViews((56,), flip=True, keep_ratio=False)
        )
    ]
    results = compare_boxes(make_classifiers(), rows, *splits)
    (line,) = csv.DictReader(io.StringIO(format_box_csv(results, splits[1])))
    (result,) = results
    assert line["max_box_acc_v2"] == f"{result.boxes.max_box_acc_v2:.2f}"
    for name, delta in (("30", 0.3), ("50", 0.5), ("70", 0.7)):
        assert line[f"box_acc_{name}"] == f"{result.boxes.box_acc[delta]:.2f}"
        assert line[f"threshold_{name}"] == f"{result.boxes.best_thresholds[delta]:.3f}"
        assert line[f"box_acc_{name}_oracle"] == f"{result.boxes_oracle.box_acc[delta]:.2f}"
    assert line["top1_loc"] == f"{result.localization.top_loc[1]:.2f}"
    assert line["gt_known"] == f"{result.localization.gt_known:.2f}"
    assert (line["split"], line["images"], line["chosen_on"]) == ("test", "4", "val")
    assert (line["options"], line["flip"], line["keep_ratio"]) == ("negatives=relu", "1", "0")
    json.dumps(result.to_dict(), allow_nan=False)


def test_views_are_those_of_the_row(splits: tuple[ImageDataset, ImageDataset]) -> None:
    seen: list[Any] = []

    class Sizes(Colours):
        def token_maps(
            self, inputs: Tensor, *, layer_sets: Sequence[tuple[int, ...]] = ()
        ) -> TokenMaps:
            seen.append(tuple(inputs.shape))
            return super().token_maps(inputs, layer_sets=layer_sets)

    classifiers = make_classifiers()
    classifiers[""] = ClassifierFile(Sizes(), classifiers[""].class_set)  # type: ignore[arg-type]
    square = TestViews((224,), keep_ratio=False)
    rows = [
        MethodSpec("a", "cam", views=square),
        MethodSpec("b", "cam", views=TestViews((24, 48), flip=True)),
    ]
    compare_boxes(classifiers, rows, splits[0][:1], splits[0][:1])
    assert seen[:3] == [(1, 3, 224, 224), (2, 3, 19, 30), (2, 3, 38, 61)]
