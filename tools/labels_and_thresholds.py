"""Measure predicted labels and background rules: two tables of docs/results.

    python tools/labels_and_thresholds.py CONFIG --classifiers A.safetensors B.safetensors \\
        --names "seed 1" "seed 2" --out docs/results

Every second image of ``data.val`` is scored, with AD-CAM at 448 pixels. Label thresholds are chosen
on the labels of every second image of the first list of ``data.train``: nothing of ``data.val`` is
used, though the classifiers learnt from these images. No rule for the background sees a mask, apart
from the best constant and the best of each image, which are called oracle.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from adcam.data.dataset import ImageDataset
from adcam.data.sources import build_dataset
from adcam.evaluation.masks import mask_of
from adcam.files import write_csv
from adcam.labeling.calibrate import calibrate
from adcam.labeling.labeler import DEFAULT_LABEL_THRESHOLD, PseudoLabeler, find_present
from adcam.masks.background import compute_mask, find_threshold
from adcam.masks.steepest import LEVELS, find_steepest_of_set, mean_jump
from adcam.metrics.miou import MeanIoU, ThresholdCurve
from adcam.settings import Settings, load_settings
from adcam.structures import ClassMaps

T0 = 0.56
BINS = 256
LABEL_ROWS = (
    "given",
    "predicted, 0.5 for all",
    "predicted, 0.5 for all, at least one",
    "predicted, one a class",
    "predicted, one a class, at least one",
)


class LabelScores:
    """Counts predicted labels and their masks."""

    def __init__(self, num_classes: int) -> None:
        self.miou = MeanIoU(num_classes)
        self.found: list[np.ndarray] = []
        self.shown: list[np.ndarray] = []

    def update(self, found: tuple[int, ...], shown: tuple[int, ...], num: int) -> None:
        """Count the labels of one image."""
        for ids, lists in ((found, self.found), (shown, self.shown)):
            lists.append(np.isin(np.arange(num), ids))

    def row(self, classes: tuple[str, ...]) -> list[str]:
        """Scores in percent, classes lost, images without a class, the F1 of cow."""
        found, shown = np.stack(self.found), np.stack(self.shown)
        both, either = found & shown, found | shown
        f1 = 200 * both.sum(0) / np.maximum(found.sum(0) + shown.sum(0), 1)
        jaccard = np.where(either.any(1), both.sum(1) / np.maximum(either.sum(1), 1), 1)
        result = self.miou.compute()
        return [
            f"{np.nanmean(f1):.1f}",
            f"{100 * jaccard.mean():.1f}",
            f"{100 * (shown & ~found).sum() / shown.sum():.1f}",
            f"{100 * (~found.any(1)).mean():.1f}",
            f"{f1[classes.index('cow')]:.1f}",
            f"{result.miou:.2f}",
        ]


class RuleScores:
    """Counts masks of many background rules from the maps of given labels."""

    def __init__(self, num_classes: int, mask_values: tuple[int, ...]) -> None:
        self.num_classes, self.values = num_classes, mask_values
        self.curve = self._new_curve()
        self.rules = {"otsu": None, f"steepest:{T0}": T0}
        self.mious = {rule: MeanIoU(num_classes) for rule in (*self.rules, "image")}
        self.levels: dict[str, list[float]] = defaultdict(list)
        self.histogram = np.zeros(BINS)
        self.jumps = np.zeros(len(LEVELS))

    def _new_curve(self) -> ThresholdCurve:
        return ThresholdCurve(self.num_classes, LEVELS, mask_values=self.values)

    def update(self, maps: ClassMaps, gt: np.ndarray) -> None:
        """Count one image."""
        single = self._new_curve()
        single.update(maps.score_maps, maps.class_ids, gt)
        self.curve.merge(single)
        best = single.compute().best_threshold
        self.mious["image"].add_confusion(single.confusions()[list(LEVELS).index(best)])
        self.levels["image"].append(best)
        for rule, value in self.rules.items():
            name = rule.partition(":")[0]
            mask = compute_mask(maps, mask_values=self.values, rule=name, threshold=value)
            self.mious[rule].update(mask.mask, gt)
            self.levels[rule].append(find_threshold(maps.score_maps, rule=name, threshold=value))
        if maps.class_ids:
            peak = maps.score_maps.max(axis=0)
            counts = np.histogram(peak, BINS, (0, 1))[0]
            self.histogram += counts / counts.sum()
            self.jumps += mean_jump(peak)

    def rows(self) -> list[list[str]]:
        """Name, mean threshold, mIoU and what it loses against the best constant."""
        curve = self.curve.compute()
        best = curve.best_miou
        of_set = {
            "constant, best here (oracle)": curve.best_threshold,
            f"constant:{T0} (chosen on train)": T0,
            "otsu of all images": find_otsu(self.histogram),
            "two Gaussians of all images": find_crossing(self.histogram),
            "steepest of all images": find_steepest_of_set(self.jumps) or T0,
        }
        rows: list[tuple[str, str, float]] = [
            (name, f"{t:.2f}", curve.miou[int(np.abs(LEVELS - t).argmin())])
            for name, t in of_set.items()
        ]
        names = {"otsu": "otsu of each image", "image": "best of each image (oracle)"}
        for rule, miou in self.mious.items():
            mean = f"{np.mean(self.levels[rule]):.2f}"
            rows.append((names.get(rule, f"{rule} of each image"), mean, miou.compute().miou))
        return [[name, t, f"{miou:.2f}", f"{best - miou:.2f}"] for name, t, miou in rows]


def find_otsu(histogram: np.ndarray) -> float:
    """Otsu's threshold of a histogram over [0, 1]."""
    centers = (np.arange(BINS) + 0.5) / BINS
    below, mean = np.cumsum(histogram), np.cumsum(histogram * centers)
    above = below[-1] - below
    between = (mean * below[-1] - mean[-1] * below) ** 2 / np.maximum(below * above, 1e-12)
    return float(centers[between.argmax()])


