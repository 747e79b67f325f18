"""Results as JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adcam.data.files import write_text_atomic


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write values as indented JSON, atomically.

    Raises:
        OSError: The file cannot be written.
    """
    write_text_atomic(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
