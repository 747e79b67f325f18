"""Reading photographs: whatever is stored comes out as upright RGB bytes, or as an `ImageError`."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from adcam.errors import AdcamError, lacks_memory, one_line
from adcam.files import HEIC_CURE, HEIC_SUFFIXES
from adcam.limits import LimitError, read_limits

# Formats decoded by Pillow itself (JPEG includes MPO). EPS, for one, would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "PCX", "QOI")

# What Pillow's decoders raise on damaged files; there is no common base class.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Starts of HEIC files (ISO/IEC 23008-12, 10.2: a major brand in the box ``ftyp``).
_HEIC_HEADS = frozenset({b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"})

_BAND = 256  # rows


class ImageError(AdcamError):
    """An image file cannot be used; the message names the file and the reason."""


def read_image(path: str | Path, *, upright: bool = True) -> np.ndarray:
    """Read an image of any common kind as RGB.

    * EXIF orientation is applied. In a PNG it counts where it stands before the pixel data.
    * Alpha, also of a palette or of one transparent colour, is composed over white, as a viewer
      shows it: the colours stored under transparent pixels are leftovers of an editor.
    * Of 16-bit samples the high byte is kept (0..65535 -> 0..255), in grayscale as in RGB.
    * Grayscale fills the three channels; CMYK is converted without a colour profile. Embedded
      profiles are ignored, as in the usual training pipelines.
    * Of animations and multi-page files the first frame is read.
    * The largest size is 178,956,970 pixels (13,377 × 13,377, half a gigabyte of RGB), Pillow's
      guard against decompression bombs, and the largest file 1 GiB (:mod:`adcam.limits`).
    * Floating-point and 32-bit integer samples are refused: their white point is unknown.

    Args:
        path: The image file: JPEG, PNG, BMP, GIF, PNM, TIFF, WebP, AVIF, JPEG 2000, PCX or QOI,
            recognised by content; or a Targa file, recognised by its suffix since its content has
            no mark.
        upright: Whether EXIF orientation is applied.

    Returns:
        uint8 (H, W, 3), C-contiguous.

    Raises:
        ImageError: The file is missing, a folder, empty, truncated, damaged, too large, no image,
            or of a kind that is refused.
    """
    with open_image(Path(path)) as img:
        return convert_to_rgb(img, str(path), upright=upright)


def read_image_bytes(data: bytes, where: str) -> np.ndarray:
    """Read an image from the content of its file, as :func:`read_image` reads the file.

    Errors call it ``where``, of which a suffix tells a Targa image.

    Returns:
        uint8 (H, W, 3), C-contiguous, upright.

    Raises:
        ImageError: As :func:`read_image`.
    """
    with open_image(data, where) as img:
        return convert_to_rgb(img, where)


def convert_to_rgb(img: Image.Image, where: str, *, upright: bool = True) -> np.ndarray:
    """An image that Pillow has opened, as :func:`read_image` gives it.

    Args:
        img: The image, decoded or not.
        where: What to call it in the message, such as its file.
        upright: Whether EXIF orientation is applied.

    Returns:
        uint8 (H, W, 3), C-contiguous.

    Raises:
        ImageError: The samples are of a kind that is refused.
    """
    orientation = _orientation(img) if upright else 1
    img.load()
    img = _to_8bit(where, img)
    width, height = img.size
    rgb = np.empty((width, height, 3) if orientation >= 5 else (height, width, 3), np.uint8)
    stored = _as_stored(rgb, orientation)
    # In bands: Pillow's own way holds a large image up to five times at once.
    for top in range(0, height, _BAND):
        band = img.crop((0, top, width, min(top + _BAND, height)))
        stored[top : top + _BAND] = np.asarray(band.convert("RGB"))
    return rgb


def turn_as_stored(upright: np.ndarray, path: Path) -> np.ndarray:
    """View what :func:`read_image` or a map (H, W) shows upright as the image's file stores it.

    Raises:
        ImageError: As :func:`read_image`, for what the header shows.
    """
    with open_image(path) as img:
        return _as_stored(upright, _orientation(img))


def _as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """View an upright image (H, W, …) as its file stores it under an orientation of EXIF.

    Source: Exif 2.32, tag 0x0112; 1 and unknown values stay.
    """
    if orientation >= 5:
        upright = upright.swapaxes(0, 1)
    flip_rows = orientation in (3, 4, 6, 7)
    flip_columns = orientation in (2, 3, 7, 8)
    return upright[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def read_image_hw(path: str | Path, *, upright: bool = True) -> tuple[int, int]:
    """Height and width that :func:`read_image` would give, from the header alone.

    Raises:
        ImageError: As :func:`read_image`, for what the header shows; damaged pixel data goes
            unnoticed.
    """
    with open_image(Path(path)) as img:
        width, height = img.size
        return (width, height) if upright and _orientation(img) >= 5 else (height, width)


def check_same_hw(what: object, hw: Sequence[int], other: object, other_hw: Sequence[int]) -> None:
    """Refuse two things of one image that have different sizes; the message calls them as given.

    Raises:
        AdcamError: The sizes differ.
    """
    if tuple(hw) != tuple(other_hw):
        raise AdcamError(
            f"{what} has {hw[0]}×{hw[1]} pixels (height × width), but {other} has "
            f"{other_hw[0]}×{other_hw[1]}"
        )


def fit_pixels(img: np.ndarray, max_pixels: int) -> np.ndarray:
    """The image, RGB uint8 (H, W, 3), or one like it of about ``max_pixels`` pixels."""
    height, width = fit_hw((img.shape[0], img.shape[1]), max_pixels)
    if (height, width) == img.shape[:2]:
        return img
    small = Image.fromarray(img).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.array(small)


def fit_hw(hw: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Height and width that :func:`fit_pixels` gives an image of this height and width."""
    height, width = hw
    if height * width <= max_pixels:
        return hw
    scale = math.sqrt(max_pixels / (height * width))
    return max(int(height * scale), 1), max(int(width * scale), 1)


