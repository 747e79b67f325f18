"""XML from strangers: any encoding, no namespaces, and nothing that expands."""

from __future__ import annotations

import codecs
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from xml.parsers import expat

from adcam.errors import AdcamError
from adcam.limits import check_file_bytes

_DECLARATION = re.compile(rb"^\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._:-]+)[\"'][^>]*\?>")
_MAX_DEPTH = 100
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030"}
"""Encodings whose users write characters of a larger one."""


def read_xml(path: str | Path) -> ET.Element:
    """Read an XML file (:func:`parse_xml`).

    Raises:
        AdcamError: The file is missing or cannot be read, or as :func:`parse_xml`.
    """
    check_file_bytes(Path(path), "an annotation")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as err:
        raise AdcamError(f"{path}: there is no such annotation") from err
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        raise AdcamError(f"{path}: cannot be read ({reason})") from err
    return parse_xml(data, str(path))


def parse_xml(data: bytes, where: str) -> ET.Element:
    """Parse XML in whatever encoding it declares; names come without their namespace.

    Python's own parser knows few encodings (no ``gb2312``, and it takes ``utf8`` for one byte a
    character), so the text is decoded first. Entities of the file's own are refused: a few of them
    can stand for gigabytes. Errors call the content ``where``.

    Returns:
        The outermost element.

    Raises:
        AdcamError: The content is no XML, its encoding is unknown or wrong, it declares entities,
            or it is nested more than 100 levels deep.
    """
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise AdcamError(f"{where}: XML nested more than {_MAX_DEPTH} levels deep")
        builder.start(_local(name), {_local(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_local(name))

    def refuse(*_declaration: object) -> None:
        raise AdcamError(f"{where}: the XML declares entities, which are not read")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(_decode(data, where), True)
    except (expat.ExpatError, UnicodeError) as err:
        raise AdcamError(f"{where}: not an XML file ({err})") from err
    return builder.close()


def _local(name: str) -> str:
    """The name without its prefix."""
    return name.rpartition(":")[2]


def _decode(data: bytes, where: str) -> str:
    """The text without its declaration, whose encoding no longer holds."""
    encoding = next((name for bom, name in _BOMS.items() if data.startswith(bom)), "utf-8")
    declared = _DECLARATION.match(data)
    # A declaration that can be read byte by byte is not in UTF-16, whatever it says.
    if declared is not None and not declared[1].lower().startswith((b"utf-16", b"utf16", b"ucs")):
        name = declared[1].decode("ascii")
        encoding = _SUPERSETS.get(name.lower(), name)
    try:
        text = data.decode(encoding)
    except LookupError as err:
        raise AdcamError(f"{where}: the XML declares the unknown encoding {encoding!r}") from err
    except UnicodeError as err:
        raise AdcamError(f"{where}: not an XML file in {encoding} ({err})") from err
    return re.sub(r"^\s*<\?xml[^>]*\?>", "", text, count=1).lstrip("\ufeff")
