"""The embedded data sets: generated scenes of plush animals with exact masks and boxes.

:func:`make_shapes` writes scenes for segmentation in VOC layout, :func:`make_shape_boxes` scenes of
one animal for localisation with the metadata of wsolevaluation.

A scene shows none to three animals on textured ground among rocks, bushes, flowers and grass. The
class of an animal shows in its *head* alone. Everything else is drawn per animal and says nothing
about the class: body plan, size, pose, two colours and a pattern that cover the head as well as
the body. So a classifier finds its evidence on a small part, while what belongs together looks
alike within one animal and unlike the rest of the picture. That is the situation in which a class
activation map covers too little and attention between patches can tell what is missing.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from adcam.data._shapes_drawing import HEADS, MIN_SIDE, Scene
from adcam.data.dataset import build_class_set
from adcam.data.label_tables import CSV_HEADER
from adcam.data.png import voc_palette, write_mask
from adcam.data.polygons import find_box
from adcam.errors import AdcamError
from adcam.files import write_bytes, write_csv, write_json, write_text
from adcam.structures import ClassSet

GENERATOR_VERSION = 2
"""Raised whenever the same seed would give other pixels."""

CLASSES = tuple(HEADS)


def shapes_class_set() -> ClassSet:
    """Classes of the generated set; mask values 1..6 in the order of :data:`CLASSES`."""
    return build_class_set("shapes", CLASSES)


def render(
    rng: np.random.Generator, *, size_hw: tuple[int, int] = (96, 96)
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Draw one scene.

    Args:
        rng: The source of every random choice; the same state gives the same pixels.
        size_hw: The height and width of the picture in pixels, each at least 32. Animals scale with
            the shorter side.

    Returns:
        ``img`` uint8 (H, W, 3) RGB; ``mask`` uint8 (H, W), 0 for background and class id + 1 for
        an animal; ``class_ids``, the 0-based classes with visible pixels, ascending, ``()`` for
        an empty scene.

    Raises:
        AdcamError: ``size_hw`` is smaller than 32 on a side.
    """
    return _draw_scene(rng, size_hw).finish()


def render_single(
    rng: np.random.Generator, *, size_hw: tuple[int, int] = (96, 96)
) -> tuple[np.ndarray, np.ndarray, int]:
    """Draw one animal, large or small, in more clutter than :func:`render` has, which see.

    Returns:
        ``img`` uint8 (H, W, 3) RGB; ``is_animal`` bool (H, W), its visible pixels, at least one;
        its 0-based class.

    Raises:
        AdcamError: ``size_hw`` is smaller than 32 on a side.
    """
    while True:  # a second time only if the clutter in front hides the whole animal
        scene = _empty_scene(rng, size_hw)
        for _ in range(rng.integers(5, 10)):
            scene.add_clutter()
        scene.add_animal(int(rng.integers(len(CLASSES))), scale=rng.uniform(0.65, 1.1))
        for _ in range(rng.integers(0, 2)):
            scene.add_clutter(in_front=True)
        img, mask, class_ids = scene.finish()
        if class_ids:
            return img, mask > 0, class_ids[0]


def render_coats(
    rng: np.random.Generator, *, size_hw: tuple[int, int] = (96, 96)
) -> tuple[np.ndarray, tuple[int, ...], tuple[tuple[float, int], ...]]:
    """Draw the scene that :func:`render` draws, and tell its animals' coats instead of a mask.

    Returns:
        ``img`` and ``class_ids`` as of :func:`render`, and per animal, in the order drawn, the hue
        of its first colour in [0, 1) and its pattern, 0..``NUM_PATTERNS`` - 1.

    Raises:
        AdcamError: ``size_hw`` is smaller than 32 on a side.
    """
    scene = _draw_scene(rng, size_hw)
    img, _, class_ids = scene.finish()
    return img, class_ids, tuple((coat.hue, coat.pattern) for coat in scene.coats)


def make_shapes(
    root: str | Path,
    *,
    num_train: int,
    num_val: int,
    size_hw: tuple[int, int] = (96, 96),
    seed: int = 0,
) -> None:
    """Write a generated set in VOC layout.

    Writes ``JPEGImages/<id>.png``, ``SegmentationClass/<id>.png``,
    ``ImageSets/Segmentation/{train,val}.txt``, ``labels.csv`` and, last of all, ``meta.json``, so
    that a folder with a ``meta.json`` is whole. The image folder has VOC's name, but its files
    are PNG: the pixels are the generator's own. Picture ``i`` of a split depends on the seed, the
    split and ``i`` alone, so a longer split begins with the shorter one. ``root`` is made if
    missing, and files of the same name are replaced.

    Raises:
        AdcamError: A count or the seed is negative, or ``size_hw`` is too small.
    """
    counts = {"train": num_train, "val": num_val}
    _check_counts(counts, seed)
    root = Path(root)
    palette = voc_palette()
    rows = []
    for split_index, (split, count) in enumerate(counts.items()):
        ids = [f"{split}_{i:05d}" for i in range(count)]
        for i, img_id in enumerate(ids):
            rng = np.random.default_rng((seed, split_index, i))
            img, mask, class_ids = render(rng, size_hw=size_hw)
            _write_png(root / "JPEGImages" / f"{img_id}.png", img)
            write_mask(root / "SegmentationClass" / f"{img_id}.png", mask, palette)
            rows.append((img_id, " ".join(CLASSES[c] for c in class_ids)))
        lines = "".join(f"{img_id}\n" for img_id in ids)
        write_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", lines)
    write_csv(root / "labels.csv", CSV_HEADER, rows)
    meta = {
        "name": "shapes",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "size_hw": list(size_hw),
        "num_train": num_train,
        "num_val": num_val,
        "classes": list(CLASSES),
    }
    write_json(root / "meta.json", meta)


