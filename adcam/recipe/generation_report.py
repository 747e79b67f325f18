"""The report of `adcam generate`: what the masks look like, with ground truth or without."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adcam.data.images import read_image
from adcam.data.png import read_mask, voc_palette
from adcam.errors import AdcamError
from adcam.evaluation.masks import MaskCounts, MaskScore
from adcam.files import file_of_id, open_json, read_json, refuse_links, write_bytes, write_json
from adcam.labeling.manifest import Entry, read_manifest
from adcam.labeling.output_folder import CONFIG_NAME, MANIFEST_NAME, MAPS_DIR, MASK_DIR, REPORT_DIR
from adcam.labeling.shown import SHOWN_DIR, read_small_maps
from adcam.recipe.blocks import confusion_matrix, legend, per_class
from adcam.report.explorer import (
    EXPLORER_DIR,
    THUMBNAIL_SIDE,
    ExploredImage,
    ExploredMethod,
    ExplorerWriter,
    list_files,
    read_index,
    shrink_image,
    shrink_mask,
)
from adcam.report.figures import (
    can_draw,
    display_palette,
    draw_legend,
    encode_jpeg,
    picture_row,
)
from adcam.report.model import (
    Block,
    Column,
    Explorer,
    Headline,
    KeyValues,
    PictureGrid,
    PictureRow,
    Report,
    Section,
    Table,
    Text,
    TimeTable,
    Timing,
)
from adcam.report.render import write_report
from adcam.structures import ClassSet

NUM_SHOWN = 100
"""The number of images that a report shows at most, evenly spread."""

SHEET_NAME = "contact_sheet.jpg"

_MADE_NAME = "run.json"
_NUM_ROWS = 6  # images with photograph, map and mask that the page shows by itself
_SHEET_COLUMNS = 8
_SHEET_CLASSES = 20  # that the legend names
_NUM_FAILURES = 20


@dataclass
class _Summary:
    """What a manifest says of all images together."""

    num_masks: int = 0
    without_class: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    num_failed: int = 0
    images_of_class: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Entry) -> None:
        """Count an image."""
        if entry["status"] != "ok":
            self.num_failed += 1
            if len(self.failures) < _NUM_FAILURES:
                self.failures.append((entry["id"], entry.get("error", "")))
            return
        self.num_masks += 1
        self.without_class += not entry["classes"]
        self.images_of_class.update(entry["classes"])


def write_generation_report(
    folder: str | Path,
    *,
    command: str = "",
    seconds: Mapping[str, float] | None = None,
    num_shown: int = NUM_SHOWN,
    gt_dir: str | Path | None = None,
) -> Path:
    """Write ``report/report.html`` and ``report/contact_sheet.jpg`` into an output folder.

    Images of which the run kept maps (:mod:`adcam.labeling.shown`) are shown; where it kept none,
    as many others, evenly spread, with the maps of ``maps/`` if there are any. The manifest is read
    line by line, and one image at a time is in memory.

    Args:
        folder: An output folder of ``adcam generate``.
        command: The command line that made it; ``""`` takes what an earlier report said.
        seconds: Seconds of each step, as :class:`adcam.labeling.run.RunResult` has them; ``None``
            likewise.
        num_shown: The number of images to show at most.
        gt_dir: A folder of ground truth masks ``<id>.png``: every mask that has one is scored.

    Returns:
        The path of the page.

    Raises:
        AdcamError: The folder holds no finished run, a file in it is damaged, a folder in it is a
            symbolic link, or a ground truth mask is of another size or holds a value that is no
            class.
        OSError: The folder cannot be written to.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file() or not (folder / MANIFEST_NAME).is_file():
        raise AdcamError(
            f"{folder} holds no finished run of `adcam generate`: {CONFIG_NAME} and "
            f"{MANIFEST_NAME} are not both there"
        )
    config = read_json(folder / CONFIG_NAME, what="the configuration of an output folder")
    try:
        labeler = dict(config["labeler"])
        classes, values = tuple(labeler["classes"]), tuple(labeler["mask_values"])
        has_crf = labeler["crf"] != "none"
        method = ExploredMethod(labeler["method"], rule=labeler["rule"], crf=has_crf)
    except (KeyError, TypeError) as error:
        raise AdcamError(f"{folder / CONFIG_NAME} describes no masks ({error})") from error
    class_set = ClassSet(folder.resolve().name, classes, values, tuple(voc_palette()))
    summary = _Summary()
    for _, _, entry in read_manifest(folder / MANIFEST_NAME):
        summary.add(entry)
    out = refuse_links(folder, folder / REPORT_DIR / "x").parent
    made = _remember(out, command, seconds)
    truth = None if gt_dir is None else _score(folder, Path(gt_dir), class_set)
    if truth is not None:
        method = replace(method, miou=truth.score.result.miou)
    entries = _choose(folder, summary, num_shown)
    rows = _write_images(folder, out, entries, method, class_set, truth)
    index = read_index(out / EXPLORER_DIR)
    blocks: list[Block] = []
    if index is not None and index["images"]:
        _write_contact_sheet(out, index)
        num = len(index["images"])
        text = (
            f"All {num} images."
            if num == summary.num_masks
            else (f"{num} of {summary.num_masks} images, evenly spread.")
        )
        blocks.append(Explorer(out / EXPLORER_DIR, index, text))
    report = _build_report(summary, class_set, config, rows, blocks, truth=truth, made=made)
    return write_report(report, out)


