"""Draws the generated scenes: animals, their coats, ground and clutter.

:mod:`adcam.data.shapes` says what a scene holds and why it is drawn like this.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

MIN_SIDE = 32
"""Smallest height and width of a picture."""

_SCALE = 2  # pictures are drawn at twice their size and averaged down, which smooths the edges
_MIN_VISIBLE = 0.01  # an animal that shows less than this share of the picture is not labelled

_Point = tuple[float, float]
_Colour = tuple[int, int, int]


class Scene:
    """A picture and its mask while they are being drawn, at ``_SCALE`` times the final size."""

    def __init__(self, rng: np.random.Generator, size_hw: tuple[int, int]) -> None:
        self.rng = rng
        self.height, self.width = (_SCALE * side for side in size_hw)
        self.unit = min(self.height, self.width) / 96  # lengths are for a picture 96 units wide
        self.ground = _random_ground(rng)
        self.img = _paint_ground(rng, self.ground, (self.height, self.width))
        self.mask = Image.new("L", self.img.size)
        self.places: list[_Point] = []
        self.coats: list[_Coat] = []

    def add_clutter(self, *, in_front: bool = False) -> None:
        """Draw a rock, a bush, some grass or flowers; those in front may cover animals."""
        rng = self.rng
        odds = (0.1, 0.3, 0.45, 0.15) if in_front else (0.4, 0.3, 0.15, 0.15)
        parts = _CLUTTER[int(rng.choice(len(_CLUTTER), p=odds))](rng)
        centre = (
            rng.uniform(0, self.width),
            rng.uniform(0.55 if in_front else 0.05, 1) * self.height,
        )
        size = rng.uniform(6, 10 if in_front else 14) * self.unit
        self._draw(parts, centre, size, coat=_random_coat(rng, self.ground, vivid=False), value=0)

    def add_animal(self, class_id: int, *, scale: float) -> None:
        """Draw one animal of a class at ``scale`` times the usual size."""
        rng = self.rng
        plan = _BODY_PLANS[int(rng.integers(len(_BODY_PLANS)))]
        body, neck = plan(rng)
        head = _moved(list(HEADS.values())[class_id](), neck, angle=rng.uniform(-0.35, 0.35))
        parts = [*body, *head]
        if rng.random() < 0.5:
            parts = [part.mirrored() for part in parts]
        size = rng.uniform(9.5, 13) * self.unit * scale
        coat = _random_coat(rng, self.ground, vivid=True)
        self.coats.append(coat)
        centre = self._inside(parts, self._free_place(), size)
        self._draw(parts, centre, size, coat=coat, value=class_id + 1)

    def finish(self) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """Average down to the final size; forget animals that hardly show."""
        img = np.array(self.img.reduce(_SCALE))
        rows = np.asarray(self.mask).reshape(self.height // 2, 2, self.width // 2, 2)
        high, low = rows.max(axis=1), rows.min(axis=1)
        # The second largest of four: an animal keeps a pixel of which it covers at least half.
        mask = np.maximum(
            np.minimum(high[..., 0], high[..., 1]), np.maximum(low[..., 0], low[..., 1])
        )
        counts = np.bincount(mask.ravel(), minlength=len(HEADS) + 1)
        counts[0] = 0
        shown = counts >= _MIN_VISIBLE * mask.size
        for value in np.flatnonzero((counts > 0) & ~shown):
            mask[mask == value] = 0
        return img, mask, tuple(int(value) - 1 for value in np.flatnonzero(shown))

    def _free_place(self) -> _Point:
        """Of some random places, the one farthest from the animals already there."""
        places = [
            (
                self.rng.uniform(0.25, 0.75) * self.width,
                self.rng.uniform(0.42, 0.72) * self.height,
            )
            for _ in range(6)
        ]
        best = max(places, key=lambda p: min((math.dist(p, q) for q in self.places), default=0.0))
        self.places.append(best)
        return best

    def _inside(self, parts: Sequence[_Part], centre: _Point, size: float) -> _Point:
        """The place nearest to ``centre`` where the picture holds all parts, if it can."""
        points = np.concatenate([part.points for part in parts]) * size
        low, high = -points.min(axis=0), (self.width, self.height) - points.max(axis=0)
        x, y = np.where(low <= high, np.clip(centre, low, np.maximum(low, high)), (low + high) / 2)
        return float(x), float(y)

    def _draw(
        self, parts: Sequence[_Part], centre: _Point, size: float, *, coat: _Coat, value: int
    ) -> None:
        """Fill the outline of all parts with the coat, then draw the coloured parts over it."""
        outlines = [part.placed(centre, size) for part in parts]
        stencil = Image.new("1", self.img.size)
        pen = ImageDraw.Draw(stencil)
        for points in outlines:
            pen.polygon(points, fill=1)
        box = stencil.getbbox()
        if box is None:
            return
        area = np.asarray(stencil.crop(box))
        texture = coat.paint(self.rng, area.shape, size)
        texture *= np.linspace(1.12, 0.8, area.shape[0], dtype=np.float32)[:, None, None]
        texture[_rim(area)] *= 0.5
        fill = Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8))
        self.img.paste(fill, box[:2], stencil.crop(box))
        self.mask.paste(value, box, stencil.crop(box))
        pen = ImageDraw.Draw(self.img)
        for part, points in zip(parts, outlines, strict=True):
            if (colour := part.fill(coat)) is not None:
                pen.polygon(points, fill=colour)


def _rim(area: np.ndarray) -> np.ndarray:
    """Pixels of a region with one of four neighbours outside it."""
    padded = np.pad(area, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return area & ~inner


@dataclass(frozen=True)
class _Part:
    """A polygon around (0, 0), y downwards, length 1 = radius of a head.

    ``colour`` is ``None`` where the part wears the coat of its owner; ``pale`` mixes it with the
    coat's first colour, so that a face has its animal's hue.
    """

    points: np.ndarray  # (n, 2) of x, y
    colour: _Colour | None = None
    pale: bool = False

    def mirrored(self) -> _Part:
        return replace(self, points=self.points * (-1, 1))

    def fill(self, coat: _Coat) -> _Colour | None:
        """Colour on an animal with this coat, ``None`` for the coat itself."""
        if self.colour is None or not self.pale:
            return self.colour
        mixed = 0.5 * np.array(self.colour) + 0.5 * coat.colours[0]
        red, green, blue = (int(v) for v in mixed)
        return red, green, blue

    def placed(self, centre: _Point, size: float) -> list[float]:
        """Corners in pixels: x, y, x, y, …"""
        corners: list[float] = (self.points * size + centre).ravel().tolist()
        return corners


_CIRCLE = np.stack(
    [np.cos(np.arange(20) * (math.tau / 20)), np.sin(np.arange(20) * (math.tau / 20))], axis=1
)


def _oval(
    x: float, y: float, rx: float, ry: float, colour: _Colour | None = None, *, angle: float = 0.0
) -> _Part:
    return _Part(np.array((x, y)) + _turned(_CIRCLE * (rx, ry), angle), colour)


def _poly(*points: _Point, colour: _Colour | None = None) -> _Part:
    return _Part(np.array(points, dtype=np.float64), colour)


def _pale(parts: Sequence[_Part]) -> list[_Part]:
    return [replace(part, pale=True) for part in parts]


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _moved(parts: Sequence[_Part], to: _Point, *, angle: float) -> list[_Part]:
    return [replace(part, points=_turned(part.points, angle) + to) for part in parts]


# Heads: the only thing that differs between the classes.

_WHITE, _BLACK, _PINK = (246, 244, 238), (26, 22, 24), (240, 150, 160)
_IVORY, _ORANGE, _GREEN, _YELLOW = (236, 222, 180), (245, 150, 30), (120, 210, 90), (250, 214, 70)


def _eyes(dx: float, y: float, radius: float, colour: _Colour, pupil: float) -> list[_Part]:
    eyes = [_oval(s * dx, y, radius, radius, colour) for s in (-1, 1)]
    return eyes + [_oval(s * dx, y, pupil, pupil, _BLACK) for s in (-1, 1)]


def _bear() -> list[_Part]:
    ears = [_oval(s * 0.78, -0.75, 0.4, 0.4) for s in (-1, 1)]
    inner = [_oval(s * 0.78, -0.75, 0.2, 0.2, _IVORY) for s in (-1, 1)]
    muzzle = [*_pale([_oval(0, 0.38, 0.55, 0.42, _IVORY)]), _oval(0, 0.2, 0.24, 0.17, _BLACK)]
    return [
        *ears,
        *_pale(inner),
        _oval(0, 0, 1, 1),
        *muzzle,
        *_eyes(0.42, -0.25, 0.15, _BLACK, 0.1),
    ]


def _bull() -> list[_Part]:
    horns = [
        _poly(
            (s * 0.55, -0.6), (s * 1.25, -0.7), (s * 1.4, -1.5), (s * 1.72, -0.75), (s * 1.4, -0.3),
            (s * 0.8, -0.25), colour=_IVORY,
        )
        for s in (-1, 1)
    ]  # fmt: skip
    muzzle = [_oval(0, 0.62, 0.72, 0.45, _PINK)]
    nostrils = [_oval(s * 0.3, 0.58, 0.13, 0.16, _BLACK) for s in (-1, 1)]
    return [
        *horns,
        _oval(0, 0, 0.92, 1.05),
        *_pale(muzzle),
        *nostrils,
        *_eyes(0.42, -0.2, 0.2, _WHITE, 0.1),
    ]


def _cat() -> list[_Part]:
    ears = [_poly((s * 0.15, -0.8), (s * 0.95, -1.6), (s * 1.0, -0.2)) for s in (-1, 1)]
    inner = [
        _poly((s * 0.4, -0.85), (s * 0.85, -1.3), (s * 0.85, -0.55), colour=_PINK) for s in (-1, 1)
    ]
    eyes = [_oval(s * 0.42, -0.12, 0.27, 0.22, _GREEN) for s in (-1, 1)]
    slits = [_oval(s * 0.42, -0.12, 0.08, 0.2, _BLACK) for s in (-1, 1)]
    nose = [_poly((-0.16, 0.22), (0.16, 0.22), (0, 0.42), colour=_PINK)]
    whiskers = [
        _poly((s * 0.25, y), (s * 0.88, y + d), (s * 0.88, y + d + 0.1), colour=_WHITE)
        for s in (-1, 1)
        for y, d in ((0.35, -0.1), (0.48, 0.08))
    ]
    return [*ears, _oval(0, 0, 1, 0.92), *_pale(inner), *eyes, *slits, *nose, *whiskers]


def _elephant() -> list[_Part]:
    ears = [_oval(s * 1.1, -0.1, 0.75, 0.9) for s in (-1, 1)]
    inner = [_oval(s * 1.15, -0.05, 0.45, 0.6, _PINK) for s in (-1, 1)]
    trunk = [_oval(0, 0.75, 0.3, 0.9)]
    rings = [_oval(0, y, 0.27, 0.05, _BLACK) for y in (0.75, 1.05, 1.35)]
    tusks = [_poly((s * 0.3, 0.5), (s * 0.6, 0.5), (s * 0.75, 1.3), colour=_WHITE) for s in (-1, 1)]
    return [
        *ears, *_pale(inner), _oval(0, 0, 0.85, 0.95), *trunk, *rings, *tusks,
        *_eyes(0.4, -0.2, 0.15, _WHITE, 0.09),
    ]  # fmt: skip


def _owl() -> list[_Part]:
    tufts = [_poly((s * 0.3, -0.85), (s * 0.98, -1.35), (s * 0.95, -0.3)) for s in (-1, 1)]
    discs = [_oval(s * 0.45, -0.1, 0.48, 0.5, _WHITE) for s in (-1, 1)]
    beak = [_poly((-0.2, 0.15), (0.2, 0.15), (0, 0.7), colour=_ORANGE)]
    return [
        *tufts,
        _oval(0, 0, 1.05, 1),
        *_pale(discs),
        *_eyes(0.45, -0.1, 0.3, _YELLOW, 0.17),
        *beak,
    ]


def _rabbit() -> list[_Part]:
    ears = [_oval(s * 0.48, -1.5, 0.3, 0.95, angle=s * 0.18) for s in (-1, 1)]
    inner = [_oval(s * 0.48, -1.5, 0.14, 0.7, _PINK, angle=s * 0.18) for s in (-1, 1)]
    cheeks = [_oval(s * 0.24, 0.45, 0.3, 0.26, _WHITE) for s in (-1, 1)]
    nose = [_oval(0, 0.25, 0.16, 0.11, _PINK)]
    teeth = [_poly((-0.17, 0.6), (0.17, 0.6), (0.15, 0.95), (-0.15, 0.95), colour=_WHITE)]
    return [
        *ears, *_pale(inner), _oval(0, 0, 0.95, 0.95), *_pale(cheeks), *teeth, *nose,
        *_eyes(0.45, -0.2, 0.19, _BLACK, 0.1),
    ]  # fmt: skip


HEADS: dict[str, Callable[[], list[_Part]]] = {
    "bear": _bear,
    "bull": _bull,
    "cat": _cat,
    "elephant": _elephant,
    "owl": _owl,
    "rabbit": _rabbit,
}


# Bodies: drawn at random for any class. Each returns its parts and where the head goes.


def _limb(start: _Point, end: _Point, width: float) -> _Part:
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0)
    angle = math.atan2(y1 - y0, x1 - x0)
    return _oval((x0 + x1) / 2, (y0 + y1) / 2, length / 2 + width / 2, width, angle=angle)


def _four_legged(rng: np.random.Generator) -> tuple[list[_Part], _Point]:
    length, depth = rng.uniform(1.6, 2.2), rng.uniform(0.85, 1.1)
    leg = rng.uniform(0.9, 1.5)
    legs = [
        _limb((x * length, 0.3 * depth), (x * length + rng.uniform(-0.25, 0.25), depth + leg), 0.28)
        for x in (-0.75, -0.4, 0.35, 0.7)
    ]
    tail = _limb(
        (-0.9 * length, -0.3), (-length - rng.uniform(0.4, 0.9), rng.uniform(-1.4, 0.3)), 0.18
    )
    neck = (length + rng.uniform(-0.1, 0.4), -depth - rng.uniform(0.1, 0.6))
    throat = _limb((0.55 * length, -0.2 * depth), neck, 0.5)
    return [tail, *legs, _oval(0, 0, length, depth), throat], neck


def _sitting(rng: np.random.Generator) -> tuple[list[_Part], _Point]:
    breadth, height = rng.uniform(1.15, 1.5), rng.uniform(1.4, 1.8)
    arms = [
        _limb((s * 0.7, -0.4), (s * rng.uniform(1.5, 2.0), rng.uniform(-1.0, 0.9)), 0.3)
        for s in (-1, 1)
    ]
    feet = [_oval(s * rng.uniform(0.9, 1.2), height - 0.1, 0.6, 0.38) for s in (-1, 1)]
    tail = _limb((-0.5, height - 0.5), (-breadth - rng.uniform(0.3, 0.8), height - 0.8), 0.22)
    return [tail, *arms, *feet, _oval(0, 0, breadth, height)], (0.0, -height - 0.35)


def _crawling(rng: np.random.Generator) -> tuple[list[_Part], _Point]:
    bend, phase = rng.uniform(0.3, 0.8), rng.uniform(0, math.tau)
    xs = np.linspace(-2.9, 1.6, 7)
    ys = bend * np.sin(xs * 1.1 + phase)
    rings = [
        _oval(float(x), float(y), 0.78, 0.5 + 0.09 * i)
        for i, (x, y) in enumerate(zip(xs, ys, strict=True))
    ]
    feet = [
        _oval(float(x), float(y) + 0.85, 0.22, 0.35) for x, y in zip(xs[1:], ys[1:], strict=True)
    ]
    return [*feet, *rings], (2.2, float(ys[-1]) - 0.6)


def _flying(rng: np.random.Generator) -> tuple[list[_Part], _Point]:
    length, depth = rng.uniform(1.5, 1.9), rng.uniform(0.75, 0.95)
    lift = rng.uniform(1.5, 2.3) * (1 if rng.random() < 0.3 else -1)
    wings = [
        _poly((-0.9, -0.1), (0.7, -0.1), (0.1 + sweep, lift), (-1.0 + sweep, 0.9 * lift))
        for sweep in (-0.9, rng.uniform(-0.3, 0.3))
    ]
    tail = _poly(
        (-0.7 * length, -0.25), (-length - 1.2, -0.8), (-length - 1.0, 0.7), (-0.7 * length, 0.35)
    )
    return [tail, *wings, _oval(0, 0, length, depth)], (length + 0.35, -0.45)


_BODY_PLANS = (_four_legged, _sitting, _crawling, _flying)


# Clutter: rocks, bushes, grass and flowers, all of them background.


def _rock(rng: np.random.Generator) -> list[_Part]:
    radii = rng.uniform(0.7, 1.2, 9)[:, None]
    angles = np.arange(9) * (math.tau / 9)
    return [_Part(np.stack([np.cos(angles) * 1.2, np.sin(angles) * 0.85], axis=1) * radii)]


def _bush(rng: np.random.Generator) -> list[_Part]:
    return [
        _oval(rng.uniform(-0.9, 0.9), rng.uniform(-0.6, 0.4), r, r)
        for r in rng.uniform(0.35, 0.65, 7)
    ]


def _grass(rng: np.random.Generator) -> list[_Part]:
    blades = []
    for x in rng.uniform(-1.2, 1.2, 9):
        lean, height = rng.uniform(-0.5, 0.5), rng.uniform(0.7, 1.8)
        blades.append(_poly((x - 0.12, 0.4), (x + lean, -height), (x + 0.12, 0.4)))
    return blades


def _flowers(rng: np.random.Generator) -> list[_Part]:
    parts = []
    petals = _to_rgb(rng.random(), rng.uniform(0.4, 0.9), 0.95)
    for _ in range(3):
        x, y = rng.uniform(-1.2, 1.2), rng.uniform(-1, 0.4)
        parts.append(_poly((x - 0.07, 1.1), (x - 0.05, y), (x + 0.05, y), (x + 0.07, 1.1)))
        parts += [
            _oval(x + 0.24 * math.cos(a), y + 0.24 * math.sin(a), 0.2, 0.2, petals)
            for a in (0.3, 1.56, 2.81, 4.07, 5.33)
        ]
        parts.append(_oval(x, y, 0.15, 0.15, _YELLOW))
    return parts


_CLUTTER = (_rock, _bush, _grass, _flowers)


# Colour and pattern.


def _to_rgb(hue: float, saturation: float, value: float) -> _Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


@dataclass(frozen=True)
class _Coat:
    """Two colours and the pattern in which they lie."""

    colours: np.ndarray  # (2, 3) float32
    pattern: int  # index into _PATTERNS
    angle: float
    period: float  # in radii of a head

    @property
    def hue(self) -> float:
        """Hue of the first colour, in [0, 1)."""
        return colorsys.rgb_to_hsv(*self.colours[0].tolist())[0]

    def paint(self, rng: np.random.Generator, hw: tuple[int, ...], size: float) -> np.ndarray:
        """Texture of ``hw`` pixels, float32 (h, w, 3); ``size`` is its owner's unit length."""
        height, width = hw
        frequency = math.tau / (self.period * size)
        x = np.arange(width, dtype=np.float32) * frequency + np.float32(rng.uniform(0, math.tau))
        y = np.arange(height, dtype=np.float32)[:, None] * frequency
        cos, sin = np.float32(math.cos(self.angle)), np.float32(math.sin(self.angle))
        share = _PATTERNS[self.pattern](x * cos + y * sin, y * cos - x * sin)
        grain = rng.standard_normal((height, width), dtype=np.float32) * np.float32(7)
        texture = self.colours[0] + share[..., None] * (self.colours[1] - self.colours[0])
        return texture + grain[..., None]


