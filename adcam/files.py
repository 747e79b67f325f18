"""The one door to the disk: atomic writes, checked reads, hashes, and one walk over folders.

A reader of a file that is being written sees the old one or the new one, never half of it. What
people's folders hold besides images (hidden files, other kinds, results of this project) is left
out by one rule, and an image's id comes from its name by one function.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import math
import os
import secrets
import tempfile
import unicodedata
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any

from adcam.errors import AdcamError
from adcam.limits import check_file_bytes

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe"}
    | {".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm"}
    | {".qoi", ".tga", ".tif", ".tiff", ".webp"}
)
"""File suffixes, lower case, that name an image; the content decides how it is decoded."""

_COMPANIONS = frozenset(
    {"", ".cfg", ".csv", ".db", ".htm", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".log"}
    | {".mat", ".md", ".npy", ".npz", ".py", ".safetensors", ".sh", ".toml", ".tsv", ".txt"}
    | {".xlsx", ".xml", ".yaml", ".yml"}
)
"""Suffixes of what lies beside images on purpose; nobody needs to hear that these are no images."""

HEIC_SUFFIXES = frozenset({".heic", ".heif"})
"""Suffixes of photographs that Pillow cannot decode; phones and computers export them as JPEG."""

HEIC_CURE = " (export HEIC photographs as JPEG)"

_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})
"""Folders that archivers and file servers add, full of thumbnails and leftovers."""


@contextmanager
def replacing(path: str | Path, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of ``path`` when the block ends without an error.

    It is written through a temporary file in the same folder and a rename. Parents are created. A
    process killed half-way leaves ``path`` as it was, and at worst a hidden ``.adcam-*.tmp`` beside
    it. A symbolic link of this name is replaced, and never written through.

    Args:
        path: The file to create or replace; it gets the permissions that the umask leaves.
        durable: Whether the data is forced to the disk (``fsync``) before the rename, so that not
            even a power cut leaves a file of this name with half of it. It costs milliseconds.

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
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as err:
        # Where the folder itself is refused, there is nothing to remove, and asking would fail too.
        with suppress(OSError):
            temporary.unlink()
        if isinstance(err, OSError):
            raise name_in_error(err, path) from err
        raise


def write_bytes(path: str | Path, data: bytes, *, durable: bool = False) -> None:
    """Write ``data`` as the whole content of a file, atomically (:func:`replacing`).

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path, durable=durable) as file:
        file.write(data)


def write_new(path: str | Path, data: bytes) -> bool:
    """Write ``data`` as a file that is not there yet, whole or not at all.

    Of several processes that try at once, also on several machines that share the folder, one
    succeeds.

    Returns:
        Whether the file is this one's; ``False`` if there was one already.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    temporary = path.parent / f".adcam-{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: between these lines is a gap
            if path.exists():
                return False
            temporary.replace(path)
    except OSError as err:
        raise name_in_error(err, path) from err
    finally:
        with suppress(OSError):
            temporary.unlink()
    return True


def name_in_error(err: OSError, path: Path) -> OSError:
    """The error of a write (a full disk, no permission) with the file that was to be written."""
    reason = f"cannot write into the folder {path.parent} ({err.strerror})"
    return OSError(err.errno, reason, str(path))


class Spool:
    """Bytes that are put aside on the disk until the object is gone, so that memory stays flat.

    They lie in one file without a name, which the system removes however the process ends.

    Args:
        folder: The folder of the file, which exists; ``None`` takes that of the system for
            temporary files.

    Raises:
        OSError: The folder cannot be written to.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = Path(tempfile.gettempdir() if folder is None else folder)
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        except OSError as err:
            raise self._explain(err) from err
        self._size = 0
        weakref.finalize(self, self._file.close)

    def put(self, data: bytes) -> Callable[[], bytes]:
        """Put bytes aside.

        Returns:
            A function that reads them again.

        Raises:
            OSError: The disk is full or gone.
        """
        place = self._size
        try:
            self._file.seek(place)
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as err:
            raise self._explain(err) from err
        self._size += len(data)
        return partial(self._read, place, len(data))

    def _explain(self, err: OSError) -> OSError:
        return name_in_error(err, self._folder / "a temporary file")

    def _read(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        return self._file.read(size)


def write_text(path: str | Path, text: str) -> None:
    r"""Write ``text`` as UTF-8, newlines as they are, like :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(
    path: str | Path, values: Any, *, indent: int | None = 2, sort_keys: bool = False
) -> None:
    """Write values as JSON, atomically, piece by piece.

    ``indent=None`` writes one line. A :class:`LazyList` among the values is never held as a whole.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path) as file, _as_text(file) as text:
        json.dump(values, text, indent=indent, sort_keys=sort_keys, ensure_ascii=False)
        text.write("\n")


