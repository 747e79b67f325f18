"""A project from photographs and labels of any kind, and the commands that run in it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcam.cli import main
from adcam.data.labels import read_any_labels
from adcam.data.sources import build_dataset
from adcam.errors import AdcamError
from adcam.files import find_images
from adcam.project.find_labels import find_labels, find_photographs
from adcam.project.project import Project, open_project
from adcam.project.survey import look_at_images, match_ids, put_together
from adcam.settings import load_settings

NAMES = ("zebra", "ant", "red fox")


def write_photographs(folder: Path, count: int = 12) -> dict[str, tuple[str, ...]]:
    """Small pictures, a third of each class, the last without any."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    labels: dict[str, tuple[str, ...]] = {}
    for number in range(count):
        pixels = generator.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.jpg")
        labels[f"p{number}"] = (NAMES[number % 3],) if number < count - 1 else ()
    return labels


def write_table(path: Path, labels: Mapping[str, Sequence[str]]) -> None:
    rows = (f"{i}.jpg,{''.join(f'{name};' for name in names)}\n" for i, names in labels.items())
    path.write_text("".join(["image_id,labels\n", *rows]))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADCAM_WEIGHTS", raising=False)
    write_table(tmp_path / "labels.csv", write_photographs(tmp_path / "photos"))
    return tmp_path


def run(command: str) -> int:
    return main(shlex.split(command))


