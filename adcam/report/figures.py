"""Pictures of a report: maps, masks and boxes over their photographs, and their encoding.

Arrays go in, arrays or bytes come out; no file is read or written, but that of a font. They are
drawn with NumPy and Pillow rather than matplotlib, so that one pixel of a picture is one pixel of
the image.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adcam.report.model import RGB, Picture, PictureRow, check_rgb
from adcam.structures import IGNORE_INDEX, ClassSet


@functools.lru_cache(maxsize=1)
def heat_colors() -> np.ndarray:
    """The colours of the scores 0, 1/255, …, 1: close to matplotlib's perceptually even *inferno*.

    Returns:
        uint8 (256, 3).
    """
    stops = np.frombuffer(_INFERNO, np.uint8).reshape(-1, 3)  # (18, 3)
    places = np.linspace(0, 255, len(stops))
    channels = [np.interp(np.arange(256), places, stops[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


_INFERNO = bytes.fromhex(
    "000003 090621 1d0c45 370961 500d6c 68166e 801f6b 982765 af315b "
    "c53d4d d94d3d e8612b f37918 fa9306 fbb014 f8cd37 f1e968 fcfea4"
)
"""Every fifteenth colour of inferno (van der Walt and Smith, dedicated to the public domain)."""


def display_palette(class_set: ClassSet) -> list[RGB]:
    """Colours for the classes in pictures and legends, seen on white and on black alike.

    Palettes of mask files, such as VOC's, hold dark colours that vanish on a dark page and pairs
    that differ in lightness alone. Here neighbours differ in hue by the golden angle, and each
    colour has a contrast of at least 3 against white and against :data:`DARK`. They are set in
    OKLCH (Ottosson, "A perceptual color space for image processing", 2020).

    Args:
        class_set: The classes.

    Returns:
        The colour of every mask value, 256 entries: black for background, white for 255.
    """
    palette: list[RGB] = [(128, 128, 128)] * 256
    palette[0], palette[IGNORE_INDEX] = (0, 0, 0), (255, 255, 255)
    for number, value in enumerate(class_set.mask_values):
        hue = math.radians(25 + 137.508 * number)
        palette[value] = _from_oklch((0.62, 0.65, 0.55)[number % 3], hue)
    return palette


DARK = (20, 23, 26)
"""The colour of a dark page."""


def _from_oklch(lightness: float, hue: float) -> RGB:
    """The most vivid sRGB colour of a lightness and hue, with a chroma of at most 0.19."""
    for chroma in np.arange(0.19, 0.0, -0.01):
        a, b = chroma * math.cos(hue), chroma * math.sin(hue)
        cones = (
            np.array(
                [
                    lightness + 0.3963377774 * a + 0.2158037573 * b,
                    lightness - 0.1055613458 * a - 0.0638541728 * b,
                    lightness - 0.0894841775 * a - 1.2914855480 * b,
                ]
            )
            ** 3
        )
        linear = _CONES_TO_LINEAR @ cones
        if linear.min() >= 0 and linear.max() <= 1:
            break
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = np.rint(255 * curved).astype(int).tolist()
    return red, green, blue


_CONES_TO_LINEAR = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def overlay_heat(img: np.ndarray, score_map: np.ndarray) -> np.ndarray:
    """Lay a score map in colour over its photograph; low scores leave the photograph visible.

    Args:
        img: The photograph, uint8 (H, W, 3).
        score_map: The score map, float (H, W) in [0, 1]. Values outside are clipped, and NaN counts
            as 0.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_rgb(img)
    _check_same_hw("score_map", score_map, img)
    score = np.clip(np.nan_to_num(score_map.astype(np.float32), nan=0.0), 0.0, 1.0)
    # Half of the photograph's own colour goes, so that a colour on the map means a score.
    gray = img.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    base = 0.5 * img + 0.5 * gray[..., None]  # (H, W, 3)
    # The square root makes middle scores visible: inferno is dark there.
    alpha = 0.75 * np.sqrt(score)[..., None]  # (H, W, 1)
    heat = heat_colors()[np.rint(score * 255).astype(np.intp)]  # (H, W, 3)
    return _to_uint8((1 - alpha) * base + alpha * heat)


