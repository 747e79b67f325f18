"""Storage that fails: whatever a command is about to create can be seen, and refused."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adcam.cli import main
from adcam.labeling.packed_parts import read_part_manifest

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@contextmanager
def watch_creations(out: Path, meet: Callable[[str, str], None]) -> Iterator[None]:
    """Call ``meet`` with what is about to be created below a folder: how, and its path."""
    patch = pytest.MonkeyPatch()
    real_open, real_io_open, real_mkdir, real_link = os.open, io.open, os.mkdir, os.link

    def tell(kind: str, path: Any) -> None:
        if isinstance(path, str | os.PathLike):
            name = os.fspath(path)
            if name == str(out) or name.startswith(f"{out}/"):
                meet(kind, name)

    def open_(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT and not os.path.lexists(path):
            tell("open", path)
        return real_open(path, flags, *rest, **options)

    def io_open(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if set(mode) & set("wxa"):
            tell("open", file)
        return real_io_open(file, mode, *rest, **options)

    def mkdir(path: Any, *rest: Any, **options: Any) -> None:
        if not os.path.lexists(path):
            tell("mkdir", path)
        real_mkdir(path, *rest, **options)

    def link(source: Any, path: Any, **options: Any) -> None:
        tell("link", path)
        real_link(source, path, **options)

    for name, function in (("open", open_), ("mkdir", mkdir), ("link", link)):
        patch.setattr(os, name, function)
    patch.setattr(io, "open", io_open)
    patch.setattr(builtins, "open", io_open)
    # In Python 3.10, paths have taken these functions for themselves on import.
    if accessor := getattr(pathlib, "_NormalAccessor", None):
        for name, function in (("open", io_open), ("mkdir", mkdir), ("link", link)):
            patch.setattr(accessor, name, staticmethod(function))
    try:
        yield
    finally:
        patch.undo()


def read_tree(out: Path) -> dict[str, Any]:
    """Everything in an output folder but its report; of the manifests all but the seconds."""
    tree: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if not path.is_file() or name.startswith("report/"):
            continue
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_bytes().splitlines()]
            tree[name] = [{**line, "seconds": 0} for line in lines]
        elif name.startswith("manifest/"):
            entries, stated = read_part_manifest(str(path))
            tree[name] = [{**entry, "seconds": 0} for entry in entries.values()], stated
        else:
            tree[name] = path.read_bytes()
    return tree


def refuse_creations(
    words: list[str],
    out: Path,
    places: list[int],
    capsys: pytest.CaptureFixture[str],
    reset: Callable[[], None],
    read: Callable[[], Any],
    *,
    code: int = 0,
) -> None:
    """Refuse what a command creates, from one place on, and let the same command try again.

    Args:
        words: The command.
        out: The folder below which creations are refused.
        places: At which of the creations to begin, negative ones counted from the last.
        capsys: What the command says.
        reset: Makes the state before the first run.
        read: What the command has made.
        code: The exit code of the command where nothing is refused.
    """
    reset()
    met: list[str] = []
    with watch_creations(out, lambda _, path: met.append(path)):
        assert main(words) == code, capsys.readouterr().err
    whole = read()
    assert whole
    capsys.readouterr()
    for number, place in enumerate(sorted({place % len(met) for place in places})):
        reset()
        error, seen = ERRORS[number % len(ERRORS)], []

        def refuse(
            _: str, path: str, first: int = place, seen: list[str] = seen, error: int = error
        ) -> None:
            seen.append(path)
            if len(seen) > first:
                raise OSError(error, os.strerror(error), path)

        with watch_creations(out, refuse):
            assert main(words) == 2, met[place]
        said = capsys.readouterr().err
        where = (met[place], said)
        assert "Traceback" not in said and os.strerror(error) in said, where
        assert str(out) in said or out.name in said, where
        assert list(out.rglob(".adcam-*.tmp")) == [], where
        assert main(words) == code, (met[place], capsys.readouterr().err)
        assert read() == whole, met[place]
        capsys.readouterr()
