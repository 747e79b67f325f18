"""Boxes for many images, by the same steps as masks: resumable, in parallel, as one file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adcam.data.dataset import ImageDataset
from adcam.errors import AdcamError
from adcam.files import LazyList, write_csv, write_json
from adcam.labeling.box_job import BoxJob, BoxOptions
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.manifest import Entry
from adcam.labeling.output_folder import OutputFolder
from adcam.labeling.run import Run, RunOptions, RunResult
from adcam.structures import ClassSet
from adcam.version import __version__

FORMATS = (".csv", ".json")
"""Suffixes of box files: a table, or COCO's instances."""


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
