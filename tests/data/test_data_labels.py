"""Label files: every dialect that people write, and refusals that say where and what is legal."""

from __future__ import annotations

import csv
import json
import pickle
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import object_npy_header
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adcam.data.labels import (
    read_cls_labels_npy,
    read_folder_labels,
    read_labels,
    write_labels_csv,
)
from adcam.errors import AdcamError
from adcam.files import img_id_of

CLASSES = ("cat", "dog", "tabby cat")


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,cat dog\nb,\n", {"a": ("cat", "dog"), "b": ()}),
        ("a,dog  cat\n", {"a": ("dog", "cat")}),
        ("a,cat;dog\nb,dog\n", {"a": ("cat", "dog"), "b": ("dog",)}),
        ("a,tabby cat;dog\nb,tabby cat\n", {"a": ("tabby cat", "dog"), "b": ("tabby cat",)}),
        ("a,tabby cat\n", {"a": ("tabby cat",)}),
        ('a,"tabby cat"\n', {"a": ("tabby cat",)}),
        ("a,tabby cat;\n", {"a": ("tabby cat",)}),
        ("a, cat ; dog ;\n", {"a": ("cat", "dog")}),
        ("a,cat cat\n", {"a": ("cat",)}),
        ("\n\na,cat\n\n  \nb,dog\n\n", {"a": ("cat",), "b": ("dog",)}),
        ("a,cat\r\nb,dog\r\n", {"a": ("cat",), "b": ("dog",)}),
        ("a,cat\rb,dog", {"a": ("cat",), "b": ("dog",)}),
        ("sub/dog 1.JPG,dog\n", {"sub/dog 1": ("dog",)}),
        ("./sub//v1.2,dog\n", {"sub/v1.2": ("dog",)}),
        ('"a, b.png",dog\n', {"a, b": ("dog",)}),
        ("høst/Ærø.jpeg,cat\n", {"høst/Ærø": ("cat",)}),
        ("", {}),
    ],
)
def test_dialects(tmp_path: Path, text: str, expected: dict[str, tuple[str, ...]]) -> None:
    newline = "\r\n" if "\r\n" in text else "\r" if "\r" in text else "\n"
    table = read_labels(written(tmp_path, f"image_id,labels{newline}{text}"), CLASSES)
    assert dict(table) == expected
    assert list(table) == list(expected)
    assert table.classes == CLASSES


