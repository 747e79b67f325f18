"""Boxes of images as files: maps of a labeler, boxes around them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from adcam.boxes import compute_boxes
from adcam.data.dataset import ImageDataset
from adcam.data.images import ImageError, fit_pixels
from adcam.data.score_maps import SCORE_MAP_HW, write_score_map
from adcam.errors import AdcamError
from adcam.files import write_text
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.map_maker import compute_scores
from adcam.labeling.mask_maker import resize_maps
from adcam.structures import Boxes, ClassMaps, ClassSet

FORMATS = (".csv", ".json")
"""Suffixes of box files: a table, or COCO's instances."""

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class FoundBoxes:
    """The boxes of one image.

    Attributes:
        img_id: As in the data set.
        file_name: Path of the image below the folder given, suffix included.
        ori_hw: Its size.
        boxes: In its pixels.
        scores: (n,) probability of each box's class.
        error: Why there are no boxes, ``None`` if all went well.
    """

    img_id: str
    file_name: str
    ori_hw: tuple[int, int]
    boxes: Boxes
    scores: np.ndarray
    error: str | None = None


def find_boxes(
    images: ImageDataset,
    labeler: PseudoLabeler,
    *,
    rule: str = "wsol",
    threshold: float,
    chosen_on: str = "given",
    labels: str = "given",
    image_root: str | Path | None = None,
    score_map_dir: str | Path | None = None,
) -> Iterator[FoundBoxes]:
    """Boxes of images through the maps of a labeler; one bad image does not stop the others.

    Args:
        images: The images, with labels unless these are predicted.
        labeler: Classifier and method.
        rule: As for :func:`adcam.boxes.compute_boxes`.
        threshold: Share of a map's maximum above which pixels belong to the object.
        chosen_on: The split that the threshold was chosen on.
        labels: ``"given"`` or ``"predicted"``.
        image_root: Folder that ``file_name`` is relative to; ``None`` gives names alone.
        score_map_dir: Where to write the map of each image in wsolevaluation's format; an image
            must then have one class.

    Yields:
        The boxes of each image, in order.

    Raises:
        AdcamError: Images have no labels, or an argument is not legal.
    """
    if labels not in ("given", "predicted"):
        raise AdcamError(f"labels must be 'given' or 'predicted', got {labels!r}")
    if labels == "given" and (missing := [r.img_id for r in images.records if r.class_ids is None]):
        raise AdcamError(
            f"{len(missing)} of {len(images)} images have no labels, such as "
            f"{', '.join(missing[:_SHOWN])}; give them, or have them predicted"
        )
    nothing = Boxes((), np.zeros((0, 4), dtype=np.int64), rule, threshold, chosen_on)
    for index, record in enumerate(images.records):
        path = record.img_path
        name = path.name if image_root is None else path.relative_to(image_root).as_posix()
        failed = partial(FoundBoxes, record.img_id, name, (0, 0), nothing, np.zeros(0))
        try:
            img = images.load_image(index)
        except ImageError as error:
            yield failed(str(error))
            continue
        # The labeler's steps but the last: there may be no mask values, as in ILSVRC.
        small = fit_pixels(img, labeler.options.max_pixels)
        passes = labeler.run_network(small)
        probabilities = compute_scores(passes)
        if labels == "given":
            names = [images.class_set.classes[i] for i in record.class_ids or ()]
            class_ids = labeler.find_class_ids(names)
        else:
            class_ids = labeler.predict_class_ids(probabilities)
        maps = labeler.compute_maps(passes, class_ids, (small.shape[0], small.shape[1]))
        if score_map_dir is not None:
            if (num_classes := len(class_ids)) != 1:
                yield failed(f"a score map is of one class, this image has {num_classes}")
                continue
            write_score_map(score_map_dir, name, _to_score_map(maps))
        ori_hw = (img.shape[0], img.shape[1])
        found = compute_boxes(maps, rule=rule, threshold=threshold, chosen_on=chosen_on)
        boxes = _to_image(found, (small.shape[0], small.shape[1]), ori_hw)
        scores = probabilities[list(boxes.class_ids)]
        yield FoundBoxes(record.img_id, name, ori_hw, boxes, scores)


def write_boxes(path: str | Path, found: Sequence[FoundBoxes], class_set: ClassSet) -> None:
    """Write boxes as a table or as COCO's instances, atomically.

    A ``.csv`` has ``image_id,class,x0,y0,x1,y1,score``. A ``.json`` has COCO's ``images``,
    ``categories`` (ids from 1) and ``annotations`` with ``bbox`` = x, y, width, height, and in
    ``info`` the rule, the threshold and the split it was chosen on.

    Raises:
        AdcamError: The suffix is another one.
        OSError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise AdcamError(f"{path}: boxes are written as {' or '.join(FORMATS)}")
    rows = [
        (image, class_id, box, score)
        for image in found
        for class_id, box, score in zip(
            image.boxes.class_ids, image.boxes.boxes.tolist(), image.scores.tolist(), strict=True
        )
    ]
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("image_id", "class", "x0", "y0", "x1", "y1", "score"))
        for image, class_id, box, score in rows:
            writer.writerow((image.img_id, class_set.classes[class_id], *box, f"{score:.4f}"))
        write_text(path, text.getvalue())
        return
    number_of = {image.img_id: number for number, image in enumerate(found, start=1)}
    made = found[0].boxes if found else None
    content = {
        "info": {}
        if made is None
        else {"rule": made.rule, "threshold": made.threshold, "chosen_on": made.chosen_on},
        "images": [
            {
                "id": number_of[image.img_id],
                "file_name": image.file_name,
                "height": image.ori_hw[0],
                "width": image.ori_hw[1],
            }
            for image in found
            if image.error is None
        ],
        "categories": [
            {"id": class_id, "name": name} for class_id, name in enumerate(class_set.classes, 1)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": number_of[image.img_id],
                "category_id": class_id + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "score": round(score, 4),
            }
            for number, (image, class_id, (x0, y0, x1, y1), score) in enumerate(rows, start=1)
        ],
    }
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _to_score_map(maps: ClassMaps) -> np.ndarray:
    """The map of the only class at the size that wsolevaluation scores, min-max normalised."""
    score_map = resize_maps(maps.score_maps, SCORE_MAP_HW)[0].astype(np.float64)
    score_map -= score_map.min()
    # Constant maps become zeros, as in wsolevaluation.
    return score_map / (score_map.max() or 1.0)


def _to_image(boxes: Boxes, map_hw: tuple[int, int], ori_hw: tuple[int, int]) -> Boxes:
    """From pixels of the maps to pixels of the image, which may be larger."""
    if map_hw == ori_hw:
        return boxes
    scale = np.array([ori_hw[1] / map_hw[1], ori_hw[0] / map_hw[0]] * 2)
    scaled = np.rint(boxes.boxes * scale).astype(np.int64)
    return Boxes(boxes.class_ids, scaled, boxes.rule, boxes.threshold, boxes.chosen_on)
