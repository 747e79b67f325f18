"""docs/comparison.md: every cell of its tables shows where it comes from."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "comparison.md"
# What needs no link: nothing of the kind (which the page explains), and what is said of adcam.
PLAIN = re.compile(r"–.*|")


def test_every_cell_has_its_evidence() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    heads = [row for row in rows if row.startswith("| |")]
    projects = [row for row in rows if row not in heads and not row.startswith("| **adcam")]
    assert len(heads) == 4 and len(projects) == 4 * 8
    bare = [
        (row.split("|")[1].strip(), cell)
        for row in projects
        for cell in map(str.strip, row.split("|")[2:-1])
        if "](" not in cell and "][" not in cell and not PLAIN.fullmatch(cell)
    ]
    assert bare == []


def test_every_reference_is_defined_and_used() -> None:
    text = PAGE.read_text(encoding="utf-8")
    used = set(re.findall(r"\]\[([\w-]+)\]", text))
    assert used == set(re.findall(r"(?m)^\[([\w-]+)\]: https://", text))