def _stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.sin(u) > 0.1).astype(np.float32)


def _waves(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.sin(u + 1.2 * np.sin(v)) > 0.1).astype(np.float32)


def _spots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.sin(u) * np.sin(v) > 0.35).astype(np.float32)


def _checks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.sin(u) * np.sin(v) > 0).astype(np.float32)


def _plain(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.5 + 0.35 * np.sin(0.5 * u) * np.sin(0.37 * v)


_PATTERNS = (_stripes, _waves, _spots, _checks, _plain)
NUM_PATTERNS = len(_PATTERNS)


def _random_coat(rng: np.random.Generator, ground: np.ndarray, *, vivid: bool) -> _Coat:
    """A coat that stands out from the ground; vivid ones (animals) more than others (clutter)."""
    for _ in range(8):
        hue = rng.random()
        if vivid:
            first = _to_rgb(hue, rng.uniform(0.35, 0.9), rng.uniform(0.4, 0.95))
        else:
            first = _to_rgb(hue, rng.uniform(0.1, 0.6), rng.uniform(0.25, 0.8))
        if np.abs(ground - first).sum(axis=1).min() > (110 if vivid else 50):
            break
    second = np.array(
        _to_rgb(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.2, 0.8), rng.uniform(0.3, 1))
    )
    colours = np.stack([np.array(first), second]).astype(np.float32)
    return _Coat(
        colours=colours,
        pattern=int(rng.integers(len(_PATTERNS))),
        angle=float(rng.uniform(0, math.pi)),
        period=float(rng.uniform(0.6, 1.3)),
    )


