"""What is known of masks that are there already: which number stands for which class."""

from __future__ import annotations

import shlex
from pathlib import Path

from PIL import Image

from adcam.data.png import voc_palette
from adcam.errors import AdcamError, join_some
from adcam.files import read_json
from adcam.structures import IGNORE_INDEX, ClassSet

CONVERTED_NAME = "convert.json"


def read_converted_classes(masks: str | Path) -> ClassSet | None:
    """Read the classes of masks that ``adcam convert`` made, from the ``convert.json`` there.

    Returns:
        The classes by ascending mask value, in the colours of the masks; ``None`` if the file is
        not there or does not say them.
    """
    try:
        said = read_json(Path(masks) / CONVERTED_NAME)
        if said["converter"] == "masks-to-mmseg":  # these are the values of its source, not its own
            return None
        name_of = {value: name for name, value in said["mask_values"].items()}
        values = tuple(sorted(name_of))
        first = next(Path(masks).rglob("*.png"), None)
        palette = (first and read_palette(first)) or voc_palette()
        return ClassSet("converted", tuple(name_of[v] for v in values), values, palette)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def refuse_other_numbers(masks: str | Path, found: ClassSet | None, class_set: ClassSet) -> None:
    """Refuse masks that are known to give a class another number than the one it is read by.

    They are read as ``class_set``, and known to have the classes ``found``, ``None`` for nothing.

    Raises:
        AdcamError: Both have a class of one name with different mask values.
    """
    value_of = {} if found is None else found.value_of
    wanted = class_set.value_of
    other = {name: value for name, value in value_of.items() if wanted.get(name, value) != value}
    if other:
        name, value = next(iter(other.items()))
        # A class that is not read must not share its number with one that is.
        new = {name: wanted.get(name, IGNORE_INDEX) for name in value_of}
        cure = ",".join(f"{value_of[n]}={v}" for n, v in new.items() if value_of[n] != v)
        left_out = [name for name in value_of if name not in wanted]
        note = f", in which the pixels of {join_some(left_out)} are ignored" if left_out else ""
        is_counted = class_set.mask_values == tuple(range(1, len(wanted) + 1))
        classes = shlex.quote(("" if is_counted else "voc:") + ",".join(class_set.classes))
        raise AdcamError(
            f"{name!r} is {value} in the masks of {masks}, but {wanted[name]} in the classes that "
            f"they are read as, {', '.join(class_set.classes)}; give the classes in the order of "
            f"the masks, {', '.join(sorted(value_of, key=value_of.__getitem__))}, or take the "
            f"masks of adcam convert recode-masks {masks} --values {cure} --classes {classes} "
            f"--out DIR{note}"
        )


def read_palette(path: Path) -> tuple[tuple[int, int, int], ...] | None:
    """Read the colours of a mask; ``None`` if the file is not there or has none."""
    try:
        with Image.open(path, formats=("PNG",)) as img:
            colors = img.getpalette() or []
    except (OSError, ValueError):  # moved, or edited since
        return None
    if len(colors) != 3 * 256:
        return None
    return tuple((colors[i], colors[i + 1], colors[i + 2]) for i in range(0, 3 * 256, 3))