@pytest.mark.parametrize(
    ("text", "understood"),
    [
        ("image_id;labels\na.jpg;cat\nb/c.jpg;\n", "cells are separated by semicolons"),
        ("image_id\tlabels\na.jpg\tcat\nb/c.jpg\t\n", "cells are separated by tabs"),
        ("sep=;\nimage_id;labels\na.jpg;cat\nb/c.jpg;\n", "separated by semicolons"),
        ("filename,label\na.jpg,cat\nb\\c.jpg,\n", "column 'filename', labels in 'label'"),
        ("File Name,Class,Width\na.jpg,Cat,640\nb/c.jpg,,480\n", "column 'File Name'"),
        ("image_id,labels,,\na,cat,,\n,,,\nb/c,,,\n", ""),
        ("a.jpg,cat\nb/c.jpg,\n", "there is no header"),
        ("a.jpg;cat\nb/c.jpg;\n", "separated by semicolons; there is no header"),
        ("filename,cat,dog\na.jpg,1,0\nb/c.jpg,0,0\n", "one column a class: cat, dog"),
        ("filename;Cat;Dog\na.jpg;x;\nb/c.jpg;;\n", "one column a class: Cat, Dog"),
        ("image_id,labels\na,CAT\nb/c,\n".encode("utf-16"), ""),
        (
            "filename,width,class,xmin\na.jpg,9,cat,1\na.jpg,9,cat,5\nb/c.jpg,9,,\n",
            "a row is an object",
        ),
    ],
)
def test_tables_as_people_have_them(tmp_path: Path, text: str | bytes, understood: str) -> None:
    table = read_labels(written(tmp_path, text), CLASSES)
    assert dict(table) == {"a": ("cat",), "b/c": ()}
    assert understood in table.understood and bool(understood) == bool(table.understood)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('image_id,labels\na,"cat,dog"\n', ("cat", "dog")),
        ('image_id,labels\na,"cat, tabby cat"\n', ("cat", "tabby cat")),
        ("filename;label\na;cat,dog\n", ("cat", "dog")),
        ("filename,label\na,cat|tabby cat\n", ("cat", "tabby cat")),
        ("filename,label\na,tabby cat\n", ("tabby cat",)),
        ("filename,labels\na,DOG Cat\n", ("dog", "cat")),
    ],
)
def test_several_labels_in_a_cell(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    assert read_labels(written(tmp_path, text), CLASSES)["a"] == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "image_id,labels\na,cat\nb,\nc,NaN\n"),
        ("t.csv", "filename,label\na,cat\nb,dog\nb,cat\nc,NaN\n"),
        ("t.csv", "filename;labels\na;cat|dog\nc;cat|NaN\n"),
        ("t.json", '{"a": ["cat"], "c": ["NaN"]}'),
    ],
)
def test_a_value_that_is_missing_is_no_class(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    for marker in ("NaN", "none", "#N/A", "-"):
        path.write_text(text.replace("NaN", marker))
        with pytest.raises(AdcamError, match=f"(line|image) .*'{marker}' usually .*leave the cell"):
            read_labels(path)
        assert read_labels(path, ["cat", "dog", marker])["c"][-1] == marker


def test_a_table_may_list_a_class_none(tmp_path: Path) -> None:
    path = written(tmp_path, "filename,cat,None\na,1,0\nb,0,1\n")
    assert dict(read_labels(path)) == {"a": ("cat",), "b": ("None",)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "filename,Background,cat\na,0,1\nb,0,0\n"),
        (
            "t.xml",
            "<annotations><meta><job><labels><label><name>background</name></label><label>"
            "<name>cat</name></label></labels></job></meta><image id='0' name='a.jpg'>"
            "<tag label='cat'/></image><image id='1' name='b.jpg'/></annotations>",
        ),
    ],
)
def test_a_background_that_is_listed_and_that_no_image_has_is_no_class(
    tmp_path: Path, name: str, text: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    table = read_labels(path)
    assert (dict(table), table.classes) == ({"a": ("cat",), "b": ()}, ("cat",))
    assert table.class_ids == {"a": (0,), "b": ()}


@pytest.mark.parametrize(
    "text", ["filename,background,cat\na,1,1\n", "image_id,labels\na,Background\n"]
)
def test_a_background_that_an_image_has_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(AdcamError, match="ackground' is what every mask holds as 0"):
        read_labels(written(tmp_path, text))


def test_one_spelling_of_classes_that_differ_in_case(tmp_path: Path) -> None:
    path = written(tmp_path, "image_id,labels\na,Dog\nb,dog\nc,dog\nd,DOG\n")
    assert read_labels(path).classes == ("dog",)
    assert read_labels(path, ["Dog", "dog", "DOG"]).class_ids == {
        **{"a": (0,), "b": (1,)},
        **{"c": (1,), "d": (2,)},
    }


@pytest.mark.parametrize(
    "content",
    [
        {"a.jpg": ["cat"], "b/c.jpg": []},
        [{"id": "7", "image": "a.jpg", "label": "cat"}, {"image": "b/c.jpg", "label": None}],
        {"a.jpg": "Cat", "b\\c.jpg": None},
        {"a.jpg": {"cat": 1, "dog": 0}, "b/c.jpg": {"cat": False}},
        [{"file_name": "a.jpg", "id": 7, "labels": ["cat"]}, {"file_name": "b/c.jpg", "tags": []}],
        [{"image_file": "a.jpg", "id": 7, "tags": ["cat"]}, {"image_file": "b/c.jpg", "tags": []}],
        {
            "images": [
                {"id": 1, "file_name": "a.jpg", "height": 2, "width": 2},
                {"id": 2, "file_name": "b\\c.jpg", "height": 2, "width": 2},
            ],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "segmentation": []}],
            "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "nobody's"}],
        },
    ],
)
def test_labels_in_json(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "labels.JSON"
    path.write_text(json.dumps(content))
    assert dict(read_labels(path, CLASSES)) == {"a": ("cat",), "b/c": ()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ["cat"], "a": ["dog"]}', "the key 'a' is given twice"),
        ('{"a": ["cat"], "a.jpg": ["dog"]}', "image id 'a' is given twice"),
        ('{"a": 3}', r"image 'a': labels are a list of class names, got 3"),
        ('{"a": ["kitten"]}', "image 'a': unknown class 'kitten'"),
        ('[{"id": "a", "label": "cat", "confidence": 0}]', "0 under 'confidence' says"),
        ('[{"image": "a"}]', r"an entry needs an image and its labels"),
        ("[1]", "expected labels by image"),
        ("[" * 50_000, "nested too deeply"),
    ],
)
def test_bad_json_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(AdcamError, match=r"labels\.json.*" + message):
        read_labels(path, CLASSES)


