"""Evaluation of files: which images count, and numbers known beforehand."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from adcam.cli import main
from adcam.data.coco import coco_class_set
from adcam.data.png import read_mask, voc_palette, write_mask
from adcam.data.score_maps import read_score_map
from adcam.data.sources import build_classes
from adcam.errors import AdcamError
from adcam.evaluation import masks_on_disk
from adcam.evaluation.masks_on_disk import (
    THRESHOLDS,
    evaluate_maps,
    evaluate_masks,
    suggest_thresholds,
)
from adcam.evaluation.unsupervised import OF_SET, UnsupervisedRules
from adcam.labeling.maps_file import encode_maps, load_maps
from adcam.masks.background import compute_mask, find_threshold
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


def test_converted_masks_have_the_names_of_their_conversion(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pred, gt = folders
    (pred.parent / "config.json").unlink()
    said = {"converter": "cams", "mask_values": {"lynx": 8, "fox": 10}}
    (pred / "convert.json").write_text(json.dumps(said))
    # What the conversion does not know keeps its number, and is no error.
    assert list(evaluate_masks(pred, gt)["iou_per_class"]) == ["background", "lynx", "12"]
    # A value that is read as another is no longer the class of that name.
    renamed = evaluate_masks(pred, gt, pred_values={8: 10})
    assert list(renamed["iou_per_class"]) == ["background", "8", "10", "12"]
    assert main(["evaluate", str(pred), "--gt", str(gt)]) == 0
    assert "next: where class maps became these masks" in capsys.readouterr().err
    # These say the values of what they were made of, and hold others themselves.
    (pred / "convert.json").write_text(json.dumps({**said, "converter": "masks-to-mmseg"}))
    assert list(evaluate_masks(pred, gt)["iou_per_class"]) == ["0", "8", "12"]
    (pred / "convert.json").write_text('{"converter": "cams", "mask_values": {"lynx": "8"}}')
    assert list(evaluate_masks(pred, gt)["iou_per_class"]) == ["0", "8", "12"]


def test_classes_that_the_predictions_do_not_say_are_those_of_the_true_masks(
    folders: tuple[Path, Path],
) -> None:
    pred, gt = folders
    (pred.parent / "config.json").unlink()
    said = {"converter": "sbd", "mask_values": {"cat": 8, "dog": 12}}
    (gt / "convert.json").write_text(json.dumps(said))
    for values, names in ((None, "cat dog"), ({12: 7}, "7 cat 12")):
        found = evaluate_masks(pred, gt, values=values, pred_values={9: 8})
        assert list(found["iou_per_class"]) == ["background", *names.split()]


def test_classes_of_other_numbers_are_told_with_the_cure(folders: tuple[Path, Path]) -> None:
    pred, gt = folders
    said = {"converter": "coco-to-masks", "mask_values": {"dog": 12, "fox": 20, "cat": 8}}
    (gt / "convert.json").write_text(json.dumps(said))
    assert list(evaluate_masks(pred, gt)["iou_per_class"]) == ["background", "cat", "dog"]
    (gt / "convert.json").write_text(json.dumps({**said, "mask_values": {"dog": 8, "cat": 12}}))
    with pytest.raises(AdcamError, match=r"'dog' is 8 in .*, but 12 .*--values 8=12,12=8 reads"):
        evaluate_masks(pred, gt)
    assert evaluate_masks(pred, gt, values={8: 12, 12: 8})["num_images"] == 2
    said = {"converter": "coco", "mask_values": coco_class_set().value_of}
    (gt / "convert.json").write_text(json.dumps(said))
    with pytest.raises(AdcamError, match=r"'cat' is 16 in .*--values 16=8,17=12 .*other classes"):
        evaluate_masks(pred, gt)


def test_what_comes_next_depends_on_the_maps_of_a_run(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = folders[0].parent
    assert main(["evaluate", str(run), "--gt", str(folders[1])]) == 0
    assert "next: adcam generate … --save-maps" in capsys.readouterr().err
    (run / "maps").mkdir()
    assert main(["evaluate", str(run), "--gt", str(folders[1])]) == 0
    assert f"next: adcam evaluate {run} --gt {folders[1]} --sweep" in capsys.readouterr().err


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
    with pytest.raises(AdcamError, match="ids names no image to score"):
        evaluate_masks(*folders, ids=[])


def test_two_sizes_name_both_files(folders: tuple[Path, Path]) -> None:
    write(folders[0], "a", [[0, 0], [0, 0], [0, 0]])
    with pytest.raises(ValueError, match=r"run/masks/a\.png has 3×2 .*gt/a\.png has 2×3"):
        evaluate_masks(*folders)


def test_values_outside_the_classes_name_both_files(folders: tuple[Path, Path]) -> None:
    write(folders[1], "a", [[0, 8, 8], [0, 8, 20]])
    with pytest.raises(
        ValueError, match=r"masks/a\.png against .*gt/a\.png: gt holds 20.*--values OLD=NEW"
    ):
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


def test_rules_without_ground_truth_and_what_they_lose(stored: tuple[Path, Path]) -> None:
    curve = evaluate_maps(stored[0].parent, stored[1])
    rules = {row["rule"]: row for row in curve["rules"]}
    assert list(rules) == ["constant:0.56", "steepest:0.56", "otsu", OF_SET]
    assert rules["constant:0.56"]["miou"] == pytest.approx(curve["miou"][56])
    (stored[0].parent / "config.json").write_text('{"labeler": {"method": "refined"}}')
    refined = evaluate_maps(stored[0].parent, stored[1])["rules"]
    assert [row["rule"] for row in refined[:2]] == ["constant:0.52", "steepest:0.52"]
    (stored[0].parent / "config.json").unlink()
    of_set = round(rules[OF_SET]["threshold"] * 100)
    assert rules[OF_SET]["miou"] == pytest.approx(curve["miou"][of_set])
    assert all(
        row["loss"] == pytest.approx(curve["best_miou"] - row["miou"]) for row in rules.values()
    )
    metric = MeanIoU(13)
    for path in stored[0].glob("*.npz"):
        maps = load_maps(path).upsample()
        mask = compute_mask(maps, mask_values=CLASSES.mask_values, rule="otsu").mask
        metric.update(mask, read_mask(stored[1] / f"{path.stem}.png"))
    assert rules["otsu"]["miou"] == pytest.approx(metric.compute().miou)
    # Without masks, the same thresholds.
    alone = suggest_thresholds(stored[0])
    assert alone["num_images"] == 3
    assert alone["rules"] == [
        {"rule": row["rule"], "threshold": row["threshold"]} for row in curve["rules"]
    ]
    empty = suggest_thresholds(stored[0], ids=["c"])
    assert empty == {"rules": [], "num_images": 1}, "an image without classes says nothing"
    with pytest.raises(AdcamError, match="no maps of d"):
        suggest_thresholds(stored[0], ids=["a", "d"])


def test_a_threshold_of_each_image_is_shown_in_the_mean() -> None:
    rng = np.random.default_rng(0)
    images = [rng.random((1, 8, 9), dtype=np.float32) ** power for power in (1, 1, 6)]
    rules = UnsupervisedRules()
    for score_maps in images:
        rules.update(ClassMaps((0,), score_maps))
    (shown,) = [row["threshold"] for row in rules.suggest() if row["rule"] == "otsu"]
    each = [find_threshold(score_maps, rule="otsu") for score_maps in images]
    assert shown == pytest.approx(np.mean(each)) and abs(shown - np.median(each)) > 0.01


def test_maps_of_other_classes_or_sizes_are_refused(stored: tuple[Path, Path]) -> None:
    other = ClassMaps((), np.zeros((0, 9, 9), np.float32))
    data = encode_maps(other, build_classes(["cat", "cow"]), (9, 9))
    (stored[0] / "c.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"c\.npz has the classes \['cat', 'cow'\]"):
        evaluate_maps(*stored)
    (stored[0] / "c.npz").write_bytes(encode_maps(other, CLASSES, (9, 8)))
    with pytest.raises(ValueError, match=r"c\.npz has 9×8 .*c\.png has 9×9"):
        evaluate_maps(*stored)


def test_the_sweep_tells_classes_of_other_numbers_too(stored: tuple[Path, Path]) -> None:
    said = {"converter": "coco-to-masks", "mask_values": {"dog": 8, "cat": 12}}
    (stored[1] / "convert.json").write_text(json.dumps(said))
    with pytest.raises(AdcamError, match=r"'dog' is 8 in .*, but 12 .*--values 8=12,12=8 reads"):
        evaluate_maps(*stored)
    assert evaluate_maps(*stored, values={8: 12, 12: 8})["num_images"] == 3
    # Of another project's maps the classes are known only where they are given.
    for path in stored[0].glob("*.npz"):
        np.save(
            path.with_suffix(".npy"), np.array({1: np.ones((4, 4), np.float32)}), allow_pickle=True
        )
        write(stored[1], path.stem, [[8, 8, 0, 0]] * 4)
    with pytest.raises(AdcamError, match="'dog' is 8"):
        evaluate_maps(*stored, class_set=CLASSES)
    assert evaluate_maps(*stored)["num_images"] == 3


def write_binary(folder: Path, name: str, mask: np.ndarray) -> None:
    write_mask(folder / f"{name}.png", np.where(mask, 255, 0).astype(np.uint8), voc_palette())


def test_masks_of_0_and_255_are_told_with_the_cure(tmp_path: Path) -> None:
    """A saliency set: of 100 pixels 40 are the object, and 30 of these are found."""
    gt = np.arange(100).reshape(10, 10) < 40
    pred = np.arange(100).reshape(10, 10) < 30
    write_binary(tmp_path / "gt", "a", gt)
    write_binary(tmp_path / "pred", "a", pred)
    folders = tmp_path / "pred", tmp_path / "gt"
    message = r"gt and .*pred hold only 0 and 255.*--values 255=1 --pred-values 255=1"
    with pytest.raises(ValueError, match=message):
        evaluate_masks(*folders)
    result = evaluate_masks(*folders, values={255: 1}, pred_values={255: 1})
    assert result["iou_per_class"] == pytest.approx({"0": 100 * 60 / 70, "1": 100 * 30 / 40})
    # One side may be read as it is; whoever means 255 as "not scored" can say so.
    with pytest.raises(ValueError, match=r"gt hold only 0 and 255.*--values 255=1; if"):
        evaluate_masks(*folders, pred_values={255: 1})
    ignored = evaluate_masks(*folders, values={255: 255}, pred_values={255: 255})
    assert ignored["iou_per_class"] == {"0": 100.0}
    # A single mask with a class shows that 255 means "not scored" in this folder.
    write(tmp_path / "gt", "b", [[0, 1], [255, 0]])
    write(tmp_path / "pred", "b", [[0, 1], [1, 0]])
    assert evaluate_masks(*folders)["iou_per_class"]["1"] == 100.0


def test_the_sweep_tells_masks_of_0_and_255_too(stored: tuple[Path, Path]) -> None:
    for path in stored[1].glob("*.png"):
        mask = read_mask(path)
        write_binary(stored[1], path.stem, mask > 0)
    with pytest.raises(ValueError, match=r"hold only 0 and 255.*add --values 255=1; if"):
        evaluate_maps(*stored)
    assert set(evaluate_maps(*stored, values={255: 8})["best"]["iou_per_class"]) >= {"cat"}


def test_options_of_the_command_map_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = np.arange(12).reshape(3, 4) < 5
    for name in ("gt", "pred"):
        write_binary(tmp_path / name, "a", mask)
    command = ["evaluate", str(tmp_path / "pred"), "--gt", str(tmp_path / "gt")]
    assert main(command) == 2
    assert "--values 255=1 --pred-values 255=1" in capsys.readouterr().err
    out = tmp_path / "scores.json"
    options = ["--values", "255=1", "--pred-values", "255=1", "--json", str(out)]
    assert main([*command, *options]) == 0
    assert json.loads(out.read_text())["iou_per_class"] == {"0": 100.0, "1": 100.0}
    assert main([*command, "--values", "255:1"]) == 2
    assert "OLD=NEW" in capsys.readouterr().err
    assert main([*command, "--sweep", "--pred-values", "255=1"]) == 2


@pytest.mark.parametrize(
    ("average", "name"),
    [("union", "mean"), ("per_image", "mean of images"), ("gt_present", "mean of true classes")],
)
def test_the_mean_says_what_it_is_the_mean_of(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], average: str, name: str
) -> None:
    assert main(["evaluate", str(folders[0]), "--gt", str(folders[1]), "--average", average]) == 0
    rows = [re.split(r"\s*│\s*", line) for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows if len(row) > 1][-1] == name


def test_two_files_of_one_image_are_refused(folders: tuple[Path, Path]) -> None:
    (folders[0] / "a.PNG").write_bytes((folders[0] / "a.png").read_bytes())
    if len(list(folders[0].glob("[a].*"))) < 2:
        pytest.skip("this file system takes a.PNG and a.png for one file")
    with pytest.raises(ValueError, match=r"a\.PNG and .*a\.png have the same id 'a'"):
        evaluate_masks(*folders)


def test_hidden_files_are_no_masks(folders: tuple[Path, Path]) -> None:
    before = evaluate_masks(*folders)
    for folder in folders:
        (folder / "._a.png").write_bytes(b"resource fork")
        (folder / ".ipynb_checkpoints").mkdir()
        write(folder / ".ipynb_checkpoints", "a", [[0]])
    assert evaluate_masks(*folders) == before


def test_each_mask_is_read_once(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the number of classes is not known."""
    (folders[0].parent / "config.json").unlink()
    reads: Counter[Path] = Counter()

    def count(path: Path) -> np.ndarray:
        reads[path] += 1
        return read_mask(path)

    monkeypatch.setattr(masks_on_disk, "read_mask", count)
    evaluate_masks(*folders)
    assert set(reads.values()) == {1} and len(reads) == 4


