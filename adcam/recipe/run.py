"""``adcam run``: classifier, class maps and what is learnt from them, masks, a network, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from adcam.data.dataset import ImageDataset, Record
from adcam.data.sources import build_dataset
from adcam.errors import AdcamError
from adcam.files import hash_file, open_json, to_plain
from adcam.installation import why_not_importable
from adcam.labeling.classifier_views import fill_views
from adcam.labeling.generate import generate
from adcam.labeling.labeler import PseudoLabeler
from adcam.labeling.labeler_options import options_from_settings, refined_options
from adcam.labeling.output_folder import CONFIG_NAME, MANIFEST_NAME, MAPS_DIR, MASK_DIR
from adcam.labeling.run import default_workers
from adcam.recipe.blocks import Run
from adcam.recipe.classifiers import Source, describe_classifier, find_classifier, make_classifier
from adcam.recipe.explorer import MaskFolder, write_explorer
from adcam.recipe.inputs import describe_images, hash_files_in, hash_masks
from adcam.recipe.network_report import RecipeResults, build_recipe_report
from adcam.recipe.scores import load_scores, read_losses, write_scores
from adcam.recipe.stages import Recipe, Stage, read_recipe, report_stage
from adcam.report.explorer import ExploredMethod
from adcam.report.render import write_report
from adcam.settings import SegmentationSettings, Settings, load_settings
from adcam.training.classifier import CLASSIFIER_NAME
from adcam.training.prediction import test_segmenter
from adcam.training.refiner import REFINED_NAME, UNREAD, train_refiner
from adcam.training.segmenter import train_segmenter
from adcam.training.segmenter_file import SEGMENTER_NAME, check_heads


@dataclass(frozen=True)
class MaskRecipe(Recipe):
    """Masks from labels, and a network from the masks.

    Attributes:
        settings: The settings of the classifier, of the masks, and the section ``recipe`` with the
            lists that the network learns from, whose masks are scored, and that it is tested on.
        network: The settings of the network, whose ``data`` is that of the recipe; ``None`` where
            the recipe ends with the masks.
        source: The classifier: settings to train it by, or its file.
        labeler_options: What turns the classifier's maps into masks, as keyword arguments of
            :class:`adcam.labeling.labeler.PseudoLabeler`.
    """

    kind: ClassVar[str] = "run"

    settings: Settings
    network: SegmentationSettings | None
    source: Source
    labeler_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stages(self) -> Sequence[Stage[MaskRecipe]]:
        """Training, maps and refinement, masks and scores, network and scores, report."""
        left_out: tuple[str, ...] = () if self.settings.recipe.refine else OF_REFINEMENT
        if self.network is None:
            left_out += OF_NETWORK
        return [
            replace(stage, needs=tuple(name for name in stage.needs if name not in left_out))
            for stage in STAGES
            if stage.name not in left_out
        ]

    def describe(self) -> dict[str, Any]:
        """The settings of classifier and network."""
        return {
            "settings": self.settings.to_dict(),
            "filename": self.settings.filename,
            "network": None if self.network is None else self.network.to_dict(),
        }

    @property
    def learn_from(self) -> tuple[str, ...]:
        """The lists whose masks teach the network."""
        return self.settings.recipe.learn_from

    @property
    def evaluate(self) -> tuple[str, ...]:
        """The lists whose masks are scored."""
        return self.settings.recipe.evaluate

    @property
    def masked(self) -> tuple[str, ...]:
        """The lists whose images get a mask."""
        return (*self.learn_from, *self.evaluate)

    def images(self, split: str) -> ImageDataset:
        """A list of the recipe's data."""
        return build_dataset(self.settings.data, split)


