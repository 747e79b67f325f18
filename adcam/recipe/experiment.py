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

from adcam.evaluation.compare import MethodResult
from adcam.files import hash_file, hash_values, write_json
from adcam.progress import track
from adcam.recipe.compare import find_classifier, run_compare
from adcam.recipe.comparison_report import (
    build_comparison_report,
    describe_machine,
    make_picture_rows,
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

    results: Sequence[MethodResult]
    report: Path


def run_experiment(
    cfg: Config,
    work_dir: str | Path,
    *,
    title: str,
    command: Sequence[str],
    more: Mapping[str, Callable[[Sequence[MethodResult]], Section]] | None = None,
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
        find_classifier(cfg, work_dir)
    with stage(console, seconds, "compare the methods, write the masks"):
        comparison = run_compare(cfg, work_dir, progress=track, with_masks=True)
    results, images = comparison.found.results, comparison.images
    last = results[-1]
    sections: list[Section] = []
    for name, make_section in (more or {}).items():
        with stage(console, seconds, name):
            sections.append(make_section(results))
    with stage(console, seconds, "report"):
        masks = comparison.found.masks
        write_json(work_dir / f"masks_{images.split}.json", masks.result.to_dict())
        rows = make_picture_rows(comparison.found, images, each=3)
        report = build_comparison_report(
            results,
            masks.result,
            images,
            title=title,
            subtitle=f"{images.class_set.name}: {len(images)} images of {images.split}; "
            f"{cfg.model.backbone}, classifier mAP {comparison.classifier.info['val_map']:.1f}",
            command=shlex.join(command),
            choose_split=cfg.compare.choose_on,
            lead_rows=rows[:: max(len(rows) // 4, 1)][:4],
            more_rows=rows,
            seconds=seconds,
            times=comparison.found.times,
            provenance=[
                KeyValues(
                    {
                        "config hash": hash_values(cfg.to_dict()),
                        "classifier": hash_file(comparison.checkpoint),
                        "seed": cfg.train.seed,
                        "start": str(cfg.model.get("weights") or "random weights"),
                        "machine": describe_machine(),
                    },
                    "How this was made",
                )
            ],
            extra_sections=sections,
            mask_name=last.spec.name,
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


def print_results(results: Sequence[MethodResult], choose_on: str, report_on: str) -> None:
    """Print the comparison as a table."""
    table = Table("method", f"threshold (chosen on {choose_on})", f"mIoU {report_on}, %")
    for item in results:
        table.add_row(item.spec.name, f"{item.threshold:.2f}", f"{item.result.miou:.1f}")
    Console().print(table)
