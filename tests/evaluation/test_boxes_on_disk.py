"""Localisation on files: maps against metadata, boxes written and read back, the commands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcam.cli import main
from adcam.data.score_maps import read_score_map, write_score_map
from adcam.evaluation.boxes_on_disk import evaluate_boxes, evaluate_pixels
from adcam.metrics.localization import MaxBoxAccuracy

HW = (16, 24)


def make_split(folder: Path, seed: int, *, masks: bool = False) -> dict[str, np.ndarray]:
    """Metadata of five images of 32×48 pixels with a box each, and maps that nearly show it."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tables: dict[str, list[str]] = {name: [] for name in ("image_ids", "class_labels")}
    tables |= {name: [] for name in ("image_sizes", "localization")}
    maps = {}
    for number in range(5):
        image_id = f"{folder.name}/{number}.jpg"
        x0, y0 = (int(v) for v in generator.integers(0, 10, size=2))
        x1, y1 = x0 + int(generator.integers(8, 30)), y0 + int(generator.integers(8, 20))
        tables["image_ids"].append(image_id)
        tables["class_labels"].append(f"{image_id},{number % 2}")
        tables["image_sizes"].append(f"{image_id},48,32")
        tables["localization"].append(
            f"{image_id},{number}.png,{number}_ignore.png"
            if masks
            else f"{image_id},{x0},{y0},{x1},{y1}"
        )
        score_map = 0.3 * generator.random(HW)
        score_map[y0 // 2 : y1 // 2, x0 // 2 : x1 // 2] += 0.7 * generator.random()
        maps[image_id] = score_map / score_map.max()
    for name, lines in tables.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return maps


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    for seed, name in enumerate(("val", "test")):
        for image_id, score_map in make_split(tmp_path / "birds" / name, seed).items():
            write_score_map(tmp_path / f"{name}_maps", image_id, score_map)
    return tmp_path


def test_boxes_are_scaled_to_the_map_and_scored(splits: Path) -> None:
    result = evaluate_boxes(splits / "test_maps", splits / "birds" / "test")
    metric = MaxBoxAccuracy()
    for line in (splits / "birds" / "test" / "localization.txt").read_text().splitlines():
        image_id, *numbers = line.split(",")
        score_map = read_score_map(splits / "test_maps" / f"{image_id}.npy")
        metric.update(score_map, [[int(n) // 2 for n in numbers]], class_id=0)
    expected = metric.compute()
    assert result["box_acc"] == {str(k): v for k, v in expected.box_acc.items()}
    assert result["max_box_acc_v2"] == expected.max_box_acc_v2 > 0
    assert (result["split"], result["chosen_on"]) == ("birds/test", "oracle")
    assert result["num_images"] == 5 and set(result["box_acc_per_class"]) == {"0", "1"}
    json.dumps(result, allow_nan=False)


def test_files_give_wsolevaluations_own_values(
    shared_dir: Path, voc_animals: Path, tmp_path: Path
) -> None:
    stored = np.load(shared_dir / "golden" / "wsol_boxes.npz", allow_pickle=False)
    image_ids = stored["image_ids"].tolist()
    (tmp_path / "animals" / "val").mkdir(parents=True)
    for name in ("image_ids", "class_labels", "image_sizes", "localization"):
        text = (voc_animals / "metadata" / "val" / f"{name}.txt").read_text()
        kept = [line for line in text.splitlines() if line.split(",")[0] in image_ids]
        (tmp_path / "animals" / "val" / f"{name}.txt").write_text("\n".join(kept))
    for image_id, levels in zip(image_ids, stored["score_maps_u8"], strict=True):
        write_score_map(tmp_path / "maps", image_id, levels / 255)
    values = json.loads((shared_dir / "golden" / "wsol_boxes.json").read_text())["metrics"]
    for multi_contour in (False, True):
        result = evaluate_boxes(
            tmp_path / "maps", tmp_path / "animals" / "val", multi_contour=multi_contour
        )
        expected = values[f"step=0.001,multi_contour={multi_contour}"]
        assert result["max_box_acc_v2"] == expected["mean"]
        assert list(result["box_acc"].values()) == list(expected["box_acc"].values())


def test_thresholds_of_another_split_are_named(splits: Path) -> None:
    arguments = (splits / "test_maps", splits / "birds" / "test")
    chosen = evaluate_boxes(splits / "val_maps", splits / "birds" / "val")
    result = evaluate_boxes(
        *arguments,
        choose_maps_dir=splits / "val_maps",
        choose_metadata_dir=splits / "birds" / "val",
    )
    assert result["chosen_on"] == result["policy"]["chosen_on"] == "birds/val"
    assert result["best_thresholds"] == chosen["best_thresholds"]
    oracle = evaluate_boxes(*arguments)
    assert result["max_box_acc_v2"] <= oracle["max_box_acc_v2"]
    with pytest.raises(ValueError, match="give both its maps and metadata"):
        evaluate_boxes(*arguments, choose_maps_dir=splits / "val_maps")


def test_missing_maps_and_boxes(splits: Path) -> None:
    (splits / "test_maps" / "test" / "3.jpg.npy").unlink()
    with pytest.raises(ValueError, match=r"lacks the score maps of 1 of 5 images, .*3\.jpg\.npy"):
        evaluate_boxes(splits / "test_maps", splits / "birds" / "test")
    (splits / "birds" / "val" / "localization.txt").unlink()
    with pytest.raises(ValueError, match=r"val: boxes need localization\.txt with five columns"):
        evaluate_boxes(splits / "val_maps", splits / "birds" / "val")
    with pytest.raises(ValueError, match="names no masks"):
        evaluate_pixels(splits / "val_maps", splits / "birds" / "val", splits)


def test_boxes_that_reach_out_of_their_images_are_told(
    splits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate_boxes(splits / "test_maps", splits / "birds" / "test")
    assert not caplog.records
    sizes = splits / "birds" / "test" / "image_sizes.txt"
    sizes.write_text(sizes.read_text().replace("48,32", "7,32"))  # every box is 8 wide
    evaluate_boxes(splits / "test_maps", splits / "birds" / "test")
    assert "reach out of their images" in caplog.text and "path,width,height" in caplog.text


def test_perfect_maps_have_a_pixel_average_precision_of_100(tmp_path: Path) -> None:
    for number, image_id in enumerate(make_split(tmp_path / "open" / "val", 0, masks=True)):
        mask = np.zeros(HW, dtype=np.uint8)
        mask[3:9, 4 : 9 + number] = 255
        Image.fromarray(mask).save(tmp_path / f"{number}.png")
        Image.fromarray(255 - mask[::-1]).save(tmp_path / f"{number}_ignore.png")
        write_score_map(tmp_path / "maps", image_id, mask / 255)
    result = evaluate_pixels(tmp_path / "maps", tmp_path / "open" / "val", tmp_path)
    assert result["px_ap"] == pytest.approx(100)
    assert (result["split"], result["num_images"]) == ("open/val", 5)
    assert (
        main(
            shlex.split(
                f"evaluate {tmp_path}/maps --metadata {tmp_path}/open/val --mask-root {tmp_path}"
            )
        )
        == 0
    )


def test_evaluate_command(splits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"evaluate {splits}/test_maps --metadata {splits}/birds/test"
    assert main(shlex.split(f"{command} --json {splits}/scores.json")) == 0
    printed = capsys.readouterr().out
    scores = json.loads((splits / "scores.json").read_text())
    assert f"{scores['max_box_acc_v2']:.2f}" in printed
    assert "5 images; boxes of all contours; thresholds chosen on: oracle" in printed
    choose = f"--choose-maps {splits}/val_maps --choose-metadata {splits}/birds/val"
    assert main(shlex.split(f"{command} {choose} --largest-contour")) == 0
    printed = capsys.readouterr().out
    assert "the largest contour; thresholds chosen on: birds/val" in printed
    assert main(shlex.split(f"{command} --mask-root {splits} --largest-contour")) == 2
    assert "no threshold to choose" in capsys.readouterr().err
    ids = splits / "birds" / "test" / "image_ids.txt"
    assert main(shlex.split(f"{command} --ids {ids} --average gt_present")) == 2
    error = capsys.readouterr().err
    assert "with --metadata, nothing reads --average, --ids; image_ids.txt lists" in error