SHEET = """<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>
<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="inlineStr"><is><t>cat</t></is></c>
<c r="C1" t="s"><v>1</v></c></row>
<row r="3"><c r="A3" t="str"><v>a.jpg</v></c><c r="B3"><v>1</v></c><c r="C3"><v>0.0</v></c></row>
<row r="4"><c r="A4" t="str"><v>b/c.jpg</v></c><c r="C4"><v>0</v></c></row>
<row r="5"><c r="A5"/></row>
</sheetData></worksheet>"""
TEXTS = "<sst><si><t>filename</t></si><si><r><t>do</t></r><r><t>g</t></r></si></sst>"


def write_xlsx(path: Path, sheet: str = SHEET, texts: str = TEXTS) -> Path:
    relation = '<Relationship Id="rId1" Target="worksheets/sheet1.xml"/>'
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", '<w xmlns:r="u"><sheet name="S" r:id="rId1"/></w>')
        archive.writestr("xl/_rels/workbook.xml.rels", f"<R>{relation}</R>")
        archive.writestr("xl/worksheets/sheet1.xml", sheet)
        archive.writestr("xl/sharedStrings.xml", texts)
    return path


def test_labels_in_an_excel_workbook(tmp_path: Path) -> None:
    table = read_labels(write_xlsx(tmp_path / "l.xlsx"), CLASSES)
    assert dict(table) == {"a": ("cat",), "b/c": ()}
    assert table.understood == "an Excel workbook; one column a class: cat, dog"


def test_bad_workbooks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "l.xlsx"
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'
    for sheet, message in (
        (bomb, "declares entities"),
        ("<sheetData", "not an XML file"),
        (SHEET.replace('r="C3"', 'r="XFE3"'), "beyond column 16384"),
        (SHEET.replace("<v>0</v></c><c r=", "<v>9</v></c><c r="), "a text that is not there"),
    ):
        write_xlsx(path, sheet)
        with pytest.raises(AdcamError, match=rf"l\.xlsx.*{message}"):
            read_labels(path, CLASSES)
    monkeypatch.setattr("adcam.data.spreadsheet._MAX_CELLS", 8)
    with pytest.raises(AdcamError, match=r"l\.xlsx: 3 rows of 3 columns are more than 8 cells"):
        read_labels(write_xlsx(path), CLASSES)
    monkeypatch.setattr("adcam.data.spreadsheet.MAX_BYTES", 300)
    with pytest.raises(AdcamError, match=r"sheet1\.xml unpacks to more than 300 bytes"):
        read_labels(write_xlsx(path), CLASSES)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(AdcamError, match="cannot be read as an Excel workbook"):
        read_labels(path, CLASSES)


def test_one_folder_a_class() -> None:
    table = read_folder_labels(["Cat/1", "dog/x/2", "cat/3"], ("cat", "dog"))
    assert table.class_ids == {"Cat/1": (0,), "dog/x/2": (1,), "cat/3": (0,)}
    assert read_folder_labels(["b/1", "a/1"]).classes == ("a", "b")
    with pytest.raises(AdcamError, match="'cow' is not named after a class; legal are cat, dog"):
        read_folder_labels(["cat/1", "cow/2"], ("cat", "dog"))
    with pytest.raises(AdcamError, match="'1' lies in no folder"):
        read_folder_labels(["1"], ("cat", "dog"))
    with pytest.raises(AdcamError, match="one folder a class: 'Background' is what every mask"):
        read_folder_labels(["cat/1", "Background/2"])


