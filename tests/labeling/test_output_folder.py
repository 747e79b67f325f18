"""The record of a run: resuming, refusing, and never touching what is not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adcam.files import hash_bytes
from adcam.labeling.output_folder import RunFolder, diff_configs

CONFIG = {"adcam": "0", "labeler": {"method": "cam"}}


def make_entry(folder: RunFolder, img_id: str, content: bytes = b"mask") -> dict[str, Any]:
    path = folder.mask_path(img_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    entry = {"id": img_id, "status": "ok", "mask": hash_bytes(content), "maps": None, "seconds": 1}
    folder.append(entry)
    return entry


def test_entries_are_found_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", CONFIG)
    entries = {img_id: make_entry(folder, img_id) for img_id in ("b", "sub dir/ü", "a")}
    again = RunFolder(tmp_path / "run", CONFIG)
    assert {img_id: again[img_id] for img_id in entries} == entries
    assert "c" not in again
    assert json.loads((tmp_path / "run" / "config.json").read_text("utf-8")) == CONFIG


def test_done_means_listed_unchanged_and_as_expected(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, CONFIG)
    make_entry(folder, "a")
    assert folder.is_done("a", {"seconds": 1})
    assert not folder.is_done("a", {"seconds": 2})
    assert not folder.is_done("b", {})
    folder.mask_path("a").write_bytes(b"other")
    assert not folder.is_done("a", {})
    folder.mask_path("a").unlink()
    assert not folder.is_done("a", {})
    folder.append({"id": "a", "status": "failed", "error": "x"})
    assert not folder.is_done("a", {})


def test_maps_that_are_listed_must_be_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, CONFIG)
    folder.append({**make_entry(folder, "a"), "maps": hash_bytes(b"maps")})
    assert not folder.is_done("a", {})
    folder.maps_path("a").parent.mkdir()
    folder.maps_path("a").write_bytes(b"maps")
    assert folder.is_done("a", {})


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, CONFIG)
    make_entry(folder, "a")
    whole = (tmp_path / "manifest.jsonl").read_bytes()
    (tmp_path / "manifest.jsonl").write_bytes(whole + b'{"id": "b", "sta')
    again = RunFolder(tmp_path, CONFIG)
    assert "a" in again and "b" not in again
    make_entry(again, "b")
    lines = (tmp_path / "manifest.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b"]


def test_a_damaged_line_in_the_middle_is_an_error_that_overwrite_cures(tmp_path: Path) -> None:
    make_entry(RunFolder(tmp_path, CONFIG), "a")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(b"garbage\n" + manifest.read_bytes())
    with pytest.raises(ValueError, match=r"manifest\.jsonl, line 1: .*--overwrite"):
        RunFolder(tmp_path, CONFIG)
    RunFolder(tmp_path, CONFIG, overwrite=True)
    assert not (tmp_path / "masks" / "a.png").exists()


def test_finish_sorts_and_keeps_the_newest_entry(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, CONFIG)
    for img_id in ("z", "b", "a"):
        make_entry(folder, img_id)
    newest = make_entry(folder, "a", b"newer")
    folder.finish(["a", "missing", "b"])
    lines = (tmp_path / "manifest.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "b", "z"]
    assert folder["a"] == newest and folder["z"]["id"] == "z"


def test_another_configuration_is_refused_with_a_diff_and_nothing_touched(tmp_path: Path) -> None:
    make_entry(RunFolder(tmp_path, CONFIG), "a")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r'labeler\.method: "cam" -> "ad_cam"'):
        RunFolder(tmp_path, {"adcam": "0", "labeler": {"method": "ad_cam"}})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_diff_names_what_appears_and_what_vanishes() -> None:
    assert diff_configs({"a": 1, "b": {"c": [1]}}, {"b": {"c": [2]}, "d": {}}) == [
        "a: 1 -> (absent)",
        "b.c: [1] -> [2]",
        "d: (absent) -> {}",
    ]
    assert diff_configs({"a": {"b": 1}}, {"a": {"b": 1}}) == []


def test_overwrite_removes_what_the_manifest_lists_and_nothing_else(tmp_path: Path) -> None:
    make_entry(RunFolder(tmp_path, CONFIG), "a")
    (tmp_path / "masks" / "hand_drawn.png").write_bytes(b"precious")
    (tmp_path / "notes.txt").write_text("precious")
    other = {**CONFIG, "labeler": {"method": "ts_cam"}}
    folder = RunFolder(tmp_path, other, overwrite=True)
    assert "a" not in folder and not folder.mask_path("a").exists()
    assert (tmp_path / "masks" / "hand_drawn.png").read_bytes() == b"precious"
    assert (tmp_path / "notes.txt").read_text() == "precious"
    assert json.loads((tmp_path / "config.json").read_text("utf-8")) == other


@pytest.mark.parametrize("overwrite", [False, True])
def test_masks_of_unknown_origin_are_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "masks" / "sub").mkdir(parents=True)
    (tmp_path / "masks" / "sub" / "a.png").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"holds files, but .* has no config\.json"):
        RunFolder(tmp_path, CONFIG, overwrite=overwrite)
    assert (tmp_path / "masks" / "sub" / "a.png").read_bytes() == b"precious"
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("text", ['{"lr": 1}', "no json", "[]"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_config_of_another_program_is_never_replaced(
    tmp_path: Path, text: str, overwrite: bool
) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="was not written by `adcam generate`"):
        RunFolder(tmp_path, CONFIG, overwrite=overwrite)
    assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize("img_id", ["../a", "/a", "b/../../a", ""])
def test_ids_cannot_leave_the_folder(tmp_path: Path, img_id: str) -> None:
    folder = RunFolder(tmp_path, CONFIG)
    for path_of in (folder.mask_path, folder.maps_path):
        with pytest.raises(ValueError, match="outside the output folder"):
            path_of(img_id)


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    make_entry(RunFolder(tmp_path, CONFIG), "sub/a")
    stale = [tmp_path / ".adcam-1.tmp", tmp_path / "masks" / "sub" / ".adcam-2.tmp"]
    for path in stale:
        path.write_bytes(b"half")
    (tmp_path / "masks" / "mine.tmp").write_bytes(b"kept")
    folder = RunFolder(tmp_path, CONFIG)
    assert not any(path.exists() for path in stale)
    assert (tmp_path / "masks" / "mine.tmp").exists() and folder.is_done("sub/a", {})


def test_a_file_in_place_of_the_folder_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot write into the folder"):
        RunFolder(tmp_path / "file", CONFIG)
