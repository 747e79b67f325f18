"""Evaluation of files: which images count, and numbers known beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adcam.data.png import voc_palette, write_mask
from adcam.data.sources import build_classes
from adcam.evaluation.masks_on_disk import THRESHOLDS, evaluate_maps, evaluate_masks
from adcam.labeling.maps_file import encode_maps, load_maps
from adcam.metrics.miou import MeanIoU
from adcam.structures import ClassMaps

CLASSES = build_classes(["cat", "dog"])


def write(folder: Path, name: str, rows: list[list[int]]) -> None:
    write_mask(folder / f"{name}.png", np.array(rows, np.uint8), voc_palette())


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two images of 2×3 pixels, one of them in a sub-folder."""
    pred, gt = tmp_path / "run" / "masks", tmp_path / "gt"
    write(gt, "a", [[0, 8, 8], [0, 8, 255]])
    write(pred, "a", [[0, 8, 0], [8, 8, 8]])
    write(gt, "sub/b ü", [[12, 12, 0], [0, 0, 0]])
    write(pred, "sub/b ü", [[12, 255, 0], [0, 0, 0]])
    config = {"labeler": {"classes": ["cat", "dog"], "mask_values": [8, 12]}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return pred, gt


def test_scores_known_by_hand(folders: tuple[Path, Path]) -> None:
    result = evaluate_masks(*folders)
    # background: 5 right, 6 true, 6 predicted; cat: 2 right, 3 true, 3 predicted; dog: 1, 2, 1.
    expected = {"background": 500 / 7, "cat": 50.0, "dog": 50.0}
    assert result["iou_per_class"] == pytest.approx(expected)
    assert result["miou"] == pytest.approx(sum(expected.values()) / 3)
    assert result["precision_per_class"] == pytest.approx(
        {"background": 500 / 6, "cat": 200 / 3, "dog": 100.0}
    )
    assert result["recall_per_class"] == pytest.approx(
        {"background": 500 / 6, "cat": 200 / 3, "dog": 50.0}
    )
    assert result["ignored_share"] == pytest.approx(1 / 11)
    assert result["num_images"] == 2 and result["missing_predictions"] == []
    assert result["policy"]["num_classes"] == 13 and result["policy"]["average"] == "union"
    json.dumps(result, allow_nan=False)


def test_policies_are_passed_on(folders: tuple[Path, Path]) -> None:
    result = evaluate_masks(*folders, pred_ignore="drop", average="gt_present")
    assert result["iou_per_class"]["dog"] == 100.0
    assert result["policy"]["pred_ignore"] == "drop"


def test_the_folder_of_a_run_stands_for_its_masks(folders: tuple[Path, Path]) -> None:
    assert evaluate_masks(folders[0].parent, folders[1]) == evaluate_masks(*folders)


def test_without_a_config_values_are_counted_and_named_by_number(
    folders: tuple[Path, Path],
) -> None:
    (folders[0].parent / "config.json").unlink()
    result = evaluate_masks(*folders)
    assert list(result["iou_per_class"]) == ["0", "8", "12"]
    assert result["policy"]["num_classes"] == 13
    assert evaluate_masks(*folders, num_classes=21)["miou"] == pytest.approx(result["miou"])


def test_a_missing_prediction_is_an_error_unless_allowed(folders: tuple[Path, Path]) -> None:
    write(folders[1], "c", [[0]])
    with pytest.raises(ValueError, match=r"lacks 1 of 3 images: c\..*--ids.*--allow-missing"):
        evaluate_masks(*folders)
    assert evaluate_masks(*folders, allow_missing=True)["missing_predictions"] == ["c"]
    assert evaluate_masks(*folders, ids=["a", "sub/b ü"])["missing_predictions"] == []


def test_ids_restrict_what_is_scored(folders: tuple[Path, Path]) -> None:
    result = evaluate_masks(*folders, ids=["a.png"])
    assert result["num_images"] == 1 and "dog" not in result["iou_per_class"]
    with pytest.raises(ValueError, match="lacks the masks of nobody"):
        evaluate_masks(*folders, ids=["a", "nobody"])


def test_two_sizes_name_both_files(folders: tuple[Path, Path]) -> None:
    write(folders[0], "a", [[0, 0], [0, 0], [0, 0]])
    with pytest.raises(ValueError, match=r"run/masks/a\.png is of 3×2 .*gt/a\.png of 2×3"):
        evaluate_masks(*folders)


def test_values_outside_the_classes_name_both_files(folders: tuple[Path, Path]) -> None:
    write(folders[1], "a", [[0, 8, 8], [0, 8, 20]])
    with pytest.raises(ValueError, match=r"masks/a\.png against .*gt/a\.png: gt holds 20"):
        evaluate_masks(*folders)


def test_folders_that_are_missing_empty_or_strange(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no such folder"):
        evaluate_masks(tmp_path / "nothing", folders[1])
    with pytest.raises(ValueError, match=r"there are no \.png files"):
        evaluate_masks(folders[0], tmp_path / "empty")
    with pytest.raises(ValueError, match=r"empty: there are no \.png files"):
        evaluate_masks(tmp_path / "empty", folders[1], allow_missing=True)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(5)
    maps_dir, gt = tmp_path / "run" / "maps", tmp_path / "gt"
    maps_dir.mkdir(parents=True)
    for name, hw, class_ids in (("a", (40, 70), (0, 1)), ("b", (33, 20), (1,)), ("c", (9, 9), ())):
        scores = rng.random((len(class_ids), *hw), dtype=np.float32)
        data = encode_maps(ClassMaps(class_ids, scores), CLASSES, hw)
        (maps_dir / f"{name}.npz").write_bytes(data)
        mask = rng.choice(np.array([0, 8, 12, 255], np.uint8), hw)
        write_mask(gt / f"{name}.png", mask, voc_palette())
    return maps_dir, gt


def test_the_sweep_is_thresholding_at_every_score(stored: tuple[Path, Path]) -> None:
    from adcam.data.png import read_mask

    curve = evaluate_maps(stored[0].parent, stored[1])
    assert curve["thresholds"] == list(THRESHOLDS) and len(curve["miou"]) == 101
    for index in (0, 37, 50, 99, 100):
        metric = MeanIoU(13)
        for path in stored[0].glob("*.npz"):
            maps = load_maps(path).upsample()
            gt = read_mask(stored[1] / f"{path.stem}.png")
            pred = np.zeros(gt.shape, np.int64)
            if maps.class_ids:
                values = np.array([CLASSES.mask_values[i] for i in maps.class_ids])
                above = maps.score_maps.max(0) > np.float32(THRESHOLDS[index])
                pred = np.where(above, values[maps.score_maps.argmax(0)], 0)
            metric.update(pred, gt)
        assert curve["miou"][index] == pytest.approx(metric.compute().miou)
    best = int(np.argmax(curve["miou"]))
    assert curve["best_threshold"] == THRESHOLDS[best]
    assert curve["best"]["miou"] == pytest.approx(max(curve["miou"]))
    assert set(curve["best"]["iou_per_class"]) == {"background", "cat", "dog"}
    assert curve["num_images"] == 3
    json.dumps(curve, allow_nan=False)


def test_maps_of_other_classes_or_sizes_are_refused(stored: tuple[Path, Path]) -> None:
    other = ClassMaps((), np.zeros((0, 9, 9), np.float32))
    data = encode_maps(other, build_classes(["cat", "cow"]), (9, 9))
    (stored[0] / "c.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"c\.npz has the classes \['cat', 'cow'\]"):
        evaluate_maps(*stored)
    (stored[0] / "c.npz").write_bytes(encode_maps(other, CLASSES, (9, 8)))
    with pytest.raises(ValueError, match=r"c\.npz is of 9×8 .*c\.png of 9×9"):
        evaluate_maps(*stored)