def open_recipe(
    settings: Settings,
    work_dir: str | Path,
    *,
    title: str = "adcam run",
    command: str = "",
    source: Source | None = None,
    labeler_options: Mapping[str, Any] | None = None,
) -> MaskRecipe:
    """Read and check a recipe; nothing is written.

    Args:
        settings: Settings with the section ``recipe``.
        work_dir: The folder that everything goes into.
        title: The title of the report.
        command: The command line that makes everything again, for the report.
        source: The classifier, as :class:`MaskRecipe` has it; ``None`` takes the file that the
            section ``recipe`` names, or trains one by the settings.
        labeler_options: As :class:`MaskRecipe` has them; ``None`` reads them from the sections
            ``cam`` and ``mask``. Where ``cam`` names no views, those that the file of a given
            classifier names take their place.

    Raises:
        AdcamError: The settings lack something, name something unknown, or a file is missing.
    """
    section, work_dir = settings.recipe, Path(work_dir)
    if source is None:
        source = settings if section.classifier is None else Path(section.classifier)
    if labeler_options is None:
        if isinstance(source, Path):
            settings = fill_views(settings, source)
        labeler_options = options_from_settings(settings.cam, settings.mask)
    network = _build_network(settings, source, work_dir)
    recipe = MaskRecipe(work_dir, title, command, settings, network, source, labeler_options)
    if network is not None and section.test is not None:
        check_heads(network, recipe.images(section.test).class_set)
    scored = [*section.evaluate, *([] if section.test is None else [section.test])]
    for split in dict.fromkeys([*section.learn_from, *scored]):
        recipe.images(split).check_files(masks=split in scored)
    return recipe


def load_recipe(work_dir: str | Path) -> MaskRecipe:
    """The recipe that filled a folder, to make its report again.

    Raises:
        AdcamError: The folder holds no recipe of ``adcam run``.
    """
    values = read_recipe(work_dir)
    try:
        settings = Settings(values["settings"], values["filename"])
        network = values["network"] and SegmentationSettings(values["network"])
    except (KeyError, TypeError) as error:
        raise AdcamError(f"{work_dir}: not a recipe of `adcam run` ({error})") from error
    given = settings.recipe.classifier
    source = settings if given is None else Path(given)
    options = options_from_settings(settings.cam, settings.mask)
    title, command = values["title"], values["command"]
    return MaskRecipe(Path(work_dir), title, command, settings, network, source, options)


def _build_network(
    settings: Settings, source: Source, work_dir: Path
) -> SegmentationSettings | None:
    """The settings of the network with the data of the recipe."""
    section = settings.recipe
    if section.network is None:
        return None
    found: SegmentationSettings = load_settings(
        section.network.config, section.network.options, kind=SegmentationSettings
    )
    values = found.to_dict()
    values["data"] = {
        **settings.to_dict()["data"],
        "train": list(section.learn_from),
        "val": section.test,
        "masks": str((work_dir / "generate").resolve()),
    }
    values["test"] = {**values.get("test", {}), "split": section.test}
    if section.network.from_classifier:
        values["weights"] = str(find_classifier(source, work_dir / "train"))
    return SegmentationSettings(values, found.filename)


def make_report(recipe: MaskRecipe) -> Path:
    """Write ``report/report.html`` from what the stages left.

    Raises:
        AdcamError: No masks have been scored yet.
    """
    results, folder = read_results(recipe), recipe.folder("report")
    explorer = write_explorer(folder, results.shown, _mask_folders(recipe, results))
    return write_report(build_recipe_report(results, explorer), folder)


def _mask_folders(recipe: MaskRecipe, results: RecipeResults) -> list[MaskFolder]:
    """The masks that the report shows image by image: pseudo masks, then the network's."""
    found, split = [], results.shown.split
    if (scores := results.pseudo_masks.get(split)) is not None:
        with open_json(
            recipe.folder("generate") / CONFIG_NAME, "not how masks were made"
        ) as config:
            rule, crf = config["labeler"]["rule"], config["labeler"]["crf"] != "none"
        method = ExploredMethod("pseudo mask", scores.miou, rule, crf=crf)
        found.append(MaskFolder(method, recipe.folder("generate"), scores))
    if (scores := results.network_masks) is not None:
        method = ExploredMethod("network", scores.miou)
        found.append(MaskFolder(method, recipe.folder("test"), scores))
    return found


def read_results(recipe: MaskRecipe) -> RecipeResults:
    """What the finished stages say about the pseudo masks and the network.

    Raises:
        AdcamError: No masks have been scored yet.
    """
    recipe.outputs("evaluate")
    configs = {"recipe": recipe.settings.to_dict()}
    seeds = {"classifier": configs["recipe"]["train"].get("seed")}
    if recipe.network is not None:
        configs["network"] = recipe.network.to_dict()
        seeds["network"] = configs["network"]["train"].get("seed")
    run = Run.of(recipe, configs, seeds)
    tested = recipe.settings.recipe.test if "test" in run.stages else None
    folder = recipe.folder("evaluate")
    return RecipeResults(
        run=run,
        data_name=recipe.images(recipe.evaluate[0]).class_set.name,
        learn_from=recipe.learn_from,
        pseudo_masks={split: load_scores(folder / f"{split}.json") for split in recipe.evaluate},
        network_masks=load_scores(recipe.folder("test") / "scores.json") if tested else None,
        shown=recipe.images(tested or recipe.evaluate[-1]),
        pseudo_masks_dir=recipe.folder("generate") / MASK_DIR,
        network_masks_dir=recipe.folder("test") / MASK_DIR,
        losses=read_losses(recipe.folder("segment")) if "segment" in run.stages else [],
        config=configs["recipe"],
        network=configs.get("network"),
    )


