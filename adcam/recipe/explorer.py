"""The explorer of a report: written by a stage that has the maps, or from masks on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adcam.data.dataset import ImageDataset
from adcam.data.png import read_mask
from adcam.evaluation.compare import MethodComparison
from adcam.evaluation.compare_boxes import BoxComparison
from adcam.evaluation.pictures import MAX_IMAGES, SmallImage
from adcam.labeling.output_folder import MAPS_DIR, MASK_DIR
from adcam.labeling.shown import read_small_maps
from adcam.recipe.scores import Scores
from adcam.report.explorer import (
    EXPLORER_DIR,
    ExploredImage,
    ExploredMethod,
    ExplorerWriter,
    PatchAttention,
    read_index,
    shrink_image,
    shrink_mask,
)
from adcam.report.model import Explorer, Section
from adcam.structures import ClassSet, Sample

TITLE = "Explore the images"

MOST_BOX_CLASSES = 254
"""The most classes that the page can tell apart: each has a mask value."""

HOW_BOXES = (
    "Maps of the true class with the true boxes, white, and the box of each method by TS-CAM's "
    "rule at its own threshold, blue; numbers are the IoU of the box. When a threshold moves, the "
    "page shows the region above it; the box stays."
)
HOW_EXACT = (
    "Masks as stored, and their IoU, are those of the table: made of the maps at full size, shown "
    "at 320 pixels at most. When a threshold moves, the page computes mask and IoU from 8-bit maps "
    "of at most 160 pixels, so that the IoU may differ by a few tenths."
)


def save_explorer(
    folder: Path,
    found: MethodComparison,
    class_set: ClassSet,
    attention: Mapping[str, PatchAttention] | None = None,
) -> None:
    """Write ``folder/explorer`` with all images that a comparison kept.

    Args:
        folder: The folder of the stage.
        found: A comparison that kept its pictures.
        class_set: The classes of the images.
        attention: What the patches of some images attend to, by image id.
    """
    methods = [
        ExploredMethod(
            result.spec.name,
            result.result.miou,
            str(result.rule),
            crf=result.spec.crf != "none",
        )
        for result in found.results
    ]
    writer = ExplorerWriter(folder / EXPLORER_DIR, methods, class_set)
    for picture in found.pictures:
        mious = {r.spec.name: r.image_mious[picture.img_id] for r in found.results}
        patches = (attention or {}).get(picture.img_id)
        writer.add(replace(_explore(picture, class_set, mious), attention=patches))
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


def save_box_explorer(folder: Path, found: BoxComparison, class_set: ClassSet) -> None:
    """Write ``folder/explorer`` with the maps and boxes of all images that a comparison kept.

    Args:
        folder: The folder of the stage.
        found: A comparison by boxes that kept its pictures.
        class_set: The classes of the images; of more than :data:`MOST_BOX_CLASSES` nothing is
            written.
    """
    if len(class_set.classes) > MOST_BOX_CLASSES:
        return
    # Boxes need no mask values, but the page tells classes by them.
    class_set = replace(class_set, mask_values=tuple(range(1, len(class_set.classes) + 1)))
    methods = [
        ExploredMethod(r.spec.name, 100 * r.boxes.max_box_acc_v2, f"constant:{r.threshold:g}")
        for r in found.results
    ]
    writer = ExplorerWriter(folder / EXPLORER_DIR, methods, class_set)
    for picture in found.pictures:
        outcomes = {r.spec.name: r.outcomes[picture.index] for r in found.results}
        ious = {name: 100 * outcome.iou for name, outcome in outcomes.items()}
        image = _explore(picture, class_set, ious)
        boxes = {name: outcome.box for name, outcome in outcomes.items()}
        true = () if picture.boxes is None else picture.boxes.tolist()
        writer.add(replace(image, truth=None, true_boxes=true, found_boxes=boxes))
    writer.finish()


@dataclass(frozen=True, eq=False)
class MaskFolder:
    """Masks on disk, and the maps beside them if there are any, as one panel of an explorer.

    Attributes:
        method: What the panel says of them.
        folder: The folder that holds ``masks/<id>.png`` and perhaps ``maps/<id>.npz``.
        scores: What the masks scored; ``None`` without ground truth.
    """

    method: ExploredMethod
    folder: Path
    scores: Scores | None = None


def write_explorer(
    folder: Path, images: ImageDataset, makers: Sequence[MaskFolder]
) -> Section | None:
    """Write an explorer of masks that are on disk, image by image.

    Args:
        folder: The folder that gets the folder ``explorer``.
        images: The images, of which :data:`MAX_IMAGES` are shown at most, evenly spread; those of
            which no maker has a mask are left out.
        makers: Whose masks are shown, in the order of the panels.

    Returns:
        The section of a report that shows it; ``None`` without any image.

    Raises:
        AdcamError: An image, a mask or maps cannot be read.
    """
    class_set, out = images.class_set, folder / EXPLORER_DIR
    writer = ExplorerWriter(out, [maker.method for maker in makers], class_set)
    for sample in images[:: -(-len(images) // MAX_IMAGES) or 1]:
        if any((maker.folder / MASK_DIR / f"{sample.img_id}.png").is_file() for maker in makers):
            writer.add(_explore_files(sample, makers, class_set))
    writer.finish()
    return load_explorer(folder, images.split)


def _explore_files(
    sample: Sample, makers: Sequence[MaskFolder], class_set: ClassSet
) -> ExploredImage:
    values = [class_set.mask_values[i] for i in sorted(sample.class_ids or ())]
    maps, masks, mious = {}, {}, {}
    for maker in makers:
        name, path = maker.method.name, maker.folder / MASK_DIR / f"{sample.img_id}.png"
        if path.is_file():
            masks[name] = shrink_mask(read_mask(path))
        path = maker.folder / MAPS_DIR / f"{sample.img_id}.npz"
        if path.is_file() and (found := read_small_maps(path, values)) is not None:
            maps[name] = found
        if maker.scores is not None and sample.img_id in maker.scores.per_image:
            mious[name] = maker.scores.per_image[sample.img_id]
    truth = None if sample.mask is None else shrink_mask(sample.mask)
    return ExploredImage(sample.img_id, shrink_image(sample.img), values, truth, maps, masks, mious)


def load_explorer(folder: Path, split: str, how: str = HOW_EXACT) -> Section | None:
    """The section of a report that shows what :func:`save_explorer` wrote.

    Args:
        folder: The folder of the stage.
        split: The split that the images are of.
        how: What the numbers are.

    Returns:
        The section; ``None`` where there is no explorer, or none of its images.

    Raises:
        AdcamError: The index is damaged.
    """
    index = read_index(folder / EXPLORER_DIR)
    if index is None or not index["images"]:
        return None
    caption = f"The reported images of {split}, all or evenly spread. {how}"
    return Section(TITLE, [Explorer(folder / EXPLORER_DIR, index, caption)])