class LazyList(list[Any]):
    """A list whose items are made whenever it is gone through, so that it may be very long.

    Args:
        make: A function that returns the items; it is called for every pass.
    """

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        super().__init__()
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self._make())

    def __bool__(self) -> bool:
        return any(True for _ in self)


def format_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""Rows of the same keys, at least one, as CSV text: a header line, then one line a row.

    Each ends with ``\n``.
    """
    text = io.StringIO()
    _write_rows(text, list(rows[0]), (list(row.values()) for row in rows))
    return text.getvalue()


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV text like that of :func:`format_csv`, atomically, row by row.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path) as file, _as_text(file) as text:
        _write_rows(text, columns, rows)


def _write_rows(text: IO[str], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)


@contextmanager
def _as_text(file: IO[bytes]) -> Iterator[io.TextIOWrapper]:
    """A binary file to write UTF-8 text to, newlines as they are; it stays open."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    yield text
    text.detach()


def read_text(path: str | Path, what: str = "a text file", *, limit: str = "file_bytes") -> str:
    """Read a UTF-8 text, with or without a byte-order mark.

    Args:
        path: The file.
        what: What the file should be, for the message, e.g. ``"a list of image ids"``.
        limit: Which of :class:`adcam.limits.Limits` bounds its size.

    Raises:
        AdcamError: The file is missing, too large, cannot be read, or is not UTF-8.
    """
    check_file_bytes(Path(path), what, limit)
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as err:  # ValueError: a NUL in the path
        reason = getattr(err, "strerror", None) or err
        raise AdcamError(f"{path}: cannot be read as {what} ({reason})") from err
    return decode_text(data, str(path), what)


def decode_text(data: bytes, where: str, what: str = "a text file") -> str:
    """Decode UTF-8 bytes, with or without a byte-order mark.

    Raises:
        AdcamError: The bytes are not UTF-8; the message names ``where``.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise AdcamError(f"{where}: cannot be read as {what}: not UTF-8 text ({err})") from err


def read_json(
    path: str | Path,
    *,
    kind: type = dict,
    what: str = "a JSON file",
    unique_keys: bool = False,
) -> Any:
    """Read a JSON file whose outermost value is of a known type.

    Args:
        path: The file.
        kind: Type of the outermost value: ``dict``, ``list``, or ``object`` for any.
        what: What the file should be, for the message, e.g. ``"a manifest"``.
        unique_keys: Whether a key that an object gives twice is refused; otherwise the last counts.

    Raises:
        AdcamError: The file is missing, not UTF-8, no JSON (such as one that was cut short), nested
            too deeply, or holds a value of another type. The message names the file.
    """
    text = read_text(path, what, limit="json_bytes")
    return parse_json(text, str(path), kind=kind, what=what, unique_keys=unique_keys)


@contextmanager
def open_json(path: str | Path, complaint: str) -> Iterator[Any]:
    """Read a JSON object for a body that takes values out of it.

    Example:
        with open_json("scores.json", "no scores of this recipe") as values:
            miou = float(values["miou"])

    Args:
        path: The file.
        complaint: What to say of a file that is missing or damaged, or that lacks a value.

    Raises:
        AdcamError: The file cannot be read, or the body found something else in it.
    """
    try:
        yield parse_json(Path(path).read_bytes(), Path(path).name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdcamError(f"{path}: {complaint} ({error})") from error


def parse_json(
    text: str | bytes,
    where: str,
    *,
    kind: type = dict,
    what: str = "JSON",
    unique_keys: bool = False,
) -> Any:
    """Parse JSON as :func:`read_json` does.

    Raises:
        AdcamError: As :func:`read_json`; the message begins with ``where``, a file or a line of it.
    """
    if isinstance(text, bytes):
        text = decode_text(text, where, what)
    try:
        values = json.loads(text, object_pairs_hook=_refuse_twice if unique_keys else None)
    except RecursionError as err:
        raise AdcamError(f"{where}: not {what}: it is nested too deeply") from err
    except AdcamError as err:
        raise AdcamError(f"{where}: {err}") from err
    except ValueError as err:
        raise AdcamError(f"{where}: not {what}, or one that was cut short ({err})") from err
    if not isinstance(values, kind):
        expected = "an object" if kind is dict else f"a {kind.__name__}"
        raise AdcamError(f"{where}: not {what}: expected {expected}, got {values!r:.40}")
    return values


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise AdcamError(f"the key {twice!r} is given twice")
    return values


def to_plain(values: Any) -> Any:
    """The values as they come back from a JSON file: tuples as lists, keys as text."""
    return json.loads(json.dumps(values))


def to_json(values: Any) -> Any:
    """The values as JSON has them: keys as text, tuples as lists, ``None`` for NaN."""
    if isinstance(values, Mapping):
        return {str(key): to_json(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [to_json(value) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values


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


def hash_values(values: Any) -> str:
    """First 16 hex digits of the SHA-256 of the sorted JSON of a configuration or a list."""
    return hash_bytes(json.dumps(values, sort_keys=True, default=str).encode())


def is_file(path: Path) -> bool:
    """Whether a file is there; ``False`` also for names that the system cannot have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than any name may be; a NUL in it
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder is there, as :func:`is_file`."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_image_path(path: str | PurePath) -> bool:
    """Whether the suffix, in any case, is one of :data:`IMAGE_SUFFIXES`; the file is not opened."""
    return PurePath(path).suffix.lower() in IMAGE_SUFFIXES


