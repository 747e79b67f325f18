"""Masks and maps to the formats of other tools and back, read by these tools where installed.

label-studio-sdk, cvat-sdk, datumaro, ultralytics and fiftyone ask for versions of common packages
that ours do not go with, so no extra brings them; in an environment that has them nothing is
skipped.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adcam.cli import main
from adcam.convert import CONVERTERS, Converted
from adcam.convert.exchange import (
    convert_coco_to_masks,
    convert_masks_to_coco,
    convert_masks_to_yolo,
    convert_yolo_to_masks,
)
from adcam.data.cvat import encode_runs, read_cvat
from adcam.data.dataset import build_class_set
from adcam.data.formats import CAM_FORMATS, read_cam_file
from adcam.data.label_studio import decode_brush, encode_brush, read_tasks
from adcam.data.png import encode_mask, read_mask, voc_palette, write_mask
from adcam.data.score_maps import read_score_map
from adcam.errors import AdcamError
from adcam.files import write_bytes
from adcam.labeling.maps_file import encode_maps, load_maps
from adcam.parquet import encode_table
from adcam.structures import ClassMaps, ClassSet

CLASSES = build_class_set("pets", ["red fox", "hare & co", "öwl"])
SIZES = {"a": (24, 37), "sub/b 1": (37, 24), "sub/ü": (5, 40)}


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Masks of blobs with holes and 255, one without any class; their images beside them."""
    rng = np.random.default_rng(0)
    for img_id, hw in {**SIZES, "void": (6, 7)}.items():
        coarse = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (hw[0] // 5 + 1, hw[1] // 5 + 1))
        mask = coarse.repeat(5, axis=0).repeat(5, axis=1)[: hw[0], : hw[1]]
        mask[2:3, 3:4] = 0
        if img_id == "void":
            mask = np.zeros_like(mask)
        write_mask(tmp_path / "masks" / f"{img_id}.png", mask, CLASSES.palette)
        path = tmp_path / "images" / f"{img_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*hw, 3), dtype=np.uint8)).save(path)
    return tmp_path / "masks"


def convert(what: str, source: Path, out: Path, **options: Any) -> Converted:
    result: Converted = CONVERTERS[what](source, out, **options)
    assert result.failed == {}
    return result


def same(found: Path, expected: Path, ignore_as: int = 255, absent: tuple[str, ...] = ()) -> None:
    for img_id in {*SIZES, "void"} - set(absent):
        mask = read_mask(expected / f"{img_id}.png")
        np.testing.assert_array_equal(
            read_mask(found / f"{img_id}.png"), np.where(mask == 255, ignore_as, mask), img_id
        )


# Label Studio


def test_label_studio_and_back(masks: Path, tmp_path: Path) -> None:
    images = masks.parent / "images"
    convert("masks-to-label-studio", masks, tmp_path / "ls", class_set=CLASSES, images=images)
    back = convert(
        "label-studio-to-masks", tmp_path / "ls/tasks.json", tmp_path / "back", class_set=CLASSES
    )
    same(tmp_path / "back", masks, ignore_as=0, absent=("void",))
    assert back.notes == ("1 tasks without regions have no mask",)
    interface = (tmp_path / "ls/label_config.xml").read_text(encoding="utf-8")
    assert '<Label value="hare &amp; co" background="#008000"/>' in interface
    tasks = json.loads((tmp_path / "ls/tasks.json").read_text(encoding="utf-8"))
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=sub/b%201.jpg"


def test_label_studio_reads_our_brushes_and_we_read_its_own(masks: Path, tmp_path: Path) -> None:
    brush = pytest.importorskip(
        "label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed"
    )
    mask = read_mask(masks / "a.png")
    for value in (1, 2, 3):
        region = mask == value
        rgba = brush.decode_rle(encode_brush(region)).reshape(*mask.shape, 4)
        np.testing.assert_array_equal(rgba[..., 3] > 0, region)
        theirs = brush.mask2rle(np.where(region, 255, 0).astype(np.uint8))
        np.testing.assert_array_equal(decode_brush(theirs, mask.shape), region)


def test_brushes_of_any_run_length() -> None:
    for region in (
        np.ones((300, 300), bool),  # longer than the longest run
        np.zeros((1, 1), bool),
        np.arange(91).reshape(7, 13) % 2 == 0,
    ):
        np.testing.assert_array_equal(decode_brush(encode_brush(region), region.shape), region)
    code = encode_brush(np.ones((4, 4), bool))
    for damaged, message in (
        (code[:7], "ends before"),
        ([*code[:3], 200, *code[4:]], "200 values"),
        (["x"], "list of bytes"),
    ):
        with pytest.raises(AdcamError, match=message):
            decode_brush(damaged, (4, 4))  # type: ignore[arg-type]


def test_annotations_of_people_come_first_and_polygons_are_read(tmp_path: Path) -> None:
    def result(kind: str, **value: Any) -> dict[str, Any]:
        size = {"original_width": 20, "original_height": 10}
        return {"type": kind, **size, "value": {kind: ["dog"], **value}}

    polygon = result("polygonlabels", points=[[0, 0], [50, 0], [50, 100], [0, 100]])
    task = {
        "data": {"image": "/data/upload/3/0123abcd-rex%201.jpg"},
        "annotations": [{"was_cancelled": True, "result": []}, {"result": [polygon]}],
        "predictions": [{"result": []}],
    }
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task]))
    (found,) = read_tasks(path)
    assert (found.img_id, found.hw) == ("rex 1", (10, 20))
    ((name, region),) = found.regions
    assert name == "dog" and region[:, :10].all() and not region[:, 10:].any()
    result_of = CONVERTERS["label-studio-to-masks"](path, tmp_path / "x", CLASSES)
    assert "'dog' is no class" in result_of.failed["rex 1"]


