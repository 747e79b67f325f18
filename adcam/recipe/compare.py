"""``adcam compare``: train what is missing, score methods by masks or boxes, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from adcam.data.dataset import ImageDataset
from adcam.data.score_maps import find_score_maps
from adcam.data.sources import build_dataset
from adcam.errors import AdcamError
from adcam.evaluation.attention import find_attentive, read_attention
from adcam.evaluation.compare import compare_methods, format_csv
from adcam.evaluation.compare_boxes import compare_boxes, format_box_csv
from adcam.evaluation.loop import EvaluationTimes, LoopOptions, default_workers, start_loop_early
from adcam.evaluation.mapping import path_below_root
from adcam.files import hash_values, open_json, to_json, write_json, write_text
from adcam.labeling.output_folder import CONFIG_NAME, MASK_DIR
from adcam.models.classifier_file import ClassifierFile, load_classifier
from adcam.progress import track
from adcam.recipe.blocks import Run, pick_spread
from adcam.recipe.box_report import BoxResults, build_box_report, draw_boxes_found
from adcam.recipe.classifiers import Source, describe_classifier, find_classifier, make_classifier
from adcam.recipe.comparison_report import (
    ComparisonResults,
    build_comparison_report,
    draw_comparison,
)
from adcam.recipe.explorer import (
    HOW_BOXES,
    MOST_BOX_CLASSES,
    load_explorer,
    save_box_explorer,
    save_explorer,
)
from adcam.recipe.inputs import describe_images, hash_files_in
from adcam.recipe.pictures import PICTURES_DIR, load_pictures, save_pictures
from adcam.recipe.scores import BoxScores, MethodScores, describe_scores, load_scores
from adcam.recipe.stages import Recipe, Stage, Values, report_stage
from adcam.report.explorer import EXPLORER_DIR
from adcam.report.model import Section
from adcam.report.render import write_report
from adcam.settings import NetworkEntry, Settings, load_settings
from adcam.training.classifier import CLASSIFIER_NAME

TABLE_NAME = "compare.csv"
RESULTS_NAME = "compare.json"
SCORES_NAME = "scores.json"
SCORE_MAPS_DIR = "score_maps"

_NOT_HASHED = ("networks", "checkpoint", "seeds", "reference")
"""Keys of the section that say where classifiers come from, or what is made of their scores."""

T = TypeVar("T")


@dataclass(frozen=True)
class ComparisonRecipe(Recipe):
    """Methods side by side, on one classifier or on several.

    Attributes:
        settings: The settings of the classifier, and the section ``compare``.
        table_only: Whether no masks are made and no maps are kept for a report.
    """

    kind: ClassVar[str] = "compare"

    settings: Settings
    table_only: bool = field(default=False, kw_only=True)

    @property
    def is_by_boxes(self) -> bool:
        """Whether methods are scored by their boxes, not by their masks."""
        return self.settings.task == "localization"

    def describe(self) -> dict[str, Any]:
        """The settings, and where they were read from, since they may name files beside it."""
        return {
            "settings": self.settings.to_dict(),
            "filename": self.settings.filename,
            "table_only": self.table_only,
        }


@dataclass(frozen=True)
class Comparison(ComparisonRecipe):
    """Methods side by side on one classifier.

    Attributes:
        sources: Where the classifier of each network that the methods name comes from.
    """

    sources: Mapping[str, Source]
    _splits: dict[str, ImageDataset] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def stages(self) -> Sequence[Stage[Comparison]]:
        """Training, comparison, report."""
        return STAGES

    @property
    def image_root(self) -> Path:
        """The folder that the paths of images are relative to where maps are read or written."""
        return Path(self.settings.data.root).expanduser()

    def choose_set(self) -> ImageDataset:
        """The images that thresholds are chosen on."""
        compare = self.settings.compare
        return self._open(compare.choose_on)[:: compare.choose_stride]

    def report_set(self) -> ImageDataset:
        """The images that scores are reported on."""
        compare = self.settings.compare
        return self._open(compare.report_on)[:: compare.report_stride]

    def masked_set(self) -> ImageDataset:
        """The images that the last method makes masks of: all of the reported split."""
        return self._open(self.settings.compare.report_on)

    def _open(self, split: str) -> ImageDataset:
        """A list of images, read once for all stages."""
        if split not in self._splits:
            self._splits[split] = build_dataset(self.settings.data, split)
        return self._splits[split]

    def classifier_path(self, network: str) -> Path:
        """The file of the classifier of a network."""
        return find_classifier(self.sources[network], self.folder("train") / network)

    def load_classifiers(self) -> dict[str, ClassifierFile]:
        """The classifiers by the name of their network."""
        return {name: load_classifier(self.classifier_path(name)) for name in self.sources}


def open_comparison(
    settings: Settings,
    work_dir: str | Path,
    *,
    title: str = "adcam compare",
    command: str = "",
    table_only: bool = False,
) -> Comparison:
    """Read and check a comparison; nothing is written.

    Args:
        settings: Settings with the section ``compare``.
        work_dir: The folder that everything goes into. A ``classifier.safetensors`` in it, as
            ``adcam train`` leaves it, is taken in place of a new training.
        title: The title of the report.
        command: The command line that makes everything again, for the report.
        table_only: Whether no masks are made and no maps are kept for a report.

    Raises:
        AdcamError: The section is missing, names something unknown, or files are missing.
    """
    work_dir = Path(work_dir)
    sources = find_sources(settings, work_dir)
    comparison = Comparison(work_dir, title, command, settings, sources, table_only=table_only)
    for images in (comparison.choose_set(), comparison.report_set()):
        images.check_files(masks=not comparison.is_by_boxes)
        for folder in (row.score_maps for row in settings.compare.rows if row.score_maps):
            paths = (path_below_root(record, comparison.image_root) for record in images.records)
            find_score_maps(Path(folder).expanduser(), paths)
    return comparison


def make_report(
    comparison: Comparison, whole: Recipe | None = None, extra_sections: Sequence[Section] = ()
) -> Path:
    """Write ``report/report.html`` from what the stages left; no network runs.

    Args:
        comparison: The comparison.
        whole: The recipe that the comparison is a part of, if it is.
        extra_sections: What that recipe has to say besides, for a comparison by masks.

    Raises:
        AdcamError: There are no scores yet, or no masks since only the table was asked for.
    """
    whole = whole or comparison
    if comparison.is_by_boxes:
        report = build_box_report(read_box_results(comparison, whole))
    else:
        report = build_comparison_report(read_results(comparison, whole), extra_sections)
    return write_report(report, whole.folder("report"))


def read_methods(comparison: Comparison) -> list[MethodScores]:
    """The scores of each method on masks."""
    comparison.outputs("compare")
    return _read_methods(comparison.folder("compare"), MethodScores.from_dict)


def read_box_methods(comparison: Comparison) -> list[BoxScores]:
    """The scores of each method by boxes."""
    comparison.outputs("compare")
    return _read_methods(comparison.folder("compare"), BoxScores.from_dict)


def read_results(comparison: Comparison, whole: Recipe) -> ComparisonResults:
    """What the finished stages say about methods that are scored on masks.

    Args:
        comparison: The comparison.
        whole: The recipe whose stages count, the comparison itself or a larger one.

    Raises:
        AdcamError: There are no scores yet, or no masks.
    """
    settings, folder = comparison.settings, comparison.folder("compare")
    methods, images = read_methods(comparison), comparison.masked_set()
    seed = [*settings.compare.seeds, settings.train.seed][0]
    run = Run.of(whole, {"comparison": settings.to_dict()}, {"classifier": seed})
    trained = run.stages["train"]["outputs"]["classifiers"][settings.compare.rows[-1].network]
    val_map = trained["val_map"]  # a file that was not trained here may not say
    of_classifier = "" if val_map is None else f", classifier mAP {val_map:.1f}"
    return ComparisonResults(
        run=run,
        methods=methods,
        masks=load_scores(folder / SCORES_NAME),
        mask_name=methods[-1].name,
        class_set=images.class_set,
        pictures=load_pictures(folder),
        choose_split=settings.compare.choose_on,
        subtitle=f"{images.class_set.name}: {len(images)} images of {images.split}; "
        f"{settings.model.backbone}{of_classifier}",
        explorer=load_explorer(folder, images.split),
    )


def read_box_results(comparison: Comparison, whole: Recipe) -> BoxResults:
    """What the finished stages say about methods that are scored by their boxes.

    Args:
        comparison: The comparison.
        whole: As for :func:`read_results`.

    Raises:
        AdcamError: There are no scores yet.
    """
    images, folder = comparison.report_set(), comparison.folder("compare")
    return BoxResults(
        run=Run.of(whole, {"comparison": comparison.settings.to_dict()}),
        methods=read_box_methods(comparison),
        images=images,
        pictures=load_pictures(folder),
        explorer=load_explorer(folder, images.split, HOW_BOXES),
    )


def _find_missing(comparison: Comparison) -> str | None:
    given = [source for source in comparison.sources.values() if isinstance(source, Path)]
    missing = next((path for path in given if not path.is_file()), None)
    return None if missing is None else f"there is no classifier {missing}"


def _describe_compare(comparison: Comparison) -> dict[str, Any]:
    section = comparison.settings.to_dict()["compare"]
    trained = comparison.outputs("train")["classifiers"]
    masks = not comparison.is_by_boxes
    return {
        "classifiers": {name: trained[name]["classifier"] for name in comparison.sources},
        "compare": hash_files_in(
            {key: value for key, value in section.items() if key not in _NOT_HASHED}
        ),
        "stored_maps": {
            row.name: _describe_folder(Path(row.score_maps).expanduser())
            for row in comparison.settings.compare.rows
            if row.score_maps
        },
        "choose": describe_images(comparison.choose_set(), masks=masks),
        "report": describe_images(comparison.report_set(), masks=masks),
        "table_only": comparison.table_only,
    }


def _compare_files(comparison: Comparison) -> list[str]:
    files = [TABLE_NAME, RESULTS_NAME]
    if comparison.is_by_boxes:
        kept = [SCORE_MAPS_DIR] if comparison.settings.compare.score_maps else []
        shown = [PICTURES_DIR]
        if len(comparison.report_set().class_set.classes) <= MOST_BOX_CLASSES:
            shown.append(EXPLORER_DIR)
        return [*files, *kept, *([] if comparison.table_only else shown)]
    if comparison.table_only:
        return files
    return [*files, CONFIG_NAME, MASK_DIR, SCORES_NAME, PICTURES_DIR, EXPLORER_DIR]


def _run_compare(comparison: Comparison, folder: Path) -> dict[str, Any]:
    if comparison.is_by_boxes:
        images = comparison.report_set()
        compare = _compare_by_boxes
    else:
        images = comparison.report_set() if comparison.table_only else comparison.masked_set()
        compare = _compare_by_masks
    dtype = getattr(torch, comparison.settings.compare.dtype)
    options = LoopOptions(dtype=dtype, workers=default_workers(), progress=track)
    start_loop_early(options, len(images))
    times = compare(comparison, images, folder, options)
    return {"images": len(images), "times": _describe_times(times)}


def _compare_by_masks(
    comparison: Comparison, images: ImageDataset, folder: Path, options: LoopOptions
) -> Mapping[str, EvaluationTimes]:
    compare, table_only = comparison.settings.compare, comparison.table_only
    classifiers = comparison.load_classifiers()
    found = compare_methods(
        classifiers,
        compare.rows,
        comparison.choose_set(),
        images,
        options=options,
        report_stride=1 if table_only else compare.report_stride,
        masks_dir=None if table_only else folder,
        keep_pictures=not table_only,
    )
    write_text(folder / TABLE_NAME, format_csv(found.results, images.class_set))
    methods = [MethodScores.from_result(result).to_dict() for result in found.results]
    write_json(folder / RESULTS_NAME, {"split": images.split, "methods": methods})
    if not table_only:
        write_json(folder / SCORES_NAME, describe_scores(images, found.masks))
        shown = pick_spread(load_scores(folder / SCORES_NAME).ranking)
        save_pictures(folder, draw_comparison(found, images, shown))
        patches = {}
        if (spec := find_attentive(compare.rows)) is not None:
            for img_id in shown:
                img = images.load_image(images.index_of(img_id))
                classifier = classifiers[spec.network]
                patches[img_id] = read_attention(classifier, spec, img, options=options)
        save_explorer(folder, found, images.class_set, patches)
    return found.times


def _compare_by_boxes(
    comparison: Comparison, images: ImageDataset, folder: Path, options: LoopOptions
) -> Mapping[str, EvaluationTimes]:
    compare = comparison.settings.compare
    found = compare_boxes(
        comparison.load_classifiers(),
        compare.rows,
        comparison.choose_set(),
        images,
        threshold=compare.threshold,
        options=options,
        score_map_dir=folder / SCORE_MAPS_DIR if compare.score_maps else None,
        image_root=comparison.image_root,
        pictures_dir=None if comparison.table_only else folder,
    )
    write_text(folder / TABLE_NAME, format_box_csv(found.results, images))
    methods = [
        {**to_json(result.to_dict()), "ious": {o.img_id: o.iou for o in result.outcomes}}
        for result in found.results
    ]
    write_json(folder / RESULTS_NAME, {"split": images.split, "methods": methods})
    if not comparison.table_only:
        shown = pick_spread(_read_methods(folder, BoxScores.from_dict)[-1].ranking)
        save_pictures(folder, draw_boxes_found(found, images, shown))
        save_box_explorer(folder, found, images.class_set)
    return found.times


def _describe_times(times: Mapping[str, EvaluationTimes]) -> dict[str, Any]:
    return {
        split: {
            "seconds": {step: round(spent, 1) for step, spent in part.seconds.items()},
            "total": round(part.total, 1),
            "num_processes": part.num_processes,
        }
        for split, part in times.items()
    }


TRAIN: Stage[Comparison] = Stage(
    "train",
    "train the classifier",
    needs=(),
    describe=lambda comparison: {
        "classifiers": {name: describe_classifier(s) for name, s in comparison.sources.items()}
    },
    files=lambda comparison: [
        (Path(name) / CLASSIFIER_NAME).as_posix()
        for name, source in comparison.sources.items()
        if not isinstance(source, Path)
    ],
    run=lambda comparison, folder: {
        "classifiers": {n: make_classifier(s, folder / n) for n, s in comparison.sources.items()}
    },
    obstacle=_find_missing,
)
COMPARE: Stage[Comparison] = Stage(
    "compare",
    "compare the methods",
    needs=("train",),
    describe=_describe_compare,
    files=_compare_files,
    run=_run_compare,
)
REPORT = report_stage(make_report, needs=("train", "compare"))

STAGES: tuple[Stage[Comparison], ...] = (TRAIN, COMPARE, REPORT)
"""The stages of ``adcam compare`` in the order in which they run."""


def find_sources(settings: Settings, work_dir: Path) -> dict[str, Source]:
    """Where the classifier of each network that the methods name comes from."""
    names = sorted({row.network for row in settings.compare.rows if row.method})
    return {name: find_source(settings, name, work_dir) for name in names}


def find_source(settings: Settings, name: str, work_dir: Path) -> Source:
    """Where the classifier of a network comes from; ``""`` is the network of the config itself.

    Raises:
        AdcamError: The settings name several classifiers, which
            :mod:`adcam.recipe.repeated` compares on one after the other.
    """
    source, seeds = _find_source(settings, name, work_dir), settings.compare.seeds
    if len(seeds) > 1:
        raise AdcamError(f"one comparison has one classifier, but compare.seeds is {list(seeds)}")
    if seeds and isinstance(source, Settings):
        return source.with_changes({"train.seed": seeds[0]})
    return source


def _find_source(settings: Settings, name: str, work_dir: Path) -> Source:
    compare = settings.compare
    if name == "":
        trained = work_dir / CLASSIFIER_NAME
        if isinstance(compare.checkpoint, str):
            return Path(compare.checkpoint).expanduser()
        if compare.checkpoint is not None:
            raise AdcamError(
                f"one comparison has one classifier, but compare.checkpoint is {compare.checkpoint}"
            )
        return trained if trained.is_file() else settings
    entry = compare.networks[name]
    if isinstance(entry, NetworkEntry):
        if entry.config is None:
            return settings.with_changes(entry.options)
        path, changes = entry.config, entry.options
    elif entry.endswith(".safetensors"):
        return Path(entry).expanduser()
    else:
        path, changes = entry, {}
    folder = Path(settings.filename).parent if settings.filename else Path()
    return load_settings(folder / path, changes)


def _read_methods(folder: Path, read: Callable[[Values], T]) -> list[T]:
    with open_json(folder / RESULTS_NAME, "no scores of a comparison") as values:
        return [read(method) for method in values["methods"]]


def _describe_folder(folder: Path) -> str:
    """A hash of the names, sizes and times of stored maps, which are too large to be read."""
    found = [
        (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*.npy"))
    ]
    return hash_values({"files": found})
