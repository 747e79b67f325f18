"""Boxes for many images, by the same steps as masks: resumable, in parallel, as one file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adcam.boxes import compute_boxes
from adcam.data.dataset import ImageDataset
from adcam.data.score_maps import SCORE_MAP_HW, write_score_map
from adcam.errors import AdcamError
from adcam.files import LazyList, file_of_id, hash_file, refuse_links, write_csv, write_json
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.manifest import Entry
from adcam.labeling.mask_maker import resize_maps
from adcam.labeling.output_folder import OutputFolder
from adcam.labeling.run import Run, RunOptions, RunResult
from adcam.labeling.steps import Mapped, Task, describe_classes
from adcam.structures import Boxes, ClassMaps, ClassSet
from adcam.version import __version__

FORMATS = (".csv", ".json")
"""Suffixes of box files: a table, or COCO's instances."""


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
class BoxesResult:
    """What a run did, and how many boxes the file holds."""

    run: RunResult
    num_boxes: int


def find_boxes(
    images: ImageDataset,
    labeler: PseudoLabeler,
    out_file: str | Path,
    options: BoxOptions,
    *,
    run_options: RunOptions | None = None,
    overwrite: bool = False,
) -> BoxesResult:
    """Find boxes in images through the maps of a labeler and write them as one file.

    What is known of each image is kept in the folder ``<out_file>.run``, as
    :func:`adcam.labeling.generate.generate` keeps it: run again, this resumes where it stopped and
    tries failed images again. The folder may be removed once the file is there.

    Args:
        images: The images; class ids are matched to the labeler's classes by name.
        labeler: The classifier and the method.
        out_file: The file to write: ``.csv``, a table, or ``.json``, COCO's instances.
        options: How maps become boxes.
        run_options: Labels, processes and batch size.
        overwrite: Whether to start over.

    Returns:
        Counts, failures and seconds, and the number of boxes.

    Raises:
        AdcamError: The suffix is another one, images have no labels, an argument is not legal, the
            folder holds another run, or another process works in it.
        OSError: A file cannot be written.
    """
    path = Path(out_file)
    if path.suffix not in FORMATS:
        raise AdcamError(f"{path}: boxes are written as {' or '.join(FORMATS)}")
    run_options = run_options or RunOptions()
    if not run_options.shard.is_whole:
        raise AdcamError("boxes are written as one file: their images cannot be divided")
    run = Run("boxes", images, labeler, run_options)
    job = BoxJob(options, labeler.class_set, labeler.label_thresholds)
    run.check(job)
    config = {
        "adcam": __version__,
        "labels": run.describe_labels(),
        "labeler": labeler.describe_maps(),
        "boxes": {
            "rule": options.rule,
            "threshold": options.threshold,
            "chosen_on": options.chosen_on,
            "score_maps": options.score_map_dir is not None,
        },
        "batch_size": run.batch_size,
    }
    with OutputFolder(path.with_name(f"{path.name}.run"), config, overwrite=overwrite) as folder:
        result = run.into(folder, job, config)
        # Read from the manifest whenever they are needed: there may be a million.
        entries = LazyList(lambda: (folder[record.img_id] for record in images.records))
        write_boxes(path, entries, labeler.class_set, options)
        return BoxesResult(result, sum(len(entry.get("boxes", ())) for entry in entries))


@dataclass(frozen=True)
class BoxJob:
    """Class maps become boxes and, if asked for, a score map.

    Attributes:
        options: How maps become boxes.
        class_set: The classes; they need no mask values.
        label_thresholds: The probability from which each class counts as found.
    """

    options: BoxOptions
    class_set: ClassSet
    label_thresholds: tuple[float, ...]

    @property
    def step(self) -> str:
        """Everything from maps to boxes."""
        return "boxes"

    @property
    def device(self) -> str:
        """Boxes are computed on the CPU."""
        return "cpu"

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
            write_score_map(folder, name, _to_score_map(image.maps))
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


def write_boxes(
    path: str | Path,
    entries: Iterable[Entry],
    class_set: ClassSet,
    options: BoxOptions,
) -> None:
    """Write boxes as a table or as COCO's instances, atomically.

    A ``.csv`` has ``image_id,class,x0,y0,x1,y1,score``. A ``.json`` has COCO's ``images``,
    ``categories`` (ids from 1) and ``annotations`` with ``bbox`` = x, y, width, height, and in
    ``info`` the rule, the threshold and the split it was chosen on.

    Args:
        path: The file to write.
        entries: The manifest entry of each image; the iterable is gone through several times.
            COCO's image ids are the places in this order, from 1.
        class_set: The classes.
        options: How the boxes were made.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    numbered = LazyList(
        lambda: ((n, e) for n, e in enumerate(entries, start=1) if e["status"] != "failed")
    )
    if path.suffix == ".csv":
        columns = ("image_id", "class", "x0", "y0", "x1", "y1", "score")
        rows = (
            (entry["id"], class_set.classes[class_id], *box, f"{score:.4f}")
            for _, entry in numbered
            for (class_id, *box), score in zip(entry["boxes"], entry["scores"], strict=True)
        )
        write_csv(path, columns, rows)
        return
    write_json(path, _to_coco(numbered, class_set, options), indent=1)


def _to_coco(
    numbered: Iterable[tuple[int, Entry]], class_set: ClassSet, options: BoxOptions
) -> dict[str, Any]:
    """Return COCO's instances: images by their number, categories, annotations."""
    boxes = LazyList(
        lambda: (
            (number, box, score)
            for number, entry in numbered
            for box, score in zip(entry["boxes"], entry["scores"], strict=True)
        )
    )
    return {
        "info": {
            "rule": options.rule,
            "threshold": options.threshold,
            "chosen_on": options.chosen_on,
        },
        "images": LazyList(
            lambda: (
                {
                    "id": number,
                    "file_name": entry["file_name"],
                    "height": entry["ori_hw"][0],
                    "width": entry["ori_hw"][1],
                }
                for number, entry in numbered
            )
        ),
        "categories": [
            {"id": class_id, "name": name} for class_id, name in enumerate(class_set.classes, 1)
        ],
        "annotations": LazyList(
            lambda: (
                {
                    "id": box_number,
                    "image_id": number,
                    "category_id": class_id + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "score": round(score, 4),
                }
                for box_number, (number, (class_id, x0, y0, x1, y1), score) in enumerate(boxes, 1)
            )
        ),
    }


def _to_score_map(maps: ClassMaps) -> np.ndarray:
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
