"""Comparisons of a config: train what is missing, then score its methods side by side."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from adcam.data.dataset import ImageDataset
from adcam.data.sources import build_dataset
from adcam.errors import AdcamError
from adcam.evaluation.compare import Progress, RowResult, compare_methods, format_csv
from adcam.evaluation.compare_boxes import (
    BoxRowResult,
    SampleMaps,
    compare_boxes,
    format_box_csv,
    iterate_maps,
)
from adcam.files import write_json, write_text
from adcam.labeling.labeler import DTYPES, resolve_device
from adcam.models.classifier_file import ClassifierFile, load_classifier
from adcam.settings import MethodSpec, Settings, load_config
from adcam.structures import Sample
from adcam.training.classifier import CLASSIFIER_NAME, train_classifier

COMPARISON_NAME = "compare.json"


def read_rows(cfg: Config) -> list[MethodSpec]:
    """The methods that a config compares.

    Raises:
        AdcamError: If a row has an unknown or missing key, or two share a name.
    """
    values = {name: cfg.to_dict()[name] for name in ("task", "compare") if name in cfg}
    return list(Settings(values).compare.rows)


def run_compare(
    cfg: Config, work_dir: str | Path, *, progress: Progress | None = None
) -> list[RowResult]:
    """Train if ``work_dir`` has no classifier, then score the config's ``compare.rows``.

    Writes ``compare.csv`` into ``work_dir``.

    Args:
        cfg: A training config with a ``compare`` section: ``rows``, the splits ``choose_on`` and
            ``report_on``, and ``choose_stride``/``report_stride`` to use every n-th image.
        work_dir: Where the classifier is or will be.
        progress: As for :func:`compare_methods`.

    Raises:
        AdcamError: If the config has no ``compare`` section, or something in it is wrong.
    """
    work_dir = Path(work_dir)
    dtype = cfg.compare.get("dtype", "float32")
    if dtype not in DTYPES:
        raise AdcamError(f"compare.dtype must be one of {DTYPES}, got {dtype!r}")
    network = load_classifier(find_classifier(cfg, work_dir)).network
    stride = cfg.compare.get("choose_stride", 1)
    results = compare_methods(
        network,
        read_rows(cfg),
        build_dataset(cfg.data, cfg.compare.choose_on)[::stride],
        build_dataset(cfg.data, cfg.compare.report_on)[:: cfg.compare.get("report_stride", 1)],
        dtype=getattr(torch, dtype),
        progress=progress,
    )
    class_set = build_dataset(cfg.data, cfg.compare.report_on).class_set
    write_text(work_dir / "compare.csv", format_csv(results, class_set))
    return results


def find_classifier(cfg: Config, work_dir: Path) -> Path:
    """The classifier that is compared: ``compare.checkpoint``, or that of ``work_dir``.

    It is trained if ``work_dir`` has none.

    Raises:
        AdcamError: If the config has no ``compare`` section.
    """
    check_compare(cfg)
    if "checkpoint" in cfg.compare:
        return Path(cfg.compare.checkpoint)
    path = work_dir / CLASSIFIER_NAME
    return path if path.is_file() else train_classifier(cfg, work_dir)


def check_compare(cfg: Config) -> None:
    """Refuse a config that compares nothing.

    Raises:
        AdcamError: If it has no ``compare`` section.
    """
    if "compare" not in cfg:
        raise AdcamError("the config has no section 'compare'; configs/voc_animals has examples")


@dataclass(frozen=True)
class BoxComparison:
    """A comparison with what it was made from.

    Attributes:
        results: Of :func:`compare_boxes`.
        images: The reporting split.
        classifiers: The networks by name.
        checkpoints: Their files.
        device: Where they are.
        dtype: Of their passes.
        image_root: Folder that the paths of images begin in.
    """

    results: list[BoxRowResult]
    images: ImageDataset
    classifiers: Mapping[str, ClassifierFile]
    checkpoints: Mapping[str, Path]
    device: torch.device
    dtype: torch.dtype
    image_root: Path

    def iterate_maps(
        self, img_ids: Sequence[str]
    ) -> Iterator[tuple[Sample, dict[str, SampleMaps]]]:
        """Some images of the split with the maps of all rows, made again."""
        yield from iterate_maps(
            self.classifiers,
            [result.row for result in self.results],
            self.images.subset(img_ids),
            num_guesses=0,
            device=self.device,
            dtype=self.dtype,
            image_root=self.image_root,
        )


def run_compare_boxes(
    cfg: Config, work_dir: str | Path, *, progress: Progress | None = None
) -> BoxComparison:
    """Train what is not there yet, then score the config's ``compare.rows`` by boxes.

    Writes ``compare.csv`` and ``compare.json`` into ``work_dir``, and with
    ``compare.score_maps`` every map into ``work_dir/score_maps``.

    Args:
        cfg: A config with ``task="localization"``, ``data`` and ``compare``: ``rows``
            (:class:`MethodSpec`), the splits ``choose_on`` and ``report_on``, ``networks`` (see
            :func:`find_networks`), ``threshold``, ``dtype``, ``score_maps``, ``choose_stride`` and
            ``report_stride`` to use every n-th image.
        work_dir: Where results go.
        progress: As for :func:`compare_boxes`.

    Raises:
        AdcamError: If the config has no ``compare`` section, or something in it is wrong.
    """
    work_dir = Path(work_dir)
    check_compare(cfg)
    options = cfg.compare
    dtype = options.get("dtype", "float32")
    if dtype not in DTYPES:
        raise AdcamError(f"compare.dtype must be one of {DTYPES}, got {dtype!r}")
    rows = read_rows(cfg)
    choose_set = build_dataset(cfg.data, options.choose_on)[:: options.get("choose_stride", 1)]
    report_set = build_dataset(cfg.data, options.report_on)[:: options.get("report_stride", 1)]
    checkpoints = find_networks(cfg, work_dir)
    classifiers = {name: load_classifier(path) for name, path in checkpoints.items()}
    device = resolve_device(None)
    image_root = Path(cfg.data.root).expanduser()
    results = compare_boxes(
        classifiers,
        rows,
        choose_set,
        report_set,
        threshold=options.get("threshold"),
        device=device,
        dtype=getattr(torch, dtype),
        progress=progress,
        score_map_dir=work_dir / "score_maps" if options.get("score_maps", False) else None,
        image_root=image_root,
    )
    write_text(work_dir / "compare.csv", format_box_csv(results, report_set))
    write_json(
        work_dir / COMPARISON_NAME,
        {
            "task": "localization",
            "config": cfg.to_dict(),
            "split": report_set.split,
            "num_images": len(report_set),
            "rows": [result.to_dict() for result in results],
        },
    )
    return BoxComparison(
        results,
        report_set,
        classifiers,
        checkpoints,
        device,
        getattr(torch, dtype),
        image_root,
    )


def find_networks(cfg: Config, work_dir: str | Path) -> dict[str, Path]:
    """The classifier files that rows need, trained into ``work_dir/<name>`` where they are not.

    An entry of ``compare.networks`` is a classifier file (``.safetensors``), a config to train
    (``.py``, relative to the folder of ``cfg``), or ``dict(config=…, options={"train.seed": 1})``:
    such a config, or without ``config`` this one, with changes. ``""`` is the config itself.

    Raises:
        AdcamError: The config compares nothing, a row is wrong or names another network, or an
            entry is none of these.
    """
    check_compare(cfg)
    work_dir = Path(work_dir)
    names = {row.network for row in read_rows(cfg) if row.method}
    entries = dict(cfg.compare.get("networks", {}))
    if unknown := sorted(names - {"", *entries}):
        raise AdcamError(f"compare.networks has no {unknown}; there are {sorted(entries)}")
    found = {}
    for name in sorted(names):
        if name == "":
            found[name] = find_classifier(cfg, work_dir)
            continue
        entry = entries[name]
        if isinstance(entry, str) and entry.endswith(".safetensors"):
            found[name] = Path(entry).expanduser()
            continue
        path = work_dir / name / CLASSIFIER_NAME
        if not path.is_file():
            path = train_classifier(_training_config(cfg, name, entry), path.parent)
        found[name] = path
    return found


def _training_config(cfg: Config, name: str, entry: Any) -> Config:
    if isinstance(entry, str):
        entry = {"config": entry}
    if not isinstance(entry, Mapping) or entry.keys() - {"config", "options"}:
        raise AdcamError(
            f"compare.networks.{name} must be a .safetensors file, a .py config or "
            f"dict(config=…, options=…), got {entry!r}"
        )
    changes = dict(entry.get("options", {}))
    if "config" not in entry:
        changed = copy.deepcopy(cfg)
        changed.merge_from_dict(changes)
        return changed
    folder = Path(cfg.filename).parent if cfg.filename else Path()
    return load_config(folder / entry["config"], changes)
