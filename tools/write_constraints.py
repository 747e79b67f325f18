"""Write constraints.txt from what pip resolves on the oldest and on a newer Python.

On each of the two Pythons, in a fresh virtual environment and the repository's root::

    pip install --dry-run --ignore-installed --report 3.11.json \\
        ".[dev,crf,seg,coco,ray,clip,peers,docs]"

and then ``python tools/write_constraints.py 3.10.json 3.11.json > constraints.txt``. A package that
resolves alike gets one line; others get two, split by an environment marker.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HEADER = """\
# Exact versions that `make` installs; see "Dependencies" in CONTRIBUTING.md.
# Written by tools/write_constraints.py from what pip resolved on Python {old} and {new}.
"""


def read_report(path: Path) -> tuple[str, dict[str, str]]:
    """Return the Python version of a pip report and the version of every package in it."""
    report = json.loads(path.read_text(encoding="utf-8"))
    packages = (item["metadata"] for item in report["install"])
    versions = {p["name"].lower().replace("_", "-"): p["version"] for p in packages}
    versions.pop("adcam", None)
    return report["environment"]["python_version"], versions


def merge_constraints(old: dict[str, str], new: dict[str, str], *, new_python: str) -> list[str]:
    """Return constraint lines, sorted by name.

    Args:
        old: Version of each package on Pythons before `new_python`.
        new: Version of each package on `new_python` and later.
        new_python: First Python version that `new` holds for, e.g. ``"3.11"``.
    """
    lines = []
    for name in sorted(old.keys() | new.keys()):
        versions = {old.get(name, new.get(name)), new.get(name, old.get(name))}
        if len(versions) == 1:
            lines.append(f"{name}=={versions.pop()}")
        else:
            lines.append(f"{name}=={old[name]} ; python_version < '{new_python}'")
            lines.append(f"{name}=={new[name]} ; python_version >= '{new_python}'")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("old", type=Path, help="pip report of the oldest supported Python")
    parser.add_argument("new", type=Path, help="pip report of the next Python")
    args = parser.parse_args()
    (old_python, old), (new_python, new) = read_report(args.old), read_report(args.new)
    print(HEADER.format(old=old_python, new=new_python), end="")
    print("\n".join(merge_constraints(old, new, new_python=new_python)))


if __name__ == "__main__":
    main()
