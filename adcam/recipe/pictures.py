"""Rows of pictures that a stage leaves for the report, as PNG files with an index."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from adcam.errors import AdcamError
from adcam.files import write_bytes, write_json
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
    path = folder / PICTURES_DIR / _INDEX_NAME
    try:
        rows = json.loads(path.read_text("utf-8"))["rows"]
        return [
            PictureRow(
                row["img_id"],
                [
                    Picture(_read(path.parent / item["file"]), item["column"], item["value"])
                    for item in row["pictures"]
                ],
                row["labels"],
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdcamError(f"{path}: these pictures cannot be shown ({error})") from error


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