def overlay_mask(
    img: np.ndarray,
    mask: np.ndarray,
    palette: Sequence[RGB],
    *,
    opacity: float = 0.55,
) -> np.ndarray:
    """Lay a mask in its palette's colours over its photograph, with a contour round every region.

    Args:
        img: The photograph, uint8 (H, W, 3).
        mask: The mask, integer (H, W). The value 0 leaves the photograph as it is, and 255 is shown
            as white diagonal hatching.
        palette: The colour of every mask value, 256 entries.
        opacity: The opacity of the regions. A larger value hides more of the photograph.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: If the shapes do not fit, the palette is short or ``opacity`` outside [0, 1].
    """
    check_rgb(img)
    _check_same_hw("mask", mask, img)
    if len(palette) != 256:
        raise ValueError(f"the palette must have 256 colours, got {len(palette)}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in [0, 1], got {opacity}")
    colors = np.asarray(palette, np.float32)[mask]  # (H, W, 3)
    ignored = mask == IGNORE_INDEX
    inside = ((mask != 0) & ~ignored)[..., None]
    out = np.where(inside, (1 - opacity) * img + opacity * colors, img)

    height, width = mask.shape
    line = max(1, round(max(height, width) / 200))
    rows, cols = np.ogrid[:height, :width]
    stripes = (rows + cols) % (6 * line) < 2 * line
    out[ignored] = 0.6 * out[ignored] + 0.4 * 255
    out[ignored & stripes] = 255
    # Palettes such as VOC's are dark: a white line shows where a dark region ends on a dark ground.
    out[_inner_border(np.where(ignored, 0, mask), line)] = 255
    return _to_uint8(out)


def _inner_border(mask: np.ndarray, line: int) -> np.ndarray:
    """Pixels of regions other than 0 within ``line`` pixels of another value, bool (H, W)."""
    border = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        size = mask.shape[axis]
        for shift in range(1, min(line, size - 1) + 1):
            first = mask.take(range(size - shift), axis)
            second = mask.take(range(shift, size), axis)
            differ = first != second
            ahead = (slice(None),) * axis + (slice(0, size - shift),)
            behind = (slice(None),) * axis + (slice(shift, size),)
            border[ahead] |= differ & (first != 0)
            border[behind] |= differ & (second != 0)
    return border


