"""The door to the disk: atomic writes, named refusals, one walk, one rule from name to id."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import tracemalloc
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from adcam.errors import AdcamError
from adcam.files import (
    LazyList,
    Spool,
    file_of_id,
    find_files,
    find_images,
    img_id_of,
    is_image_path,
    read_json,
    replacing,
    spell_img_id,
    write_bytes,
    write_csv,
    write_json,
    write_text,
)


def test_parents_are_made_and_the_content_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "ü" / "x.txt"
    write_text(path, "é\r\nline\n")
    assert path.read_bytes() == "é\r\nline\n".encode()
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_name_at_the_length_limit_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".png")
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = tmp_path / "x"
    write_text(path, "old")

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(failure)):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "parent").write_text("")
    with pytest.raises(OSError, match=r"cannot write into the folder .*parent") as caught:
        write_text(tmp_path / "parent" / "x", "")
    assert caught.value.filename == str(tmp_path / "parent" / "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(PermissionError, match=r"cannot write into the folder .*locked"):
        write_text(folder / "x", "")


def test_a_refusal_of_the_system_keeps_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match="cannot write into the folder") as caught:
        write_text(tmp_path / "x", "")
    assert caught.value.errno == errno.EACCES


def test_tables_are_written_with_plain_line_ends(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ("name", "value"), [("a, b", 1), ('say "x"', None)])
    assert (tmp_path / "t.csv").read_bytes() == b'name,value\n"a, b",1\n"say ""x""",\n'


def test_json_is_written_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": ["é"], "a": 1})
    assert (tmp_path / "x.json").read_text("utf-8") == '{\n  "b": [\n    "é"\n  ],\n  "a": 1\n}\n'
    assert read_json(tmp_path / "x.json") == {"b": ["é"], "a": 1}
    write_json(tmp_path / "x.json", {"b": 2, "a": 1}, indent=None, sort_keys=True)
    assert (tmp_path / "x.json").read_text() == '{"a": 1, "b": 2}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read as a JSON file \(No such file or directory\)"),
        (b"", "cut short"),
        (b'{"a": [1, 2', "cut short"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[1]", r"expected an object, got \[1\]"),
        (b"1" * 5000, "cut short|expected an object"),
    ],
)
def test_bad_json_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "some file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AdcamError, match=r"some file\.json: .*" + message):
        read_json(path)


def test_a_path_with_a_nul_is_named() -> None:
    with pytest.raises(AdcamError, match="null byte"):
        read_json("a\0.json")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.JPG", True), ("b/c d.Tiff", True), ("x.png.txt", False), ("jpg", False), (".jpg", False)],
)
def test_is_image_path(name: str, expected: bool) -> None:
    assert is_image_path(name) is expected


@pytest.mark.parametrize(
    ("name", "img_id"),
    [
        ("a.JPG", "a"),
        ("./holidays//dog 1.jpeg", "holidays/dog 1"),
        ("holidays\\\\dog 1.jpeg", "holidays/dog 1"),
        (".\\sub\\x.avif", "sub/x"),
        (" x .png ", "x"),
        ("v1.2", "v1.2"),
        ("x.jpg.png", "x.jpg"),
        (unicodedata.normalize("NFD", "café.png"), "café"),
    ],
)
def test_one_rule_from_name_to_id_and_back(name: str, img_id: str) -> None:
    assert img_id_of(name) == img_id
    assert img_id_of(spell_img_id(img_id)) == img_id
    assert file_of_id("m", img_id, ".png") == Path("m") / f"{img_id}.png"


@pytest.mark.parametrize("img_id", ["", ".", "../a", "a/../b", "/a", "a\0"])
def test_ids_stay_in_their_folder(img_id: str) -> None:
    with pytest.raises(AdcamError, match="outside its folder"):
        file_of_id("m", img_id, ".png")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_walk_leaves_out_what_is_no_image_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.PNG", "sub/b.jp2", "._a.png", ".ipynb_checkpoints/a.png", ".DS_Store"):
        touch(tmp_path / name)
    for name in ("c.heic", "d.HEIC", "e.cr2", "notes.txt", "__MACOSX/a.png", "labels.csv"):
        touch(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        paths = find_images(tmp_path)
    assert paths == {"a": tmp_path / "a.PNG", "sub/b": tmp_path / "sub" / "b.jp2"}
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: 3 files are of kinds that are not read: 1 .cr2, 2 .heic "
        "(export HEIC photographs as JPEG)"
    ]


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path / "a.heic", tmp_path / "b.heic")
    with pytest.raises(AdcamError, match=r"2 \.heic$"):
        find_files(tmp_path, ".png")
    with pytest.raises(
        AdcamError, match=r"there are no images in this folder; 2 files .* 2 \.heic .*as JPEG"
    ):
        find_images(tmp_path)


