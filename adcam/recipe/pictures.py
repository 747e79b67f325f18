"""Rows of pictures that a stage leaves for the report, as PNG files with an index."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from adcam.files import open_json, write_bytes, write_json
from adcam.report.model import Picture, PictureRow

PICTURES_DIR = "pictures"
_INDEX_NAME = "index.json"


def save_pictures(folder: Path, rows: Sequence[PictureRow]) -> None:
    """Write the pictures of a report into ``folder/pictures``.

    Args:
        folder: The folder of the stage.
        rows: The rows in the order of the report.
    """
    index = []
    for number, row in enumerate(rows):
        pictures = []
        for column, picture in enumerate(row.pictures):
            name = f"{number:03d}-{column:02d}.png"
            png = io.BytesIO()
            Image.fromarray(picture.rgb).save(png, format="PNG")
            write_bytes(folder / PICTURES_DIR / name, png.getvalue())
            pictures.append({"file": name, "column": picture.column, "value": picture.value})
        index.append({"img_id": row.img_id, "labels": list(row.labels), "pictures": pictures})
    write_json(folder / PICTURES_DIR / _INDEX_NAME, {"rows": index})


def load_pictures(folder: Path) -> list[PictureRow]:
    """Read what :func:`save_pictures` wrote.

    Raises:
        AdcamError: A file is missing or damaged.
    """
    path, rows = folder / PICTURES_DIR / _INDEX_NAME, []
    with open_json(path, "these pictures cannot be shown") as index:
        for row in index["rows"]:
            pictures = []
            for item in row["pictures"]:
                with Image.open(path.parent / item["file"]) as img:
                    rgb = np.asarray(img.convert("RGB"))
                pictures.append(Picture(rgb, item["column"], item["value"]))
            rows.append(PictureRow(row["img_id"], pictures, row["labels"]))
    return rows
