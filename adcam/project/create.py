"""A project is written: its config, its lists, its labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adcam.data.labels import write_labels_csv
from adcam.data.open_images import write_id_list
from adcam.data.stratify import split_stratified
from adcam.files import write_text
from adcam.project.config_text import Start, format_config
from adcam.project.project import LISTS, Project
from adcam.project.survey import Survey


def create_project(
    project: Project, survey: Survey, *, start: Start, val_share: float, seed: int
) -> dict[str, list[str]]:
    """Write the config, the labels and the lists of a project; files of these names are replaced.

    ``val_share`` of the photographs, in (0, 1), are validated on. The seed is that of the lists and
    of training.

    Returns:
        The image ids of ``train`` and ``val``.

    Raises:
        OSError: A file cannot be written.
    """
    learnable = {img_id: survey.labels[img_id] for img_id in survey.learnable}
    train, val = split_stratified(learnable, val_share, seed)
    lists = project.folder / LISTS
    write_labels_csv(lists / "labels.csv", survey.labels, survey.classes)
    for name, img_ids in (("train", train), ("val", val), ("labelled", list(survey.labels))):
        write_id_list(lists / f"{name}.txt", img_ids)
    images = _place(survey.photographs.folder, project.folder)
    text = format_config(images, survey.counts, start, num_train=len(train), seed=seed)
    write_text(project.config, text)
    return {"train": train, "val": val}


def _place(images: Path, folder: Path) -> str:
    """The folder of the images as the config names it.

    It is relative where both lie in one folder, so that they can be moved together.
    """
    images, folder = images.resolve(), folder.resolve()
    if images.is_relative_to(folder):
        return images.relative_to(folder).as_posix()
    if images.is_relative_to(folder.parent):
        return f"../{images.relative_to(folder.parent).as_posix()}"
    return images.as_posix()


def describe_table(
    survey: Survey, parts: dict[str, list[str]]
) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """The classes with their numbers in masks, and how many photographs show each, also in parts.

    Returns:
        The header and the rows of a table.
    """
    columns = [survey.learnable, *parts.values()]
    rows = [
        (name, str(number), *(str(sum(name in survey.labels[i] for i in c)) for c in columns))
        for number, name in enumerate(survey.classes, start=1)
    ]
    nothing = [sum(not survey.labels[i] for i in column) for column in columns]
    if any(nothing):
        rows.append(("none of them", "", *map(str, nothing)))
    rows.append(("all", "", *(str(len(column)) for column in columns)))
    return ("class", "number in masks", "photographs", *parts), rows
