"""Images in other files or behind URLs: in a tar archive, in a Parquet file, at a URL.

A tar archive is read as WebDataset reads it: files whose names agree up to the first dot are one
sample; of them, the image is labelled, and ``.cls`` (a class, or its number) or ``.json`` (with
``labels``) says its labels. A Parquet file has a column of encoded images, as ``datasets`` writes
it or plain, and may have ids and labels beside it.

Archives are indexed once, by their headers, so that every image can be read on its own, in any
order and by any process: a run over them resumes like a run over files.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from adcam.data.images import ImageError, read_image_bytes
from adcam.errors import AdcamError
from adcam.files import check_characters, img_id_of, is_image_path
from adcam.parquet import TableInfo, read_columns, read_group, read_info
from adcam.remote_files import is_url, list_files, open_file, read_part

PACKED_SUFFIXES = (".tar", ".parquet")
"""Kinds of files that hold many images."""

_ID_COLUMNS = ("id", "image_id", "__key__", "key", "file_name", "path")
_LABEL_COLUMNS = ("labels", "label", "classes")
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
_LABEL_BYTES = 1 << 20

Labels = tuple[str | int, ...] | None
"""Names or numbers of the classes in an image; ``None`` where they are not known."""


class PackedImage(Protocol):
    """An image inside another file, or behind a URL."""

    @property
    def file(self) -> str:
        """The file that holds it, of this machine or a URL."""
        ...

    @property
    def name(self) -> str:
        """Its name in that file; empty if it is the whole file."""
        ...

    def load(self) -> np.ndarray:
        """Read the image: RGB uint8 (H, W, 3), upright.

        Raises:
            ImageError: The image cannot be decoded.
            OSError: The file cannot be read.
        """
        ...


@dataclass(frozen=True)
class RemoteImage:
    """An image file behind a URL."""

    file: str
    name: str = ""

    def load(self) -> np.ndarray:
        """Read the image (:class:`PackedImage`)."""
        return read_image_bytes(read_part(self.file), self.file)


@dataclass(frozen=True)
class TarMember:
    """An image in a tar archive: its name, and its bytes from ``offset`` on."""

    file: str
    name: str
    offset: int
    size: int

    def load(self) -> np.ndarray:
        """Read the image (:class:`PackedImage`)."""
        return read_image_bytes(
            read_part(self.file, self.offset, self.size), f"{self.file}#{self.name}"
        )


@dataclass(frozen=True)
class ParquetCell:
    """An image in a column of a Parquet file, in a row of a row group."""

    file: str
    column: str
    group: int
    row: int

    @property
    def name(self) -> str:
        """Row group and row."""
        return f"{self.group}.{self.row}"

    def load(self) -> np.ndarray:
        """Read the image (:class:`PackedImage`)."""
        data = read_group(self.file, self.group, self.column)[self.row]
        where = f"{self.file}#{self.name}"
        if data is None:
            raise ImageError(f"{where}: the cell is empty")
        return read_image_bytes(data, where)


@dataclass(frozen=True)
class Found:
    """An image found in a packed file: its id, what its file says of its labels, and its place."""

    img_id: str
    labels: Labels
    image: PackedImage


def list_packed(path: str | Path) -> list[str]:
    """List the packed files, or image URLs, that a user's "my images" means.

    These are a packed file, a folder of them, a pattern with ``*``, or a URL of any of these or of
    a folder of images.

    Returns:
        The files, ascending; empty if ``path`` means image files of this machine.

    Raises:
        AdcamError: The store behind a URL cannot be reached.
    """
    text = str(path)
    if "*" not in text:
        if is_packed(text):
            return [text]
        if not is_url(text) and _holds_images(Path(text)):
            return []
    files = [file for file in list_files(text) if not PurePosixPath(file).name.startswith(".")]
    packed = [file for file in files if is_packed(file)]
    return packed or [file for file in files if is_url(file) and is_image_path(file)]


def is_packed(path: str) -> bool:
    """Whether the suffix is one of :data:`PACKED_SUFFIXES`; the file is not opened."""
    return PurePosixPath(path).suffix.lower() in PACKED_SUFFIXES


def _holds_images(path: Path) -> bool:
    """Whether a path of this machine is no folder, or one without packed files at its top."""
    return not (path.is_dir() and any(is_packed(child.name) for child in path.iterdir()))


def find_packed(files: Iterable[str]) -> Iterator[Found]:
    """Find all images of tar archives, Parquet files and image URLs, in the order given.

    The id of a URL is the part behind the deepest folder that all URLs share.

    Raises:
        AdcamError: A file cannot be read, or is of another kind.
    """
    files = list(files)
    folders = [_strip(file).rpartition("/")[0] for file in files if not is_packed(file)]
    top = posixpath.commonpath(folders) if folders else ""
    for file in files:
        suffix = PurePosixPath(file).suffix.lower()
        if suffix == ".tar":
            yield from _index_tar(file)
        elif suffix == ".parquet":
            yield from _index_parquet(file)
        elif is_image_path(file):
            img_id = _make_id(_strip(file).removeprefix(f"{top}/"), file)
            yield Found(img_id, None, RemoteImage(file))
        else:
            raise AdcamError(f"{file}: expected .tar or .parquet files, or images")


def _strip(url: str) -> str:
    return url.rpartition("://")[2]


def _make_id(name: str, path: str) -> str:
    """The id that a name in a packed file stands for."""
    try:
        return check_characters(img_id_of(name))
    except AdcamError as error:
        raise AdcamError(f"{path}: {error}") from error


def _index_tar(path: str) -> Iterator[Found]:
    """Find the images of a tar archive, and their labels."""
    images: dict[str, TarMember] = {}
    labels: dict[str, Labels] = {}
    try:
        with open_file(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isreg():
                    continue
                name = PurePosixPath(member.name.removeprefix("./"))
                stem, _, suffix = name.name.partition(".")
                key = str(name.with_name(stem)) if stem else ""
                if not key or stem.startswith("."):
                    continue
                if is_image_path(f"x.{suffix}") and "." not in suffix:
                    # The same name again replaces what is before it. Of two names, one may be a
                    # mask: nobody can tell which.
                    if key in images and images[key].name != str(name):
                        raise AdcamError(
                            f"{path}: the sample {key!r} has two images, {images[key].name} and "
                            f"{name}; leave out the one that is not to be labelled"
                        )
                    images[key] = TarMember(path, str(name), member.offset_data, member.size)
                elif suffix in ("cls", "json") and member.size <= _LABEL_BYTES:
                    content = archive.extractfile(member)
                    data = b"" if content is None else content.read()
                    found = _parse_label(data, suffix, f"{path}#{name}")
                    labels[key] = labels.get(key) if found is None else found
    except (tarfile.TarError, EOFError) as error:
        raise AdcamError(
            f"{path}: cannot be read as a tar archive ({error}); compressed ones are not read"
        ) from error
    for key, image in images.items():
        yield Found(_make_id(key, path), labels.get(key), image)


def _parse_label(data: bytes, suffix: str, where: str) -> Labels:
    text = data.decode("utf-8", "replace").strip()
    if suffix == "cls":
        return (int(text) if re.fullmatch(r"[0-9]{1,9}", text) else text,)
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdcamError(f"{where}: not JSON ({error})") from error
    if not isinstance(values, Mapping):
        return None
    return _as_labels(next((values[key] for key in _LABEL_COLUMNS if key in values), None))


def _as_labels(value: Any) -> Labels:
    """Labels in any of the forms that people store; ``None`` if it is none of them."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, Sequence) and all(
        isinstance(item, str | int) and not isinstance(item, bool) for item in value
    ):
        return tuple(value)
    return None


