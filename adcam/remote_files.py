"""Files behind URLs (``s3://``, ``gs://``, ``hf://``, …) beside those of this machine, by fsspec.

A path of this machine goes through :mod:`adcam.files`, as everywhere; a text with ``://`` in it is
a URL, which fsspec opens with the package that the user has installed for it (s3fs, gcsfs,
huggingface_hub). How that package finds keys and servers is its own matter; adcam asks for none.
fsspec is imported here and nowhere else.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from adcam.errors import AdcamError
from adcam.files import write_bytes

# Base classes of what these packages raise beside OSError.
_STORE_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("huggingface_hub.errors", "HfHubHTTPError"),
)
_BLOCK_BYTES = 8 << 20  # read at once where files are read from front to back


def is_url(path: str | Path) -> bool:
    """Whether a text names a file behind a URL."""
    return "://" in str(path)


def to_local(path: str | Path) -> Path | None:
    """Return the path of a file of this machine, which ``file://`` may name, else ``None``.

    Example:
        >>> to_local("file:///data/masks"), to_local("s3://bucket/masks")
        (PosixPath('/data/masks'), None)
    """
    text = str(path).removeprefix("file://")
    return None if is_url(text) else Path(text)


def join(folder: str | Path, name: str) -> str:
    """Name a file below a folder, of this machine or behind a URL."""
    return f"{str(folder).rstrip('/')}/{name}"


def list_files(path: str | Path) -> list[str]:
    """List all files below a folder or behind a pattern, ascending.

    Args:
        path: A folder, a file, or a pattern with ``*``; of this machine or a URL.

    Raises:
        AdcamError: The store cannot be reached, or the package for it is missing.
    """
    text = str(path)
    if is_url(text):
        with _naming(text):
            fs, root = _open_store(text)
            found = fs.glob(text) if "*" in text else fs.find(root)
            return sorted(fs.unstrip_protocol(name) for name in found)
    if "*" in text:
        return sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - the pattern may be absolute
    if Path(text).is_file():
        return [text]
    return sorted(str(file) for file in Path(text).rglob("*") if file.is_file())


def find_size(path: str | Path) -> int | None:
    """Find the size of a file in bytes, ``None`` if there is none.

    Raises:
        AdcamError: The store cannot be reached, or the package for it is missing.
    """
    if not is_url(path):
        return Path(path).stat().st_size if Path(path).is_file() else None
    with _naming(str(path)):
        fs, name = _open_store(str(path))
        try:
            fs.invalidate_cache()
            return int(fs.info(name)["size"])
        except FileNotFoundError:
            return None


def read_part(path: str | Path, offset: int = 0, size: int | None = None) -> bytes:
    """Read ``size`` bytes of a file from ``offset`` on, or all to the end.

    Raises:
        OSError: The file cannot be read.
        AdcamError: The package for the URL is missing.
    """
    if is_url(path):
        fs, name = _open_store(str(path))
        end = None if size is None else offset + size
        with _as_os_error(str(path)):
            data: bytes = fs.cat_file(name, start=offset, end=end)
        return data
    with Path(path).open("rb") as file:
        file.seek(offset)
        return file.read() if size is None else file.read(size)


@contextmanager
def open_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file to read it, mostly from front to back.

    Raises:
        AdcamError: The file cannot be read, or the package for the URL is missing.
    """
    with _naming(str(path)), _open(str(path)) as file:
        yield file


def _open(path: str) -> Any:
    if not is_url(path):
        return Path(path).open("rb")
    fs, name = _open_store(path)
    return fs.open(name, "rb", block_size=_BLOCK_BYTES, cache_type="readahead")


def write_file(path: str | Path, data: bytes) -> None:
    """Write a file, whole or not at all: object stores put an object at once.

    On this machine it is forced to the disk before it gets its name.

    Raises:
        OSError: The file cannot be written.
        AdcamError: The package for the URL is missing.
    """
    if is_url(path):
        fs, name = _open_store(str(path))
        with _as_os_error(str(path)):
            fs.makedirs(name.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(name, data)
    else:
        write_bytes(path, data, durable=True)


def remove_file(path: str | Path) -> None:
    """Remove a file, if it is there.

    Raises:
        OSError: It cannot be removed.
    """
    if is_url(path):
        fs, name = _open_store(str(path))
        with _as_os_error(str(path)):
            if fs.exists(name):
                fs.rm_file(name)
    else:
        Path(path).unlink(missing_ok=True)


def _open_store(url: str) -> tuple[Any, str]:
    """Give the file system behind a URL, and the path in it.

    Raises:
        AdcamError: fsspec does not know the protocol, or the package for it is missing.
    """
    import fsspec

    try:
        fs, name = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise AdcamError(f"{url}: {error}") from error
    return fs, name


@contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        with _as_os_error(path):
            yield
    except OSError as error:
        reason = str(error.strerror or error).strip()  # pyarrow ends its errors with a new line
        raise AdcamError(f"{path}: cannot be read ({reason})") from error


@contextmanager
def _as_os_error(path: str) -> Iterator[None]:
    """Turn the errors of the packages for stores, such as a lost connection, into OSError.

    Only packages that are loaded already are looked at; none is imported for it.
    """
    loaded = ((sys.modules.get(module), name) for module, name in _STORE_ERRORS)
    kinds = tuple(getattr(module, name) for module, name in loaded if hasattr(module, name))
    try:
        yield
    except kinds as error:
        raise OSError(f"{path}: {error}") from error
