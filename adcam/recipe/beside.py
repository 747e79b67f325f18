"""Two runs side by side: their masks scored in one table, and looked at image by image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adcam.errors import AdcamError
from adcam.files import write_bytes, write_json
from adcam.recipe.stages import REPORT
from adcam.report.explorer import (
    EXPLORER_DIR,
    INDEX_NAME,
    encode_script,
    read_index,
    read_script,
)
from adcam.report.model import Block, Column, Explorer, Report, Scatter, Section, Table
from adcam.report.render import write_report

Values = dict[str, Any]


def write_beside(first: Path, second: Path, out: Path) -> Path:
    """Write a page that shows the images of two reports side by side.

    Args:
        first: A folder with ``report/``, as ``adcam run``, ``compare``, ``demo`` and ``generate``
            leave it.
        second: Another one, with images of the same ids.
        out: The folder of the page.

    Returns:
        The path of the page.

    Raises:
        AdcamError: A folder has no report with images, the classes differ, or no image is in both.
        OSError: The folder cannot be written to.
    """
    folders = [folder / REPORT / EXPLORER_DIR for folder in (first, second)]
    labels = [folder.resolve().name for folder in (first, second)]
    if labels[0] == labels[1]:
        labels = [f"{label} {number}" for number, label in enumerate(labels, 1)]
    indices = [_read(folder) for folder in folders]
    index = _join_indices(indices, labels)
    places = [{image["id"]: n for n, image in enumerate(one["images"])} for one in indices]
    for number, image in enumerate(index["images"]):
        pair = (places[0][image["id"]], places[1][image["id"]])
        _write_image(out / EXPLORER_DIR, number, folders, pair, has_attention=image["attention"])
    write_json(out / EXPLORER_DIR / INDEX_NAME, index)
    return write_report(_build_report(index, labels, out), out)


def _read(folder: Path) -> Values:
    index = read_index(folder)
    if index is None:
        raise AdcamError(
            f"{folder}: there is no report with images; make it first: adcam report "
            f"{folder.parent.parent}"
        )
    return index


def _join_indices(indices: list[Values], labels: list[str]) -> Values:
    """The index of the images of both, with the methods of the first and then of the second."""
    names = [{entry["value"]: entry["name"] for entry in index["classes"]} for index in indices]
    if differing := [v for v in names[0] if names[1].get(v, names[0][v]) != names[0][v]]:
        value = differing[0]
        raise AdcamError(
            f"the classes differ: mask value {value} is {names[0][value]!r} in {labels[0]} and "
            f"{names[1][value]!r} in {labels[1]}"
        )
    others = {image["id"]: image for image in indices[1]["images"]}
    images = [
        {**image, "iou": [*image["iou"], *others[image["id"]]["iou"]]}
        for image in indices[0]["images"]
        if image["id"] in others
    ]
    if not images:
        raise AdcamError(f"no image of {labels[0]} is in {labels[1]}")
    methods = [
        {**method, "name": f"{method['name']} ({label})"}
        for index, label in zip(indices, labels, strict=True)
        for method in index["methods"]
    ]
    classes = {entry["value"]: entry for index in indices for entry in index["classes"]}
    return {
        "classes": [classes[value] for value in sorted(classes)],
        "methods": methods,
        "heat": indices[0]["heat"],
        "images": images,
        "gain": [len(methods) - 1, len(indices[0]["methods"]) - 1],
    }


def _write_image(
    out: Path, number: int, folders: list[Path], pair: tuple[int, int], *, has_attention: bool
) -> None:
    own, other = (
        read_script(folder / f"{place}.js") for folder, place in zip(folders, pair, strict=True)
    )
    fits, same = other["hw"] == own["hw"], other["values"] == own["values"]
    values = {
        **own,
        "truth": own["truth"] or (other["truth"] if fits else None),
        "maps": [*own["maps"], *(m if fits and same else None for m in other["maps"])],
        "boxes": {
            "true": own["boxes"]["true"],
            "found": [*own["boxes"]["found"], *other["boxes"]["found"]],
        },
        "masks": [*own["masks"], *(mask if fits else None for mask in other["masks"])],
    }
    write_bytes(out / f"{number}.js", encode_script(str(number), values))
    write_bytes(out / f"{number}.jpg", (folders[0] / f"{pair[0]}.jpg").read_bytes())
    if has_attention:
        name = f"{number}-attention"
        attention = read_script(folders[0] / f"{pair[0]}-attention.js")
        write_bytes(out / f"{name}.js", encode_script(name, attention))


def _build_report(index: Mapping[str, Any], labels: list[str], out: Path) -> Report:
    methods, images = index["methods"], index["images"]
    newer, older = index["gain"]
    scored = [i for i in images if None not in (i["iou"][newer], i["iou"][older])]
    lead: list[Block] = []
    if scored:
        means = [
            _mean([i["iou"][m] for i in scored if i["iou"][m] is not None])
            for m in range(len(methods))
        ]
        rows = [
            [m["name"], m["rule"], m["miou"], mean] for m, mean in zip(methods, means, strict=True)
        ]
        columns = [
            Column("method"),
            Column("rule"),
            Column("mIoU", best="max", bar_max=100.0, hint="over all images of its run"),
            Column("mean of images", best="max", hint="of the images that both runs scored"),
        ]
        lead.append(Table(columns, rows, f"{len(scored)} images are in both runs."))
    caption = "Images that both runs show. Sort them by the gain to see where the runs differ."
    sections = [Section("Explore the images", [Explorer(out / EXPLORER_DIR, index, caption)])]
    if scored:
        better = sum(i["iou"][newer] > i["iou"][older] for i in scored)
        dots = Scatter(
            [i["id"] for i in scored],
            [i["iou"][older] for i in scored],
            [i["iou"][newer] for i in scored],
            f"{methods[older]['name']}, mIoU of an image, %",
            f"{methods[newer]['name']}, mIoU of the same image, %",
            f"{methods[newer]['name']} is better on {better} of {len(scored)} images: dots above "
            "the diagonal.",
        )
        sections.append(Section("Image by image", [dots]))
    return Report(f"{labels[0]} and {labels[1]}", lead=lead, sections=sections)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
