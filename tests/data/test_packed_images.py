"""Images in tar archives and Parquet files: found with their labels, read one by one."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adcam.data.images import ImageError, read_image_bytes
from adcam.data.open_images import open_images
from adcam.data.packed_images import find_packed, list_packed
from adcam.data.sources import build_classes
from adcam.errors import AdcamError

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")
import pyarrow as pa
import pyarrow.parquet as pq

CLASSES = build_classes(["cat", "dog", "horse"])


def encode(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path: Path, columns: dict[str, Any], metadata: Any = None) -> Path:
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=2)
    return path


def test_a_tar_archive_as_webdataset_reads_it(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        {
            "./b/2.png": encode(2),
            "b/2.cls": b"1\n",
            "1.jpg": encode(1),
            "1.json": json.dumps({"labels": ["horse", "cat"]}).encode(),
            "3.png": encode(3),
            "3.json": b'{"url": "x"}',
            "4.cls": b"0",
            "5.seg.png": encode(5),
        },
    )
    images = open_images(path, CLASSES)
    assert [(r.img_id, r.class_ids) for r in images.records] == [
        ("b/2", (1,)),
        ("1", (0, 2)),
        ("3", None),
    ]
    for index, seed in enumerate((2, 1, 3)):
        expected = np.array(Image.open(io.BytesIO(encode(seed))))
        np.testing.assert_array_equal(images.load_image(index), expected)
    assert images.missing_files() == []
    assert [r.class_ids for r in open_images(path, CLASSES, labels=None).records] == [None] * 3


@pytest.mark.parametrize("as_struct", [False, True])
def test_a_parquet_file_in_row_groups(tmp_path: Path, as_struct: bool) -> None:
    data = [encode(seed) for seed in range(5)]
    names = [f"x/{seed}.png" for seed in range(5)]
    columns: dict[str, Any] = {"label": [0, 1, 2, 1, 0]}
    if as_struct:
        pairs = zip(data, names, strict=True)
        columns["image"] = [{"bytes": cell, "path": name} for cell, name in pairs]
        features = {"image": {"_type": "Image"}, "label": {"names": ["dog", "cat", "horse"]}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    else:
        columns |= {"jpg": data, "file_name": names}
        metadata = None
    images = open_images(write_parquet(tmp_path / "a.parquet", columns, metadata), CLASSES)
    assert [r.img_id for r in images.records] == [f"x/{seed}" for seed in range(5)]
    by_number, by_name = [(0,), (1,), (2,), (1,), (0,)], [(1,), (0,), (2,), (0,), (1,)]
    assert [r.class_ids for r in images.records] == (by_name if as_struct else by_number)
    for index in (4, 0, 3):
        expected = np.array(Image.open(io.BytesIO(data[index])))
        np.testing.assert_array_equal(images.load_image(index), expected)


def test_rows_without_ids_and_empty_cells(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"image": [encode(0), None, b"junk"]})
    images = open_images(path, CLASSES)
    assert [r.img_id for r in images.records] == ["p-000000", "p-000001", "p-000002"]
    assert images.load_image(0).shape == (6, 8, 3)
    with pytest.raises(ImageError, match=r"p\.parquet#0\.1: the cell is empty"):
        images.load_image(1)
    with pytest.raises(ImageError, match=r"p\.parquet#1\.0: not an image"):
        images.load_image(2)


def test_folders_patterns_and_lists_of_archives(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.png": encode(0)})
    (tmp_path / "list.txt").write_text("b.tar\n\na.tar\n")
    ids = {
        str(source): [r.img_id for r in open_images(source, CLASSES, labels=None).records]
        for source in (tmp_path, tmp_path / "*.tar", tmp_path / "list.txt", tmp_path / "a.tar")
    }
    assert list(ids.values()) == [["a", "b"], ["a", "b"], ["b", "a"], ["a"]]
    (tmp_path / "labels.csv").write_text("image_id,labels\na.png,dog\n")
    labelled = open_images(tmp_path, CLASSES, labels=tmp_path / "labels.csv")
    assert [r.class_ids for r in labelled.records] == [(1,), None]


def test_a_folder_of_image_files_stays_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(0))
    assert list_packed(tmp_path) == []
    assert list_packed(tmp_path / "a.png") == []
    (record,) = open_images(tmp_path, CLASSES, labels=None).records
    assert record.packed is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar", b"no archive at all", "cannot be read as a tar archive"),
        ("a.parquet", b"no table", "cannot be read as a Parquet file"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AdcamError, match=message) as caught:
        open_images(tmp_path / name, CLASSES)
    assert str(tmp_path / name) in str(caught.value)


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.png": encode(1), "1.cls": b"zebra"})
    with pytest.raises(AdcamError, match=r"#1\.png: unknown class in \['zebra'\]"):
        open_images(path, CLASSES)
    table = write_parquet(tmp_path / "t.parquet", {"text": ["a"]})
    with pytest.raises(AdcamError, match=r"no column of encoded images.*text \(string\)"):
        open_images(table, CLASSES)
    twice = write_tar(tmp_path / "b.tar", {"1.png": encode(1)})
    (tmp_path / "list.txt").write_text(f"{path.name}\n{twice.name}\n")
    with pytest.raises(AdcamError, match="1 image ids are given twice: 1"):
        open_images(tmp_path / "list.txt", CLASSES, labels=None)
    (tmp_path / "mixed.txt").write_text("a.tar\nphoto.jpg\n")
    with pytest.raises(AdcamError, match=r"photo\.jpg is of another kind than"):
        open_images(tmp_path / "mixed.txt", CLASSES)
    with pytest.raises(AdcamError, match=r"no images, \.tar or \.parquet files"):
        open_images(tmp_path / "none-*.tar", CLASSES)
    with pytest.raises(AdcamError, match="nowhere://x: "):
        open_images("nowhere://x", CLASSES)
    with pytest.raises(AdcamError, match=r"expected \.tar or \.parquet files"):
        list(find_packed(["s3://bucket/a.bin"]))
    packed = write_tar(tmp_path / "c.tar", {"../x.png": encode(1)}, "w:gz")
    with pytest.raises(AdcamError, match="compressed ones are not read"):
        open_images(packed, CLASSES)


def test_two_images_of_a_sample_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"x/1.jpg": encode(1), "x/1.png": encode(2)})
    with pytest.raises(AdcamError, match=r"'x/1' has two images, x/1\.jpg and x/1\.png"):
        open_images(path, CLASSES)
    path = write_tar(tmp_path / "b.tar", {"x/1.png": encode(1)})
    write_tar(path, {"x/1.png": encode(2)}, "a")  # as `tar --append` updates a file
    np.testing.assert_array_equal(
        open_images(path, CLASSES)[0].img, read_image_bytes(encode(2), "")
    )


def test_flags_of_classes_are_not_taken_for_their_numbers(tmp_path: Path) -> None:
    def class_ids(labels: list[list[int]]) -> list[Any]:
        columns = {"image": [encode(0)] * len(labels), "labels": labels}
        images = open_images(write_parquet(tmp_path / "a.parquet", columns), CLASSES)
        return [record.class_ids for record in images.records]

    assert class_ids([[0, 1], [2, 2, 1], []]) == [(0, 1), (1, 2), ()]
    with pytest.raises(AdcamError, match=r"\[0, 1, 0\] could be numbers .* each of the 3 classes"):
        class_ids([[0, 1, 0]])
    path = write_tar(tmp_path / "a.tar", {"1.png": encode(1), "1.cls": "²".encode()})
    with pytest.raises(AdcamError, match="unknown class in"):
        open_images(path, CLASSES)


def test_how_labels_were_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.png": encode(1)})
    (tmp_path / "l.csv").write_text("file;label\n1.png;cat\n")
    assert open_images(path, CLASSES, labels=tmp_path / "l.csv").records[0].class_ids == (0,)
    assert "are read as cells are separated by semicolons" in caplog.text
    with pytest.raises(AdcamError, match="did you mean 'predicted'"):
        open_images(path, CLASSES, labels="predictd")


def test_urls_of_images_get_ids_below_their_folder() -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for name in ("x/dog 1.png", "x/sub/cat.png", "x/notes.md", "x/.hidden.png"):
        store.pipe_file(f"/photos/{name}", encode(len(name)))
    images = open_images("memory://photos/x", CLASSES, labels=None)
    assert [r.img_id for r in images.records] == ["dog 1", "sub/cat"]
    assert images.load_image(0).shape == (6, 8, 3)
    store.rm("/photos", recursive=True)