def img_id_of(name: str, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> str:
    r"""The image id that a file name, or a name in somebody's list, stands for.

    An id is a relative path with ``/`` between folders and composed accents (NFC), without suffix.
    The function is applied once, where a name enters the program; what it returns is an id, whose
    own dots are part of it (``x.jpg.png`` is the image ``x.jpg``).

    Args:
        name: A relative path as any system writes it; white space at its ends is cut, also before
            the suffix, since a cell of a table cannot keep it.
        suffixes: Suffixes, lower case, that are cut, in any case; one of them at most.

    Example:
        >>> img_id_of(r".\holidays\\dog 1.JPG")
        'holidays/dog 1'
        >>> img_id_of("v1.2"), img_id_of("x.jpg.png")
        ('v1.2', 'x.jpg')
    """
    text = unicodedata.normalize("NFC", name.strip()).replace("\\", "/")
    path = PurePosixPath(text)
    return str(path.with_suffix("") if path.suffix.lower() in suffixes else path).strip()


def match_id(name: str, known: Container[str]) -> str:
    """The id that an id or a file's name means: itself where known, else its :func:`img_id_of`."""
    return name if name in known else img_id_of(name)


def spell_img_id(img_id: str) -> str:
    """The name to write into a list or table, which :func:`img_id_of` reads as this id again.

    It is the id itself, but for ids that look like file names: ``x.jpg`` becomes ``x.jpg.png``.
    """
    return img_id if img_id_of(img_id) == img_id else f"{img_id}.png"


def file_of_id(folder: str | Path, img_id: str, suffix: str) -> Path:
    """The file ``<folder>/<img_id><suffix>``.

    Raises:
        AdcamError: The id is empty or would lead out of the folder.
    """
    return Path(folder) / f"{check_img_id(img_id)}{suffix}"


def refuse_links(folder: Path, path: Path) -> Path:
    """Return a path below a folder, unless a symbolic link stands on the way to it.

    Raises:
        AdcamError: One does, so that what is written would end up in another place.
    """
    for parent in path.relative_to(folder).parents:
        if parent.name and (folder / parent).is_symlink():
            raise AdcamError(
                f"{folder / parent} is a symbolic link; nothing is written through links inside "
                "an output folder. Remove it, or take another folder"
            )
    return path


def check_img_id(img_id: str) -> str:
    """Return an image id, or refuse one that cannot name a file below a folder.

    Raises:
        AdcamError: It is empty, absolute, leads out of the folder that it is relative to, or is no
            name that a file can have.
    """
    path = PurePosixPath(img_id)
    if path.is_absolute() or ".." in path.parts or not path.name or "\0" in img_id:
        raise AdcamError(f"image id {img_id!r} would lead outside its folder")
    return check_characters(img_id)


def check_characters(img_id: str) -> str:
    """Return an image id, or refuse one with characters that no file name can have.

    Raises:
        AdcamError: It holds NUL or half a symbol, as text in JSON may: no file can have this name.
    """
    if "\0" in img_id or any("\ud800" <= char <= "\udfff" for char in img_id):
        raise AdcamError(f"image id {img_id!r} holds a character that no file name can have")
    return img_id


def index_by_id(found: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Files by image id, in the order given.

    Raises:
        AdcamError: Two files have one id, or a name is not valid UTF-8.
    """
    path_of: dict[str, Path] = {}
    for img_id, path in found:
        if img_id in path_of:
            raise AdcamError(
                f"{path_of[img_id]} and {path} have the same id {img_id!r}: "
                "names must differ in more than their suffix"
            )
        try:
            img_id.encode("utf-8")
        except UnicodeEncodeError as err:
            raise AdcamError(f"{str(path)!r}: the file name is not valid UTF-8") from err
        path_of[img_id] = path
    return path_of


def find_images(folder: str | Path, *, leave_out: Iterable[Path] = ()) -> dict[str, Path]:
    """All images below a folder, by suffix in any case (:data:`IMAGE_SUFFIXES`).

    Hidden files and folders are skipped silently. Files of other kinds, sub-folders that cannot be
    read and results of this project are skipped with a warning in the log.

    Args:
        folder: The folder; symbolic links to folders inside it are not followed.
        leave_out: Folders that are not searched, such as the one that results go to.

    Returns:
        The files by image id, ids ascending.

    Raises:
        AdcamError: There is no such folder, no image in it, it is an output folder of this project,
            or two images have one id.
    """
    root = Path(folder)
    if is_own_output(root):
        raise AdcamError(
            f"{root} holds results of adcam, which are never an input; name the folder of your "
            "photographs"
        )
    skipped = set(map(os.path.realpath, leave_out))
    if os.path.realpath(root) in skipped:
        raise AdcamError(f"{root}: results would lie among the images; choose another folder")
    return _scan(root, IMAGE_SUFFIXES, "images", skipped)


def find_files(folder: str | Path, *suffixes: str) -> dict[str, Path]:
    """All masks, maps or labels below a folder: files that end in a suffix, in any case.

    What is left out is the same as for :func:`find_images`; a mask ``x.jpg.png`` belongs to the
    image ``x.jpg``. Suffixes are given in lower case.

    Returns:
        The files by image id, ids ascending.

    Raises:
        AdcamError: There is no such folder, no such file in it, or two have one id.
    """
    return _scan(Path(folder), suffixes, f"{' or '.join(sorted(suffixes))} files")


def is_own_output(folder: str | Path) -> bool:
    """Whether a folder holds results of this project: of ``adcam generate``, or a recipe's stage.

    Such a folder has ``config.json`` with ``manifest.jsonl`` or the manifests of shards beside it,
    or ``stage.json``.
    """
    names = ("config.json", "manifest.jsonl", "stage.json")
    has_config, has_manifest, has_stage = (Path(folder, name).is_file() for name in names)
    if has_config and not has_manifest:
        has_manifest = any(Path(folder, "shards").glob("*-of-*.jsonl"))
    return has_stage or (has_config and has_manifest)


def _scan(
    root: Path,
    suffixes: Collection[str],
    what: str,
    skipped: Container[str] = (),
) -> dict[str, Path]:
    """Files by image id; what its owner may miss is logged."""
    if not root.is_dir():
        raise AdcamError(f"{root}: there is no such folder")
    notes: list[str] = []
    found: list[tuple[str, Path]] = []
    others: Counter[str] = Counter()
    for path in _walk(root, skipped, notes):
        if (kind := path.suffix.lower()) in suffixes:
            found.append((img_id_of(path.relative_to(root).as_posix(), suffixes), path))
        elif kind not in _COMPANIONS:
            others[kind] += 1
    if others:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        count = sum(others.values())
        kinds = "1 file is of a kind that is"
        if count > 1:
            kinds = f"{count} files are of kinds that are"
        notes.insert(0, f"{kinds} not read: {counts}")
        if suffixes is IMAGE_SUFFIXES and not HEIC_SUFFIXES.isdisjoint(others):
            notes[0] += HEIC_CURE
    if not found:
        why = "".join(f"; {note}" for note in notes)
        raise AdcamError(f"{root}: there are no {what} in this folder{why}")
    for note in notes:
        logger.warning("%s: %s", root, note)
    return dict(sorted(index_by_id(found).items()))


def _walk(root: Path, skipped: Container[str], notes: list[str]) -> Iterator[Path]:
    """All files but hidden ones; ``notes`` says what could not or should not be entered."""

    def refuse(error: OSError) -> None:
        if Path(error.filename) == root:
            raise AdcamError(f"{root}: the folder cannot be read ({error.strerror})") from error
        notes.append(f"the sub-folder {error.filename} cannot be read")

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        if Path(folder) != root and is_own_output(folder):
            notes.append(f"{folder} holds results of adcam and is left out")
            subfolders.clear()
            continue
        subfolders[:] = [
            name
            for name in sorted(subfolders)
            if not name.startswith(".")
            and name not in _SYSTEM_FOLDERS
            and os.path.realpath(Path(folder, name)) not in skipped
        ]
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name)