@contextmanager
def open_image(file: Path | bytes, where: str = "") -> Iterator[Image.Image]:
    """Open an image undecoded; what Pillow raises here or in the body becomes `ImageError`.

    Args:
        file: The image file, or its content.
        where: What errors call the content of a file; its suffix tells a Targa image.
    """
    where = where or str(file)
    try:
        if isinstance(file, Path) and not file.exists():
            raise ImageError(f"{where}: there is no such file")
        if isinstance(file, Path) and not file.is_file():
            raise ImageError(f"{where}: not a file")
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        if size == 0:
            raise ImageError(f"{where}: the file is empty")
        limits = read_limits()
        if size > limits.file_bytes:
            what = f"{where}: {size:,} bytes are more than an image may have"
            raise LimitError(what, "file_bytes")
        # Pillow refuses what has more than twice as many, some formats also while they decode.
        Image.MAX_IMAGE_PIXELS = limits.image_pixels / 2  # type: ignore[assignment]
        formats = _known_formats(Path(where).suffix.lower() == ".tga")
        with warnings.catch_warnings():
            # Pillow warns at half the size that it refuses, and of metadata that is damaged.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            stream = file if isinstance(file, Path) else io.BytesIO(file)
            with Image.open(stream, formats=formats) as img:
                yield img
    except ImageError:
        raise
    except LimitError as err:
        raise ImageError(str(err)) from err
    except UnidentifiedImageError as err:
        cure = HEIC_CURE if _is_heic(file, where) else ""
        raise ImageError(f"{where}: not an image, or of an unknown kind{cure}") from err
    except Image.DecompressionBombError as err:
        raise ImageError(
            f"{where}: too large ({err}); --limits image_pixels=… raises the limit"
        ) from err
    except _DECODE_ERRORS as err:
        what = "not enough memory to decode it" if lacks_memory(err) else "cannot be decoded"
        raise ImageError(f"{where}: {what} ({one_line(err)})") from err


def _is_heic(file: Path | bytes, where: str) -> bool:
    """Whether a file is a HEIC photograph, by its suffix or, under another one, by its content."""
    if isinstance(file, bytes):
        head = file[:12]
    else:
        with file.open("rb") as stream:
            head = stream.read(12)
    return head[4:] in _HEIC_HEADS or Path(where).suffix.lower() in HEIC_SUFFIXES


@lru_cache(maxsize=2)
def _known_formats(with_targa: bool) -> tuple[str, ...]:
    """Formats to try; Targa has no mark, so that any damaged file could pass for one."""
    Image.init()
    wanted = (*_FORMATS, "TGA") if with_targa else _FORMATS
    return tuple(name for name in wanted if name in Image.OPEN)  # an old Pillow has no AVIF


def _orientation(img: Image.Image) -> int:
    """EXIF orientation still to be undone, 1 if none; called before the pixels are decoded."""
    if img.format == "TIFF":
        return 1  # Pillow turns a TIFF itself, and its size is already the turned one.
    try:
        # PngImageFile.getexif would decode the pixels to look for a chunk behind them.
        value = Image.Image.getexif(img).get(ExifTags.Base.Orientation, 1)
    except _DECODE_ERRORS:
        return 1  # A damaged EXIF block leaves the pixels readable, as other viewers show them.
    return value if value in range(2, 9) else 1


def _to_8bit(where: str, img: Image.Image) -> Image.Image:
    """The same picture in a mode with 8-bit samples and no transparency."""
    if img.mode.startswith("I;16") or (img.mode == "I" and img.format == "PPM"):
        # Pillow's own conversion clips at 255. PNM samples are scaled to 0..65535 when read.
        return Image.fromarray((np.asarray(img) >> 8).astype(np.uint8))
    if img.mode in ("I", "F"):
        kind = "32-bit integer" if img.mode == "I" else "floating-point"
        raise ImageError(
            f"{where}: {kind} samples (mode {img.mode}), whose range is unknown; "
            "store the image with 8 or 16 bits"
        )
    if img.has_transparency_data:
        rgba = img.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return img.convert("L") if img.mode == "1" else img
