"""Networks and methods side by side by their boxes: ``adcam compare`` for ``task="localization"``.

Each method is scored by both protocols of :mod:`adcam.metrics.localization` from the same maps, at
thresholds that were chosen on one split and are reported on another. docs/localization.md defines
each column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from adcam.cams import METHODS
from adcam.data.dataset import ImageDataset
from adcam.data.score_maps import SCORE_MAP_HW
from adcam.errors import AdcamError
from adcam.evaluation.boxes import LOC_IOU, TOP_K, BoxCounts, BoxOutcome, ScoreMapWriter
from adcam.evaluation.loop import EvaluationTimes, Evaluator, LoopOptions, evaluate
from adcam.evaluation.mapping import Classifier, MapTargets, check_names, describe_method
from adcam.evaluation.pictures import Pictures, SmallImage
from adcam.files import format_csv
from adcam.metrics.localization import ORACLE, BoxAccuracyResult, LocalizationResult, MaxBoxAccuracy
from adcam.report.text import slug
from adcam.settings import MethodSpec

GIVEN = "given"
"""Says that a threshold was given by the user."""


@dataclass(frozen=True, eq=False)
class BoxResult:
    """The scores of one method on the reporting split.

    Attributes:
        spec: The method.
        chosen_on: The split that the thresholds were chosen on, which is called
            :data:`adcam.metrics.localization.ORACLE` if it is the reporting one.
        boxes: MaxBoxAccV2's accuracies at the threshold chosen for each IoU.
        boxes_oracle: The same at the thresholds best for the reporting split, as the protocol
            publishes it.
        largest: MaxBoxAcc, which looks at one box of the largest contour, at the chosen threshold.
        largest_oracle: MaxBoxAcc as the protocol publishes it.
        threshold: The threshold of GT-known and Top-k Loc: that of ``largest``, or a given one.
        threshold_from: Where that threshold comes from: ``chosen_on``, or :data:`GIVEN`.
        localization: GT-known Loc, Top-k Loc and error types by TS-CAM's rule at ``threshold``.
        outcomes: How well the object of each image was found, in the order of the data set.
    """

    spec: MethodSpec
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
        spec = asdict(self.spec)
        names = ("name", "method", "options", "views", "network", "score_maps")
        return {
            "row": {name: spec[name] for name in names},
            "chosen_on": self.chosen_on,
            "boxes": self.boxes.to_dict(),
            "largest": self.largest.to_dict(),
            ORACLE: oracle,
            "threshold": self.threshold,
            "threshold_from": self.threshold_from,
            "localization": self.localization.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class BoxComparison:
    """What a comparison by boxes found, with all that its report needs.

    Attributes:
        results: The scores, one per method in the order given.
        pictures: The reported images, reduced, with the maps of the true class of all methods.
        times: Where the time went, on the choosing split under ``"choose"`` and on the reporting
            split under ``"report"``.
    """

    results: tuple[BoxResult, ...]
    pictures: tuple[SmallImage, ...]
    times: Mapping[str, EvaluationTimes]


def compare_boxes(
    classifiers: Mapping[str, Classifier],
    specs: Sequence[MethodSpec],
    choose_set: ImageDataset,
    report_set: ImageDataset,
    *,
    threshold: float | None = None,
    options: LoopOptions | None = None,
    score_map_dir: Path | None = None,
    image_root: Path | None = None,
    pictures_dir: Path | None = None,
) -> BoxComparison:
    """Score methods of localisation by their boxes.

    Each split is gone through once, and each network sees each image once for each set of views.

    Args:
        classifiers: The networks by the names that the methods give; classes are matched by name.
        specs: The methods to compare.
        choose_set: Images of one class with boxes, on which thresholds are chosen.
        report_set: Such images on which they are reported. With the same images in both, every
            threshold is the oracle's.
        threshold: The threshold of GT-known and Top-k Loc, such as
            :data:`adcam.boxes.ts_cam.CUB_THRESHOLD`; ``None`` takes the one at which the largest
            contour has IoU 0.5 most often on ``choose_set``.
        options: Device, type, worker processes and progress.
        score_map_dir: The folder that gets each method's maps of the true class in
            wsolevaluation's format, ``<method>/<path of the image>.npy``.
        image_root: The folder that the paths of images are relative to where maps are read or
            written.
        pictures_dir: The folder of a nameless file in which the reported images with all maps are
            kept for a report; ``None`` keeps none.

    Raises:
        AdcamError: An image has no box or not exactly one class, the splits overlap but differ, a
            network or a stored map is not there, a network lacks a class, or a threshold is outside
            [0, 1).
    """
    _check(specs, threshold, score_map_dir, image_root)
    same = _is_same(choose_set, report_set)
    names = [spec.name for spec in specs]
    folders = {} if score_map_dir is None else _name_folders(names, score_map_dir)
    writers: list[Evaluator] = [ScoreMapWriter(folders, image_root)] if folders else []
    targets = MapTargets(map_hw=SCORE_MAP_HW, image_root=image_root)
    run = partial(evaluate, specs=_without_rivals(specs), classifiers=classifiers, options=options)

    chosen = BoxCounts(names)
    evaluators: list[Evaluator] = [chosen, *([] if same else writers)]
    choose_times = run(choose_set, evaluators=evaluators, targets=targets)
    best = {n: counts.compute().best_thresholds[LOC_IOU] for n, counts in chosen.largest.items()}
    reported = BoxCounts(names, best if threshold is None else dict.fromkeys(names, threshold))
    pictures = Pictures(
        names, [], report_set.class_set, num_images=len(report_set), folder=pictures_dir
    )
    evaluators = [reported, *([pictures] if pictures_dir else []), *writers]
    times = run(report_set, evaluators=evaluators, targets=replace(targets, top_k=TOP_K[-1]))

    chosen_on = ORACLE if same else choose_set.split
    threshold_from = chosen_on if threshold is None else GIVEN
    results = [_result(spec, chosen, reported, chosen_on, threshold_from) for spec in specs]
    return BoxComparison(
        tuple(results), pictures.compute(), {"choose": choose_times, "report": times}
    )


def _without_rivals(specs: Sequence[MethodSpec]) -> list[MethodSpec]:
    """Let no class compete: predicted classes are alternatives, not classes of one image.

    Methods whose classes do not compete, such as ``"refined"``, have no such option.
    """
    return [
        replace(spec, options={"rival_weight": 0.0, **spec.options})
        if hasattr(METHODS.get(spec.method), "rival_weight")
        else spec
        for spec in specs
    ]


def _result(
    spec: MethodSpec, chosen: BoxCounts, reported: BoxCounts, chosen_on: str, threshold_from: str
) -> BoxResult:
    """Compute the scores of one method from the counts of both splits."""
    name = spec.name
    return BoxResult(
        spec,
        chosen_on,
        _at_thresholds_of(chosen.every[name], reported.every[name], chosen_on),
        reported.every[name].compute(),
        _at_thresholds_of(chosen.largest[name], reported.largest[name], chosen_on),
        reported.largest[name].compute(),
        reported.thresholds[name],
        threshold_from,
        reported.compute_localization(name, has_predictions=bool(spec.method)),
        tuple(sorted(reported.outcomes[name], key=attrgetter("index"))),
    )


def _at_thresholds_of(
    choosing: MaxBoxAccuracy, reporting: MaxBoxAccuracy, chosen_on: str
) -> BoxAccuracyResult:
    if chosen_on == ORACLE:
        return reporting.compute()
    return reporting.compute(choosing.compute().best_thresholds, chosen_on=chosen_on)


def _check(
    specs: Sequence[MethodSpec],
    threshold: float | None,
    score_map_dir: Path | None,
    image_root: Path | None,
) -> None:
    """Refuse arguments that cannot be right before any network runs."""
    check_names(specs)
    if refined := [spec.name for spec in specs if spec.crf != "none"]:
        raise AdcamError(f"boxes are drawn without a CRF, but {refined} have one")
    if ruled := [spec.name for spec in specs if spec.rule]:
        raise AdcamError(f"boxes are drawn without a background rule, but {ruled} have one")
    if image_root is None and (score_map_dir or any(spec.score_maps for spec in specs)):
        raise AdcamError("score maps on disk need image_root")
    if threshold is not None and not 0 <= threshold < 1:
        raise AdcamError(f"threshold must lie in [0, 1), got {threshold}")


def _name_folders(names: Sequence[str], score_map_dir: Path) -> dict[str, Path]:
    folders = {name: score_map_dir / slug(name, fallback="row") for name in names}
    if len(set(folders.values())) < len(folders):
        shown = {name: folder.name for name, folder in folders.items()}
        raise AdcamError(f"two rows would write into one folder of score maps: {shown}")
    return folders


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
    """Check both splits, and return whether thresholds are chosen on the images reported."""
    for images in (choose_set, report_set):
        _check_boxes(images)
    chosen, reported = ({r.img_path for r in s.records} for s in (choose_set, report_set))
    if chosen != reported and (shared := chosen & reported):
        raise AdcamError(
            f"{len(shared)} of the {len(reported)} images of {report_set.split!r} are among those "
            f"that choose the thresholds, such as {min(shared)}; take the same images for both, "
            "which is called the oracle, or others"
        )
    return chosen == reported


def format_box_csv(results: Sequence[BoxResult], images: ImageDataset) -> str:
    """Format the table as CSV: one line per method, percent with two digits.

    ``…_oracle`` has thresholds chosen on the images scored; all other thresholds were chosen on
    the split in ``chosen_on``.
    """
    lines = []
    for item in results:
        located, method = item.localization, describe_method(item.spec)
        del method["crf"]  # boxes have none
        line: dict[str, Any] = {
            **method,
            "split": images.split,
            "images": located.num_images,
            "chosen_on": item.chosen_on,
            "max_box_acc_v2": f"{item.boxes.max_box_acc_v2:.2f}",
        }
        for delta, value in item.boxes.box_acc.items():
            line[f"box_acc_{100 * delta:.0f}"] = f"{value:.2f}"
            line[f"threshold_{100 * delta:.0f}"] = f"{item.boxes.best_thresholds[delta]:.3f}"
        line |= {
            "max_box_acc": f"{item.largest.box_acc[LOC_IOU]:.2f}",
            "gt_known": f"{located.gt_known:.2f}",
            **{f"top{k}_loc": f"{value:.2f}" for k, value in located.top_loc.items()},
            **{f"top{k}_cls": f"{value:.2f}" for k, value in located.top_cls.items()},
            "threshold": f"{item.threshold:.3f}",
            "threshold_from": item.threshold_from,
            "max_box_acc_v2_oracle": f"{item.boxes_oracle.max_box_acc_v2:.2f}",
        }
        for delta, value in item.boxes_oracle.box_acc.items():
            line[f"box_acc_{100 * delta:.0f}_oracle"] = f"{value:.2f}"
        line["max_box_acc_oracle"] = f"{item.largest_oracle.box_acc[LOC_IOU]:.2f}"
        line |= {f"first_guess_{name}": f"{share:.2f}" for name, share in located.errors.items()}
        lines.append({key: "" if value == "nan" else value for key, value in line.items()})
    return format_csv(lines)
