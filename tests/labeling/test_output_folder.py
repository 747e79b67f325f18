"""The record of a run: resuming, refusing, and never touching what is not ours."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adcam.data.png import voc_palette, write_mask
from adcam.errors import AdcamError
from adcam.files import hash_bytes, hash_or_none
from adcam.labeling.output_folder import (
    LOCK_NAME,
    OutputFolder,
    diff_configs,
    find_changes,
    read_output_folder,
    result_files,
)

CONFIG = {"adcam": "0", "labeler": {"method": "cam"}}


def make_entry(folder: OutputFolder, img_id: str, content: bytes = b"mask") -> dict[str, Any]:
    path = folder.mask_path(img_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    entry = {"id": img_id, "status": "ok", "mask": hash_bytes(content), "maps": None, "seconds": 1}
    folder.append(entry)
    return entry


def make_folder(path: Path, *img_ids: str) -> None:
    with OutputFolder(path, CONFIG) as folder:
        for img_id in img_ids:
            make_entry(folder, img_id)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[OutputFolder]:
    with OutputFolder(tmp_path, CONFIG) as opened:
        yield opened


def test_entries_are_found_again(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "run", CONFIG) as folder:
        entries = {img_id: make_entry(folder, img_id) for img_id in ("b", "sub dir/ü", "a")}
    with OutputFolder(tmp_path / "run", CONFIG) as again:
        assert {img_id: again[img_id] for img_id in entries} == entries
        assert "c" not in again
    assert json.loads((tmp_path / "run" / "config.json").read_text("utf-8")) == CONFIG
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("config.json", "manifest.jsonl", "masks")
    }


def test_done_means_listed_unchanged_and_as_expected(folder: OutputFolder) -> None:
    make_entry(folder, "a")
    assert folder.is_done("a", {"seconds": 1})
    assert not folder.is_done("a", {"seconds": 2})
    assert not folder.is_done("a", {"classes": []})
    assert not folder.is_done("b", {})
    folder.mask_path("a").write_bytes(b"other")
    assert not folder.is_done("a", {})
    folder.mask_path("a").unlink()
    assert not folder.is_done("a", {})
    folder.append({"id": "a", "status": "failed", "error": "x"})
    assert not folder.is_done("a", {})


def test_maps_that_are_listed_must_be_there(folder: OutputFolder) -> None:
    folder.append({**make_entry(folder, "a"), "maps": hash_bytes(b"maps")})
    assert not folder.is_done("a", {})
    maps_path = result_files(folder.path, "a")["maps"]
    maps_path.parent.mkdir()
    maps_path.write_bytes(b"maps")
    assert folder.is_done("a", {})


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    make_folder(tmp_path, "a")
    whole = (tmp_path / "manifest.jsonl").read_bytes()
    (tmp_path / "manifest.jsonl").write_bytes(whole + b'{"id": "b", "sta')
    with OutputFolder(tmp_path, CONFIG) as again:
        assert "a" in again and "b" not in again
        make_entry(again, "b")
    lines = (tmp_path / "manifest.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b"]


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"id": 3, "status": "ok"}',
        b'{"id": "b"}',
        b'{"id": "b", "status": "done"}',
        b'{"id": "../../b", "status": "ok"}',
        b'{"id": "b\\u0000", "status": "ok"}',
        b'{"id": "b", "status": "ok", "mask": 5}',
        b'{"id": "b", "status": "ok", "mask": "x", "maps": []}',
        b'{"id": "b\xff", "status": "ok"}',
    ],
)
def test_a_damaged_line_is_an_error_that_overwrite_cures(tmp_path: Path, line: bytes) -> None:
    make_folder(tmp_path, "a")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(line + b"\n" + manifest.read_bytes())
    for read in (lambda: OutputFolder(tmp_path, CONFIG), lambda: read_output_folder(tmp_path)):
        with pytest.raises(AdcamError, match=r"manifest\.jsonl, line 1: .*--overwrite"):
            read()
    assert not (tmp_path / LOCK_NAME).exists()
    OutputFolder(tmp_path, CONFIG, overwrite=True).close()
    assert not (tmp_path / "masks" / "a.png").exists()


def test_finish_sorts_and_keeps_the_newest_entry(folder: OutputFolder, tmp_path: Path) -> None:
    for img_id in ("z", "b", "a"):
        make_entry(folder, img_id)
    newest = make_entry(folder, "a", b"newer")
    folder.finish(["a", "missing", "b"])
    lines = (tmp_path / "manifest.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b", "z"]
    assert folder["a"] == newest and folder["z"]["id"] == "z"


def test_the_newest_line_counts_when_an_unfinished_run_resumes(tmp_path: Path) -> None:
    with OutputFolder(tmp_path, CONFIG) as folder:
        folder.append({"id": "a", "status": "failed", "error": "x"})
        newest = make_entry(folder, "a")
    with OutputFolder(tmp_path, CONFIG) as again:
        assert again["a"] == newest and again.is_done("a", {})


def test_names_that_are_no_utf_8_are_recorded(folder: OutputFolder, tmp_path: Path) -> None:
    folder.append({"id": "a\udcff", "status": "failed", "error": "ü"})
    assert folder["a\udcff"]["error"] == "ü"
    folder.append({"id": "ü", "status": "failed", "error": "x"})
    folder.finish(["a\udcff", "ü"])
    assert "ü" in (tmp_path / "manifest.jsonl").read_text("utf-8")


def test_another_configuration_is_refused_with_a_diff_and_nothing_touched(tmp_path: Path) -> None:
    make_folder(tmp_path, "a")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(AdcamError, match=r'labeler\.method: "cam" -> "ad_cam"'):
        OutputFolder(tmp_path, {"adcam": "0", "labeler": {"method": "ad_cam"}})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_diff_names_what_appears_and_what_vanishes() -> None:
    assert diff_configs({"a": 1, "b": {"c": [1]}}, {"b": {"c": [2]}, "d": {}}) == [
        "a: 1 -> (absent)",
        "b.c: [1] -> [2]",
        "d: (absent) -> {}",
    ]
    assert diff_configs({"a": {"b": 1}}, {"a": {"b": 1}}) == []


def test_overwrite_removes_what_the_manifest_lists_and_nothing_else(tmp_path: Path) -> None:
    make_folder(tmp_path, "a")
    (tmp_path / "masks" / "hand_drawn.png").write_bytes(b"precious")
    (tmp_path / "notes.txt").write_text("precious")
    other = {**CONFIG, "labeler": {"method": "ts_cam"}}
    with OutputFolder(tmp_path, other, overwrite=True) as folder:
        assert "a" not in folder and not folder.mask_path("a").exists()
    assert (tmp_path / "masks" / "hand_drawn.png").read_bytes() == b"precious"
    assert (tmp_path / "notes.txt").read_text() == "precious"
    assert json.loads((tmp_path / "config.json").read_text("utf-8")) == other


@pytest.mark.parametrize("overwrite", [False, True])
def test_masks_of_unknown_origin_are_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "masks" / "sub").mkdir(parents=True)
    (tmp_path / "masks" / "sub" / "a.png").write_bytes(b"precious")
    with pytest.raises(AdcamError, match=r"holds files, but .* has no config\.json"):
        OutputFolder(tmp_path, CONFIG, overwrite=overwrite)
    assert (tmp_path / "masks" / "sub" / "a.png").read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


@pytest.mark.parametrize("text", ['{"lr": 1}', "no json", "[]", "[" * 100_000])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_config_of_another_program_is_never_replaced(
    tmp_path: Path, text: str, overwrite: bool
) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(AdcamError, match="was not written by `adcam generate`"):
        OutputFolder(tmp_path, CONFIG, overwrite=overwrite)
    assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize("img_id", ["../a", "/a", "b/../../a", "", "a\0b"])
def test_ids_cannot_leave_the_folder(folder: OutputFolder, img_id: str) -> None:
    with pytest.raises(AdcamError, match="lead outside"):
        folder.mask_path(img_id)
    with pytest.raises(AdcamError, match="lead outside"):
        result_files(folder.path, img_id)


@pytest.mark.parametrize("name", ["config.json", "manifest.jsonl", LOCK_NAME, "masks", "maps"])
def test_planted_links_are_refused(tmp_path: Path, name: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("{}")
    (out / name).symlink_to(
        elsewhere if name.startswith("ma") and name != "manifest.jsonl" else elsewhere / "precious"
    )
    for overwrite in (False, True):
        with pytest.raises(AdcamError, match=f"{name} is a symbolic link"):
            OutputFolder(out, CONFIG, overwrite=overwrite)
    assert [path.read_text() for path in elsewhere.iterdir()] == ["{}"]


def test_links_below_the_masks_are_not_followed(tmp_path: Path) -> None:
    make_folder(tmp_path / "out", "sub/a", "b")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"precious")
    shutil.rmtree(tmp_path / "out" / "masks" / "sub")
    (tmp_path / "out" / "masks" / "sub").symlink_to(tmp_path / "elsewhere")
    with OutputFolder(tmp_path / "out", CONFIG, overwrite=True) as folder:
        with pytest.raises(AdcamError, match="masks/sub is a symbolic link"):
            folder.mask_path("sub/a")
        assert not folder.mask_path("b").exists()
    assert (tmp_path / "elsewhere" / "a.png").read_bytes() == b"precious"


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    make_folder(tmp_path, "sub/a")
    stale = [tmp_path / ".adcam-1.tmp", tmp_path / "masks" / "sub" / ".adcam-2.tmp"]
    for path in stale:
        path.write_bytes(b"half")
    (tmp_path / "masks" / "mine.tmp").write_bytes(b"kept")
    with OutputFolder(tmp_path, CONFIG) as folder:
        assert not any(path.exists() for path in stale)
        assert (tmp_path / "masks" / "mine.tmp").exists() and folder.is_done("sub/a", {})
        stale[1].write_bytes(b"half")  # by a worker that dies meanwhile
        folder.finish(["sub/a"])  # which searches for it only where it is told of such a worker
        assert stale[1].exists()
        folder.finish(["sub/a"], lost_workers=True)
        assert not stale[1].exists() and (tmp_path / "masks" / "mine.tmp").exists()


def test_a_file_in_place_of_the_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot write into the folder"):
        OutputFolder(tmp_path / "file", CONFIG)


def test_a_second_run_is_told_who_works_in_the_folder(tmp_path: Path) -> None:
    with OutputFolder(tmp_path, CONFIG), pytest.raises(AdcamError) as refused:
        OutputFolder(tmp_path, CONFIG)
    assert f"is in use by process {os.getpid()} on {socket.gethostname()}, st" in str(refused.value)
    OutputFolder(tmp_path, CONFIG).close()
    assert not (tmp_path / LOCK_NAME).exists()


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from adcam.labeling.output_folder import OutputFolder\n"
        f"folder = OutputFolder({str(tmp_path)!r}, {CONFIG!r})\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(AdcamError, match=f"in use by process {process.pid} on"):
            OutputFolder(tmp_path, CONFIG)
        process.kill()
    assert (tmp_path / LOCK_NAME).exists()
    OutputFolder(tmp_path, CONFIG).close()
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_file_system_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with OutputFolder(tmp_path, CONFIG) as folder:
        make_entry(folder, "a")
    assert not (tmp_path / LOCK_NAME).exists()


def make_record(tmp_path: Path) -> dict[str, Any]:
    """An output folder of two masks and a failure, made by hand."""
    config = {"adcam": "0", "labeler": {"classes": ["cat", "dog"], "mask_values": [8, 12]}}
    palette = [(value, 0, 255 - value) for value in range(256)]
    with OutputFolder(tmp_path / "out", config) as folder:
        for img_id, image in (("a", "../photos/a.jpeg"), ("sub/b.1", "../photos/sub/b.1.PNG")):
            write_mask(folder.mask_path(img_id), np.full((2, 3), 8, np.uint8), palette)
            mask = hash_or_none(folder.mask_path(img_id))
            folder.append(
                {"id": img_id, "image": image, "status": "ok", "mask": mask, "maps": None}
            )
        folder.append({"id": "c", "image": "../photos/c.jpg", "status": "failed", "error": "x"})
    return config


def test_a_folder_says_its_classes_and_colours(tmp_path: Path) -> None:
    config = make_record(tmp_path)
    for path in (tmp_path / "out", tmp_path / "out" / "masks"):
        record = read_output_folder(path)
        assert record is not None and record.path == tmp_path / "out"
        assert record.config == config
        assert record.class_set.classes == ("cat", "dog")
        assert record.class_set.mask_values == (8, 12)
        assert record.class_set.palette[8] == (8, 0, 247) and record.class_set.name == "out"
        assert list(record.entries) == ["a", "sub/b.1", "c"]
        assert record.image_paths["sub/b.1"] == tmp_path / "photos" / "sub" / "b.1.PNG"
    (tmp_path / "other").mkdir()
    assert read_output_folder(tmp_path / "other") is None
    (tmp_path / "other" / "config.json").write_text("{}")
    (tmp_path / "other" / "manifest.jsonl").touch()
    assert read_output_folder(tmp_path / "other") is None


@pytest.mark.parametrize(
    "labeler", [None, [], {}, {"classes": ["a"], "mask_values": [True]}, {"classes": "ab"}]
)
def test_a_configuration_without_classes_is_a_named_error(tmp_path: Path, labeler: Any) -> None:
    OutputFolder(tmp_path, {"adcam": "0", "labeler": labeler}).close()
    with pytest.raises(AdcamError, match=r"config\.json does not say the classes"):
        read_output_folder(tmp_path)


def test_edited_and_deleted_masks_are_found(tmp_path: Path) -> None:
    make_record(tmp_path)
    out = tmp_path / "out"
    record = read_output_folder(out)
    assert record is not None

    def changes(img_id: str) -> list[str]:
        return [*find_changes(record.entries[img_id], result_files(out, img_id))]

    assert changes("a") == changes("sub/b.1") == []
    write_mask(out / "masks" / "a.png", np.zeros((2, 3), np.uint8), voc_palette())
    (out / "masks" / "sub" / "b.1.png").unlink()
    assert changes("a") == ["the mask has changed"]
    assert changes("sub/b.1") == ["the mask is missing"]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from adcam.labeling.output_folder import OutputFolder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"folder = OutputFolder({str(tmp_path / 'a')!r}, {CONFIG!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "for act in (\n"
        "    lambda: folder.append({'id': 'x', 'status': 'failed'}),\n"
        f"    lambda: OutputFolder({str(tmp_path / 'b')!r}, {CONFIG!r}),\n"
        "):\n"
        "    try:\n"
        "        act()\n"
        "    except OSError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    manifest, lock = done.stdout.splitlines()
    assert "(File too large)" in manifest and "a/manifest.jsonl" in manifest
    assert "(File too large)" in lock and f"b/{LOCK_NAME}" in lock
    assert not (tmp_path / "b" / LOCK_NAME).exists()