@dataclass(frozen=True)
class _Truth:
    """Ground truth masks, and what the masks of a run score on them."""

    gt_dir: Path
    score: MaskScore
    images: int


def _score(folder: Path, gt_dir: Path, class_set: ClassSet) -> _Truth:
    """Score every mask of which there is a ground truth."""
    counts, images = MaskCounts(class_set.num_classes), 0
    for _, _, entry in read_manifest(folder / MANIFEST_NAME):
        path = file_of_id(gt_dir, entry["id"], ".png")
        if entry["status"] != "ok" or not path.is_file():
            continue
        mask = read_mask(file_of_id(folder / MASK_DIR, entry["id"], ".png"))
        try:
            counts.update(entry["id"], mask, read_mask(path))
        except ValueError as error:
            raise AdcamError(f"{path} does not fit the mask of {entry['id']!r}: {error}") from error
        images += 1
    if not images:
        raise AdcamError(f"{gt_dir} holds no <id>.png of any image of {folder}")
    return _Truth(gt_dir, counts.compute(), images)


def _remember(
    out: Path, command: str, seconds: Mapping[str, float] | None
) -> tuple[str, Mapping[str, float]]:
    """Command and seconds of the run, which are kept for the next report."""
    path = out / _MADE_NAME
    if command or seconds is not None:
        write_json(path, {"command": command, "seconds": dict(seconds or {})})
    elif path.is_file():
        with open_json(path, "not how masks were made") as found:
            return str(found["command"]), {k: float(v) for k, v in found["seconds"].items()}
    return command, seconds or {}


