"""``adcam demo``: the whole job on the generated set, and photographs labelled without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import skimage.data

import adcam
from adcam.data.shapes import GENERATOR_VERSION, make_shape_boxes, make_shapes
from adcam.errors import AdcamError
from adcam.evaluation.mask_folder import mask_options
from adcam.installation import why_not_importable
from adcam.labeling.labeler import PseudoLabeler
from adcam.masks.background import BackgroundRule
from adcam.options import check_choice
from adcam.recipe import compare
from adcam.recipe.compare import Comparison
from adcam.recipe.inputs import hash_files_in
from adcam.recipe.network_report import build_network_section
from adcam.recipe.pictures import PICTURES_DIR, load_pictures, save_pictures
from adcam.recipe.run import MaskRecipe, open_recipe, read_results
from adcam.recipe.stages import Recipe, Stage, read_recipe, report_stage, run_stages
from adcam.report.explorer import EXPLORER_DIR
from adcam.report.figures import display_palette, picture_row
from adcam.report.model import PictureGrid, PictureRow, Section, Text
from adcam.settings import Settings, load_settings

DEMO_CONFIGS = {
    "segmentation": "shapes/adcam_shapes-vit_demo.py",
    "localization": "shapes/compare_boxes_shapes.py",
}
"""The config of the demo of each task."""
PHOTO_MODEL = "deit_tiny_patch16_224"
PHOTOS = (
    ("chelsea", "tabby cat"),
    ("coffee", "espresso"),
    ("rocket", "rocket=657|744"),
    ("astronaut", "space shuttle"),
)
"""Pictures that come with scikit-image, and the ImageNet class (name or group) that each shows."""
PHOTO_METHODS = (
    ("CAM", "cam"),
    ("TS-CAM", "ts_cam"),
    ("CLIP-ES form", "clip_es_form"),
    ("AD-CAM", "ad_cam"),
)


_SHOWN_ONLY = (f"{PICTURES_DIR}/", f"{EXPLORER_DIR}/")
"""What the comparison leaves for the report alone."""


@dataclass(frozen=True)
class Demo(Recipe):
    """The whole job on generated pictures.

    Attributes:
        settings: The settings of the generated set, the classifier, the comparison and the network.
        options: The options of the command: ``task``, ``quick``, ``weights``, ``from_scratch``.
    """

    kind: ClassVar[str] = "demo"

    settings: Settings
    options: dict[str, Any]

    @property
    def stages(self) -> Sequence[Stage[Demo]]:
        """Generated pictures, training, comparison; for masks also network and photographs."""
        left_out = OF_MASKS if self.comparison.is_by_boxes else ()
        return [stage for stage in STAGES if stage.name not in left_out]

    def describe(self) -> dict[str, Any]:
        """The options of the command."""
        return {"options": self.options}

    @property
    def comparison(self) -> Comparison:
        """The comparison of methods, whose stages are among those of the demo."""
        sources = compare.find_sources(self.settings, self.work_dir)
        return Comparison(self.work_dir, self.title, self.command, self.settings, sources)

    @property
    def network(self) -> MaskRecipe:
        """The network that learns from the masks of the comparison's last method."""
        method, section = compare.read_methods(self.comparison)[-1], self.settings.compare
        rule = BackgroundRule(method.rule, method.threshold, method.chosen_on or section.choose_on)
        return open_recipe(
            self.settings,
            self.folder("network"),
            source=self.comparison.classifier_path(""),
            labeler_options=mask_options(section.rows[-1], rule),
        )


