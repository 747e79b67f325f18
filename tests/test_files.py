"""Atomic writing: all or nothing, and messages that name the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from adcam.files import write_bytes, write_text


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