def test_class_ids_are_ascending_positions(tmp_path: Path) -> None:
    path = written(tmp_path, "image_id,labels\na,tabby cat;cat\nb,\nc,dog\n")
    table = read_labels(path, CLASSES)
    assert table.class_ids == {"a": (0, 2), "b": (), "c": (1,)}


def test_a_bom_and_crlf_from_a_spreadsheet(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbfimage_id,labels\r\na,cat\r\nb,\r\n")
    assert dict(read_labels(path)) == {"a": ("cat",), "b": ()}


def test_composed_and_decomposed_accents_are_one_spelling(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café,köter")
    assert decomposed != "café,köter"
    path = written(tmp_path, f"image_id,labels\n{decomposed}\n")
    table = read_labels(path, [unicodedata.normalize("NFD", "köter")])
    assert table.class_ids == {"café": (0,)}
    assert table["café"] == ("köter",)


def test_a_label_a_row(tmp_path: Path) -> None:
    path = written(
        tmp_path, "filename,label\na.jpg,red fox\nb.jpg,ant\na.jpg,ant\na.jpg,ant\nc.jpg,\n"
    )
    labels = read_labels(path)
    assert labels.classes == ("ant", "red fox")
    assert labels.class_ids == {"a": (0, 1), "b": (0,), "c": ()}
    with pytest.raises(ValueError, match="line 3: image id 'a' is already on line 2"):
        read_labels(written(tmp_path, "filename,label\na.jpg,ant;fox\na.jpg,ant\n"))


@pytest.mark.parametrize(
    ("text", "img_id"),
    [
        ("id,file_name,labels\n0,a.jpg,cat\n", "a"),
        ("id,image,label\n17,rex,cat\n", "rex"),
        ("image,labels,image_path\n1,cat,a.jpg\n", "a"),
        ("name,filename,label\nMrs X,a.jpg,cat\n", "a"),
        ("id,file\n", ""),
        ("image_id,labels,path\na,cat,/data/a.jpg\n", "a"),
        ("id,labels\n17,cat\n", "17"),
    ],
)
def test_a_number_beside_a_file_name_is_no_image(tmp_path: Path, text: str, img_id: str) -> None:
    path = written(tmp_path, text)
    if img_id:
        assert dict(read_labels(path)) == {img_id: ("cat",)}
    else:
        with pytest.raises(AdcamError, match="the header must be"):
            read_labels(path)


def test_a_workbook_without_its_empty_cells_and_with_reading_aids(tmp_path: Path) -> None:
    sheet = (
        '<x><row><c t="s"><v>0</v></c><c t="inlineStr"><is><t>cat</t></is></c>'
        '<c t="s"><v>1</v></c></row><row><c><v>1</v></c><c><v>1</v></c></row><row><c><v>2</v></c>'
        "</row></x>"
    )
    texts = (
        "<x><si><r><t>im</t></r><r><t>age</t></r></si><si><t>猫</t><rPh><t>ネコ</t></rPh></si></x>"
    )
    table = read_labels(write_xlsx(tmp_path / "l.xlsx", sheet, texts))
    assert dict(table) == {"1": ("cat",), "2": ()}
    assert table.classes == ("cat", "猫")


def test_classes_are_inferred_sorted(tmp_path: Path) -> None:
    path = written(tmp_path, "image_id,labels\na,zebra;tabby cat\nb,ant\nc,\n")
    assert read_labels(path).classes == ("ant", "tabby cat", "zebra")
    assert read_labels(path).class_ids == {"a": (1, 2), "b": (0,), "c": ()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image_id,labels\na,cat\nb,cow\n",
            r"line 3: unknown class 'cow'; legal are cat, dog, tab",
        ),
        ("image_id,labels\na,dog tabby cat\n", r"line 2: unknown class 'tabby'.*semicolons"),
        ("image_id,labels\na,cat\n\na,dog\n", r"line 4: image id 'a' is already on line 2"),
        ("image_id,labels\na.jpg,cat\na,dog\n", r"line 3: image id 'a' is already on line 2"),
        (
            "who,what\na,cat\n",
            r"line 1: the header must be 'image_id,labels', .* 'who,what'; rename",
        ),
        ("image_id,cat\na,2\n", r"line 1: the header must be 'image_id,labels', or name"),
        ("image_id,cat,cat\na,1,0\n", r"line 1: a class has no name, or two columns have one"),
        ("image_id,cat\na,1\na.png,0\n", r"line 3: image id 'a' is given twice"),
        ("filename;label\na;kitten\n", r"line 2: unknown class 'kitten'"),
        ("\na,cat\n", r"line 2: the header must be .* got 'a,cat'"),
        ("image_id,labels\na,cat,dog\n", r"line 2: expected 2 columns, got 3 \('a,cat,dog'\)"),
        ("image_id,labels\na\n", r"line 2: expected 2 columns, got 1"),
        ("image_id,labels\n,cat\n", r"line 2: the image id is empty"),
        ('image_id,labels\n"a"b,cat\n', r"line 2: not a CSV file"),
        ('image_id,labels\n"a,cat\n', r"not a CSV file"),
        ("", r"empty; the header must be"),
        ("file,label,labels\na,cat,cat dog\n", r"line 1: the columns 'label' and 'labels' could"),
        (
            "file,class,Present\na,cat,1\na,dog,0\n",
            r"line 3: 0 under 'Present' says that",
        ),
        ("ImageID,Label,Confidence\na,cat,0.0\n", r"line 2: 0\.0 under 'Confidence' says"),
        ("file,labels\na,\"['cat', 'dog']\"\n", r"line 2: the labels are a list as a program"),
        ("file,label\na,[]\n", r"line 2: the labels are a list as a program prints it \(\[\]\)"),
        ("image_id,labels\na,cät\n".encode("latin-1"), r"not UTF-8 text"),
    ],
)
def test_refusals_name_file_line_and_value(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=r"labels\.csv.*" + message):
        read_labels(written(tmp_path, text), CLASSES)


