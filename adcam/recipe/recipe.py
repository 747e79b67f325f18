"""The whole recipe: classifier, pseudo masks, network, numbers, report, one stage after the other.

Each stage owns the folder of its name in the work_dir and records there, in ``stage.json``, the
inputs it was made from and the hashes of what it made. A stage whose inputs are the same is not run
again, one that was interrupted goes on, one whose inputs changed starts anew. What follows is
decided by the same rule: a stage that is redone and gives the same bytes changes nothing after it.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from rich.console import Console

from adcam.data.dataset import ImageDataset, Record
from adcam.data.sources import build_dataset
from adcam.errors import AdcamError
from adcam.files import hash_bytes, hash_file, hash_or_none, hash_values, write_json
from adcam.installation import read_versions, why_not_importable
from adcam.labeling.generate import default_workers, generate
from adcam.labeling.labeler import PseudoLabeler, options_from_config
from adcam.labeling.output_folder import CONFIG_NAME, MANIFEST_NAME, MASK_DIR, diff_configs
from adcam.models.classifier_file import load_classifier
from adcam.recipe.comparison_report import describe_machine
from adcam.recipe.network_report import (
    Teaching,
    build_recipe_report,
    load_scores,
    read_losses,
    write_scores,
)
from adcam.report.render import write_report
from adcam.settings import RecipeSettings, SegmentationSettings, Settings, from_section
from adcam.training.classifier import CLASSIFIER_NAME, train_classifier
from adcam.training.prediction import test_segmenter
from adcam.training.segmenter import load_segmentation_settings, train_segmenter
from adcam.training.segmenter_file import check_heads
from adcam.version import __version__

RECIPE_NAME = "recipe.json"
STAGE_NAME = "stage.json"

_SHOWN_CHANGES = 5

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What every stage sees.

    Attributes:
        config: Sections ``data``, ``model``, ``train``, ``optim_wrapper``, ``param_scheduler`` of
            the classifier, ``cam`` and ``mask`` of the masks, and ``recipe``: ``learn_from``, lists
            whose masks teach the network; ``evaluate``, lists whose masks are scored; ``test``, the
            list the network is scored on; ``network``, with the ``config`` of the network, dotted
            ``options`` that change it, and ``from_classifier``, whether its backbone starts as the
            classifier's; ``classifier``, one that is trained already.
        network: The network's config, its ``data`` being this recipe's; ``None`` where the recipe
            ends with the masks.
        work_dir: Where everything goes.
        title: Of the report.
        command: What makes everything again.
    """

    config: Config
    network: Config | None
    work_dir: Path
    title: str
    command: str

    def folder(self, stage: str) -> Path:
        """Where a stage writes."""
        return self.work_dir / stage

    def record(self, stage: str) -> Values | None:
        """The ``stage.json`` of a stage, ``None`` if there is none."""
        return read_stage(self.folder(stage))

    def outputs(self, stage: str) -> Values:
        """What a finished stage made.

        Raises:
            AdcamError: It has not finished.
        """
        record = self.record(stage)
        if record is None or record["state"] != "done":
            raise AdcamError(f"{self.folder(stage)}: the stage {stage!r} has not finished")
        outputs: Values = record["outputs"]
        return outputs

    @property
    def learn_from(self) -> list[str]:
        """Lists whose masks teach the network."""
        return _as_list(self.config.recipe.learn_from)

    @property
    def evaluate(self) -> list[str]:
        """Lists whose masks are scored."""
        return _as_list(self.config.recipe.evaluate)

    @property
    def classifier(self) -> Path:
        """The classifier file."""
        given = self.config.recipe.get("classifier")
        return Path(given) if given else self.folder("train") / CLASSIFIER_NAME

    def images(self, split: str) -> ImageDataset:
        """A list of the recipe's data."""
        return build_dataset(self.config.data, split)


@dataclass(frozen=True)
class Stage:
    """A step of the recipe.

    Attributes:
        name: Of the step and of its folder.
        needs: Stages whose results it takes.
        describe: Everything that changes what it makes, JSON-serialisable.
        run: Does the work in the stage's folder; returns hashes and numbers.
        title: What a reader of the terminal is told.
    """

    name: str
    needs: tuple[str, ...]
    describe: Callable[[Recipe], dict[str, Any]]
    run: Callable[[Recipe, Path], dict[str, Any]]
    title: str


