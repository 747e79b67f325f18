"""Writing a file so that readers see the old one or the new one, never half of it."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
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


def write_text_atomic(path: str | Path, text: str) -> None:
    r"""Write ``text`` as UTF-8, newlines as they are, like :func:`write_bytes_atomic`."""
    write_bytes_atomic(path, text.encode("utf-8"))
