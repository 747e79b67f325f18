"""COCO's json: the rules of drawing, run lengths back and forth, files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from miniatures import HW, category, coco_json, coco_mask_of_9

from adcam.data.coco import COCO_CLASSES, coco_class_set
from adcam.data.coco_json import (
    CocoImage,
    _expand,
    draw_objects,
    encode_mask,
    find_values,
    match_categories,
    read_coco_json,
)
from adcam.data.dataset import build_class_set
from adcam.errors import AdcamError

coder: Any = pytest.importorskip("pycocotools.mask")

VALUE_OF = {30: 3, 70: 7}

masks = arrays(
    np.uint8,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.sampled_from([0, 3, 7, 255]),
)


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "instances_val2014.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def image_of(*annotations: dict[str, Any], hw: tuple[int, int] = HW) -> CocoImage:
    return CocoImage("x", hw, annotations)


def box(x0: int, y0: int, x1: int, y1: int, category_id: int, **more: Any) -> dict[str, Any]:
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    return {"id": 1, "category_id": category_id, "segmentation": [polygon], "iscrowd": 0, **more}


def draw_mask(image: CocoImage, value_of: dict[int, int], **rules: str) -> np.ndarray:
    return draw_objects(image, value_of, **rules).mask


def test_images_are_sorted_and_keep_their_annotations(tmp_path: Path) -> None:
    file = read_coco_json(written(tmp_path, coco_json("val2014")))
    assert [image.img_id for image in file.images] == [
        f"COCO_val2014_{i:012d}" for i in (9, 25, 30)
    ]
    assert [image.hw for image in file.images] == [HW, HW, HW[::-1]]
    assert [len(image.annotations) for image in file.images] == [3, 0, 2]
    value_of = match_categories(file, coco_class_set())
    assert value_of[category("person")] == 1 and value_of[90] == 80
    assert [find_values(image, value_of) for image in file.images] == [(1, 16, 17), (), (48, 80)]


@pytest.mark.parametrize("crowd", ["ignore", "skip"])
def test_overlaps_and_crowds_by_hand(tmp_path: Path, crowd: str) -> None:
    file = read_coco_json(written(tmp_path, coco_json("val2014")))
    value_of = match_categories(file, coco_class_set())
    nine, nothing, thin = file.images
    np.testing.assert_array_equal(
        draw_mask(nine, value_of, crowd=crowd), coco_mask_of_9(crowd=crowd)
    )
    assert not draw_mask(nothing, value_of, crowd=crowd).any()
    mask = draw_mask(thin, value_of, crowd=crowd)
    assert (mask[:, 0] == 80).all() and not mask[:, 1:].any()  # the apple covers no pixel


def test_which_object_is_on_top() -> None:
    small, large, same = box(2, 2, 4, 4, 30), box(1, 1, 9, 6, 70), box(2, 2, 4, 4, 70)
    for first, second in ((small, large), (large, small)):
        assert draw_mask(image_of(first, second), VALUE_OF)[3, 3] == 3
        top = draw_mask(image_of(first, second), VALUE_OF, overlap="first")[3, 3]
        assert top == VALUE_OF[first["category_id"]]
    for first, second in ((small, same), (same, small)):
        top = draw_mask(image_of(first, second), VALUE_OF)[3, 3]
        assert top == VALUE_OF[first["category_id"]]


def test_polygons_of_fewer_than_three_points_cover_nothing() -> None:
    line = box(0, 0, 1, 1, 30) | {"segmentation": [[0, 0, 5, 5], []]}
    assert not draw_mask(image_of(line), VALUE_OF).any()


def test_several_polygons_are_one_object_and_may_leave_the_image() -> None:
    parts = box(0, 0, 1, 1, 30)
    parts["segmentation"] = [[0, 0, 2, 0, 2, 2, 0, 2], [9, 5, 13, 5, 13, 9, 9, 9]]
    mask = draw_mask(image_of(parts), VALUE_OF)
    assert (mask[:2, :2] == 3).all() and (mask[5:, 9:] == 3).all()
    assert np.count_nonzero(mask) == 8


@given(masks)
def test_masks_come_back_exactly(mask: np.ndarray) -> None:
    annotations = encode_mask(mask, {3: 30, 7: 70})
    again = json.loads(json.dumps(annotations))
    np.testing.assert_array_equal(
        draw_mask(CocoImage("x", mask.shape, tuple(again)), VALUE_OF), mask
    )
    for annotation in annotations:
        value = 255 if annotation["iscrowd"] else VALUE_OF[annotation["category_id"]]
        assert annotation["area"] == np.count_nonzero(mask == value)
        rows, columns = np.nonzero(mask == value)
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == (
            *(columns.min(), rows.min()),
            *(columns.max() + 1, rows.max() + 1),
        )


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_our_reading_of_compressed_runs_is_cocos(region: np.ndarray) -> None:
    text = coder.encode(np.asfortranarray(region).astype(np.uint8))["counts"].decode()
    runs = _expand("x", text)
    assert sum(runs) == region.size
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    np.testing.assert_array_equal(flat.reshape(region.shape, order="F"), region)


def test_golden_annotations() -> None:
    mask = np.zeros((3, 4), np.uint8)
    mask[1:, 1:3] = 7
    mask[0, 3] = 255
    solid, ignored = encode_mask(mask, {3: 30, 7: 70})
    assert solid == {
        "category_id": 70,
        "segmentation": {"size": [3, 4], "counts": "42102"},
        "area": 4,
        "bbox": [1, 1, 2, 2],
        "iscrowd": 0,
    }
    assert (ignored["category_id"], ignored["iscrowd"], ignored["bbox"]) == (255, 1, [3, 0, 1, 1])


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (box(0, 0, 2, 2, 31), r"category 31 is unknown; legal are \[30, 70\]"),
        (box(0, 0, 2, 2, 30, segmentation=None), "list of polygons or run lengths"),
        (box(0, 0, 2, 2, 30, segmentation=[[0, 0, 1, 1, 2]]), "annotation 1: a polygon is a list"),
        (box(0, 0, 2, 2, 30, segmentation=[[0, 0, 1, 1, 2, "3"]]), "a polygon is a list"),
        (box(0, 0, 2, 2, 30, segmentation=[[0, 0, 1, 1, 2, float("nan")]]), "a polygon is a list"),
        (box(0, 0, 2, 2, 30, segmentation=[[0, 0, 1, 1, 2, 1e12]]), "a polygon is a list"),
        (
            box(0, 0, 2, 2, 30, segmentation={"size": [11, 7], "counts": [77]}),
            r"run lengths of \[11, 7\] pixels",
        ),
        (box(0, 0, 2, 2, 30, segmentation={"size": [7, 11], "counts": [76]}), "add up to 77"),
        (box(0, 0, 2, 2, 30, segmentation={"size": [7, 11], "counts": [78, -1]}), "add up to 77"),
        (box(0, 0, 2, 2, 30, segmentation={"size": [7, 11], "counts": "9999"}), "add up to 77"),
        (box(0, 0, 2, 2, 30, segmentation={"size": [7, 11], "counts": "é"}), "the character 'é'"),
    ],
)
def test_bad_annotations(annotation: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_mask(image_of(annotation), VALUE_OF)


def test_unknown_rules_and_values() -> None:
    with pytest.raises(ValueError, match="crowd must be 'ignore' or 'skip'"):
        draw_mask(image_of(), VALUE_OF, crowd="keep")
    with pytest.raises(ValueError, match="overlap must be 'small' or 'first'"):
        draw_mask(image_of(), VALUE_OF, overlap="last")
    with pytest.raises(ValueError, match="the mask holds the value 9; legal are 0, 3, 7 and 255"):
        encode_mask(np.full((2, 3), 9, np.uint8), {3: 30, 7: 70})


def test_truncated_at_any_place(tmp_path: Path) -> None:
    text = json.dumps(coco_json("val2014"))
    for end in range(0, len(text), 97):
        with pytest.raises(ValueError, match=r"val2014\.json: not a json file, or one that was"):
            read_coco_json(written(tmp_path, text[:end]))


def changed(**changes: Any) -> dict[str, Any]:
    return coco_json("val2014") | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not in COCO's form"),
        ("{}", "not in COCO's form"),
        (changed(images=[{"id": 1}], annotations=[]), "not in COCO's form"),
        (changed(annotations=[{"image_id": 99, "id": 5}]), "annotation 5 is of no image: 99"),
        (changed(categories=[{"id": "x", "name": "cat"}]), "invalid literal"),
        (
            changed(
                images=[{"id": i, "file_name": "a.jpg", "height": 1, "width": 2} for i in (1, 2)],
                annotations=[],
            ),
            "the same file name",
        ),
        (
            changed(
                images=[{"id": 1, "file_name": "a.jpg", "height": 0, "width": 2}], annotations=[]
            ),
            "image 'a' has no pixels",
        ),
        (
            changed(
                images=[{"id": 1, "file_name": "../a.jpg", "height": 1, "width": 2}], annotations=[]
            ),
            "must stay below",
        ),
    ],
)
def test_other_json_files(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"instances_val2014\.json: .*{message}"):
        read_coco_json(written(tmp_path, content))


def coco_file(names: dict[int, str], used: list[int], **more: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 7, "width": 11, **more}],
        "annotations": [{**box(0, 0, 2, 2, i), "image_id": 1} for i in used],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }


def test_categories_that_nobody_uses(tmp_path: Path) -> None:
    roboflow = coco_file({0: "pets-GxKp", 1: "cat", 2: "dog"}, [1])
    file = read_coco_json(written(tmp_path, roboflow))
    assert file.classes == {1: "cat", 2: "dog"}
    assert match_categories(file, build_class_set("own", ["cat", "dog"])) == {0: 0, 1: 1, 2: 2}
    assert match_categories(file, build_class_set("own", ["cat"])) == {0: 0, 1: 1, 2: 0}
    used = read_coco_json(written(tmp_path, coco_file({0: "cat", 1: "dog"}, [0])))
    assert used.classes == {0: "cat", 1: "dog"}


def test_a_class_numbered_0_can_be_chosen_where_no_image_shows_it(tmp_path: Path) -> None:
    file = read_coco_json(written(tmp_path, coco_file({0: "cat", 1: "dog", 2: "fox"}, [1, 2])))
    value_of = match_categories(file, build_class_set("own", ["cat", "dog"]))
    assert value_of == {0: 1, 1: 2, 2: 0}


def test_some_of_the_classes_can_be_chosen(tmp_path: Path) -> None:
    file = read_coco_json(written(tmp_path, coco_file(dict(enumerate(COCO_CLASSES, 1)), [1, 17])))
    value_of = match_categories(file, build_class_set("own", ["dog", "cat"]))
    drawing = draw_objects(file.images[0], value_of)
    assert {i: v for i, v in value_of.items() if v} == {16: 2, 17: 1}
    assert (drawing.num_objects, drawing.num_other) == (1, 1)
    assert np.unique(drawing.mask).tolist() == [0, 1] and find_values(file.images[0], value_of) == (
        1,
    )


def test_names_as_windows_writes_them(tmp_path: Path) -> None:
    content = coco_file({1: "cat"}, [], file_name="train\\sub\\a.jpg")
    assert read_coco_json(written(tmp_path, content)).images[0].img_id == "train/sub/a"


def test_objects_that_leave_no_pixel_are_counted() -> None:
    shapes = [[], [[1, 2, 3, 4]], [[0.1, 0.1, 0.2, 0.1, 0.1, 0.2]], [[0, 0, 3, 0, 3, 3, 0, 3]]]
    annotations = [{**box(0, 0, 1, 1, 30), "segmentation": shape} for shape in shapes]
    drawing = draw_objects(image_of(*annotations), VALUE_OF)
    assert (drawing.num_objects, drawing.num_empty, drawing.num_boxes) == (4, 3, 2)


def test_polygons_given_as_points_are_refused() -> None:
    points = box(0, 0, 1, 1, 30) | {"segmentation": [[0, 0], [5, 0], [5, 5], [0, 5]]}
    with pytest.raises(AdcamError, match=r"annotation 1: a polygon of points \[\[x, y\], …\]"):
        draw_mask(image_of(points), VALUE_OF)


def test_an_outline_far_too_long_is_refused_before_it_takes_memory() -> None:
    zigzag = [v for i in range(5000) for v in ((0, 70) if i % 2 else (110, 0))]
    endless = box(0, 0, 1, 1, 30) | {"segmentation": [zigzag]}
    with pytest.raises(AdcamError, match=r"annotation 1: its outline is \d+ pixels long; at most"):
        draw_mask(image_of(endless), VALUE_OF)


@given(masks, st.sampled_from(["class", "component"]))
def test_polygons_and_objects_come_back(mask: np.ndarray, objects: str) -> None:
    found = encode_mask(mask, {3: 30, 7: 70}, objects=objects, polygons=True)
    image = CocoImage("x", mask.shape, tuple({"id": i, **a} for i, a in enumerate(found)))
    np.testing.assert_array_equal(draw_mask(image, VALUE_OF), mask)


def test_one_annotation_an_object() -> None:
    mask = np.array([[3, 0, 3], [3, 0, 3]], np.uint8)
    parts = encode_mask(mask, {3: 30}, objects="component")
    assert [(p["area"], p["bbox"]) for p in parts] == [(2, [0, 0, 1, 2]), (2, [2, 0, 1, 2])]
    (outline,) = encode_mask(mask[:, :1], {3: 30}, polygons=True)
    assert sorted(outline["segmentation"][0]) == [0, 0, 0, 0, 1, 1, 2, 2]
    with pytest.raises(AdcamError, match="objects must be 'class' or 'component'"):
        encode_mask(mask, {3: 30}, objects="blob")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            coco_file({1: "cat"}, [], height=100_000, width=100_000),
            r"100000×100000 pixels: the limit is",
        ),
        (coco_file({1: "cat"}, [], height=float("inf")), "not in COCO's form"),
        ({**coco_file({1: "cat"}, []), "annotations": [{"image_id": 1}]}, "'category_id'"),
        ({**coco_file({1: "cat"}, []), "annotations": [{"image_id": []}]}, "not in COCO's form"),
        (
            {
                **coco_file({1: "cat"}, []),
                "annotations": [{"image_id": 1, "id": 5, "category_id": 1, "iscrowd": "0"}],
            },
            "annotation 5 has iscrowd '0'; legal are 0 and 1",
        ),
        (
            coco_file({1: "cat"}, [], file_name="/a.jpg"),
            r"file_name: paths must stay below their folder, got '/a\.jpg'",
        ),
        (
            {**coco_file({}, []), "categories": [{"id": 1, "name": n} for n in ("cat", "dog")]},
            "the categories 'cat' and 'dog' have the id 1",
        ),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_hostile_json_is_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(AdcamError, match=rf"instances_val2014\.json: .*{message}"):
        read_coco_json(written(tmp_path, content))


def test_categories_of_another_data_set(tmp_path: Path) -> None:
    file = read_coco_json(written(tmp_path, coco_file({1: "unicorn"}, [1])))
    with pytest.raises(ValueError, match="category 'unicorn' is not in coco; legal are person, bi"):
        match_categories(file, coco_class_set())