def _describe_masks(
    recipe: MaskRecipe, lists: Sequence[str], *, refined: bool = False
) -> dict[str, Any]:
    return {
        "classifier": recipe.outputs("refine" if refined else "train")["classifier"],
        "labeler": _build_labeler(recipe, refined=refined).describe(),
        "images": describe_images(_images_of(recipe, lists)),
    }


def _make_masks(
    recipe: MaskRecipe, folder: Path, lists: Sequence[str], *, refined: bool = False
) -> dict[str, Any]:
    """Make the masks and maps of lists; every image must get one."""
    images, labeler = _images_of(recipe, lists), _build_labeler(recipe, refined=refined)
    workers = default_workers(labeler)
    result = generate(images, labeler, folder, maps_dtype="uint8", workers=workers)
    if result.failed:
        first = result.failed[0]
        raise AdcamError(
            f"{len(result.failed)} of {len(images)} images have no mask, such as {first.img_id}: "
            f"{first.error}; {folder / MANIFEST_NAME} lists them"
        )
    return {"images": len(images)}


def _describe_refine(recipe: MaskRecipe) -> dict[str, Any]:
    values = asdict(recipe.settings.refine)
    return {
        "classifier": recipe.outputs("train")["classifier"],
        "maps": recipe.outputs("maps")["files"],
        "config": to_plain({name: values[name] for name in values if name not in UNREAD}),
    }


def _run_refine(recipe: MaskRecipe, folder: Path) -> dict[str, Any]:
    classifier = find_classifier(recipe.source, recipe.folder("train"))
    path = train_refiner(
        recipe.settings.refine, classifier, recipe.folder("maps"), folder, resume=True
    )
    return {"classifier": hash_file(path)}


def _describe_evaluate(recipe: MaskRecipe) -> dict[str, Any]:
    lists = {split: recipe.images(split) for split in recipe.evaluate}
    return {
        "masks": _hash_pseudo_masks(recipe, recipe.evaluate),
        "truth": {split: describe_images(images, masks=True) for split, images in lists.items()},
    }


def _run_evaluate(recipe: MaskRecipe, folder: Path) -> dict[str, Any]:
    masks = recipe.folder("generate") / MASK_DIR
    return {
        "miou": {
            split: write_scores(recipe.images(split), masks, folder / f"{split}.json")
            for split in recipe.evaluate
        }
    }


def _describe_segment(recipe: MaskRecipe) -> dict[str, Any]:
    values = _network(recipe).to_dict()
    sections = {name: section for name, section in values.items() if name not in ("data", "test")}
    return {
        "config": hash_files_in(sections),
        "masks": _hash_pseudo_masks(recipe, recipe.learn_from),
        "images": {split: describe_images(recipe.images(split)) for split in recipe.learn_from},
    }


def _run_segment(recipe: MaskRecipe, folder: Path) -> dict[str, Any]:
    train_segmenter(_network(recipe), work_dir=folder, resume=True)
    return {}


def _describe_test(recipe: MaskRecipe) -> dict[str, Any]:
    values = _network(recipe).to_dict()
    return {
        "checkpoint": recipe.outputs("segment")["files"],
        "config": {name: hash_files_in(values[name]) for name in ("test", "model")},
        "truth": describe_images(recipe.images(str(recipe.settings.recipe.test)), masks=True),
    }


def _run_test(recipe: MaskRecipe, folder: Path) -> dict[str, Any]:
    network = _network(recipe)
    checkpoint = recipe.folder("segment") / SEGMENTER_NAME
    test_segmenter(network, checkpoint, work_dir=folder, masks_out=folder)
    images = recipe.images(str(recipe.settings.recipe.test))
    miou = write_scores(images, folder / MASK_DIR, folder / "scores.json")
    return {"miou": miou, "images": len(images)}


