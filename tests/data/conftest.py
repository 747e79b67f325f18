"""What several tests of reading need."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import TypeAlias

import pytest

PngWriter: TypeAlias = Callable[[tuple[int, int], int, int, bytes], bytes]


@pytest.fixture(scope="session")
def encode_png() -> PngWriter:
    """A PNG writer for the kinds that Pillow cannot write: ``(hw, color_type, bit_depth, rows)``.

    ``rows`` holds the packed samples of all rows, big-endian, without filter bytes.
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    def encode(hw: tuple[int, int], color_type: int, bit_depth: int, rows: bytes) -> bytes:
        height, width = hw
        stride = len(rows) // height
        filtered = b"".join(b"\x00" + rows[i * stride : (i + 1) * stride] for i in range(height))
        header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(filtered))
            + chunk(b"IEND", b"")
        )

    return encode
