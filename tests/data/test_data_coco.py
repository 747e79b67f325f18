"""COCO: its classes, and masks, lists and labels as `adcam convert coco` lays them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from miniatures import write_image, write_list

from adcam.data.coco import (
    COCO_CATEGORY_IDS,
    COCO_CLASSES,
    EXPECTED_COUNTS,
    coco_class_set,
    load_coco,
)
from adcam.data.png import voc_palette, write_mask


def test_the_classes_and_their_ids() -> None:
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == len(COCO_CATEGORY_IDS) == 80
    # Corners of the official table, on both sides of unused ids.
    id_of = dict(zip(COCO_CLASSES, COCO_CATEGORY_IDS, strict=True))
    known = {
        **{"person": 1, "fire hydrant": 11, "stop sign": 13, "giraffe": 25, "backpack": 27},
        **{"umbrella": 28, "handbag": 31, "bottle": 44, "wine glass": 46, "potted plant": 64},
        **{"bed": 65, "dining table": 67, "toilet": 70, "tv": 72, "refrigerator": 82, "book": 84},
        **{"hair drier": 89, "toothbrush": 90},
    }
    assert {name: id_of[name] for name in known} == known
    class_set = coco_class_set()
    assert class_set.num_classes == 81
    assert class_set.name_of_value(80) == "toothbrush"


def test_the_classes_are_those_of_mmsegmentation() -> None:
    datasets = pytest.importorskip("mmseg.datasets")
    assert datasets.COCOStuffDataset.METAINFO["classes"][:80] == COCO_CLASSES


def test_both_years_share_their_images() -> None:
    for suffix in ("", "_objects"):
        totals = {
            sum(EXPECTED_COUNTS[f"{split}{year}{suffix}"] for split in ("train", "val"))
            for year in (2014, 2017)
        }
        assert len(totals) == 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    ids = ("COCO_val2014_000000000009", "COCO_val2014_000000000025")
    for img_id in ids:
        write_image(tmp_path / "val2014" / f"{img_id}.jpg")
        mask = np.zeros((7, 11), np.uint8)
        mask[0, 0] = 80
        write_mask(tmp_path / "masks" / "val2014" / f"{img_id}.png", mask, voc_palette())
    write_list(tmp_path / "lists" / "val2014.txt", ids)
    write_list(tmp_path / "lists" / "val2014_objects.txt", ids[:1])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "val2014.csv").write_text(
        f"image_id,labels\n{ids[0]},traffic light;toothbrush;\n{ids[1]},\n"
    )
    return tmp_path


def test_lists_masks_and_labels(root: Path) -> None:
    dataset = load_coco(root, "val2014", expected_counts={"val2014": 2})
    assert [record.class_ids for record in dataset.records] == [(9, 79), ()]
    dataset.check_files()
    sample = dataset[0]
    assert sample.mask is not None and sample.mask[0, 0] == 80 and sample.ori_hw == (7, 11)
    objects = load_coco(root, "val2014_objects")
    assert [r.img_id for r in objects.records] == ["COCO_val2014_000000000009"]
    assert load_coco(root, "val2014", labels=False)[0].class_ids is None
    assert load_coco(root, "val2014", mask_dir=None)[0].mask is None
    assert load_coco(root, "val2014", mask_dir="none")[0].mask is None


def test_what_is_missing_is_named(root: Path) -> None:
    with pytest.raises(ValueError, match=r"train2014\.txt: .*there are val2014, val2014_objects"):
        load_coco(root, "train2014")
    with pytest.raises(ValueError, match="2 images, but val2014 has 40504"):
        load_coco(root, "val2014", expected_counts=EXPECTED_COUNTS)
    csv = root / "labels" / "val2014.csv"
    csv.write_text("image_id,labels\nCOCO_val2014_000000000009,cat;\n")
    with pytest.raises(ValueError, match=r"1 images of split 'val2014' have no entry here"):
        load_coco(root, "val2014")
    csv.unlink()
    with pytest.raises(ValueError, match=r"val2014\.csv: there is no such label file"):
        load_coco(root, "val2014")
    write_list(root / "lists" / "val2014.txt", ("../x",))
    with pytest.raises(ValueError, match="must stay below their folder"):
        load_coco(root, "val2014")