def test_init_writes_a_config_that_reads_everything(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run('init zoo --images photos --classes "zebra,ant,red fox" --seed 3') == 0
    printed = capsys.readouterr()
    assert "zebra" in printed.out and "none of them" in printed.out
    assert printed.err.splitlines()[-1] == "next: cd zoo && adcam train"
    settings = load_settings("zoo/adcam.toml")
    assert settings.train.seed == 3
    parts = {name: build_dataset(settings.data, name) for name in ("train", "val")}
    ids = [record.img_id for part in parts.values() for record in part.records]
    assert sorted(ids) == sorted(f"p{i}" for i in range(12))
    assert parts["val"].class_set.classes == NAMES
    assert parts["val"].class_set.mask_values == (1, 2, 3)
    assert parts["val"].class_set.name == "photos"
    assert {i for r in parts["val"].records for i in r.class_ids or ()} == {0, 1, 2}
    parts["train"].check_files()
    # The project and its photographs can be moved together.
    shutil.move(place / "zoo", place / "moved" / "zoo")
    shutil.move(place / "photos", place / "moved" / "photos")
    moved = load_settings(place / "moved" / "zoo" / "adcam.toml")
    build_dataset(moved.data, "val").check_files()


def test_a_project_is_not_overwritten_by_mistake(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("init --images photos") == 0
    before = (place / "adcam.toml").read_text()
    assert run("init --images photos --seed 1") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (place / "adcam.toml").read_text() == before
    assert run("init --images photos --seed 1 --overwrite") == 0
    assert (place / "labels.csv").read_text().startswith("image_id,labels")  # the user's own stays


def test_from_photographs_to_coco_in_four_commands(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = "--cfg-options train.epochs=1 train.num_workers=0 train.amp=none"
    (place / "photos" / "IMG_1.heic").touch()
    assert run("init --images photos --backbone shapes_vit") == 0
    capsys.readouterr()
    assert run(f"train {short}") == 0
    trained = capsys.readouterr().err  # both lists are of the same folder
    assert trained.count("1 file is of a kind that is not read: 1 .heic") == 1
    assert run("generate --device cpu --workers 0") == 0
    assert run("convert") == 0
    assert run("generate --device cpu --workers 0 --report-images 0 --out other") == 0
    printed = trained + capsys.readouterr().err
    assert "training 1 epoch; curves" in printed
    said = [line for line in printed.splitlines() if line.startswith("next: ")]
    assert said[:2] == ["next: adcam generate", "next: adcam convert"]
    assert said[3] == "next: adcam report other, then adcam convert for other formats"
    coco = json.loads((place / "coco.json").read_text())
    assert {c["id"]: c["name"] for c in coco["categories"]} == dict(
        enumerate(("ant", "red fox", "zebra"), start=1)
    )
    assert len(coco["images"]) == 12
    # In one go, and a second time: the project that is there is refused, not replaced.
    assert run(f"train photos --labels labels.csv --backbone shapes_vit {short}") == 0
    assert (place / "photos-adcam" / "work" / "classifier.safetensors").is_file()
    capsys.readouterr()
    assert run("train photos --labels labels.csv --backbone shapes_vit") == 2
    assert "adcam train photos-adcam; or set it up anew" in capsys.readouterr().err
    assert run(f"train photos-adcam {short}") == 0


def test_commands_say_what_is_missing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "generate", "report", "convert"):
        assert run(command) == 2
        assert "adcam init --images photos/" in capsys.readouterr().err
    assert run("init --images photos") == 0
    capsys.readouterr()
    for command, cure in (("generate", "train"), ("report", "generate"), ("convert", "generate")):
        assert run(command) == 2
        assert f"first: adcam {cure}" in capsys.readouterr().err
    assert run("train --seed 3") == 2
    assert "--cfg-options train.seed=" in capsys.readouterr().err
    assert run("train --weights deit.pth") == 2
    assert "--cfg-options model.weights=" in capsys.readouterr().err
    assert run("train --val-share 0.3") == 2
    assert "adcam init" in capsys.readouterr().err
    assert run("init photos") == 2
    assert "--images is missing: adcam init --images photos" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--images nowhere", "no such"),
        ("--images photos --labels nowhere.csv", "no such"),
        ("--images photos --val-share 1", "between 0 and 1"),
        ("--images photos --weights nowhere.pth", "no such file"),
        ("--images photos --classes zebra,ant", "unknown class 'red fox'"),
    ],
)
def test_init_refuses(
    place: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert run(f"init zoo {options}") == 2
    assert message in capsys.readouterr().err
    assert not (place / "zoo").exists()


def test_what_is_wrong_with_photographs_is_said(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = place / "photos"
    (photos / "p0.jpg").write_bytes((photos / "p0.jpg").read_bytes()[:300])  # truncated
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "copy.jpg").write_bytes((photos / "p1.jpg").read_bytes())
    (photos / "new.jpg").write_bytes((photos / "p2.jpg").read_bytes())
    with (place / "labels.csv").open("a") as table:
        table.write("copy,zebra;\nelsewhere.jpg,ant;\n")
    assert run("init --images photos") == 0
    said = capsys.readouterr().err
    assert "2 images cannot be read" in said and "p0.jpg" in said and "empty.jpg" in said
    assert "2 copies of other photographs" in said
    assert "different labels: p1 (ant) and copy (zebra)" in said
    assert "1 label of photographs that are not there: elsewhere" in said
    assert "1 photograph without a label" in said
    assert "fewer than 10 photographs show" in said
    lists = {
        name: (place / "lists" / f"{name}.txt").read_text().split() for name in ("train", "val")
    }
    learnt = {*lists["train"], *lists["val"]}
    assert not {"p0", "new"} & learnt and len(learnt & {"copy", "p1"}) == 1


def test_folders_without_anything_to_learn(place: Path) -> None:
    empty = place / "empty"
    empty.mkdir()
    assert run(f"init zoo --images {empty}") == 2
    (empty / "a.jpg").write_text("no picture")
    with pytest.raises(AdcamError, match="none of its 1 images can be read"):
        look_at_images(empty, find_images(empty))
    photographs = look_at_images(place / "photos", find_images(place / "photos"))
    for text, message in (
        ("x,ant", "none of its 1 labels names a photograph"),
        ("p0,\np1,", "no photograph shows any class"),
        ("p0,ant\np1,ant", "every photograph shows 'ant' and nothing else"),
        ("p0,ant", "one labelled photograph is not enough"),
    ):
        write_table(place / "l.csv", {})
        (place / "l.csv").write_text(f"image_id,labels\n{text}\n")
        with pytest.raises(AdcamError, match=message):
            put_together(photographs, read_any_labels("l.csv", ()), "l.csv")


def test_labels_are_found_or_asked_for(tmp_path: Path) -> None:
    photos = tmp_path / "zoo" / "photos"
    ids = list(write_photographs(photos, 2))
    with pytest.raises(AdcamError, match="no labels beside these images"):
        find_labels(photos, ids)
    above = tmp_path / "zoo" / "labels.csv"
    above.write_text("")
    assert find_labels(photos, ids) == above.resolve()
    (tmp_path / "zoo" / "labels").mkdir()
    (photos / "p0.xml").write_text("")
    assert find_labels(photos, ids) == photos
    (photos / "my table.xlsx").write_text("")
    assert find_labels(photos, ids) == photos / "my table.xlsx"
    (photos / "other.json").write_text("")
    with pytest.raises(AdcamError, match=r"my table\.xlsx and other\.json; say with --labels"):
        find_labels(photos, ids)
    (photos / "Labels.CSV").write_text("")
    assert find_labels(photos, ids) == photos / "Labels.CSV"
    assert find_labels(tmp_path / "zoo" / "photos", ["cat/1", "dog/1"]) == photos / "Labels.CSV"


def test_layouts_of_voc_and_yolo_are_found(tmp_path: Path) -> None:
    for images, labels, suffix in (
        ("JPEGImages", "Annotations", "xml"),
        ("images", "labels", "txt"),
    ):
        root = tmp_path / images
        write_photographs(root / images, 2)
        (root / labels).mkdir()
        (root / labels / f"p0.{suffix}").write_text("")
        assert find_photographs(root) == root / images
        assert find_labels(root / images, ["p0", "p1"]) == (root / labels).resolve()
    assert find_photographs(tmp_path) == tmp_path
    folders = tmp_path / "folders"
    for name in ("cat", "dog"):
        write_photographs(folders / name, 1)
    assert find_labels(folders, ["cat/p0", "dog/p0"]) == "folders"


def test_names_in_labels_may_be_longer_or_shorter_than_ids() -> None:
    known = ["a", "sub/b", "one/c", "two/c", "x/y/d"]
    found = match_ids(["a", "photos/a", "b", "/disk/me/sub/b", "c", "two/c", "y/d", "z"], known)
    assert found == {
        "a": "a",
        "photos/a": "a",
        "b": "sub/b",
        "/disk/me/sub/b": "sub/b",
        "two/c": "two/c",
        "y/d": "x/y/d",
    }


def test_names_in_labels_may_be_percent_escaped() -> None:
    known = ["my cat", "sub/ü", "50%20", "50 "]
    found = match_ids(["up/my%20cat", "sub%2F%C3%BC", "50%20", "100%", "%FF"], known)
    assert found == {"up/my%20cat": "my cat", "sub%2F%C3%BC": "sub/ü", "50%20": "50%20"}


def test_a_folder_without_a_config_is_no_project(tmp_path: Path) -> None:
    assert open_project(tmp_path) is None
    (tmp_path / "adcam.toml").write_text("[data]\nimagse = 'x'\n")
    project = open_project(tmp_path)
    assert project == Project(tmp_path)
    with pytest.raises(AdcamError, match=r"adcam\.toml: data: there is no key 'imagse'"):
        project.read_data()


def test_a_class_in_singular_and_plural_is_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (place / "labels.csv").read_text()
    (place / "labels.csv").write_text(text.replace("zebra", "Zebras", 1))
    assert run("init --images photos") == 0
    assert re.search(r"two spellings.*: zebra \(\d+\) and Zebras \(1\)", capsys.readouterr().err)


def test_classes_that_are_always_together_are_named(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (place / "labels.csv").read_text().replace(";", "")  # "red fox" reads as two classes
    (place / "labels.csv").write_text(text)
    assert run("init --images photos") == 0
    said = capsys.readouterr().err
    assert "always together" in said and "fox and red" in said and "red fox;" in said
