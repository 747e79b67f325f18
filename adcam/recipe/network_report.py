"""From what the stages of a recipe left to its report: the masks, and the network they taught."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from adcam.data.dataset import ImageDataset
from adcam.data.png import read_mask
from adcam.errors import AdcamError
from adcam.evaluation.masks_on_disk import score_masks
from adcam.files import write_json
from adcam.recipe.comparison_report import pick_spread
from adcam.report.figures import picture_row
from adcam.report.model import (
    Block,
    Column,
    Confusion,
    Curves,
    Differences,
    Headline,
    KeyValues,
    PerClass,
    PictureGrid,
    Report,
    Scatter,
    Section,
    Series,
    Table,
    Text,
    TimeTable,
    Timing,
)
from adcam.structures import IGNORE_INDEX, ClassSet

_MOST_DOTS = 2000  # of a scatter diagram: more make a page slow and hide each other
_PACKAGES = ("adcam", "python", "torch", "timm", "mmengine", "mmcv", "mmsegmentation", "numpy")


@dataclass(frozen=True, eq=False)
class Scores:
    """What masks on disk scored on one list.

    Attributes:
        split: The list.
        num_images: Its length.
        miou: In percent, the mean over the classes that truth or prediction hold.
        iou_per_class: In percent by mask value; NaN for a class that neither holds.
        pixel_accuracy: In percent.
        ignored_share: Share in [0, 1] of the pixels that have no answer.
        confusion: int64 (num_classes, num_classes + 1), rows the truth.
        per_image: mIoU of each image that shows a class, in percent, by image id.
    """

    split: str
    num_images: int
    miou: float
    iou_per_class: tuple[float, ...]
    pixel_accuracy: float
    ignored_share: float
    confusion: np.ndarray
    per_image: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Teaching:
    """All that a report says of a method, which is the teacher, and the network it taught.

    Attributes:
        data_name: Name of the data set.
        learn_from: Lists whose pseudo masks the network saw.
        teacher: Scores of the pseudo masks by list; image labels were given.
        student: Scores of the network; ``None`` if there is none.
        shown: The images that pictures are taken from.
        teacher_masks: Folder of the pseudo masks.
        student_masks: Folder of the network's masks.
        losses: Steps and losses of the network's training, as logged.
        stages: ``stage.json`` of each finished stage, by name.
        stale: Those of them that were made from something else than there is now.
        config: The recipe's config.
        network: The network's.
    """

    data_name: str
    learn_from: Sequence[str]
    teacher: Mapping[str, Scores]
    student: Scores | None
    shown: ImageDataset
    teacher_masks: Path
    student_masks: Path
    losses: Sequence[tuple[int, float]]
    stages: Mapping[str, Mapping[str, Any]]
    stale: Sequence[str]
    config: Mapping[str, Any]
    network: Mapping[str, Any] | None

    @property
    def is_told_labels(self) -> bool:
        """Whether the network, too, was given each image's labels when it was tested."""
        return self.network is not None and self.network["test"].get("labels") == "given"

    @property
    def rival(self) -> Scores | None:
        """The teacher's scores on the list that the network was scored on."""
        return None if self.student is None else self.teacher.get(self.student.split)


def write_scores(images: ImageDataset, masks_dir: Path, path: Path) -> float:
    """Score the masks of a list and write everything that a report wants to know.

    Args:
        images: With true masks.
        masks_dir: Masks to score, ``<id>.png``.
        path: The JSON file.

    Returns:
        mIoU in percent, to two digits.

    Raises:
        AdcamError: An image has no true mask, or a mask is missing.
    """
    for record in images.records:
        if record.mask_path is None:
            raise AdcamError(f"{images.split!r} cannot be scored: {record.img_id} has no true mask")
        if not (masks_dir / f"{record.img_id}.png").is_file():
            raise AdcamError(f"{masks_dir} lacks the mask of {record.img_id}")
    scored = score_masks(images, masks_dir)
    result, mious = scored.result, scored.mious
    shown = [r.img_id for r in images.records if r.class_ids and not math.isnan(mious[r.img_id])]
    write_json(
        path,
        {
            "split": images.split,
            **result.to_dict(),
            "confusion": result.confusion.tolist(),
            "per_image": {i: round(mious[i], 4) for i in sorted(shown, key=lambda i: mious[i])},
        },
    )
    return round(result.miou, 2)


