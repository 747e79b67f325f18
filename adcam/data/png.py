"""Masks as 8-bit PNG files: pixel = class value, 255 = ignore, with a palette so they are seen."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from adcam.data.images import ImageError, open_image
from adcam.errors import AdcamError, join_some
from adcam.files import write_bytes
from adcam.structures import IGNORE_INDEX

Palette = Sequence[tuple[int, int, int]]

# Raw modes of Pillow's PNG reader that give the stored 8-bit values. Grayscale of 2 or 4 bits is
# not among them: it is read scaled to 0..255, and whether that was meant cannot be known.
_INDEX_MODES = ("P", "P;4", "P;2", "P;1", "L")
_COLOR_MODES = ("RGB", "RGBA", "LA")


@lru_cache(maxsize=1)
def voc_palette() -> tuple[tuple[int, int, int], ...]:
    """The 256 colours of PASCAL VOC masks.

    The three lowest bits of an index are the highest bits of red, green and blue, the next three
    the second highest, and so on (``VOClabelcolormap.m`` of the VOC development kit): neighbouring
    indices get colours far apart, and 255 becomes (224, 224, 192).
    """
    colors = []
    for index in range(256):
        rgb = [0, 0, 0]
        for bit in range(8):
            rgb[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        colors.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colors)


def write_mask(path: str | Path, mask: np.ndarray, palette: Palette) -> None:
    """Write a mask as :func:`encode_mask` encodes it, atomically.

    Raises:
        AdcamError: Another dtype, shape or palette length.
        OSError: The file cannot be written.
    """
    write_bytes(path, encode_mask(mask, palette, str(path)))


def encode_mask(mask: np.ndarray, palette: Palette, where: str = "the mask") -> bytes:
    """Encode a mask as an 8-bit palette PNG.

    The same mask and palette give the same bytes (with the same Pillow and zlib).

    Args:
        mask: The mask, uint8 (H, W) of class values, 255 = ignore.
        palette: The 256 RGB colours, e.g. :func:`voc_palette` or ``ClassSet.palette``.
        where: What errors call the mask, such as its file.

    Raises:
        AdcamError: Another dtype, shape or palette length.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2 or mask.size == 0:
        raise AdcamError(
            f"{where}: a mask must be uint8 (H, W) with at least one pixel, "
            f"got {mask.dtype} {mask.shape}"
        )
    if len(palette) != 256:
        raise AdcamError(f"{where}: the palette must have 256 colours, got {len(palette)}")
    img = Image.fromarray(np.ascontiguousarray(mask))
    img.putpalette(bytes(channel for color in palette for channel in color))
    buffer = io.BytesIO()
    img.save(buffer, format="PNG")
    return buffer.getvalue()


def read_mask(
    path: str | Path, *, colors: Mapping[int, tuple[int, int, int]] | None = None
) -> np.ndarray:
    """Read a mask of class values.

    Args:
        path: The PNG file. Palette files give their indices, whatever the colours; 8-bit grayscale
            gives its values, and so do colour files whose three channels are equal. Other kinds are
            refused, so that no value is scaled or rounded unseen.
        colors: The colour of each class value. When given, colour files are read by it (alpha is
            not looked at), and palette files by the colours that they show.

    Returns:
        uint8 (H, W).

    Raises:
        ImageError: The file is missing, damaged or no PNG, its mode is not one of the above, or it
            holds colours that are not in ``colors``.
    """
    path = Path(path)
    with open_image(path) as img:
        if img.format != "PNG":
            raise ImageError(f"{path}: a mask must be a PNG file, got {img.format}")
        mode = img.tile[0].args  # type: ignore[attr-defined]  # the file's mode, before decoding
        if colors is not None and mode in (*_INDEX_MODES, *_COLOR_MODES):
            return _values_of_colors(path, np.asarray(img.convert("RGB")), colors)
        if mode in _INDEX_MODES:
            return np.array(img)
        if mode not in _COLOR_MODES:
            raise ImageError(
                f"{path}: a mask must be an 8-bit palette or grayscale PNG, got mode {mode}"
            )
        rgb = np.asarray(img.convert("RGB"))
    if not (rgb == rgb[:, :, :1]).all():
        raise ImageError(
            f"{path}: a colour mask (mode {mode}); `adcam convert recode-masks --colors TABLE` "
            "makes class values of its colours"
        )
    return rgb[:, :, 0].copy()


def count_values(mask: np.ndarray, mask_values: Sequence[int]) -> np.ndarray:
    """Number of pixels of each value in a mask, uint8 (H, W) -> int64 (256,).

    Legal are ``mask_values`` beside 0 and 255.

    Raises:
        AdcamError: The mask holds another value.
    """
    counts = np.bincount(mask.ravel(), minlength=256)
    if other := sorted({*np.flatnonzero(counts).tolist()} - {0, *mask_values, IGNORE_INDEX}):
        raise AdcamError(
            f"the mask holds the values {other}; legal are 0, "
            f"{', '.join(map(str, sorted(mask_values)))} and {IGNORE_INDEX}"
        )
    return counts


def map_values(mask: np.ndarray, values: Mapping[int, int]) -> np.ndarray:
    """A mask, uint8 (H, W), with new values for old ones, e.g. ``{255: 1}``; other values stay."""
    if not values:
        return mask
    table = np.arange(256, dtype=np.uint8)
    table[list(values)] = list(values.values())
    return table[mask]


def parse_values(text: str | None) -> dict[int, int]:
    """A text such as ``255=1,128=0`` as a mapping for :func:`map_values`.

    Raises:
        AdcamError: It is no such text, or a value is not in 0..255 or stands twice.

    Example:
        >>> parse_values("255=1,128=0")
        {255: 1, 128: 0}
    """
    found: dict[int, int] = {}
    for pair in text.split(",") if text else ():
        old, _, new = (part.strip() for part in pair.partition("="))
        if not (old.isdecimal() and new.isdecimal()):
            raise AdcamError(f"values are given as OLD=NEW,…, e.g. 255=1, got {text!r}")
        if max(int(old), int(new)) > 255 or int(old) in found:
            raise AdcamError(f"mask values lie in 0..255, each given once, got {text!r}")
        found[int(old)] = int(new)
    return found


def _values_of_colors(
    path: Path, rgb: np.ndarray, colors: Mapping[int, tuple[int, int, int]]
) -> np.ndarray:
    """Value of each pixel's colour: (H, W, 3) -> (H, W); the lowest one that has it."""
    value_of = {tuple(color): value for value, color in sorted(colors.items(), reverse=True)}
    codes = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)  # (H, W)
    found, index = np.unique(codes, return_inverse=True)
    shown = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in found]
    if unknown := [color for color in shown if color not in value_of]:
        raise ImageError(
            f"{path}: {len(unknown)} colours are not in the table of colours: {join_some(unknown)}"
        )
    values = np.array([value_of[color] for color in shown], dtype=np.uint8)
    return values[index].reshape(codes.shape)
