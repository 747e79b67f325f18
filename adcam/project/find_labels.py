"""Labels that nobody named: found beside the photographs, or refused where two could be meant."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from adcam.data.open_images import find_label_file, take_one
from adcam.errors import AdcamError

_TABLES = (".csv", ".tsv", ".xlsx", ".json", ".xml")

KINDS = (
    "a table of images and labels (.csv, .tsv, .xlsx, .json), COCO's or Label Studio's .json, "
    "CVAT's .xml, a folder of VOC's .xml or YOLO's .txt files, or 'folders' for one folder a class"
)
"""What ``--labels`` takes, in words."""


def find_photographs(folder: Path) -> Path:
    """The folder of the images themselves: of a VOC root or of YOLO's layout, a part of it."""
    for part, sign in (("JPEGImages", "Annotations"), ("images", "labels")):
        if (folder / part).is_dir() and (folder / sign).is_dir():
            return folder / part
    return folder


def find_labels(folder: Path, img_ids: Collection[str]) -> str | Path:
    """Labels of a folder of images: what :func:`adcam.data.labels.read_labels` takes.

    Looked for are, in this order: ``labels.csv`` (.tsv, .json, .xlsx) beside the images; the only
    table or annotation file beside them; annotations of one file an image, beside the images or in
    a folder ``Annotations`` or ``labels``; one folder a class; ``labels.csv`` and the like beside
    the folder.

    Returns:
        A file, a folder of annotations, or ``"folders"``.

    Raises:
        AdcamError: There are none, or several.
    """
    if found := find_label_file(folder):
        return found
    beside = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    stems = {img_id.rpartition("/")[2] for img_id in img_ids}
    tables = [p for p in beside if p.suffix.lower() in _TABLES and p.stem not in stems]
    if found := take_one(folder, tables):
        return found
    if places := _find_annotations(folder, stems):
        return places[0]
    if all("/" in img_id for img_id in img_ids) and len({i.split("/")[-2] for i in img_ids}) > 1:
        return "folders"
    if found := find_label_file(folder.resolve().parent):
        return found
    raise AdcamError(
        f"{folder}: there are no labels beside these images. Name them with --labels: {KINDS}"
    )


def _find_annotations(folder: Path, stems: Collection[str]) -> list[Path]:
    """Folders with a .xml or .txt file of an image's name."""
    root = folder.resolve()
    # YOLO: images/train/a.jpg and labels/train/a.txt, images being the folder or above it.
    swapped = [
        Path(*root.parts[:i], "labels", *root.parts[i + 1 :])
        for i, part in enumerate(root.parts)
        if part == "images"
    ]
    places = [folder, folder / "Annotations", folder / "labels", root.parent / "Annotations"]
    return [
        place
        for place in (*places, *reversed(swapped))
        if place.is_dir()
        and any(
            path.stem in stems for suffix in ("xml", "txt") for path in place.rglob(f"*.{suffix}")
        )
    ]