def _index_parquet(path: str) -> Iterator[Found]:
    """Find the images of a Parquet file, with ids and labels where it has such columns."""
    info = read_info(path)
    image_column = _find_image_column(info)
    id_column = next((name for name in _ID_COLUMNS if name in info.types), None)
    if id_column is None and image_column.endswith(".bytes"):
        outer = image_column.partition(".")[0]
        id_column = f"{outer}.path" if "path:" in info.types[outer] else None
    label_column = next((name for name in _LABEL_COLUMNS if name in info.types), None)
    columns = read_columns(path, [name for name in (id_column, label_column) if name])
    names = _class_names(info, label_column)
    stem = PurePosixPath(path).stem
    places = [(g, row) for g, rows in enumerate(info.group_rows) for row in range(rows)]
    for number, (group, row) in enumerate(places):
        named = columns[id_column][number] if id_column else None
        img_id = f"{stem}-{number:06d}" if named is None else _make_id(str(named), path)
        labels = _as_labels(columns[label_column][number]) if label_column else None
        if labels is not None and names:
            labels = tuple(
                names[n] if isinstance(n, int) and 0 <= n < len(names) else n for n in labels
            )
        yield Found(img_id, labels, ParquetCell(path, image_column, group, row))


def _find_image_column(info: TableInfo) -> str:
    def part(name: str) -> str | None:
        kind = info.types[name]
        if kind in ("binary", "large_binary"):
            return name
        return f"{name}.bytes" if kind.startswith("struct<") and "bytes: " in kind else None

    named = [name for name in _IMAGE_COLUMNS if name in info.types]
    found = [column for name in (*named, *info.types) if (column := part(name)) is not None]
    if not found:
        columns = ", ".join(f"{name} ({kind})" for name, kind in info.types.items())
        raise AdcamError(
            f"{info.path}: no column of encoded images (bytes, or a structure with bytes); its "
            f"columns are {columns}"
        )
    return found[0]


def _class_names(info: TableInfo, label_column: str | None) -> list[str]:
    """Names of numbered labels, as ``datasets`` stores them; empty where it did not."""
    feature: Any = info.features.get(label_column or "")
    while isinstance(feature, Mapping) and "names" not in feature and "feature" in feature:
        feature = feature["feature"]
    if isinstance(feature, list) and feature:
        feature = feature[0]
    names = feature.get("names") if isinstance(feature, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list) else []
