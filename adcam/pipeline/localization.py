"""Localisation: score maps on disk against boxes or masks, and boxes of images as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adcam.boxes import compute_boxes, wsol
from adcam.data.dataset import ImageDataset
from adcam.data.files import write_text_atomic
from adcam.data.images import ImageError, fit_pixels
from adcam.data.score_maps import SCORE_MAP_HW, find_score_map, read_score_map, write_score_map
from adcam.data.wsol import WsolMetadata, read_wsol_mask, read_wsol_metadata
from adcam.metrics.localization import MaxBoxAccuracy, PixelAveragePrecision
from adcam.pipeline.infer import compute_scores
from adcam.pipeline.labeler import PseudoLabeler
from adcam.pipeline.masking import resize_maps
from adcam.pipeline.progress import track
from adcam.structures import Boxes, ClassMaps, ClassSet

FORMATS = (".csv", ".json")
"""Suffixes of box files: a table, or COCO's instances."""

_SHOWN = 5


def evaluate_boxes(
    maps_dir: str | Path,
    metadata_dir: str | Path,
    *,
    choose_maps_dir: str | Path | None = None,
    choose_metadata_dir: str | Path | None = None,
    multi_contour: bool = True,
    step: float = 0.001,
    progress: bool = False,
) -> dict[str, Any]:
    """Score maps in wsolevaluation's format against true boxes, by its metric.

    Args:
        maps_dir: Maps ``<image id>.npy`` (:mod:`adcam.data.score_maps`).
        metadata_dir: Metadata folder of the split (:mod:`adcam.data.wsol`).
        choose_maps_dir: Maps of another split that thresholds are chosen on. ``None`` chooses them
            on the images scored, which the result calls ``"oracle"``.
        choose_metadata_dir: Its metadata folder; given exactly with ``choose_maps_dir``.
        multi_contour: As for :class:`adcam.metrics.localization.MaxBoxAccuracy`.
        step: As there.
        progress: Show progress on standard error.

    Returns:
        As :meth:`adcam.metrics.localization.BoxAccuracyResult.to_dict`, and ``split``.
        JSON-serialisable.

    Raises:
        ValueError: A map is missing or no map, the metadata are malformed or have no boxes, or one
            of the two ``choose`` folders is given alone.
    """
    if (choose_maps_dir is None) != (choose_metadata_dir is None):
        raise ValueError("to choose thresholds on another split, give both its maps and metadata")
    scored = _count_boxes(maps_dir, metadata_dir, multi_contour, step, progress)
    if choose_maps_dir is None or choose_metadata_dir is None:
        result = scored.compute()
    else:
        chosen = _count_boxes(choose_maps_dir, choose_metadata_dir, multi_contour, step, progress)
        result = scored.compute(
            chosen.compute().best_thresholds, chosen_on=_split_name(choose_metadata_dir)
        )
    return {"split": _split_name(metadata_dir), **result.to_dict()}


def evaluate_pixels(
    maps_dir: str | Path,
    metadata_dir: str | Path,
    mask_root: str | Path,
    *,
    step: float = 0.001,
    progress: bool = False,
) -> dict[str, Any]:
    """Score maps in wsolevaluation's format against true masks: PxAP, which needs no threshold.

    Args:
        maps_dir: As for :func:`evaluate_boxes`.
        metadata_dir: As there, with masks (OpenImages).
        mask_root: Folder that the paths of the masks begin in.
        step: As for :class:`adcam.metrics.localization.PixelAveragePrecision`.
        progress: As for :func:`evaluate_boxes`.

    Returns:
        ``split``, ``px_ap`` in percent, ``num_images``, ``policy``. JSON-serialisable.

    Raises:
        ValueError: A map or mask is missing or of no use, or the metadata name no masks.
    """
    metadata = read_wsol_metadata(metadata_dir)
    if not metadata.masks:
        raise ValueError(f"{metadata.folder}: localization.txt names no masks; leave out mask_root")
    metric = PixelAveragePrecision(step)
    for image_id, score_map in _read_maps(maps_dir, metadata, progress):
        masks, ignore = metadata.masks[image_id]
        hw = (score_map.shape[0], score_map.shape[1])
        metric.update(score_map, read_wsol_mask(mask_root, masks, ignore, hw=hw))
    return {
        "split": _split_name(metadata_dir),
        "px_ap": metric.compute(),
        "num_images": len(metadata.image_ids),
        "policy": {"step": step},
    }


def _count_boxes(
    maps_dir: str | Path,
    metadata_dir: str | Path,
    multi_contour: bool,
    step: float,
    progress: bool,
) -> MaxBoxAccuracy:
    metadata = read_wsol_metadata(metadata_dir)
    if not metadata.boxes or not metadata.image_sizes:
        raise ValueError(
            f"{metadata.folder}: boxes need localization.txt with five columns and "
            "image_sizes.txt; masks are scored with mask_root"
        )
    metric = MaxBoxAccuracy(multi_contour=multi_contour, step=step)
    for image_id, score_map in _read_maps(maps_dir, metadata, progress):
        boxes = wsol.scale_boxes(
            np.array(metadata.boxes[image_id]),
            metadata.image_sizes[image_id],
            (score_map.shape[0], score_map.shape[1]),
        )
        metric.update(score_map, boxes, class_id=metadata.class_labels[image_id])
    return metric


def _read_maps(
    maps_dir: str | Path,
    metadata: WsolMetadata,
    progress: bool,
) -> Iterator[tuple[str, np.ndarray]]:
    paths = {image_id: find_score_map(maps_dir, image_id) for image_id in metadata.image_ids}
    if missing := [image_id for image_id, path in paths.items() if not path.is_file()]:
        raise ValueError(
            f"{maps_dir} lacks the score maps of {len(missing)} of {len(paths)} images, such as "
            f"{paths[missing[0]]}"
        )
    items = paths.items()
    for image_id, path in track(items, "evaluate", len(items)) if progress else items:
        yield image_id, read_score_map(path)


def _split_name(metadata_dir: str | Path) -> str:
    """``"CUB/val"`` of ``metadata/CUB/val``."""
    folder = Path(metadata_dir).resolve()
    return f"{folder.parent.name}/{folder.name}"


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
        ValueError: Images have no labels, or an argument is not legal.
    """
    if labels not in ("given", "predicted"):
        raise ValueError(f"labels must be 'given' or 'predicted', got {labels!r}")
    if labels == "given" and (missing := [r.img_id for r in images.records if r.class_ids is None]):
        raise ValueError(
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
        ValueError: The suffix is another one.
        OSError: The file cannot be written.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: boxes are written as {' or '.join(FORMATS)}")
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
        write_text_atomic(path, text.getvalue())
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
    write_text_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


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
