"""A whole experiment: train, compare methods, write the best masks, report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from adcam.data.sources import build_dataset
from adcam.evaluation.compare import RowResult
from adcam.files import hash_file, hash_values, write_json
from adcam.labeling.generate import default_workers, generate
from adcam.labeling.labeler import PseudoLabeler
from adcam.masks.background import BackgroundRule
from adcam.models.classifier_file import load_classifier
from adcam.progress import track
from adcam.recipe.compare import find_classifier, run_compare
from adcam.recipe.comparison_report import (
    build_comparison_report,
    describe_machine,
    make_picture_rows,
    pick_spread,
    score_masks,
)
from adcam.report.model import KeyValues, Section
from adcam.report.render import write_report


@dataclass(frozen=True)
class Experiment:
    """What an experiment left.

    Attributes:
        results: Scores by row.
        report: Path of ``report.html``.
    """

    results: list[RowResult]
    report: Path


def run_experiment(
    cfg: Config,
    work_dir: str | Path,
    *,
    title: str,
    command: Sequence[str],
    more: Mapping[str, Callable[[Sequence[RowResult]], Section]] | None = None,
) -> Experiment:
    """Train (unless ``work_dir`` has a classifier), compare, write masks and the report.

    The last row of ``compare.rows`` makes the masks of the reported split.

    Writes ``classifier.safetensors``, ``compare.csv``, ``masks_<split>/`` and ``report.html``,
    ``report.md``, ``report.json`` into ``work_dir``.

    Args:
        cfg: A config with ``data``, ``model``, ``train`` and ``compare``.
        work_dir: Where everything goes.
        title: Of the report.
        command: What makes it again, shown in the report.
        more: Further stages by name; each is given the scores and makes a section of the report.

    Raises:
        ValueError: If the config, the data or the weights are wrong.
    """
    console = Console(stderr=True)
    work_dir = Path(work_dir)
    seconds: dict[str, float] = {}
    with stage(console, seconds, "train the classifier"):
        checkpoint = find_classifier(cfg, work_dir)
    with stage(console, seconds, "compare the methods"):
        results = run_compare(cfg, work_dir, progress=track)
    classifier = load_classifier(checkpoint)
    images = build_dataset(cfg.data, cfg.compare.report_on)
    last = results[-1]
    labeler = PseudoLabeler(
        classifier.network,
        classifier.class_set,
        method=last.row.method,
        method_options=last.row.options,
        views=last.row.views,
        rule=BackgroundRule("constant", last.threshold, cfg.compare.choose_on),
        crf="none" if last.row.crf == "none" else "lattice",
        crf_params="irn" if last.row.crf == "none" else last.row.crf,
        dtype=cfg.compare.get("dtype", "float32"),
    )
    masks_root = work_dir / f"masks_{images.split}"
    with stage(console, seconds, "write the masks"):
        generated = generate(
            images, labeler, masks_root, overwrite=True, workers=default_workers(labeler)
        )
    sections: list[Section] = []
    for name, make_section in (more or {}).items():
        with stage(console, seconds, name):
            sections.append(make_section(results))
    with stage(console, seconds, "report"):
        masks, per_image = score_masks(images, masks_root / "masks")
        write_json(work_dir / f"masks_{images.split}.json", masks.to_dict())
        spread = pick_spread(per_image, each=3)
        shown = [item for item in results if item.row.crf == "none"]
        rows = make_picture_rows(
            classifier.network,
            shown,
            images,
            spread,
            masks_root / "masks",
            mask_name=last.row.name,
        )
        report = build_comparison_report(
            results,
            masks,
            images,
            title=title,
            subtitle=f"{images.class_set.name}: {len(images)} images of {images.split}; "
            f"{cfg.model.backbone}, classifier mAP {classifier.info['val_map']:.1f}",
            command=shlex.join(command),
            choose_split=cfg.compare.choose_on,
            lead_rows=rows[:: max(len(rows) // 4, 1)][:4],
            more_rows=rows,
            seconds=seconds,
            generated=generated,
            provenance=[
                KeyValues(
                    {
                        "config hash": hash_values(cfg.to_dict()),
                        "classifier": hash_file(checkpoint),
                        "seed": cfg.train.seed,
                        "start": str(cfg.model.get("weights") or "random weights"),
                        "machine": describe_machine(),
                    },
                    "How this was made",
                )
            ],
            extra_sections=sections,
            mask_name=last.row.name,
            threshold_note=f"threshold {last.threshold:.2f}, chosen on {cfg.compare.choose_on}",
        )
        path = write_report(report, work_dir)
    return Experiment(results, path)


@contextmanager
def stage(console: Console, seconds: dict[str, float], name: str) -> Iterator[None]:
    """Say that a stage begins, and how long it took."""
    console.print(f"· {name} …")
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    console.print(f"  {name}: {seconds[name]:.0f} s")


def print_results(results: Sequence[RowResult], choose_on: str, report_on: str) -> None:
    """Print the comparison as a table."""
    table = Table("method", f"threshold (chosen on {choose_on})", f"mIoU {report_on}, %")
    for item in results:
        table.add_row(item.row.name, f"{item.threshold:.2f}", f"{item.result.miou:.1f}")
    Console().print(table)
