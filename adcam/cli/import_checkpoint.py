"""``adcam import``: a checkpoint of another project as a classifier."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from adcam.cli.arguments import add_command
from adcam.cli.console import EXIT_OK, log, say_next, show


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "import",
        run,
        "a checkpoint of TS-CAM or MCTformer -> a classifier",
        """\
        Turn a checkpoint that the code of TS-CAM, MCTformer or MCTformer+ wrote into a classifier
        that every command here takes. The project, its backbone and its size are read off the
        tensors; no code of the file runs. The classes are those of VOC (20 outputs), COCO (80) or
        ImageNet (1,000), or those you name.""",
        """\
        adcam import MCTformer_results/checkpoint_best.pth --out classifier.safetensors
        adcam import model_best.pth --classes data/CUB_200_2011/classes.txt --out cub.safetensors
        adcam generate photos/ --checkpoint classifier.safetensors --method mctformer_form --out out
        """,
    )
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help=".pth of that project")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the classifier to write"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="A,B,…",
        help="names in the order of the outputs, voc, coco, or a file with one name a line",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")


def run(args: argparse.Namespace) -> int:
    from adcam.convert.checkpoints import import_checkpoint, read_class_names
    from adcam.convert.per_image import refuse_existing
    from adcam.data.sources import parse_classes

    refuse_existing(args.out, args.overwrite)
    classes = None
    if args.classes is not None:
        is_file = len(args.classes) == 1 and Path(args.classes[0]).is_file()
        classes = read_class_names(args.classes[0]) if is_file else parse_classes(args.classes)
    found = import_checkpoint(args.checkpoint, args.out, classes)
    names = found.class_set.classes
    log(
        f"{found.project}, {found.backbone} at {found.img_size} pixels, {len(names)} classes: "
        f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
    )
    show(args.out)
    say_next(f"adcam generate IMAGES --checkpoint {args.out} --out DIR")
    return EXIT_OK
