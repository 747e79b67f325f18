"""Whatever a file holds: its reader returns something, or names the file in an `AdcamError`.

Valid files of every kind are damaged at random: bytes changed, cut, doubled, and pieces that have
broken readers before put in, some of which would run code where they are unpickled. Meanwhile
Python itself watches: nothing may start a process, ask the network, or write outside the folder.
``ADCAM_FUZZ_EXAMPLES`` raises the number of inputs a reader.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miniatures import annotation, coco_json
from PIL import Image

from adcam.convert.training_sets import convert_hf_to_masks
from adcam.data.annotation_labels import read_object_names
from adcam.data.coco_json import draw_objects, match_categories, read_coco_json
from adcam.data.colors import read_color_table
from adcam.data.cvat import encode_file, encode_image, read_cvat
from adcam.data.dataset import build_class_set
from adcam.data.formats import read_cam_file
from adcam.data.images import ImageError, read_image
from adcam.data.label_studio import encode_task, read_tasks
from adcam.data.labels import read_cls_labels_npy, read_labels
from adcam.data.open_images import read_id_list
from adcam.data.packed_images import find_packed
from adcam.data.png import read_mask
from adcam.data.polygons import draw_yolo, read_yolo
from adcam.data.score_maps import read_score_map
from adcam.data.voc import load_voc
from adcam.data.wsol import read_wsol_metadata
from adcam.errors import AdcamError
from adcam.files import read_json
from adcam.labeling.maps_file import encode_maps, load_maps
from adcam.parquet import encode_table
from adcam.structures import ClassMaps

EXAMPLES = int(os.environ.get("ADCAM_FUZZ_EXAMPLES", "30"))

TEXT_PIECES = (
    *(b"1e999", b"-1", b"NaN", b"Infinity", b"null", b"true", b'""', b"[]", b"{}", b"99999999999"),
    *(b"[" * 3000, b'{"a":' * 3000, b"\x00", b"\xff", b"\xef\xbb\xbf", b"\\ud800", b"9" * 5000),
    *(b";", b"\t", b",,", b"\r", b'"', b"../", b"\\", b"<!DOCTYPE a [<!ENTITY b 'c'>]>"),
    b"<a>" * 200,
    *(b'encoding="klingon"', b'encoding="utf-16"', b"\xe2\x80\xa8"),
)
RUNS_CODE = b"cos\nsystem\n(S'true'\ntR"  # a pickle that calls os.system("true")
BYTE_PIECES = (
    *(RUNS_CODE, RUNS_CODE + b"."),
    *(b"\x00" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"PK\x03\x04", b"\x93NUMPY", b"}", b"'"),
    *(b"(10**9,)", b"(-1,)", b"('|O')", b"<f8", b"|O", b"cos\nsystem\n", b"\x80\x04", b"R.", b"."),
)


def npy(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


def pickled(value: Any) -> bytes:
    return npy(np.array(value, dtype=object))


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def xlsx() -> bytes:
    cells = '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c></row>'
    rows = '<row r="2"><c r="A2" t="str"><v>a.jpg</v></c><c r="B2"><v>1.0</v></c></row>'
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("xl/workbook.xml", '<w><sheet name="S" r:id="i"/></w>')
        archive.writestr(
            "xl/_rels/workbook.xml.rels", '<R><Relationship Id="i" Target="s.xml"/></R>'
        )
        archive.writestr("xl/s.xml", f"<w><sheetData>{cells}{rows}</sheetData></w>")
        archive.writestr("xl/sharedStrings.xml", "<s><si><t>image</t></si><si><t>cat</t></si></s>")
    return buffer.getvalue()


def read_coco(path: Path) -> None:
    file = read_coco_json(path)
    try:  # a config names the classes, and its classes are told with their key
        class_set = build_class_set("x", sorted(set(file.categories.values())))
    except AdcamError:
        return
    value_of = match_categories(file, class_set)
    for image in file.images:
        if image.hw[0] * image.hw[1] < 10_000:
            try:
                draw_objects(image, value_of)
            except AdcamError as error:  # the converter names the image
                raise AdcamError(f"{path}: {error}") from error


def read_voc_list(path: Path) -> None:
    lists = path.parent / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / path.name).write_bytes(path.read_bytes())
    load_voc(path.parent, path.stem, labels=None)


def read_metadata(path: Path) -> None:
    folder = path.parent
    (folder / "image_ids.txt").write_text("a/b.jpg\n")
    (folder / "class_labels.txt").write_text("a/b.jpg,3\n")
    path.rename(folder / "localization.txt")
    try:
        read_wsol_metadata(folder)
    except AdcamError as error:
        assert "localization.txt" in str(error)


def read_yolo_folder(path: Path) -> None:
    """Of a folder of its own, so that nothing else lies beside it."""
    (path.parent / "classes.txt").write_text("cat\ndog\n")
    try:
        read_labels(path.parent)
    except AdcamError as error:
        assert "x.txt" in str(error) or str(path.parent) in str(error)
    (path.parent / "classes.txt").unlink()


def read_class_list(path: Path) -> None:
    folder = path.parent / "yolo"
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("0 0.1 0.1 0.2 0.2\n")
    path.replace(folder / "data.yaml")
    try:
        read_labels(folder)
    except AdcamError as error:
        assert "data.yaml" in str(error) or "a.txt" in str(error)


def cvat_masks() -> bytes:
    mask = np.array([[0, 1, 1, 2]] * 3, np.uint8)
    element = encode_image(0, "a.jpg", mask, {"cat": 1, "dog": 2})
    element.append(ET.Element("polygon", label="cat", points="0,0;3,0;3,2", z_order="1"))
    return encode_file([element], build_class_set("x", ["cat", "dog"]))


def studio_tasks() -> bytes:
    mask = np.array([[0, 1, 1, 2]] * 3, np.uint8)
    task = encode_task("/data/local-files/?d=a.jpg", mask, {"cat": 1, "dog": 2})
    polygon = {
        "type": "polygonlabels", "original_width": 4, "original_height": 3,
        "value": {"points": [[0, 0], [50, 0], [50, 99.5]], "polygonlabels": ["cat"]},
    }  # fmt: skip
    task["predictions"][0]["result"].append(polygon)
    return json.dumps([task]).encode()


def mask_table() -> bytes:
    cells = [{"bytes": png(), "path": name} for name in ("a.png", "b.png")]
    return encode_table({"mask": ("image", cells)}, compression="none")


def read_masks_of_table(path: Path) -> None:
    folder = path.parent / "masks"
    result = convert_hf_to_masks(path, folder, build_class_set("x", ["c"]), overwrite=True)
    assert result.num_images + len(result.failed) <= 4


def image_table() -> bytes:
    cells = [{"bytes": png(), "path": name} for name in ("a.png", "b.png")]
    labels = [["cat"], ["cat", "dog"]]
    return encode_table({"image": ("image", cells), "labels": ("texts", labels)})


def read_images_of_table(path: Path) -> None:
    for found in find_packed([str(path)]):
        try:
            found.image.load()
        except ImageError as error:  # of one image, whose file and place it names
            assert path.name in str(error)


CLASSES = build_class_set("x", ["cat", "dog"])
MAPS = ClassMaps((0, 1), np.full((2, 3, 4), 0.5, np.float32))
IRN = {"keys": np.array([0, 3]), "high_res": np.full((2, 3, 4), 0.5, np.float32)}

READERS: dict[str, tuple[Callable[[Path], object], str, bytes]] = {
    "json": (read_json, "x.json", b'{"a": [1, 2.5, "x"], "b": {"c": null}}'),
    "labels csv": (read_labels, "x.csv", b"image_id,labels\na.jpg,cat dog\nb/c,\n"),
    "one-hot": (read_labels, "x.csv", b"filename;cat;dog\na.jpg;1;0\nb.jpg;0;1\n"),
    "labels json": (read_labels, "x.json", b'[{"file_name": "a.jpg", "labels": ["cat"]}]'),
    "labels xlsx": (read_labels, "x.xlsx", xlsx()),
    "cls_labels": (read_cls_labels_npy, "x.npy", pickled({"a": np.eye(20, dtype=np.float32)[3]})),
    "irn": (read_cam_file, "x.npy", pickled(IRN)),
    "psa": (read_cam_file, "x.npy", pickled({3: np.full((3, 4), 0.5, np.float32)})),
    "score map": (read_score_map, "x.npy", npy(np.full((3, 4), 0.5))),
    "maps": (load_maps, "x.npz", encode_maps(MAPS, CLASSES, (40, 60))),
    "mask": (read_mask, "x.png", png()),
    "image": (read_image, "x.png", png()),
    "coco": (read_coco, "x.json", json.dumps(coco_json("val2014")).encode()),
    "yolo": (
        lambda path: draw_yolo(read_yolo(path, 2), (9, 9), (1, 2)),
        "x.txt",
        b"0 0.1 0.1 0.9 0.1 0.5 0.9\n1 0 0 1 0 1 1\n",
    ),
    "voc xml": (read_object_names, "x.xml", annotation("cat", "dog").encode()),
    "cvat": (
        read_labels,
        "x.xml",
        b"<annotations><meta><task><labels><label><name>a</name></label></labels></task></meta>"
        b'<image name="a.jpg"><box label="cat"/></image><image name="b"/></annotations>',
    ),
    "label studio": (
        read_labels,
        "x.json",
        b'[{"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}, "annotations": [{"result":'
        b' [{"type": "choices", "value": {"choices": ["cat"]}}]}]}]',
    ),
    "cvat masks": (read_cvat, "x.xml", cvat_masks()),
    "label studio masks": (read_tasks, "x.json", studio_tasks()),
    "yolo labels": (read_yolo_folder, "x.txt", b"0 0.1 0.1 0.2 0.2\n1 0.5 0.5 0.1 0.1\n"),
    "data.yaml": (read_class_list, "x.yaml", b"path: .\nnames:\n  0: cat\n  1: dog\n"),
    "colors": (read_color_table, "x.csv", b"name,r,g,b\ncat,1,2,3\ndog,#040506\n"),
    "ids": (read_id_list, "x.txt", b"a\nsub/b.jpg\n"),
    "voc list": (read_voc_list, "x.txt", b"a\nJPEGImages/b.jpg SegmentationClass/b.png\nc -1\n"),
    "boxes": (read_metadata, "x.txt", b"a/b.jpg,1,2,3,4\na/b.jpg,0,0,1,1\n"),
}
if importlib.util.find_spec("pyarrow"):
    READERS["mask table"] = (read_masks_of_table, "x.parquet", mask_table())
    READERS["image table"] = (read_images_of_table, "x.parquet", image_table())
BINARY = {
    "image table",
    "mask table",
    "labels xlsx",
    "cls_labels",
    "irn",
    "psa",
    "score map",
    "maps",
    "mask",
    "image",
}


class Watch:
    """What Python's audit hooks see while it is on. They cannot be removed, so there is one.

    Events: https://docs.python.org/3/library/audit_events.html
    """

    RUN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen")
    ASK = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request")
    CHANGE = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod")

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    @contextlib.contextmanager
    def __call__(self, folder: Path) -> Iterator[None]:
        self.folder, self.seen = folder.resolve(), []
        try:
            yield
        finally:
            self.folder = None
        assert not self.seen

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event.startswith((*self.RUN, *self.ASK)):
            self.seen.append(f"{event} {args}")
        elif event.startswith(self.CHANGE) or (event == "open" and self._writes(*args)):
            paths = args[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]
            self.seen += [f"{event} {path}" for path in paths if not self._is_inside(path)]

    @staticmethod
    def _writes(path: object, mode: str | None, flags: int) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    def _is_inside(self, path: object) -> bool:
        if isinstance(path, int):  # a file that is open already
            return True
        assert self.folder is not None
        found = Path(os.fsdecode(path)).absolute()  # type: ignore[arg-type]
        normal = Path(os.path.normpath(found))
        # What Python keeps of modules that are imported late is not the reader's doing.
        return normal.is_relative_to(self.folder) or "__pycache__" in normal.parts


WATCH = Watch()


@st.composite
def damaged(draw: st.DrawFn, seed: bytes, pieces: tuple[bytes, ...]) -> bytes:
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["byte", "piece", "replace", "cut", "double"]))
        if kind == "byte" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "piece":
            data[at:at] = draw(st.sampled_from(pieces))
        elif kind == "replace":
            data[at : at + draw(st.integers(1, 8))] = draw(st.sampled_from(pieces))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
    return bytes(data)


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_read_or_refused_by_name(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    read, name, seed = READERS[kind]
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / name).write_bytes(seed)
    read(folder / name)  # the file itself is fine

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=EXAMPLES <= 30,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(seed, BYTE_PIECES if kind in BINARY else TEXT_PIECES))
    def check(data: bytes) -> None:
        path = folder / name
        path.write_bytes(data)
        with WATCH(folder):
            try:
                read(path)
            except AdcamError as error:
                assert name in str(error)

    check()


@pytest.mark.parametrize(
    "act",
    [
        lambda folder: pickle.loads(RUNS_CODE + b"."),
        lambda folder: subprocess.run(["true"], check=True),
        lambda folder: socket.getaddrinfo("localhost", 80),
        lambda folder: (folder.parent / "beside").write_text(""),
        lambda folder: (folder / ".." / "folder").mkdir(),
        lambda folder: (folder / "inside").replace(folder.parent / "moved"),
    ],
    ids=["pickle", "process", "network", "file", "folder", "move"],
)
def test_the_watch_sees_what_must_not_happen(act: Callable[[Path], object], tmp_path: Path) -> None:
    folder = tmp_path / "fuzz"
    folder.mkdir()
    (folder / "inside").write_text("")
    with WATCH(folder):
        (folder / "inside").write_text("may be changed")
    with pytest.raises(AssertionError), WATCH(folder):
        act(folder)
