"""Methods side by side: thresholds chosen on one split, numbers reported on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adcam import files
from adcam.data.dataset import ImageDataset
from adcam.errors import AdcamError
from adcam.evaluation.loop import EvaluationTimes, Evaluator, LoopOptions, evaluate
from adcam.evaluation.mapping import Classifier, MaskChoice, check_names, describe_method
from adcam.evaluation.mask_folder import build_labeler, open_mask_folder
from adcam.evaluation.masks import MaskScore, MaskScores, ThresholdSweep
from adcam.evaluation.pictures import Pictures, SmallImage
from adcam.evaluation.spread import format_points
from adcam.masks.background import BackgroundRule, parse_rule
from adcam.metrics.influence import compute_image_error
from adcam.metrics.miou import MeanIoUResult, ThresholdCurveResult
from adcam.settings import MethodSpec
from adcam.structures import ClassSet


@dataclass(frozen=True, eq=False)
class MethodResult:
    """The scores of one method.

    Attributes:
        spec: The method.
        rule: Where background ends: a constant that was chosen, or what the method gives.
        chosen_miou: The mean IoU on the choosing split by that rule, in percent.
        result: The scores on the reporting split by that rule.
        curve: The sweep of all thresholds on the reporting split; ``None`` with a CRF.
        image_mious: The mean IoU of each reported image by itself in percent, by image id.
        influences: What each of them does to the mean IoU, in points, by image id.
    """

    spec: MethodSpec
    rule: BackgroundRule
    chosen_miou: float
    result: MeanIoUResult
    curve: ThresholdCurveResult | None
    image_mious: Mapping[str, float] = field(default_factory=dict)
    influences: Mapping[str, float] = field(default_factory=dict)

    @property
    def threshold(self) -> float | None:
        """The value of the rule; ``None`` for one that has none."""
        return self.rule.value


@dataclass(frozen=True, eq=False)
class MethodComparison:
    """What a comparison of methods found, with all that its report needs.

    Attributes:
        results: The scores, one per method in the order given.
        masks: The scores of the last method's masks: of all that were written, else of the
            reported images.
        pictures: The reported images, reduced, with the maps of all methods without a CRF and the
            masks of all methods.
        times: Where the time went, on the choosing split under ``"choose"`` and on the reporting
            split under ``"report"``.
    """

    results: tuple[MethodResult, ...]
    masks: MaskScore
    pictures: tuple[SmallImage, ...]
    times: Mapping[str, EvaluationTimes]


def compare_methods(
    classifiers: Mapping[str, Classifier],
    specs: Sequence[MethodSpec],
    choose_set: ImageDataset,
    report_set: ImageDataset,
    *,
    options: LoopOptions | None = None,
    report_stride: int = 1,
    masks_dir: str | Path | None = None,
    keep_pictures: bool = False,
    crf_choose_images: int = 100,
) -> MethodComparison:
    """Score methods of segmentation; labels are given, thresholds are constants without a rule.

    Each split is gone through once, and each network sees each image once for each set of views.

    Args:
        classifiers: The networks by the names that the methods give; classes are matched by name.
        specs: The methods to compare.
        choose_set: Labelled images with masks on which each method's threshold is chosen, if it
            gives no rule.
        report_set: Labelled images with masks on which it is reported.
        options: Device, type, worker processes and progress.
        report_stride: Only every n-th image of ``report_set`` is reported on; masks are written of
            all its images.
        masks_dir: The output folder for the last method's masks on ``report_set``, if wanted.
        keep_pictures: Whether to keep the images with all maps for a report, in a nameless file
            in ``masks_dir``, or else among the system's temporary files.
        crf_choose_images: The number of evenly spread images that choose a CRF's threshold.

    Raises:
        AdcamError: An image lacks a mask or labels, or a network is missing or lacks a class.
    """
    _check(specs, choose_set, report_set)
    options = options or LoopOptions()
    choices, chosen_mious, choose_times = _choose(
        classifiers, specs, choose_set, options, max(len(choose_set) // crf_choose_images, 1)
    )
    last = choices[specs[-1].name]
    plain = [spec.name for spec in specs if spec.crf == "none"]
    sweep = ThresholdSweep(plain, report_set.class_set, stride=report_stride)
    scores = MaskScores(list(choices.values()), report_set.class_set, stride=report_stride)
    evaluators: list[Evaluator] = [sweep, scores]
    masks = MaskScores([last], report_set.class_set)
    if report_stride > 1 and masks_dir is not None:
        evaluators.append(masks)
    pictures = Pictures(
        plain,
        list(choices.values()),
        report_set.class_set,
        num_images=len(report_set),
        stride=report_stride,
        folder=masks_dir,
    )
    if keep_pictures:
        evaluators.append(pictures)
    times = _report(classifiers, specs, report_set, evaluators, options, last, masks_dir)
    curves, found = sweep.compute(), scores.compute()
    results = []
    for spec in specs:
        choice, curve = choices[spec.name], curves.get(spec.name)
        score, miou = found[choice], chosen_mious[spec.name]
        results.append(
            MethodResult(
                spec, choice.rule, miou, score.result, curve, score.mious, score.influences
            )
        )
    return MethodComparison(
        tuple(results),
        (masks if masks in evaluators else scores).compute()[last],
        pictures.compute(),
        {"choose": choose_times, "report": times},
    )


def _report(
    classifiers: Mapping[str, Classifier],
    specs: Sequence[MethodSpec],
    images: ImageDataset,
    evaluators: Sequence[Evaluator],
    options: LoopOptions,
    last: MaskChoice,
    masks_dir: str | Path | None,
) -> EvaluationTimes:
    """Go through the reporting split, and write the masks of the last method if wanted."""
    if masks_dir is None:
        return evaluate(images, specs, evaluators, classifiers, options=options)
    labeler = build_labeler(classifiers[specs[-1].network], specs[-1], last, options)
    with open_mask_folder(masks_dir, images, labeler, last) as writer:
        return evaluate(images, specs, [*evaluators, writer], classifiers, options=options)


def _choose(
    classifiers: Mapping[str, Classifier],
    specs: Sequence[MethodSpec],
    images: ImageDataset,
    options: LoopOptions,
    crf_stride: int,
) -> tuple[dict[str, MaskChoice], dict[str, float], EvaluationTimes]:
    """Choose each method's threshold, of equals the first; return its mean IoU too."""
    swept = [spec.name for spec in specs if spec.crf == "none" and not spec.rule]
    tried = {
        spec.name: [MaskChoice(spec.name, rule, spec.crf) for rule in _rules(spec, images.split)]
        for spec in specs
        if spec.name not in swept
    }
    by_crf: dict[bool, list[MaskChoice]] = {True: [], False: []}
    for choice in (choice for choices in tried.values() for choice in choices):
        by_crf[choice.crf != "none"].append(choice)
    sweep = ThresholdSweep(swept, images.class_set)
    masks = MaskScores(by_crf[False], images.class_set)
    refined = MaskScores(by_crf[True], images.class_set, stride=crf_stride)
    times = evaluate(images, specs, [sweep, masks, refined], classifiers, options=options)
    curves, scores = sweep.compute(), {**masks.compute(), **refined.compute()}
    choices, mious = {}, {}
    for name in (spec.name for spec in specs):
        if name in curves:
            best = BackgroundRule("constant", curves[name].best_threshold, images.split)
            choices[name], mious[name] = MaskChoice(name, best), curves[name].best_miou
        else:
            choices[name] = max(tried[name], key=lambda choice: scores[choice].result.miou)
            mious[name] = scores[choices[name]].result.miou
    return choices, mious, times


def _rules(spec: MethodSpec, split: str) -> list[BackgroundRule]:
    """What is tried of a method: the rule that it gives, or the constants before its CRF."""
    if spec.rule:
        return [parse_rule(spec.rule)]
    return [BackgroundRule("constant", value, split) for value in spec.crf_thresholds]


def _check(specs: Sequence[MethodSpec], choose_set: ImageDataset, report_set: ImageDataset) -> None:
    """Refuse what cannot be scored by masks before any network runs."""
    check_names(specs)
    if stored := [spec.name for spec in specs if spec.score_maps]:
        raise AdcamError(
            f"stored score maps are scored by their boxes alone, but {stored} are such"
        )
    for images in (choose_set, report_set):
        lacking = [r.img_id for r in images.records if r.class_ids is None or r.mask_path is None]
        if lacking:
            raise AdcamError(
                f"split {images.split!r} cannot be scored: {len(lacking)} of {len(images)} images "
                f"lack a mask or labels, the first is {lacking[0]!r}"
            )
        images.check_files()


def format_csv(results: Sequence[MethodResult], class_set: ClassSet) -> str:
    """Format the table as CSV: one line per method, percent with two digits.

    Args:
        results: The scores.
        class_set: The classes of the data set.
    """
    lines = []
    for item in results:
        method = describe_method(item.spec)
        line: dict[str, Any] = {
            **{key: method[key] for key in ("name", "method", "options", "scales", "flip", "crf")},
            "rule": item.rule.rule,
            "threshold": "" if item.threshold is None else f"{item.threshold:.2f}",
            "miou_choosing": f"{item.chosen_miou:.2f}",
            "miou": f"{item.result.miou:.2f}",
            "miou_image_error": format_points(compute_image_error(item.influences.values())),
            "best_miou_oracle": f"{item.curve.best_miou:.2f}" if item.curve else "",
        }
        for value in (0, *class_set.mask_values):
            line[class_set.name_of_value(value)] = f"{item.result.iou_per_class[value]:.1f}"
        lines.append(line)
    return files.format_csv(lines)