def _choose(folder: Path, summary: _Summary, num_shown: int) -> list[Entry]:
    """The manifest's entries of the images to show."""
    kept = {
        path.relative_to(folder / REPORT_DIR / SHOWN_DIR).with_suffix("").as_posix()
        for path in (folder / REPORT_DIR / SHOWN_DIR).rglob("*.json")
    }
    step = max(-(-summary.num_masks // max(num_shown, 1)), 1)
    chosen: list[Entry] = []
    spread: list[Entry] = []
    number = 0
    for _, _, entry in read_manifest(folder / MANIFEST_NAME):
        if entry["status"] != "ok":
            continue
        if entry["id"] in kept and len(chosen) < num_shown:
            chosen.append(entry)
        if number % step == 0:
            spread.append(entry)
        number += 1
    return chosen or spread


def _write_images(
    folder: Path,
    out: Path,
    entries: Sequence[Entry],
    method: ExploredMethod,
    class_set: ClassSet,
    truth: _Truth | None,
) -> list[PictureRow]:
    """Write the explorer, and return the rows of the images that the page shows by itself."""
    writer = ExplorerWriter(out / EXPLORER_DIR, [method], class_set)
    palette, rows = display_palette(class_set), []
    every = -(-len(entries) // _NUM_ROWS) or 1
    root = Path(os.path.realpath(folder))
    for position, entry in enumerate(entries):
        image = _read_image(folder, root, entry, method.name, class_set)
        if image is None:
            continue
        image = image if truth is None else _add_truth(image, method.name, truth)
        writer.add(image)
        if position % every == 0:
            rows.append(_build_row(image, entry, method.name, palette))
    writer.finish()
    return rows


def _read_image(
    folder: Path, root: Path, entry: Entry, name: str, class_set: ClassSet
) -> ExploredImage | None:
    """One image with its mask and, where they were kept, its maps; ``None`` if it was moved."""
    img_id = entry["id"]
    img_path, mask_path = root / str(entry["image"]), file_of_id(folder / MASK_DIR, img_id, ".png")
    if not img_path.is_file() or not mask_path.is_file():
        return None
    values = [class_set.value_of[name] for name in entry["classes"]]
    shown = folder / REPORT_DIR / SHOWN_DIR
    places = [file_of_id(shown, img_id, ".npz"), file_of_id(folder / MAPS_DIR, img_id, ".npz")]
    maps = next((read_small_maps(path, values) for path in places if path.is_file()), None)
    return ExploredImage(
        img_id,
        shrink_image(read_image(img_path)),
        values,
        maps={} if maps is None else {name: maps},
        masks={name: shrink_mask(read_mask(mask_path))},
        confidence=min(_read_probabilities(shown, img_id).values(), default=None),
    )


def _add_truth(image: ExploredImage, name: str, truth: _Truth) -> ExploredImage:
    path = file_of_id(truth.gt_dir, image.img_id, ".png")
    if not path.is_file():
        return image
    mious = {name: truth.score.mious[image.img_id]}
    return replace(image, truth=shrink_mask(read_mask(path)), mious=mious)


def _read_probabilities(shown: Path, img_id: str) -> dict[str, float]:
    path = file_of_id(shown, img_id, ".json")
    if not path.is_file():
        return {}
    with open_json(path, "not what a run keeps of an image") as found:
        return {str(name): float(value) for name, value in found["probabilities"].items()}


def _build_row(
    image: ExploredImage, entry: Entry, name: str, palette: Sequence[tuple[int, int, int]]
) -> PictureRow:
    height, width = image.rgb.shape[:2]
    maps = image.maps.get(name)
    heat = {}
    if maps is not None and len(maps):
        highest = Image.fromarray(maps.max(axis=0))
        resized = highest.resize((width, height), Image.Resampling.BILINEAR)
        heat = {"map": np.asarray(resized, np.float32) / 255}
    masks = {"mask": image.masks[name]}
    labels = entry["classes"]
    return picture_row(
        image.img_id, image.rgb, score_maps=heat, palette=palette, labels=labels, masks=masks
    )


def _write_contact_sheet(out: Path, index: Mapping[str, Any]) -> None:
    """Lay out the small pictures of all shown images in one, under a legend of their classes."""
    names = [name for name in list_files(index) if name.endswith(".jpg")]
    side, num_rows = THUMBNAIL_SIDE, -(-len(names) // _SHEET_COLUMNS)
    gap = 4
    columns = min(len(names), _SHEET_COLUMNS)
    size = (num_rows * (side + gap) + gap, columns * (side + gap) + gap)
    sheet = Image.new("RGB", (size[1], size[0]), (128, 128, 128))
    for number, name in enumerate(names):
        row, column = divmod(number, _SHEET_COLUMNS)
        with Image.open(out / EXPLORER_DIR / name) as picture:
            left = gap + column * (side + gap) + (side - picture.width) // 2
            top = gap + row * (side + gap) + (side - picture.height) // 2
            sheet.paste(picture, (left, top))
    rgb = np.concatenate([_draw_sheet_legend(index, sheet.width), np.asarray(sheet)])
    jpeg = encode_jpeg(rgb, max_side=max(rgb.shape), quality=85)
    write_bytes(out / SHEET_NAME, jpeg)


def _draw_sheet_legend(index: Mapping[str, Any], width: int) -> np.ndarray:
    """Colours and names of the classes that the images show, the most frequent ones first."""
    images = Counter(value for image in index["images"] for value in image["classes"])
    class_of = {item["value"]: item for item in index["classes"]}
    shown = [class_of[value] for value, _ in images.most_common(_SHEET_CLASSES)]
    entries = [
        (item["name"] if can_draw(item["name"]) else f"mask value {item['value']}", item["color"])
        for item in shown
    ]
    return draw_legend(entries, width=width, rest=len(images) - len(shown))


def _build_report(
    summary: _Summary,
    class_set: ClassSet,
    config: Mapping[str, Any],
    rows: Sequence[PictureRow],
    explorer: Sequence[Block],
    *,
    truth: _Truth | None,
    made: tuple[str, Mapping[str, float]],
) -> Report:
    labeler, (command, seconds) = config["labeler"], made
    finding = "There is no ground truth here: look at the masks before you trust them."
    if truth is not None:
        miou = truth.score.result.miou
        finding = f"The masks reach {miou:.1f} % mIoU on {truth.images} images with ground truth."
    most = max(summary.images_of_class.values(), default=1)
    by_class = Table(
        [Column("class"), Column("mask value"), Column("images", bar_max=float(most))],
        [[name, v, summary.images_of_class[name]] for name, v in class_set.value_of.items()],
        "Images by class, as labelled or predicted.",
    )
    sections = [*_few_images(rows, class_set), Section("Classes", [by_class])]
    if truth is not None:
        sections += _score_sections(class_set, truth, labeler["method"])
    if summary.failures:
        table = Table([Column("image"), Column("why it has no mask")], list(summary.failures))
        sections.append(Section("Failed", [Text([_count_failures(summary)]), table]))
    if seconds:
        steps = [Timing(n, s) for n, s in seconds.items() if n != "total"]
        caption = f"Summed over threads and processes; {seconds['total']:.1f} s by the clock."
        sections.append(Section("Where the time went", [TimeTable(steps, caption)]))
    flat = {name: str(value) for name, value in labeler.items() if name != "classes"}
    return Report(
        title=f"Masks in {class_set.name}",
        subtitle=f"{labeler['method']}, background rule {labeler['rule']}"
        + (", CRF" if labeler["crf"] != "none" else ""),
        summary=[finding],
        headlines=_headlines(summary, truth),
        lead=explorer,
        sections=sections,
        provenance=[
            *([KeyValues({"masks": command}, "Commands", verbatim=True)] if command else []),
            KeyValues({"adcam": str(config["adcam"])}, "Versions"),
            KeyValues(flat, "Settings", verbatim=True),
        ],
    )


def _headlines(summary: _Summary, truth: _Truth | None) -> list[Headline]:
    headlines = [Headline("masks", summary.num_masks)]
    if truth is not None:
        note = f"{truth.images} images with ground truth"
        headlines.insert(0, Headline("mean IoU", truth.score.result.miou, "%", note))
    if summary.num_failed:
        headlines.append(Headline("images without a mask", summary.num_failed))
    if summary.without_class:
        note = "their masks are all background"
        headlines.append(Headline("images without a class", summary.without_class, note=note))
    return headlines


def _few_images(rows: Sequence[PictureRow], class_set: ClassSet) -> list[Section]:
    """Pictures that the page shows by itself: rows with a map, where most have one."""
    columns = [[picture.column for picture in row.pictures] for row in rows]
    longest = max(columns, key=len, default=[])
    alike = [row for row, found in zip(rows, columns, strict=True) if found == longest]
    text = "Photograph, score map and mask."
    grid = PictureGrid(alike, text, legend(class_set), value_name="", max_side=320)
    return [Section("A few images", [grid])] if alike else []


def _score_sections(class_set: ClassSet, truth: _Truth, name: str) -> list[Section]:
    result = truth.score.result
    text = "Pixels of the masks; ignored ones are left out."
    return [
        Section("By class", [per_class(class_set, {name: result.iou_per_class})]),
        Section("Confusion matrix", [confusion_matrix(class_set, result.confusion, text)]),
    ]


def _count_failures(summary: _Summary) -> str:
    shown = len(summary.failures)
    more = f"; the first {shown} are listed" if summary.num_failed > shown else ""
    return f"{summary.num_failed} images have no mask{more}. {MANIFEST_NAME} names all of them."
