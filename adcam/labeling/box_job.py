"""What becomes of class maps in `adcam boxes`: boxes, and a score map if asked for.

Apart from :mod:`adcam.labeling.boxes` so that a process which makes boxes loads no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adcam.boxes import compute_boxes
from adcam.data.images import turn_as_stored
from adcam.data.score_maps import SCORE_MAP_HW, write_score_map
from adcam.errors import AdcamError
from adcam.files import file_of_id, hash_file, refuse_links
from adcam.labeling.mask_maker import resize_maps
from adcam.labeling.steps import Mapped, Task, describe_classes
from adcam.structures import Boxes, ClassMaps, ClassSet


@dataclass(frozen=True)
class BoxOptions:
    """How maps become boxes, and what is written.

    Attributes:
        threshold: Share of a map's maximum, in [0, 1), above which pixels belong to the object.
            Larger gives smaller boxes.
        rule: As for :func:`adcam.boxes.compute_boxes`.
        chosen_on: The split that the threshold was chosen on.
        image_root: The folder that file names in the results are relative to; ``None``, and images
            in archives or behind URLs, give names alone.
        score_map_dir: The folder that gets the map of each image in wsolevaluation's format;
            ``None`` for none. An image must then have one class.
    """

    threshold: float
    rule: str = "wsol"
    chosen_on: str = "given"
    image_root: Path | None = None
    score_map_dir: Path | None = None


@dataclass(frozen=True)
class BoxJob:
    """Class maps become boxes and, if asked for, a score map.

    Attributes:
        options: How maps become boxes.
        class_set: The classes; they need no mask values.
        label_thresholds: The probability from which each class counts as found.
    """

    step: ClassVar[str] = "boxes"
    device: ClassVar[str] = "cpu"

    options: BoxOptions
    class_set: ClassSet
    label_thresholds: tuple[float, ...]

    def needs_maps(self, task: Task) -> bool:
        """Boxes are made of the maps."""
        return True

    def find_files(self, task: Task) -> Mapping[str, Path]:
        """Find where the score map of an image belongs."""
        if (folder := self.options.score_map_dir) is None:
            return {}
        return {"score_map": refuse_links(folder, file_of_id(folder, self._name(task), ".npy"))}

    def make(self, image: Mapped) -> Boxes:
        """Compute the boxes of an image, in its pixels.

        Raises:
            AdcamError: A score map is asked for, and the image has not one class.
        """
        if self.options.score_map_dir is not None and (n := len(image.maps.class_ids)) != 1:
            raise AdcamError(f"a score map is of one class, this image has {n}")
        options = self.options
        boxes = compute_boxes(
            image.maps, rule=options.rule, threshold=options.threshold, chosen_on=options.chosen_on
        )
        return _to_image(boxes, (image.img.shape[0], image.img.shape[1]), image.ori_hw)

    def make_batch(self, images: Sequence[Mapped]) -> list[Boxes]:
        """Compute the boxes of several images, one after the other."""
        return [self.make(image) for image in images]

    def write(self, image: Mapped, result: Boxes) -> dict[str, Any]:
        """Write the score map, and return the entry of the manifest, which holds the boxes."""
        name, files, score_map = self._name(image.task), self.find_files(image.task), None
        if (folder := self.options.score_map_dir) is not None:
            upright, task = make_score_map(image.maps), image.task
            # wsolevaluation opens images without the turn that EXIF asks for, and so do its boxes.
            stored = upright if task.packed else turn_as_stored(upright, task.img_path)
            write_score_map(folder, name, stored)
            score_map = hash_file(files["score_map"])
        ids = list(result.class_ids)
        return {
            "status": "ok",
            **describe_classes(image, self.class_set.classes, self.label_thresholds),
            "ori_hw": list(image.ori_hw),
            "file_name": name,
            "boxes": [[i, *box] for i, box in zip(ids, result.boxes.tolist(), strict=True)],
            "scores": image.scores[ids].tolist(),
            "score_map": score_map,
        }

    def _name(self, task: Task) -> str:
        path, root = task.img_path, self.options.image_root
        if root is None or task.packed is not None:  # no file of its own below the root
            return path.name
        return path.relative_to(root).as_posix()


def make_score_map(maps: ClassMaps) -> np.ndarray:
    """Return the only map at the size that wsolevaluation scores, min-max normalised."""
    score_map = resize_maps(maps.score_maps, SCORE_MAP_HW)[0].astype(np.float64)
    score_map -= score_map.min()
    # Constant maps become zeros, as in wsolevaluation.
    return score_map / (score_map.max() or 1.0)


def _to_image(boxes: Boxes, map_hw: tuple[int, int], ori_hw: tuple[int, int]) -> Boxes:
    """Turn pixels of the maps into pixels of the image, which may be larger."""
    if map_hw == ori_hw:
        return boxes
    scale = np.array([ori_hw[1] / map_hw[1], ori_hw[0] / map_hw[0]] * 2)
    scaled = np.rint(boxes.boxes * scale).astype(np.int64)
    return Boxes(boxes.class_ids, scaled, boxes.rule, boxes.threshold, boxes.chosen_on)