def open_demo(
    work_dir: str | Path = "work_dirs/demo",
    *,
    task: str = "segmentation",
    quick: bool = False,
    weights: str | None = None,
    from_scratch: bool = False,
) -> Demo:
    """Read the settings of a demo; nothing is written.

    Args:
        work_dir: The folder that everything goes into.
        task: What the demo shows, a key of :data:`DEMO_CONFIGS`.
        quick: Whether a tenth of the images and two epochs do: this shows that everything runs,
            and says nothing about quality.
        weights: ImageNet weights of DeiT-Tiny (a path, or ``"timm"``) for a page of photographs.
        from_scratch: Whether training starts from random weights instead of the small shipped ones.

    Raises:
        AdcamError: The task is unknown, or has no photographs or no training from scratch.
    """
    check_choice("task", task, DEMO_CONFIGS)
    if task == "localization" and (weights is not None or from_scratch):
        raise AdcamError("the demo of boxes takes no weights and does not start from scratch")
    settings: Settings = load_settings(DEMO_CONFIGS[task])
    changes: dict[str, Any] = {"data.root": str(Path(work_dir) / "data")}
    if not from_scratch:
        assets = Path(adcam.__file__).parent / "assets"
        changes["model.weights"] = str(assets / str(settings.model.weights))
    if quick:
        counts = {k: v for k, v in asdict(settings.demo).items() if k.startswith("num_") and v}
        changes |= {f"demo.{name}": count // 10 for name, count in counts.items()}
        changes["train.epochs"] = 2
        if task == "segmentation":
            changes["recipe.network.options"] = {"train.max_iters": 10}
    if from_scratch:
        settings = settings.with_changes(dict(settings.from_scratch or {}))
    options = {"task": task, "quick": quick, "weights": weights, "from_scratch": from_scratch}
    words = ["--task localization"] if task == "localization" else []
    words += ["--quick"] if quick else []
    words += ["--from-scratch"] if from_scratch else []
    made = "boxes" if task == "localization" else "masks"
    return Demo(
        Path(work_dir),
        f"adcam demo: {made} from image labels",
        " ".join(["adcam demo", *words]),
        settings.with_changes(changes),
        options,
    )


def load_demo(work_dir: str | Path) -> Demo:
    """The demo that filled a folder, to make its report again.

    Raises:
        AdcamError: The folder holds no demo.
    """
    values = read_recipe(work_dir)
    try:
        return open_demo(work_dir, **values["options"])
    except (KeyError, TypeError) as error:
        raise AdcamError(f"{work_dir}: not a demo of `adcam demo` ({error})") from error


def make_report(demo: Demo) -> Path:
    """Write ``report/report.html`` from what the stages left; no network runs.

    Raises:
        AdcamError: There are no scores yet.
    """
    by_boxes = demo.comparison.is_by_boxes
    sections = [] if by_boxes else [make_network_section(demo), make_photo_section(demo)]
    return compare.make_report(demo.comparison, demo, sections)


def make_network_section(demo: Demo) -> Section:
    """What the network scored that learned from the masks, or how to get there."""
    hint: str | None = "The stage `network` was left out."
    if demo.is_done("network"):
        hint = demo.outputs("network").get("hint")
    if hint is not None:
        return Section("A network that learns from the masks", [Text([hint])])
    return build_network_section(read_results(demo.network))


def make_photo_section(demo: Demo) -> Section:
    """Photographs that were labelled without any training, or how to get there."""
    title = "Real photographs, no training"
    if not demo.is_done("photographs") or demo.options["weights"] is None:
        hint = (
            "Photographs need ImageNet weights of DeiT-Tiny: run `adcam demo --weights timm` where "
            "the model hub can be reached, or `adcam demo --weights FILE` with the file of "
            f"{PHOTO_MODEL} (safetensors or pth)."
        )
        return Section(title, [Text([hint])])
    rows = load_pictures(demo.folder("photographs"))
    text = f"{PHOTO_MODEL} with its own ImageNet head; the class is given, nothing is trained."
    return Section(title, [PictureGrid(rows, text)])


def label_photos(weights: str) -> list[PictureRow]:
    """Label photographs with an ImageNet ViT without any training.

    Args:
        weights: A path or ``"timm"``.
    """
    rows = []
    for picture, class_name in PHOTOS:
        img = getattr(skimage.data, picture)()
        score_maps, masks = {}, {}
        for name, method in PHOTO_METHODS:
            crf = "toco" if method == "ad_cam" else "none"
            labeler = PseudoLabeler.from_imagenet(
                PHOTO_MODEL, [class_name], weights=weights, method=method, crf=crf
            )
            shown = labeler.class_set.classes[0]
            label = labeler(img, labels=[shown])
            score_maps[name] = label.maps[shown]
            masks = {"AD-CAM + CRF": label.mask}
        palette = display_palette(labeler.class_set)
        row = picture_row(
            picture, img, score_maps=score_maps, palette=palette, labels=[shown], masks=masks
        )
        rows.append(row)
    return rows


def _describe_data(demo: Demo) -> dict[str, Any]:
    return {"generator": GENERATOR_VERSION, "set": asdict(demo.settings.demo)}


def _data_files(demo: Demo) -> list[str]:
    if demo.comparison.is_by_boxes:
        return ["meta.json", "metadata", "masks", "train", "val", "test"]
    return ["meta.json", "labels.csv", "ImageSets", "JPEGImages", "SegmentationClass"]


def _run_data(demo: Demo, folder: Path) -> dict[str, Any]:
    counts = {key: value for key, value in asdict(demo.settings.demo).items() if value is not None}
    make = make_shape_boxes if demo.comparison.is_by_boxes else make_shapes
    make(folder, **counts)
    return {}


def _describe_network(demo: Demo) -> dict[str, Any]:
    if (hint := _network_hint()) is not None:
        return {"hint": hint}
    section, compared = demo.settings.to_dict()["recipe"], demo.outputs("compare")["files"]
    return {
        "classifier": demo.outputs("train")["classifiers"][""]["classifier"],
        "compare": {name: digest for name, digest in compared.items() if name not in _SHOWN_ONLY},
        "data": demo.outputs("data")["files"],
        "recipe": hash_files_in(section),
    }


def _network_files(demo: Demo) -> list[str]:
    if _network_hint() is not None:
        return []
    network = demo.network
    return [
        f"{stage.name}/{name}"
        for stage in network.stages
        if stage.name != "report"
        for name in stage.files(network)
    ]


def _run_network(demo: Demo, folder: Path) -> dict[str, Any]:
    if (hint := _network_hint()) is not None:
        return {"hint": hint}
    run_stages(demo.network, skip=["report"], is_part=True)
    return {}


def _network_hint() -> str | None:
    """How to get a network where mmsegmentation is absent."""
    if (reason := why_not_importable("mmseg.models")) is None:
        return None
    return (
        "A segmentation network that learns from these masks needs mmsegmentation, which is "
        f"{reason}. Then `adcam demo` trains one too."
    )


def _describe_photographs(demo: Demo) -> dict[str, Any]:
    values = {"weights": demo.options["weights"], "model": PHOTO_MODEL}
    return {**hash_files_in(values), "photos": PHOTOS, "methods": PHOTO_METHODS}


def _run_photographs(demo: Demo, folder: Path) -> dict[str, Any]:
    if (weights := demo.options["weights"]) is not None:
        save_pictures(folder, label_photos(weights))
    return {}


def _comparison(demo: Demo) -> Comparison:
    return demo.comparison


STAGES: tuple[Stage[Demo], ...] = (
    Stage("data", "draw the pictures", (), _describe_data, _data_files, _run_data),
    compare.TRAIN.within(_comparison, needs=("data",)),
    compare.COMPARE.within(_comparison, needs=("data", "train")),
    Stage(
        "network",
        "train a network on the masks",
        needs=("data", "train", "compare"),
        describe=_describe_network,
        files=_network_files,
        run=_run_network,
        repairs=("train", "generate", "evaluate", "segment", "test"),
    ),
    Stage(
        "photographs",
        "label photographs",
        needs=(),
        describe=_describe_photographs,
        files=lambda demo: [] if demo.options["weights"] is None else [PICTURES_DIR],
        run=_run_photographs,
    ),
    report_stage(make_report, needs=("train", "compare")),
)
"""The stages of the demo in the order in which they run."""

OF_MASKS = ("network", "photographs")
"""The stages of the demo of masks alone."""