def _why_no_network(recipe: MaskRecipe) -> str | None:
    reason = why_not_importable("mmseg.models")
    return None if reason is None else f"the network needs mmsegmentation, which is {reason}"


STAGES: tuple[Stage[MaskRecipe], ...] = (
    Stage(
        "train",
        "train the classifier",
        needs=(),
        describe=lambda recipe: describe_classifier(recipe.source),
        files=lambda recipe: [] if isinstance(recipe.source, Path) else [CLASSIFIER_NAME],
        run=lambda recipe, folder: make_classifier(recipe.source, folder),
    ),
    Stage(
        "maps",
        "make class maps to learn from",
        needs=("train",),
        describe=lambda recipe: _describe_masks(recipe, recipe.learn_from),
        files=lambda recipe: [CONFIG_NAME, MASK_DIR, MAPS_DIR],
        run=lambda recipe, folder: _make_masks(recipe, folder, recipe.learn_from),
        repairs=(MASK_DIR, MAPS_DIR),
    ),
    Stage(
        "refine",
        "learn from the class maps",
        needs=("train", "maps"),
        describe=_describe_refine,
        files=lambda recipe: [REFINED_NAME],
        run=_run_refine,
    ),
    Stage(
        "generate",
        "make pseudo masks",
        needs=("train", "refine"),
        describe=lambda recipe: _describe_masks(
            recipe, recipe.masked, refined=recipe.settings.recipe.refine
        ),
        files=lambda recipe: [CONFIG_NAME, MASK_DIR, MAPS_DIR],
        run=lambda recipe, folder: _make_masks(
            recipe, folder, recipe.masked, refined=recipe.settings.recipe.refine
        ),
        repairs=(MASK_DIR, MAPS_DIR),
    ),
    Stage(
        "evaluate",
        "score the pseudo masks",
        needs=("generate",),
        describe=_describe_evaluate,
        files=lambda recipe: [f"{split}.json" for split in recipe.evaluate],
        run=_run_evaluate,
    ),
    Stage(
        "segment",
        "train the network",
        needs=("train", "generate"),
        describe=_describe_segment,
        files=lambda recipe: [SEGMENTER_NAME],
        run=_run_segment,
        obstacle=_why_no_network,
    ),
    Stage(
        "test",
        "test the network",
        needs=("segment",),
        describe=_describe_test,
        files=lambda recipe: [CONFIG_NAME, MASK_DIR, "scores.json"],
        run=_run_test,
        repairs=(MASK_DIR,),
        obstacle=_why_no_network,
    ),
    report_stage(make_report, needs=("generate", "evaluate")),
)
"""The stages of ``adcam run`` in the order in which they run."""

OF_REFINEMENT = ("maps", "refine")
"""The stages of a recipe that refines its classifier (``recipe.refine``)."""

OF_NETWORK = ("segment", "test")
"""The stages of a recipe that trains a network."""


def _network(recipe: MaskRecipe) -> SegmentationSettings:
    if recipe.network is None:
        raise AdcamError("the config names no network: recipe.network.config")
    return recipe.network


def _build_labeler(recipe: MaskRecipe, *, refined: bool = False) -> PseudoLabeler:
    if refined:
        path = recipe.folder("refine") / REFINED_NAME
        return PseudoLabeler.from_checkpoint(path, **refined_options(recipe.settings))
    path = find_classifier(recipe.source, recipe.folder("train"))
    return PseudoLabeler.from_checkpoint(path, **recipe.labeler_options)


def _images_of(recipe: MaskRecipe, lists: Sequence[str]) -> ImageDataset:
    """The images of several lists, each once, though several may hold it."""
    records: dict[str, Record] = {}
    splits = list(dict.fromkeys(lists))
    for split in splits:
        for record in recipe.images(split).records:
            other = records.setdefault(record.img_id, record)
            if other.img_path != record.img_path:
                raise AdcamError(
                    f"image id {record.img_id!r} of {split} is {record.img_path}, but in another "
                    f"list it is {other.img_path}"
                )
    return ImageDataset(recipe.images(splits[0]).class_set, "+".join(splits), records.values())


def _hash_pseudo_masks(recipe: MaskRecipe, splits: Sequence[str]) -> str:
    ids = [record.img_id for split in splits for record in recipe.images(split).records]
    return hash_masks(recipe.folder("generate") / MASK_DIR, ids)