def test_an_id_that_looks_like_a_file_name_is_read_back(tmp_path: Path) -> None:
    write_labels_csv(tmp_path / "l.csv", {"a": ["cat"], "a.jpg": ["dog"]}, CLASSES)
    assert dict(read_labels(tmp_path / "l.csv")) == {"a": ("cat",), "a.jpg": ("dog",)}


words = st.text("abZ0é日ß.,-_\"'#/", min_size=1, max_size=5)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_what_is_written_is_read_back(tmp_path: Path, data: st.DataObject) -> None:
    phrases = st.lists(words, min_size=1, max_size=3).map(" ".join)
    classes = tuple(data.draw(st.lists(phrases, min_size=1, max_size=4, unique=True)))
    ids = data.draw(st.lists(phrases.map(img_id_of), max_size=5, unique=True))
    labels = {i: data.draw(st.sets(st.sampled_from(classes))) for i in ids}
    path = tmp_path / "out.csv"
    write_labels_csv(path, labels, classes)
    table = read_labels(path, classes)
    assert {i: set(table[i]) for i in table} == labels
    inferred = read_labels(path)
    assert {i: set(inferred[i]) for i in inferred} == labels


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ({"a": ["cow"]}, CLASSES, "'a' has the unknown class 'cow'; legal are cat, dog, tabby cat"),
        ({"a/b": [], "a\\b": []}, CLASSES, r"'a\\\\b' is given twice"),
        ({}, ("a;b",), "cannot hold the class name 'a;b'"),
        ({}, (" a",), "cannot hold the class name ' a'"),
        ({}, ("a\nb",), "cannot hold"),
        ({}, ("",), "cannot hold"),
    ],
)
def test_writing_refuses_what_could_not_be_read_back(
    tmp_path: Path, labels: Any, classes: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_labels_csv(tmp_path / "out.csv", labels, classes)
    assert not list(tmp_path.iterdir())


def test_plain_names_are_written_with_spaces(tmp_path: Path) -> None:
    write_labels_csv(tmp_path / "x.csv", {"a": ["dog", "cat"], "b, c": []}, ("cat", "dog"))
    assert (tmp_path / "x.csv").read_text() == 'image_id,labels\na,cat dog\n"b, c",\n'
    with (tmp_path / "x.csv").open(newline="") as file:
        assert list(csv.reader(file))[2] == ["b, c", ""]


def save_npy(path: Path, content: object) -> Path:
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def vector(*class_ids: int, length: int = 20) -> np.ndarray:
    hot = np.zeros(length, np.float32)
    hot[list(class_ids)] = 1
    return hot


@pytest.mark.parametrize(
    ("key", "img_id"),
    [
        (np.int32(2007000032), "2007_000032"),  # IRN, ReCAM, LPCAM
        (2011003276, "2011_003276"),
        ("2008_000008", "2008_000008"),
        (np.str_("2012_004331"), "2012_004331"),  # keys taken from an array of strings
    ],
)
def test_npy_keys_of_every_style(tmp_path: Path, key: Any, img_id: str) -> None:
    path = save_npy(tmp_path / "cls_labels.npy", {key: vector(14, 0), "2000_000001": vector()})
    assert read_cls_labels_npy(path) == {img_id: (0, 14), "2000_000001": ()}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_npy_of_every_pickle_protocol_and_numpy(tmp_path: Path, protocol: int, core: bytes) -> None:
    labels = {np.int32(2007000032): vector(3), "2007_000039": vector(0, 19).astype(np.int64)}
    data = pickle.dumps(np.array(labels, dtype=object), protocol=protocol)
    if protocol < 4:  # names are stored as lines, so that their length is not
        data = data.replace(b"numpy._core", core)
    elif core == b"numpy.core":
        data = _with_module_names(data)
    path = tmp_path / "x.npy"
    path.write_bytes(object_npy_header() + data)
    assert read_cls_labels_npy(path) == {"2007_000032": (3,), "2007_000039": (0, 19)}


def _with_module_names(data: bytes) -> bytes:
    """``numpy._core`` -> ``numpy.core`` in a framed pickle: counts of the name and its frame."""
    for name in (b"multiarray", b"numeric"):
        old, new = b"numpy._core." + name, b"numpy.core." + name
        while (at := data.find(bytes([0x8C, len(old)]) + old)) >= 0:
            frame = int.from_bytes(data[3:11], "little")
            data = data[:3] + (frame - 1).to_bytes(8, "little") + data[11:]
            data = data[:at] + bytes([0x8C, len(new)]) + new + data[at + 2 + len(old) :]
    return data


def test_npy_of_python_2(tmp_path: Path) -> None:
    # What Python 2 wrote: protocol 2, byte strings for text and for the array's memory.
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x08\x00\x00\x00\x00\x00\x00\x80?tb"
    )
    outer = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01)cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89"
        b"]}U\x0b2007_000032" + array + b"satb."
    )
    path = tmp_path / "x.npy"
    path.write_bytes(object_npy_header() + outer)
    assert read_cls_labels_npy(path, num_fg_classes=2) == {"2007_000032": (1,)}


