"""The one door to the disk: atomic writes, and hashes of what is there.

A reader of a file that is being written sees the old one or the new one, never half of it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` through a temporary file in the same folder and a rename.

    Parents are created. A process killed half-way leaves ``path`` as it was, and at worst a hidden
    ``.adcam-*.tmp`` beside it. The data is not forced to the disk (no ``fsync``): a power cut may
    still lose what was written last.

    Args:
        path: File to create or replace; it gets the permissions that the umask leaves.
        data: Its whole content.

    Raises:
        OSError: The folder cannot be made or written to; the class is the one of the error number
            (``PermissionError``, ``NotADirectoryError``, …) and the message names the file.
    """
    path = Path(path)
    # Short, so that a name at the file system's length limit still has a temporary twin.
    temporary = path.parent / f".adcam-{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException as err:
        # Where the folder itself is refused, there is nothing to remove, and asking would fail too.
        with suppress(OSError):
            temporary.unlink()
        if isinstance(err, OSError):
            reason = f"cannot write into the folder {path.parent} ({err.strerror})"
            raise OSError(err.errno, reason, str(path)) from err
        raise


def write_text(path: str | Path, text: str) -> None:
    r"""Write ``text`` as UTF-8, newlines as they are, like :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write values as indented JSON, atomically.

    Raises:
        OSError: The file cannot be written.
    """
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def hash_bytes(data: bytes) -> str:
    """First 16 hex digits of the SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def hash_file(path: str | Path) -> str:
    """First 16 hex digits of the SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def hash_or_none(path: Path) -> str | None:
    """Hash of a file as :func:`hash_file`, ``None`` if there is none."""
    return hash_file(path) if path.is_file() else None


def hash_values(values: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of the sorted JSON of a configuration."""
    return hash_bytes(json.dumps(values, sort_keys=True, default=str).encode())
