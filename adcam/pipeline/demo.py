"""The whole job on the generated set: data, training, methods, masks, scores, report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import skimage.data
from rich.console import Console
from rich.table import Table as ConsoleTable

import adcam
from adcam.data.files import write_text_atomic
from adcam.data.shapes import make_shapes
from adcam.models.classifier_file import load_classifier
from adcam.pipeline.compare import RowResult, compare_methods, format_csv, rows_from_config
from adcam.pipeline.config import build_dataset, hash_config, hash_file, load_config
from adcam.pipeline.generate import generate
from adcam.pipeline.labeler import PseudoLabeler
from adcam.pipeline.progress import track
from adcam.pipeline.reporting import (
    build_comparison_report,
    describe_machine,
    make_picture_rows,
    pick_spread,
    score_masks,
)
from adcam.pipeline.train import train_classifier
from adcam.report.figures import picture_row
from adcam.report.model import KeyValues, PictureGrid, Section, Text
from adcam.report.render import write_report

DEMO_CONFIG = "shapes/adcam_shapes-vit_demo.py"
PHOTO_MODEL = "deit_tiny_patch16_224"
PHOTOS = (
    ("chelsea", "tabby cat"),
    ("coffee", "espresso"),
    ("rocket", "missile"),
    ("astronaut", "space shuttle"),
)
"""Pictures that come with scikit-image, and an ImageNet class that each shows."""
PHOTO_METHODS = (
    ("CAM", "cam"),
    ("TS-CAM", "ts_cam"),
    ("CLIP-ES form", "clip_es"),
    ("AD-CAM", "ad_cam"),
)


def find_config(name: str) -> Path:
    """Path of a config of this project, in a checkout or in an installed package.

    Raises:
        ValueError: If neither place has it.
    """
    package = Path(adcam.__file__).parent
    for folder in (package.parent / "configs", package / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"the config {name} is missing from {package.parent / 'configs'}")


def run_demo(
    work_dir: str | Path = "work_dirs/demo",
    *,
    quick: bool = False,
    weights: str | None = None,
    from_scratch: bool = False,
) -> Path:
    """Make the generated set, train, compare all methods, write masks and the report.

    Args:
        work_dir: Where everything goes; stages already finished there are made again, except the
            images.
        quick: A tenth of the data and of the training: shows that everything runs, says nothing
            about quality.
        weights: ImageNet weights of DeiT-Tiny (a path, or ``"timm"``) for a page of photographs.
        from_scratch: Start from random weights instead of the small pre-trained ones.

    Returns:
        Path of ``report.html``.
    """
    console = Console(stderr=True)
    work_dir = Path(work_dir)
    seconds: dict[str, float] = {}
    data_root = work_dir / "data"
    cfg = load_config(find_config(DEMO_CONFIG))
    cfg.data.root = str(data_root)
    sizes = dict(cfg.demo)
    if from_scratch:
        cfg.model.weights = None
        cfg.merge_from_dict(dict(cfg.demo_from_scratch))
    if quick:
        sizes = {**sizes, "num_train": sizes["num_train"] // 10, "num_val": sizes["num_val"] // 10}
        cfg.train.epochs = 2
    with _stage(console, seconds, "make the images"):
        make_shapes(data_root, **sizes)
    with _stage(console, seconds, "train the classifier"):
        checkpoint = train_classifier(cfg, work_dir / "classifier")
    train_set, val_set = (build_dataset(cfg.data, split) for split in ("train", "val"))
    classifier = load_classifier(checkpoint)
    rows = rows_from_config(cfg)
    with _stage(console, seconds, "compare the methods"):
        chosen_few = train_set[: sizes["num_val"]]
        results = compare_methods(classifier.network, rows, chosen_few, val_set, progress=track)
        write_text_atomic(work_dir / "compare.csv", format_csv(results, val_set.class_set))
    main = next(item for item in results if item.row.method == "ad_cam")
    labeler = PseudoLabeler(
        classifier.network,
        classifier.class_set,
        method="ad_cam",
        method_options=main.row.options,
        views=main.row.views,
        rule=f"constant:{main.threshold}",
        crf="lattice",
        crf_params=cfg.mask.crf_params,
    )
    masks_root = work_dir / "masks_val"
    with _stage(console, seconds, "masks with CRF"):
        generate(val_set, labeler, masks_root, overwrite=True)
    mask_name = "AD-CAM + CRF"
    with _stage(console, seconds, "report"):
        masks, per_image = score_masks(val_set, masks_root / "masks")
        write_text_atomic(work_dir / "masks_val.json", json.dumps(masks.to_dict(), indent=2))
        spread = pick_spread(per_image, each=3)
        lead = spread[:: max(len(spread) // 4, 1)][:4]
        pictures = [
            make_picture_rows(
                classifier.network,
                results,
                val_set,
                indices,
                masks_root / "masks",
                mask_name=mask_name,
            )
            for indices in (lead, spread)
        ]
        report = build_comparison_report(
            results,
            masks,
            val_set,
            title="adcam demo: masks from image labels",
            subtitle=f"{len(train_set)} training and {len(val_set)} validation images, generated; "
            f"classifier mAP {classifier.info['val_map']:.1f}",
            command="adcam demo" + (" --from-scratch" if from_scratch else ""),
            choose_split="train",
            lead_rows=pictures[0],
            more_rows=pictures[1],
            seconds=seconds,
            provenance=[
                KeyValues(
                    {
                        "config": DEMO_CONFIG,
                        "config hash": hash_config(cfg.to_dict()),
                        "classifier": hash_file(checkpoint),
                        "seed": cfg.train.seed,
                        "start": "random" if from_scratch else str(cfg.model.weights),
                        "machine": describe_machine(),
                    },
                    "How this was made",
                )
            ],
            extra_sections=[make_photo_section(weights)],
            mask_name=mask_name,
            threshold_note=f"threshold {main.threshold:.2f}, chosen on train",
        )
        path = write_report(report, work_dir)
    _print_table(results, masks.miou, mask_name)
    console.print(f"Report: {path}")
    return path


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
        score_maps, mask = {}, None
        for name, method in PHOTO_METHODS:
            labeler = PseudoLabeler.from_imagenet(
                model, [class_name], weights=weights, method=method, crf="lattice"
            )
            label = labeler(img, labels=[class_name])
            score_maps[name], mask = label.maps[class_name], label.mask
        rows.append(
            picture_row(
                picture,
                img,
                score_maps=score_maps,
                palette=labeler.class_set.palette,
                labels=[class_name],
                masks={"AD-CAM + CRF": mask},
            )
        )
    caption = f"{model} with its own ImageNet head; the class is given, nothing is trained."
    return Section(title, [PictureGrid(rows, caption, heat_scale=True)])


@contextmanager
def _stage(console: Console, seconds: dict[str, float], name: str) -> Iterator[None]:
    console.print(f"· {name} …")
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    console.print(f"  {name}: {seconds[name]:.0f} s")


def _print_table(results: Sequence[RowResult], masks_miou: float, mask_name: str) -> None:
    table = ConsoleTable("method", "threshold (chosen on train)", "mIoU val, %")
    for item in results:
        table.add_row(item.row.name, f"{item.threshold:.2f}", f"{item.result.miou:.1f}")
    table.add_row(mask_name, "", f"{masks_miou:.1f}")
    Console().print(table)