def open_recipe(
    config: Config, work_dir: str | Path, *, title: str = "adcam run", command: str = ""
) -> Recipe:
    """Read and check a recipe; nothing is written.

    Args:
        config: As :class:`Recipe` has it.
        work_dir: Where everything goes.
        title: Of the report.
        command: What makes everything again, for the report.

    Raises:
        AdcamError: The config lacks something, names something unknown, or a file of it is missing.
    """
    if "recipe" not in config:
        raise AdcamError("the config has no section 'recipe'; configs/voc12 has an example")
    section = config.recipe
    from_section(RecipeSettings, section.to_dict(), "recipe")
    network = None
    if section.get("network"):
        given = section.network
        network = Config(load_segmentation_settings(given.config, given.get("options")).to_dict())
        network.data = ConfigDict(
            {
                **config.data.to_dict(),
                "train": _as_list(section.learn_from),
                "val": section.test,
                "masks": str((Path(work_dir) / "generate").resolve()),
            }
        )
        network.test.split = section.test
    recipe = Recipe(config, network, Path(work_dir), title, command)
    if network is not None:
        check_heads(SegmentationSettings(network.to_dict()), recipe.images(section.test).class_set)
        if section.network.get("from_classifier", False):
            network.weights = str(recipe.classifier)
    options_from_config(config)
    scored = [*recipe.evaluate, *([section.test] if "test" in section else [])]
    for split in dict.fromkeys([*recipe.learn_from, *scored]):
        recipe.images(split).check_files(masks=split in scored)
    return recipe