# CVAT


def test_cvat_and_back(masks: Path, tmp_path: Path) -> None:
    convert("masks-to-cvat", masks, tmp_path / "cvat.xml", class_set=CLASSES)
    convert("cvat-to-masks", tmp_path / "cvat.xml", tmp_path / "back")
    same(tmp_path / "back", masks, ignore_as=0)
    assert read_cvat(tmp_path / "cvat.xml").labels == CLASSES.classes


def test_cvat_reads_our_runs(masks: Path) -> None:
    cvat = pytest.importorskip("cvat_sdk.masks", reason="cvat-sdk is not installed")
    mask = read_mask(masks / "a.png")
    for value in (1, 2, 3):
        region = mask == value
        *runs, left, top, right, bottom = cvat.encode_mask(region)
        assert encode_runs(region[top : bottom + 1, left : right + 1]) == runs


def test_datumaro_reads_our_cvat(masks: Path, tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro", reason="datumaro is not installed")
    images = masks.parent / "images"
    path = tmp_path / "cvat/annotations.xml"
    convert("masks-to-cvat", masks, path, class_set=CLASSES, images=images)
    shutil.copytree(images, tmp_path / "cvat/images")
    found = datumaro.Dataset.import_from(str(tmp_path / "cvat"), "cvat")
    labels = found.categories()[datumaro.AnnotationType.label]
    assert [label.name for label in labels] == list(CLASSES.classes)
    for item in found:
        mask = read_mask(masks / f"{item.id}.png")
        drawn = np.zeros_like(mask)
        for annotation in item.annotations:
            drawn[np.asarray(annotation.image) > 0] = annotation.label + 1
        np.testing.assert_array_equal(drawn, np.where(mask == 255, 0, mask))


def test_what_lies_above_in_cvat_is_on_top(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(
        '<annotations><image id="0" name="p/a.jpg" width="4" height="2">'
        '<polygon label="dog" points="0,0;4,0;4,2;0,2" z_order="1"/>'
        '<mask label="cat" rle="0, 2" left="0" top="0" width="2" height="1" z_order="2"/>'
        '<mask label="cat" rle="0, 2" left="2" top="1" width="2" height="1" z_order="0"/>'
        '<box label="cat" xtl="0" ytl="0" xbr="1" ybr="1"/></image></annotations>'
    )
    convert("cvat-to-masks", path, tmp_path / "out")
    mask = read_mask(tmp_path / "out/p/a.png")  # cat 1, dog 2: the labels sorted by name
    np.testing.assert_array_equal(mask, [[1, 1, 2, 2], [2, 2, 2, 2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<x/>", "no annotations of CVAT"),
        ('<annotations><image id="0" width="4" height="2"/></annotations>', "damaged"),
        (
            '<annotations><image name="a.jpg" width="4" height="2"><mask label="c" rle="1, 9" '
            'left="0" top="0" width="2" height="2"/></image></annotations>',
            "10 pixels in a box",
        ),
        (
            '<annotations><image name="../a.jpg" width="4" height="2"/></annotations>',
            "damaged",
        ),
    ],
)
def test_damaged_cvat(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(AdcamError, match=message):
        read_cvat(tmp_path / "a.xml")


def test_an_image_of_cvat_with_only_boxes_is_no_background(tmp_path: Path) -> None:
    image = '<image id="0" name="{}.jpg" width="4" height="2">{}</image>'
    box = '<box label="dog" xtl="0" ytl="0" xbr="1" ybr="1"/>'
    mask = '<mask label="dog" rle="0, 2" left="0" top="0" width="2" height="1"/>'
    shapes = {"boxes": box * 2, "both": box + mask, "tagged": '<tag label="dog"/>', "none": ""}
    images = "".join(image.format(name, shape) for name, shape in shapes.items())
    (tmp_path / "a.xml").write_text(f"<annotations>{images}</annotations>")
    result = CONVERTERS["cvat-to-masks"](tmp_path / "a.xml", tmp_path / "out")
    assert set(result.failed) == {"boxes"}
    assert "none of its 2 shapes is a mask or polygon" in result.failed["boxes"]
    assert result.notes == ("3 regions are neither masks nor polygons: left out",)
    assert read_mask(tmp_path / "out/both.png").tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]


def test_parts_of_a_skeleton_take_no_number_in_cvat(tmp_path: Path) -> None:
    labels = "".join(
        f"<label><name>{name}</name>{parent}</label>"
        for name, parent in {"pose": "", "nose": "<parent>pose</parent>", "dog": ""}.items()
    )
    (tmp_path / "a.xml").write_text(
        f"<annotations><meta><task><labels>{labels}</labels></task></meta></annotations>"
    )
    assert read_cvat(tmp_path / "a.xml").labels == ("pose", "dog")


def test_boxes_and_the_order_of_classes_in_label_studio_are_noted(tmp_path: Path) -> None:
    def region(kind: str, name: str, **value: Any) -> dict[str, Any]:
        size = {"original_width": 4, "original_height": 2}
        return {"type": kind, **size, "value": {kind: [name], **value}}

    points = {"points": [[0, 0], [50, 0], [50, 50], [0, 50]]}
    outlines = [region("polygonlabels", name, **points) for name in ("hare", "fox")]
    results = {
        "a": [outlines[0], region("rectanglelabels", "fox", x=0, y=0), region("choices", "x")],
        "b": [region("rectanglelabels", "fox", x=0, y=0)],
        "c": [outlines[1]],
    }
    tasks = [{"data": {"image": k}, "annotations": [{"result": v}]} for k, v in results.items()]
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    result = convert("label-studio-to-masks", tmp_path / "a.json", tmp_path / "out")
    assert result.notes == (
        "2 regions are neither brushes nor polygons: left out",
        "1 tasks without regions have no mask",
        "classes are numbered by the alphabet; --classes names them in another order",
    )
    named = build_class_set("own", ["hare", "fox"])
    result = convert(
        "label-studio-to-masks", tmp_path / "a.json", tmp_path / "named", class_set=named
    )
    assert len(result.notes) == 2


def test_an_export_of_label_studio_without_regions_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [{"data": {"image": "a.jpg"}, "annotations": [{"result": []}]}]
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    words = [str(tmp_path / "a.json"), "--out", str(tmp_path / "out")]
    assert main(["convert", "label-studio-to-masks", *words]) == 2
    err = capsys.readouterr().err
    assert "none of its 1 tasks has a brush or polygon" in err and "next:" not in err
    assert not (tmp_path / "out").exists()


def test_nothing_comes_next_where_nothing_was_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = '<image name="a.jpg" width="2" height="2"><box label="x" xtl="0" ytl="0"/></image>'
    (tmp_path / "a.xml").write_text(f"<annotations>{image}</annotations>")
    words = [str(tmp_path / "a.xml"), "--out", str(tmp_path / "out")]
    assert main(["convert", "cvat-to-masks", *words]) == 1
    err = capsys.readouterr().err
    assert "0 images, 0 of them were there; 1 failed" in err and "next:" not in err


# Hugging Face datasets


def test_datasets_opens_what_we_write_and_we_read_what_it_writes(
    masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `ray`)")
    images = masks.parent / "images"
    monkeypatch.setattr("adcam.convert.training_sets.ROWS_A_FILE", 3)
    convert("masks-to-hf", masks, tmp_path / "hf", class_set=CLASSES, images=images)
    assert len(list((tmp_path / "hf/data").iterdir())) == 2
    convert("hf-to-masks", tmp_path / "hf", tmp_path / "back")
    same(tmp_path / "back", masks)
    with pytest.raises(AdcamError, match="there already"):
        convert("masks-to-hf", masks, tmp_path / "hf", class_set=CLASSES, images=images)

    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra `peers`)")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    opened = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "hf/data"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert opened.num_rows == 4
    first = opened[0]
    np.testing.assert_array_equal(np.asarray(first["mask"]), read_mask(masks / "a.png"))
    assert first["image"].size == (37, 24) and set(first["labels"]) <= set(CLASSES.classes)
    opened.remove_columns("labels").to_parquet(str(tmp_path / "own/x.parquet"))
    (tmp_path / "own/id2label.json").write_bytes((tmp_path / "hf/id2label.json").read_bytes())
    convert("hf-to-masks", tmp_path / "own", tmp_path / "again")
    same(tmp_path / "again", masks)


def test_a_damaged_mask_in_a_table_is_the_failure_of_its_image(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `ray`)")
    good = encode_mask(np.ones((40, 40), np.uint8), voc_palette())
    # Pixels said to be shorter than they are: Pillow finds no chunk behind them, a SyntaxError.
    at = good.index(b"IDAT")
    bad = good[: at - 4] + (3).to_bytes(4, "big") + good[at:]
    lines = ("%!PS-Adobe-3.0 EPSF-3.0", "%%BoundingBox: 0 0 4 4", "%%EndComments", "%%EndProlog")
    size = '%ImageData: 4 4 8 1 0 1 1 "x"'  # in gray; Ghostscript would run what follows
    run = "\n".join([*lines, size, "%%EOF", ""]).encode()
    cells = [{"bytes": data, "path": name} for data, name in ((good, "a"), (bad, "b"), (run, "c"))]
    write_bytes(tmp_path / "x.parquet", encode_table({"mask": ("image", cells)}))
    result = CONVERTERS["hf-to-masks"](tmp_path / "x.parquet", tmp_path / "out", CLASSES)
    assert result.num_images == 1 and set(result.failed) == {"b", "c"}
    assert "cannot be decoded" in result.failed["b"] and "not an image" in result.failed["c"]


def test_images_that_are_missing_are_named(masks: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `ray`)")
    for what in ("masks-to-hf", "masks-to-mmseg"):
        result = CONVERTERS[what](masks, tmp_path / what, CLASSES)
        assert set(result.failed) == {*SIZES, "void"}
        assert "--images" in result.failed["a"]


# mmsegmentation


def test_mmsegmentation_trains_on_our_folders(masks: Path, tmp_path: Path) -> None:
    images = masks.parent / "images"
    spread = ClassSet("pets", CLASSES.classes, (1, 2, 3), CLASSES.palette)
    for split in ("train", "val"):
        convert(
            "masks-to-mmseg", masks, tmp_path / "seg", class_set=spread, images=images, split=split
        )
    same(tmp_path / "seg/ann_dir/train", masks)
    pytest.importorskip("mmseg", reason="mmsegmentation is not installed (extra `seg`)")
    import mmseg.datasets.transforms  # noqa: F401  # their names are registered
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import LoadAnnotations

    config = Config.fromfile(tmp_path / "seg/dataset.py")
    options = dict(config.val_dataloader.dataset)
    assert options.pop("type") == "BaseSegDataset"
    dataset = BaseSegDataset(**{**options, "pipeline": []})
    assert dataset.metainfo["classes"] == ["background", *CLASSES.classes]
    assert len(dataset) == 4
    for i in range(4):
        info = dataset.get_data_info(i)
        assert Path(info["img_path"]).is_file()
        read = LoadAnnotations()(dict(info))["gt_seg_map"]
        img_id = Path(info["seg_map_path"]).relative_to(tmp_path / "seg/ann_dir/val")
        np.testing.assert_array_equal(read, read_mask(masks / img_id))
    for loader in (config.train_dataloader, config.val_dataloader):  # with its pipeline
        options = dict(loader.dataset)
        del options["type"]
        with DefaultScope.overwrite_default_scope("mmseg"):  # as its default_runtime.py says
            packed = BaseSegDataset(**options)[0]
        labels = packed["data_samples"].gt_sem_seg.data
        assert packed["inputs"].shape[0] == 3 and set(labels.unique().tolist()) <= {0, 1, 2, 3, 255}


def test_values_with_gaps_become_0_to_k(tmp_path: Path) -> None:
    write_mask(tmp_path / "m/a.png", np.array([[0, 8, 12, 255]], np.uint8), voc_palette())
    (tmp_path / "i").mkdir()
    Image.new("RGB", (4, 1)).save(tmp_path / "i/a.png")
    pets = ClassSet("pets", ("cat", "dog"), (8, 12), voc_palette())
    convert("masks-to-mmseg", tmp_path / "m", tmp_path / "o", class_set=pets, images=tmp_path / "i")
    mask = read_mask(tmp_path / "o/ann_dir/train/a.png")
    np.testing.assert_array_equal(mask, [[0, 1, 2, 255]])
    config = (tmp_path / "o/dataset.py").read_text()
    assert 'img_suffix=".png"' in config
    palette = [list(pets.palette[value]) for value in (0, 1, 2)]  # by the new values
    assert f'classes=["background", "cat", "dog"], palette={palette}' in config


def test_the_names_of_a_hugging_face_set_are_by_mask_value(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `ray`)")
    write_mask(tmp_path / "m/a.png", np.array([[0, 8, 12, 255]], np.uint8), voc_palette())
    (tmp_path / "i").mkdir()
    Image.new("RGB", (4, 1)).save(tmp_path / "i/a.png")
    pets = ClassSet("pets", ("cat", "dog"), (8, 12), voc_palette())
    convert("masks-to-hf", tmp_path / "m", tmp_path / "o", class_set=pets, images=tmp_path / "i")
    names = json.loads((tmp_path / "o/id2label.json").read_text())
    assert names == {"0": "background", "8": "cat", "12": "dog"}


# COCO and YOLO, by their own packages


# Its compiled code of older NumPy.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("objects", ["class", "component"])
def test_coco_by_its_own_package(masks: Path, tmp_path: Path, objects: str, polygons: bool) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed (extra `coco`)")
    from pycocotools.coco import COCO

    path = tmp_path / "masks.json"
    convert_masks_to_coco(masks, path, CLASSES, objects=objects, polygons=polygons)
    coco = COCO(path)
    for image in coco.loadImgs(coco.getImgIds()):
        mask = read_mask(masks / f"{Path(image['file_name']).with_suffix('')}.png")
        for category in coco.loadCats(coco.getCatIds()):
            ids = coco.getAnnIds(imgIds=image["id"], catIds=category["id"])
            drawn = np.zeros_like(mask, dtype=bool)
            for annotation in coco.loadAnns(ids):
                drawn |= coco.annToMask(annotation).astype(bool)
            wrong = int((drawn != (mask == category["id"])).sum())
            assert wrong == 0 if not polygons else wrong <= 0.1 * mask.size
    if not polygons:
        convert_coco_to_masks(path, tmp_path / "back", CLASSES)
        same(tmp_path / "back", masks)


def test_names_of_images_that_are_guessed_or_escaped_are_told(masks: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed (extra `coco`)")
    write_mask(tmp_path / "m/my%20cat.png", np.ones((2, 2), np.uint8), voc_palette())
    guessed = "1 of 1 images are not known and named as my%20cat.jpg; --images names"
    for what, out in (("coco", "a.json"), ("label-studio", "studio"), ("cvat", "a.xml")):
        found = CONVERTERS[f"masks-to-{what}"](tmp_path / "m", tmp_path / out, CLASSES)
        assert any(note.startswith(guessed) for note in found.notes)
    found = convert_masks_to_coco(
        tmp_path / "m", tmp_path / "b.json", CLASSES, images=masks.parent / "images"
    )
    assert any(note.startswith(guessed) for note in found.notes)  # the folder lacks it
    back = convert_coco_to_masks(tmp_path / "a.json", tmp_path / "back", CLASSES)
    assert any("1 file names look escaped, such as 'my%20cat'" in note for note in back.notes)
    known = CONVERTERS["masks-to-cvat"](
        masks, tmp_path / "b.xml", CLASSES, images=masks.parent / "images"
    )
    assert not any("are not known" in note for note in known.notes)


def test_fiftyone_reads_our_coco(masks: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed (extra `coco`)")
    fiftyone = pytest.importorskip("fiftyone.utils.coco", reason="fiftyone is not installed")
    path = tmp_path / "masks.json"
    images = masks.parent / "images"
    convert_masks_to_coco(masks, path, CLASSES, images=images)
    importer = fiftyone.COCODetectionDatasetImporter(
        data_path=str(images), labels_path=str(path), label_types="segmentations"
    )
    found = set()
    with importer:
        for image, _, label in importer:
            img_id = str(Path(image).relative_to(images).with_suffix(""))
            mask = read_mask(masks / f"{img_id}.png")
            for detection in () if label is None else label.detections:
                value = 255 if detection.label == "ignore" else CLASSES.value_of[detection.label]
                height, width = detection.mask.shape
                x, y, *_ = detection.bounding_box
                top, left = round(y * mask.shape[0]), round(x * mask.shape[1])
                box = mask[top : top + height, left : left + width]
                np.testing.assert_array_equal(detection.mask, box == value)
            found.add(img_id)
    assert found == {*SIZES, "void"}


def test_yolo_by_its_own_package_and_classes_from_data_yaml(masks: Path, tmp_path: Path) -> None:
    images = masks.parent / "images"
    convert_masks_to_yolo(masks, tmp_path / "yolo", CLASSES, images=images)
    result = convert_yolo_to_masks(tmp_path / "yolo/labels/train", tmp_path / "back", images=images)
    same(tmp_path / "back", masks, ignore_as=0)
    assert tuple(result.class_images) == CLASSES.classes
    utils = pytest.importorskip("ultralytics.data.utils", reason="ultralytics is not installed")
    checked = utils.check_det_dataset(str(tmp_path / "yolo/data.yaml"), autodownload=False)
    assert list(checked["names"].values()) == list(CLASSES.classes)
    label = tmp_path / "yolo/labels/train/a.txt"
    image = tmp_path / "yolo/images/train/a.jpg"
    found = utils.verify_image_label((str(image), str(label), "", False, 3, 0, 0, False))
    assert found[5:9] == [0, 1, 0, 0] or found[6] == 1  # found, neither empty nor corrupt
    assert len(found[3]) == len(label.read_text().splitlines())


def test_yolo_finds_classes_txt_and_names_the_wrong_folder(masks: Path, tmp_path: Path) -> None:
    images, labels = masks.parent / "images", tmp_path / "yolo/labels/train"
    convert_masks_to_yolo(masks, tmp_path / "yolo", CLASSES, images=images)
    (tmp_path / "yolo/data.yaml").unlink()
    for number, place in enumerate((tmp_path / "yolo", labels)):
        (place / "classes.txt").write_text("\n".join(CLASSES.classes), encoding="utf-8")
        out = tmp_path / str(number)
        result = convert_yolo_to_masks(labels, out, images=images)
        assert tuple(result.class_images) == CLASSES.classes
        same(out, masks, ignore_as=0)
    with pytest.raises(AdcamError, match="name the folder below which"):
        convert_yolo_to_masks(tmp_path / "yolo", tmp_path / "other", images=images)


def test_classes_in_another_order_than_yolos_list_are_refused(masks: Path, tmp_path: Path) -> None:
    images, labels = masks.parent / "images", tmp_path / "yolo/labels/train"
    convert_masks_to_yolo(masks, tmp_path / "yolo", CLASSES, images=images)
    fox, hare, owl = CLASSES.classes
    for names in ([hare, fox, owl], [owl], ["x", fox]):
        with pytest.raises(
            AdcamError, match=f"from 0, {', '.join(names)}, but in .*data.yaml {fox}"
        ):
            convert_yolo_to_masks(
                labels, tmp_path / "out", build_class_set("own", names), images=images
            )
    renamed = build_class_set("own", [fox, "Hase", "Eule"])
    convert_yolo_to_masks(labels, tmp_path / "out", renamed, images=images)
    (tmp_path / "yolo/data.yaml").write_text("names: 3\n")  # no list, and none is asked for
    named = build_class_set("own", [hare, fox, owl])
    result = convert_yolo_to_masks(labels, tmp_path / "named", named, images=images)
    assert result.failed == {}


# Class maps of other projects


@pytest.fixture
def maps(tmp_path: Path) -> tuple[Path, dict[str, ClassMaps]]:
    """Stored maps of one class each, and what they are at image size."""
    rng = np.random.default_rng(1)
    found = {}
    for number, (img_id, hw) in enumerate(SIZES.items()):
        stored = ClassMaps((number,), rng.random((1, *hw), dtype=np.float32))
        path = tmp_path / "out/maps" / f"{img_id}.npz"
        write_bytes(path, encode_maps(stored, CLASSES, hw))
        found[img_id] = load_maps(path).upsample()
    return tmp_path / "out", found


@pytest.mark.parametrize("cam_format", [name for name in CAM_FORMATS if name != "psa_crf"])
def test_maps_become_files_of_other_projects(
    maps: tuple[Path, dict[str, ClassMaps]], tmp_path: Path, cam_format: str
) -> None:
    folder, expected = maps
    first = convert("maps-to-cams", folder, tmp_path / "cams", cam_format=cam_format)
    for img_id, own in expected.items():
        got = read_cam_file(tmp_path / "cams" / f"{img_id}.npy", num_fg_classes=3)
        assert got.cam_format == cam_format and got.maps.class_ids == own.class_ids
        tolerance = 1e-3 if cam_format == "clip_es" else 0
        np.testing.assert_allclose(got.maps.score_maps, own.score_maps, atol=tolerance)
    again = convert("maps-to-cams", folder, tmp_path / "cams", cam_format=cam_format)
    assert (again.kept, again.sha256) == (3, first.sha256)


def test_what_the_next_steps_of_irn_and_puzzlecam_do_with_a_file(
    maps: tuple[Path, dict[str, ClassMaps]], tmp_path: Path
) -> None:
    """``eval_cam.py`` pads the keys, ``make_sem_seg_labels.py`` moves ``cam`` as a tensor."""
    folder, _ = maps
    convert("maps-to-cams", folder, tmp_path / "irn", cam_format="irn")
    content = np.load(tmp_path / "irn/a.npy", allow_pickle=True).item()
    keys = np.pad(content["keys"] + 1, (1, 0), mode="constant")
    cams = np.pad(content["high_res"], ((1, 0), (0, 0), (0, 0)), constant_values=0.5)
    assert set(np.unique(keys[np.argmax(cams, axis=0)])) <= {0, 1}
    assert isinstance(content["cam"], torch.Tensor) and content["cam"].shape == (1, 6, 10)
    convert("maps-to-cams", folder, tmp_path / "puzzle", cam_format="puzzlecam")
    content = np.load(tmp_path / "puzzle/a.npy", allow_pickle=True).item()
    assert content["keys"].tolist() == [0, 1] and content["hr_cam"].shape == (1, 24, 37)


def test_score_maps_of_wsolevaluation(
    maps: tuple[Path, dict[str, ClassMaps]], tmp_path: Path
) -> None:
    folder, _ = maps
    first = convert("maps-to-cams", folder, tmp_path / "wsol", cam_format="wsol")
    found = read_score_map(tmp_path / "wsol/sub/b 1.jpg.npy")
    assert found.shape == (224, 224) and found.dtype == np.float64
    assert (found.min(), found.max()) == (0, 1)
    again = convert("maps-to-cams", folder, tmp_path / "wsol", cam_format="wsol")
    assert (again.kept, again.sha256) == (3, first.sha256)
    two = ClassMaps((0, 1), np.zeros((2, 4, 4), np.float32))
    write_bytes(folder / "maps/two.npz", encode_maps(two, CLASSES, (4, 4)))
    result = CONVERTERS["maps-to-cams"](folder, tmp_path / "more", cam_format="wsol")
    assert "images of one class" in result.failed["two"]