def _random_ground(rng: np.random.Generator) -> np.ndarray:
    """Two related colours of ground, float32 (2, 3)."""
    hue = rng.choice((0.08, 0.13, 0.25, 0.33, 0.5, 0.58, 0.75)) + rng.uniform(-0.05, 0.05)
    value = rng.uniform(0.35, 0.9)
    colours = [
        _to_rgb(
            hue + rng.uniform(-0.06, 0.06), rng.uniform(0.12, 0.5), value * rng.uniform(0.75, 1)
        )
        for _ in range(2)
    ]
    return np.array(colours, dtype=np.float32)


def _paint_ground(rng: np.random.Generator, ground: np.ndarray, hw: tuple[int, int]) -> Image.Image:
    """Cloudy ground between two colours, lighter at the far end, with grain."""
    height, width = hw[0] // _SCALE, hw[1] // _SCALE  # clouds need no fine pixels
    share = np.float32(0.05) * rng.standard_normal((height, width), dtype=np.float32)
    for cells, weight in ((4, 0.5), (11, 0.35), (28, 0.2)):
        coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32) * np.float32(weight))
        share += np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))
    light = np.linspace(1.15, 0.88, height, dtype=np.float32)[:, None, None]
    texture = (ground[0] + share[..., None] * (ground[1] - ground[0])) * light
    picture = Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8))
    return picture.resize((hw[1], hw[0]), Image.Resampling.NEAREST)