class Evil:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def _canary() -> list[Any]:
    import builtins
    import os
    import subprocess

    return [
        (os.system, "os|posix|nt.system"),
        (builtins.eval, "builtins.eval"),
        (builtins.open, "io.open|_io.open"),
        (builtins.getattr, "builtins.getattr"),
        (subprocess.Popen, "subprocess.Popen"),
        (np.load, "numpy.load"),
        (np.memmap, "numpy.memmap"),
    ]


@pytest.mark.parametrize(("function", "name"), _canary())
@pytest.mark.parametrize("nested", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(
    tmp_path: Path, function: Any, name: str, nested: bool
) -> None:
    marker = tmp_path / "ran"
    argument = f"touch '{marker}'" if function.__name__ == "system" else str(marker)
    evil = Evil(function, argument)
    path = tmp_path / "x.npy"
    if nested:
        save_npy(path, {"2007_000032": vector(1), "2007_000039": evil})
    else:
        path.write_bytes(object_npy_header() + pickle.dumps(evil))
    with pytest.raises(ValueError, match=rf"x\.npy: cannot be read safely.*({name}).*not allowed"):
        read_cls_labels_npy(path)
    assert not marker.exists()


def test_a_dtype_state_that_turns_bytes_into_pointers_is_refused(tmp_path: Path) -> None:
    # dtype O8 with its flags cleared and raw bytes for data: NumPy itself would follow the bytes.
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08AAAAAAAAtb."
    )
    path = tmp_path / "x.npy"
    path.write_bytes(object_npy_header() + data)
    with pytest.raises(ValueError, match="dtype 'O8' are not allowed"):
        read_cls_labels_npy(path)


