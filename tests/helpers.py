"""What several test files need and no fixture serves; miniatures.py has the data sets."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def object_npy_header() -> bytes:
    """The start of a .npy file whose array is one pickled object; the pickle follows."""
    buffer = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def read_scalars(work_dir: Path) -> list[dict[str, Any]]:
    """The scalars that every start of a training in this folder logged, oldest first."""
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def write_labelled_photos(folder: Path, count: int) -> Path:
    """Photographs ``0.png``, ``1.png``, … of noise; ``labels.csv`` beside them says dog, cat, dog.

    Returns:
        The folder, which is created.
    """
    folder.mkdir()
    lines = ["image,label"]
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
        lines.append(f"{seed}.png,{'cat' if seed % 2 else 'dog'}")
    (folder.parent / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder
