"""Methods side by side: thresholds chosen on one split, numbers reported on another."""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adcam.data.dataset import ImageDataset
from adcam.errors import AdcamError
from adcam.labeling.map_maker import (
    Network,
    compute_class_maps,
    find_layer_sets,
    run_network,
)
from adcam.masks.background import compute_bg_score, compute_mask, stack_probabilities
from adcam.masks.crf import build_refinement
from adcam.metrics.miou import MeanIoU, MeanIoUResult, ThresholdCurve, ThresholdCurveResult
from adcam.settings import MethodSpec, TestViews
from adcam.structures import ClassMaps, ClassSet

THRESHOLDS = tuple(round(step / 100, 2) for step in range(100))
"""Background scores swept where only a threshold is applied."""

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class RowResult:
    """What a row scored.

    Attributes:
        row: The row.
        threshold: Chosen on the choosing split.
        chosen_miou: mIoU on the choosing split at that threshold, percent.
        result: Scores on the reporting split at that threshold.
        curve: Sweep on the reporting split; ``None`` for CRF rows.
    """

    row: MethodSpec
    threshold: float
    chosen_miou: float
    result: MeanIoUResult
    curve: ThresholdCurveResult | None


def compare_methods(
    network: Network,
    rows: Sequence[MethodSpec],
    choose_set: ImageDataset,
    report_set: ImageDataset,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    crf_choose_images: int = 100,
    progress: Progress | None = None,
) -> list[RowResult]:
    """Score every row; labels are given, thresholds are global constants.

    Rows that see the same views share one pass of the network.

    Args:
        network: Classifier in eval mode.
        rows: What to compare.
        choose_set: Labelled images with masks on which each row's threshold is chosen.
        report_set: Labelled images with masks on which it is reported.
        device: Where to compute; the CPU by default.
        dtype: ``float32`` or, for autocast, ``bfloat16``/``float16``.
        crf_choose_images: How many images of ``choose_set``, evenly spread, choose a CRF row's
            threshold: each threshold costs a CRF.
        progress: Wraps the loop over images: ``progress(iterable, description, total)``.

    Returns:
        One result per row, same order.

    Raises:
        AdcamError: If an image has no mask or unknown labels, which would count as no class.
    """
    for images in (choose_set, report_set):
        _check_truth(images)
    device = device or torch.device("cpu")
    track = progress or (lambda items, description, total: items)
    plain = [row for row in rows if row.crf == "none"]
    results: dict[str, RowResult] = {}
    if plain:
        chosen = _sweep(network, plain, choose_set, device, dtype, track)
        same = report_set.records == choose_set.records
        reported = chosen if same else _sweep(network, plain, report_set, device, dtype, track)
        for row in plain:
            curve = chosen[row.name].compute()
            results[row.name] = RowResult(
                row,
                curve.best_threshold,
                curve.best_miou,
                reported[row.name].compute_at(curve.best_threshold),
                reported[row.name].compute(),
            )
    for row in rows:
        if row.crf == "none":
            continue
        step = max(len(choose_set) // crf_choose_images, 1)
        few = choose_set[::step]
        tried = _score_crf(network, row, few, row.crf_thresholds, device, dtype, track)
        scores = {threshold: metric.compute().miou for threshold, metric in tried.items()}
        best = max(scores, key=lambda threshold: scores[threshold])
        final = _score_crf(network, row, report_set, (best,), device, dtype, track)
        results[row.name] = RowResult(row, best, scores[best], final[best].compute(), None)
    return [results[row.name] for row in rows]


def _check_truth(images: ImageDataset) -> None:
    lacking = [r.img_id for r in images.records if r.class_ids is None or r.mask_path is None]
    if lacking:
        raise AdcamError(
            f"split {images.split!r} cannot be scored: {len(lacking)} of {len(images)} images lack "
            f"a mask or labels, the first is {lacking[0]!r}"
        )
    images.check_files()


def _sweep(
    network: Network,
    rows: Sequence[MethodSpec],
    images: ImageDataset,
    device: torch.device,
    dtype: torch.dtype,
    track: Progress,
) -> dict[str, ThresholdCurve]:
    methods = {row.name: row.build() for row in rows}
    by_views: dict[TestViews, list[MethodSpec]] = defaultdict(list)
    for row in rows:
        by_views[row.views].append(row)
    class_set = images.class_set
    curves = {
        row.name: ThresholdCurve(
            class_set.num_classes, THRESHOLDS, mask_values=class_set.mask_values
        )
        for row in rows
    }
    for sample in track(images, f"score {images.split}", len(images)):
        for views, group in by_views.items():
            layer_sets = sorted(
                {layers for row in group for layers in find_layer_sets(methods[row.name], network)}
            )
            passes = run_network(network, sample.img, views, layer_sets, device=device, dtype=dtype)
            for row in group:
                maps = compute_class_maps(
                    passes, sample.class_ids or (), methods[row.name], sample.ori_hw
                )
                curves[row.name].update(maps.score_maps, maps.class_ids, sample.mask)
    return curves


def _score_crf(
    network: Network,
    row: MethodSpec,
    images: ImageDataset,
    thresholds: Sequence[float],
    device: torch.device,
    dtype: torch.dtype,
    track: Progress,
) -> dict[float, MeanIoU]:
    """Scores after a CRF; the network runs here, the CRF in a pool of processes."""
    if row.crf == "none":
        raise AdcamError(f"row {row.name!r} has no CRF")
    method = row.build()
    class_set = images.class_set
    metrics = {threshold: MeanIoU(class_set.num_classes) for threshold in thresholds}
    layer_sets = find_layer_sets(method, network)
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # forking after torch ran can deadlock
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        waiting: list[tuple[Any, np.ndarray]] = []
        for sample in track(images, f"CRF {images.split}", len(images)):
            passes = run_network(
                network, sample.img, row.views, layer_sets, device=device, dtype=dtype
            )
            maps = compute_class_maps(passes, sample.class_ids or (), method, sample.ori_hw)
            future = pool.submit(
                _crf_masks, maps, sample.img, thresholds, row.crf, class_set.mask_values
            )
            waiting.append((future, sample.mask))
            # A bounded queue: maps at image size are large, and the CRF is the slower side.
            while len(waiting) > 2 * workers:
                _count(*waiting.pop(0), metrics)
        for future, truth in waiting:
            _count(future, truth, metrics)
    return metrics


def _crf_masks(
    maps: ClassMaps,
    img: np.ndarray,
    thresholds: Sequence[float],
    crf: str,
    mask_values: Sequence[int],
) -> list[np.ndarray]:
    refine = build_refinement(img, crf=crf) if maps.class_ids else None
    masks = []
    for threshold in thresholds:
        prob = None
        if refine is not None:
            bg_score = compute_bg_score(maps.score_maps, rule="constant", threshold=threshold)
            prob = refine(stack_probabilities(maps.score_maps, bg_score))
        mask = compute_mask(maps, mask_values=mask_values, threshold=threshold, prob=prob)
        masks.append(mask.mask)
    return masks


def _count(future: Any, truth: np.ndarray, metrics: Mapping[float, MeanIoU]) -> None:
    for metric, mask in zip(metrics.values(), future.result(), strict=True):
        metric.update(mask, truth)


def format_csv(results: Sequence[RowResult], class_set: ClassSet) -> str:
    """The table as CSV: one line a row, percent with two digits."""
    lines = []
    for item in results:
        row = item.row
        line: dict[str, Any] = {
            "name": row.name,
            "method": row.method,
            "options": " ".join(f"{key}={value}" for key, value in sorted(row.options.items())),
            "scales": " ".join(map(str, row.views.scales)),
            "flip": int(row.views.flip),
            "crf": "" if row.crf == "none" else row.crf,
            "threshold": f"{item.threshold:.2f}",
            "miou_choosing": f"{item.chosen_miou:.2f}",
            "miou": f"{item.result.miou:.2f}",
            "best_miou_oracle": f"{item.curve.best_miou:.2f}" if item.curve else "",
        }
        for value in (0, *class_set.mask_values):
            line[class_set.name_of_value(value)] = f"{item.result.iou_per_class[value]:.1f}"
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