def draw_boxes(rgb: np.ndarray, boxes: np.ndarray, color: RGB) -> np.ndarray:
    """Draw the outlines of boxes, framed in black so that they show on any ground.

    Args:
        rgb: The picture, uint8 (H, W, 3).
        boxes: The boxes, (n, 4) ``x0, y0, x1, y1`` in pixels, where x1 and y1 are one past the last
            pixel. Boxes are clipped at the edge of the picture; an empty box is drawn as a single
            pixel.
        color: The colour of the outlines.

    Returns:
        uint8 (H, W, 3), a copy.

    Raises:
        ValueError: If ``rgb`` is not a picture or ``boxes`` is not (n, 4).
    """
    check_rgb(rgb)
    boxes = np.asarray(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (n, 4), got {boxes.shape}")
    height, width = rgb.shape[:2]
    line = max(1, round(max(height, width) / 100))
    img = Image.fromarray(rgb.copy())
    pen = ImageDraw.Draw(img)
    for x0, y0, x1, y1 in boxes.tolist():
        left, top = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
        right, bottom = max(min(x1, width) - 1, left), max(min(y1, height) - 1, top)
        casing = max(1, line // 2)
        for colour, inset, thickness in (((0, 0, 0), 0, line + 2 * casing), (color, casing, line)):
            corners = (left + inset, top + inset, right - inset, bottom - inset)
            # A box of a few pixels has no room for its casing.
            if corners[0] <= corners[2] and corners[1] <= corners[3]:
                pen.rectangle(corners, outline=colour, width=thickness)
            else:
                pen.rectangle((left, top, right, bottom), fill=color)
    return np.asarray(img)


_FONT_SIZE, _LINE, _SQUARE, _SPACE = 15, 24, 14, 8  # of a legend, in pixels
_LONGEST = 200  # letters of a name that are measured
_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_legend(entries: Sequence[tuple[str, RGB]], *, width: int, rest: int = 0) -> np.ndarray:
    """Draw a strip with a square of colour and a name for every class, in one line or several.

    Args:
        entries: Name and colour of every class. A name that is wider than the strip is cut.
        width: The width of the strip in pixels, which leaves room for a few letters.
        rest: How many classes have no entry; the strip then ends in "and N more".

    Returns:
        uint8 (H, width, 3), dark on white; H is 0 where there is nothing to show.
    """
    font = _load_font()
    texts: list[tuple[str, RGB | None]] = [*entries]
    if rest:
        texts.append((f"and {rest} more", None))
    placed, x, y = [], _SPACE, _SPACE // 2
    for text, color in texts:
        indent = 0 if color is None else _SQUARE + _SPACE
        cut = _cut(text, font, width - 2 * _SPACE - indent)
        end = x + indent + math.ceil(font.getlength(cut))
        if x > _SPACE and end + _SPACE > width:
            x, y, end = _SPACE, y + _LINE, end - x + _SPACE
        placed.append((x, y + _LINE // 2, x + indent, cut, color))
        x = end + 2 * _SPACE
    strip = np.full((y + _LINE + _SPACE // 2 if placed else 0, width, 3), 255, np.uint8)
    if not placed:
        return strip
    img = Image.fromarray(strip)
    pen = ImageDraw.Draw(img)
    for left, middle, start, text, color in placed:
        if color is not None:
            top = middle - _SQUARE // 2
            pen.rectangle((left, top, left + _SQUARE - 1, top + _SQUARE - 1), fill=tuple(color))
        pen.text((start, middle), text, fill=DARK, font=font, anchor="lm")
    return np.asarray(img)


def can_draw(text: str) -> bool:
    """Whether the font of :func:`draw_legend` has every letter of a text."""
    font = _load_font()
    missing = font.getmask("\uffff")  # no character
    shapes = [font.getmask(letter) for letter in set(text)]
    return all((s.size, bytes(s)) != (missing.size, bytes(missing)) for s in shapes)


@functools.lru_cache(maxsize=1)
def _load_font() -> _Font:
    """DejaVu Sans, which matplotlib brings, or else Pillow's own font, which has ASCII alone."""
    found = importlib.util.find_spec("matplotlib")
    for place in (found and found.submodule_search_locations) or ():
        path = Path(place, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")
        if path.is_file():
            return ImageFont.truetype(path, _FONT_SIZE)
    return ImageFont.load_default(_FONT_SIZE)


def _cut(text: str, font: _Font, width: int) -> str:
    """A text in one line, with dots in place of what goes beyond a width."""
    line = " ".join(text.split())
    if len(line) <= _LONGEST and font.getlength(line) <= width:
        return line
    kept = line[:_LONGEST]
    while len(kept) > 1 and font.getlength(f"{kept}...") > width:
        kept = kept[:-1]
    return f"{kept}..."


_GAP = 4  # pixels between two pictures side by side


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Put pictures in one row with white gaps, all scaled to the height of the first.

    Args:
        pictures: The pictures, uint8 (H_i, W_i, 3), at least one.

    Returns:
        uint8 (H_0, W, 3).

    Raises:
        ValueError: If there is no picture, or one is not RGB uint8.
    """
    if not pictures:
        raise ValueError("side_by_side needs at least one picture, got none")
    height = pictures[0].shape[0]
    parts: list[np.ndarray] = []
    for rgb in pictures:
        check_rgb(rgb)
        if parts:
            parts.append(np.full((height, _GAP, 3), 255, np.uint8))
        parts.append(_resize(rgb, (height, max(1, round(rgb.shape[1] * height / rgb.shape[0])))))
    return np.concatenate(parts, axis=1)


def picture_row(
    img_id: str,
    img: np.ndarray,
    *,
    score_maps: Mapping[str, np.ndarray],
    palette: Sequence[RGB],
    labels: Sequence[str] = (),
    gt: np.ndarray | None = None,
    masks: Mapping[str, np.ndarray] | None = None,
    values: Mapping[str, float] | None = None,
) -> PictureRow:
    """Build the usual row of a picture grid: image, truth, all score maps, all masks.

    Args:
        img_id: The id of the image; it becomes the name of the row.
        img: The image, uint8 (H, W, 3).
        score_maps: The score map of every column, float (H, W) in [0, 1], by the column's name. Of
            class maps (K, H, W), pass the maximum over the classes, or build one row per class.
        palette: The colours of the mask values, 256 entries.
        labels: The class names of the image.
        gt: The ground truth, integer (H, W); its column is left out if ``None``.
        masks: The mask of every further column, integer (H, W), by the column's name.
        values: The number beside a column's name, e.g. the IoU of this image in %.

    Returns:
        The row, with pictures at the image's own size.

    Raises:
        ValueError: If a shape does not fit the image or a value names no column.
    """
    columns = {"image": img}
    if gt is not None:
        columns["truth"] = overlay_mask(img, gt, palette)
    for name, score_map in score_maps.items():
        columns[name] = overlay_heat(img, score_map)
    for name, mask in (masks or {}).items():
        columns[name] = overlay_mask(img, mask, palette)
    values = values or {}
    if unknown := sorted(set(values) - set(columns)):
        raise ValueError(f"there are values for {unknown}, but the columns are {list(columns)}")
    pictures = [Picture(rgb, name, values.get(name)) for name, rgb in columns.items()]
    return PictureRow(img_id, pictures, labels)


def encode_jpeg(rgb: np.ndarray, *, max_side: int = 256, quality: int = 85) -> bytes:
    """Encode a picture as a JPEG file of bounded size; pictures are never enlarged.

    Colours keep their full resolution (4:4:4), because thin coloured borders matter here.

    Args:
        rgb: The picture, uint8 (H, W, 3).
        max_side: The longer side is scaled down to at most this many pixels.
        quality: The JPEG quality, 1 to 95. A larger value is better, and the file is larger.

    Raises:
        ValueError: If ``rgb`` is not uint8 (H, W, 3) or ``max_side`` is below 1.
    """
    check_rgb(rgb)
    if max_side < 1:
        raise ValueError(f"max_side must be at least 1, got {max_side}")
    buffer = io.BytesIO()
    small = _resize(rgb, fit_side((rgb.shape[0], rgb.shape[1]), max_side))
    Image.fromarray(small).save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def data_uri(jpeg: bytes) -> str:
    """Return a JPEG file as a ``data:`` URI, which a page can show without another file."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def fit_side(hw: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Scale ``hw`` down, keeping its aspect, so that no side exceeds ``max_side``; each is >= 1."""
    scale = min(1.0, max_side / max(hw))
    return max(1, round(hw[0] * scale)), max(1, round(hw[1] * scale))


def _resize(rgb: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    if rgb.shape[:2] == hw:
        return rgb
    resized = Image.fromarray(rgb).resize((hw[1], hw[0]), Image.Resampling.LANCZOS)
    return np.asarray(resized)


def _to_uint8(rgb: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(rgb, 0, 255)).astype(np.uint8)


def _check_same_hw(name: str, array: np.ndarray, img: np.ndarray) -> None:
    if array.shape != img.shape[:2]:
        raise ValueError(f"{name} has shape {array.shape}, the image {img.shape[:2]}")
