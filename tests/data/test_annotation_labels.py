"""Labels out of annotations: VOC's XML, YOLO's text, CVAT, Label Studio."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adcam.data.label_studio import read_tasks
from adcam.data.labels import read_labels
from adcam.errors import AdcamError

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><name>zoo</name><labels>
    <label><name>zebra</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
    <label><name>ant</name><type>skeleton</type></label>
    <label><name>leg</name><type>points</type><parent>ant</parent></label>
    <label><name>yak</name></label>
  </labels></task></meta>
  <image id="0" name="trip/a.jpg" width="9" height="6">
    <box label="zebra" source="manual" occluded="0" xtl="1" ytl="1" xbr="4" ybr="4"></box>
    <polygon label="zebra" points="1,1;2,2;3,1" z_order="0"></polygon>
    <tag label="ant"></tag>
  </image>
  <image id="1" name="b.png" width="9" height="6"></image>
</annotations>
"""


def test_cvat(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(CVAT)
    table = read_labels(tmp_path / "annotations.xml")
    assert table.classes == ("zebra", "ant", "yak")  # its own order; parts of a skeleton are none
    assert dict(table) == {"trip/a": ("zebra", "ant"), "b": ()}
    assert table.understood == "CVAT for images"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<annotation><object><name>a</name></object></annotation>",
            "of VOC's XML, name the folder",
        ),
        ("<annotations><track id='0' label='a'></track></annotations>", "a video"),
        ("<annotations></annotations>", "no images"),
        ("<annotations><image name='a.jpg'/><image name='a.png'/></annotations>", "given twice"),
        ("<annotations><image/></annotations>", "has no name"),
    ],
)
def test_other_xml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(AdcamError, match=message):
        read_labels(tmp_path / "x.xml")


def task(image: str, *results: dict[str, object], **more: object) -> dict[str, object]:
    return {"id": 7, "data": {"image": image}, "annotations": [{"result": [*results]}], **more}


def test_label_studio(tmp_path: Path) -> None:
    box = {"type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["cat"]}}
    choice = {"type": "choices", "value": {"choices": ["dog", "red fox"]}}
    tree = {"type": "taxonomy", "value": {"taxonomy": [["animal", "yak"]]}}
    relation = {"type": "relation", "from_id": "a", "to_id": "b"}
    tasks = [
        task("/data/upload/3/1a2b3c4d-my%20cat.jpg", box, relation),
        task("/data/local-files/?d=photos/dog.png", choice, tree),
        task("https://host/x/empty.jpg?size=3"),
        task("nobody.jpg", annotations=[]),
        task("skipped.jpg", annotations=[{"was_cancelled": True, "result": []}]),
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    table = read_labels(tmp_path / "export.json")
    assert dict(table) == {
        "my cat": ("cat",),
        "photos/dog": ("dog", "red fox", "yak"),
        "empty": (),
    }
    assert table.understood == "Label Studio's JSON"
    (tmp_path / "bad.json").write_text(json.dumps([task("http://[x/a.jpg")]))
    with pytest.raises(AdcamError, match="task 7: the image is no address"):
        read_labels(tmp_path / "bad.json")
    (tmp_path / "none.json").write_text(json.dumps(tasks[3:]))
    with pytest.raises(AdcamError, match="none of its 2 tasks is annotated"):
        read_labels(tmp_path / "none.json")
    (tmp_path / "which.json").write_text(
        json.dumps([task("a.jpg", data={"left": "a", "right": "b"})])
    )
    with pytest.raises(AdcamError, match="which value of `data` is the image"):
        read_labels(tmp_path / "which.json")
    least = {"image": "a.jpg", "id": 7, "label": "cat", "annotator": 1, "annotation_id": 4}
    (tmp_path / "min.json").write_text(json.dumps([least]))
    for read in (read_labels, read_tasks):
        with pytest.raises(AdcamError, match=r"min\.json: the export JSON-MIN .* export as JSON"):
            read(tmp_path / "min.json")


def test_voc_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, objects in (("a", "<object><name>yak</name></object>"), ("sub/b", "")):
        path = tmp_path / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<annotation>{objects}</annotation>")
    (tmp_path / "broken.xml").write_text("<annotation>")
    table = read_labels(tmp_path)
    assert (dict(table), table.classes) == ({"a": ("yak",), "sub/b": ()}, ("yak",))
    assert "1 annotations" in caplog.text and "broken.xml" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels/data.yaml", "names: [zebra, ant, yak]\n"),
        ("data.yaml", "train: images\nnames:\n  0: zebra\n  1: ant\n  2: yak\n"),
        ("labels/classes.txt", "zebra\nant\nyak\n\n"),
    ],
)
def test_yolo_folder(tmp_path: Path, name: str, text: str) -> None:
    labels = tmp_path / "labels"
    (labels / "train").mkdir(parents=True)
    (labels / "train" / "a.txt").write_text("1 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.2 0.2 0.3 0.1\n\n")
    (labels / "train" / "b.txt").write_text("")
    (tmp_path / name).write_text(text)
    table = read_labels(labels)
    assert table.classes == ("zebra", "ant", "yak")
    assert {i: set(names) for i, names in table.items()} == {
        "train/a": {"zebra", "ant"},
        "train/b": set(),
    }
    (labels / "train" / "b.txt").write_text("3 0.5 0.5 0.2 0.2\n")
    with pytest.raises(AdcamError, match=r"b\.txt, line 1: .* 0 to 2 .* got '3'"):
        read_labels(labels)


def test_yolo_without_names_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(AdcamError, match=r"put data\.yaml or classes\.txt"):
        read_labels(tmp_path / "x")
    (tmp_path / "x" / "a.txt").unlink()
    with pytest.raises(AdcamError, match="no annotations in this folder"):
        read_labels(tmp_path / "x")


@pytest.mark.parametrize("text", ["names: 3\n", "names: {1: a}\n", "names: [a, a]\n", "x: 1\n"])
def test_bad_lists_of_classes(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(AdcamError, match=r"data\.yaml: "):
        read_labels(tmp_path)


def test_a_table_keeps_the_order_of_its_columns_and_coco_of_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("file,zebra,ant,yak\na.jpg,1,0,0\nb.jpg,0,1,0\n")
    assert read_labels(tmp_path / "l.csv").classes == ("zebra", "ant", "yak")
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [0, 0, 1, 1]}],
        "categories": [
            *({"id": 9, "name": "ant"}, {"id": 5, "name": "zebra"}, {"id": 0, "name": "all"}),
            {"id": 255, "name": "ignore"},
        ],
    }
    (tmp_path / "c.json").write_text(json.dumps(coco))
    assert read_labels(tmp_path / "c.json").classes == ("zebra", "ant")


def test_a_category_that_coco_does_not_list_is_refused(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 4, "file_name": "a.jpg", "width": 3, "height": 2}],
        "annotations": [{"id": 1, "image_id": 4, "category_id": 6}],
        "categories": [{"id": 5, "name": "dog"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(AdcamError, match=r"image 'a'.* category 6, which .* it lists \[5\]"):
        read_labels(tmp_path / "a.json")


def test_a_number_beside_a_name_is_not_the_image(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"id": 7, "image": "a.jpg", "labels": ["dog"]}]')
    assert dict(read_labels(tmp_path / "a.json")) == {"a": ("dog",)}
