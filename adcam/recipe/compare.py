"""Comparisons of a config: train what is missing, then score its methods side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from adcam.data.dataset import ImageDataset
from adcam.data.sources import build_dataset
from adcam.errors import AdcamError
from adcam.evaluation.compare import MethodComparison, compare_methods, format_csv
from adcam.evaluation.compare_boxes import BoxComparison, compare_boxes, format_box_csv
from adcam.evaluation.loop import LoopOptions, Progress, default_workers
from adcam.files import write_json, write_text
from adcam.labeling.labeler import DTYPES
from adcam.models.classifier_file import ClassifierFile, load_classifier
from adcam.settings import MethodSpec, Settings, load_config
from adcam.training.classifier import CLASSIFIER_NAME, train_classifier

COMPARISON_NAME = "compare.json"


def read_rows(cfg: Config) -> list[MethodSpec]:
    """The methods that a config compares.

    Raises:
        AdcamError: If a row has an unknown or missing key, or two share a name.
    """
    values = {name: cfg.to_dict()[name] for name in ("task", "compare") if name in cfg}
    return list(Settings(values).compare.rows)


@dataclass(frozen=True, eq=False)
class MaskComparison:
    """A comparison of methods of segmentation, with what it was made from.

    Attributes:
        found: The scores and all that a report needs.
        images: All images of the reporting split.
        classifier: The classifier.
        checkpoint: The file of the classifier.
    """

    found: MethodComparison
    images: ImageDataset
    classifier: ClassifierFile
    checkpoint: Path


def run_compare(
    cfg: Config,
    work_dir: str | Path,
    *,
    progress: Progress | None = None,
    with_masks: bool = False,
) -> MaskComparison:
    """Train if ``work_dir`` has no classifier, then score the config's ``compare.rows``.

    Writes ``compare.csv`` into ``work_dir``.

    Args:
        cfg: A training config with a ``compare`` section: ``rows``, the splits ``choose_on`` and
            ``report_on``, and ``choose_stride``/``report_stride`` to use every n-th image.
        work_dir: The folder of the classifier and of the results.
        progress: A function that wraps the loop over images and shows how far it is.
        with_masks: Whether to write ``masks_<split>/`` too, the masks of the last method on all
            images of ``report_on``, and to keep its pictures.

    Raises:
        AdcamError: If the config has no ``compare`` section, or something in it is wrong.
    """
    work_dir = Path(work_dir)
    dtype = _read_dtype(cfg)
    checkpoint = find_classifier(cfg, work_dir)
    classifier = load_classifier(checkpoint)
    images = build_dataset(cfg.data, cfg.compare.report_on)
    stride = cfg.compare.get("report_stride", 1)
    found = compare_methods(
        {"": classifier},
        read_rows(cfg),
        build_dataset(cfg.data, cfg.compare.choose_on)[:: cfg.compare.get("choose_stride", 1)],
        images if with_masks else images[::stride],
        options=LoopOptions(dtype=dtype, workers=default_workers(), progress=progress),
        report_stride=stride if with_masks else 1,
        masks_dir=work_dir / f"masks_{images.split}" if with_masks else None,
        keep_pictures=with_masks,
    )
    write_text(work_dir / "compare.csv", format_csv(found.results, images.class_set))
    return MaskComparison(found, images, classifier, checkpoint)


def _read_dtype(cfg: Config) -> torch.dtype:
    name = cfg.compare.get("dtype", "float32")
    if name not in DTYPES:
        raise AdcamError(f"compare.dtype must be one of {DTYPES}, got {name!r}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


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
    return path if path.is_file() else train_classifier(Settings(cfg.to_dict()), work_dir)


def check_compare(cfg: Config) -> None:
    """Refuse a config that compares nothing.

    Raises:
        AdcamError: If it has no ``compare`` section.
    """
    if "compare" not in cfg:
        raise AdcamError("the config has no section 'compare'; configs/voc_animals has examples")


@dataclass(frozen=True, eq=False)
class BoxesComparison:
    """A comparison by boxes, with what it was made from.

    Attributes:
        found: The scores and all that a report needs.
        images: The images that were reported on.
        checkpoints: The files of the networks by name.
    """

    found: BoxComparison
    images: ImageDataset
    checkpoints: Mapping[str, Path]


def run_compare_boxes(
    cfg: Config,
    work_dir: str | Path,
    *,
    progress: Progress | None = None,
    keep_pictures: bool = False,
) -> BoxesComparison:
    """Train what is not there yet, then score the config's ``compare.rows`` by boxes.

    Writes ``compare.csv`` and ``compare.json`` into ``work_dir``, and with
    ``compare.score_maps`` every map into ``work_dir/score_maps``.

    Args:
        cfg: A config with ``task="localization"``, ``data`` and ``compare``: ``rows``
            (:class:`MethodSpec`), the splits ``choose_on`` and ``report_on``, ``networks`` (see
            :func:`find_networks`), ``threshold``, ``dtype``, ``score_maps``, ``choose_stride`` and
            ``report_stride`` to use every n-th image.
        work_dir: The folder of the results.
        progress: A function that wraps the loop over images and shows how far it is.
        keep_pictures: Whether to keep the images with all maps for a report.

    Raises:
        AdcamError: If the config has no ``compare`` section, or something in it is wrong.
    """
    work_dir = Path(work_dir)
    check_compare(cfg)
    section = cfg.compare
    dtype = _read_dtype(cfg)
    rows = read_rows(cfg)
    choose_set = build_dataset(cfg.data, section.choose_on)[:: section.get("choose_stride", 1)]
    report_set = build_dataset(cfg.data, section.report_on)[:: section.get("report_stride", 1)]
    checkpoints = find_networks(cfg, work_dir)
    found = compare_boxes(
        {name: load_classifier(path) for name, path in checkpoints.items()},
        rows,
        choose_set,
        report_set,
        threshold=section.get("threshold"),
        options=LoopOptions(dtype=dtype, workers=default_workers(), progress=progress),
        score_map_dir=work_dir / "score_maps" if section.get("score_maps", False) else None,
        image_root=Path(cfg.data.root).expanduser(),
        keep_pictures=keep_pictures,
    )
    write_text(work_dir / "compare.csv", format_box_csv(found.results, report_set))
    write_json(
        work_dir / COMPARISON_NAME,
        {
            "task": "localization",
            "config": cfg.to_dict(),
            "split": report_set.split,
            "num_images": len(report_set),
            "rows": [result.to_dict() for result in found.results],
        },
    )
    return BoxesComparison(found, report_set, checkpoints)


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
            path = train_classifier(
                Settings(_training_config(cfg, name, entry).to_dict()), path.parent
            )
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