def npy(header: str) -> bytes:
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(240)


def of_shape(shape: str, descr: str = "'<f8'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


HEADERS = {
    "cut short": "{'descr': [('a','<f8'",
    "nested": "(" * 200 + ")" * 200,
    "unclosed": "{" * 3000,
    "larger than memory": of_shape("(10000000, 10000000)"),
    "larger than a number": of_shape(f"({'9' * 40}, 5)"),
    "negative": of_shape("(-1, 5)"),
    "objects": of_shape("(6, 5)", "'O'"),
    "bool for a side": of_shape("(True, 5)"),
    "bad offsets": of_shape("(6, 5)", "{'names': ['a'], 'formats': ['<f8'], 'offsets': [-5]}"),
    "no dict": "[{}]",
    "unhashable": "{[]: 1}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_odd_headers_of_arrays_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(npy(HEADERS[name]))
    with pytest.raises(AdcamError, match=r"x\.npy"):
        read_score_map(path)
    good = encode_maps(ClassMaps((0,), np.zeros((1, 9, 9), np.float32)), CLASSES, (9, 9))
    path = tmp_path / "x.npz"
    for content in (npy(HEADERS[name]), b"no array"):
        with zipfile.ZipFile(path, "w") as archive, zipfile.ZipFile(io.BytesIO(good)) as members:
            for member in members.namelist():
                of_file = members.read(member)
                archive.writestr(member, content if member == "score_maps.npy" else of_file)
        with pytest.raises(AdcamError, match=r"x\.npz"):
            load_maps(path)


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    np.save(buffer, rng.random((6, 5)))
    scores = rng.random((2, 40, 70), dtype=np.float32)
    maps = encode_maps(ClassMaps((0, 1), scores), CLASSES, (40, 70))
    readers = {"x.npy": (read_score_map, buffer.getvalue()), "x.npz": (load_maps, maps)}
    refused = 0
    for name, (read, content) in readers.items():
        for _ in range(250):
            damaged = bytearray(content)
            for position in rng.integers(0, min(len(content), 300), rng.integers(1, 6)).tolist():
                damaged[position] = int(rng.integers(256))
            (tmp_path / name).write_bytes(bytes(damaged[: int(rng.integers(1, len(damaged) + 1))]))
            try:
                read(tmp_path / name)
            except AdcamError as error:
                assert name in str(error)
                refused += 1
    assert refused > 400


@pytest.mark.parametrize("number", [0, -1, 256, 300])
def test_impossible_numbers_of_classes(number: int, tmp_path: Path) -> None:
    with pytest.raises(AdcamError, match=f"masks hold 1 to 255 values.*got num_classes {number}"):
        evaluate_masks(tmp_path, tmp_path, num_classes=number)
