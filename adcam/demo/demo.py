"""The whole job on the generated set, and photographs labelled without training."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import skimage.data
from mmengine.config import Config
from rich.console import Console

import adcam
from adcam.data.shapes import make_shape_boxes, make_shapes
from adcam.errors import AdcamError
from adcam.evaluation.compare import MethodResult
from adcam.installation import why_not_importable
from adcam.labeling.labeler import PseudoLabeler
from adcam.recipe.box_report import run_box_experiment
from adcam.recipe.experiment import print_results, run_experiment
from adcam.recipe.network_report import build_lesson_section
from adcam.recipe.recipe import open_recipe, read_teaching, run_recipe
from adcam.report.figures import picture_row
from adcam.report.model import PictureGrid, Section, Text
from adcam.settings import load_config
from adcam.training.classifier import CLASSIFIER_NAME

DEMO_CONFIGS = {
    "segmentation": "shapes/adcam_shapes-vit_demo.py",
    "localization": "shapes/compare_boxes_shapes.py",
}
"""Config of the demo of each task."""
PHOTO_MODEL = "deit_tiny_patch16_224"
PHOTOS = (
    ("chelsea", "tabby cat"),
    ("coffee", "espresso"),
    ("rocket", "rocket=657|744"),
    ("astronaut", "space shuttle"),
)
"""Pictures that come with scikit-image, and an ImageNet class (a name or a group) each shows."""
PHOTO_METHODS = (
    ("CAM", "cam"),
    ("TS-CAM", "ts_cam"),
    ("CLIP-ES form", "clip_es_form"),
    ("AD-CAM", "ad_cam"),
)


def run_demo(
    work_dir: str | Path = "work_dirs/demo",
    *,
    task: str = "segmentation",
    quick: bool = False,
    weights: str | None = None,
    from_scratch: bool = False,
) -> Path:
    """Make the generated set, train, compare all methods, write masks and the report.

    Where mmsegmentation is installed, a network is trained on the masks as well.
    For ``"localization"`` it is the set of single animals, scored by their boxes.

    Args:
        work_dir: Where everything goes. Its ``data`` and ``run`` folders are made anew.
        task: Key of :data:`DEMO_CONFIGS`.
        quick: A tenth of the images and two epochs: shows that everything runs, and says nothing
            about quality.
        weights: ImageNet weights of DeiT-Tiny (a path, or ``"timm"``) for a page of photographs.
        from_scratch: Start from random weights instead of the small pre-trained ones.

    Returns:
        Path of ``report.html``.

    Raises:
        AdcamError: Another task, or one that has no photographs or no training from scratch.
    """
    if task not in DEMO_CONFIGS:
        raise AdcamError(f"task must be one of {sorted(DEMO_CONFIGS)}, got {task!r}")
    work_dir = Path(work_dir)
    cfg = load_config(DEMO_CONFIGS[task])
    if task == "localization" and (weights is not None or from_scratch):
        raise AdcamError("the demo of boxes takes no weights and does not start from scratch")
    cfg.data.root = str(work_dir / "data")
    if from_scratch:
        cfg.merge_from_dict(cfg.from_scratch.to_dict())
    else:
        cfg.model.weights = str(Path(adcam.__file__).parent / "assets" / cfg.model.weights)
    if quick:
        for count in ("num_train", "num_val", "num_test"):
            if count in cfg.demo:
                cfg.demo[count] //= 10
        cfg.train.epochs = 2
        if task == "segmentation":
            cfg.recipe.network.options = {"train.max_iters": 10}
    for made in ("data", "run"):
        shutil.rmtree(work_dir / made, ignore_errors=True)
    if task == "localization":
        make_shape_boxes(cfg.data.root, **cfg.demo.to_dict())
        _, report = run_box_experiment(
            cfg,
            work_dir / "run",
            title="adcam demo: boxes from image labels",
            command=["adcam", "demo", "--task", task, *(["--quick"] if quick else [])],
        )
        Console().print(f"Report: {report}", soft_wrap=True)
        return report
    make_shapes(cfg.data.root, **cfg.demo.to_dict())
    flags = [flag for flag, on in (("--quick", quick), ("--from-scratch", from_scratch)) if on]
    experiment = run_experiment(
        cfg,
        work_dir / "run",
        title="adcam demo: masks from image labels",
        command=["adcam", "demo", *flags],
        more={
            "train a network on the masks": partial(
                make_network_section, cfg=cfg, work_dir=work_dir / "run"
            ),
            "label photographs": lambda results: make_photo_section(weights),
        },
    )
    print_results(experiment.results, cfg.compare.choose_on, cfg.compare.report_on)
    Console().print(f"Report: {experiment.report}", soft_wrap=True)
    return experiment.report


def make_network_section(
    results: Sequence[MethodResult], *, cfg: Config, work_dir: Path
) -> Section:
    """A network that learns from the masks of the best method, or how to get there.

    Args:
        results: Of the comparison; its last row makes the masks, at its threshold.
        cfg: The demo's config.
        work_dir: Where the comparison left its classifier; everything goes into ``network``.
    """
    if (reason := why_not_importable("mmseg.models")) is not None:
        hint = (
            "A segmentation network that learns from these masks needs mmsegmentation, which is "
            f"{reason}. Then `adcam demo` trains one too."
        )
        return Section("A network that learns from the masks", [Text([hint])])
    row, threshold = results[-1].spec, results[-1].threshold
    cfg = copy.deepcopy(cfg)
    cfg.cam = {"method": row.method, "method_options": dict(row.options), **asdict(row.views)}
    cfg.mask = {"rule": f"constant:{threshold}", "chosen_on": cfg.compare.choose_on}
    if row.crf != "none":
        cfg.mask.update(crf="lattice", crf_params=row.crf)
    cfg.recipe.classifier = str(work_dir / CLASSIFIER_NAME)
    recipe = open_recipe(cfg, work_dir / "network")
    run_recipe(recipe, skip=["report"])
    return build_lesson_section(read_teaching(recipe))


def make_photo_section(weights: str | None, model: str = PHOTO_MODEL) -> Section:
    """Photographs labelled by an ImageNet ViT without any training, or how to get there.

    Args:
        weights: A path or ``"timm"``; ``None`` gives one line of instructions.
        model: timm name of the ViT.
    """
    title = "Real photographs, no training"
    if weights is None:
        hint = (
            "Photographs need ImageNet weights of DeiT-Tiny: run `adcam demo --weights timm` where "
            "the model hub can be reached, or `adcam demo --weights FILE` with the file of "
            f"{model} (safetensors or pth)."
        )
        return Section(title, [Text([hint])])
    rows = []
    for picture, class_name in PHOTOS:
        img = getattr(skimage.data, picture)()
        score_maps, masks = {}, {}
        for name, method in PHOTO_METHODS:
            crf = "lattice" if method == "ad_cam" else "none"
            labeler = PseudoLabeler.from_imagenet(
                model, [class_name], weights=weights, method=method, crf=crf
            )
            shown = labeler.class_set.classes[0]
            label = labeler(img, labels=[shown])
            score_maps[name] = label.maps[shown]
            masks = {"AD-CAM + CRF": label.mask}
        rows.append(
            picture_row(
                picture,
                img,
                score_maps=score_maps,
                palette=labeler.class_set.palette,
                labels=[shown],
                masks=masks,
            )
        )
    caption = f"{model} with its own ImageNet head; the class is given, nothing is trained."
    return Section(title, [PictureGrid(rows, caption)])