def test_masks_are_found_by_the_same_rule(tmp_path: Path) -> None:
    for name in ("a.png", "B.PNG", "x.jpg.png", "._a.png", ".ipynb_checkpoints/a.png", "c.txt"):
        touch(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    assert list(find_files(tmp_path, ".png")) == ["B", "a", "x.jpg"]
    with pytest.raises(AdcamError, match=r"there are no \.npy or \.npz files in this folder"):
        find_files(tmp_path, ".npz", ".npy")


def test_names_that_clash_are_refused_naming_both(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg", tmp_path / "a.png")
    with pytest.raises(AdcamError, match=r"a\.jpg and .*a\.png have the same id 'a'"):
        find_images(tmp_path)


def test_results_of_this_project_are_no_input(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "out/masks/a.png", "out/config.json", "out/manifest.jsonl"):
        touch(tmp_path / name)
    touch(tmp_path / "work" / "stage.json", tmp_path / "work" / "x.png")
    touch(tmp_path / "mine" / "config.json", tmp_path / "mine" / "y.png")
    with caplog.at_level(logging.WARNING):
        paths = find_images(tmp_path)
    assert list(paths) == ["a", "mine/y"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: {tmp_path / name} holds results of adcam and is left out"
        for name in ("out", "work")
    ]
    with pytest.raises(AdcamError, match="holds results of adcam, which are never an input"):
        find_images(tmp_path / "out")


def test_a_folder_can_be_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "out" / "b.png")
    assert list(find_images(tmp_path, leave_out=[tmp_path / "sub" / ".." / "out"])) == ["a"]
    with pytest.raises(AdcamError, match="results would lie among the images"):
        find_images(tmp_path, leave_out=[tmp_path])


def test_a_sub_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "a.png", tmp_path / "locked" / "b.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with caplog.at_level(logging.WARNING):
        paths = find_images(tmp_path)
    assert list(paths) == ["a"]
    assert f"{tmp_path}: the sub-folder {tmp_path / 'locked'} cannot be read" in caplog.text
    with pytest.raises(
        AdcamError, match=r"locked: the folder cannot be read \(Permission denied\)"
    ):
        find_images(tmp_path / "locked")


def test_json_of_lazy_lists_is_that_of_lists(tmp_path: Path) -> None:
    lists = {"a": [{"b": 1}, [2, "é"]], "c": [], "d": [[]]}
    lazy = {key: LazyList(lambda value=value: iter(value)) for key, value in lists.items()}
    for indent in (None, 1, 2):
        write_json(tmp_path / "lists.json", lists, indent=indent)
        write_json(tmp_path / "lazy.json", lazy, indent=indent)
        text = (tmp_path / "lists.json").read_bytes()
        assert (tmp_path / "lazy.json").read_bytes() == text
        assert text.decode() == json.dumps(lists, indent=indent, ensure_ascii=False) + "\n"


def test_long_tables_are_never_held_as_a_whole(tmp_path: Path) -> None:
    def rows() -> Iterator[tuple[int, str]]:
        return ((i, "x" * 100) for i in range(50_000))

    tracemalloc.start()
    write_csv(tmp_path / "a.csv", ("i", "x"), rows())
    write_json(tmp_path / "a.json", {"rows": LazyList(rows)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "a.csv").stat().st_size > 5_000_000
    assert len(json.loads((tmp_path / "a.json").read_text())["rows"]) == 50_000
    assert peak < 1_000_000


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "before")
    with pytest.raises(KeyError), replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_a_spool_gives_back_what_was_put_aside_and_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    parts = [bytes([number]) * size for number, size in enumerate((0, 1, 70_000, 3))]
    readers = [spool.put(part) for part in parts]
    assert [reader() for reader in reversed(readers)] == parts[::-1]
    assert list(tmp_path.iterdir()) == []  # so that no kill can leave it


def test_a_spool_names_its_folder_where_storage_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="temporary file"):
        Spool(tmp_path / "gone")
    spool = Spool(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="cannot write into the folder"):
            spool.put(b"x" * 1000)
    finally:
        signal.signal(signal.SIGXFSZ, handler)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