def find_crossing(histogram: np.ndarray, num_steps: int = 200) -> float:
    """Where the two components of a Gaussian mixture are equally likely, between their means."""
    x, p = (np.arange(BINS) + 0.5) / BINS, histogram / histogram.sum()
    weight, mean, std = np.array([0.6, 0.4]), np.array([0.2, 0.8]), np.array([0.15, 0.15])
    for _ in range(num_steps):
        density = (weight / std)[:, None] * np.exp(-0.5 * ((x - mean[:, None]) / std[:, None]) ** 2)
        share = p * density / np.maximum(density.sum(0), 1e-12)
        weight = share.sum(1)
        mean = (share * x).sum(1) / weight
        std = np.sqrt((share * (x - mean[:, None]) ** 2).sum(1) / weight) + 0.01
    gap = np.where((x > mean.min()) & (x < mean.max()), np.abs(density[0] - density[1]), np.inf)
    return float(x[gap.argmin()])


def measure(
    path: Path, train: ImageDataset, val: ImageDataset, stride: int
) -> tuple[dict[str, LabelScores], RuleScores]:
    """Measure one classifier."""
    options: dict[str, Any] = {
        "device": "cpu",
        "dtype": "bfloat16",
        "label_threshold": DEFAULT_LABEL_THRESHOLD,
    }
    scores = PseudoLabeler.from_checkpoint(path, method="cam", **options)
    records = [record.img_id for record in train.records][::stride]
    thresholds = calibrate(train.subset(records), scores, progress=False).thresholds.values
    labeler = PseudoLabeler.from_checkpoint(path, rule=f"steepest:{T0}", **options)
    num = len(labeler.class_set.classes)
    labels = {name: LabelScores(val.class_set.num_classes) for name in LABEL_ROWS}
    rules = RuleScores(val.class_set.num_classes, val.class_set.mask_values)
    for index in range(0, len(val), stride):
        sample = val[index]
        passes = labeler.map_maker.run([sample.img])
        probs = passes.compute_scores()[0]
        given, half = tuple(sorted(sample.class_ids or ())), (DEFAULT_LABEL_THRESHOLD,) * num
        sets = (
            given,
            find_present(probs, half),
            find_present(probs, half, at_least_one=True),
            find_present(probs, thresholds),
            find_present(probs, thresholds, at_least_one=True),
        )
        gt, masks = mask_of(sample), {}
        for ids in dict.fromkeys(sets):
            (maps,) = labeler.map_maker.compute_maps(passes, [ids], [sample.img])
            masks[ids] = labeler.mask_maker(maps, sample.img, gt.shape).mask
            if ids == given:
                rules.update(maps, gt)
        for name, ids in zip(LABEL_ROWS, sets, strict=True):
            labels[name].update(ids, given, num)
            labels[name].miou.update(masks[ids], gt)
    return labels, rules


def main() -> None:
    """Read the arguments, measure, write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--classifiers", type=Path, nargs="+", required=True)
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--stride", type=int, default=2, help="every n-th image")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    settings: Settings = load_settings(args.config)
    train = build_dataset(settings.data, settings.data.train[0])
    val = build_dataset(settings.data, str(settings.data.val))
    label_lines, rule_lines = [], []
    for name, path in zip(args.names, args.classifiers, strict=True):
        labels, rules = measure(path, train, val, args.stride)
        label_lines += [[name, row, *s.row(val.class_set.classes)] for row, s in labels.items()]
        rule_lines += [[name, *row] for row in rules.rows()]
        print(name, flush=True)
    scores = ("label_f1", "label_jaccard", "classes_lost", "images_without_class", "cow_f1", "miou")
    write_csv(args.out / "predicted_labels_val.csv", ("classifier", "labels", *scores), label_lines)
    rule_columns = ("classifier", "rule", "threshold", "miou", "loss_to_oracle")
    write_csv(args.out / "thresholds_val.csv", rule_columns, rule_lines)


if __name__ == "__main__":
    main()
