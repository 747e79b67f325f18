"""Blocks that the reports of all recipes are built from: each exists once, here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from adcam.files import to_plain
from adcam.recipe.stages import Recipe, Values, find_stale
from adcam.report.figures import display_palette
from adcam.report.model import (
    RGB,
    Block,
    Cell,
    Column,
    Confusion,
    KeyValues,
    PerClass,
    PictureRow,
    Section,
    Text,
    TimeTable,
    Timing,
)
from adcam.structures import ClassSet

PACKAGES = ("adcam", "python", "torch", "timm", "mmengine", "mmcv", "mmsegmentation", "numpy")
"""The packages whose versions a report names."""

METHOD_COLUMNS = (Column("method"), Column("scales"), Column("CRF"))
"""The first columns of tables of methods; :func:`method_cells` fills them."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Run:
    """What a report says of the run itself, whatever it was for.

    Attributes:
        title: The title of the page.
        command: The command line that makes everything again.
        stages: The ``stage.json`` of each finished stage, by name.
        stale: Stages that were skipped although they were not up to date, with the reason.
        configs: The settings, by what they are of.
        seeds: The seed of each training.
    """

    title: str
    command: str
    stages: Mapping[str, Values]
    stale: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: Mapping[str, Cell] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        configs: Mapping[str, Mapping[str, Any]],
        seeds: Mapping[str, Cell] | None = None,
    ) -> Run:
        """What the finished stages of a recipe say."""
        title, command = recipe.title, recipe.command
        return cls(title, command, recipe.finished(), find_stale(recipe), configs, seeds or {})


def describe_ranking(measure: str, scores: Mapping[str, float]) -> str:
    """One sentence with the scores from the best to the worst.

    Example:
        >>> describe_ranking("mIoU", {"CAM": 40.21, "AD-CAM": 70.0})
        'mIoU: AD-CAM 70.0, CAM 40.2.'
    """
    order = sorted(scores, key=lambda name: -scores[name])
    return f"{measure}: " + ", ".join(f"{name} {scores[name]:.1f}" for name in order) + "."


def method_cells(name: str, scales: Sequence[int], flip: bool, crf: str) -> list[Cell]:
    """What a table says of a method under :data:`METHOD_COLUMNS`."""
    views = "/".join(map(str, scales)) + (" flip" if flip else "")
    return [name, views, "–" if crf == "none" else crf]


def caution(*paragraphs: str) -> list[Text]:
    """Paragraphs that a reader must not overlook; none gives no block."""
    return [Text(list(paragraphs), tone="caution")] if paragraphs else []


def stale_caution(run: Run) -> list[Text]:
    """A caution that names the stages that are not up to date."""
    if not run.stale:
        return []
    reasons = "; ".join(f"{name} ({reason})" for name, reason in run.stale.items())
    return caution(f"Not up to date, since it was skipped: {', '.join(run.stale)}. {reasons}.")


def per_class(
    class_set: ClassSet, iou: Mapping[str, Sequence[float]], description: str = ""
) -> PerClass:
    """The IoU of background and every class.

    Args:
        class_set: The classes.
        iou: From the name of a method to its IoU in percent by mask value.
        description: What is shown.
    """
    values = (0, *class_set.mask_values)
    return PerClass(
        [class_set.name_of_value(value) for value in values],
        {name: [by_value[value] for value in values] for name, by_value in iou.items()},
        caption=description,
    )


def confusion_matrix(class_set: ClassSet, counts: np.ndarray, description: str) -> Confusion:
    """Which class is taken for which, in pixels.

    Args:
        class_set: The classes.
        counts: Pixels by mask value, rows the ground truth; more columns are left out.
        description: What is counted.
    """
    values = [0, *class_set.mask_values]
    names = [class_set.name_of_value(value) for value in values]
    return Confusion(names, counts[np.ix_(values, values)].tolist(), description)


def legend(class_set: ClassSet) -> list[tuple[str, RGB]]:
    """Name and colour of every class in the pictures of a report."""
    palette = display_palette(class_set)
    return [(class_set.name_of_value(value), palette[value]) for value in class_set.mask_values]


def pick_spread(items: Sequence[T], each: int = 3) -> list[T]:
    """The best, the middle and the worst of items that are sorted from the worst to the best.

    Args:
        items: The items, worst first.
        each: How many to take of each kind.

    Returns:
        The items taken, best first; all of them if there are no more than ``3 * each``.
    """
    order = list(reversed(items))
    if len(order) <= 3 * each:
        return order
    middle = len(order) // 2 - each // 2
    return order[:each] + order[middle : middle + each] + order[-each:]


def pick_leads(rows: Sequence[PictureRow], most: int = 4) -> Sequence[PictureRow]:
    """A few rows, evenly spread, for the first screen."""
    return rows[:: max(len(rows) // most, 1)][:most]


def time_section(run: Run, more: Sequence[Block] = ()) -> Section:
    """How long each stage took, how much memory it held, and on which machine.

    Args:
        run: The run.
        more: Blocks about the steps of a stage.
    """
    timings = [
        Timing(
            name,
            record["seconds"],
            record["outputs"].get("images"),
            peak_bytes=record.get("peak_memory", {}).get("host"),
            gpu_bytes=record.get("peak_memory", {}).get("gpu"),
        )
        for name, record in run.stages.items()
    ]
    machines = "; ".join(dict.fromkeys(record["machine"] for record in run.stages.values()))
    return Section("Where the time went", [TimeTable(timings, machines), *more])


def provenance(run: Run) -> list[KeyValues]:
    """Command, versions, seeds, files and settings: what it takes to make everything again."""
    from mmengine.config import Config  # which the report of `adcam generate` does without

    files: dict[str, Cell] = {
        f"{name}/{file}": digest
        for name, record in run.stages.items()
        for file, digest in record["outputs"]["files"].items()
    }
    commands: dict[str, Cell] = {"everything": run.command}
    commands |= {f"{name} again": f"{run.command} --redo {name}" for name in run.stages}
    # As they would stand in a config; the same after a detour over JSON.
    configs = {name: Config(to_plain(values)).pretty_text for name, values in run.configs.items()}
    return [
        KeyValues(commands, "Commands", verbatim=True),
        KeyValues({name: _version(run.stages, name) for name in PACKAGES}, "Versions"),
        KeyValues(run.seeds, "Seeds"),
        KeyValues(files, "Files (SHA-256, first 16 digits)", verbatim=True),
        KeyValues(configs, "Configs", verbatim=True),
    ]


def _version(records: Mapping[str, Values], package: str) -> str:
    """The version that made everything, or the one of each stage where they differ."""
    found = {name: record["versions"].get(package) for name, record in records.items()}
    if len(set(found.values())) == 1:
        return next(iter(found.values())) or "–"
    return ", ".join(f"{version or '–'} ({name})" for name, version in found.items())