def test_no_codec_but_latin1_is_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(
        object_npy_header() + b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xU\x05utf-7\x86R."
    )
    with pytest.raises(ValueError, match="it asks for the codec 'utf-7'"):
        read_cls_labels_npy(path)


def test_a_pickle_cannot_change_the_reader(tmp_path: Path) -> None:
    # BUILD with a slot state on each name that is known: sets attributes, if anything lets it.
    names = ["numpy dtype", "numpy ndarray", "numpy.core.multiarray scalar", "_codecs encode"]
    for name in names:
        module, attribute = name.split()
        data = b"\x80\x02c%s\n%s\n(N}U\x07resolveK\x07stb." % (module.encode(), attribute.encode())
        path = tmp_path / "x.npy"
        path.write_bytes(object_npy_header() + data)
        with pytest.raises(ValueError, match="cannot be read safely"):
            read_cls_labels_npy(path)
    good = save_npy(tmp_path / "good.npy", {"2007_000032": vector(1)})
    assert read_cls_labels_npy(good) == {"2007_000032": (1,)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a dict|expected one pickled object"),
        ({"a": vector(1, length=21)}, r"image 'a' has shape \(21,\), expected \(20,\)"),
        ({"a": np.zeros((20, 1))}, r"image 'a' has shape \(20, 1\)"),
        ({"a": vector(1) * 2}, "image 'a' holds values other than 0 and 1"),
        ({"a": vector(1) * np.nan}, "image 'a' holds values other than 0 and 1"),
        ({"a": "cat"}, "image 'a' has a str"),
        ({7: vector(1)}, "key 7 is neither"),
        ({2007000032: vector(1), "2007_000032": vector(1)}, "two keys name image '2007_000032'"),
    ],
)
def test_npy_with_other_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = save_npy(tmp_path / "x.npy", content)
    with pytest.raises(ValueError, match=rf"x\.npy: .*({message})"):
        read_cls_labels_npy(path)


@pytest.mark.parametrize(
    "content", [b"", b"not npy", b"\x93NUMPY", object_npy_header(), object_npy_header()[:40]]
)
def test_damaged_npy_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy: "):
        read_cls_labels_npy(path)


def test_a_plain_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 20), np.float32))
    with pytest.raises(ValueError, match=r"got an array of float32 with shape \(3, 20\)"):
        read_cls_labels_npy(tmp_path / "x.npy")


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_pickle_is_read_or_refused_but_nothing_else(
    tmp_path: Path, edits: list[tuple[int, int]]
) -> None:
    data = bytearray(
        object_npy_header() + pickle.dumps(np.array({"2007_000032": vector(2)}, dtype=object))
    )
    for position, value in edits:
        data[position % len(data)] = value
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    try:
        labels = read_cls_labels_npy(path)
    except ValueError as err:
        assert "x.npy" in str(err)
    else:
        assert all(0 <= i < 20 for ids in labels.values() for i in ids)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "x.csv",
            "image_id,labels\na,ca\0t\n",
            # The reader of Python 3.10 refuses such a line itself.
            r"x.csv: the class name 'ca\\x00t' holds a control|x.csv, line 2: .*line contains NUL",
        ),
        (
            "x.csv",
            "image_id,labels\na\0b,cat\n",
            "x.csv, line 2: (image id 'a.x00b' holds a char|.*line contains NUL)",
        ),
        ("x.json", '{"a": ["\\ud800"]}', "x.json: the class name '.ud800' holds a control"),
        ("x.json", '{"\\ud800.jpg": ["cat"]}', "x.json, image .*: image id '.ud800' holds a char"),
    ],
)
def test_characters_that_no_name_has(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(AdcamError, match=message):
        read_labels(tmp_path / name)


def test_commas_in_a_quoted_cell_separate_unknown_classes_too(tmp_path: Path) -> None:
    table = read_labels(written(tmp_path, 'image_id,labels\na,"cat, tabby cat"\nb,dog\n'))
    assert dict(table) == {"a": ("cat", "tabby cat"), "b": ("dog",)}
    write_labels_csv(tmp_path / "y.csv", {"a": ["red,white"]}, ["red,white"])
    assert dict(read_labels(tmp_path / "y.csv")) == {"a": ("red,white",)}