def load_scores(path: Path) -> Scores:
    """Scores that :func:`write_scores` wrote.

    Raises:
        AdcamError: The file is missing or holds something else.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
        return Scores(
            split=values["split"],
            num_images=values["num_images"],
            miou=_number(values["miou"]),
            iou_per_class=tuple(map(_number, values["iou_per_class"])),
            pixel_accuracy=_number(values["pixel_accuracy"]),
            ignored_share=_number(values["ignored_share"]),
            confusion=np.array(values["confusion"], dtype=np.int64),
            per_image=values["per_image"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdcamError(f"{path}: no scores of this recipe ({error})") from error


def read_losses(folder: Path) -> list[tuple[int, float]]:
    """Steps and losses that mmengine logged below a folder, in the order of the steps."""
    losses = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        for line in path.read_text("utf-8").splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue  # torn by a kill
            if "loss" in values:
                losses[int(values["step"])] = float(values["loss"])
    return sorted(losses.items())


def build_recipe_report(teaching: Teaching, *, title: str, command: str) -> Report:
    """The report of a whole recipe; without a network, that of its masks.

    Args:
        teaching: What the stages left.
        title: Of the page.
        command: What makes everything again.
    """
    finding, caution = describe_lesson(teaching)
    if teaching.stale:
        stages = ", ".join(teaching.stale)
        text = f"Not up to date, since it was skipped: {stages}. It was made from something else."
        caution = [Text([text], tone="caution"), *caution]
    lead: list[Block] = [*caution, scores_table(teaching, command)]
    order = sorted((miou, img_id) for img_id, miou in _shown_scores(teaching).per_image.items())
    if order:
        picks = [order[round(q * (len(order) - 1))][1] for q in (0.8, 0.5, 0.2)]
        caption = "From good to poor: the images at 80, 50 and 20 % of the list, by mIoU."
        lead.append(_grid(teaching, list(dict.fromkeys(picks)), caption, max_side=320))
    times = [
        Timing(name, record["seconds"], record["outputs"].get("images"))
        for name, record in teaching.stages.items()
    ]
    return Report(
        title=title,
        subtitle=_subtitle(teaching),
        summary=[finding],
        headlines=_headlines(teaching),
        lead=lead,
        sections=[
            *_sections(teaching),
            Section("Where the time went", [TimeTable(times, _machines(teaching))]),
        ],
        provenance=_provenance(teaching, command),
    )


def build_lesson_section(teaching: Teaching) -> Section:
    """The network in one section of another report."""
    finding, caution = describe_lesson(teaching)
    blocks: list[Block] = [Text([finding]), *caution, scores_table(teaching)]
    if teaching.student is not None and teaching.rival is not None:
        blocks += gain_blocks(teaching, teaching.student, teaching.rival)
    return Section("A network that learns from the masks", blocks)


def _sections(teaching: Teaching) -> list[Section]:
    class_set = teaching.shown.class_set
    shown = _shown_scores(teaching)
    by_class: list[Block] = [_per_class(teaching)]
    by_class += [
        _confusion(class_set, scores, who)
        for who, scores in _rows(teaching)
        if scores.split == shown.split
    ]
    if len(teaching.losses) > 1:
        steps, losses = zip(*teaching.losses, strict=True)
        series = Series("training loss", steps, losses)
        by_class.insert(1, Curves([series], "step", "loss", "How the network learned."))
    sections = [Section("By class", by_class)]
    if teaching.student is not None and teaching.rival is not None:
        blocks = gain_blocks(teaching, teaching.student, teaching.rival)
        sections.insert(0, Section("Where the network beats its teacher", blocks))
    order = sorted((miou, i) for i, miou in enumerate(shown.per_image.values()))
    ids = list(shown.per_image)
    if order:
        caption = f"The best, the middle and the worst images of {shown.split}, by mIoU."
        picks = [ids[i] for i in pick_spread(order, each=2)]
        sections.append(Section("Best, median, worst", [_grid(teaching, picks, caption)]))
    return sections


def describe_lesson(teaching: Teaching) -> tuple[str, list[Text]]:
    """The finding in one sentence, and a caution where the network does not beat its teacher."""
    lists = " + ".join(teaching.learn_from)
    student, rival = teaching.student, teaching.rival
    if student is None:
        scores = ", ".join(f"{s.miou:.1f} % mIoU on {s.split}" for s in teaching.teacher.values())
        return f"Pseudo masks from image labels: {scores}.", []
    finding = (
        f"A network that learned from the pseudo masks of {lists} reaches {student.miou:.1f} % "
        f"mIoU on {student.split}, where it is "
        + ("told" if teaching.is_told_labels else "not told")
        + " which classes an image shows"
    )
    if rival is None:
        return finding + ".", []
    finding += f"; the method that taught it, which is told, reaches {rival.miou:.1f} % there."
    if student.miou > rival.miou:
        return finding, []
    gap = f"The network stays {rival.miou - student.miou:.1f} points below its teacher here."
    return finding, [Text([gap], tone="caution")]


def scores_table(teaching: Teaching, command: str = "") -> Table:
    """One row for the masks of each list, and one for the network."""
    rows = [
        [
            who,
            scores.split,
            scores.num_images,
            "given" if scores is not teaching.student or teaching.is_told_labels else "none",
            scores.miou,
            scores.pixel_accuracy,
            100 * scores.ignored_share,
        ]
        for who, scores in _rows(teaching)
    ]
    return Table(
        columns=[
            Column("masks of"),
            Column("list"),
            Column("images"),
            Column("image labels"),
            Column("mIoU", bar_max=100.0),
            Column("pixels right, %"),
            Column("no answer, %", hint="share of labelled pixels that are 255 in the masks"),
        ],
        rows=rows,
        caption="Mean over classes of the data set's IoU, %; pixels without an answer count as "
        "wrong; pixels that are 255 in the truth are not scored.",
        command=command,
    )


def _rows(teaching: Teaching) -> list[tuple[str, Scores]]:
    rows = [("pseudo masks", scores) for scores in teaching.teacher.values()]
    return rows if teaching.student is None else [*rows, ("network", teaching.student)]


def _shown_scores(teaching: Teaching) -> Scores:
    return _rows(teaching)[-1][1]


def _headlines(teaching: Teaching) -> list[Headline]:
    headlines = [
        Headline(f"pseudo masks, {scores.split}", scores.miou, "% mIoU", "image labels given")
        for scores in list(teaching.teacher.values())[:2]
    ]
    student, rival = teaching.student, teaching.rival
    if student is not None:
        note = "image labels given" if teaching.is_told_labels else "no labels"
        headlines.append(Headline(f"network, {student.split}", student.miou, "% mIoU", note))
        if rival is not None:
            text = f"{student.miou - rival.miou:+.1f}".replace("-", "−")
            headlines.append(Headline("network over its teacher", text, "points"))
    return headlines


def _subtitle(teaching: Teaching) -> str:
    parts = [
        f"{teaching.data_name}: learned from {' + '.join(teaching.learn_from)}",
        f"classifier {teaching.config['model']['backbone']}",
    ]
    if teaching.network is not None:
        model = teaching.network["model"]
        head = model["decode_head"]
        head = head[-1] if isinstance(head, list) else head
        parts.append(f"network {head['type']} on {model['backbone']['type']}")
    return "; ".join(parts)


def gain_blocks(teaching: Teaching, student: Scores, rival: Scores) -> list[Block]:
    """By class, by image and in pictures: what the network gains over the method that taught it."""
    class_set = teaching.shown.class_set
    gains = sorted(
        (
            (student.iou_per_class[v] - rival.iou_per_class[v], class_set.name_of_value(v))
            for v in (0, *class_set.mask_values)
        ),
        key=lambda gain: -gain[0] if math.isfinite(gain[0]) else math.inf,
    )
    both = [img_id for img_id in student.per_image if img_id in rival.per_image]
    better = sum(student.per_image[i] > rival.per_image[i] for i in both)
    step = -(-len(both) // _MOST_DOTS) or 1
    scatter = Scatter(
        both[::step],
        [rival.per_image[i] for i in both[::step]],
        [student.per_image[i] for i in both[::step]],
        f"pseudo mask, mIoU of an image of {student.split}, %",
        "network, mIoU of the same image, %",
        "" if step == 1 else f"One image of {step} is drawn.",
    )
    by_gain = sorted(both, key=lambda i: student.per_image[i] - rival.per_image[i])
    picks = [*reversed(by_gain[-2:]), *by_gain[:2]] if len(by_gain) >= 4 else by_gain
    blocks: list[Block] = [
        Text(
            [
                f"The network is better on {better:,} of {len(both):,} images: dots "
                "above the diagonal."
            ]
        ),
        Differences(
            [name for _, name in gains],
            [gain for gain, _ in gains],
            f"network − pseudo masks, IoU on {student.split}, points",
        ),
        scatter,
    ]
    if picks:
        caption = "Where it gains most over the pseudo mask, then where it loses most."
        blocks.append(_grid(teaching, picks, caption))
    return blocks


def _per_class(teaching: Teaching) -> PerClass:
    class_set = teaching.shown.class_set
    values = (0, *class_set.mask_values)
    return PerClass(
        [class_set.name_of_value(value) for value in values],
        {
            f"{who}, {scores.split}": [scores.iou_per_class[value] for value in values]
            for who, scores in _rows(teaching)
        },
        caption="The pseudo masks of each list, and the network that learned from them.",
    )


def _confusion(class_set: ClassSet, scores: Scores, who: str) -> Confusion:
    values = [0, *class_set.mask_values]
    return Confusion(
        [class_set.name_of_value(value) for value in values],
        scores.confusion[np.ix_(values, values)].tolist(),
        f"Pixels of the {who} on {scores.split}; those without an answer are left out.",
    )


def _grid(
    teaching: Teaching, img_ids: Sequence[str], caption: str, *, max_side: int = 256
) -> PictureGrid:
    """Photograph, truth, pseudo mask and the network's, with each image's mIoU."""
    images, class_set = teaching.shown, teaching.shown.class_set
    sources = [("pseudo mask", teaching.teacher.get(images.split), teaching.teacher_masks)]
    if teaching.student is not None:
        sources.append(("network", teaching.student, teaching.student_masks))
    rows, shown = [], np.zeros(256, dtype=bool)
    for img_id in img_ids:
        sample = images[images.index_of(img_id)]
        masks, values = {}, {}
        for name, scores, folder in sources:
            if scores is not None:
                masks[name] = read_mask(folder / f"{img_id}.png")
                values[name] = scores.per_image.get(img_id, math.nan)
        for mask in (sample.mask, *masks.values()):
            if mask is not None:
                shown[np.unique(mask)] = True
        rows.append(
            picture_row(
                img_id,
                sample.img,
                score_maps={},
                palette=class_set.palette,
                labels=[class_set.classes[i] for i in sample.class_ids or ()],
                gt=sample.mask,
                masks=masks,
                values=values,
            )
        )
    return PictureGrid(
        rows,
        caption,
        [
            (class_set.name_of_value(v), class_set.palette[v])
            for v in class_set.mask_values
            if shown[v]
        ],
        heat_scale=False,
        value_name="mIoU, %",
        max_side=max_side,
        shows_ignored=bool(shown[IGNORE_INDEX]),
    )


def _provenance(teaching: Teaching, command: str) -> list[KeyValues]:
    hashes = {
        f"{name}/{file}": digest
        for name, record in teaching.stages.items()
        for file, digest in record["outputs"].get("files", {}).items()
    }
    if "generate" in teaching.stages and "segment" in teaching.stages:
        hashes["pseudo masks"] = teaching.stages["segment"]["inputs"]["masks"]
    seeds = {"classifier": teaching.config["train"].get("seed")}
    texts = {"recipe": _as_text(teaching.config)}
    if teaching.network is not None:
        seeds["network"] = teaching.network["train"].get("seed")
        texts["network"] = _as_text(teaching.network)
    return [
        KeyValues({"everything": command}, "Commands", verbatim=True),
        KeyValues({name: _over_stages(teaching, name) for name in _PACKAGES}, "Versions"),
        KeyValues(seeds, "Seeds"),
        KeyValues(hashes, "Files (SHA-256, first 16 digits)", verbatim=True),
        KeyValues(texts, "Configs", verbatim=True),
    ]


def _machines(teaching: Teaching) -> str:
    return "; ".join(dict.fromkeys(record["machine"] for record in teaching.stages.values()))


def _over_stages(teaching: Teaching, package: str) -> str:
    """The version that made everything, or the one of each stage where they differ."""
    found = {name: r["versions"].get(package) for name, r in teaching.stages.items()}
    if len(set(found.values())) == 1:
        return next(iter(found.values())) or "–"
    return ", ".join(f"{version or '–'} ({name})" for name, version in found.items())


def _as_text(config: Mapping[str, Any]) -> str:
    # As JSON reads it back: a report made later from the file has the same bytes.
    text: str = Config(json.loads(json.dumps(config))).pretty_text
    return text


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