def make_shape_boxes(
    root: str | Path,
    *,
    num_train: int,
    num_val: int,
    num_test: int,
    size_hw: tuple[int, int] = (96, 96),
    seed: int = 0,
) -> None:
    """Write a generated set for localisation, with the metadata of wsolevaluation.

    Of each split (train, val and test; :data:`adcam.data.wsol.SPLITS` has the protocol's names)
    writes ``<split>/<number>.png``, ``masks/<split>/<number>.png`` (255 on the animal),
    ``metadata/shapes/<split>/`` with a box an image and ``metadata/shapes_masks/<split>/`` with its
    mask in place of the box, and last of all ``meta.json``. Nothing is ignored: all images share
    the empty ignore mask ``masks/none.png``. x1 and y1 of a box are one past the animal's last
    pixel. An image depends on the seed, the split and its number alone.

    Args:
        root: The folder to write to, also the root of the paths in the metadata; made if missing.
            Files of the same name are replaced.
        num_train: The number of training images.
        num_val: The number of images to choose thresholds and options on.
        num_test: The number of images to report on.
        size_hw: The height and width of every picture.
        seed: The seed of the whole set, non-negative.

    Raises:
        AdcamError: A count is below 1, the seed is negative, or ``size_hw`` is too small.
    """
    counts = {"train": num_train, "val": num_val, "test": num_test}
    _check_counts(counts, seed, low=1)
    root = Path(root)
    for split_index, (split, count) in enumerate(counts.items()):
        # A number more than in make_shapes, so that no two sets share a state.
        seeds = [(seed, split_index, i, 1) for i in range(count)]
        _write_single_shapes(root, split, seeds, size_hw)
    _write_png(root / "masks" / "none.png", np.zeros(size_hw, dtype=np.uint8))
    meta = {
        "name": "shape_boxes",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "size_hw": list(size_hw),
        **{f"num_{split}": count for split, count in counts.items()},
        "classes": list(CLASSES),
    }
    write_json(root / "meta.json", meta)


def _write_single_shapes(
    root: Path, split: str, seeds: Sequence[tuple[int, ...]], size_hw: tuple[int, int]
) -> None:
    """Write the pictures, masks and metadata of one split, a picture a seed."""
    tables: dict[str, list[str]] = {name: [] for name in ("image_ids", "class_labels")}
    tables |= {name: [] for name in ("image_sizes", "localization", "masks")}
    for i, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        img, is_animal, class_id = render_single(rng, size_hw=size_hw)
        image_id = f"{split}/{i:05d}.png"
        _write_png(root / image_id, img)
        _write_png(root / "masks" / image_id, np.uint8(255) * is_animal.astype(np.uint8))
        tables["image_ids"].append(image_id)
        tables["class_labels"].append(f"{image_id},{class_id}")
        tables["image_sizes"].append(f"{image_id},{size_hw[1]},{size_hw[0]}")
        tables["localization"].append(f"{image_id},{','.join(map(str, find_box(is_animal)))}")
        tables["masks"].append(f"{image_id},masks/{image_id},masks/none.png")
    masks = tables.pop("masks")
    _write_tables(root / "metadata" / "shapes" / split, tables)
    tables["localization"] = masks
    _write_tables(root / "metadata" / "shapes_masks" / split, tables)


def _empty_scene(rng: np.random.Generator, size_hw: tuple[int, int]) -> Scene:
    if min(size_hw) < MIN_SIDE:
        raise AdcamError(f"size_hw must be at least {MIN_SIDE} on each side, got {size_hw}")
    return Scene(rng, size_hw)


def _draw_scene(rng: np.random.Generator, size_hw: tuple[int, int]) -> Scene:
    scene = _empty_scene(rng, size_hw)
    for _ in range(rng.integers(3, 7)):
        scene.add_clutter()
    num_animals = int(rng.choice(4, p=(0.06, 0.5, 0.34, 0.1)))
    for _ in range(num_animals):
        # The more there are, the smaller each is.
        scale = (1.1, 1.0, 0.88)[num_animals - 1]
        scene.add_animal(int(rng.integers(len(CLASSES))), scale=scale)
    for _ in range(rng.integers(0, 3)):
        scene.add_clutter(in_front=True)
    return scene


def _check_counts(counts: Mapping[str, int], seed: int, *, low: int = 0) -> None:
    for name, count in counts.items():
        if count < low:
            raise AdcamError(f"num_{name} must be at least {low}, got {count}")
    if seed < 0:
        raise AdcamError(f"seed must not be negative, got {seed}")


def _write_png(path: Path, pixels: np.ndarray) -> None:
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG", compress_level=1)
    write_bytes(path, png.getvalue())


def _write_tables(folder: Path, tables: Mapping[str, Iterable[str]]) -> None:
    for name, lines in tables.items():
        write_text(folder / f"{name}.txt", "".join(f"{line}\n" for line in lines))
