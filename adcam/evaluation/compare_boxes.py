"""Networks and methods side by side by their boxes: ``adcam compare`` for ``task="localization"``.

Each row is scored by both protocols of :mod:`adcam.metrics.localization` from the same maps, at
thresholds that were chosen on one split and are reported on another. docs/localization.md defines
each column.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adcam.boxes import ts_cam, wsol
from adcam.cams import Method
from adcam.data.dataset import ImageDataset
from adcam.data.score_maps import (
    SCORE_MAP_HW,
    find_score_map,
    read_score_map,
    write_score_map,
)
from adcam.errors import AdcamError
from adcam.evaluation.compare import Progress
from adcam.labeling.map_maker import (
    compute_class_maps,
    compute_scores,
    find_layer_sets,
    run_network,
)
from adcam.metrics.localization import (
    ORACLE,
    BoxAccuracyResult,
    LocalizationAccuracy,
    LocalizationResult,
    MaxBoxAccuracy,
    compute_iou,
)
from adcam.models.classifier_file import ClassifierFile
from adcam.report.text import slug
from adcam.settings import MethodSpec, TestViews
from adcam.structures import ClassMaps, ClassSet, Sample, TokenMaps

TOP_K = (1, 5)
"""Guesses of the class that Top-k Loc allows."""

GIVEN = "given"
"""Says that a threshold was given in the config."""

_LOC_IOU = 0.5  # of MaxBoxAcc, whose threshold GT-known and Top-k Loc take


@dataclass(frozen=True)
class BoxOutcome:
    """What became of one image.

    Attributes:
        img_id: As in the data set.
        iou: Best IoU of the box of the true class with a true box.
    """

    img_id: str
    iou: float


@dataclass(frozen=True, eq=False)
class BoxRowResult:
    """What a row scored on the reporting split.

    Attributes:
        row: The row.
        chosen_on: Split that thresholds were chosen on; :data:`adcam.metrics.localization.ORACLE`
            if it is the reporting one.
        boxes: MaxBoxAccV2's accuracies at the threshold chosen for each IoU.
        boxes_oracle: The same at the thresholds best for the reporting split, as the protocol
            publishes it.
        largest: MaxBoxAcc, one box of the largest contour, at the chosen threshold.
        largest_oracle: MaxBoxAcc as the protocol publishes it.
        threshold: Of GT-known and Top-k Loc: that of ``largest``, or one given in the config.
        threshold_from: Where that one is from: ``chosen_on``, or :data:`GIVEN`.
        localization: GT-known Loc, Top-k Loc and error types by TS-CAM's rule at ``threshold``.
        outcomes: One an image, in the order of the data set.
    """

    row: MethodSpec
    chosen_on: str
    boxes: BoxAccuracyResult
    boxes_oracle: BoxAccuracyResult
    largest: BoxAccuracyResult
    largest_oracle: BoxAccuracyResult
    threshold: float
    threshold_from: str
    localization: LocalizationResult
    outcomes: tuple[BoxOutcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; without the outcomes and the oracle's curves, which ``boxes`` has."""
        oracle = {
            name: {key: result.to_dict()[key] for key in ("box_acc", "best_thresholds")}
            for name, result in (("boxes", self.boxes_oracle), ("largest", self.largest_oracle))
        }
        return {
            "row": asdict(self.row),
            "chosen_on": self.chosen_on,
            "boxes": self.boxes.to_dict(),
            "largest": self.largest.to_dict(),
            ORACLE: oracle,
            "threshold": self.threshold,
            "threshold_from": self.threshold_from,
            "localization": self.localization.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class SampleMaps:
    """What a row says of one image, with class ids of the data set.

    Attributes:
        guesses: Classes by falling score, at most the last of :data:`TOP_K`, none of stored maps. A
            class that the network knows and the data do not is the number of the data's classes
            or more.
        class_maps: Score maps of the true class and of the guesses, of one size: stored ones their
            own, others :data:`adcam.data.score_maps.SCORE_MAP_HW`.
        true_class: The class of the image.
    """

    guesses: tuple[int, ...]
    class_maps: Mapping[int, np.ndarray]
    true_class: int

    @property
    def score_map(self) -> np.ndarray:
        """The map of the true class, float64 (H, W) in [0, 1]."""
        return self.class_maps[self.true_class]

    @property
    def map_hw(self) -> tuple[int, int]:
        """Size of the maps."""
        height, width = self.score_map.shape
        return height, width


def compare_boxes(
    classifiers: Mapping[str, ClassifierFile],
    rows: Sequence[MethodSpec],
    choose_set: ImageDataset,
    report_set: ImageDataset,
    *,
    threshold: float | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    score_map_dir: Path | None = None,
    image_root: Path | None = None,
) -> list[BoxRowResult]:
    """Score every row.

    Rows of the same network and views share its passes. Each split is gone through once for all
    rows, the choosing one first.

    Args:
        classifiers: Networks by the name that rows give; classes are matched by name.
        rows: What to compare.
        choose_set: Images of one class with boxes, on which thresholds are chosen.
        report_set: Such images on which they are reported. With the same images in both, every
            threshold is the oracle's.
        threshold: Of GT-known and Top-k Loc, such as :data:`adcam.boxes.ts_cam.CUB_THRESHOLD`;
            ``None`` takes the one at which the largest contour has IoU 0.5 most often on
            ``choose_set``.
        device: Where to compute; the CPU by default.
        dtype: ``float32`` or, for autocast, ``bfloat16``/``float16``.
        progress: Wraps the loop over images: ``progress(iterable, description, total)``.
        score_map_dir: Where to write each row's maps of the true class in wsolevaluation's format,
            ``<row>/<path of the image>.npy``.
        image_root: Folder that the paths of images are relative to where maps are read or written.

    Returns:
        One result per row, same order.

    Raises:
        AdcamError: An image has no box or not exactly one class, the splits overlap but differ, a
            network or a stored map is not there, a network lacks a class, or a threshold is outside
            [0, 1).
    """
    if image_root is None and (score_map_dir or any(row.score_maps for row in rows)):
        raise AdcamError("score maps on disk need image_root")
    if threshold is not None and not 0 <= threshold < 1:
        raise AdcamError(f"threshold must lie in [0, 1), got {threshold}")
    folders = {row.name: slug(row.name, fallback="row") for row in rows}
    if score_map_dir is not None and len(set(folders.values())) < len(rows):
        raise AdcamError(f"two rows would write into one folder of score maps: {folders}")
    for images in (choose_set, report_set):
        _check_boxes(images)
    same = _is_same(choose_set, report_set)
    chosen_on = ORACLE if same else choose_set.split
    options: dict[str, Any] = {
        "device": device or torch.device("cpu"),
        "dtype": dtype,
        "progress": progress,
        "image_root": image_root,
    }

    def write(sample: Sample, name: str, maps: SampleMaps) -> None:
        if score_map_dir is not None:
            image_id = _image_id(sample, image_root)
            write_score_map(score_map_dir / folders[name], image_id, maps.score_map)

    chosen = {row.name: _BoxCounts() for row in rows}
    for sample, found in iterate_maps(classifiers, rows, choose_set, num_guesses=0, **options):
        for name, maps in found.items():
            chosen[name].update(sample, maps)
            if not same:
                write(sample, name, maps)
    thresholds = {
        name: counts.largest.compute().best_thresholds[_LOC_IOU] if threshold is None else threshold
        for name, counts in chosen.items()
    }
    reported = {row.name: _BoxCounts() for row in rows}
    located = {row.name: LocalizationAccuracy(TOP_K) for row in rows}
    outcomes: dict[str, list[BoxOutcome]] = {row.name: [] for row in rows}
    for sample, found in iterate_maps(
        classifiers, rows, report_set, num_guesses=TOP_K[-1], **options
    ):
        for name, maps in found.items():
            reported[name].update(sample, maps)
            outcomes[name].append(_locate(sample, maps, thresholds[name], located[name]))
            write(sample, name, maps)
    results = []
    for row in rows:
        counts, choosing = reported[row.name], chosen[row.name]
        results.append(
            BoxRowResult(
                row,
                chosen_on,
                _at_thresholds_of(choosing.every, counts.every, chosen_on),
                counts.every.compute(),
                _at_thresholds_of(choosing.largest, counts.largest, chosen_on),
                counts.largest.compute(),
                thresholds[row.name],
                chosen_on if threshold is None else GIVEN,
                _hide_guesses(located[row.name].compute(), hide=bool(row.score_maps)),
                tuple(outcomes[row.name]),
            )
        )
    return results


class _BoxCounts:
    """MaxBoxAccV2 and MaxBoxAcc of one row on one split."""

    def __init__(self) -> None:
        self.every = MaxBoxAccuracy()
        self.largest = MaxBoxAccuracy((_LOC_IOU,), multi_contour=False)

    def update(self, sample: Sample, maps: SampleMaps) -> None:
        boxes = wsol.scale_boxes(_boxes_of(sample), sample.ori_hw, maps.map_hw)
        for metric in (self.every, self.largest):
            metric.update(maps.score_map, boxes, class_id=maps.true_class)


def _at_thresholds_of(
    choosing: MaxBoxAccuracy, reporting: MaxBoxAccuracy, chosen_on: str
) -> BoxAccuracyResult:
    if chosen_on == ORACLE:
        return reporting.compute()
    return reporting.compute(choosing.compute().best_thresholds, chosen_on=chosen_on)


def _locate(
    sample: Sample, maps: SampleMaps, threshold: float, metric: LocalizationAccuracy
) -> BoxOutcome:
    """Count an image by TS-CAM's rules."""
    boxes = ts_cam.scale_boxes(_boxes_of(sample), sample.ori_hw, maps.map_hw)
    box_of = {
        class_id: ts_cam.compute_box(score_map, threshold=threshold)
        for class_id, score_map in maps.class_maps.items()
    }
    known = box_of[maps.true_class]
    guesses = maps.guesses or (maps.true_class,)  # what comes of these is hidden in the end
    metric.update(
        class_id=maps.true_class,
        pred_class_ids=guesses,
        pred_boxes=np.stack([box_of[class_id] for class_id in guesses]),
        gt_known_box=known,
        boxes=boxes,
    )
    iou = float(compute_iou(known[None], boxes).max())
    return BoxOutcome(sample.img_id, iou)


def _hide_guesses(result: LocalizationResult, *, hide: bool) -> LocalizationResult:
    """NaN in the place of all that guesses of the class decide."""
    if not hide:
        return result
    names = ("top_loc", "top_cls", "errors")

    def blank(scores: Mapping[str, Any]) -> dict[str, Any]:
        return {name: dict.fromkeys(scores[name], math.nan) for name in names}

    per_class = {i: {**scores, **blank(scores)} for i, scores in result.per_class.items()}
    return replace(result, **blank(vars(result)), per_class=per_class)


def iterate_maps(
    classifiers: Mapping[str, ClassifierFile],
    rows: Sequence[MethodSpec],
    images: ImageDataset,
    *,
    num_guesses: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    image_root: Path | None = None,
) -> Iterator[tuple[Sample, dict[str, SampleMaps]]]:
    """Every image with what every row says of it.

    Args:
        classifiers: As for :func:`compare_boxes`.
        rows: What to compare.
        images: Images of one class.
        num_guesses: Of how many guesses to make maps beside that of the true class.
        device: Where to compute.
        dtype: As for :func:`compare_boxes`.
        progress: As there.
        image_root: As there, for rows of stored maps.

    Yields:
        An image, and by name of the row its maps.

    Raises:
        AdcamError: A network is not there, or does not know a class of the data.
    """
    computed = [row for row in rows if row.method]
    network_ids = {
        name: _match_classes(name, classifiers, images.class_set)
        for name in sorted({row.network for row in computed})
    }
    # Guesses are alternatives, not classes of one image: none competes with another.
    methods = {row.name: row.build(rival_weight=0.0) for row in computed}
    groups: dict[tuple[str, TestViews], list[MethodSpec]] = defaultdict(list)
    for row in computed:
        groups[row.network, row.views].append(row)
    for name in network_ids:
        classifiers[name].network.to(device).eval()
    samples = images if progress is None else progress(images, f"boxes {images.split}", len(images))
    for sample in samples:
        found = {
            row.name: _read_stored(row.score_maps, sample, image_root)
            for row in rows
            if row.score_maps
        }
        for (name, views), group in groups.items():
            network = classifiers[name].network
            layer_sets = sorted(
                {layers for row in group for layers in find_layer_sets(methods[row.name], network)}
            )
            passes = run_network(network, sample.img, views, layer_sets, device=device, dtype=dtype)
            for row in group:
                found[row.name] = _make_maps(
                    passes, sample, methods[row.name], network_ids[name], num_guesses
                )
        yield sample, {row.name: found[row.name] for row in rows}


def _read_stored(folder: str, sample: Sample, image_root: Path | None) -> SampleMaps:
    path = find_score_map(Path(folder).expanduser(), _image_id(sample, image_root))
    (true_class,) = sample.class_ids or ()
    return SampleMaps((), {true_class: read_score_map(path)}, true_class)


def _image_id(sample: Sample, image_root: Path | None) -> str:
    """Path of the image as metadata of wsolevaluation have it, suffix included."""
    if sample.img_path is None or image_root is None:
        raise AdcamError(f"{sample.img_id}: stored maps go by the path of an image below a root")
    return sample.img_path.relative_to(image_root).as_posix()


def _make_maps(
    passes: Sequence[TokenMaps],
    sample: Sample,
    method: Method,
    network_ids: Sequence[int],
    num_guesses: int,
) -> SampleMaps:
    """Maps of one row, class ids turned from the network's into the data's."""
    ranking = np.argsort(-compute_scores(passes), kind="stable")
    # What the data do not know is numbered on from their classes.
    others = [i for i in range(len(ranking)) if i not in network_ids]
    data_id = {network_id: i for i, network_id in enumerate([*network_ids, *others])}
    (true_class,) = sample.class_ids or ()
    guesses = ranking[:num_guesses].tolist()
    maps: ClassMaps = compute_class_maps(
        passes, [network_ids[true_class], *guesses], method, SCORE_MAP_HW
    )
    return SampleMaps(
        tuple(data_id[i] for i in guesses),
        {
            data_id[i]: score_map.astype(np.float64)
            for i, score_map in zip(maps.class_ids, maps.score_maps, strict=True)
        },
        true_class,
    )


def _boxes_of(sample: Sample) -> np.ndarray:
    if sample.boxes is None:
        raise AdcamError(f"{sample.img_id} has no box")
    return sample.boxes


def _check_boxes(images: ImageDataset) -> None:
    if not len(images):
        raise AdcamError(f"split {images.split!r} has no images")
    lacking = [r.img_id for r in images.records if not r.boxes or len(r.class_ids or ()) != 1]
    if lacking:
        raise AdcamError(
            f"split {images.split!r} cannot be scored by boxes: {len(lacking)} of {len(images)} "
            f"images lack a box or have not one class, the first is {lacking[0]!r}"
        )
    images.check_files(masks=False)


def _is_same(choose_set: ImageDataset, report_set: ImageDataset) -> bool:
    """Whether thresholds are chosen on the images reported, all of them."""
    chosen, reported = ({r.img_path for r in s.records} for s in (choose_set, report_set))
    if chosen != reported and (shared := chosen & reported):
        raise AdcamError(
            f"{len(shared)} of the {len(reported)} images of {report_set.split!r} are among those "
            f"that choose the thresholds, such as {min(shared)}; take the same images for both, "
            "which is called the oracle, or others"
        )
    return chosen == reported


def _match_classes(
    name: str, classifiers: Mapping[str, ClassifierFile], class_set: ClassSet
) -> list[int]:
    """The network's id of each class of the data."""
    if name not in classifiers:
        raise AdcamError(f"there is no network {name!r}; there are {sorted(classifiers)}")
    known = classifiers[name].class_set.classes
    if missing := [c for c in class_set.classes if c not in known]:
        raise AdcamError(
            f"network {name!r} does not know {missing}; its classes are {list(known)}. Classes are "
            "matched by name: data.classes names those of the data"
        )
    return [known.index(c) for c in class_set.classes]


def format_box_csv(results: Sequence[BoxRowResult], images: ImageDataset) -> str:
    """The table as CSV: one line a row, percent with two digits.

    ``…_oracle`` has thresholds chosen on the images scored; all other thresholds were chosen on
    the split in ``chosen_on``.
    """
    lines = []
    for item in results:
        row, located = item.row, item.localization
        line: dict[str, Any] = {
            "name": row.name,
            "network": row.network,
            "method": row.method or "stored maps",
            "options": " ".join(f"{key}={value}" for key, value in sorted(row.options.items())),
            "scales": " ".join(map(str, row.views.scales)),
            "keep_ratio": int(row.views.keep_ratio),
            "flip": int(row.views.flip),
            "split": images.split,
            "images": located.num_images,
            "chosen_on": item.chosen_on,
            "max_box_acc_v2": f"{item.boxes.max_box_acc_v2:.2f}",
        }
        for delta, value in item.boxes.box_acc.items():
            line[f"box_acc_{100 * delta:.0f}"] = f"{value:.2f}"
            line[f"threshold_{100 * delta:.0f}"] = f"{item.boxes.best_thresholds[delta]:.3f}"
        line |= {
            "max_box_acc": f"{item.largest.box_acc[_LOC_IOU]:.2f}",
            "gt_known": f"{located.gt_known:.2f}",
            **{f"top{k}_loc": f"{value:.2f}" for k, value in located.top_loc.items()},
            **{f"top{k}_cls": f"{value:.2f}" for k, value in located.top_cls.items()},
            "threshold": f"{item.threshold:.3f}",
            "threshold_from": item.threshold_from,
            "max_box_acc_v2_oracle": f"{item.boxes_oracle.max_box_acc_v2:.2f}",
        }
        for delta, value in item.boxes_oracle.box_acc.items():
            line[f"box_acc_{100 * delta:.0f}_oracle"] = f"{value:.2f}"
        line["max_box_acc_oracle"] = f"{item.largest_oracle.box_acc[_LOC_IOU]:.2f}"
        line |= {f"first_guess_{name}": f"{share:.2f}" for name, share in located.errors.items()}
        lines.append({key: "" if value == "nan" else value for key, value in line.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
