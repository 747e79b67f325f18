"""What several test files need and no fixture serves; miniatures.py has the data sets."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np


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