def run_recipe(
    recipe: Recipe,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    redo: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> list[str]:
    """Run what is not there yet, or no longer what the inputs would give.

    Args:
        recipe: Of :func:`open_recipe`.
        only: Names of the stages to look at; by default all of :data:`STAGES` that the recipe has.
        skip: Names of stages to leave as they are, up to date or not.
        redo: Names of stages to run again from nothing.
        say: Told of every stage; by default a line on standard error.

    Returns:
        Names of the stages that ran.

    Raises:
        AdcamError: A name is unknown, a stage lacks the result of one that is left out, a folder
            holds what no stage made, or a stage cannot be carried out.
    """
    say = say or partial(Console(stderr=True, highlight=False).print, soft_wrap=True, markup=False)
    for name in (*only, *skip, *redo):
        if name not in STAGES:
            raise AdcamError(f"there is no stage {name!r}; the stages are {', '.join(STAGES)}")
    chosen = [
        stage
        for stage in STAGES.values()
        if (not only or stage.name in only)
        and stage.name not in skip
        and (recipe.network is not None or stage.name not in NETWORK_STAGES)
    ]
    if unused := [name for name in redo if name not in {stage.name for stage in chosen}]:
        raise AdcamError(f"--redo names stages that are left out: {', '.join(unused)}")
    _check_order(recipe, chosen)
    if (
        any(stage.name in NETWORK_STAGES for stage in chosen)
        and (reason := why_not_importable("mmseg.models")) is not None
    ):
        raise AdcamError(
            f"the network cannot be trained: {reason}. Everything else runs with "
            f"--skip {' '.join(NETWORK_STAGES)}"
        )
    write_json(
        recipe.work_dir / RECIPE_NAME,
        {
            "adcam": __version__,
            "title": recipe.title,
            "command": recipe.command,
            "config": recipe.config.to_dict(),
            "network": None if recipe.network is None else recipe.network.to_dict(),
        },
    )
    return [stage.name for stage in chosen if _run_stage(recipe, stage, stage.name in redo, say)]


def load_recipe(work_dir: str | Path) -> Recipe:
    """The recipe that filled a work_dir, to make its report again.

    Raises:
        AdcamError: There is none.
    """
    path = Path(work_dir) / RECIPE_NAME
    try:
        values = json.loads(path.read_text("utf-8"))
        network = None if values["network"] is None else Config(values["network"])
        return Recipe(
            Config(values["config"]), network, Path(work_dir), values["title"], values["command"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdcamError(f"{path}: not of `adcam run` ({error})") from error


def make_report(recipe: Recipe) -> Path:
    """Write ``report/report.html`` from what the stages left.

    Raises:
        AdcamError: No masks have been scored yet.
    """
    teaching = read_teaching(recipe)
    report = build_recipe_report(teaching, title=recipe.title, command=recipe.command)
    return write_report(report, recipe.folder("report"))


def read_teaching(recipe: Recipe) -> Teaching:
    """What the finished stages say of teacher and network.

    Raises:
        AdcamError: No masks have been scored yet.
    """
    recipe.outputs("evaluate")
    records = {name: recipe.record(name) for name in STAGES}
    done = {name: r for name, r in records.items() if r is not None and r["state"] == "done"}
    shown = recipe.config.recipe.test if "test" in done else recipe.evaluate[-1]
    return Teaching(
        data_name=recipe.images(recipe.evaluate[0]).class_set.name,
        learn_from=recipe.learn_from,
        teacher={s: load_scores(recipe.folder("evaluate") / f"{s}.json") for s in recipe.evaluate},
        student=load_scores(recipe.folder("test") / "scores.json") if "test" in done else None,
        shown=recipe.images(shown),
        teacher_masks=recipe.folder("generate") / MASK_DIR,
        student_masks=recipe.folder("test") / MASK_DIR,
        losses=read_losses(recipe.folder("segment")) if "segment" in done else [],
        stages={name: record for name, record in done.items() if name != "report"},
        stale=_find_stale(recipe),
        config=recipe.config.to_dict(),
        network=None if recipe.network is None else recipe.network.to_dict(),
    )


def read_stage(folder: Path) -> Values | None:
    """The record of a stage, ``None`` if there is none.

    Raises:
        AdcamError: The file is damaged.
    """
    path = folder / STAGE_NAME
    if not path.is_file():
        return None
    try:
        record: Values = json.loads(path.read_text("utf-8"))
        record["state"], record["inputs"], record["outputs"]
    except (ValueError, KeyError, TypeError) as error:
        raise AdcamError(f"{path} is damaged ({error}); remove the folder to start anew") from error
    return record


def _run_stage(recipe: Recipe, stage: Stage, redo: bool, say: Callable[[str], None]) -> bool:
    """Run a stage if it has to; whether it ran."""
    folder = recipe.folder(stage.name)
    shutil.rmtree(_discarded(folder), ignore_errors=True)
    inputs = _inputs(recipe, stage)
    record = read_stage(folder)
    changes = [] if record is None else diff_configs(record["inputs"], inputs)
    if record is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise AdcamError(
                f"{folder} holds files, but no {STAGE_NAME} that says where they come from; take "
                "another --work-dir"
            )
        say(f"· {stage.name}: {stage.title} …")
    elif reason := _why_anew(folder, record, changes, redo):
        say(f"· {stage.name}: {stage.title} again, {reason} …")
        # Renamed first: a process killed here leaves no half of a result.
        folder.replace(_discarded(folder))
        shutil.rmtree(_discarded(folder))
    elif record["state"] == "done":
        say(f"· {stage.name}: nothing changed, kept")
        return False
    else:
        say(f"· {stage.name}: goes on where it stopped …")
    state = {"stage": stage.name, "state": "running", "inputs": inputs, "outputs": {}}
    write_json(folder / STAGE_NAME, state)
    start = time.perf_counter()
    outputs = stage.run(recipe, folder)
    seconds = round(time.perf_counter() - start, 1)
    made = {"seconds": seconds, "machine": describe_machine(), "versions": read_versions()}
    write_json(folder / STAGE_NAME, {**state, "state": "done", "outputs": outputs, **made})
    say(f"  {stage.name}: {seconds:.0f} s")
    return True


def _inputs(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """What the stage would be made from now, as JSON reads it back from a file."""
    inputs = {"adcam": __version__, **stage.describe(recipe)}
    as_json: dict[str, Any] = json.loads(json.dumps(inputs))
    return as_json


def _find_stale(recipe: Recipe) -> list[str]:
    """Finished stages whose inputs are others by now: those that were skipped."""
    done = {name: r for name in STAGES if (r := recipe.record(name)) and r["state"] == "done"}
    return [
        name
        for name, record in done.items()
        if name != "report"
        and not (
            all(needed in done for needed in STAGES[name].needs)
            and record["inputs"] == _inputs(recipe, STAGES[name])
        )
    ]


def _why_anew(folder: Path, record: Values, changes: Sequence[str], redo: bool) -> str:
    """Why what is there cannot be kept or gone on with; empty if it can."""
    if redo:
        return "as asked for"
    if changes:
        more = len(changes) - _SHOWN_CHANGES
        shown = "; ".join(changes[:_SHOWN_CHANGES])
        return f"changed: {shown}" + (f"; … ({more} more)" if more > 0 else "")
    files = record["outputs"].get("files", {})
    if lost := [name for name, digest in files.items() if hash_or_none(folder / name) != digest]:
        return f"no longer as it was: {', '.join(lost)}"
    return ""


def _describe_train(recipe: Recipe) -> dict[str, Any]:
    config = recipe.config
    if config.recipe.get("classifier"):
        return {"classifier": hash_file(recipe.classifier)}
    sections = ("task", "model", "train", "inca", "optim_wrapper", "param_scheduler")
    splits = (*_as_list(config.data.train), config.data.val)
    return {
        "config": {name: _hash_files(config[name]) for name in sections if name in config},
        "images": {split: _describe_images(recipe.images(split)) for split in splits},
    }


def _run_train(recipe: Recipe, folder: Path) -> dict[str, Any]:
    if not recipe.config.recipe.get("classifier"):
        train_classifier(Settings(recipe.config.to_dict()), folder, resume=True)
    info = load_classifier(recipe.classifier).info
    return {
        "files": {} if recipe.config.recipe.get("classifier") else _hashes(folder, CLASSIFIER_NAME),
        "classifier": hash_file(recipe.classifier),
        "val_map": info.get("val_map"),
        "val_split": info.get("val_split"),
        "epoch": info.get("epoch"),
    }


def _build_labeler(recipe: Recipe) -> PseudoLabeler:
    return PseudoLabeler.from_checkpoint(recipe.classifier, **options_from_config(recipe.config))


def _masked_images(recipe: Recipe) -> ImageDataset:
    """Every image that gets a mask, once, though several lists may hold it."""
    records: dict[str, Record] = {}
    splits = list(dict.fromkeys([*recipe.learn_from, *recipe.evaluate]))
    for split in splits:
        for record in recipe.images(split).records:
            other = records.setdefault(record.img_id, record)
            if other.img_path != record.img_path:
                raise AdcamError(
                    f"image id {record.img_id!r} of {split} is {record.img_path}, but in another "
                    f"list it is {other.img_path}"
                )
    return ImageDataset(recipe.images(splits[0]).class_set, "+".join(splits), records.values())


def _needs_maps(recipe: Recipe) -> bool:
    """Whether the network weighs pixels by the soft maps."""
    return recipe.network is not None and bool(recipe.network.train.get("confidence"))


def _describe_generate(recipe: Recipe) -> dict[str, Any]:
    images = _masked_images(recipe)
    return {
        "classifier": recipe.outputs("train")["classifier"],
        "labeler": _build_labeler(recipe).describe(),
        "maps": _needs_maps(recipe),
        "images": _describe_images(images),
    }


def _run_generate(recipe: Recipe, folder: Path) -> dict[str, Any]:
    labeler, images = _build_labeler(recipe), _masked_images(recipe)
    result = generate(
        images,
        labeler,
        folder,
        save_maps=_needs_maps(recipe),
        workers=default_workers(labeler),
    )
    if result.failed:
        first = result.failed[0]
        raise AdcamError(
            f"{len(result.failed)} of {len(images)} images have no mask, such as {first.img_id}: "
            f"{first.error}; {folder / MANIFEST_NAME} lists them"
        )
    return {"files": _hashes(folder, CONFIG_NAME), "images": len(images)}


def _describe_evaluate(recipe: Recipe) -> dict[str, Any]:
    return {
        "masks": _hash_masks(recipe, recipe.evaluate),
        "truth": {
            split: _describe_images(recipe.images(split), truth=True) for split in recipe.evaluate
        },
    }


def _run_evaluate(recipe: Recipe, folder: Path) -> dict[str, Any]:
    masks = recipe.folder("generate") / MASK_DIR
    names = [f"{split}.json" for split in recipe.evaluate]
    mious = {
        split: write_scores(recipe.images(split), masks, folder / name)
        for split, name in zip(recipe.evaluate, names, strict=True)
    }
    return {"files": _hashes(folder, *names), "miou": mious}


def _network(recipe: Recipe) -> Config:
    if recipe.network is None:
        raise AdcamError("the config names no network: recipe.network.config")
    return copy.deepcopy(recipe.network)  # a stage must not see what another one did to it


def _seg_settings(recipe: Recipe) -> SegmentationSettings:
    return SegmentationSettings(_network(recipe).to_dict())


def _describe_segment(recipe: Recipe) -> dict[str, Any]:
    sections = {k: v for k, v in _network(recipe).to_dict().items() if k not in ("data", "test")}
    return {
        "config": _hash_files(sections),
        "masks": _hash_masks(recipe, recipe.learn_from),
        "images": {split: _describe_images(recipe.images(split)) for split in recipe.learn_from},
    }


def _run_segment(recipe: Recipe, folder: Path) -> dict[str, Any]:
    checkpoint = train_segmenter(_seg_settings(recipe), work_dir=folder, resume=True)
    name = checkpoint.relative_to(folder).as_posix()
    return {"files": _hashes(folder, name), "checkpoint": name}


def _describe_test(recipe: Recipe) -> dict[str, Any]:
    network = _network(recipe)
    return {
        "checkpoint": recipe.outputs("segment")["files"],
        "config": {"test": _hash_files(network.test), "model": _hash_files(network.model)},
        "truth": _describe_images(recipe.images(network.test.split), truth=True),
    }


def _run_test(recipe: Recipe, folder: Path) -> dict[str, Any]:
    network = _seg_settings(recipe)
    checkpoint = recipe.folder("segment") / recipe.outputs("segment")["checkpoint"]
    test_segmenter(network, checkpoint, work_dir=folder, masks_out=folder)
    images = recipe.images(str(network.test.split))
    miou = write_scores(images, folder / MASK_DIR, folder / "scores.json")
    return {"files": _hashes(folder, "scores.json"), "miou": miou, "images": len(images)}


def _describe_report(recipe: Recipe) -> dict[str, Any]:
    records = {name: recipe.record(name) for name in STAGES if name != "report"}
    return {
        "title": recipe.title,
        "command": recipe.command,
        "stale": _find_stale(recipe),
        "stages": {
            name: hash_values({key: record[key] for key in ("state", "inputs", "outputs")})
            for name, record in records.items()
            if record is not None
        },
    }


def _run_report(recipe: Recipe, folder: Path) -> dict[str, Any]:
    return {"files": _hashes(folder, make_report(recipe).name)}


STAGES = {
    stage.name: stage
    for stage in (
        Stage("train", (), _describe_train, _run_train, "train the classifier"),
        Stage("generate", ("train",), _describe_generate, _run_generate, "make pseudo masks"),
        Stage("evaluate", ("generate",), _describe_evaluate, _run_evaluate, "score them"),
        Stage("segment", ("generate",), _describe_segment, _run_segment, "train the network"),
        Stage("test", ("segment",), _describe_test, _run_test, "test the network"),
        Stage("report", ("evaluate",), _describe_report, _run_report, "write the report"),
    )
}
"""The stages in their order, by name."""

NETWORK_STAGES = ("segment", "test")
"""Those that need mmsegmentation."""


def _check_order(recipe: Recipe, chosen: Sequence[Stage]) -> None:
    """Find, before hours of work, a stage that would lack the result of one that is left out."""
    names = {stage.name for stage in chosen}
    for stage in chosen:
        for needed in stage.needs:
            record = recipe.record(needed)
            if needed not in names and (record is None or record["state"] != "done"):
                raise AdcamError(
                    f"stage {stage.name!r} needs the result of {needed!r}, which is left out and "
                    f"not in {recipe.work_dir}"
                )


def _describe_images(images: ImageDataset, *, truth: bool = False) -> dict[str, Any]:
    """Hashes of a list: ids and labels, file sizes, and with ``truth`` the bytes of the masks.

    The photographs' own bytes would take minutes on a large data set; an image that is replaced by
    another has another size.

    Raises:
        AdcamError: Files are missing.
    """
    images.check_files(masks=truth)
    classes = images.class_set.classes
    records = images.records
    labels = [(r.img_id, [classes[i] for i in r.class_ids or ()]) for r in records]
    description: dict[str, Any] = {
        "images": len(images),
        "labels": hash_bytes(json.dumps(labels).encode()),
        "photographs": hash_bytes(
            json.dumps([r.img_path.stat().st_size for r in records]).encode()
        ),
    }
    if truth:
        hashes = [hash_file(r.mask_path) for r in records if r.mask_path is not None]
        description["masks"] = hash_bytes(json.dumps(hashes).encode())
    return description


def _hash_files(values: Any) -> Any:
    """A section of a config with each file's hash in the place of its path."""
    if isinstance(values, Mapping):
        return {key: _hash_files(values[key]) for key in sorted(values)}
    if isinstance(values, list | tuple):
        return [_hash_files(value) for value in values]
    if isinstance(values, str) and Path(values).suffix and Path(values).is_file():
        return f"file {hash_file(values)}"
    return values


def _hash_masks(recipe: Recipe, splits: Sequence[str]) -> str:
    """One hash of the pseudo masks of some lists, as they lie on the disk."""
    folder = recipe.folder("generate") / MASK_DIR
    ids = [record.img_id for split in splits for record in recipe.images(split).records]
    masks = [(img_id, hash_or_none(folder / f"{img_id}.png")) for img_id in ids]
    return hash_bytes(json.dumps(masks).encode())


def _hashes(folder: Path, *names: str) -> dict[str, str]:
    return {name: hash_file(folder / name) for name in names}


def _discarded(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.discarded")


def _as_list(splits: str | Sequence[str]) -> list[str]:
    return [splits] if isinstance(splits, str) else list(splits)
