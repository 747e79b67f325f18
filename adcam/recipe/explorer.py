"""The explorer of a comparison: written by the stage that has the maps, shown by the report."""

from __future__ import annotations

from pathlib import Path

from adcam.evaluation.compare import MethodComparison
from adcam.evaluation.pictures import SmallImage
from adcam.report.explorer import (
    EXPLORER_DIR,
    ExploredImage,
    ExploredMethod,
    ExplorerWriter,
    read_index,
)
from adcam.report.model import Explorer, Section
from adcam.structures import ClassSet

TITLE = "Explore the images"

HOW_EXACT = (
    "Masks as stored, and their IoU, are those of the table: made of the maps at full size, shown "
    "at 320 pixels at most. When a threshold moves, the page computes mask and IoU from 8-bit maps "
    "of at most 160 pixels, so that the IoU may differ by a few tenths."
)


def save_explorer(folder: Path, found: MethodComparison, class_set: ClassSet) -> None:
    """Write ``folder/explorer`` with all images that a comparison kept.

    Args:
        folder: The folder of the stage.
        found: A comparison that kept its pictures.
        class_set: The classes of the images.
    """
    methods = [
        ExploredMethod(
            result.spec.name,
            result.result.miou,
            f"constant:{result.threshold:g}",
            crf=result.spec.crf != "none",
        )
        for result in found.results
    ]
    writer = ExplorerWriter(folder / EXPLORER_DIR, methods, class_set)
    for picture in found.pictures:
        mious = {r.spec.name: r.image_mious[picture.img_id] for r in found.results}
        writer.add(_explore(picture, class_set, mious))
    writer.finish()


def _explore(picture: SmallImage, class_set: ClassSet, mious: dict[str, float]) -> ExploredImage:
    return ExploredImage(
        picture.img_id,
        picture.img,
        [class_set.mask_values[i] for i in sorted(picture.class_ids)],
        picture.gt,
        picture.maps,
        picture.masks,
        mious,
        picture.confidence,
    )


def load_explorer(folder: Path, split: str) -> Section | None:
    """The section of a report that shows what :func:`save_explorer` wrote.

    Args:
        folder: The folder of the stage.
        split: The split that the images are of.

    Returns:
        The section; ``None`` where there is no explorer, or none of its images.

    Raises:
        AdcamError: The index is damaged.
    """
    index = read_index(folder / EXPLORER_DIR)
    if index is None or not index["images"]:
        return None
    caption = f"The reported images of {split}, all or evenly spread. {HOW_EXACT}"
    return Section(TITLE, [Explorer(folder / EXPLORER_DIR, index, caption)])
